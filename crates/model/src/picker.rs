//! How a pool chooses among its endpoints.
//!
//! The defaults are what `docs/picking.md` explains and the simulator supports.

use serde::{Deserialize, Serialize};

use crate::policy::{
    Bands, GradualShedding, LatencyScoring, Profile, ProfileBy, Saturation, Signal, SloAdmission,
};

/// Filters, scorers and picker of one pool, with their parameters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PickerConfig {
    /// Scorers with their weights; a scorer that is absent does not count.
    pub scorers: Vec<WeightedScorer>,
    /// How the winner is drawn from the scores.
    pub picker: PickerKind,
    /// Endpoints in the ordered answer: the winner and the fallbacks.
    pub endpoints_max: usize,
    /// Bytes of prompt per prefix block (about four bytes a token). Blocks further on in a prompt
    /// are longer; where blocks are counted, each counts as the number of these that it is long.
    pub prefix_block_bytes: usize,
    /// Prompt blocks that are looked at; longer prompts match on their beginning.
    pub prefix_blocks_max: usize,
    /// Bytes that the pool's prefix index may take in total.
    pub prefix_index_bytes_max: usize,
    /// Blocks assumed per endpoint until its own metrics tell.
    pub prefix_blocks_per_endpoint: usize,
    /// After this long without a scrape an endpoint's metrics count as unknown, in milliseconds.
    pub load_stale_after_ms: u64,
    /// Keep to endpoints that hold at least this share of the prompt (1 turns the filter off)...
    pub sticky_share: f32,
    /// ...until their prefill backlog is this much longer than the best other's, in milliseconds.
    pub sticky_backlog_max_ms: u64,
    /// Requests with negative priority are shed from this mean saturation on.
    pub shed_at_saturation: f32,
    /// Requests of other priorities wait in the gateway from this mean saturation on; `None` sends
    /// them whatever the load.
    pub queue_at_saturation: Option<f32>,
    /// Requests that may wait; at the bound a request takes the place of one of lower priority, or
    /// is refused.
    pub queue_requests_max: usize,
    /// Bytes of request bodies that may wait; the same at the bound.
    pub queue_bytes_max: usize,
    /// How long a request may wait, in milliseconds; then it is refused.
    pub queue_timeout_ms: u64,
    /// Queue length at which an endpoint counts as saturated.
    pub saturation_queue: u32,
    /// KV use at which an endpoint counts as saturated.
    pub saturation_kv: f32,
    /// Named ways to choose; with any, the scorers, the picker, `endpoints_max` and the sticky filter
    /// above count for nothing.
    pub profiles: Vec<Profile>,
    /// Which of several profiles a request gets.
    pub profile_by: ProfileBy,
    /// Whether endpoints' own metrics say how many prefix blocks they have room for.
    pub prefix_capacity_from_metrics: bool,
    /// How it is judged how full the pool is.
    pub saturation: Saturation,
    /// Limits of single priorities, within those of the whole queue; `None` gives all the same.
    pub bands: Option<Bands>,
    /// Whether requests of negative priority are shed rather than wait.
    pub shed_negative: bool,
    /// Shed some of the requests of negative priority before the pool is full.
    pub shed_gradually: Option<GradualShedding>,
    /// Which requests are refused if no endpoint is predicted to keep the SLO that they name.
    pub slo_admission: SloAdmission,
    /// Follow what endpoints say of their caches; `None` goes by what was sent to them.
    pub precise_prefix: Option<PrecisePrefix>,
}

/// Knowledge of caches from the engines' own events (`docs/prefix-cache.md`).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PrecisePrefix {
    /// Port of each pod that its events come from; the label `forebay.dev/kv-events-port` of a pod
    /// has the last word. Data-parallel ranks of a pod have the ports that follow.
    pub port: u16,
    /// Port of each pod that missed events can be had from, 0 if there is none; the label
    /// `forebay.dev/kv-replay-port` has the last word.
    pub replay_port: u16,
    /// Only events whose topic begins so; empty takes all.
    pub topic: String,
    /// The tokenizer of the pool's model: a folder within the one that the program was given, or
    /// `simulated` for simulated servers. Without one prompts are compared byte by byte.
    pub tokenizer: Option<String>,
    /// Prompts with longer bodies are not tokenised, in bytes; they are compared byte by byte.
    pub tokenized_bytes_max: usize,
    /// Blocks of a prompt that are looked up; longer prompts match on their beginning.
    pub blocks_max: usize,
    /// Bytes that the pool's index of events may take in total. Blocks beyond are not recorded, and
    /// their endpoints go by what was sent to them too.
    pub index_bytes_max: usize,
    /// What a block in the host's memory is worth, of one in the accelerator's (1).
    pub host_weight: f32,
    /// What a block on disk or further away is worth.
    pub disk_weight: f32,
    /// How long a prompt counts as cached where it was sent before the endpoint says so, in
    /// milliseconds.
    pub speculative_ms: u64,
}

impl Default for PrecisePrefix {
    fn default() -> Self {
        Self {
            port: 5557,
            replay_port: 5558,
            topic: String::new(),
            tokenizer: None,
            tokenized_bytes_max: 256 << 10,
            blocks_max: 8_192,
            index_bytes_max: 100 << 20,
            host_weight: 0.8,
            disk_weight: 0.5,
            speculative_ms: 2_000,
        }
    }
}

/// A scorer and what it counts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct WeightedScorer {
    /// Which scorer.
    pub scorer: Scorer,
    /// Its weight in the sum; zero or more.
    pub weight: f32,
}

/// What an endpoint is judged by. Every scorer answers 0 (worst) to 1 (best).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Scorer {
    /// Short queues first, relative to the other candidates.
    Queue,
    /// Free KV cache first.
    KvCache,
    /// Few running requests first, relative to the other candidates.
    Running,
    /// Few tokens in flight first.
    InflightTokens,
    /// Few requests in flight from here first (least request).
    InflightRequests,
    /// Adapter loaded, or a slot free for it.
    Lora,
    /// Longest part of the prompt in cache.
    Prefix,
    /// Where the session was before.
    Session,
    /// Shortest prefill backlog, in time, at the endpoint's own measured speed.
    TokenLoad,
    /// Short predicted latency first, or room to the request's SLO; all alike where nothing is
    /// predicted yet.
    Latency(LatencyScoring),
    /// Little delay first that the request is predicted to have and to cause others; all alike
    /// where nothing is predicted yet.
    AddedDelay,
    /// Short queues first: between the longest (0) and the shortest (1) among the candidates,
    /// however little they differ.
    QueueSpan,
    /// Few running requests first, in the same way.
    RunningSpan,
    /// Short queues first, in absolute terms: half of the share of `queue_max` that is free.
    QueueShare {
        /// Requests waiting that are as bad as it gets.
        queue_max: f32,
    },
    /// Longest part of the prompt in cache: `weight` for its length, the rest for its share.
    PrefixLength {
        /// What the length counts, 0 to 1.
        weight: f32,
        /// Tokens in cache that are worth everything, squared.
        tokens_max: f32,
    },
    /// For a prompt that nobody has in cache: who has not had such a one for longest.
    ColdSpread,
    /// Few prompt tokens to be computed first, this prompt's included.
    PrefillShare {
        /// Tokens that are as bad as it gets.
        tokens_max: f32,
    },
    /// Few requests in flight from here first, against the most that any candidate has.
    ActiveRequests {
        /// So many are as good as none.
        idle_max: u32,
        /// The score of an endpoint that has more than that, with next to nothing to do.
        busy_score_max: f32,
    },
    /// Pods whose range of prompt lengths fits the prompt closely.
    ContextLength {
        /// The label with the range, as in `0-8192`, in tokens.
        label: String,
    },
    /// Close to the endpoint that does the request's other part; 0 for all if there is none.
    Near,
    /// Pods whose label has the value of a field of the request.
    HeaderLabel {
        /// The field, in lower case.
        header: String,
        /// The label.
        label: String,
    },
    /// By one signal, on a line between two values; 0 where it is unknown.
    Signal {
        /// Which.
        signal: Signal,
        /// Whether the lowest is best.
        lowest: bool,
        /// The two values; without them the lowest and the highest among the candidates.
        #[serde(default)]
        range: Option<(f32, f32)>,
    },
}

/// How the winner is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PickerKind {
    /// Highest score; ties are broken at random.
    MaxScore,
    /// At random, in proportion to the scores.
    WeightedRandom,
    /// The best of this many drawn at random.
    PowerOf(u8),
    /// In turn, whatever the scores: the baseline of the demo.
    RoundRobin,
    /// Uniformly at random, whatever the scores.
    Random,
}

impl Default for PickerConfig {
    fn default() -> Self {
        let weighted = |scorer, weight| WeightedScorer { scorer, weight };
        Self {
            scorers: vec![
                weighted(Scorer::AddedDelay, 2.0),
                weighted(Scorer::Prefix, 1.0),
                weighted(Scorer::Queue, 0.5),
                weighted(Scorer::Lora, 1.5),
                weighted(Scorer::Session, 0.5),
            ],
            picker: PickerKind::MaxScore,
            endpoints_max: 3,
            prefix_block_bytes: 256,
            prefix_blocks_max: 2048,
            prefix_index_bytes_max: 64 << 20,
            prefix_blocks_per_endpoint: 31_250,
            load_stale_after_ms: 2_000,
            sticky_share: 0.8,
            sticky_backlog_max_ms: 4_000,
            shed_at_saturation: 1.0,
            queue_at_saturation: Some(1.0),
            queue_requests_max: 5_000,
            queue_bytes_max: 256 << 20,
            queue_timeout_ms: 60_000,
            saturation_queue: 5,
            saturation_kv: 0.8,
            profiles: Vec::new(),
            profile_by: ProfileBy::First,
            prefix_capacity_from_metrics: true,
            saturation: Saturation::Reported,
            bands: None,
            shed_negative: true,
            shed_gradually: None,
            slo_admission: SloAdmission::Sheddable,
            precise_prefix: None,
        }
    }
}

impl PickerConfig {
    /// Everything that scores in some profile.
    pub fn all_scorers(&self) -> impl Iterator<Item = &WeightedScorer> {
        let plain = self.profiles.is_empty().then_some(&self.scorers);
        let named = self.profiles.iter().map(|profile| &profile.scorers);
        plain.into_iter().chain(named).flatten()
    }

    /// Takes turns, whatever the load, and queues nothing: the baseline of comparisons.
    #[must_use]
    pub fn round_robin() -> Self {
        Self {
            scorers: Vec::new(),
            picker: PickerKind::RoundRobin,
            sticky_share: 1.0,
            queue_at_saturation: None,
            ..Self::default()
        }
    }

    /// Fewest requests in flight, and no queue: what a good plain load balancer does.
    #[must_use]
    pub fn least_request() -> Self {
        Self {
            scorers: vec![WeightedScorer {
                scorer: Scorer::InflightRequests,
                weight: 1.0,
            }],
            picker: PickerKind::MaxScore,
            sticky_share: 1.0,
            queue_at_saturation: None,
            ..Self::default()
        }
    }
}
