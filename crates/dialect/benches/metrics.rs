//! Cost of reading a metrics page of the size that vLLM serves.

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use forebay_dialect::metrics::parse;

/// The recorded excerpt, followed by histograms up to the size of a whole page.
fn page() -> String {
    let mut page = String::from(include_str!("../tests/data/vllm-0.32.0-metrics.txt"));
    let mut bucket = 0;
    while page.len() < 53 << 10 {
        let _ = writeln!(
            page,
            "vllm:request_time_per_output_token_seconds_bucket{{engine=\"0\",le=\"{bucket}.0\",model_name=\"tiny\"}} 3.0"
        );
        bucket += 1;
    }
    page
}

fn bench(c: &mut Criterion) {
    let page = page();
    let mut group = c.benchmark_group("metrics");
    group.throughput(Throughput::Bytes(page.len() as u64));
    group.bench_function("vLLM page", |b| {
        b.iter(|| parse(None, black_box(page.as_bytes())))
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
