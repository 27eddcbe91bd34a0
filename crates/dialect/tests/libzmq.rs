//! Events as they come from libzmq and msgspec, which is what model servers publish them with:
//! `tests-sdk/publish.py` is the publisher.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use forebay_dialect::kv_events::{Sequence, Verdict, decode};
use forebay_model::kv::CacheEvent;
use forebay_zmtp::{Connection, Limits, Message, Role};
use tokio::net::TcpStream;

const LIMITS: Limits = Limits {
    message_bytes: 1 << 20,
    frames: 4,
};

struct Publisher(Child);

impl Drop for Publisher {
    fn drop(&mut self) {
        // It may have ended already.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

fn skip(reason: &str) {
    eprintln!("libzmq: skipped: {reason}");
    if let Some(path) = std::env::var_os("FOREBAY_SKIPS") {
        let file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path);
        let written = file.and_then(|mut file| writeln!(file, "libzmq: {reason}"));
        written.expect("the list of skips can be written");
    }
}

async fn connect(port: u16, role: Role) -> Connection<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("it listens");
    Connection::handshake(stream, role, LIMITS)
        .await
        .expect("it shakes hands")
}

fn number(frame: &[u8]) -> u64 {
    u64::from_be_bytes(frame.try_into().expect("eight bytes"))
}

/// A batch with one block of sixteen tokens, which begin with its number times sixteen.
fn check(number: u64, payload: &[u8]) {
    let batch = decode(payload).expect("a batch");
    let [CacheEvent::Stored(stored)] = &batch.events[..] else {
        panic!("{batch:?}");
    };
    assert_eq!((batch.unreadable, batch.rank), (0, Some(0)));
    assert_eq!(stored.blocks, [number]);
    assert_eq!(stored.tokens[0], number as u32 * 16);
}

#[tokio::test]
async fn what_libzmq_publishes_and_replays_is_understood() {
    let Some(python) = std::env::var_os("FOREBAY_SDK_PYTHON") else {
        let reason = std::env::var("FOREBAY_SDK_SKIP");
        return skip(&reason.unwrap_or_else(|_| {
            "FOREBAY_SDK_PYTHON is not set; `cargo xtask test` prepares it".to_owned()
        }));
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests-sdk/publish.py");
    let mut child = Command::new(python)
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the prepared Python starts");
    let mut line = String::new();
    let stdout = child.stdout.take().expect("piped");
    let publisher = Publisher(child);
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("its ports");
    let ports: Vec<u16> = line
        .split_whitespace()
        .filter_map(|p| p.parse().ok())
        .collect();
    let [events, replay] = ports[..] else {
        panic!("{line:?}");
    };

    let mut events = connect(events, Role::Subscriber).await;
    events.subscribe(b"kv@").await.expect("sent");
    let next = async |from: &mut Connection<TcpStream>| -> Message {
        from.message().await.expect("a message")
    };
    let mut sequence = Sequence::default();
    let first = next(&mut events).await;
    assert_eq!(&first[0][..], b"kv@pod@model");
    sequence.resume_at(number(&first[1]), &first[2]);
    for _ in 0..20 {
        let message = next(&mut events).await;
        assert_eq!(
            sequence.judge(number(&message[1]), &message[2]),
            Verdict::Next
        );
        check(number(&message[1]), &message[2]);
    }

    let mut replay = connect(replay, Role::Dealer).await;
    let from = number(&first[1]).saturating_sub(3);
    replay
        .send(&[b"", &from.to_be_bytes()])
        .await
        .expect("sent");
    for wanted in from.. {
        let message = next(&mut replay).await;
        assert!(message[0].is_empty());
        if number(&message[1]) == u64::MAX {
            assert!(wanted >= from + 20, "as much as was published");
            break;
        }
        assert_eq!(number(&message[1]), wanted);
        check(wanted, &message[2]);
    }
    drop(publisher);
}
