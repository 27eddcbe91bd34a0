//! What the tokens of a 2 KB prompt cost: a text that was never seen, and one that was.
//!
//! Needs a model's tokenizer, from the folder that `FOREBAY_BENCH_TOKENIZER` names.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use forebay_tokenize::{Api, Files, Tokenizer};

const WORDS: [&str; 16] = [
    "the", "gateway", "sends", "each", "request", "to", "a", "server", "that", "holds", "prompt",
    "cache", "because", "latency", "matters", "and",
];

/// Some 2 KB of text with words that no other number has.
fn prompt(number: u64) -> String {
    let mut text = String::new();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while text.len() < 2_000 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        text.push_str(WORDS[(state >> 60) as usize]);
        if state >> 56 & 0xf == 0 {
            text.push_str(&format!(" x{:x}", state >> 40 & 0xffff));
        }
        text.push(' ');
    }
    text
}

fn chat(number: u64) -> Vec<u8> {
    let text = prompt(number);
    format!(
        r#"{{"model":"m","messages":[{{"role":"system","content":"Be brief."}},{{"role":"user","content":"{text}"}}]}}"#
    )
    .into_bytes()
}

fn completion(number: u64) -> Vec<u8> {
    format!(r#"{{"model":"m","prompt":"{}"}}"#, prompt(number)).into_bytes()
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads its input")]
fn tokens(c: &mut Criterion) {
    let Some(folder) = std::env::var_os("FOREBAY_BENCH_TOKENIZER") else {
        println!("tokens: skipped, FOREBAY_BENCH_TOKENIZER names no folder");
        return;
    };
    let file = |name: &str| std::fs::read(std::path::Path::new(&folder).join(name)).ok();
    let tokenizer = file("tokenizer.json").expect("tokenizer.json");
    let config = file("tokenizer_config.json");
    let files = Files {
        tokenizer: &tokenizer,
        config: config.as_deref(),
        template: None,
    };
    let tokenizer = Tokenizer::of_files(files).expect("a tokenizer");
    let mut number = 0;
    for (name, api, body) in [
        (
            "completion",
            Api::Completions,
            completion as fn(u64) -> Vec<u8>,
        ),
        ("chat", Api::Chat, chat),
    ] {
        if let Err(why) = tokenizer.tokens(api, &body(0), 0) {
            println!("{name}: skipped, {why}");
            continue;
        }
        let mut group = c.benchmark_group(format!("two_kib_{name}"));
        group.bench_function("first_seen", |b| {
            b.iter_batched(
                || {
                    number += 1;
                    body(number)
                },
                |body| black_box(tokenizer.tokens(api, &body, 0)),
                BatchSize::SmallInput,
            );
        });
        let known = body(7);
        group.bench_function("seen", |b| {
            b.iter(|| black_box(tokenizer.tokens(api, &known, 0)))
        });
        group.finish();
    }
}

criterion_group!(benches, tokens);
criterion_main!(benches);
