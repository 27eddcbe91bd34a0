//! The picker for other proxies, asked as they ask: messages of external processing over gRPC. What a
//! real Envoy makes of the answers is in `crates/forebay/tests/epp.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use common::*;
use forebay_gateway::admin::Readiness;
use forebay_gateway::epp::{Epp, Security, Settings as EppSettings};
use forebay_model::picker::{PickerConfig, Scorer, WeightedScorer};
use forebay_model::pool::{
    ExternalPicker, FailureMode, PickerTransport, RewriteRule, RewriteTarget,
};
use forebay_model::{ObjectName, Pool};
use forebay_wire::ext_proc::external_processor_client::ExternalProcessorClient;
use forebay_wire::ext_proc::processing_mode::BodySendMode;
use forebay_wire::ext_proc::processing_request::Request;
use forebay_wire::ext_proc::processing_response::Response;
use forebay_wire::ext_proc::{
    CommonResponse, HeaderMap, HeaderValue, HttpBody, HttpHeaders, ImmediateResponse, Metadata,
    ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
};
use forebay_wire::health::HealthCheckRequest;
use forebay_wire::health::health_client::HealthClient;
use forebay_wire::value::Kind;
use forebay_wire::{ListValue, Struct, Value};
use proptest::prelude::*;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

const CHAT: &str = "/v1/chat/completions";
const HINT: (&str, &str) = (
    "envoy.lb.subset_hint",
    "x-gateway-destination-endpoint-subset",
);

fn serves(side: &mut Script, _request: &Message, _nth: usize) -> bool {
    side.send(ok(r#"{"model":"tiny"}"#));
    true
}

/// A gateway whose workers answer a proxy.
struct Bed {
    world: World,
    epp: Epp,
    readiness: Arc<Readiness>,
    runtime: tokio::runtime::Runtime,
}

fn plain() -> EppSettings {
    EppSettings {
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        health: Some((Ipv4Addr::LOCALHOST, 0).into()),
        security: Security::Plaintext,
        pool: None,
        namespace: "default".to_owned(),
        endpoints_max: 3,
        response_bodies: false,
        test_selection: false,
    }
}

impl Bed {
    fn of(pool: Pool) -> Self {
        Self::with(settings(), &plain(), vec![pool])
    }

    fn with(
        settings: forebay_gateway::settings::Settings,
        epp: &EppSettings,
        pools: Vec<Pool>,
    ) -> Self {
        forget();
        for pool in pools {
            to_pool(pool);
        }
        let world = World::empty(settings);
        world.publish_ports([]);
        let readiness = Arc::<Readiness>::default();
        readiness.set_config_loaded();
        readiness.set_listeners_bound(true);
        let epp = Epp::start(world.gateway.shared(), epp, Arc::clone(&readiness)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        Self {
            world,
            epp,
            readiness,
            runtime,
        }
    }

    fn channel(&self, address: SocketAddr, authority: &str) -> Channel {
        let uri = format!("http://{authority}");
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        let endpoint = endpoint.origin(uri.parse().unwrap());
        self.runtime.block_on(endpoint.connect()).unwrap()
    }

    fn call(&self) -> Call<'_> {
        self.call_as("epp.test", None)
    }

    /// A call to this authority, whose own head names a pool.
    fn call_as(&self, authority: &str, pool: Option<&str>) -> Call<'_> {
        let mut client = ExternalProcessorClient::new(self.channel(self.epp.address, authority));
        let (say, mut said) = mpsc::unbounded_channel();
        let stream = futures_util::stream::poll_fn(move |cx| said.poll_recv(cx));
        let mut request = tonic::Request::new(stream);
        if let Some(pool) = pool {
            request
                .metadata_mut()
                .insert("x-forebay-pool", pool.parse().unwrap());
        }
        let answers = self.runtime.block_on(client.process(request)).unwrap();
        Call {
            bed: self,
            say,
            answers: answers.into_inner(),
        }
    }

    fn health(&self, address: SocketAddr, service: &str) -> Result<i32, tonic::Code> {
        let mut client = HealthClient::new(self.channel(address, "epp.test"));
        let asked = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = self.runtime.block_on(client.check(asked));
        answer
            .map(|answer| answer.into_inner().status)
            .map_err(|status| status.code())
    }
}

/// One call, as a proxy makes it.
struct Call<'a> {
    bed: &'a Bed,
    say: mpsc::UnboundedSender<ProcessingRequest>,
    answers: Streaming<ProcessingResponse>,
}

impl Call<'_> {
    fn say(&self, message: ProcessingRequest) {
        self.say.send(message).unwrap();
    }

    fn hear(&mut self) -> ProcessingResponse {
        let answers = &mut self.answers;
        let next = async { tokio::time::timeout(PATIENCE, answers.message()).await };
        let next = self.bed.runtime.block_on(next);
        next.expect("in time").unwrap().expect("an answer")
    }

    /// Shows a whole request in the protocol's own mode, and gives the answer to its head.
    fn ask(&mut self, fields: &[(&str, &str)], body: &str) -> ProcessingResponse {
        self.say(head(fields, BodySendMode::FullDuplexStreamed));
        self.say(piece(body, true));
        self.hear()
    }

    /// Ends the response with this status, as one that `served` answered.
    fn respond(&mut self, status: &str, served: Option<&str>) {
        let mut message = ProcessingRequest {
            request: Some(Request::ResponseHeaders(HttpHeaders {
                headers: Some(map(&[(":status", status)])),
                end_of_stream: true,
            })),
            ..ProcessingRequest::default()
        };
        if let Some(served) = served {
            let text = Kind::StringValue(served.to_owned());
            message.metadata_context = Some(metadata(
                ("envoy.lb", "x-gateway-destination-endpoint-served"),
                text,
            ));
        }
        self.say(message);
        loop {
            if let Some(Response::ResponseHeaders(_)) = self.hear().response {
                return;
            }
        }
    }
}

fn map(fields: &[(&str, &str)]) -> HeaderMap {
    let field = |(key, value): &(&str, &str)| HeaderValue {
        key: (*key).to_owned(),
        raw_value: bytes::Bytes::copy_from_slice(value.as_bytes()),
        ..HeaderValue::default()
    };
    HeaderMap {
        headers: fields.iter().map(field).collect(),
    }
}

/// The head of a chat whose body comes in this mode.
fn head(fields: &[(&str, &str)], mode: BodySendMode) -> ProcessingRequest {
    let mut all = vec![
        (":method", "POST"),
        (":path", CHAT),
        (":authority", "h.test"),
        ("content-type", "application/json"),
    ];
    all.extend(fields);
    ProcessingRequest {
        request: Some(Request::RequestHeaders(HttpHeaders {
            headers: Some(map(&all)),
            end_of_stream: false,
        })),
        protocol_config: Some(ProtocolConfiguration {
            request_body_mode: mode.into(),
            ..ProtocolConfiguration::default()
        }),
        ..ProcessingRequest::default()
    }
}

fn piece(body: &str, end: bool) -> ProcessingRequest {
    ProcessingRequest {
        request: Some(Request::RequestBody(HttpBody {
            body: bytes::Bytes::copy_from_slice(body.as_bytes()),
            end_of_stream: end,
        })),
        ..ProcessingRequest::default()
    }
}

fn metadata((namespace, key): (&str, &str), kind: Kind) -> Metadata {
    let fields = [(key.to_owned(), Value { kind: Some(kind) })].into();
    Metadata {
        filter_metadata: [(namespace.to_owned(), Struct { fields })].into(),
    }
}

/// What an answer to the head of a request says, whatever part it comes with.
fn common(answer: &ProcessingResponse) -> &CommonResponse {
    let common = match answer.response.as_ref().unwrap() {
        Response::RequestHeaders(head) => head.response.as_ref(),
        Response::RequestBody(body) => body.response.as_ref(),
        other => panic!("{other:?}"),
    };
    common.unwrap()
}

/// The fields that it sets.
fn set(answer: &ProcessingResponse) -> BTreeMap<String, String> {
    let mutation = common(answer).header_mutation.as_ref().unwrap();
    let options = mutation.set_headers.iter();
    options
        .map(|option| {
            let header = option.header.as_ref().unwrap();
            let value = String::from_utf8(header.raw_value.to_vec()).unwrap();
            (header.key.clone(), value)
        })
        .collect()
}

/// The endpoints that it names, in its field and equally in its metadata.
fn picked(answer: &ProcessingResponse) -> Vec<String> {
    let list = set(answer)["x-gateway-destination-endpoint"].clone();
    let metadata = answer.dynamic_metadata.as_ref().unwrap();
    let Some(Kind::StructValue(inner)) = &metadata.fields["envoy.lb"].kind else {
        panic!("{metadata:?}");
    };
    let told = inner.fields["x-gateway-destination-endpoint"].kind.clone();
    assert_eq!(told, Some(Kind::StringValue(list.clone())));
    assert!(common(answer).clear_route_cache);
    list.split(',').map(str::to_owned).collect()
}

fn immediate(answer: ProcessingResponse) -> ImmediateResponse {
    match answer.response.unwrap() {
        Response::ImmediateResponse(immediate) => immediate,
        other => panic!("{other:?}"),
    }
}

fn body(model: &str, prompt: &str) -> String {
    serde_json::json!({"model": model, "messages": [{"role": "user", "content": prompt}]})
        .to_string()
}

// === the decision ===

#[test]
fn the_answer_names_an_ordered_list_in_field_and_metadata() {
    let servers = fleet(4, TINY, serves);
    let pool = Pool {
        picker: PickerConfig::default(),
        ..pool_of("pool", &addresses(&servers))
    };
    let bed = Bed::of(pool);
    let mut call = bed.call();
    let answer = call.ask(
        &[
            ("x-request-id", "r1"),
            ("x-gateway-model-name", "x"),
            ("x-llm-d-inference-fairness-id", "t"),
        ],
        &body("tiny", "hi"),
    );
    let list = picked(&answer);
    assert_eq!(list.len(), 3);
    let mutation = common(&answer).header_mutation.as_ref().unwrap();
    // Routes match on the model, and are looked for again.
    assert_eq!(mutation.remove_headers, ["x-llm-d-inference-fairness-id"]);
    let Some(Response::RequestBody(_)) = call.hear().response else {
        panic!("the body comes behind the head");
    };
    call.respond("200", None);
    let record = bed.world.record("r1");
    assert_eq!(record.tries[0].endpoint, list[0]);
    assert_eq!((record.status, record.tries.len()), (200, 1));
    assert_eq!(record.model.as_deref(), Some("tiny"));
    assert_eq!(record.pool.as_deref(), Some("default/pool"));
}

/// One request of a run.
#[derive(Clone, Debug)]
struct Turn {
    prefix: usize,
    rest: usize,
    session: Option<u8>,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = (0..4_usize, 0..3_usize, proptest::option::of(0..3_u8));
    let turn = turn.prop_map(|(prefix, rest, session)| Turn {
        prefix,
        rest,
        session,
    });
    proptest::collection::vec(turn, 1..24)
}

/// What does not depend on the time that anything takes.
fn timeless() -> PickerConfig {
    let weighted = |scorer, weight| WeightedScorer { scorer, weight };
    PickerConfig {
        scorers: vec![
            weighted(Scorer::Prefix, 3.0),
            weighted(Scorer::Session, 1.0),
            weighted(Scorer::InflightRequests, 1.0),
        ],
        queue_at_saturation: None,
        sticky_share: 1.0,
        ..PickerConfig::default()
    }
}

#[test]
fn the_same_requests_in_the_same_state_go_to_the_same_endpoints_as_in_process() {
    let servers = fleet(3, TINY, serves);
    let pool = Pool {
        picker: timeless(),
        ..pool_of("pool", &addresses(&servers))
    };
    let config = ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(turns in turns())| {
        let bed = Bed::of(pool.clone());
        // Both draw from the same seed.
        let world = World::to(to_pool(pool.clone()));
        for (n, turn) in turns.iter().enumerate() {
            let id = format!("r{n}");
            let prompt = format!("{} and then {}", turn.prefix.to_string().repeat(2_000), turn.rest);
            let body = body("tiny", &prompt);
            let session = turn.session.map(|session| session.to_string());
            let mut fields = vec![("x-request-id", &*id)];
            fields.extend(session.as_deref().map(|session| ("x-session-id", session)));
            let mut call = bed.call();
            let outside = picked(&call.ask(&fields, &body));
            call.respond("200", None);
            bed.world.record(&id);
            let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let request = post_with(CHAT, &lines, &body);
            assert_eq!(world.ask(&request).status(), 200);
            let record = world.record(&id);
            prop_assert_eq!(&record.tries[0].endpoint, &outside[0], "request {} of {:?}", n, turns);
        }
    });
}

#[test]
fn a_subset_is_taken_as_a_list_and_as_a_text() {
    let servers = fleet(3, TINY, serves);
    let bed = Bed::of(pool_of("pool", &addresses(&servers)));
    let only = servers[2].address.to_string();
    let value = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let list = Kind::ListValue(ListValue {
        values: vec![value(&only), value("10.9.9.9:1")],
    });
    let text = Kind::StringValue(format!("10.9.9.9:1, {only}"));
    for hint in [list, text] {
        let mut call = bed.call();
        let mut head = head(&[], BodySendMode::FullDuplexStreamed);
        head.metadata_context = Some(metadata(HINT, hint));
        call.say(head);
        call.say(piece(&body("tiny", "hi"), true));
        assert_eq!(picked(&call.hear()), [&*only]);
    }
    let mut call = bed.call();
    let mut head = head(&[], BodySendMode::FullDuplexStreamed);
    let nobody = Kind::StringValue("10.9.9.9:1".to_owned());
    head.metadata_context = Some(metadata(HINT, nobody));
    call.say(head);
    call.say(piece(&body("tiny", "hi"), true));
    assert_eq!(immediate(call.hear()).status.unwrap().code, 503);
}

#[test]
fn each_refusal_has_its_status_and_says_why_it_was_dropped() {
    let servers = fleet(1, TINY, serves);
    let mut full = pool_of("full", &addresses(&servers));
    full.picker.shed_at_saturation = 0.0;
    full.objectives.insert("batch".into(), -1);
    let limits = forebay_gateway::settings::Settings {
        body_bytes_max: 1_000,
        ..settings()
    };
    let pools = vec![full, pool_of("empty", &[])];
    let bed = Bed::with(limits, &plain(), pools);
    let check = |pool: &str, fields: &[(&str, &str)], body: &str, expected: (i32, &str, &str)| {
        let mut call = bed.call_as("epp.test", Some(pool));
        let answer = immediate(call.ask(fields, body));
        let headers = answer.headers.unwrap().set_headers;
        let field = |name: &str| {
            let headers = headers.iter().filter_map(|option| option.header.as_ref());
            let found = headers.into_iter().find(|header| header.key == name);
            found.map_or(String::new(), |header| {
                String::from_utf8(header.raw_value.to_vec()).unwrap()
            })
        };
        let found = (
            answer.status.unwrap().code,
            &*field("x-forebay-reason"),
            &*field("x-llm-d-request-dropped-reason"),
        );
        assert_eq!(found, expected, "{pool} {body}");
        assert_eq!(field("content-type"), "application/json");
        assert_eq!(answer.details, expected.1);
        let said: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(said["error"]["code"], expected.1);
    };
    let fine = body("tiny", "hi");
    check("full", &[], "{", (400, "invalid_json", ""));
    check(
        "full",
        &[],
        &body("huge", "hi"),
        (404, "model_not_found", ""),
    );
    check(
        "full",
        &[],
        &body("tiny", &"x".repeat(2_000)),
        (413, "body_too_large", ""),
    );
    let batch = [("x-llm-d-inference-objective", "batch")];
    check(
        "full",
        &batch,
        &fine,
        (429, "saturated", "rejected-saturated"),
    );
    check(
        "empty",
        &[],
        &fine,
        (503, "no_ready_endpoint", "rejected-no-endpoints"),
    );
    check(
        "default/none",
        &[],
        &fine,
        (503, "pool_not_found", "rejected-no-endpoints"),
    );
}

#[test]
fn each_mode_of_bodies_is_answered_in_its_own_way() {
    let servers = fleet(1, TINY, serves);
    let mut pool = pool_of("pool", &addresses(&servers));
    pool.rewrites = vec![RewriteRule {
        models: vec!["alias".into()],
        targets: vec![RewriteTarget {
            weight: 1,
            model: "tiny".into(),
        }],
    }];
    let bed = Bed::of(pool);
    let there = servers[0].address.to_string();
    let (alias, tiny) = (body("alias", "hi"), body("tiny", "hi"));

    // By the head alone.
    for mode in [BodySendMode::None, BodySendMode::Streamed] {
        let mut call = bed.call();
        call.say(head(&[], mode));
        assert_eq!(picked(&call.hear()), [&*there], "{mode:?}");
    }
    // The head is confirmed, and the body says where it goes.
    let mut call = bed.call();
    call.say(head(&[], BodySendMode::Buffered));
    let Some(Response::RequestHeaders(confirmed)) = call.hear().response else {
        panic!("the head is confirmed first");
    };
    assert_eq!(confirmed.response, None);
    call.say(piece(&alias, true));
    let answer = call.hear();
    assert_eq!(picked(&answer), [&*there]);
    assert_eq!(set(&answer)["content-length"], tiny.len().to_string());
    assert!(format!("{:?}", common(&answer).body_mutation).contains("tiny"));

    // Everything comes back, in pieces, behind the head.
    let mut call = bed.call();
    call.say(head(&[], BodySendMode::FullDuplexStreamed));
    let (first, rest) = alias.split_at(20);
    call.say(piece(first, false));
    call.say(piece(rest, false));
    call.say(piece("", true));
    assert_eq!(picked(&call.hear()), [&*there]);
    let answer = call.hear();
    assert!(
        format!("{answer:?}").contains("StreamedResponse"),
        "{answer:?}"
    );
    assert!(
        format!("{answer:?}").contains("end_of_stream: true"),
        "{answer:?}"
    );
    assert!(format!("{answer:?}").contains("tiny"), "{answer:?}");
}

#[test]
fn who_served_is_learnt_from_the_response() {
    let servers = fleet(3, TINY, serves);
    let pool = Pool {
        picker: PickerConfig::default(),
        ..pool_of("pool", &addresses(&servers))
    };
    let bed = Bed::of(pool);
    let mut call = bed.call();
    let list = picked(&call.ask(&[("x-request-id", "r")], &body("tiny", "hi")));
    call.respond("200", Some(&list[1]));
    let record = bed.world.record("r");
    let tries: Vec<_> = record
        .tries
        .iter()
        .map(|t| (t.endpoint.as_str(), t.failure.as_deref()))
        .collect();
    assert_eq!(
        tries,
        [
            (list[0].as_str(), Some("passed_over")),
            (list[1].as_str(), None)
        ]
    );
}

// === pools ===

#[test]
fn a_call_names_its_pool_in_one_of_four_ways() {
    let servers = fleet(2, TINY, serves);
    let mut first = pool_of("first", &addresses(&servers[..1]));
    first.external = Some(ExternalPicker {
        service: ObjectName::new("default", "first-epp"),
        port: 9002,
        endpoints: Vec::new(),
        failure_mode: FailureMode::FailClose,
        transport: PickerTransport::Plaintext,
    });
    let second = pool_of("second", &addresses(&servers[1..]));
    let bed = Bed::with(settings(), &plain(), vec![first, second]);
    let at = |n: usize| vec![servers[n].address.to_string()];
    let ask = |mut call: Call<'_>, more: Option<Metadata>| {
        let mut head = head(&[], BodySendMode::FullDuplexStreamed);
        head.metadata_context = more;
        call.say(head);
        call.say(piece(&body("tiny", "hi"), true));
        call.hear()
    };
    let named = |pool: &str| {
        Some(metadata(
            ("forebay", "pool"),
            Kind::StringValue(pool.to_owned()),
        ))
    };
    assert_eq!(
        picked(&ask(bed.call_as("epp.test", Some("second")), None)),
        at(1)
    );
    assert_eq!(picked(&ask(bed.call(), named("default/first"))), at(0));
    let by_service = bed.call_as("first-epp.default.svc.cluster.local:9002", None);
    assert_eq!(picked(&ask(by_service, None)), at(0));
    assert_eq!(
        picked(&ask(bed.call_as("second.default", None), None)),
        at(1)
    );
    assert_eq!(immediate(ask(bed.call(), None)).details, "pool_unknown");
}

// === health, the end ===

#[test]
fn health_has_three_services_on_both_ports() {
    let only = EppSettings {
        pool: Some(ObjectName::new("default", "pool")),
        ..plain()
    };
    let bed = Bed::with(settings(), &only, vec![pool_of("pool", &[])]);
    let external = "envoy.service.ext_proc.v3.ExternalProcessor";
    for address in [bed.epp.address, bed.epp.health.unwrap()] {
        for service in ["", "liveness", "readiness", "inference-extension", external] {
            assert_eq!(bed.health(address, service), Ok(1), "{service}");
        }
        assert_eq!(bed.health(address, "other"), Err(tonic::Code::NotFound));
    }
    forget();
    bed.world.publish_ports([]);
    eventually("the pool is gone", || {
        bed.health(bed.epp.address, "readiness") == Ok(2)
    });
    to_pool(pool_of("pool", &[]));
    bed.world.publish_ports([]);
    eventually("it is back", || {
        bed.health(bed.epp.address, "readiness") == Ok(1)
    });
    bed.readiness.set_draining();
    assert_eq!(bed.health(bed.epp.address, external), Ok(2));
    assert_eq!(bed.health(bed.epp.address, "liveness"), Ok(1));
}

#[test]
fn a_call_under_way_is_answered_while_the_process_drains() {
    let servers = fleet(1, TINY, serves);
    let bed = Bed::of(pool_of("pool", &addresses(&servers)));
    let mut call = bed.call();
    call.say(head(
        &[("x-request-id", "late")],
        BodySendMode::FullDuplexStreamed,
    ));
    call.say(piece("{", false));
    eventually("the call has come", || bed.world.counts("client", 1));
    bed.world.gateway.drain();
    let refuses = || std::net::TcpStream::connect(bed.epp.address).is_err();
    eventually("nobody is taken any more", refuses);
    call.say(piece(&body("tiny", "hi")[1..], true));
    assert_eq!(picked(&call.hear()), [servers[0].address.to_string()]);
    call.respond("200", None);
    assert_eq!(bed.world.record("late").status, 200);
}

#[test]
fn messages_out_of_turn_end_the_call_with_a_reason() {
    let bed = Bed::of(pool_of("pool", &[]));
    let mut call = bed.call();
    call.say(piece("x", true));
    let ended = bed.runtime.block_on(call.answers.message()).unwrap_err();
    assert_eq!(ended.code(), tonic::Code::InvalidArgument);
    assert!(
        ended.message().contains("RequestBody came out of turn"),
        "{ended}"
    );
}

/// The picker behind a gateway of our own, which takes its self-signed certificate.
#[test]
fn a_gateway_that_has_its_pool_picked_for_goes_where_this_picker_says() {
    let servers = fleet(2, TINY, serves);
    let secure = EppSettings {
        security: Security::SelfSigned,
        ..plain()
    };
    let pool = pool_of("pool", &addresses(&servers));
    let bed = Bed::with(settings(), &secure, vec![pool.clone()]);
    let world = World::to(to_pool(Pool {
        external: Some(ExternalPicker {
            service: ObjectName::new("default", "epp"),
            port: 9002,
            endpoints: vec![bed.epp.address],
            failure_mode: FailureMode::FailClose,
            transport: PickerTransport::TlsUnverified,
        }),
        ..pool
    }));
    for n in 0..4 {
        let id = format!("r{n}");
        let request = post_with(
            CHAT,
            &format!("x-request-id: {id}\r\n"),
            &body("tiny", "hi"),
        );
        assert_eq!(world.ask(&request).status(), 200);
        let (asked, said) = (world.record(&id), bed.world.record(&id));
        assert_eq!(asked.tries[0].endpoint, said.tries[0].endpoint);
        assert_eq!(said.status, 200);
    }
}
