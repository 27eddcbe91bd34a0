//! Cost per event of watching a stream, and of restoring the model's name in it.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_dialect::{Api, ModelRestorer, ResponseObserver};
use forebay_model::Moment;

const EVENT: &str = r#"data: {"id":"chatcmpl-5f3c0a6e2b8d4f6c9e1a7d3b5c8f0a2e","object":"chat.completion.chunk","created":1795446778,"model":"org/model-8b","choices":[{"index":0,"delta":{"content":" soonest"},"logprobs":null,"finish_reason":null}]}

"#;

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Elements(1));
    group.bench_function("observe one event", |b| {
        let mut observer = ResponseObserver::new(Api::ChatCompletions, true);
        b.iter(|| observer.push(black_box(EVENT.as_bytes()), Moment::ORIGIN));
    });
    let chunk = Bytes::from_static(EVENT.as_bytes());
    for (what, served) in [("restore", "org/model-8b"), ("pass", "another")] {
        group.bench_function(format!("{what} the model of one event"), |b| {
            let mut restorer = ModelRestorer::new(served, "asked", true);
            let mut out = Vec::new();
            b.iter(|| {
                restorer.push(black_box(chunk.clone()), &mut out);
                out.clear();
            });
        });
    }
    group.finish();
    let numbers = "0.01234567,".repeat(100_000);
    let body =
        format!(r#"{{"data":[{{"embedding":[{numbers}0]}}],"usage":{{"prompt_tokens":3}}}}"#);
    let mut group = c.benchmark_group("document");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("observe embeddings", |b| {
        b.iter(|| {
            let mut observer = ResponseObserver::new(Api::Embeddings, false);
            observer.push(black_box(body.as_bytes()), Moment::ORIGIN);
            observer.finish(Moment::ORIGIN)
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
