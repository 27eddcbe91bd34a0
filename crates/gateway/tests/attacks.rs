//! Peers that mean harm: garbage in every place, readers that do not read, endpoints that never
//! stop. The gateway stays up, bounded, and there for others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write as _;
use std::net::Shutdown;
use std::time::Duration;

use common::*;
use forebay_gateway::settings::Settings;

/// Repeatable disorder.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// A copy of `bytes` with a few of them changed, dropped, doubled or cut off.
    fn damage(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = bytes.to_vec();
        for _ in 0..1 + self.below(4) {
            if out.is_empty() {
                break;
            }
            let at = self.below(out.len());
            let odd = b"\r\n\0 :;,0f\xff\t\"{"[self.below(13)];
            match self.below(6) {
                0 => out[at] = odd,
                1 => out.insert(at, odd),
                2 => drop(out.remove(at)),
                3 => out.truncate(at),
                4 => out.splice(at..at, bytes.iter().copied()).for_each(drop),
                _ => out[at] = self.below(256) as u8,
            }
        }
        out
    }
}

/// Settings that give up soon.
fn impatient() -> Settings {
    let soon = Duration::from_millis(50);
    Settings {
        head_timeout: soon,
        body_stall_timeout: soon,
        stream_idle_timeout: soon,
        ..settings()
    }
}

#[test]
fn damaged_requests_do_no_damage() {
    let upstream = Upstream::saying("x");
    let world = World::with(
        impatient(),
        vec![
            entry("/v1", rule(vec![pool(&[upstream.address])])),
            entry("/", rule(vec![service(&[upstream.address])])),
        ],
    );
    let json =
        r#"{"model":"tiny","messages":[{"role":"user","content":"\u00e9\n"}],"stream":true}"#;
    let form = "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n--b--\r\n";
    let chunked = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n{}{}0\r\nx: 1\r\n\r\n",
        chunk(&json[..20]),
        chunk(&json[20..])
    );
    let seeds = [
        post("/v1/chat/completions", json),
        post_with(
            "/v1/audio/transcriptions",
            "content-type: multipart/form-data; boundary=b\r\n",
            form,
        ),
        chunked,
        get_with(
            "/a?b=c",
            "connection: upgrade\r\nupgrade: x\r\norigin: y\r\n",
        ),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".to_owned(),
    ];
    let mut dice = Dice(0x5eed);
    for round in 0..400 {
        let mut client = world.client();
        client.send(dice.damage(seeds[round % seeds.len()].as_bytes()));
        let _closed = client.stream.shutdown(Shutdown::Write);
        client.rest();
    }
    assert_eq!(world.ask(&get("/")).text(), "x");
}

#[test]
fn damaged_answers_do_no_damage() {
    let event = r#"data: {"model":"tiny","choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}"#;
    let seeds = [
        ok(r#"{"model":"tiny","usage":{"prompt_tokens":3,"completion_tokens":4}}"#),
        format!(
            "{SSE_HEAD}{}{}0\r\nx-sum: 1\r\n\r\n",
            chunk(event),
            chunk("\n\n")
        ),
        format!("HTTP/1.1 100 Continue\r\n\r\n{}", ok("x")),
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nbytes".to_owned(),
    ];
    let dice = std::sync::Mutex::new(Dice(0xbad));
    let upstream = Upstream::start(move |side| {
        side.peer.message(None);
        let answer = {
            let mut dice = dice.lock().unwrap();
            let seed = dice.below(seeds.len());
            dice.damage(seeds[seed].as_bytes())
        };
        side.send(answer);
    });
    let fine = Upstream::saying("x");
    let world = World::with(
        impatient(),
        vec![
            entry("/fine", rule(vec![service(&[fine.address])])),
            entry("/v1", rule(vec![pool(&[upstream.address])])),
            entry("/", rule(vec![service(&[upstream.address])])),
        ],
    );
    let json = r#"{"stream":true}"#;
    let upgrade = get_with("/x", "connection: upgrade\r\nupgrade: x\r\n");
    for round in 0..400 {
        let mut client = world.client();
        client.send(match round % 3 {
            0 => post("/v1/chat/completions", json),
            1 => get("/x"),
            _ => upgrade.clone(),
        });
        let _closed = client.stream.shutdown(Shutdown::Write);
        client.rest();
    }
    assert_eq!(world.ask(&get("/fine")).text(), "x");
}

/// Writes until nobody takes any more for a while; the bytes that were taken.
fn pour(peer: &mut Peer, unit: &[u8]) -> usize {
    peer.stream
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut taken = 0;
    while taken < 256 << 20 {
        match peer.stream.write(unit) {
            Ok(n) => taken += n,
            Err(_) => break,
        }
    }
    taken
}

/// More than the kernel's buffers of two connections, far less than a leak.
const HELD_BYTES_MAX: usize = 64 << 20;

#[test]
fn a_client_that_does_not_read_fills_no_memory_and_is_cut_off() {
    let (tell, told) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |side| {
        side.request();
        side.send("HTTP/1.1 200 OK\r\n\r\n");
        tell.send(pour(&mut side.peer, &[b'x'; 65_536])).unwrap();
        side.peer.rest();
        tell.send(0).unwrap();
    });
    let settings = Settings {
        write_stall_timeout: Duration::from_millis(800),
        ..settings()
    };
    let world = World::with(
        settings,
        vec![entry("/", rule(vec![service(&[upstream.address])]))],
    );
    let mut client = world.client();
    client.send(get_with("/", "x-request-id: lazy\r\n"));
    let taken = told.recv_timeout(PATIENCE).unwrap();
    assert!(taken < HELD_BYTES_MAX, "{taken} bytes");
    assert_eq!(told.recv_timeout(PATIENCE), Ok(0), "the endpoint is let go");
    assert_eq!(world.record("lazy").end, "client-gone");
}

#[test]
fn an_endpoint_that_does_not_read_fills_no_memory() {
    let (_test, over) = std::sync::mpsc::channel::<()>();
    let over = std::sync::Mutex::new(over);
    let upstream = Upstream::start(move |side| {
        side.peer.head();
        // Holds the connection without reading, until the test is over.
        let _over = over.lock().unwrap().recv();
    });
    let world = World::to(service(&[upstream.address]));
    let mut client = world.client();
    client.send("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000000\r\n\r\n");
    let taken = pour(&mut client, &[b'x'; 65_536]);
    assert!(taken < HELD_BYTES_MAX, "{taken} bytes");
}

/// The beginning of a body that goes on to its endpoint while it arrives, in both framings.
const UPLOADS: [&str; 2] = [
    "POST /x HTTP/1.1\r\nhost: h\r\nx-request-id: u\r\ncontent-length: 2000000\r\n\r\nbeginning",
    "POST /x HTTP/1.1\r\nhost: h\r\nx-request-id: u\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n",
];

#[test]
fn a_client_that_stops_within_its_upload_holds_no_connection_to_an_endpoint() {
    for (target, upload) in [service, pool].into_iter().zip(UPLOADS.repeat(2)) {
        let (tell, told) = std::sync::mpsc::channel();
        let upstream = Upstream::start(move |side| {
            side.peer.head();
            side.peer.rest();
            tell.send("closed").unwrap();
        });
        let settings = Settings {
            body_stall_timeout: Duration::from_millis(100),
            ..settings()
        };
        let rule = rule(vec![target(&[upstream.address])]);
        let world = World::with(settings, vec![entry("/", rule)]);
        let mut client = world.client();
        client.send(upload);
        let got = client.response("POST");
        assert_eq!(got.status(), 408, "{upload:?}");
        assert_eq!(got.json()["error"]["code"], "body_timeout");
        assert!(client.closes());
        assert_eq!(told.recv_timeout(PATIENCE), Ok("closed"));
        assert_eq!(world.record("u").reason.as_deref(), Some("body_timeout"));
    }
}

#[test]
fn an_upload_may_pause_once_its_endpoint_has_answered() {
    let upstream = Upstream::start(|side| {
        side.peer.head();
        side.send(format!("{SSE_HEAD}{}", chunk("early")));
        side.peer.until("the end");
        side.send(format!("{}0\r\n\r\n", chunk("late")));
        side.peer.rest();
    });
    let silent = Upstream::start(|side| {
        side.peer.rest();
    });
    let settings = Settings {
        body_stall_timeout: Duration::from_millis(500),
        ..settings()
    };
    let world = World::with(
        settings,
        vec![
            entry("/silent", rule(vec![service(&[silent.address])])),
            entry("/", rule(vec![service(&[upstream.address])])),
        ],
    );
    let mut client = world.client();
    let length = "beginning".len() + "the end".len();
    client.send(format!(
        "POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\nbeginning"
    ));
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.chunk().unwrap(), b"early");
    // When one that began later has been given up, the limit has passed for this one too.
    let mut later = world.client();
    later.send("POST /silent HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\n");
    assert_eq!(later.response("POST").status(), 408);
    client.send("the end");
    assert_eq!(client.chunk().unwrap(), b"late");
    assert_eq!(client.chunk().unwrap(), b"");
}

#[test]
fn an_answer_without_end_leaves_time_for_others() {
    let endless = Upstream::start(|side| {
        side.request();
        side.send("HTTP/1.1 200 OK\r\n\r\n");
        while side.peer.stream.write_all(&[b'x'; 65_536]).is_ok() {}
    });
    let quick = Upstream::saying("x");
    let world = World::with(
        settings(),
        vec![
            entry("/endless", rule(vec![service(&[endless.address])])),
            entry("/", rule(vec![service(&[quick.address])])),
        ],
    );
    let mut greedy = world.client();
    greedy.send(get("/endless"));
    let stream = greedy.stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut stream = stream;
        let mut piece = vec![0; 1 << 20];
        while std::io::Read::read(&mut stream, &mut piece).is_ok_and(|n| n > 0) {}
    });
    for _ in 0..20 {
        assert_eq!(world.ask(&get("/")).text(), "x");
    }
    greedy.stream.shutdown(Shutdown::Both).unwrap();
    reader.join().unwrap();
}

#[test]
fn many_who_connect_and_say_nothing_harm_nobody() {
    let upstream = Upstream::saying("x");
    let world = World::to(service(&[upstream.address]));
    let silent: Vec<Peer> = (0..200)
        .map(|n| {
            let mut client = world.client();
            client.send(["", "P", "PR", "GET /"][n % 4]);
            client
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(world.ask(&get("/")).text(), "x");
    }
    drop(silent);
    eventually("all are given back", || world.counts("client", 0));
}
