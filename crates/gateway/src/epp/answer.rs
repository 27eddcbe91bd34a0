//! What a proxy is told: where a request goes and what changes about it, or why it goes nowhere.

use std::fmt::Write as _;
use std::net::SocketAddr;

use bytes::Bytes;
use forebay_dialect::Dialect;
use forebay_wire::Struct;
use forebay_wire::ext_proc::header_value_option::HeaderAppendAction;
use forebay_wire::ext_proc::{
    GrpcStatus, HeaderMutation, HeaderValue, HeaderValueOption, HttpStatus, ImmediateResponse,
};
use forebay_wire::value::Kind;

use super::protocol::text;
use crate::external::destination::{DESTINATION, NAMESPACE};
use crate::grpc::Code;
use crate::respond::Refusal;

/// A field that takes the place of those of its name.
pub(super) fn set(name: &str, value: impl Into<Bytes>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_owned(),
            value: String::new(),
            raw_value: value.into(),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    }
}

/// The field and the metadata that name the endpoints, best first. Both say the same: proxies look at
/// the one or the other, and the protocol gives two different ones no meaning.
pub(super) fn destination(order: &[SocketAddr]) -> (HeaderValueOption, Struct) {
    let mut list = String::with_capacity(order.len() * 20);
    for address in order {
        let comma = if list.is_empty() { "" } else { "," };
        let _infallible = write!(list, "{comma}{address}");
    }
    let field = set(DESTINATION, list.clone());
    let inner = Struct {
        fields: [(DESTINATION.to_owned(), text(list))].into(),
    };
    let inner = forebay_wire::Value {
        kind: Some(Kind::StructValue(inner)),
    };
    let metadata = Struct {
        fields: [(NAMESPACE.to_owned(), inner)].into(),
    };
    (field, metadata)
}

/// A refusal, as the proxy answers it to the client.
pub(super) fn immediate(
    refusal: &Refusal,
    dialect: Dialect,
    id: &str,
    grpc: bool,
) -> ImmediateResponse {
    let (headers, body) = refusal.parts(dialect, id);
    let fields = headers.iter();
    let mut set_headers: Vec<_> = fields
        .map(|(name, value)| set(name.as_str(), Bytes::copy_from_slice(value.as_bytes())))
        .collect();
    set_headers.push(set("x-request-id", id.to_owned()));
    let code = Code::of(refusal.status, refusal.reason);
    ImmediateResponse {
        status: Some(HttpStatus {
            code: i32::from(refusal.status.as_u16()),
        }),
        headers: Some(HeaderMutation {
            set_headers,
            remove_headers: Vec::new(),
        }),
        body,
        grpc_status: grpc.then_some(GrpcStatus {
            status: code as u32,
        }),
        // For the proxy's log.
        details: refusal.reason.to_owned(),
    }
}
