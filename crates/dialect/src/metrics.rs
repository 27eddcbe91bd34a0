//! Reads a model server's `/metrics` page: one pass, only the families that picking needs.
//!
//! A page has some 50 KB and is scraped many times a second, so lines of other families are left at
//! their first bytes. Values that say nothing (NaN, infinities, negative gauges) count as not
//! reported. Nothing is kept between pages; [`Load`] is judged in `forebay-decide`.

use std::sync::Arc;

use forebay_model::load::LoraLoad;
use forebay_model::{Engine, Load};
use memchr::memchr_iter;

use crate::prometheus::{Labels, Sample, sample};

/// Adapters kept of each LoRA list; those after it are dropped.
pub const ADAPTERS_MAX: usize = 256;

/// What one page says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Scrape {
    /// The signals.
    pub load: Load,
    /// The engine as given, or as told from the page; `None` if no family of any engine was there.
    pub engine: Option<Engine>,
    /// Lines of families that matter which could not be read, and were passed over.
    pub lines_malformed: u32,
}

/// A family that matters, and what it means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Signal {
    Waiting,
    Running,
    /// Share of KV blocks in use.
    KvUsed,
    BlockTokens,
    Blocks,
    /// KV slots in tokens: blocks once the block size is known.
    KvTokens,
    /// Block size and number as labels.
    CacheConfig {
        block_tokens: &'static str,
        blocks: &'static str,
    },
    Lora,
    /// Triton: the meaning is in a label.
    TrtRequests,
    TrtBlocks,
}

/// Reads a page of `engine`, or of whichever engine's families come first.
#[must_use]
pub fn parse(engine: Option<Engine>, text: &[u8]) -> Scrape {
    let mut page = Page {
        engine,
        may_narrow: engine.is_none(),
        ..Page::default()
    };
    let mut start = 0;
    for end in memchr_iter(b'\n', text).chain([text.len()]) {
        // Comments and blank lines are the common case of what starts with none of our prefixes.
        if let Some(b'v' | b's' | b't' | b'n') = text.get(start) {
            page.line(&text[start..end]);
        }
        start = end + 1;
    }
    page.finish()
}

/// What has been read so far.
#[derive(Debug, Default)]
struct Page<'a> {
    engine: Option<Engine>,
    /// Whether the engine was told from the page, and a more telling family may still correct it.
    may_narrow: bool,
    waiting: Sum,
    running: Sum,
    kv_used: Sum,
    block_tokens: Option<u32>,
    blocks: Sum,
    kv_tokens: Sum,
    /// The newest LoRA series: its time and labels.
    lora: Option<(f64, Labels<'a>)>,
    lines_malformed: u32,
}

/// A sum over series, such as those of data-parallel ranks.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    total: f64,
    series: u32,
}

impl Sum {
    fn add(&mut self, value: f64) {
        if value.is_finite() && value >= 0.0 {
            self.total += value;
            self.series += 1;
        }
    }

    fn count(self) -> Option<u64> {
        // `as` saturates, which is what a count beyond all measure deserves.
        (self.series > 0).then_some(self.total.round() as u64)
    }

    fn mean(self) -> Option<f32> {
        (self.series > 0).then(|| (self.total / f64::from(self.series)) as f32)
    }
}

fn saturating_u32(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl<'a> Page<'a> {
    fn line(&mut self, line: &'a [u8]) {
        let Some((engine, signal, rest)) = family(line) else {
            return;
        };
        if !self.accept(engine) {
            return;
        }
        match sample(rest) {
            Some(sample) => self.take(signal, sample),
            None => self.lines_malformed = self.lines_malformed.saturating_add(1),
        }
    }

    /// Whether lines of `engine` count on this page.
    fn accept(&mut self, engine: Engine) -> bool {
        match (self.engine, engine) {
            (None, _) => self.engine = Some(engine),
            // Triton exports its general families beside those of the TensorRT-LLM backend.
            (Some(Engine::Triton), Engine::TritonTensorRtLlm) if self.may_narrow => {
                *self = Page {
                    engine: Some(engine),
                    may_narrow: true,
                    lines_malformed: self.lines_malformed,
                    ..Page::default()
                };
            }
            (Some(known), _) => return known == engine,
        }
        true
    }

    fn take(&mut self, signal: Signal, sample: Sample<'a>) {
        let Sample { labels, value } = sample;
        match signal {
            Signal::Waiting => self.waiting.add(value),
            Signal::Running => self.running.add(value),
            Signal::KvUsed => self.kv_used.add(value),
            Signal::BlockTokens => self.take_block_tokens(value),
            Signal::Blocks => self.blocks.add(value),
            Signal::KvTokens => self.kv_tokens.add(value),
            Signal::CacheConfig {
                block_tokens,
                blocks,
            } => {
                for (name, value) in labels {
                    // vLLM writes `None` for what it has not resolved.
                    let Ok(value) = value.text().parse::<f64>() else {
                        continue;
                    };
                    if name == block_tokens.as_bytes() {
                        self.take_block_tokens(value);
                    } else if name == blocks.as_bytes() {
                        self.blocks.add(value);
                    }
                }
            }
            Signal::Lora => {
                // Series of the past stay exported; the value is the time of the last change.
                let newest = self.lora.as_ref().is_none_or(|(time, _)| value >= *time);
                if newest && !value.is_nan() {
                    self.lora = Some((value, labels));
                }
            }
            Signal::TrtRequests => match label(labels, b"request_type").as_deref() {
                Some("waiting") => self.waiting.add(value),
                Some("scheduled") => self.running.add(value),
                _ => {}
            },
            Signal::TrtBlocks => match label(labels, b"kv_cache_block_type").as_deref() {
                Some("fraction") => self.kv_used.add(value),
                Some("tokens_per") => self.take_block_tokens(value),
                Some("max") => self.blocks.add(value),
                _ => {}
            },
        }
    }

    fn take_block_tokens(&mut self, value: f64) {
        if value >= 1.0 && value <= f64::from(u32::MAX) {
            self.block_tokens = Some(value as u32);
        }
    }

    fn finish(self) -> Scrape {
        let blocks_of_tokens = || {
            let tokens = self.kv_tokens.count()?;
            Some(tokens / u64::from(self.block_tokens?))
        };
        Scrape {
            load: Load {
                waiting: self.waiting.count().map(saturating_u32),
                running: self.running.count().map(saturating_u32),
                kv_used: self.kv_used.mean().map(|share| share.clamp(0.0, 1.0)),
                block_tokens: self.block_tokens,
                blocks: self.blocks.count().or_else(blocks_of_tokens),
                lora: self.lora.map(|(_, labels)| lora_load(labels)),
            },
            engine: self.engine,
            lines_malformed: self.lines_malformed,
        }
    }
}

fn label(mut labels: Labels<'_>, wanted: &[u8]) -> Option<String> {
    labels.find_map(|(name, value)| (name == wanted).then(|| value.text().into_owned()))
}

fn lora_load(labels: Labels<'_>) -> LoraLoad {
    let mut load = LoraLoad::default();
    for (name, value) in labels {
        let value = value.text();
        match name {
            b"max_lora" => load.max = value.parse().unwrap_or(0),
            b"running_lora_adapters" => load.running = adapters(&value),
            b"waiting_lora_adapters" => load.waiting = adapters(&value),
            _ => {}
        }
    }
    load
}

fn adapters(list: &str) -> Vec<Arc<str>> {
    let names = list.split(',').map(str::trim);
    names
        .filter(|name| !name.is_empty())
        .take(ADAPTERS_MAX)
        .map(Arc::from)
        .collect()
}

/// The family of a line if it matters, and what follows its name.
fn family(line: &[u8]) -> Option<(Engine, Signal, &[u8])> {
    if let Some(rest) = line.strip_prefix(b"vllm:") {
        return family_in(VLLM, rest).map(|(signal, rest)| (Engine::Vllm, signal, rest));
    }
    if let Some(rest) = line.strip_prefix(b"sglang:") {
        return family_in(SGLANG, rest).map(|(signal, rest)| (Engine::Sglang, signal, rest));
    }
    if let Some(rest) = line.strip_prefix(b"trtllm_") {
        return family_in(TRTLLM, rest).map(|(signal, rest)| (Engine::TensorRtLlm, signal, rest));
    }
    if let Some(rest) = line.strip_prefix(b"nv_trt_llm_") {
        return family_in(TRITON_TRTLLM, rest)
            .map(|(signal, rest)| (Engine::TritonTensorRtLlm, signal, rest));
    }
    let rest = line.strip_prefix(b"nv_inference_")?;
    family_in(TRITON, rest).map(|(signal, rest)| (Engine::Triton, signal, rest))
}

type Families = &'static [(&'static [u8], Signal)];

fn family_in(families: Families, name_and_rest: &[u8]) -> Option<(Signal, &[u8])> {
    let first = name_and_rest.first()?;
    families.iter().find_map(|(name, signal)| {
        // Most lines of a page are left here.
        if name[0] != *first {
            return None;
        }
        let rest = name_and_rest.strip_prefix(*name)?;
        // Otherwise it is a longer name, such as `num_requests_waiting_by_reason`.
        matches!(rest.first(), Some(b'{' | b' ' | b'\t')).then_some((*signal, rest))
    })
}

const VLLM: Families = &[
    (b"num_requests_waiting", Signal::Waiting),
    (b"num_requests_running", Signal::Running),
    (b"kv_cache_usage_perc", Signal::KvUsed),
    // The name before vLLM 0.10; no server exports both.
    (b"gpu_cache_usage_perc", Signal::KvUsed),
    (
        b"cache_config_info",
        Signal::CacheConfig {
            block_tokens: "block_size",
            blocks: "num_gpu_blocks",
        },
    ),
    (b"lora_requests_info", Signal::Lora),
];

const SGLANG: Families = &[
    (b"num_queue_reqs", Signal::Waiting),
    (b"num_running_reqs", Signal::Running),
    (b"token_usage", Signal::KvUsed),
    (
        b"cache_config_info",
        Signal::CacheConfig {
            block_tokens: "page_size",
            blocks: "num_pages",
        },
    ),
    (b"max_total_num_tokens", Signal::KvTokens),
];

const TRTLLM: Families = &[
    (b"num_requests_waiting", Signal::Waiting),
    (b"num_requests_running", Signal::Running),
    (b"kv_cache_utilization", Signal::KvUsed),
    (b"kv_cache_tokens_per_block", Signal::BlockTokens),
    (b"kv_cache_max_blocks", Signal::Blocks),
];

const TRITON_TRTLLM: Families = &[
    (b"request_metrics", Signal::TrtRequests),
    (b"kv_cache_block_metrics", Signal::TrtBlocks),
];

// `nv_inference_exec_count` counts executions since the start and says nothing of now.
const TRITON: Families = &[(b"pending_request_count", Signal::Waiting)];

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
