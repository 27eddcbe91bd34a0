//! How the picker of the tests behaves: what the field `x-do` of a request tells it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use forebay_wire::ext_proc::body_mutation::Mutation;
use forebay_wire::ext_proc::processing_mode::{BodySendMode, HeaderSendMode};
use forebay_wire::ext_proc::processing_request::Request as Shown;
use forebay_wire::ext_proc::processing_response::Response as Said;
use forebay_wire::ext_proc::*;
use forebay_wire::value::Kind;
use forebay_wire::{Struct, Value};
use tonic::Status;

use super::Call;

/// Behaves as the request says.
pub(super) async fn answer(call: &mut Call) -> Result<(), Status> {
    let Some(first) = call.next().await? else {
        return Ok(());
    };
    let Some(Shown::RequestHeaders(head)) = first.request else {
        return Err(Status::invalid_argument("no head"));
    };
    let fields = texts(head.headers);
    let todo = fields.get("x-do").cloned().unwrap_or_default();
    let pick = fields.get("x-pick").cloned().unwrap_or_default();
    let subset = first.metadata_context.as_ref().and_then(subset_of);
    call.note(|seen| (seen.request, seen.subset) = (fields, subset));
    match todo.as_str() {
        "never answer" => return wait(call).await,
        "fail" => return Err(Status::internal("out of order")),
        "end at once" => return Ok(()),
        "look at heads alone" => {
            call.send(picked(&pick, &todo)).await;
            return watch_response(call, &todo).await;
        }
        _ => {}
    }
    let mut body = Vec::new();
    if !head.end_of_stream {
        body = request_body(call, &todo).await?;
    }
    if let Some(immediate) = immediate(&todo) {
        call.say(Said::ImmediateResponse(immediate)).await;
        return Ok(());
    }
    if todo == "fail late" {
        call.send(picked(&pick, &todo)).await;
        return Err(Status::unavailable("gone"));
    }
    if todo == "break the rules" {
        call.say(Said::RequestTrailers(TrailersResponse::default()))
            .await;
        return wait(call).await;
    }
    call.send(picked(&pick, &todo)).await;
    if !head.end_of_stream && !matches!(&*todo, "confirm" | "replace") {
        let body = match todo.as_str() {
            "change the body" => String::from_utf8_lossy(&body)
                .replace("tiny", "changed-model")
                .into_bytes(),
            "make a long body" => vec![b'x'; 3 << 20],
            "drop the body" => Vec::new(),
            _ => body,
        };
        for message in streamed(&body, true) {
            call.say(Said::RequestBody(message)).await;
        }
    }
    if todo == "confirm" && !head.end_of_stream {
        // Those before it were confirmed as they came.
        call.say(Said::RequestBody(confirmed())).await;
    }
    match todo.as_str() {
        "choose and leave" => Ok(()),
        "evict" => {
            // Once an endpoint works on it, which the test sees to.
            evict(call).await
        }
        _ => watch_response(call, &todo).await,
    }
}

/// Reads what comes until the call is over.
async fn wait(call: &mut Call) -> Result<(), Status> {
    while call.next().await?.is_some() {}
    Ok(())
}

static EVICT: std::sync::Mutex<Option<Arc<tokio::sync::Notify>>> = std::sync::Mutex::new(None);

/// What lets the next eviction begin.
pub fn eviction() -> Arc<tokio::sync::Notify> {
    let notify = Arc::<tokio::sync::Notify>::default();
    EVICT.lock().unwrap().replace(Arc::clone(&notify));
    notify
}

async fn evict(call: &mut Call) -> Result<(), Status> {
    let notify = EVICT.lock().unwrap().clone().unwrap();
    notify.notified().await;
    let response = immediate("refuse").unwrap();
    call.say(Said::ImmediateResponse(response)).await;
    wait(call).await
}

async fn request_body(call: &mut Call, todo: &str) -> Result<Vec<u8>, Status> {
    let mut body = Vec::new();
    loop {
        let message = call.next().await?;
        let Some(Shown::RequestBody(piece)) = message.and_then(|m| m.request) else {
            return Err(Status::invalid_argument("no body"));
        };
        call.note(|seen| {
            seen.body.extend_from_slice(&piece.body);
            seen.pieces.push(piece.body.len());
        });
        body.extend_from_slice(&piece.body);
        if piece.end_of_stream {
            return Ok(body);
        }
        if todo == "confirm" {
            call.say(Said::RequestBody(confirmed())).await;
        }
    }
}

/// Looks at the response, and sends it back.
async fn watch_response(call: &mut Call, todo: &str) -> Result<(), Status> {
    let mut events = false;
    let mut gathered = Vec::new();
    while let Some(message) = call.next().await? {
        match message.request {
            Some(Shown::ResponseHeaders(head)) => {
                let fields = texts(head.headers);
                events = fields
                    .get("content-type")
                    .is_some_and(|v| v.starts_with("text/event-stream"));
                let served = message.metadata_context.as_ref().and_then(served_of);
                let shown = served.clone().unwrap_or_default();
                call.note(|seen| (seen.response, seen.served) = (fields, served));
                if todo == "refuse the response" {
                    let refused = immediate("refuse").unwrap();
                    call.say(Said::ImmediateResponse(refused)).await;
                    return wait(call).await;
                }
                if todo == "fail at the response" {
                    return Err(Status::internal("out of order"));
                }
                if todo == "never answer the response" {
                    return wait(call).await;
                }
                call.send(seen_response(&shown, todo)).await;
            }
            Some(Shown::RequestBody(_)) if todo == "look at heads alone" => {}
            Some(Shown::ResponseBody(piece)) => {
                call.note(|seen| {
                    seen.response_body.extend_from_slice(&piece.body);
                    seen.response_pieces.push(piece.body.len());
                });
                if matches!(todo, "look at heads alone" | "leave the response's body") {
                    continue;
                }
                if todo == "confirm" {
                    call.say(Said::ResponseBody(confirmed())).await;
                    continue;
                }
                if todo == "fail within the response" && !gathered.is_empty() {
                    return Err(Status::internal("out of order"));
                }
                gathered.extend_from_slice(&piece.body);
                if events || piece.end_of_stream {
                    let whole = match todo {
                        "fail within the response" => gathered.clone(),
                        _ => std::mem::take(&mut gathered),
                    };
                    let whole = changed(&whole, todo);
                    for message in streamed(&whole, piece.end_of_stream) {
                        call.say(Said::ResponseBody(message)).await;
                    }
                }
            }
            Some(Shown::ResponseTrailers(trailers)) => {
                let fields = texts(trailers.trailers);
                call.note(|seen| seen.trailers = fields);
                if todo == "look at heads alone" {
                    continue;
                }
                for message in streamed(&std::mem::take(&mut gathered), false) {
                    call.say(Said::ResponseBody(message)).await;
                }
                call.say(Said::ResponseTrailers(TrailersResponse {
                    header_mutation: Some(HeaderMutation {
                        set_headers: vec![option("x-added", "by the picker")],
                        ..HeaderMutation::default()
                    }),
                }))
                .await;
            }
            _ => return Err(Status::invalid_argument("not a response")),
        }
    }
    Ok(())
}

fn changed(body: &[u8], todo: &str) -> Vec<u8> {
    if todo == "change the body" {
        let text = String::from_utf8_lossy(body).into_owned();
        text.replace("changed-model", "tiny").into_bytes()
    } else {
        body.to_vec()
    }
}

// === messages ===

fn immediate(todo: &str) -> Option<ImmediateResponse> {
    let (code, body, fields): (_, _, &[(&str, &str)]) = match todo {
        "refuse" => (
            429,
            "come back later",
            &[("x-llm-d-request-dropped-reason", "rejected-saturated")],
        ),
        "refuse in JSON" => (
            503,
            r#"{"own":"shape"}"#,
            &[("content-type", "application/json"), ("x-own", "1")],
        ),
        "answer" => (200, "answered here", &[]),
        "answer nonsense" => (7, "", &[]),
        _ => return None,
    };
    Some(ImmediateResponse {
        status: Some(HttpStatus { code }),
        headers: Some(HeaderMutation {
            set_headers: fields.iter().map(|(k, v)| option(k, v)).collect(),
            ..HeaderMutation::default()
        }),
        body: Bytes::from_static(body.as_bytes()),
        grpc_status: None,
        details: "for the log".to_owned(),
    })
}

/// The answer to a request's head.
fn picked(pick: &str, todo: &str) -> ProcessingResponse {
    let mut set_headers = vec![
        option("x-from-picker", "1"),
        option("content-length", "1"),
        option("host", "elsewhere"),
        option("transfer-encoding", "chunked"),
        option("accept-encoding", "gzip"),
        option("x-llm-d-inference-objective", "o"),
    ];
    if todo != "metadata alone" {
        set_headers.push(option("x-gateway-destination-endpoint", pick));
    }
    if todo == "set another path" {
        set_headers.push(option(":path", "/v1/other"));
    }
    if todo == "set nonsense" {
        set_headers.push(option("a b", "1"));
    }
    let metadata = match todo {
        "header alone" => None,
        "contradict itself" => Some("10.9.9.9:1"),
        _ => Some(pick),
    };
    let mode = |response_header_mode: HeaderSendMode| ProcessingMode {
        response_header_mode: response_header_mode.into(),
        response_body_mode: BodySendMode::None.into(),
        ..ProcessingMode::default()
    };
    ProcessingResponse {
        response: Some(Said::RequestHeaders(HeadersResponse {
            response: Some(CommonResponse {
                status: i32::from(todo == "replace"),
                header_mutation: Some(HeaderMutation {
                    set_headers,
                    remove_headers: vec!["x-remove".to_owned(), "host".to_owned()],
                }),
                body_mutation: (todo == "replace").then(|| BodyMutation {
                    mutation: Some(Mutation::Body("{}".into())),
                }),
                clear_route_cache: true,
                ..CommonResponse::default()
            }),
        })),
        dynamic_metadata: metadata.map(|pick| {
            let pick = Kind::StringValue(pick.to_owned());
            let fields = struct_of("x-gateway-destination-endpoint", pick);
            struct_of("envoy.lb", Kind::StructValue(fields))
        }),
        mode_override: match todo {
            "skip the response" => Some(mode(HeaderSendMode::Skip)),
            "skip the response's body" => Some(mode(HeaderSendMode::Send)),
            _ => None,
        },
        ..ProcessingResponse::default()
    }
}

/// The answer to a response's head.
fn seen_response(served: &str, todo: &str) -> ProcessingResponse {
    let mut set_headers = vec![
        option("x-served", served),
        option("content-length", "1"),
        option("x-request-id", "not yours"),
    ];
    if todo == "change the status" {
        set_headers.push(option(":status", "418"));
    }
    ProcessingResponse {
        response: Some(Said::ResponseHeaders(HeadersResponse {
            response: Some(CommonResponse {
                status: i32::from(todo == "replace"),
                header_mutation: Some(HeaderMutation {
                    set_headers,
                    remove_headers: vec!["x-remove".to_owned()],
                }),
                body_mutation: (todo == "replace").then(|| BodyMutation {
                    mutation: Some(Mutation::Body("replaced".into())),
                }),
                ..CommonResponse::default()
            }),
        })),
        mode_override: (todo == "leave the response's body").then(ProcessingMode::default),
        ..ProcessingResponse::default()
    }
}

fn streamed(body: &[u8], end: bool) -> Vec<BodyResponse> {
    let mut pieces: Vec<&[u8]> = body.chunks(62_000).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    let last = pieces.len() - 1;
    let message = |(n, piece): (usize, &[u8])| BodyResponse {
        response: Some(CommonResponse {
            body_mutation: Some(BodyMutation {
                mutation: Some(Mutation::StreamedResponse(StreamedBodyResponse {
                    body: Bytes::copy_from_slice(piece),
                    end_of_stream: end && n == last,
                })),
            }),
            ..CommonResponse::default()
        }),
    };
    pieces.into_iter().enumerate().map(message).collect()
}

fn confirmed() -> BodyResponse {
    BodyResponse {
        response: Some(CommonResponse::default()),
    }
}

fn option(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            raw_value: Bytes::copy_from_slice(value.as_bytes()),
            ..HeaderValue::default()
        }),
        ..HeaderValueOption::default()
    }
}

fn struct_of(key: &str, kind: Kind) -> Struct {
    Struct {
        fields: [(key.to_owned(), Value { kind: Some(kind) })].into(),
    }
}

fn texts(headers: Option<HeaderMap>) -> BTreeMap<String, String> {
    let text = |h: HeaderValue| {
        assert!(h.value.is_empty(), "values travel as bytes: {h:?}");
        (h.key, String::from_utf8_lossy(&h.raw_value).into_owned())
    };
    headers.unwrap().headers.into_iter().map(text).collect()
}

fn of<'a>(metadata: &'a Metadata, namespace: &str, key: &str) -> Option<&'a Kind> {
    let fields = metadata.filter_metadata.get(namespace)?;
    fields.fields.get(key)?.kind.as_ref()
}

fn subset_of(metadata: &Metadata) -> Option<Vec<String>> {
    let hint = of(
        metadata,
        "envoy.lb.subset_hint",
        "x-gateway-destination-endpoint-subset",
    )?;
    let Kind::ListValue(list) = hint else {
        panic!("the subset is a list, not {hint:?}");
    };
    let text = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) => text.clone(),
        other => panic!("{other:?}"),
    };
    Some(list.values.iter().map(text).collect())
}

fn served_of(metadata: &Metadata) -> Option<String> {
    match of(
        metadata,
        "envoy.lb",
        "x-gateway-destination-endpoint-served",
    )? {
        Kind::StringValue(text) => Some(text.clone()),
        other => panic!("{other:?}"),
    }
}
