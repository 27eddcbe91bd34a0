//! What `/metrics` counts, under the names of vLLM 0.32.
//!
//! Families that make no sense for a simulator (Python's, FLOPs, external caches) are left out; the
//! label sets are fixed by the configuration, so the page is bounded.

use std::fmt::Write as _;
use std::time::Duration;

use crate::engine::{BLOCK_TOKENS, EngineLoad, Settings, Totals};

const LATENCY_S: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];
const FIRST_TOKEN_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const TOKEN_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
];
const STEP_TOKENS: &[f64] = &[
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0,
];
const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0,
];

/// A Prometheus histogram.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    name: &'static str,
    bounds: &'static [f64],
    /// Observations per bucket, the last for those above all bounds.
    buckets: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(name: &'static str, bounds: &'static [f64]) -> Self {
        Self {
            name,
            bounds,
            buckets: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    pub(super) fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket] += 1;
        self.sum += value;
    }

    pub(super) fn observe_time(&mut self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    fn render(&self, page: &mut String, labels: &str) {
        let name = self.name;
        line(page, format_args!("# TYPE vllm:{name} histogram"));
        let mut count = 0;
        for (bucket, observed) in self.buckets.iter().enumerate() {
            count += observed;
            let bound = self
                .bounds
                .get(bucket)
                .map_or_else(|| "+Inf".to_owned(), |b| format!("{b:?}"));
            line(
                page,
                format_args!("vllm:{name}_bucket{{{labels},le=\"{bound}\"}} {count}.0"),
            );
        }
        line(
            page,
            format_args!("vllm:{name}_count{{{labels}}} {count}.0"),
        );
        line(
            page,
            format_args!("vllm:{name}_sum{{{labels}}} {}", self.sum),
        );
    }
}

/// Everything that is not the engine's own count.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) first_token: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) per_output_token: Histogram,
    pub(super) end_to_end: Histogram,
    pub(super) queue: Histogram,
    pub(super) prefill: Histogram,
    pub(super) decode: Histogram,
    pub(super) inference: Histogram,
    pub(super) step_tokens: Histogram,
    pub(super) prompt_tokens: Histogram,
    pub(super) generation_tokens: Histogram,
    /// Requests by how they ended.
    pub(super) stopped: u64,
    pub(super) ran_to_length: u64,
    pub(super) aborted: u64,
    /// Requests refused because too many were in flight.
    pub(super) rejected: u64,
    /// Simulated time given up because the host was too slow, in microseconds.
    pub(super) skipped_us: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            first_token: Histogram::new("time_to_first_token_seconds", FIRST_TOKEN_S),
            inter_token: Histogram::new("inter_token_latency_seconds", TOKEN_S),
            per_output_token: Histogram::new("request_time_per_output_token_seconds", TOKEN_S),
            end_to_end: Histogram::new("e2e_request_latency_seconds", LATENCY_S),
            queue: Histogram::new("request_queue_time_seconds", LATENCY_S),
            prefill: Histogram::new("request_prefill_time_seconds", LATENCY_S),
            decode: Histogram::new("request_decode_time_seconds", LATENCY_S),
            inference: Histogram::new("request_inference_time_seconds", LATENCY_S),
            step_tokens: Histogram::new("iteration_tokens_total", STEP_TOKENS),
            prompt_tokens: Histogram::new("request_prompt_tokens", REQUEST_TOKENS),
            generation_tokens: Histogram::new("request_generation_tokens", REQUEST_TOKENS),
            stopped: 0,
            ran_to_length: 0,
            aborted: 0,
            rejected: 0,
            skipped_us: 0,
        }
    }
}

/// What the page shows of the server around the engine.
#[derive(Clone, Debug)]
pub(super) struct Page<'a> {
    pub(super) model: &'a str,
    pub(super) settings: &'a Settings,
    pub(super) load: &'a EngineLoad,
    pub(super) totals: Totals,
    /// Names of adapters in the batch and in the queue, joined by commas.
    pub(super) running_adapters: &'a str,
    pub(super) waiting_adapters: &'a str,
    /// Seconds since 1970.
    pub(super) unix_s: f64,
}

impl Metrics {
    /// The page in Prometheus text form.
    pub(super) fn render(&self, page: &Page<'_>) -> String {
        let mut out = String::with_capacity(24 << 10);
        let model = escape(page.model);
        let labels = format!("engine=\"0\",model_name=\"{model}\"");
        self.render_gauges(&mut out, page, &labels);
        self.render_counters(&mut out, page, &labels, &model);
        for histogram in [
            &self.prompt_tokens,
            &self.generation_tokens,
            &self.step_tokens,
            &self.first_token,
            &self.inter_token,
            &self.per_output_token,
            &self.end_to_end,
            &self.queue,
            &self.inference,
            &self.prefill,
            &self.decode,
        ] {
            histogram.render(&mut out, &labels);
        }
        out
    }

    fn render_gauges(&self, out: &mut String, page: &Page<'_>, labels: &str) {
        let load = page.load;
        gauge(out, "num_requests_running", labels, f64::from(load.running));
        gauge(out, "num_requests_waiting", labels, f64::from(load.waiting));
        line(
            out,
            format_args!("# TYPE vllm:num_requests_waiting_by_reason gauge"),
        );
        let capacity = load.waiting - load.waiting_deferred;
        for (reason, count) in [("capacity", capacity), ("deferred", load.waiting_deferred)] {
            let name = "vllm:num_requests_waiting_by_reason";
            line(
                out,
                format_args!("{name}{{{labels},reason=\"{reason}\"}} {count}.0"),
            );
        }
        gauge(out, "kv_cache_usage_perc", labels, load.kv_used);
        let Settings {
            kv_blocks,
            max_model_len,
            max_loras,
            prefix_caching,
            ..
        } = *page.settings;
        let tokens = u64::from(kv_blocks) * u64::from(BLOCK_TOKENS);
        let concurrency = tokens as f64 / f64::from(max_model_len.max(1));
        let caching = if prefix_caching { "True" } else { "False" };
        line(out, format_args!("# TYPE vllm:cache_config_info gauge"));
        line(
            out,
            format_args!(
                "vllm:cache_config_info{{block_size=\"{BLOCK_TOKENS}\",enable_prefix_caching=\"\
                 {caching}\",engine=\"0\",kv_cache_max_concurrency=\"{concurrency:?}\",\
                 kv_cache_size_tokens=\"{tokens}\",num_gpu_blocks=\"{kv_blocks}\"}} 1.0"
            ),
        );
        if max_loras > 0 {
            let (running, waiting) = (escape(page.running_adapters), escape(page.waiting_adapters));
            line(out, format_args!("# TYPE vllm:lora_requests_info gauge"));
            line(
                out,
                format_args!(
                    "vllm:lora_requests_info{{max_lora=\"{max_loras}\",running_lora_adapters=\"\
                     {running}\",waiting_lora_adapters=\"{waiting}\"}} {}",
                    page.unix_s
                ),
            );
        }
    }

    fn render_counters(&self, out: &mut String, page: &Page<'_>, labels: &str, model: &str) {
        let totals = page.totals;
        for (name, value) in [
            ("prefix_cache_queries", totals.prefix_queries),
            ("prefix_cache_hits", totals.prefix_hits),
            ("num_preemptions", totals.preemptions),
            ("prompt_tokens", totals.prompt_tokens),
            ("prompt_tokens_cached", totals.prefix_hits),
            ("generation_tokens", totals.generation_tokens),
        ] {
            line(out, format_args!("# TYPE vllm:{name}_total counter"));
            line(out, format_args!("vllm:{name}_total{{{labels}}} {value}.0"));
        }
        line(
            out,
            format_args!("# TYPE vllm:request_success_total counter"),
        );
        for (reason, count) in [
            ("stop", self.stopped),
            ("length", self.ran_to_length),
            ("abort", self.aborted),
            ("error", 0),
        ] {
            let name = "vllm:request_success_total";
            line(
                out,
                format_args!("{name}{{{labels},finished_reason=\"{reason}\"}} {count}.0"),
            );
        }
        line(
            out,
            format_args!("# TYPE vllm:admission_rejections_total counter"),
        );
        line(
            out,
            format_args!(
                "vllm:admission_rejections_total{{model_name=\"{model}\",reason=\"\
                 max_num_queued_reqs\"}} {}.0",
                self.rejected
            ),
        );
        line(
            out,
            format_args!("# TYPE forebay_sim_skipped_seconds_total counter"),
        );
        let skipped_s = self.skipped_us as f64 / 1e6;
        line(
            out,
            format_args!("forebay_sim_skipped_seconds_total {skipped_s:?}"),
        );
    }
}

fn gauge(out: &mut String, name: &str, labels: &str, value: f64) {
    line(out, format_args!("# TYPE vllm:{name} gauge"));
    line(out, format_args!("vllm:{name}{{{labels}}} {value:?}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string");
}

/// A label's value: quotes, backslashes and line ends would break the page.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
