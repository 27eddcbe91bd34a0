//! Clients that keep asking: each a thread with one kept connection that streams one answer after
//! the other and writes down how each went.
//!
//! They behave as HTTP clients do: a request on a kept connection that closes before the first byte
//! of an answer is sent once more on a new one, since the server may have closed it while it was
//! idle. Everything else that goes wrong is an outcome.

use super::super::http1::{Framing, HEAD_BYTES_MAX, HEADERS_MAX};
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// An answer that has not begun, or has paused, for this long counts as failed.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// Pause after a failure, so that a gateway that is down is not counted thousands of times.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// How one request went.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    pub(super) started: Instant,
    /// Time to the first byte of the answer's body.
    pub(super) first_byte: Option<Duration>,
    pub(super) end: End,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum End {
    /// The whole answer came.
    Whole,
    /// Nothing of an answer's body had come.
    Refused(String),
    /// It broke off within the answer's body.
    Torn(String),
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    request: Vec<u8>,
    stop: AtomicBool,
    outcomes: Mutex<Vec<Outcome>>,
}

/// Clients at work.
#[derive(Debug)]
pub(super) struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts `count` clients that send `request`, a whole HTTP/1.1 message, to `target`.
    pub(super) fn start(target: SocketAddr, request: Vec<u8>, count: usize) -> Self {
        let shared = Arc::new(Shared {
            target,
            request,
            stop: AtomicBool::new(false),
            outcomes: Mutex::default(),
        });
        let threads = (0..count)
            .map(|_| {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || keep_asking(&shared))
            })
            .collect();
        Self { shared, threads }
    }

    /// Outcomes of requests that have ended since the last call.
    pub(super) fn take(&self) -> Vec<Outcome> {
        let mut outcomes = self.shared.lock();
        std::mem::take(&mut *outcomes)
    }

    /// Lets every client finish its request, and gives the last outcomes.
    pub(super) fn finish(mut self) -> Vec<Outcome> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has said so on stderr; its outcomes are there all the same.
            let _ended = thread.join();
        }
        self.take()
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Outcome>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep_asking(shared: &Shared) {
    let mut kept = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let outcome = ask(shared, &mut kept);
        let failed = outcome.end != End::Whole;
        shared.lock().push(outcome);
        if failed {
            std::thread::sleep(AFTER_FAILURE);
        }
    }
}

fn ask(shared: &Shared, kept: &mut Option<TcpStream>) -> Outcome {
    let started = Instant::now();
    let mut answer = Answer::default();
    let mut result = match kept.take() {
        Some(connection) => exchange(connection, shared, started, &mut answer),
        None => fresh(shared, started, &mut answer),
    };
    if matches!(&result, Err(Broken::Stale)) {
        result = fresh(shared, started, &mut answer);
    }
    let end = match result {
        Ok(connection) => {
            *kept = connection;
            End::Whole
        }
        Err(broken) if answer.first_byte.is_some() => End::Torn(broken.to_string()),
        Err(broken) => End::Refused(broken.to_string()),
    };
    Outcome {
        started,
        first_byte: answer.first_byte,
        end,
    }
}

/// What has come of an answer.
#[derive(Debug, Default)]
struct Answer {
    head: bool,
    first_byte: Option<Duration>,
    /// The end of the body, to see whether the stream said that it is over.
    tail: Vec<u8>,
}

/// Why there is no whole answer.
#[derive(Debug)]
enum Broken {
    /// The connection closed before a byte of an answer: worth another try on a new one.
    Stale,
    Other(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stale => f.write_str("closed before an answer"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

fn fresh(
    shared: &Shared,
    started: Instant,
    answer: &mut Answer,
) -> Result<Option<TcpStream>, Broken> {
    let connection = TcpStream::connect_timeout(&shared.target, SILENCE_MAX)
        .map_err(|error| Broken::Other(format!("connect: {error}")))?;
    let ready = connection
        .set_nodelay(true)
        .and_then(|()| connection.set_read_timeout(Some(SILENCE_MAX)));
    ready.map_err(|error| Broken::Other(error.to_string()))?;
    exchange(connection, shared, started, answer)
}

/// Sends the request and reads the whole answer; gives the connection back if it may be kept.
fn exchange(
    mut connection: TcpStream,
    shared: &Shared,
    started: Instant,
    answer: &mut Answer,
) -> Result<Option<TcpStream>, Broken> {
    if connection.write_all(&shared.request).is_err() {
        return Err(Broken::Stale);
    }
    match read_answer(&mut connection, started, answer) {
        Ok(kept) => Ok(kept.then_some(connection)),
        Err(_) if !answer.head && answer.tail.is_empty() && is_closed(&connection) => {
            Err(Broken::Stale)
        }
        Err(error) => Err(Broken::Other(format!("{error:#}"))),
    }
}

/// Whether the other side has closed, rather than being silent for too long.
fn is_closed(connection: &TcpStream) -> bool {
    let mut byte = [0];
    let looked = connection
        .set_nonblocking(true)
        .and_then(|()| connection.peek(&mut byte));
    !matches!(looked, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

/// Reads one answer; whether the connection may be kept.
fn read_answer(connection: &mut TcpStream, started: Instant, answer: &mut Answer) -> Result<bool> {
    let mut buffer = Vec::new();
    let (status, mut framing, kept) = loop {
        fill(connection, &mut buffer)?;
        if let Some((length, head)) = parse_head(&buffer)? {
            buffer.drain(..length);
            break head;
        }
        if buffer.len() > HEAD_BYTES_MAX {
            bail!("a head of more than {HEAD_BYTES_MAX} bytes");
        }
    };
    answer.head = true;
    let refused = status != 200;
    let mut body = Vec::new();
    loop {
        let taken = framing.take(&buffer, |bytes| body.extend_from_slice(bytes))?;
        buffer.drain(..taken);
        if !refused && !body.is_empty() {
            answer.first_byte.get_or_insert_with(|| started.elapsed());
            answer.tail.append(&mut body);
            let surplus = answer.tail.len().saturating_sub(TAIL_BYTES);
            answer.tail.drain(..surplus);
        }
        if framing.is_done() {
            break;
        }
        fill(connection, &mut buffer)?;
    }
    if refused {
        bail!("status {status}: {}", String::from_utf8_lossy(&body));
    }
    if !answer.tail.trim_ascii_end().ends_with(b"data: [DONE]") {
        let tail = String::from_utf8_lossy(&answer.tail);
        bail!("the stream ended without [DONE]: ...{}", tail.trim_end());
    }
    Ok(kept)
}

/// Bytes of an answer's end that are looked at.
const TAIL_BYTES: usize = 300;

fn fill(connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    let mut chunk = [0; 16 * 1024];
    let length = connection.read(&mut chunk).context("read")?;
    if length == 0 {
        bail!("the connection closed");
    }
    buffer.extend_from_slice(&chunk[..length]);
    Ok(())
}

/// The length of the head at the front of `buffer` if it is all there, and what it says: status,
/// framing, whether the connection may be kept.
#[expect(clippy::type_complexity, reason = "read in one place, right above")]
fn parse_head(buffer: &[u8]) -> Result<Option<(usize, (u16, Framing, bool))>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(length) = response.parse(buffer)? else {
        return Ok(None);
    };
    let closes = response.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("connection")
            && header.value.eq_ignore_ascii_case(b"close")
    });
    let status = response.code.unwrap_or_default();
    Ok(Some((
        length,
        (status, Framing::of(response.headers)?, !closes),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, TcpListener};

    const WHOLE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\ndata: 1\n\ndata: [DONE]\n\n";

    /// Serves each connection the answers of one list, closing it after the last.
    fn check(connections: Vec<Vec<&'static str>>, asks: usize, expected: &[End]) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let shared = Shared {
            target: listener.local_addr().unwrap(),
            request: b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            stop: AtomicBool::new(false),
            outcomes: Mutex::default(),
        };
        let server = std::thread::spawn(move || {
            for answers in connections {
                let (mut side, _) = listener.accept().unwrap();
                for answer in answers {
                    let mut seen = Vec::new();
                    while !seen.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        side.read_exact(&mut byte).unwrap();
                        seen.push(byte[0]);
                    }
                    side.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        let mut kept = None;
        let ends: Vec<End> = (0..asks).map(|_| ask(&shared, &mut kept).end).collect();
        drop(kept);
        assert_eq!(ends, expected);
        server.join().unwrap();
    }

    #[test]
    fn connections_are_kept_and_a_stale_one_is_replaced() {
        let whole = || End::Whole;
        check(vec![vec![WHOLE, WHOLE]], 2, &[whole(), whole()]);
        check(vec![vec![WHOLE], vec![WHOLE]], 2, &[whole(), whole()]);
    }

    #[test]
    fn failures_before_and_within_an_answer_are_told_apart() {
        let refusal = "HTTP/1.1 503 X\r\nconnection: close\r\ncontent-length: 4\r\n\r\ngone";
        let refused = End::Refused("status 503: gone".to_owned());
        check(vec![vec![refusal]], 1, &[refused]);
        let torn = "HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\ndata: 1\n\n";
        let end = End::Torn("the connection closed".to_owned());
        check(vec![vec![torn]], 1, &[end]);
        let early = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ndata: 1\n\n";
        let end = "the stream ended without [DONE]: ...data: 1".to_owned();
        check(vec![vec![early]], 1, &[End::Torn(end)]);
    }
}
