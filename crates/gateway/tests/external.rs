//! Pools that are picked for by somebody else: a real endpoint picker on a socket, which requests tell
//! what to do (`picker/answer.rs`). What becomes of responses is in `external_responses.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod picker;

use std::net::SocketAddr;
use std::sync::Arc;

use common::*;
use forebay_gateway::settings::Settings;
use forebay_model::pool::{ExternalPicker, FailureMode, PickerTransport};
use forebay_model::route::{BackendTls, Trust};
use forebay_model::{ObjectName, Pool};
use picker::Picker;
use picker::bed::*;

// === the pick ===

#[test]
fn a_request_goes_where_the_picker_says() {
    let bed = Bed::close();
    for todo in ["", "header alone", "metadata alone", "confirm"] {
        for server in [1, 0, 0, 1] {
            assert_eq!(
                name_of(&bed.ask(server, todo)),
                format!("server {server}"),
                "{todo}"
            );
        }
    }
    assert_eq!(bed.picker.connections(), 1, "calls share a connection");
    let outside = bed.outside();
    assert_eq!(
        (&*outside.service, &*outside.outcome),
        ("default/epp:9002", "picked")
    );
    assert_eq!(outside.endpoints, [bed.servers[1].address.to_string()]);
    assert!(bed.world.shows(
        "forebay_external_picker_requests_total{pool=\"default/pool\",outcome=\"picked\"} 16"
    ));
}

#[test]
fn the_picker_sees_the_request_as_the_client_sent_it() {
    let bed = Bed::close();
    let pick = bed.servers[0].address.to_string();
    let fields = "x-gateway-inference-objective: critical\r\naccept-encoding: br\r\n\
                  x-gateway-destination-endpoint-subset: 10.0.0.1:1\r\nx-llm-d-model-name-rewrite: b\r\n\
                  x-remove: 1\r\nx-forwarded-for: 192.0.2.1\r\n";
    assert_eq!(
        bed.world.ask(&request(&pick, "", fields, BODY)).status(),
        200
    );
    let seen = bed.picker.last();
    for (name, value) in [
        (":method", "POST"),
        (":path", CHAT),
        (":authority", "h.test"),
        (":scheme", "http"),
        ("content-length", &*BODY.len().to_string()),
        ("x-gateway-inference-objective", "critical"),
        ("accept-encoding", "br"),
        ("x-request-id", "r"),
        ("x-forwarded-for", "192.0.2.1, 127.0.0.1"),
    ] {
        assert_eq!(
            seen.request.get(name).map(String::as_str),
            Some(value),
            "{name}"
        );
    }
    // What would choose in its place.
    for gone in [
        "x-gateway-destination-endpoint-subset",
        "x-llm-d-model-name-rewrite",
    ] {
        assert_eq!(seen.request.get(gone), None, "{gone}");
    }
    assert_eq!(seen.body, BODY.as_bytes());
    assert_eq!(seen.subset, None);
}

#[test]
fn the_endpoint_gets_what_the_picker_changed_and_nothing_that_steers() {
    let bed = Bed::close();
    let pick = bed.servers[0].address.to_string();
    let fields = "x-gateway-inference-objective: critical\r\nx-remove: 1\r\n";
    bed.world
        .ask(&request(&pick, "set another path", fields, BODY));
    let sent = bed.servers[0].last();
    assert!(sent.start.starts_with("POST /v1/other "), "{}", sent.start);
    assert_eq!(sent.field("x-from-picker").as_deref(), Some("1"));
    assert_eq!(sent.field("host").as_deref(), Some("h.test"));
    assert_eq!(sent.field("content-length"), Some(BODY.len().to_string()));
    for gone in [
        "x-remove",
        "transfer-encoding",
        "accept-encoding",
        "x-gateway-destination-endpoint",
        "x-gateway-inference-objective",
        "x-llm-d-inference-objective",
    ] {
        assert_eq!(sent.field(gone), None, "{gone}");
    }
    assert_eq!(sent.body, BODY.as_bytes());
}

#[test]
fn a_list_is_walked_until_an_endpoint_answers() {
    let dead = dead_address();
    let picker = Picker::plain();
    let server = serving("0");
    let all = external(&[picker.address], FailureMode::FailClose);
    let world = World::to(picked_pool(&[server.address, dead], all));
    let list = format!("{dead}, {}", server.address);
    assert_eq!(
        name_of(&world.ask(&request(&list, "", "", BODY))),
        "server 0"
    );
    let record = world.record("r");
    let tries: Vec<_> = record.tries.iter().map(|t| t.failure.as_deref()).collect();
    assert_eq!(tries, [Some("upstream_connect"), None]);
    assert_eq!(
        picker.last().served.as_deref(),
        Some(&*server.address.to_string())
    );
    // Nobody is tried whom the picker did not name.
    let got = world.ask(&request(&dead.to_string(), "", "", BODY));
    assert_eq!(code_of(&got), (503, "upstream_connect".to_owned()));
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn endpoints_of_nobody_are_not_used() {
    let bed = Bed::close();
    let stranger = serving("stranger");
    let own = bed.servers[1].address;
    let list = format!("{},{own},nonsense", stranger.address);
    assert_eq!(name_of(&bed.ask_for(&list, "")), "server 1");
    let dropped: Vec<String> = bed
        .outside()
        .dropped
        .into_iter()
        .map(|d| format!("{}: {}", d.name, d.reason))
        .collect();
    assert_eq!(
        dropped,
        [
            format!("{}: not a ready endpoint of the pool", stranger.address),
            "nonsense: not an address with a port".to_owned(),
        ]
    );
    for (list, todo) in [
        (stranger.address.to_string(), ""),
        (String::new(), ""),
        (own.to_string(), "contradict itself"),
        (own.to_string(), "set nonsense"),
        (own.to_string(), "break the rules"),
    ] {
        assert_eq!(
            code_of(&bed.ask_for(&list, todo)),
            unavailable(),
            "{list} {todo}"
        );
    }
    assert_eq!(stranger.seen(), []);
}

#[test]
fn a_picker_is_told_which_endpoints_are_ready_if_not_all_are() {
    let servers = [serving("0"), serving("1"), serving("2")];
    let picker = Picker::plain();
    let own = external(&[picker.address], FailureMode::FailClose);
    let mut pool = Pool {
        external: Some(own),
        ..pool_of("pool", &addresses(&servers))
    };
    let unready = servers[1].address;
    for endpoint in &mut pool.endpoints {
        endpoint.ready = endpoint.address != unready;
    }
    let mut ready: Vec<SocketAddr> = pool.ready().map(|e| e.address).collect();
    ready.sort();
    let world = World::to(to_pool(pool));
    let ask = |pick: SocketAddr| world.ask(&request(&pick.to_string(), "", "", BODY));
    assert_eq!(name_of(&ask(servers[2].address)), "server 2");
    let subset: Vec<String> = ready.iter().map(ToString::to_string).collect();
    assert_eq!(picker.last().subset, Some(subset));
    assert_eq!(code_of(&ask(unready)), unavailable());
}

// === bodies ===

#[test]
fn a_megabyte_goes_there_and_back_in_pieces() {
    let bed = Bed::of(
        vec![Upstream::saying("{}")],
        FailureMode::FailClose,
        settings(),
    );
    let long = format!(r#"{{"model":"tiny","prompt":"{}"}}"#, "x".repeat(1 << 20));
    let pick = bed.servers[0].address.to_string();
    for todo in ["", "confirm"] {
        assert_eq!(
            bed.world.ask(&request(&pick, todo, "", &long)).status(),
            200
        );
        let seen = bed.picker.last();
        assert!(seen.body == long.as_bytes(), "{todo}");
        assert!(seen.pieces.len() > 1 && seen.pieces.iter().all(|n| *n <= 64 << 10));
        assert!(bed.servers[0].last().body == long.as_bytes(), "{todo}");
    }
}

#[test]
fn a_body_may_be_replaced() {
    let settings = Settings {
        body_bytes_max: 1 << 20,
        ..settings()
    };
    let bed = Bed::new(1, FailureMode::FailClose, settings);
    for (todo, expected) in [
        ("change the body", BODY.replace("tiny", "changed-model")),
        ("drop the body", String::new()),
        ("replace", "{}".to_owned()),
    ] {
        assert_eq!(bed.ask(0, todo).status(), 200, "{todo}");
        let sent = bed.servers[0].last();
        assert_eq!(sent.text(), expected, "{todo}");
        assert_eq!(
            sent.field("content-length")
                .unwrap_or_else(|| "0".to_owned()),
            expected.len().to_string()
        );
    }
    // Within the bound of bodies that are read.
    assert_eq!(code_of(&bed.ask(0, "make a long body")), unavailable());
}

#[test]
fn a_request_without_a_body_is_picked_for_by_its_head() {
    let bed = Bed::close();
    let fields = format!("x-pick: {}\r\n", bed.servers[1].address);
    assert_eq!(
        name_of(&bed.world.ask(&get_with("/health", &fields))),
        "server 1"
    );
    assert_eq!(bed.picker.last().pieces, [0_usize; 0]);
}

#[test]
fn a_picker_that_looks_at_heads_alone_leaves_bodies_as_they_are() {
    let bed = Bed::close();
    assert_eq!(name_of(&bed.ask(1, "look at heads alone")), "server 1");
    assert_eq!(bed.servers[1].last().body, BODY.as_bytes());
    let remark = bed.outside().remark.unwrap();
    assert!(remark.contains("nothing of the body"), "{remark}");
    // Its silence is known by then: it is not shown the response's body.
    assert_eq!(bed.picker.last().response_pieces, [0_usize; 0]);
}

// === answers of the picker itself ===

#[test]
fn an_immediate_answer_reaches_the_client() {
    let bed = Bed::close();
    let got = bed.ask(0, "refuse");
    assert_eq!(code_of(&got), (429, "picker_refused".to_owned()));
    assert_eq!(got.json()["error"]["message"], "come back later");
    assert_eq!(
        got.field("x-llm-d-request-dropped-reason").as_deref(),
        Some("rejected-saturated")
    );
    assert_eq!(got.field("retry-after").as_deref(), Some("1"));
    let outside = bed.outside();
    assert_eq!(
        (&*outside.outcome, outside.remark.as_deref()),
        ("answered", Some("for the log"))
    );

    let got = bed.ask(0, "refuse in JSON");
    assert_eq!((got.status(), &*got.text()), (503, r#"{"own":"shape"}"#));
    assert_eq!(
        got.field("content-type").as_deref(),
        Some("application/json")
    );
    assert_eq!(got.field("x-own").as_deref(), Some("1"));

    let got = bed.ask(0, "answer");
    assert_eq!((got.status(), &*got.text()), (200, "answered here"));
    assert_eq!(bed.ask(0, "answer nonsense").status(), 500);
    assert_eq!(bed.servers[0].seen(), []);
}

#[test]
fn a_request_may_be_evicted_while_an_endpoint_works_on_it() {
    let (server, _go) = Upstream::holding_slow();
    let bed = Bed::of(vec![server], FailureMode::FailClose, settings());
    let evict = picker::answer::eviction();
    let mut client = bed.world.client();
    let pick = bed.servers[0].address.to_string();
    client.send(request(&pick, "evict", "", BODY).replace(CHAT, "/slow"));
    bed.servers[0].last();
    evict.notify_one();
    assert_eq!(client.response("POST").status(), 429);
    let tries = bed.world.record("r").tries;
    assert_eq!(tries[0].failure.as_deref(), Some("picker_refused"));
}

// === failures ===

/// What comes of `todo` in either mode of failure; `outcome` is in the record.
fn check_failure(settings: &Settings, todo: &str, outcome: &str) {
    for mode in [FailureMode::FailClose, FailureMode::FailOpen] {
        let bed = Bed::new(2, mode, settings.clone());
        let got = bed.ask(0, todo);
        match mode {
            FailureMode::FailClose => {
                assert_eq!(code_of(&got), unavailable(), "{todo}");
                assert_eq!(got.field("retry-after").as_deref(), Some("1"));
            }
            FailureMode::FailOpen => assert!(name_of(&got).starts_with("server"), "{todo}"),
        }
        let record = bed.world.record("r");
        assert_eq!(record.picker.unwrap().outcome, outcome, "{todo}");
        assert_eq!(
            record.pick.is_some(),
            mode == FailureMode::FailOpen,
            "{todo}"
        );
        let line = format!(
            "forebay_external_picker_requests_total{{pool=\"default/pool\",outcome=\"{outcome}\"}} 1"
        );
        assert!(bed.world.shows(&line), "{line}");
    }
}

#[test]
fn the_pool_says_what_becomes_of_requests_whose_picker_fails() {
    check_failure(&settings(), "fail", "error");
    check_failure(&settings(), "fail late", "error");
    check_failure(&settings(), "end at once", "protocol");
    check_failure(&settings(), "break the rules", "protocol");
    check_failure(&with_timeout(SHORT), "never answer", "timeout");
}

#[test]
fn a_picker_that_is_down_is_done_without_and_used_once_it_is_back() {
    for mode in [FailureMode::FailClose, FailureMode::FailOpen] {
        let bed = Bed::new(2, mode, settings());
        assert_eq!(name_of(&bed.ask(1, "")), "server 1");
        bed.picker.stop();
        let got = bed.ask(1, "");
        match mode {
            FailureMode::FailClose => assert_eq!(code_of(&got), unavailable()),
            FailureMode::FailOpen => assert!(name_of(&got).starts_with("server")),
        }
        let back = Picker::at(bed.picker.address);
        eventually("the picker is asked again", || {
            bed.ask(1, "");
            !back.calls().is_empty()
        });
        assert_eq!(name_of(&bed.ask(0, "")), "server 0");
    }
}

#[test]
fn a_pool_whose_picker_has_no_address_follows_its_mode_too() {
    for (mode, status) in [(FailureMode::FailClose, 503), (FailureMode::FailOpen, 200)] {
        let server = serving("0");
        let world = World::to(picked_pool(&[server.address], external(&[], mode)));
        assert_eq!(world.ask(&request("", "", "", BODY)).status(), status);
    }
}

#[test]
fn another_replica_is_asked_if_the_first_says_nothing() {
    let (silent, good) = (Picker::plain(), Picker::plain());
    // It accepts, and that is all.
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = serving("0");
    let pick = server.address.to_string();
    let check = |replicas: &[SocketAddr], todo: &str| {
        let own = external(replicas, FailureMode::FailClose);
        let world = World::to(picked_pool(&[server.address], own));
        for _ in 0..2 {
            assert_eq!(
                world.ask(&request(&pick, todo, "", BODY)).status(),
                200,
                "{todo}"
            );
        }
        assert_eq!(
            world.record("r").picker.unwrap().replica,
            Some(good.address.to_string())
        );
    };
    check(&[dead_address(), good.address], "");
    check(&[hole.local_addr().unwrap(), good.address], "");
    silent.stop();
    check(&[silent.address, good.address], "");
    assert_eq!(good.calls().len(), 6);
}

#[test]
fn a_call_that_fails_is_repeated_at_another_replica_once() {
    let pickers = [Picker::plain(), Picker::plain(), Picker::plain()];
    let server = serving("0");
    let replicas: Vec<SocketAddr> = pickers.iter().map(|p| p.address).collect();
    let own = external(&replicas, FailureMode::FailClose);
    let world = World::to(picked_pool(&[server.address], own));
    let got = world.ask(&request(&server.address.to_string(), "fail", "", BODY));
    assert_eq!(code_of(&got), unavailable());
    let calls: Vec<usize> = pickers.iter().map(|p| p.calls().len()).collect();
    assert_eq!(calls, [1, 1, 0]);
    // Not if anything was answered: it may have consequences.
    let got = world.ask(&request(&server.address.to_string(), "fail late", "", BODY));
    assert_eq!(code_of(&got), unavailable());
    assert_eq!(pickers.iter().map(|p| p.calls().len()).sum::<usize>(), 3);
}

// === connections ===

/// A picker with a certificate of its own, and the certificate as others would trust it.
fn tls_picker(name: &str) -> (Picker, Trust) {
    use base64::Engine as _;
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let der = made.cert.der().clone();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let text = base64::engine::general_purpose::STANDARD.encode(&der);
    let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    (
        Picker::with_tls(config),
        Trust::Bundle(pem.into_bytes().into()),
    )
}

#[test]
fn tls_is_taken_as_it_comes_unless_it_is_to_be_verified() {
    let (picker, trust) = tls_picker("epp.default.svc");
    let (_other, stranger) = tls_picker("epp.default.svc");
    let verified = |hostname: &str, trust: &Trust| {
        PickerTransport::Tls(Arc::new(BackendTls {
            hostname: hostname.into(),
            trust: trust.clone(),
            names: Vec::new(),
            client: None,
        }))
    };
    let named = |word| {
        PickerTransport::named(word, &ObjectName::new("default", "epp")).expect("one of the words")
    };
    let server = serving("0");
    for (transport, works) in [
        (PickerTransport::default(), true),
        (named("insecure-skip-verify"), true),
        (verified("epp.default.svc", &trust), true),
        (verified("other.default.svc", &trust), false),
        (verified("epp.default.svc", &stranger), false),
        (named("verify"), false),
        (named("plaintext"), false),
    ] {
        let own = ExternalPicker {
            transport: transport.clone(),
            ..external(&[picker.address], FailureMode::FailClose)
        };
        let world = World::to(picked_pool(&[server.address], own));
        let got = world.ask(&request(&server.address.to_string(), "", "", BODY));
        let outcome = world.record("r").picker.unwrap();
        let expected = if works {
            (200, "picked")
        } else {
            (503, "connect")
        };
        assert_eq!(
            (got.status(), &*outcome.outcome),
            expected,
            "{transport:?} {outcome:?}"
        );
    }
}

#[test]
fn hundreds_of_requests_share_one_connection() {
    let (server, go) = Upstream::holding_slow();
    let servers = vec![server];
    // More than enough on a machine that does other things as well, and for an endpoint whose backlog
    // is shorter than this.
    let settings = Settings {
        connect_timeout: PATIENCE * 12,
        ..with_timeout(PATIENCE * 12)
    };
    let bed = Bed::of(servers, FailureMode::FailClose, settings);
    let pick = bed.servers[0].address.to_string();
    let mut clients: Vec<Peer> = (0..500)
        .map(|n| {
            let mut client = bed.world.client();
            client.send(request(&pick, "", &format!("x-n: {n}\r\n"), BODY).replace(CHAT, "/slow"));
            client
        })
        .collect();
    for waiting in (50..=500).step_by(50) {
        eventually("all of them wait for the endpoint", || {
            bed.servers[0].seen().len() >= waiting
        });
    }
    assert_eq!(bed.picker.most_open(), 500);
    (0..500).for_each(|_| go.send(()).unwrap());
    for client in &mut clients {
        assert_eq!(client.response("POST").status(), 200);
    }
    assert_eq!(bed.picker.connections(), 1);
    eventually("every call is ended", || {
        bed.picker.calls().iter().all(|seen| seen.ended)
    });
}

#[test]
fn a_picker_that_leaves_the_configuration_is_let_go() {
    let bed = Bed::close();
    assert_eq!(bed.ask(0, "").status(), 200);
    let others = picked_pool(
        &addresses(&bed.servers),
        external(&[dead_address()], FailureMode::FailOpen),
    );
    bed.world.publish(vec![entry("/", rule(vec![others]))]);
    assert_eq!(bed.ask(0, "").status(), 200);
    assert_eq!(bed.picker.calls().len(), 1);
}
