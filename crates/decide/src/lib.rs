//! Policy as pure functions: which endpoint gets a request, whether it gets one at all, who is out
//! of rotation, what is in whose prefix cache.
//!
//! Time ([`forebay_model::Moment`]) and randomness ([`Rng`]) are arguments; nothing here logs,
//! waits, locks or allocates without a bound. The gateway, the external picker and the simulator
//! call the same [`PoolState`]: [`PoolState::offer`] admits, [`PoolState::choose`] reads,
//! [`PoolState::begin`], [`PoolState::first_byte`] and [`PoolState::finish`] keep the books of one
//! exchange. Start at `choose.rs` for how a pick is made, at `score.rs` for the formulas.

mod admit;
pub mod ask;
pub mod cached;
mod choose;
mod exchange;
mod filter;
pub mod gate;
pub mod health;
mod latency;
mod plan;
pub mod pool;
pub mod predict;
pub mod prefix;
pub mod report;
pub mod retry;
pub mod rng;
mod score;
mod session;
mod site;
mod slot;
#[cfg(test)]
mod tests;

pub use admit::Turns;
pub use ask::{Ask, End, EndKind, FailureKind, Flight, Slo};
pub use cached::KvView;
pub use gate::{Gate, GateLimits, GateRefusal, Offer, Tick, Ticket, Waiter};
pub use health::{Ejection, EjectionCause, Standing};
pub use plan::{reads_fields, reads_prefix};
pub use pool::{EndpointView, PoolState};
pub use predict::{Accuracy, Prediction, PredictorAccuracy};
pub use prefix::{
    Applied, BlockHash, ChainSeed, Following, SourceCopy, TokenChain, TokenPlan, TokenState, chain,
};
pub use report::{Choice, Considered, Exclusion, Knowledge, Pick, Refusal, Report};
pub use retry::RetryBudget;
pub use rng::Rng;
