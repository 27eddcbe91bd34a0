//! Cost of scanning a request body with the model in the worst place, last.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_dialect::Api;
use forebay_dialect::scan::scan;

/// A chat of about `bytes` bytes, its text with the line breaks and quotes that prompts have.
fn chat(bytes: usize) -> String {
    let mut body = String::from(r#"{"messages":[{"role":"system","content":"You are terse."}"#);
    let mut turn = 0;
    while body.len() + 100 < bytes {
        let role = if turn % 2 == 0 { "user" } else { "assistant" };
        let text = r#"The gateway sends each request to the server that answers it soonest.\n"#;
        let text = text.repeat(8);
        let _ = write!(
            body,
            r#",{{"role":"{role}","content":"{turn} says \"go\": {text}"}}"#
        );
        turn += 1;
    }
    body + r#"],"temperature":0.7,"max_tokens":256,"stream":true,"model":"org/model-8b"}"#
}

fn bench(c: &mut Criterion) {
    let mut group = c.benchmark_group("scan");
    for bytes in [2 << 10, 200 << 10] {
        let body = chat(bytes);
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("chat {} bytes", body.len()), |b| {
            b.iter(|| scan(Api::ChatCompletions, black_box(body.as_bytes())));
        });
        // For the ratio: what parsing it whole would cost.
        group.bench_function(format!("serde_json value, {} bytes", body.len()), |b| {
            b.iter(|| serde_json::from_str::<serde_json::Value>(black_box(&body)));
        });
    }
    let ids: Vec<String> = (0..8000)
        .map(|n| (n * 7919 % 128_000).to_string())
        .collect();
    let body = format!(r#"{{"token_ids":[{}],"model":"m"}}"#, ids.join(","));
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("8000 token ids", |b| {
        b.iter(|| scan(Api::VllmGenerate, black_box(body.as_bytes())));
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
