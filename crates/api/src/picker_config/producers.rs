//! Producers and sources of data: what is remembered of prompts, what is known of caches, and what
//! is read of endpoints anyway.

use forebay_model::picker::{PrecisePrefix, Scorer};

use super::fields::Fields;
use super::parts::{Notes, Part};
use super::scorers::{SESSION_FIELDS, producer};

/// Parameters of the index that the scorer had before there was a producer.
pub(super) const OLD_PREFIX_FIELDS: &[&str] = &[
    "autoTune",
    "blockSize",
    "blockSizeTokens",
    "hashBlockSize",
    "maxPrefixBlocksToMatch",
    "maxPrefixTokensToMatch",
    "lruCapacityPerServer",
    "mode",
];

/// Tokens of the smallest block: less would cost memory for matches that save nothing.
const BLOCK_TOKENS_MIN: usize = 64;
/// Blocks of a prompt that can be looked at: a million tokens at the smallest block.
const BLOCKS_MAX: usize = 16_384;

/// What is remembered of prompts that were sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Approximate {
    pub(super) capacity_from_metrics: Option<bool>,
    pub(super) block_tokens: Option<usize>,
    pub(super) blocks_max: Option<usize>,
    pub(super) blocks_per_endpoint: Option<usize>,
    /// In the older form, the scorer that goes with it.
    pub(super) scorer: Option<Scorer>,
}

impl Approximate {
    pub(super) fn with(self, scorer: Scorer) -> Self {
        Self {
            scorer: Some(scorer),
            ..self
        }
    }
}

/// What is known of caches from their own events.
#[derive(Clone, Debug)]
pub(super) struct Precise {
    pub(super) settings: PrecisePrefix,
}

pub(super) fn approximate(f: &mut Fields<'_>, notes: &mut Notes) -> Approximate {
    let auto = f.truth("autoTune");
    let mut tokens = f.count("blockSizeTokens").filter(|n| *n > 0);
    // Bytes, in the oldest form.
    for name in ["blockSize", "hashBlockSize"] {
        if let Some(bytes) = f.count(name) {
            notes.push(format!(
                "{name} counts bytes; blockSizeTokens counts tokens"
            ));
            tokens = tokens.or_else(|| (bytes > 0).then_some(bytes.div_ceil(4)));
        }
    }
    if let Some(mode) = f.text("mode")
        && mode != "estimate"
    {
        let message = format!("{mode:?}: use precise-prefix-cache-producer");
        f.fault("mode", message);
    }
    let block_tokens = tokens.map_or(BLOCK_TOKENS_MIN, |n| n.max(BLOCK_TOKENS_MIN));
    if tokens.is_some_and(|n| n < BLOCK_TOKENS_MIN) {
        notes.push(format!(
            "blocks are {BLOCK_TOKENS_MIN} tokens long at least"
        ));
    }
    let by_tokens = f.count("maxPrefixTokensToMatch");
    let by_blocks = f.count("maxPrefixBlocksToMatch").filter(|n| *n > 0);
    let blocks = match by_tokens {
        Some(0) => Some(by_blocks.unwrap_or(BLOCKS_MAX)),
        Some(tokens) => Some((tokens / block_tokens).max(1)),
        None => by_blocks,
    };
    if blocks.is_some_and(|n| n > BLOCKS_MAX) {
        notes.push(format!("{BLOCKS_MAX} blocks of a prompt are looked at"));
    }
    Approximate {
        capacity_from_metrics: auto,
        block_tokens: Some(block_tokens),
        blocks_max: blocks.map(|n| n.min(BLOCKS_MAX)),
        blocks_per_endpoint: f.count("lruCapacityPerServer").filter(|n| *n > 0),
        scorer: None,
    }
}

pub(super) fn precise(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Precise> {
    let mut settings = PrecisePrefix::default();
    if f.text("sessionManager").is_some() {
        f.fault(
            "sessionManager",
            "sessions are not matched with blocks: leave it out",
        );
    }
    if let Some(mut tokens) = f.object("tokenProcessorConfig") {
        let _engines_say = (
            tokens.count("blockSize"),
            tokens.count("blockSizeTokens"),
            tokens.value("hashSeed"),
            tokens.value("hashAlgorithm"),
        );
        tokens.end();
    }
    if let Some(mut indexer) = f.object("indexerConfig") {
        if let Some(mut pool) = indexer.object("tokenizersPoolConfig") {
            settings.tokenizer = pool.text("modelName").map(|name| tokenizer(&name));
            for name in ["workersCount", "local", "hf", "uds", "huggingFaceToken"] {
                let _ours_is_in_process = pool.value(name);
            }
            pool.end();
        }
        for name in [
            "kvBlockIndexConfig",
            "kvBlockScorerConfig",
            "tokenProcessorConfig",
            "prefixStoreConfig",
            "kvCacheBackendConfigs",
            "speculativeIndexing",
        ] {
            if indexer.value(name).is_some() && name != "tokenProcessorConfig" {
                notes.push(format!(
                    "indexerConfig.{name}: the index and its bounds are ours"
                ));
            }
        }
        indexer.end();
    }
    if let Some(events) = f.object("kvEventsConfig") {
        kv_events(events, &mut settings, notes);
    }
    let speculative = f.truth("speculativeIndexing");
    if let Some(ttl) = f.duration("speculativeTTL") {
        settings.speculative_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    }
    if speculative == Some(false) {
        settings.speculative_ms = 0;
    }
    Some(Precise { settings })
}

fn kv_events(mut events: Fields<'_>, settings: &mut PrecisePrefix, notes: &mut Notes) {
    if let Some(topic) = events.text("topicFilter") {
        settings.topic = topic;
    }
    if events.truth("discoverPods") == Some(false) {
        let message = "every pod is asked for its events: leave it out";
        events.fault("discoverPods", message);
    }
    if let Some(mut pods) = events.object("podDiscoveryConfig") {
        if let Some(port) = pods.whole("socketPort", 1..=65_535) {
            settings.port = u16::try_from(port).unwrap_or(settings.port);
        }
        for name in ["podLabelSelector", "podNamespace"] {
            if pods.value(name).is_some() {
                notes.push(format!(
                    "podDiscoveryConfig.{name}: the pods are those of the pool"
                ));
            }
        }
        pods.end();
    }
    if events.text("zmqEndpoint").is_some() {
        notes.push("zmqEndpoint: pods are asked at their own addresses".to_owned());
    }
    for name in ["concurrency", "engineType", "tracing"] {
        let _found_out = events.value(name);
    }
    events.end();
}

/// The folder that a model's tokenizer is looked for in.
fn tokenizer(model: &str) -> String {
    let name = model.rsplit('/').next().unwrap_or(model);
    name.trim_start_matches('.').to_owned()
}

pub(super) fn tokens(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Part> {
    let model = f.text("modelName").filter(|name| !name.is_empty());
    if f.value("estimate").is_some() {
        notes.push("estimate: four bytes are a token; images count by their bytes".to_owned());
    }
    for name in ["vllm", "udsTokenizerConfig"] {
        if f.value(name).is_some() {
            notes.push(format!(
                "{name}: prompts are tokenised in process, if at all"
            ));
        }
    }
    Some(Part::Tokens(model.map(|name| tokenizer(&name))))
}

pub(super) fn predictor(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Part> {
    if f.skip() {
        let advice =
            "latency is predicted in process, without parameters: nothing of these is needed";
        notes.push(advice.to_owned());
    }
    Some(Part::BuiltIn(
        "latency is predicted from the requests that were served",
    ))
}

pub(super) fn inflight(f: &mut Fields<'_>) -> Option<Part> {
    producer(f, &["prefixMatchInfoProducerName"]);
    let _only_with_output = (
        f.number("outputRatio", 0.0..=1e6),
        f.count("maxEstimatedOutputTokens"),
    );
    if f.truth("addEstimatedOutputTokens") == Some(true) {
        let message = "only prompts count as work to come: write false";
        f.fault("addEstimatedOutputTokens", message);
    }
    Some(Part::BuiltIn(
        "requests and prompt tokens in flight are counted",
    ))
}

pub(super) fn session_id(f: &mut Fields<'_>) -> Option<Part> {
    let header = f.text("headerName");
    if f.text("cookieName").is_some() {
        f.fault("cookieName", "sessions are not read from cookies");
    }
    if let Some(header) = header
        && !SESSION_FIELDS.contains(&header.to_ascii_lowercase().as_str())
    {
        let known = SESSION_FIELDS.join(", ");
        f.fault(
            "headerName",
            format!("{header} is not read; use one of {known}"),
        );
    }
    Some(Part::BuiltIn(
        "sessions are read from the fields that name them",
    ))
}

pub(super) fn metrics_source(f: &mut Fields<'_>, notes: &mut Notes) -> Option<Part> {
    if f.text("scheme").is_some_and(|scheme| scheme != "http") {
        f.fault("scheme", "metrics are read over http");
    }
    if f.text("path").is_some_and(|path| path != "/metrics") {
        f.fault("path", "metrics are read at /metrics");
    }
    for name in ["caCertPath", "clientCertPath", "clientKeyPath"] {
        if f.text(name).is_some() {
            f.fault(name, "metrics are read over http");
        }
    }
    let _no_tls = f.truth("insecureSkipVerify");
    if f.duration("interval").is_some() {
        notes.push("interval: --scrape-interval says how often".to_owned());
    }
    let _what_is_needed = f.texts("families");
    Some(Part::BuiltIn("metrics of model servers are read"))
}

pub(super) fn metrics_extractor(f: &mut Fields<'_>) -> Option<Part> {
    const ENGINE_LABELS: [&str; 2] = [
        "llm-d.ai/engine-type",
        "inference.networking.k8s.io/engine-type",
    ];
    if let Some(label) = f.text("engineLabelKey")
        && label != ENGINE_LABELS[0]
    {
        let message = format!("{label:?}: engines are named by {}", ENGINE_LABELS[0]);
        f.fault("engineLabelKey", message);
    }
    let _detected = f.text("defaultEngine");
    if f.value("engineConfigs").is_some() {
        let message = "the metrics of vLLM, SGLang, TensorRT-LLM and Triton are known; other names \
                       cannot be given";
        f.fault("engineConfigs", message);
    }
    Some(Part::BuiltIn(
        "engines are told by their label or their metrics",
    ))
}

pub(super) fn topology(f: &mut Fields<'_>) -> Option<Part> {
    for (name, labels) in [
        ("hostname", &["kubernetes.io/hostname"][..]),
        ("host", &["kubernetes.io/hostname"]),
        ("rack", &["topology.kubernetes.io/rack"]),
        ("zone", &["topology.kubernetes.io/zone"]),
        ("region", &["topology.kubernetes.io/region"]),
    ] {
        if let Some(label) = f.text(name)
            && !labels.contains(&label.as_str())
        {
            let message = format!("{label:?} is not read; it is {}", labels.join(" or "));
            f.fault(name, message);
        }
    }
    Some(Part::BuiltIn("places are read from the labels of pods"))
}
