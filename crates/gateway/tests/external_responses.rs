//! Responses that a picker outside sees, changes, holds up, and does not survive.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
mod picker;

use common::*;
use forebay_gateway::external::Settings as PickerSettings;
use forebay_gateway::settings::Settings;
use forebay_model::pool::FailureMode;
use picker::bed::*;

#[test]
fn the_picker_learns_who_served_and_changes_the_head() {
    let answer = "HTTP/1.1 201 Created\r\nx-remove: 1\r\nx-own: 2\r\ncontent-length: 2\r\n\r\n{}";
    let bed = Bed::of(
        vec![Upstream::answering(answer)],
        FailureMode::FailClose,
        settings(),
    );
    let served = bed.servers[0].address.to_string();
    let got = bed.ask(0, "");
    assert_eq!((got.status(), &*got.text()), (201, "{}"));
    assert_eq!(got.field("x-served"), Some(served.clone()));
    assert_eq!(got.field("x-own").as_deref(), Some("2"));
    assert_eq!(got.field("x-remove"), None);
    assert_eq!(
        got.field("x-request-id").as_deref(),
        Some("r"),
        "ours comes last"
    );
    let seen = bed.picker.last();
    assert_eq!(seen.served, Some(served));
    assert_eq!(
        seen.response.get(":status").map(String::as_str),
        Some("201")
    );
    assert_eq!(seen.response.get("x-own").map(String::as_str), Some("2"));
    assert_eq!(seen.response_body, b"{}");
    eventually("the call is ended, and not broken off", || {
        bed.picker.last().ended
    });

    assert_eq!(bed.ask(0, "change the status").status(), 418);
    let got = bed.ask(0, "replace");
    assert_eq!((got.status(), &*got.text()), (201, "replaced"));
}

#[test]
fn a_response_goes_by_way_of_the_picker() {
    let bed = Bed::close();
    for todo in ["", "confirm", "change the body"] {
        let got = bed.ask(0, todo);
        let model = if todo == "change the body" {
            "tiny"
        } else {
            "changed-model"
        };
        assert_eq!(got.json()["model"], model, "{todo}");
        assert!(got.complete);
        let seen = bed.picker.last().response_body;
        assert!(
            String::from_utf8_lossy(&seen).contains("changed-model"),
            "{todo}"
        );
    }
    assert_eq!(bed.world.record("r").end, "complete");
}

/// Sends an event whenever it is told to, and then ends the stream.
fn paced() -> (Upstream, std::sync::mpsc::Sender<&'static str>) {
    let (go, gone) = std::sync::mpsc::channel::<&'static str>();
    let gone = std::sync::Mutex::new(gone);
    let upstream = Upstream::start(move |side| {
        while side.request().is_some() {
            side.send(SSE_HEAD);
            let gone = gone.lock().unwrap();
            while let Ok(event) = gone.recv() {
                if event.is_empty() {
                    break;
                }
                side.send(chunk(event));
            }
            side.send("0\r\n\r\n");
        }
    });
    (upstream, go)
}

#[test]
fn events_pass_through_the_picker_one_by_one() {
    let (server, go) = paced();
    let bed = Bed::of(vec![server], FailureMode::FailClose, settings());
    let pick = bed.servers[0].address.to_string();
    for (todo, expected) in [
        ("", EVENT.to_owned()),
        ("confirm", EVENT.to_owned()),
        ("change the body", EVENT.replace("changed-model", "tiny")),
    ] {
        let mut client = bed.world.client();
        client.send(request(
            &pick,
            todo,
            "",
            r#"{"model":"tiny","stream":true}"#,
        ));
        go.send(EVENT).unwrap();
        let head = client.head().unwrap();
        assert_eq!(head.field("x-served"), Some(pick.clone()));
        // Each comes before the next is sent.
        for _ in 0..3 {
            assert_eq!(
                String::from_utf8(client.chunk().unwrap()).unwrap(),
                expected,
                "{todo}"
            );
            go.send(EVENT).unwrap();
        }
        assert_eq!(
            String::from_utf8(client.chunk().unwrap()).unwrap(),
            expected
        );
        go.send("").unwrap();
        assert_eq!(client.chunk().unwrap(), b"");
        assert_eq!(bed.picker.last().response_body, EVENT.repeat(4).as_bytes());
        eventually("the call is ended", || bed.picker.last().ended);
    }
}

#[test]
fn a_pause_of_the_endpoint_is_no_silence_of_the_picker() {
    let (server, go) = paced();
    let limit = SHORT * 5;
    let bed = Bed::of(vec![server], FailureMode::FailClose, with_timeout(limit));
    let pick = bed.servers[0].address.to_string();
    // It sends back less than it was sent.
    let todo = "change the body";
    let mut client = bed.world.client();
    client.send(request(
        &pick,
        todo,
        "",
        r#"{"model":"tiny","stream":true}"#,
    ));
    go.send(EVENT).unwrap();
    client.head().unwrap();
    let event = client.chunk().unwrap();
    assert_eq!(
        String::from_utf8(event).unwrap(),
        EVENT.replace("changed-model", "tiny")
    );
    // The model thinks for longer than the picker may.
    std::thread::sleep(limit + SHORT);
    go.send(EVENT).unwrap();
    client.chunk().unwrap();
    go.send("").unwrap();
    assert_eq!(client.chunk().unwrap(), b"");
    assert_eq!(bed.world.record("r").end, "complete");
}

#[test]
fn events_are_not_held_up_by_a_picker_that_does_not_send_them_back() {
    let (server, go) = paced();
    let bed = Bed::of(vec![server], FailureMode::FailClose, settings());
    let pick = bed.servers[0].address.to_string();
    let mut client = bed.world.client();
    let fields = format!("x-pick: {pick}\r\nx-do: look at heads alone\r\n");
    client.send(get_with("/events", &fields));
    go.send(EVENT).unwrap();
    assert_eq!(client.head().unwrap().status(), 200);
    for _ in 0..3 {
        assert_eq!(client.chunk().unwrap(), EVENT.as_bytes());
        go.send(EVENT).unwrap();
    }
    assert!(bed.world.shows(
        "forebay_external_picker_response_failures_total{pool=\"default/pool\",reason=\"silent\"} 1"
    ));
}

#[test]
fn trailers_follow_the_body() {
    let answer = format!(
        "HTTP/1.1 200 OK\r\ntrailer: x-sum, x-added\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\nx-sum: 7\r\n\r\n",
        chunk("abc")
    );
    let bed = Bed::of(
        vec![Upstream::answering(answer)],
        FailureMode::FailClose,
        settings(),
    );
    let pick = bed.servers[0].address.to_string();
    let ask = |todo: &str| {
        bed.world.ask(&request(
            &pick,
            todo,
            "te: trailers\r\nconnection: te\r\n",
            BODY,
        ))
    };
    let sum = ("x-sum".to_owned(), "7".to_owned());
    let added = ("x-added".to_owned(), "by the picker".to_owned());
    let got = ask("");
    assert_eq!(
        (&*got.text(), got.trailers),
        ("abc", vec![sum.clone(), added])
    );
    let seen = bed.picker.last();
    assert_eq!(seen.trailers.get("x-sum").map(String::as_str), Some("7"));
    assert_eq!(seen.response_body, b"abc");
    // They need not be answered.
    let got = ask("look at heads alone");
    assert_eq!((&*got.text(), got.trailers), ("abc", vec![sum]));
}

#[test]
fn a_picker_says_what_it_does_not_want_to_see() {
    let bed = Bed::close();
    for (todo, head, body) in [
        ("skip the response", false, false),
        ("choose and leave", false, false),
        ("skip the response's body", true, false),
        ("leave the response's body", true, true),
    ] {
        assert_eq!(name_of(&bed.ask(1, todo)), "server 1", "{todo}");
        let seen = bed.picker.last();
        assert_eq!(seen.served.is_some(), head, "{todo}");
        // The first piece was on its way when the picker said so.
        assert_eq!(!seen.response_pieces.is_empty(), body, "{todo}");
    }
    let heads_only = Settings {
        picker: PickerSettings {
            response_bodies: false,
            ..PickerSettings::default()
        },
        ..settings()
    };
    let bed = Bed::new(1, FailureMode::FailClose, heads_only);
    let got = bed.ask(0, "");
    assert_eq!(name_of(&got), "server 0");
    assert_eq!(
        got.field("content-length").map(|n| n.parse().ok()),
        Some(Some(got.body.len()))
    );
    assert!(bed.picker.last().served.is_some());
    assert_eq!(bed.picker.last().response_pieces, [0_usize; 0]);
}

#[test]
fn a_response_whose_picker_fails_goes_on_or_not_as_the_pool_says() {
    for (todo, settings) in [
        ("fail at the response", settings()),
        ("never answer the response", with_timeout(SHORT)),
    ] {
        let bed = Bed::new(1, FailureMode::FailClose, settings.clone());
        assert_eq!(code_of(&bed.ask(0, todo)), unavailable(), "{todo}");
        let bed = Bed::new(1, FailureMode::FailOpen, settings);
        assert_eq!(name_of(&bed.ask(0, todo)), "server 0", "{todo}");
    }
    let bed = Bed::open();
    assert_eq!(code_of(&bed.ask(0, "refuse the response")).0, 429);
}

#[test]
fn a_stream_whose_picker_dies_goes_on_where_it_stood() {
    for mode in [FailureMode::FailOpen, FailureMode::FailClose] {
        let (server, go) = paced();
        let bed = Bed::of(vec![server], mode, settings());
        let pick = bed.servers[0].address.to_string();
        let mut client = bed.world.client();
        let streamed = r#"{"model":"tiny","stream":true}"#;
        client.send(request(&pick, "fail within the response", "", streamed));
        go.send(EVENT).unwrap();
        client.head().unwrap();
        assert_eq!(client.chunk().unwrap(), EVENT.as_bytes());
        // It fails on this one.
        go.send(EVENT).unwrap();
        let next = String::from_utf8(client.chunk().unwrap()).unwrap();
        if mode == FailureMode::FailOpen {
            assert_eq!(next, EVENT);
            go.send(EVENT).unwrap();
            assert_eq!(client.chunk().unwrap(), EVENT.as_bytes());
            go.send("").unwrap();
            assert_eq!(client.chunk().unwrap(), b"");
            assert_eq!(bed.world.record("r").end, "complete");
        } else {
            assert!(next.contains("the endpoint picker failed"), "{next}");
            assert_eq!(client.chunk().unwrap(), b"");
            let record = bed.world.record("r");
            assert_eq!(record.end, "picker-failed");
        }
        assert!(bed.world.shows(
            "forebay_external_picker_response_failures_total{pool=\"default/pool\",reason=\"error\"} 1"
        ));
    }
}

#[test]
fn an_endpoint_that_dies_behind_a_picker_is_blamed_for_it() {
    let servers = fleet(1, TINY, |side, _, _| {
        side.send(format!("{SSE_HEAD}{}", chunk(EVENT)));
        false
    });
    let bed = Bed::of(servers, FailureMode::FailClose, settings());
    let got = bed.ask(0, "");
    let text = got.text();
    assert!(
        text.starts_with(EVENT) && text.contains("stream broke"),
        "{text}"
    );
    assert_eq!(bed.world.record("r").end, "upstream-died");
}

#[test]
fn a_client_that_leaves_takes_its_call_along() {
    let (server, _go) = Upstream::holding_slow();
    let bed = Bed::of(vec![server], FailureMode::FailClose, settings());
    let pick = bed.servers[0].address.to_string();
    let mut client = bed.world.client();
    client.send(request(&pick, "", "", BODY).replace(CHAT, "/slow"));
    bed.servers[0].last();
    drop(client);
    assert_eq!(bed.world.record("r").end, "client-gone");
}
