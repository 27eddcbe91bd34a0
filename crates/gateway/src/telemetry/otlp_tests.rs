//! Tracing against a collector that is a socket and a protobuf decoder.

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue as ProtoKeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::telemetry::test_record;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// An OTLP/gRPC collector: its endpoint, and the spans that it gets.
fn collector() -> (String, Receiver<Span>) {
    let (sender, spans) = channel();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
    listener.set_nonblocking(true).expect("a socket");
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("nonblocking");
            while let Ok((stream, _)) = listener.accept().await {
                let sender = sender.clone();
                let service = service_fn(move |request| take(request, sender.clone()));
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
    });
    (endpoint, spans)
}

async fn take(
    request: Request<Incoming>,
    spans: Sender<Span>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let body = request
        .into_body()
        .collect()
        .await
        .expect("a whole request")
        .to_bytes();
    // A gRPC message: compressed flag, length, protobuf.
    let export = ExportTraceServiceRequest::decode(&body[5..]).expect("protobuf");
    for resource in export.resource_spans {
        let attributes = resource.resource.expect("set").attributes;
        assert_eq!(plain(&attributes)["service.name"], "edge-gateway");
        for span in resource
            .scope_spans
            .into_iter()
            .flat_map(|scope| scope.spans)
        {
            spans.send(span).expect("the test waits");
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
    Ok(Response::builder()
        .header("content-type", "application/grpc")
        .body(body)
        .expect("constant"))
}

fn plain(attributes: &[ProtoKeyValue]) -> BTreeMap<String, String> {
    let text = |value: &ProtoKeyValue| match value.value.clone().and_then(|v| v.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes
        .iter()
        .map(|a| (a.key.clone(), text(a)))
        .collect()
}

fn started(endpoint: &str, ratio: f64) -> (Tracing, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let service_name = "edge-gateway".to_owned();
    let settings = Settings {
        endpoint: endpoint.to_owned(),
        ratio,
        service_name,
    };
    (
        Tracing::start(&settings, &metrics).expect("a collector address"),
        metrics,
    )
}

fn exported(record: Record, traceparent: Option<&str>) -> (Span, TraceContext) {
    let (endpoint, spans) = collector();
    let (tracing, _metrics) = started(&endpoint, 1.0);
    let context = tracing.begin(traceparent).expect("everything is sampled");
    tracing.settle(&Arc::new(record), context);
    tracing.flush(Duration::from_secs(20));
    (
        spans.recv_timeout(Duration::from_secs(20)).expect("a span"),
        context,
    )
}

#[test]
fn a_span_says_what_was_asked_what_it_cost_and_who_answered() {
    let (span, context) = exported(test_record(), Some(PARENT));
    assert_eq!(span.name, "chat llama");
    assert_eq!(
        span.end_time_unix_nano - span.start_time_unix_nano,
        750_000_000
    );
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    assert_eq!(hex(&span.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex(&span.parent_span_id), "b7ad6b7169203331");
    let sent_on = context.traceparent();
    assert_eq!(
        sent_on,
        format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
    );
    let attributes = plain(&span.attributes);
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "llama"),
        ("gen_ai.response.model", "llama"),
        ("gen_ai.usage.input_tokens", "120"),
        ("gen_ai.usage.output_tokens", "30"),
        ("http.request.method", "POST"),
        ("http.response.status_code", "200"),
        ("url.path", "/v1/chat/completions"),
        ("server.address", "10.0.0.2"),
        ("server.port", "8000"),
        ("forebay.pool", "default/chat"),
        ("forebay.pick.us", "14"),
        ("forebay.tries", "2"),
        ("forebay.ttft_ms", "50"),
    ] {
        assert_eq!(
            attributes.get(key).map(String::as_str),
            Some(value),
            "{key}"
        );
    }
    assert!(!attributes.contains_key("error.type"));
    let tries: Vec<_> = span.events.iter().map(|e| plain(&e.attributes)).collect();
    assert_eq!(tries[0]["forebay.failure"], "connect");
    assert_eq!(tries[1]["forebay.endpoint"], "10.0.0.2:8000");
}

#[test]
fn a_failed_exchange_is_an_error_with_its_reason() {
    let mut record = test_record();
    (record.status, record.reason) = (503, Some("saturated"));
    let (span, _) = exported(record, None);
    assert_eq!(plain(&span.attributes)["error.type"], "saturated");
    assert_eq!(span.status.expect("set").message, "saturated");
    assert_eq!(span.parent_span_id, Vec::<u8>::new());
}

#[test]
fn the_client_decides_about_sampling_and_else_the_ratio() {
    let (endpoint, _spans) = collector();
    let (none, _) = started(&endpoint, 0.0);
    assert_eq!(none.begin(None), None);
    assert_eq!(none.begin(Some("nonsense")), None);
    assert!(none.begin(Some(PARENT)).is_some());
    let (all, _) = started(&endpoint, 1.0);
    assert!(all.begin(None).is_some());
    assert_eq!(all.begin(Some(&PARENT.replace("-01", "-00"))), None);
    let (half, _) = started(&endpoint, 0.5);
    let sampled = (0..1_000).filter(|_| half.begin(None).is_some()).count();
    assert!((350..650).contains(&sampled), "{sampled} of 1000");
}

#[test]
fn a_collector_that_is_gone_costs_spans_and_they_are_counted() {
    let (tracing, metrics) = started("http://127.0.0.1:1", 1.0);
    let context = tracing.begin(None).expect("sampled");
    let record = Arc::new(test_record());
    for _ in 0..SPANS_QUEUED_MAX * 3 {
        tracing.settle(&record, context);
    }
    let mut page = String::new();
    metrics
        .encode(&mut page)
        .expect("a string takes everything");
    assert!(
        page.contains("forebay_spans_total{result=\"dropped\"}"),
        "{page}"
    );
}

#[test]
fn only_valid_traceparents_are_followed() {
    assert!(parse_traceparent(PARENT).is_some());
    for bad in [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ] {
        assert_eq!(parse_traceparent(bad), None, "{bad}");
    }
}
