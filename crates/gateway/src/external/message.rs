//! Messages to a picker, as they go onto the wire: protobuf behind the five bytes of gRPC.

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use forebay_wire::ext_proc::processing_mode::BodySendMode;
use forebay_wire::ext_proc::processing_request::Request;
use forebay_wire::ext_proc::{
    HeaderMap as WireMap, HeaderValue as WireValue, HttpBody, HttpHeaders, HttpTrailers, Metadata,
    ProcessingRequest, ProtocolConfiguration,
};
use forebay_wire::value::Kind;
use forebay_wire::{ListValue, Struct, Value};
use http::{HeaderMap, StatusCode};
use prost::Message;

use super::destination::{NAMESPACE, SERVED, SUBSET, SUBSET_NAMESPACE};
use super::protocol::Side;

/// The head of a request, as a picker is shown it.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a str,
    /// Path and query.
    pub path: &'a str,
    /// Host, with its port if the client named one.
    pub authority: &'a str,
    /// `http` or `https`, as the client came.
    pub scheme: &'a str,
    /// Its fields, without those of one hop.
    pub fields: &'a HeaderMap,
    /// Length of the body, if it is shown too.
    pub length: Option<usize>,
    /// The endpoints that the picker may choose from, if it may not choose from all.
    pub subset: Option<&'a [SocketAddr]>,
}

/// Shows the head of a request; it opens the exchange. `bodies` tells whether that of the response
/// will be shown.
pub fn request_head(head: &RequestHead<'_>, bodies: bool, end: bool, out: &mut BytesMut) {
    let length = head.length.map(|length| length.to_string());
    let lines = [
        (":method", head.method),
        (":path", head.path),
        (":authority", head.authority),
        (":scheme", head.scheme),
    ];
    let length = length.as_deref().map(|length| ("content-length", length));
    let message = ProcessingRequest {
        request: Some(Request::RequestHeaders(HttpHeaders {
            headers: Some(fields(lines.into_iter().chain(length), head.fields)),
            end_of_stream: end,
        })),
        metadata_context: head
            .subset
            .map(|subset| metadata(SUBSET_NAMESPACE, SUBSET, list(subset))),
        protocol_config: Some(ProtocolConfiguration {
            request_body_mode: BodySendMode::FullDuplexStreamed.into(),
            response_body_mode: if bodies {
                BodySendMode::FullDuplexStreamed.into()
            } else {
                BodySendMode::None.into()
            },
            send_body_without_waiting_for_header_response: true,
        }),
        ..ProcessingRequest::default()
    };
    frame(&message, out);
}

/// Shows the head of the response that came from `served`.
pub fn response_head(
    status: StatusCode,
    headers: &HeaderMap,
    served: SocketAddr,
    end: bool,
    out: &mut BytesMut,
) {
    let message = ProcessingRequest {
        request: Some(Request::ResponseHeaders(HttpHeaders {
            headers: Some(fields([(":status", status.as_str())].into_iter(), headers)),
            end_of_stream: end,
        })),
        metadata_context: Some(metadata(
            NAMESPACE,
            SERVED,
            Kind::StringValue(served.to_string()),
        )),
        ..ProcessingRequest::default()
    };
    frame(&message, out);
}

/// Shows a piece of a body.
pub fn body(side: Side, piece: Bytes, end: bool, out: &mut BytesMut) {
    let body = HttpBody {
        body: piece,
        end_of_stream: end,
    };
    let request = match side {
        Side::Request => Request::RequestBody(body),
        Side::Response => Request::ResponseBody(body),
    };
    let message = ProcessingRequest {
        request: Some(request),
        ..ProcessingRequest::default()
    };
    frame(&message, out);
}

/// Shows the trailers of a response.
pub fn response_trailers(trailers: &HeaderMap, out: &mut BytesMut) {
    let message = ProcessingRequest {
        request: Some(Request::ResponseTrailers(HttpTrailers {
            trailers: Some(fields(std::iter::empty(), trailers)),
        })),
        ..ProcessingRequest::default()
    };
    frame(&message, out);
}

/// Appends a message in gRPC's framing: not compressed, its length, itself.
fn frame(message: &ProcessingRequest, out: &mut BytesMut) {
    let length = message.encoded_len();
    out.reserve(5 + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("heads and pieces are bounded far below 4 GiB"));
    message.encode_raw(out);
}

fn fields<'a>(lines: impl Iterator<Item = (&'a str, &'a str)>, fields: &HeaderMap) -> WireMap {
    let value = |key: &str, value: &[u8]| WireValue {
        key: key.to_owned(),
        value: String::new(),
        raw_value: Bytes::copy_from_slice(value),
    };
    let mut headers = Vec::with_capacity(fields.len() + 5);
    headers.extend(lines.map(|(name, text)| value(name, text.as_bytes())));
    let rest = fields.iter();
    headers.extend(rest.map(|(name, own)| value(name.as_str(), own.as_bytes())));
    WireMap { headers }
}

fn metadata(namespace: &str, key: &str, kind: Kind) -> Metadata {
    let fields = [(key.to_owned(), Value { kind: Some(kind) })].into();
    Metadata {
        filter_metadata: [(namespace.to_owned(), Struct { fields })].into(),
    }
}

/// A list, never a text: of a text llm-d's picker takes no notice.
fn list(addresses: &[SocketAddr]) -> Kind {
    let values = addresses.iter().map(|address| Value {
        kind: Some(Kind::StringValue(address.to_string())),
    });
    Kind::ListValue(ListValue {
        values: values.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(out: &BytesMut) -> ProcessingRequest {
        let length = u32::from_be_bytes(out[1..5].try_into().expect("four bytes"));
        assert_eq!((out[0], length as usize), (0, out.len() - 5));
        ProcessingRequest::decode(&out[5..]).expect("a message")
    }

    #[test]
    fn a_restricted_request_names_its_endpoints_as_a_list() {
        let subset = ["10.0.0.1:80".parse().expect("an address")];
        let mut fields = HeaderMap::new();
        fields.insert(
            "a",
            http::HeaderValue::from_bytes(b"\xff").expect("a value"),
        );
        let head = RequestHead {
            method: "POST",
            path: "/v1?x",
            authority: "h.test",
            scheme: "http",
            fields: &fields,
            length: Some(3),
            subset: Some(&subset),
        };
        let mut out = BytesMut::new();
        request_head(&head, false, false, &mut out);
        let message = read(&out);
        let Some(Request::RequestHeaders(head)) = message.request else {
            panic!("{message:?}");
        };
        let headers = head.headers.expect("fields").headers;
        let shown: Vec<String> = headers
            .iter()
            .map(|h| format!("{}={}", h.key, h.raw_value.escape_ascii()))
            .collect();
        assert_eq!(
            shown.join(" "),
            ":method=POST :path=/v1?x :authority=h.test :scheme=http content-length=3 a=\\xff"
        );
        let hint = &message.metadata_context.expect("metadata").filter_metadata;
        let list = &hint[SUBSET_NAMESPACE].fields[SUBSET].kind;
        assert!(
            matches!(list, Some(Kind::ListValue(list)) if list.values.len() == 1),
            "{list:?}"
        );
    }
}
