//! Predicted latency: what a request would wait for its first token and between the further ones, at
//! each endpoint, learned from the requests that were served.
//!
//! Two small regressions per endpoint (`regress`), over what a pick knows (`Situation`): the prompts
//! ahead and this one's uncached part, the batch, the KV cache, prefill going on. Coefficients are
//! never negative, so more work ahead is never predicted to be faster. They belong to the endpoint,
//! so pools of mixed hardware need no label; one more pair per pool learns from all and is where a new
//! endpoint starts from. What errors are usual is tracked as a quantile of the ratio between what came and
//! what was predicted (`track`), which makes a median into a bound that 90 % keep.
//!
//! *Cold start:* nothing is predicted until the pool has seen `OBSERVATIONS_MIN` answers of each
//! kind; whoever asks says what it does until then. *Drift:* old observations fade
//! (`regress::KEEP`), and errors that all lean to one side for a while open the regression again, so
//! that it learns anew within a few answers. *Hostile numbers:* every input is made finite and
//! bounded, one answer moves a coefficient by a bounded step.
//! Bound: 2 KiB per endpoint that answered, nothing for a pool that was not used.

mod features;
mod regress;
#[cfg(test)]
mod tests;
mod track;

pub(crate) use features::Situation;

use features::{Tpot, Ttft};
use regress::{Prior, Regression};
use serde::Serialize;
use track::{ErrorTrack, ScoreTrack};

/// Answers of a kind that a pool must have seen before it is predicted: several for each coefficient.
pub const OBSERVATIONS_MIN: u32 = 50;
/// Answers after which an endpoint's usual error counts, not the pool's.
const OWN_ERRORS_MIN: u32 = 32;
/// No prediction is below, in milliseconds: a network takes as long.
const TTFT_MIN_MS: f64 = 1.0;
/// The same for the time between tokens.
const TPOT_MIN_MS: f64 = 0.1;
/// Nor above, and no observation counts as more: ten minutes.
const LATENCY_MAX_MS: f64 = 600_000.0;

/// What a request is predicted to see at one endpoint, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Prediction {
    /// Time to its first token, from when it is sent.
    pub ttft_ms: f32,
    /// Time between further tokens, on average.
    pub tpot_ms: f32,
    /// What 90 % of such requests should stay below, to the first token...
    pub ttft_high_ms: f32,
    /// ...and between further ones.
    pub tpot_high_ms: f32,
    /// What it costs others in the endpoint's batch: their delay by this prompt's prefill and by each
    /// token of its answer, summed over them.
    #[serde(skip)]
    pub(crate) cost: OthersCost,
    /// Whether the endpoint's own answers made it, not only the pool's.
    pub own: bool,
}

/// Delay of the others in a batch, summed, in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct OthersCost {
    /// By the prefill of the prompt.
    pub(crate) prefill_ms: f32,
    /// By each token of the answer.
    pub(crate) token_ms: f32,
}

/// How well one kind of latency is predicted, over the last few hundred answers.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Accuracy {
    /// Answers that were predicted and came.
    pub observations: u64,
    /// Mean of |came − predicted| / came; an error counts as 10 at most.
    pub mape: f32,
    /// Share that stayed below what 90 % should.
    pub coverage: f32,
    /// How often an endpoint was found to behave otherwise than before.
    pub drifts: u64,
}

/// What the predictor thinks of itself, for metrics.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct PredictorAccuracy {
    /// Of times to first tokens.
    pub ttft: Accuracy,
    /// Of times between tokens.
    pub tpot: Accuracy,
    /// Whether there are predictions yet.
    pub ready: bool,
}

/// What was known and predicted when a request began; kept in its flight.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Begun {
    pub(crate) situation: Situation,
    pub(crate) predicted: Option<Prediction>,
}

/// One kind of latency at one endpoint, or in the whole pool.
#[derive(Clone, Debug)]
struct Learner<const N: usize> {
    regression: Regression<N>,
    errors: ErrorTrack,
}

/// One endpoint.
#[derive(Clone, Debug, Default)]
struct EndpointLearners {
    ttft: Option<Learner<{ Ttft::LEN }>>,
    tpot: Option<Learner<{ Tpot::LEN }>>,
}

/// The predictor of one pool.
#[derive(Clone, Debug)]
pub(crate) struct Predictor {
    ttft: Learner<{ Ttft::LEN }>,
    tpot: Learner<{ Tpot::LEN }>,
    /// By slot; empty until somebody answered.
    endpoints: Vec<Option<Box<EndpointLearners>>>,
    ttft_score: ScoreTrack,
    tpot_score: ScoreTrack,
    drifts: (u64, u64),
}

impl Default for Predictor {
    fn default() -> Self {
        Self {
            ttft: Learner::new(Regression::new(Ttft::PRIOR)),
            tpot: Learner::new(Regression::new(Tpot::PRIOR)),
            endpoints: Vec::new(),
            ttft_score: ScoreTrack::default(),
            tpot_score: ScoreTrack::default(),
            drifts: (0, 0),
        }
    }
}

impl<const N: usize> Learner<N> {
    fn new(regression: Regression<N>) -> Self {
        Self {
            regression,
            errors: ErrorTrack::default(),
        }
    }

    /// Takes in one answer. True if it showed that the endpoint has changed.
    fn observe(&mut self, features: &[f64; N], ms: f64, min_ms: f64) -> bool {
        let predicted = self.regression.at(features).clamp(min_ms, LATENCY_MAX_MS);
        let drifted = self.errors.observe(ms / predicted);
        if drifted {
            self.regression.open();
        }
        self.regression.observe(features, ms, min_ms);
        drifted
    }
}

impl Predictor {
    /// What a request in `situation` would see at the endpoint in `slot`; `None` while too little
    /// is known.
    pub(crate) fn predict(&self, slot: usize, situation: &Situation) -> Option<Prediction> {
        if !self.is_ready() {
            return None;
        }
        let own = self.endpoints.get(slot).and_then(Option::as_deref);
        let own_ttft = own.and_then(|own| own.ttft.as_ref());
        let own_tpot = own.and_then(|own| own.tpot.as_ref());
        let (ttft, tpot) = (
            own_ttft.unwrap_or(&self.ttft),
            own_tpot.unwrap_or(&self.tpot),
        );
        let ttft_ms = ttft.regression.at(&Ttft::of(situation));
        let ttft_ms = ttft_ms.clamp(TTFT_MIN_MS, LATENCY_MAX_MS);
        let tpot_ms = tpot.regression.at(&Tpot::of(situation));
        let tpot_ms = tpot_ms.clamp(TPOT_MIN_MS, LATENCY_MAX_MS);
        let high = |errors: &ErrorTrack, pool: &ErrorTrack| match errors.count() {
            OWN_ERRORS_MIN.. => errors.high(),
            _ => pool.high(),
        };
        let ttft_high_ms = ttft_ms * high(&ttft.errors, &self.ttft.errors);
        let tpot_high_ms = tpot_ms * high(&tpot.errors, &self.tpot.errors);
        Some(Prediction {
            ttft_ms: ttft_ms as f32,
            tpot_ms: tpot_ms as f32,
            ttft_high_ms: ttft_high_ms.min(LATENCY_MAX_MS) as f32,
            tpot_high_ms: tpot_high_ms.min(LATENCY_MAX_MS) as f32,
            cost: OthersCost {
                prefill_ms: Ttft::others(&ttft.regression, situation) as f32,
                token_ms: Tpot::others(&tpot.regression, situation) as f32,
            },
            own: own_ttft.is_some() && own_tpot.is_some(),
        })
    }

    fn is_ready(&self) -> bool {
        let enough = |count: u32| count >= OBSERVATIONS_MIN;
        enough(self.ttft.errors.count()) && enough(self.tpot.errors.count())
    }

    /// The first token of a streamed answer came from the endpoint in `slot`.
    pub(crate) fn observe_ttft(&mut self, slot: usize, begun: &Begun, ms: f64) {
        let ms = ms.clamp(TTFT_MIN_MS, LATENCY_MAX_MS);
        if let Some(predicted) = begun.predicted {
            let (middle, high) = (predicted.ttft_ms, predicted.ttft_high_ms);
            self.ttft_score.observe(ms, middle.into(), high.into());
        }
        let features = Ttft::of(&begun.situation);
        let pool = &self.ttft.regression;
        let ready = self.ttft.errors.count() >= OBSERVATIONS_MIN;
        if let Some(own) = learners(&mut self.endpoints, slot) {
            let own = own
                .ttft
                .get_or_insert_with(|| child(pool, ready, Ttft::PRIOR));
            self.drifts.0 += u64::from(own.observe(&features, ms, TTFT_MIN_MS));
        }
        self.ttft.observe(&features, ms, TTFT_MIN_MS);
    }

    /// A streamed answer from the endpoint in `slot` is complete; its tokens after the first were
    /// `ms` apart.
    pub(crate) fn observe_tpot(&mut self, slot: usize, begun: &Begun, ms: f64) {
        let ms = ms.clamp(TPOT_MIN_MS, LATENCY_MAX_MS);
        if let Some(predicted) = begun.predicted {
            let (middle, high) = (predicted.tpot_ms, predicted.tpot_high_ms);
            self.tpot_score.observe(ms, middle.into(), high.into());
        }
        let features = Tpot::of(&begun.situation);
        let pool = &self.tpot.regression;
        let ready = self.tpot.errors.count() >= OBSERVATIONS_MIN;
        if let Some(own) = learners(&mut self.endpoints, slot) {
            let own = own
                .tpot
                .get_or_insert_with(|| child(pool, ready, Tpot::PRIOR));
            self.drifts.1 += u64::from(own.observe(&features, ms, TPOT_MIN_MS));
        }
        self.tpot.observe(&features, ms, TPOT_MIN_MS);
    }

    /// The slot gets another endpoint, or none.
    pub(crate) fn forget(&mut self, slot: usize) {
        if let Some(learners) = self.endpoints.get_mut(slot) {
            *learners = None;
        }
    }

    pub(crate) fn accuracy(&self) -> PredictorAccuracy {
        PredictorAccuracy {
            ttft: self.ttft_score.accuracy(self.drifts.0),
            tpot: self.tpot_score.accuracy(self.drifts.1),
            ready: self.is_ready(),
        }
    }
}

/// An endpoint's learner at its first answer: what the pool knows, held loosely, since hardware
/// differs; or nothing, while the pool knows little itself.
fn child<const N: usize>(pool: &Regression<N>, ready: bool, prior: Prior<N>) -> Learner<N> {
    Learner::new(if ready {
        pool.child()
    } else {
        Regression::new(prior)
    })
}

fn learners(
    endpoints: &mut Vec<Option<Box<EndpointLearners>>>,
    slot: usize,
) -> Option<&mut EndpointLearners> {
    if endpoints.len() <= slot {
        endpoints.resize(slot + 1, None);
    }
    Some(endpoints.get_mut(slot)?.get_or_insert_with(Box::default))
}
