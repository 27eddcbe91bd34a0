//! The numbers of fields are Envoy's: messages written byte by byte here read as they should.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use forebay_wire::ext_proc::header_value_option::HeaderAppendAction;
use forebay_wire::ext_proc::processing_mode::BodySendMode;
use forebay_wire::ext_proc::*;
use forebay_wire::health::{HealthCheckResponse, health_check_response::ServingStatus};
use prost::Message;

/// A field of bytes, a text or a message: number, length, content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    assert!(number < 16 && content.len() < 128, "one byte each");
    let mut out = vec![number << 3 | 2, content.len() as u8];
    out.extend_from_slice(content);
    out
}

/// A field of a small number.
fn number(number: u8, value: u8) -> Vec<u8> {
    assert!(number < 16 && value < 128, "one byte each");
    vec![number << 3, value]
}

fn check<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: Vec<u8>, message: M) {
    assert_eq!(M::decode(&*bytes).unwrap(), message);
    assert_eq!(message.encode_to_vec(), bytes, "and back: {message:?}");
}

fn response(response: processing_response::Response) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(response),
        ..ProcessingResponse::default()
    }
}

#[test]
fn a_requests_head_reads_as_envoy_writes_it() {
    let header = [field(1, b":path"), field(3, b"/v1")].concat();
    let headers = field(1, &field(1, &header));
    let head = field(2, &[headers, number(3, 1)].concat());
    let modes = [number(1, 4), number(2, 4), number(3, 1)].concat();
    check(
        [head, field(11, &modes)].concat(),
        ProcessingRequest {
            request: Some(processing_request::Request::RequestHeaders(HttpHeaders {
                headers: Some(HeaderMap {
                    headers: vec![HeaderValue {
                        key: ":path".to_owned(),
                        raw_value: "/v1".into(),
                        ..HeaderValue::default()
                    }],
                }),
                end_of_stream: true,
            })),
            protocol_config: Some(ProtocolConfiguration {
                request_body_mode: BodySendMode::FullDuplexStreamed.into(),
                response_body_mode: BodySendMode::FullDuplexStreamed.into(),
                send_body_without_waiting_for_header_response: true,
            }),
            ..ProcessingRequest::default()
        },
    );
}

#[test]
fn a_pick_reads_as_pickers_write_it() {
    let option = [
        field(1, &[field(1, b"a"), field(2, b"b")].concat()),
        field(2, &number(1, 1)),
        number(3, 2),
        number(4, 1),
    ];
    let mutation = [field(1, &option.concat()), field(2, b"c")].concat();
    let common = [number(1, 1), field(2, &mutation), number(5, 1)].concat();
    let text = field(3, b"1.2.3.4:5");
    let entry = [field(1, b"k"), field(2, &text)].concat();
    let metadata = field(1, &entry);
    let bytes = [
        field(1, &field(1, &common)),
        field(8, &metadata),
        field(9, &number(4, 4)),
    ];
    let value = prost_types::Value {
        kind: Some(forebay_wire::value::Kind::StringValue("1.2.3.4:5".into())),
    };
    check(
        bytes.concat(),
        ProcessingResponse {
            response: Some(processing_response::Response::RequestHeaders(
                HeadersResponse {
                    response: Some(CommonResponse {
                        status: common_response::ResponseStatus::ContinueAndReplace.into(),
                        header_mutation: Some(HeaderMutation {
                            set_headers: vec![HeaderValueOption {
                                header: Some(HeaderValue {
                                    key: "a".into(),
                                    value: "b".into(),
                                    ..HeaderValue::default()
                                }),
                                append: Some(true),
                                append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
                                keep_empty_value: true,
                            }],
                            remove_headers: vec!["c".into()],
                        }),
                        clear_route_cache: true,
                        ..CommonResponse::default()
                    }),
                },
            )),
            dynamic_metadata: Some(forebay_wire::Struct {
                fields: [("k".to_owned(), value)].into(),
            }),
            mode_override: Some(ProcessingMode {
                response_body_mode: BodySendMode::FullDuplexStreamed.into(),
                ..ProcessingMode::default()
            }),
            override_message_timeout: None,
        },
    );
}

#[test]
fn bodies_trailers_and_refusals_read_as_they_are_written() {
    let streamed = [field(1, b"x"), number(2, 1)].concat();
    check(
        field(4, &field(1, &field(3, &field(3, &streamed)))),
        response(processing_response::Response::ResponseBody(BodyResponse {
            response: Some(CommonResponse {
                body_mutation: Some(BodyMutation {
                    mutation: Some(body_mutation::Mutation::StreamedResponse(
                        StreamedBodyResponse {
                            body: "x".into(),
                            end_of_stream: true,
                        },
                    )),
                }),
                ..CommonResponse::default()
            }),
        })),
    );
    check(
        field(6, b""),
        response(processing_response::Response::ResponseTrailers(
            TrailersResponse::default(),
        )),
    );
    let refusal = [
        field(1, &number(1, 103)),
        field(3, b"no"),
        field(4, &number(1, 8)),
        field(5, b"why"),
    ];
    check(
        field(7, &refusal.concat()),
        response(processing_response::Response::ImmediateResponse(
            ImmediateResponse {
                status: Some(HttpStatus { code: 103 }),
                headers: None,
                body: "no".into(),
                grpc_status: Some(GrpcStatus { status: 8 }),
                details: "why".into(),
            },
        )),
    );
    check(
        number(1, 2),
        HealthCheckResponse {
            status: ServingStatus::NotServing.into(),
        },
    );
}

#[test]
fn what_a_newer_envoy_adds_is_passed_over() {
    let newer = [field(4, &field(1, b"x")), field(15, b"?")].concat();
    let read = ProcessingRequest::decode(&*newer).unwrap();
    let body = HttpBody {
        body: "x".into(),
        end_of_stream: false,
    };
    assert_eq!(
        read.request,
        Some(processing_request::Request::RequestBody(body))
    );
}
