//! The upstream of the proxy benchmark: answers every chat request with the same bytes, at once.
//!
//! It exists to cost as little as possible, so that the proxies' cost shows; it is not the
//! simulator (`forebay simulate`), which behaves like an engine. One thread, one process per
//! instance, HTTP/1.1 only. It ends when its standard input ends, so it cannot outlive the run.

use super::http1::{Framing, HEAD_BYTES_MAX, HEADERS_MAX};
use anyhow::{Context, Result, bail};
use memchr::memmem;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::Cell;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes of one request that are kept; a longer one ends its connection.
const REQUEST_BYTES_MAX: usize = 4 << 20;

/// Where one instance listens.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address to listen on
    #[arg(long)]
    listen: SocketAddr,
    /// Events of a streamed answer
    #[arg(long, default_value_t = 32)]
    events: u32,
    /// Pause between two events; 0 sends all of them in one write
    #[arg(long, default_value_t = 5)]
    gap_ms: u32,
    /// Bytes of the metrics page at least, filled up with series that nobody reads
    #[arg(long, default_value_t = 0)]
    metrics_bytes: usize,
}

/// The answers, ready to be written.
struct Answers {
    json: Vec<u8>,
    models: Vec<u8>,
    metrics: Vec<u8>,
    empty: Vec<u8>,
    not_found: Vec<u8>,
    /// Head of a streamed answer; events follow in chunked coding.
    stream_head: Vec<u8>,
    event: Vec<u8>,
    stream_end: Vec<u8>,
    /// Shape of streams from now on: events and the pause between them.
    shape: Cell<(u32, u32)>,
    /// Metrics pages given.
    scrapes: Cell<u64>,
    /// JSON answers that wait, and whether they are to.
    held: Cell<u64>,
    hold: watch::Sender<bool>,
}

/// What a request asks for, once it has arrived whole.
enum Ask {
    Json,
    Stream,
    Fixed(fn(&Answers) -> &[u8]),
    Metrics,
    Shape(u32, u32),
    Hold(bool),
    Counts,
}

/// Serves until standard input ends.
pub(crate) fn run(args: &Args) -> Result<()> {
    std::thread::spawn(|| {
        // Nothing is ever sent: this returns when whoever started us is gone.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(serve(args)))
}

/// Where it stands for many endpoints, each brings a connection.
fn raise_descriptor_limit() {
    let limits = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    // Where that is not enough, connections are refused, which shows at the load.
    let _ = setrlimit(Resource::Nofile, raised);
}

async fn serve(args: &Args) -> Result<()> {
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let answers = Rc::new(Answers::new((args.events, args.gap_ms), args.metrics_bytes));
    loop {
        let (stream, _) = listener
            .accept()
            .await
            .context("cannot accept connections")?;
        stream.set_nodelay(true)?;
        let answers = Rc::clone(&answers);
        tokio::task::spawn_local(async move {
            // A broken connection is the peer's affair; it shows as an error at the load.
            let _ = connection(stream, &answers).await;
        });
    }
}

async fn connection(mut stream: TcpStream, answers: &Answers) -> Result<()> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        let Some((ask, used)) = read_request(&mut stream, &mut buffer).await? else {
            return Ok(());
        };
        buffer.drain(..used);
        match ask {
            Ask::Json => {
                answers.wait_while_held().await;
                stream.write_all(&answers.json).await?;
            }
            Ask::Stream => answers.send_stream(&mut stream).await?,
            Ask::Fixed(which) => stream.write_all(which(answers)).await?,
            Ask::Metrics => {
                answers.scrapes.set(answers.scrapes.get() + 1);
                stream.write_all(&answers.metrics).await?;
            }
            Ask::Shape(events, gap_ms) => {
                answers.shape.set((events, gap_ms));
                stream.write_all(&answers.empty).await?;
            }
            Ask::Hold(hold) => {
                answers.hold.send_replace(hold);
                stream.write_all(&answers.empty).await?;
            }
            Ask::Counts => stream.write_all(&answers.counts()).await?,
        }
    }
}

/// Reads until one request is there; returns what it asks and its length in the buffer.
async fn read_request(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> Result<Option<(Ask, usize)>> {
    let mut head: Option<Head> = None;
    loop {
        if head.is_none() {
            head = parse_head(buffer)?;
        }
        if let Some(head) = &mut head {
            head.body_end += head.framing.take(&buffer[head.body_end..], |_| ())?;
            if head.framing.is_done() {
                let ask = head.ask(&buffer[head.body_start..head.body_end]);
                return Ok(Some((ask, head.body_end)));
            }
        }
        if buffer.len() > REQUEST_BYTES_MAX {
            bail!("a request longer than {REQUEST_BYTES_MAX} bytes");
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// A parsed head, and how far its body has been taken.
struct Head {
    kind: HeadKind,
    framing: Framing,
    body_start: usize,
    body_end: usize,
}

/// What the request line alone tells.
enum HeadKind {
    Generate,
    Fixed(fn(&Answers) -> &[u8]),
    Metrics,
    Shape(u32, u32),
    Hold(bool),
    Counts,
}

fn parse_head(buffer: &[u8]) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(end) = request.parse(buffer)? else {
        if buffer.len() > HEAD_BYTES_MAX {
            bail!("a head longer than {HEAD_BYTES_MAX} bytes");
        }
        return Ok(None);
    };
    let target = request.path.unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let kind = match path {
        "/v1/chat/completions" | "/v1/completions" => HeadKind::Generate,
        "/health" => HeadKind::Fixed(|answers| &answers.empty),
        "/v1/models" => HeadKind::Fixed(|answers| &answers.models),
        "/metrics" => HeadKind::Metrics,
        "/mock/counts" => HeadKind::Counts,
        "/mock/hold" => HeadKind::Hold(query_number(query, "on") == 1),
        "/mock/stream" => {
            HeadKind::Shape(query_number(query, "events"), query_number(query, "gap_ms"))
        }
        _ => HeadKind::Fixed(|answers| &answers.not_found),
    };
    let framing = Framing::of(request.headers)?;
    Ok(Some(Head {
        kind,
        framing,
        body_start: end,
        body_end: end,
    }))
}

fn query_number(query: &str, name: &str) -> u32 {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(key, _)| *key == name)
        .find_map(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

impl Head {
    fn ask(&self, body: &[u8]) -> Ask {
        match self.kind {
            HeadKind::Fixed(which) => Ask::Fixed(which),
            HeadKind::Metrics => Ask::Metrics,
            HeadKind::Shape(events, gap_ms) => Ask::Shape(events, gap_ms),
            HeadKind::Hold(hold) => Ask::Hold(hold),
            HeadKind::Counts => Ask::Counts,
            HeadKind::Generate if wants_stream(body) => Ask::Stream,
            HeadKind::Generate => Ask::Json,
        }
    }
}

/// Looks for the flag as text: the benchmark's own bodies hold it nowhere else.
fn wants_stream(body: &[u8]) -> bool {
    memmem::find(body, br#""stream":true"#)
        .or_else(|| memmem::find(body, br#""stream": true"#))
        .is_some()
}

impl Answers {
    fn new(shape: (u32, u32), metrics_bytes: usize) -> Self {
        let event = concat!(
            r#"data: {"id":"chatcmpl-7f3a9c","object":"chat.completion.chunk","created":1760000000,"#,
            r#""model":"mock","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}"#,
            "\n\n"
        );
        let done = "data: [DONE]\n\n";
        Self {
            json: with_length("200 OK", "application/json", CHAT_ANSWER),
            models: with_length("200 OK", "application/json", MODELS),
            metrics: with_length(
                "200 OK",
                "text/plain; version=0.0.4",
                &metrics_page(metrics_bytes),
            ),
            empty: with_length("200 OK", "text/plain", ""),
            not_found: with_length("404 Not Found", "text/plain", "no such path\n"),
            stream_head: b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_vec(),
            event: format!("{:x}\r\n{event}\r\n", event.len()).into_bytes(),
            stream_end: format!("{:x}\r\n{done}\r\n0\r\n\r\n", done.len()).into_bytes(),
            shape: Cell::new(shape),
            scrapes: Cell::new(0),
            held: Cell::new(0),
            hold: watch::Sender::new(false),
        }
    }

    async fn wait_while_held(&self) {
        if *self.hold.borrow() {
            self.held.set(self.held.get() + 1);
            // The sender lives as long as this does.
            let _ = self.hold.subscribe().wait_for(|hold| !hold).await;
            self.held.set(self.held.get() - 1);
        }
    }

    fn counts(&self) -> Vec<u8> {
        let counts = Counts {
            scrapes: self.scrapes.get(),
            held: self.held.get(),
        };
        with_length("200 OK", "application/json", &json!(counts).to_string())
    }

    async fn send_stream(&self, stream: &mut TcpStream) -> Result<()> {
        let (events, gap_ms) = self.shape.get();
        if gap_ms == 0 {
            let mut all = self.stream_head.clone();
            (0..events).for_each(|_| all.extend_from_slice(&self.event));
            all.extend_from_slice(&self.stream_end);
            return Ok(stream.write_all(&all).await?);
        }
        stream.write_all(&self.stream_head).await?;
        let mut ticks = tokio::time::interval(Duration::from_millis(u64::from(gap_ms)));
        for _ in 0..events {
            ticks.tick().await;
            stream.write_all(&self.event).await?;
        }
        Ok(stream.write_all(&self.stream_end).await?)
    }
}

/// What a mock has done, and does, as it tells under `/mock/counts`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Counts {
    /// Metrics pages given.
    pub(super) scrapes: u64,
    /// JSON answers that wait.
    pub(super) held: u64,
}

/// What pickers read, behind as many series that they do not as the page needs for its length.
fn metrics_page(bytes: usize) -> String {
    let mut page = String::new();
    for bucket in 0.. {
        if page.len() + METRICS.len() >= bytes {
            break;
        }
        let _ = writeln!(
            page,
            "vllm:time_to_first_token_seconds_bucket{{engine=\"0\",le=\"{bucket}.0\",model_name=\"mock\"}} {bucket}.0"
        );
    }
    page + METRICS
}

fn with_length(status: &str, content_type: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// 338 bytes, the size of a short answer of a real server.
const CHAT_ANSWER: &str = concat!(
    r#"{"id":"chatcmpl-7f3a9c1e55d24b0c","object":"chat.completion","created":1760000000,"#,
    r#""model":"mock","choices":[{"index":0,"message":{"role":"assistant","content":"#,
    r#""The warm replica answers sooner because its prefix is still cached; see row 1."},"#,
    r#""finish_reason":"stop"}],"usage":{"prompt_tokens":512,"completion_tokens":16,"#,
    r#""total_tokens":528}}"#
);

const MODELS: &str = r#"{"object":"list","data":[{"id":"mock","object":"model","created":1760000000,"owned_by":"bench","max_model_len":131072}]}"#;

/// The lines of vLLM's metrics that pickers read.
const METRICS: &str = "\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine=\"0\",model_name=\"mock\"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine=\"0\",model_name=\"mock\"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"mock\"} 0.25
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size=\"16\",cache_dtype=\"auto\",engine=\"0\",num_gpu_blocks=\"27000\"} 1.0
";

#[cfg(test)]
mod tests {
    use super::{CHAT_ANSWER, HeadKind, METRICS, MODELS, metrics_page, parse_head, wants_stream};

    #[test]
    fn the_answer_is_json_of_the_documented_size() {
        assert_eq!(CHAT_ANSWER.len(), 338);
        for text in [CHAT_ANSWER, MODELS] {
            assert!(serde_json::from_str::<serde_json::Value>(text).is_ok());
        }
    }

    #[test]
    fn a_metrics_page_is_as_long_as_asked_for_and_ends_with_what_counts() {
        assert_eq!(metrics_page(0), METRICS);
        let page = metrics_page(50_000);
        assert!((50_000..50_200).contains(&page.len()) && page.ends_with(METRICS));
    }

    #[test]
    fn the_shape_of_streams_is_read_from_the_query() {
        let head = b"PUT /mock/stream?events=50&gap_ms=0 HTTP/1.1\r\nhost: a\r\n\r\n";
        let parsed = parse_head(head).unwrap().unwrap();
        assert!(matches!(parsed.kind, HeadKind::Shape(50, 0)));
        assert_eq!(parsed.body_start, head.len());
        assert!(parse_head(&head[..20]).unwrap().is_none());
    }

    #[test]
    fn the_stream_flag_is_found_with_or_without_a_space() {
        assert!(wants_stream(br#"{"model":"mock","stream": true}"#));
        assert!(wants_stream(br#"{"stream":true}"#));
        assert!(!wants_stream(br#"{"stream":false,"n":true}"#));
    }
}
