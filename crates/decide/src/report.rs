//! What a pick answers and how it came about, as numbers and enums; text is made on demand.
//!
//! Logs, trace attributes, response headers and `explain` print the same [`Report`].

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use forebay_model::picker::{PickerKind, Scorer, WeightedScorer};
use serde::Serialize;
use smallvec::SmallVec;

use crate::predict::Prediction;

/// Pools with more endpoints than this get a report on the best [`REPORTED_BEST`] only, so that
/// a pick among a thousand does not spend its time on describing the others.
pub const REPORTED_ALL_UP_TO: usize = 32;
/// Endpoints in the report on a large pool.
pub const REPORTED_BEST: usize = 8;

/// The endpoints to try, in order, and why.
#[derive(Clone, Debug)]
pub struct Pick {
    /// Winner first, then fallbacks; never empty, no endpoint twice.
    pub order: SmallVec<[Choice; 3]>,
    /// How it came about.
    pub report: Report,
}

impl Pick {
    /// The endpoint to try first.
    #[must_use]
    pub fn winner(&self) -> Choice {
        self.order[0]
    }
}

/// One endpoint to try.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Choice {
    /// Where to send the request.
    pub address: SocketAddr,
    /// How much of the prompt is believed to be in its cache, in blocks of the configured size...
    pub hit_blocks: u32,
    /// ...and the prompt tokens that they stand for.
    pub hit_tokens: u32,
}

/// How a pick came about.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The scorers that counted, in the order of [`Considered::scores`].
    pub scorers: Arc<[WeightedScorer]>,
    /// The profile by which the pick was made, of a policy that has several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Arc<str>>,
    /// What decided.
    pub reason: Reason,
    /// What the filter for cached prompts did.
    pub sticky: Sticky,
    /// True if every endpoint was ejected and all were considered nevertheless.
    pub panic: bool,
    /// How many endpoints went which way.
    pub counts: Counts,
    /// The prompt's length in blocks of the configured size, to read hits against...
    pub prompt_blocks: u32,
    /// ...and in tokens, estimated unless they are known.
    pub prompt_tokens: u32,
    /// The endpoints: all of a pool of up to [`REPORTED_ALL_UP_TO`] in the pool's order, the best
    /// [`REPORTED_BEST`] candidates of a larger one in the order of their totals.
    pub considered: Vec<Considered>,
}

/// One endpoint in a report.
#[derive(Clone, Debug, Serialize)]
pub struct Considered {
    /// Which endpoint.
    pub address: SocketAddr,
    /// Why it was left out, if it was.
    pub excluded: Option<Exclusion>,
    /// What each scorer said, 0 to 1, before its weight; empty if left out.
    pub scores: SmallVec<[f32; 6]>,
    /// Weighted sum.
    pub total: f32,
    /// How much of the prompt is believed to be in its cache, in blocks of the configured size.
    pub hit_blocks: u32,
    /// The prompt tokens that they stand for.
    pub hit_tokens: u32,
    /// How that is known.
    pub knowledge: Knowledge,
    /// Time until this prompt would be prefilled, in milliseconds, if decode did not interfere.
    pub prefill_ms: f32,
    /// The latency that it is predicted to have, if that was asked for and enough is known.
    pub predicted: Option<Prediction>,
}

/// How it is known what an endpoint has in its cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knowledge {
    /// By what was sent there and what it said of cache hits: nobody listens to its events.
    #[default]
    Sent,
    /// By its events, all of which have been heard.
    Events,
    /// By its events since some point, and by what was sent there.
    EventsInPart,
    /// By what was sent there: it is meant to tell, and has not been heard.
    Unheard,
    /// By what was sent there: its events were followed until some went missing.
    EventsLost,
    /// By what was sent there: it tells, but the prompt's tokens are not known.
    Untokenized,
    /// By what was sent there: it tells, but servers count other tokens than were made of prompts.
    TokensDiffer,
}

/// Why an endpoint was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exclusion {
    /// Its pod is not ready or terminating.
    Unready,
    /// It is out of rotation.
    Ejected,
    /// It just came back, and has as many requests as it may have until it has proved itself.
    Ramping,
    /// The request is restricted to others.
    OutsideSubset,
    /// It already failed in this exchange.
    Tried,
    /// Others hold the prompt in cache.
    ColdCache,
    /// It holds the prompt in cache but is too far behind.
    Overrun,
    /// A filter asks for other labels.
    Label,
    /// It does not do this part of an inference.
    Stage,
    /// The session was elsewhere before.
    Session,
    /// It is beyond a limit of a filter.
    Load,
    /// Prompts of this length are for others.
    ContextLength,
    /// Others are closer to the endpoint that does the request's other part.
    Far,
    /// Others are predicted to keep the request's SLO.
    Slo,
}

/// What decided between the candidates.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// There was one.
    OnlyCandidate,
    /// The highest total.
    BestTotal,
    /// Several had the highest total; one of them at random.
    TieBroken,
    /// At random, in proportion to the totals.
    Drawn,
    /// The best total of this many drawn at random.
    BestOf(u8),
    /// Its turn.
    Turn,
    /// At random, whatever the totals.
    Random,
}

/// What the filter for cached prompts did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sticky {
    /// Nobody holds enough of the prompt, or the filter is off.
    Idle,
    /// Only endpoints that hold the prompt were candidates.
    Kept,
    /// Those that hold the prompt are too far behind; all were candidates.
    Released,
}

/// How many endpoints went which way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Counts {
    /// Scored.
    pub candidates: u32,
    /// Left out as [`Exclusion::Unready`].
    pub unready: u32,
    /// Left out as [`Exclusion::Ejected`].
    pub ejected: u32,
    /// Left out as [`Exclusion::Ramping`].
    pub ramping: u32,
    /// Left out as [`Exclusion::OutsideSubset`].
    pub outside_subset: u32,
    /// Left out as [`Exclusion::Tried`].
    pub tried: u32,
    /// Left out as [`Exclusion::ColdCache`] or [`Exclusion::Overrun`].
    pub not_sticky: u32,
    /// Left out by any other filter.
    pub filtered: u32,
}

impl Counts {
    pub(crate) fn add(&mut self, exclusion: Exclusion) {
        let counter = match exclusion {
            Exclusion::Unready => &mut self.unready,
            Exclusion::Ejected => &mut self.ejected,
            Exclusion::Ramping => &mut self.ramping,
            Exclusion::OutsideSubset => &mut self.outside_subset,
            Exclusion::Tried => &mut self.tried,
            Exclusion::ColdCache | Exclusion::Overrun => &mut self.not_sticky,
            Exclusion::Label
            | Exclusion::Stage
            | Exclusion::Session
            | Exclusion::Load
            | Exclusion::ContextLength
            | Exclusion::Slo
            | Exclusion::Far => &mut self.filtered,
        };
        *counter += 1;
    }
}

/// Why a request gets no endpoint.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// No endpoint could take it.
    NoReadyEndpoint {
        /// Endpoints of the pool that the request may go to.
        endpoints: u32,
        /// Of those, not ready.
        unready: u32,
        /// Of those, already tried in this exchange.
        tried: u32,
    },
    /// The request is restricted to endpoints, none of which is in the pool.
    SubsetEmpty,
    /// The filters of the policy leave none of the endpoints that could take it.
    Filtered {
        /// Endpoints before the first filter.
        endpoints: u32,
        /// What the last of them was left out for.
        by: Exclusion,
    },
    /// The request names a profile that the policy does not have.
    UnknownProfile,
    /// The pool is full and the request may be shed.
    Saturated {
        /// The request's priority, below zero.
        priority: i32,
        /// Saturation of the pool.
        saturation: f32,
        /// From where on requests like it are shed.
        limit: f32,
    },
    /// No endpoint is predicted to keep the request's SLO.
    SloOutOfReach {
        /// Time to the first token that nine of ten such requests would have at the best, in ms.
        ttft_ms: f32,
        /// The same of the time between tokens.
        tpot_ms: f32,
    },
}

impl Refusal {
    /// A short stable word for metrics and response headers.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoReadyEndpoint { tried: 1.., .. } => "endpoints-exhausted",
            Self::NoReadyEndpoint { .. } => "no-ready-endpoint",
            Self::SubsetEmpty => "subset-empty",
            Self::Filtered { .. } => "filtered",
            Self::UnknownProfile => "unknown-profile",
            Self::Saturated { .. } => "saturated",
            Self::SloOutOfReach { .. } => "slo-out-of-reach",
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoReadyEndpoint { endpoints: 0, .. } => {
                f.write_str("the pool has no endpoints: check that its selector matches pods")
            }
            Self::NoReadyEndpoint {
                endpoints,
                unready,
                tried,
            } => write!(
                f,
                "none of {endpoints} endpoints can take the request: {unready} not ready, \
                 {tried} already failed for it"
            ),
            Self::SubsetEmpty => f.write_str(
                "the request is restricted to endpoints, none of which is in the pool: check \
                 the subset that the proxy sends",
            ),
            Self::Filtered { endpoints, by } => write!(
                f,
                "the filters of the pool's policy leave none of {endpoints} endpoints (the last: \
                 {by}): check the labels of its pods"
            ),
            Self::UnknownProfile => f.write_str(
                "the request names a profile that the pool's policy does not have: name one of \
                 schedulingProfiles",
            ),
            Self::Saturated {
                priority,
                saturation,
                limit,
            } => write!(
                f,
                "the pool is saturated ({saturation:.2}, limit {limit:.2}) and requests of \
                 priority {priority} are shed: retry later or raise the objective's priority"
            ),
            Self::SloOutOfReach { ttft_ms, tpot_ms } => write!(
                f,
                "no endpoint is predicted to keep the request's SLO: nine of ten would have their \
                 first token within {ttft_ms:.0} ms and further ones {tpot_ms:.1} ms apart: retry \
                 later, or ask for less"
            ),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnlyCandidate => f.write_str("only candidate"),
            Self::BestTotal => f.write_str("best total"),
            Self::TieBroken => f.write_str("best total, tie broken at random"),
            Self::Drawn => f.write_str("drawn in proportion to the totals"),
            Self::BestOf(n) => write!(f, "best of {n} drawn at random"),
            Self::Turn => f.write_str("its turn"),
            Self::Random => f.write_str("drawn at random"),
        }
    }
}

impl Knowledge {
    /// A short stable word.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Events => "events",
            Self::EventsInPart => "events-in-part",
            Self::Unheard => "unheard",
            Self::EventsLost => "events-lost",
            Self::Untokenized => "untokenized",
            Self::TokensDiffer => "tokens-differ",
        }
    }
}

/// What stands behind the count of blocks; nothing where nobody listens to events.
impl fmt::Display for Knowledge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sent => "",
            Self::Events => " (by its events)",
            Self::EventsInPart => " (by its events since they are heard, and what was sent)",
            Self::Unheard => " (by what was sent: no events are heard)",
            Self::EventsLost => " (by what was sent: events went missing)",
            Self::Untokenized => " (by what was sent: the prompt is not tokenized)",
            Self::TokensDiffer => " (by what was sent: servers count other tokens)",
        })
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unready => "not ready",
            Self::Ejected => "out of rotation",
            Self::Ramping => "just came back and has its share",
            Self::OutsideSubset => "outside the requested subset",
            Self::Tried => "already failed for this request",
            Self::ColdCache => "others hold the prompt in cache",
            Self::Overrun => "holds the prompt but is too far behind",
            Self::Label => "has not the labels that are asked for",
            Self::Stage => "does not do this part of an inference",
            Self::Session => "the session was elsewhere before",
            Self::Load => "beyond a limit of a filter",
            Self::ContextLength => "not for prompts of this length",
            Self::Far => "others are closer to the request's other endpoint",
            Self::Slo => "others are predicted to keep the request's SLO",
        })
    }
}

/// One line for the decision and one per endpoint.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        write!(f, "{}; {} candidates", self.reason, counts.candidates)?;
        for (count, what) in [
            (counts.unready, "not ready"),
            (counts.ejected, "out of rotation"),
            (counts.ramping, "ramping"),
            (counts.outside_subset, "outside the subset"),
            (counts.tried, "tried"),
            (counts.not_sticky, "not sticky"),
            (counts.filtered, "filtered"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        if self.panic {
            f.write_str("; every endpoint was ejected, so none is left out for it")?;
        }
        for endpoint in &self.considered {
            write!(f, "\n  {}", endpoint.address)?;
            if let Some(exclusion) = endpoint.excluded {
                write!(f, ": {exclusion}")?;
                continue;
            }
            write!(
                f,
                " {:.3}: holds {}/{} blocks{}, prefill in {:.0} ms",
                endpoint.total,
                endpoint.hit_blocks,
                self.prompt_blocks,
                endpoint.knowledge,
                endpoint.prefill_ms
            )?;
            if let Some(p) = endpoint.predicted {
                write!(
                    f,
                    ", predicted {:.0} ms to the first token and {:.1} ms between",
                    p.ttft_ms, p.tpot_ms
                )?;
            }
            for (scorer, score) in self.scorers.iter().zip(&endpoint.scores) {
                write!(
                    f,
                    ", {} {:.2}x{}",
                    name(&scorer.scorer),
                    score,
                    scorer.weight
                )?;
            }
        }
        Ok(())
    }
}

/// A scorer's name as in the configuration.
#[must_use]
pub fn name(scorer: &Scorer) -> &'static str {
    match scorer {
        Scorer::Queue => "queue",
        Scorer::KvCache => "kv-cache",
        Scorer::Running => "running",
        Scorer::InflightTokens => "inflight-tokens",
        Scorer::InflightRequests => "inflight-requests",
        Scorer::Lora => "lora",
        Scorer::Prefix => "prefix",
        Scorer::Session => "session",
        Scorer::TokenLoad => "token-load",
        Scorer::QueueSpan => "queue-span",
        Scorer::RunningSpan => "running-span",
        Scorer::QueueShare { .. } => "queue-share",
        Scorer::PrefixLength { .. } => "prefix-length",
        Scorer::ColdSpread => "cold-spread",
        Scorer::PrefillShare { .. } => "prefill-share",
        Scorer::ActiveRequests { .. } => "active-requests",
        Scorer::ContextLength { .. } => "context-length",
        Scorer::Latency(_) => "latency",
        Scorer::AddedDelay => "added-delay",
        Scorer::Near => "near",
        Scorer::HeaderLabel { .. } => "header-label",
        Scorer::Signal { .. } => "signal",
    }
}

impl From<PickerKind> for Reason {
    fn from(kind: PickerKind) -> Self {
        match kind {
            PickerKind::MaxScore => Self::BestTotal,
            PickerKind::WeightedRandom => Self::Drawn,
            PickerKind::PowerOf(n) => Self::BestOf(n),
            PickerKind::RoundRobin => Self::Turn,
            PickerKind::Random => Self::Random,
        }
    }
}
