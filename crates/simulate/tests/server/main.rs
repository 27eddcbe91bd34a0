//! The simulated server over real sockets: what clients see of it.

mod wire;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use forebay_simulate::server::{self, Failures, SimConfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use wire::{Answer, get, metric, post, send};

/// A server that runs a thousand times as fast as its profile.
fn fast() -> SimConfig {
    SimConfig {
        models: vec!["tiny".to_owned()],
        time_scale: 0.001,
        adapters: vec!["ad1".to_owned()],
        max_loras: 2,
        max_model_len: Some(4096),
        ..SimConfig::default()
    }
}

/// Runs `test` against a server and shuts it down.
fn with_server<F: Future<Output = ()>>(config: SimConfig, test: impl FnOnce(SocketAddr) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = server::serve(config, listener, async {
            let _dropped = stopped.await;
        });
        let server = tokio::spawn(serve);
        tokio::time::timeout(Duration::from_secs(30), test(address))
            .await
            .expect("in time");
        drop(stop);
        server.await.expect("no panic").expect("served");
    });
}

fn chat(stream: bool) -> Value {
    json!({
        "model": "tiny", "max_tokens": 7, "stream": stream, "ignore_eos": true,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "why is the sky blue? ".repeat(40)}],
    })
}

#[test]
fn a_chat_answer_has_text_usage_and_a_label() {
    with_server(fast(), |address| async move {
        let first = post(address, "/v1/chat/completions", chat(false)).await;
        assert_eq!(first.status, 200);
        assert_eq!(first.headers["server"], "forebay-sim");
        let answer = first.json();
        assert_eq!(answer["system_fingerprint"], "simulated");
        assert_eq!(answer["model"], "tiny");
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["completion_tokens"], 7);
        assert_eq!(answer["usage"]["prompt_tokens"], 214);
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
        let text = answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("text")
            .to_owned();
        assert_eq!(text.len(), 28);
        let second = post(address, "/v1/chat/completions", chat(false))
            .await
            .json();
        assert_eq!(
            second["choices"][0]["message"]["content"],
            text.as_str(),
            "deterministic"
        );
        assert_eq!(
            second["usage"]["prompt_tokens_details"]["cached_tokens"],
            208
        );
    });
}

#[test]
fn a_chat_stream_starts_with_the_role_and_ends_with_usage_and_done() {
    with_server(fast(), |address| async move {
        let plain = post(address, "/v1/chat/completions", chat(false))
            .await
            .json();
        let stream = post(address, "/v1/chat/completions", chat(true)).await;
        assert_eq!(
            stream.headers["content-type"],
            "text/event-stream; charset=utf-8"
        );
        assert!(stream.body.ends_with("data: [DONE]\n\n"));
        let events = stream.events();
        assert_eq!(events.len(), 1 + 7 + 1);
        assert_eq!(
            events[0]["choices"][0]["delta"],
            json!({"role": "assistant", "content": ""})
        );
        let delta = |event: &Value| {
            event["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        };
        let text: String = events.iter().filter_map(delta).collect();
        assert_eq!(text, plain["choices"][0]["message"]["content"]);
        assert_eq!(events[6]["choices"][0]["finish_reason"], Value::Null);
        assert_eq!(events[7]["choices"][0]["finish_reason"], "length");
        assert_eq!(events[8]["choices"], json!([]));
        assert_eq!(events[8]["usage"]["total_tokens"], 221);
    });
}

#[test]
fn the_other_apis_speak_their_own_events() {
    with_server(fast(), |address| async move {
        let completion =
            json!({"model": "tiny", "prompt": "once", "max_tokens": 3, "stream": true});
        let events = post(address, "/v1/completions", completion).await.events();
        assert_eq!(events.len(), 3);
        assert_eq!(events[2]["object"], "text_completion");
        assert_eq!(events[2]["choices"][0]["finish_reason"], "length");

        let messages = json!({
            "model": "tiny", "max_tokens": 3, "stream": true,
            "system": [{"type": "text", "text": "be brief"}],
            "messages": [{"role": "user", "content": "hi"}],
        });
        let names = |events: &[Value]| -> Vec<String> {
            events
                .iter()
                .filter_map(|event| event["type"].as_str().map(str::to_owned))
                .collect()
        };
        let stream = post(address, "/v1/messages", messages).await;
        assert!(!stream.body.contains("[DONE]"));
        let delta = "content_block_delta";
        let expected = [
            "message_start",
            "content_block_start",
            delta,
            delta,
            delta,
            "content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(names(&stream.events()), expected);
        assert_eq!(stream.events()[6]["delta"]["stop_reason"], "max_tokens");

        let ask = json!({"model": "tiny", "input": "hi", "stream": true});
        let events = post(address, "/v1/responses", ask).await.events();
        assert_eq!(
            names(&events)[..2],
            ["response.created", "response.in_progress"]
        );
        assert_eq!(
            names(&events).last().map(String::as_str),
            Some("response.completed")
        );
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        let ask = json!({"model": "tiny", "input": "hi"});
        let answer = post(address, "/v1/responses", ask).await.json();
        assert_eq!(
            answer,
            events.last().expect("events")["response"]
                .clone()
                .into_same_id(&answer)
        );

        let generate = json!({"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 2}});
        let answer = post(address, "/inference/v1/generate", generate)
            .await
            .json();
        assert_eq!(
            answer["choices"][0]["token_ids"].as_array().map(Vec::len),
            Some(2)
        );
    });
}

/// Ids, times and cache hits differ from answer to answer.
trait SameId {
    fn into_same_id(self, other: &Value) -> Value;
}

impl SameId for Value {
    fn into_same_id(mut self, other: &Value) -> Value {
        for field in ["id", "created_at", "usage"] {
            self[field] = other[field].clone();
        }
        self["output"][0]["id"] = other["output"][0]["id"].clone();
        self
    }
}

#[test]
fn embeddings_ranks_scores_tokens_and_transcripts_have_their_shapes() {
    with_server(fast(), |address| async move {
        let ask = json!({"model": "tiny", "input": ["a", "b"], "dimensions": 8});
        let answer = post(address, "/v1/embeddings", ask).await.json();
        assert_eq!(
            answer["data"][1]["embedding"].as_array().map(Vec::len),
            Some(8)
        );
        let ask = json!({"model": "tiny", "input": "a", "encoding_format": "base64"});
        let answer = post(address, "/v1/embeddings", ask).await.json();
        assert_eq!(
            answer["data"][0]["embedding"].as_str().map(str::len),
            Some(1368)
        );
        let ask = json!({"model": "tiny", "query": "q", "documents": ["a", "b", "c"], "top_n": 2});
        let answer = post(address, "/rerank", ask).await.json();
        let results = answer["results"].as_array().expect("results");
        assert!(results.len() == 2);
        assert!(results[0]["relevance_score"].as_f64() >= results[1]["relevance_score"].as_f64());
        let ask = json!({"model": "tiny", "text_1": "q", "text_2": ["a", "b"]});
        let answer = post(address, "/score", ask).await.json();
        assert_eq!(answer["data"].as_array().map(Vec::len), Some(2));
        let tokens = post(address, "/tokenize", json!({"prompt": "hello world"}))
            .await
            .json();
        assert_eq!(tokens["count"], 4);
        let back = post(address, "/detokenize", json!({"tokens": tokens["tokens"]}))
            .await
            .json();
        assert_eq!(back["prompt"], "hello world");
        let count = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]});
        let answer = post(address, "/v1/messages/count_tokens", count)
            .await
            .json();
        assert_eq!(answer["input_tokens"], 5);
        let form = "--x\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n--x\r\n\
                    content-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n\
                    RIFF\r\n--x--\r\n";
        let head = "POST /v1/audio/transcriptions HTTP/1.1\r\n\
                    content-type: multipart/form-data; boundary=x";
        let answer = send(address, head, form.as_bytes()).await.json();
        assert_eq!(
            answer["text"].as_str().map(|text| text.split(' ').count()),
            Some(8)
        );
    });
}

#[test]
fn errors_are_worded_as_by_vllm() {
    with_server(fast(), |address| async move {
        for (body, status, kind, message) in [
            (
                json!({"model": "big", "messages": []}).to_string(),
                404,
                "NotFoundError",
                "The model `big` does not exist.",
            ),
            ("{\"model\"".to_owned(), 400, "Bad Request", "json_invalid"),
            (
                json!({"messages": [{"role": "user", "content": "x".repeat(20_000)}]}).to_string(),
                400,
                "BadRequestError",
                "This model's maximum context length is 4096 tokens. However, you requested 1 \
                 output tokens and your prompt contains 5004 input tokens",
            ),
            (
                json!({"messages": [], "n": 2}).to_string(),
                400,
                "BadRequestError",
                "one answer",
            ),
        ] {
            let head = "POST /v1/chat/completions HTTP/1.1";
            let answer = send(address, head, body.as_bytes()).await;
            assert_eq!(answer.status, status, "{}", answer.body);
            let error = &answer.json()["error"];
            assert_eq!(error["type"], kind);
            assert_eq!(error["code"], status);
            let said = error["message"].as_str().expect("a message");
            assert!(said.contains(message), "{said}");
        }
        assert_eq!(get(address, "/nowhere").await.status, 404);
    });
}

#[test]
fn adapters_come_and_go_and_have_caches_of_their_own() {
    with_server(fast(), |address| async move {
        let with = |model: &str| {
            let mut ask = chat(false);
            ask["model"] = model.into();
            ask
        };
        let path = "/v1/chat/completions";
        let cached = |answer: Answer| {
            answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].clone()
        };
        post(address, path, with("tiny")).await;
        assert_eq!(cached(post(address, path, with("ad1")).await), 0);
        assert_eq!(cached(post(address, path, with("ad1")).await), 208);
        assert_eq!(post(address, path, with("ad9")).await.status, 404);
        let load = json!({"lora_name": "ad9", "lora_path": "/adapters/ad9"});
        assert_eq!(
            post(address, "/v1/load_lora_adapter", load).await.status,
            200
        );
        assert_eq!(post(address, path, with("ad9")).await.status, 200);
        let models = get(address, "/v1/models").await.json();
        let ids: Vec<&Value> = models["data"]
            .as_array()
            .expect("models")
            .iter()
            .map(|model| &model["id"])
            .collect();
        assert_eq!(ids, ["tiny", "ad1", "ad9"]);
        assert_eq!(models["data"][1]["parent"], "tiny");
        let page = get(address, "/metrics").await.body;
        assert!(
            page.contains("vllm:lora_requests_info{max_lora=\"2\""),
            "{page}"
        );
        let unload = json!({"lora_name": "ad9"});
        assert_eq!(
            post(address, "/v1/unload_lora_adapter", unload)
                .await
                .status,
            200
        );
        assert_eq!(post(address, path, with("ad9")).await.status, 404);
    });
}

#[test]
fn the_metrics_page_counts_what_was_served() {
    with_server(fast(), |address| async move {
        for _ in 0..3 {
            post(address, "/v1/chat/completions", chat(true)).await;
        }
        let page = get(address, "/metrics").await;
        assert!(page.headers["content-type"].starts_with("text/plain"));
        for line in page.body.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            assert!(value.parse::<f64>().is_ok() && !series.is_empty(), "{line}");
        }
        let is = |name: &str, expected: f64| {
            let value = metric(&page.body, name);
            assert!((value - expected).abs() < 1e-9, "{name} is {value}");
        };
        is("vllm:request_success_total", 3.0);
        is("vllm:generation_tokens_total", 21.0);
        is("vllm:prompt_tokens_total", 642.0);
        is("vllm:prefix_cache_queries_total", 642.0);
        is("vllm:prefix_cache_hits_total", 416.0);
        is("vllm:time_to_first_token_seconds_count", 3.0);
        is("vllm:inter_token_latency_seconds_count", 18.0);
        is("vllm:num_requests_running", 0.0);
        is("vllm:kv_cache_usage_perc", 0.0);
        assert!(page.body.contains("block_size=\"16\"") && page.body.contains("num_gpu_blocks=\""));
    });
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    // In real time an answer of this length takes half a minute.
    with_server(
        SimConfig {
            time_scale: 1.0,
            ..fast()
        },
        |address| async move {
            for stream in [true, false] {
                let mut ask = chat(stream);
                ask["max_tokens"] = 2000.into();
                let body = ask.to_string();
                let mut client = TcpStream::connect(address)
                    .await
                    .expect("the server listens");
                let head = format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                client
                    .write_all((head + &body).as_bytes())
                    .await
                    .expect("written");
                until(address, "vllm:num_requests_running", 1.0).await;
                drop(client);
                until(address, "vllm:num_requests_running", 0.0).await;
            }
            until(address, "vllm:kv_cache_usage_perc", 0.0).await;
            let page = get(address, "/metrics").await.body;
            assert!(page.contains("finished_reason=\"abort\"} 2.0"), "{page}");
        },
    );
}

/// Asks for the metrics until one has a value; the test's time limit ends a vain wait.
async fn until(address: SocketAddr, name: &str, value: f64) {
    while (metric(&get(address, "/metrics").await.body, name) - value).abs() > 1e-9 {
        tokio::task::yield_now().await;
    }
}

#[test]
fn requests_that_had_to_queue_get_their_tokens_too() {
    with_server(
        SimConfig {
            max_num_seqs: 1,
            ..fast()
        },
        |address| async move {
            let asks = (0..6).map(|number| {
                let path = "/v1/chat/completions";
                tokio::spawn(async move { post(address, path, chat(number % 2 == 0)).await })
            });
            for answer in asks.collect::<Vec<_>>() {
                let answer = answer.await.expect("no panic");
                assert_eq!(answer.status, 200);
                assert!(
                    answer.body.contains("\"completion_tokens\":7"),
                    "{}",
                    answer.body
                );
            }
        },
    );
}

#[test]
fn one_request_too_many_gets_503_and_is_counted() {
    let config = SimConfig {
        time_scale: 1.0,
        max_num_queued_reqs: 1,
        ..fast()
    };
    with_server(config, |address| async move {
        let mut ask = chat(true);
        ask["max_tokens"] = 2000.into();
        let busy = tokio::spawn(post(address, "/v1/chat/completions", ask));
        until(address, "vllm:num_requests_running", 1.0).await;
        let answer = post(address, "/v1/chat/completions", chat(false)).await;
        assert_eq!(answer.status, 503);
        assert!(
            answer.body.contains("max_num_queued_reqs"),
            "{}",
            answer.body
        );
        until(address, "vllm:admission_rejections_total", 1.0).await;
        busy.abort();
        until(address, "vllm:num_requests_running", 0.0).await;
    });
}

#[test]
fn injected_failures_happen_and_can_be_changed() {
    let failures = Failures {
        error_rate: 1.0,
        error_status: 502,
        ..Failures::default()
    };
    with_server(SimConfig { failures, ..fast() }, |address| async move {
        let path = "/v1/chat/completions";
        assert_eq!(post(address, path, chat(false)).await.status, 502);
        let broken = json!({"break_rate": 1.0, "break_after_tokens": 2, "unhealthy": true});
        assert_eq!(post(address, "/sim/failures", broken).await.status, 200);
        let answer = post(address, path, chat(true)).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.body.contains("[DONE]"), "{}", answer.body);
        assert_eq!(get(address, "/health").await.status, 503);
        assert_eq!(post(address, "/sim/failures", json!({})).await.status, 200);
        assert_eq!(get(address, "/health").await.status, 200);
        assert!(
            post(address, path, chat(true))
                .await
                .body
                .ends_with("[DONE]\n\n")
        );
    });
}

#[test]
fn tokens_come_as_fast_as_the_profile_says() {
    // 99 gaps of 11.9 ms each, ten times as fast: a timer that rounds each step up to a millisecond
    // would lose half as much again. Stalls of this machine are not the simulator's.
    with_server(
        SimConfig {
            time_scale: 0.1,
            ..fast()
        },
        |address| async move {
            let mut ask = chat(true);
            ask["max_tokens"] = 100.into();
            post(address, "/v1/chat/completions", ask).await;
            let page = get(address, "/metrics").await.body;
            let gaps_s = metric(&page, "vllm:inter_token_latency_seconds_sum");
            let stalled_s = metric(&page, "forebay_sim_skipped_seconds_total");
            assert!(
                (1.1..1.3).contains(&(gaps_s - stalled_s)),
                "{gaps_s} s, {stalled_s} s stalled"
            );
        },
    );
}
