//! The policies that ours is compared with, each as its makers publish it.
//!
//! None of them shares code with `forebay-decide`, and none gets what its original does not have: no
//! correction of scrapes by what was sent since, no cached-token counts, no queue in the gateway.
//! Where an original has a setting that its guide says to measure, it is measured here
//! ([`prefill_tokens_per_s`]), which favours it.

mod llmd;
mod plain;
mod sglang;

pub use llmd::{ApproximatePrefix, Sticky, Weighted};
pub use plain::{LeastRequest, RoundRobin};
pub use sglang::CacheAware;

use crate::engine::{Engine, Prompt, Request, Settings};
use crate::profile::Profile;
use forebay_model::Moment;

/// Tokens of the prompt by which a server's prefill speed is measured.
const MEASURED_TOKENS: u32 = 8192;

/// Prefill speed of a server with this profile in tokens per second: one prompt of 8,192 tokens on
/// an idle server, as llm-d's guide measures its `peakPrefillThroughput`.
#[must_use]
pub fn prefill_tokens_per_s(profile: &Profile) -> f64 {
    let tokens = MEASURED_TOKENS.min(profile.max_model_len / 2);
    let mut engine = Engine::new(profile.clone(), Settings::of(profile), 0);
    let prompt = Prompt::from_tokens(&(0..tokens).collect::<Vec<_>>(), 0);
    let request = Request {
        id: 0,
        prompt,
        output_tokens: 1,
        output_seed: 0,
        adapter: None,
    };
    if engine.submit(request).is_err() {
        return 0.0;
    }
    let mut now = Moment::ORIGIN;
    while let Some(report) = engine.step(now) {
        now = report.ends_at;
        if !report.finished.is_empty() {
            break;
        }
    }
    f64::from(tokens) / now.since(Moment::ORIGIN).as_secs_f64()
}
