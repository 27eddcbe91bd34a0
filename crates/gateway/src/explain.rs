//! Why did that request go there? The last decisions, kept for `/debug/decisions` and
//! `forebay explain`.
//!
//! [`Decisions`] keeps records as they are; an [`Entry`] is made when somebody asks, as JSON or as
//! text by [`render_text`]. Nothing is decided and nothing is measured here.

mod outside;
mod text;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use forebay_decide::{Considered, Report};
use forebay_model::ObjectName;
use serde::{Deserialize, Serialize};

pub use self::outside::{Dropped, Outside};
pub use self::text::render_text;
use crate::per_worker::{PerWorker, lock};
use crate::record::Record;
use crate::telemetry::{Measured, ending, millis, rfc3339};

/// Exchanges that are kept for each worker; the oldest make room. A record with its report takes 2
/// to 5 KiB (texts of the client are cut, a report describes at most 32 endpoints). More of them
/// would not stay in a core's cache, and every request would wait for memory.
pub const DECISIONS_PER_WORKER_MAX: usize = 64;

/// The last exchanges of all workers.
#[derive(Debug, Default)]
pub struct Decisions(PerWorker<Ring>);

/// The last exchanges of one worker.
#[derive(Debug, Default)]
pub(crate) struct Ring(Mutex<VecDeque<Arc<Record>>>);

impl Ring {
    /// Keeps `record`, and gives up the oldest at [`DECISIONS_PER_WORKER_MAX`].
    pub(crate) fn push(&self, record: Arc<Record>) {
        let mut ring = lock(&self.0);
        let full = ring.len() >= DECISIONS_PER_WORKER_MAX;
        let oldest = full.then(|| ring.pop_front());
        ring.push_back(record);
        drop(ring);
        // Freed outside the lock.
        drop(oldest);
    }
}

/// What to show.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Query {
    /// At most this many, newest first; `None` for all that are kept.
    pub limit: Option<usize>,
    /// Only this pool: its name, or namespace and name with a slash between.
    pub pool: Option<String>,
    /// Only this request id.
    pub id: Option<String>,
}

impl Decisions {
    /// A ring for one worker.
    pub(crate) fn add_worker(&self) -> Arc<Ring> {
        self.0.add()
    }

    /// The exchanges that `query` asks for, newest first.
    #[must_use]
    pub fn find(&self, query: &Query) -> Vec<Entry> {
        let limit = query.limit.unwrap_or(usize::MAX);
        let mut found: Vec<Arc<Record>> = Vec::new();
        for ring in self.0.all() {
            let ring = lock(&ring.0);
            let newest_first = ring.iter().rev().filter(|record| query.matches(record));
            found.extend(newest_first.take(limit).cloned());
        }
        // Stable: exchanges that ended at the same moment stay in their ring's order.
        found.sort_by_key(|record| std::cmp::Reverse(record.finished));
        let newest = found.iter().take(limit);
        newest.map(|record| Entry::of(record)).collect()
    }
}

impl Query {
    /// Reads `limit=20&pool=chat&id=...`, percent-encoded or not.
    ///
    /// # Errors
    /// What is wrong with it, for the one who asked.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode(value);
            match key {
                "limit" => {
                    let limit = value
                        .parse()
                        .map_err(|_| format!("limit must be a whole number, not {value:?}"))?;
                    parsed.limit = Some(limit);
                }
                "pool" => parsed.pool = Some(value),
                "id" => parsed.id = Some(value),
                _ => {
                    return Err(format!(
                        "no parameter {key:?}; there are limit, pool and id"
                    ));
                }
            }
        }
        Ok(parsed)
    }

    fn matches(&self, record: &Record) -> bool {
        let pool = record.pool.as_deref();
        (self.pool.is_none() || pool.is_some_and(|pool| self.means_pool(pool)))
            && self.id.as_ref().is_none_or(|id| *record.id == **id)
    }

    /// Whether this pool is the one that is asked for, if one is.
    pub(crate) fn means_pool(&self, pool: &ObjectName) -> bool {
        let Some(wanted) = &self.pool else {
            return true;
        };
        match wanted.split_once('/') {
            None => *pool.name == **wanted,
            Some((namespace, name)) => *pool.namespace == *namespace && *pool.name == *name,
        }
    }
}

/// `%2F` to `/`; whatever is not UTF-8 afterwards is replaced, since it can match nothing.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%').then(|| tail.get(..2)).flatten();
        let byte = code
            .and_then(|code| str::from_utf8(code).ok())
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// One exchange, explained. The JSON of `/debug/decisions` is a list of these.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When it began, UTC.
    pub time: String,
    /// Request id, as in the access log and the response header.
    pub id: String,
    /// Method and path.
    pub request: String,
    /// Status that the client got; 0 when it left before.
    pub status: u16,
    /// Reason of an answer that was made here.
    pub reason: Option<String>,
    /// How it ended.
    pub end: String,
    /// The HTTPRoute.
    pub route: Option<String>,
    /// The InferencePool.
    pub pool: Option<String>,
    /// The model that was asked for.
    pub model: Option<String>,
    /// The model that the server saw, where it is another.
    pub model_served: Option<String>,
    /// Priority of the objective.
    pub priority: i32,
    /// Trace id, if the exchange was sampled.
    pub trace_id: Option<String>,
    /// Whole duration.
    pub duration_ms: f64,
    /// Time to the first token.
    pub ttft_ms: Option<f64>,
    /// Prompt tokens, and how many of them the server had in its cache.
    pub input_tokens: Option<u64>,
    /// See `input_tokens`.
    pub cached_tokens: Option<u64>,
    /// Generated tokens.
    pub output_tokens: Option<u64>,
    /// Its stay in the queue, if the pool was saturated when it came.
    #[serde(default)]
    pub queue: Option<Queue>,
    /// What the pool's own picker said, if it has one.
    #[serde(default)]
    pub picker: Option<Outside>,
    /// Time of the pick.
    pub pick_us: Option<u32>,
    /// Every try, in order; the last one without a failure served.
    pub tries: Vec<Attempt>,
    /// The pick, if there was one.
    pub pick: Option<Picked>,
}

/// One stay in the queue of a saturated pool.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Queue {
    /// What became of it: `sent`, or why it was not.
    pub end: String,
    /// How long it waited.
    pub wait_ms: f64,
    /// Requests that waited when it came, of its own priority or higher ones.
    pub ahead: u32,
    /// How full the pool was when it came; 1 is full.
    pub saturation: f32,
}

/// One try.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// Where.
    pub endpoint: String,
    /// Why it was given up.
    pub failure: Option<String>,
}

/// One pick, explained.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Picked {
    /// What decided between the candidates.
    pub why: String,
    /// What stood out: the whole pool ejected, the prompt filter at work. Usually empty.
    pub notes: Vec<String>,
    /// Endpoints that were scored.
    pub candidates: u32,
    /// Blocks in the prompt, to read hits against.
    pub prompt_blocks: u32,
    /// Scorers and their weights, in the order of [`Candidate::scores`].
    pub scorers: Vec<Weight>,
    /// Endpoints: all of a small pool, the best of a large one.
    pub endpoints: Vec<Candidate>,
}

/// One scorer's weight.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Weight {
    /// Its name, as in the configuration.
    pub scorer: String,
    /// What it counts.
    pub weight: f32,
}

/// One endpoint that was looked at.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Candidate {
    /// Which.
    pub endpoint: String,
    /// Why it was left out, if it was.
    pub excluded: Option<String>,
    /// What each scorer said, 0 to 1, before its weight; empty if left out.
    pub scores: Vec<f32>,
    /// Weighted sum.
    pub total: f32,
    /// Leading prompt blocks believed to be in its cache.
    pub hit_blocks: u32,
    /// The tokens that they stand for.
    #[serde(default)]
    pub hit_tokens: u32,
    /// How that is known: `sent`, `events`, `events-in-part`, or a reason to go by what was sent.
    #[serde(default)]
    pub knowledge: String,
    /// Time until the prompt would be prefilled there, if that can be told.
    pub prefill_ms: Option<f32>,
}

impl Entry {
    /// Explains `record`.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let measured = Measured::of(record);
        let name = |name: Option<&ObjectName>| name.map(ToString::to_string);
        Self {
            time: rfc3339(record.started_at),
            id: record.id.to_string(),
            request: format!("{} {}", record.method, record.path),
            status: record.status,
            reason: record.reason.map(str::to_owned),
            end: ending(record.end).to_owned(),
            route: name(record.route.as_deref()),
            pool: name(record.pool.as_deref()),
            model: record.model.as_deref().map(str::to_owned),
            model_served: record.model_served.as_deref().map(str::to_owned),
            priority: record.priority,
            trace_id: record.trace.map(|t| t.trace_id()),
            duration_ms: millis(measured.duration),
            ttft_ms: measured.ttft.map(millis),
            input_tokens: measured.input_tokens,
            cached_tokens: measured.cached_tokens,
            output_tokens: measured.output_tokens,
            queue: record.stay.map(|stay| Queue {
                end: stay.end.code().to_owned(),
                wait_ms: millis(stay.waited(record.finished)),
                ahead: stay.ahead,
                saturation: stay.saturation,
            }),
            picker: record.consultation.as_deref().map(Outside::of),
            pick_us: record.pick_us,
            tries: record
                .tries
                .iter()
                .map(|t| Attempt {
                    endpoint: t.endpoint.to_string(),
                    failure: t.failure.map(str::to_owned),
                })
                .collect(),
            pick: record.report.as_deref().map(Picked::of),
        }
    }
}

impl Picked {
    fn of(report: &Report) -> Self {
        use forebay_decide::report::Sticky;
        let mut notes = Vec::new();
        if report.panic {
            notes.push("every endpoint was out of rotation, so all were considered".to_owned());
        }
        if let Some(profile) = &report.profile {
            notes.push(format!("by profile {profile}"));
        }
        match report.sticky {
            Sticky::Idle => {}
            Sticky::Kept => notes.push("kept to endpoints that hold the prompt".to_owned()),
            Sticky::Released => notes.push(
                "endpoints that hold the prompt are too far behind, so all counted".to_owned(),
            ),
        }
        Self {
            why: report.reason.to_string(),
            notes,
            candidates: report.counts.candidates,
            prompt_blocks: report.prompt_blocks,
            scorers: report
                .scorers
                .iter()
                .map(|s| Weight {
                    scorer: forebay_decide::report::name(&s.scorer).to_owned(),
                    weight: s.weight,
                })
                .collect(),
            endpoints: report.considered.iter().map(Candidate::of).collect(),
        }
    }
}

impl Candidate {
    fn of(considered: &Considered) -> Self {
        Self {
            endpoint: considered.address.to_string(),
            excluded: considered.excluded.map(|e| e.to_string()),
            scores: considered.scores.to_vec(),
            total: considered.total,
            hit_blocks: considered.hit_blocks,
            hit_tokens: considered.hit_tokens,
            knowledge: considered.knowledge.code().to_owned(),
            // JSON knows no infinity.
            prefill_ms: Some(considered.prefill_ms).filter(|ms| ms.is_finite()),
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_model::Moment;

    use super::*;
    use crate::telemetry::test_record;

    fn kept(ids: &[&str]) -> Decisions {
        let decisions = Decisions::default();
        let ring = decisions.add_worker();
        for id in ids {
            let mut record = test_record();
            record.id = (*id).into();
            ring.push(Arc::new(record));
        }
        decisions
    }

    fn check(decisions: &Decisions, query: &str, ids: &[&str]) {
        let query = Query::parse(query).expect("a good query");
        let found = decisions.find(&query);
        assert_eq!(found.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ids);
    }

    #[test]
    fn the_newest_come_first_and_can_be_narrowed_down() {
        let decisions = kept(&["a", "b", "c/1"]);
        check(&decisions, "", &["c/1", "b", "a"]);
        check(&decisions, "limit=2", &["c/1", "b"]);
        check(&decisions, "id=c%2F1", &["c/1"]);
        check(&decisions, "pool=chat&limit=1", &["c/1"]);
        check(&decisions, "pool=default/chat&id=a", &["a"]);
        check(&decisions, "pool=other/chat", &[]);
    }

    #[test]
    fn a_query_that_is_not_understood_is_refused() {
        assert!(Query::parse("limit=x").is_err());
        assert!(Query::parse("endpoint=1").is_err());
        assert_eq!(percent_decode("%4a%zz%"), "J%zz%");
    }

    #[test]
    fn the_rings_of_all_workers_are_shown_as_one() {
        let decisions = Decisions::default();
        let rings = [decisions.add_worker(), decisions.add_worker()];
        for (n, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
            let mut record = test_record();
            record.id = id.into();
            record.finished = Moment::from_millis(10_000 + n as u64);
            rings[n % 2].push(Arc::new(record));
        }
        check(&decisions, "", &["d", "c", "b", "a"]);
        check(&decisions, "limit=3", &["d", "c", "b"]);
    }

    #[test]
    fn the_oldest_make_room() {
        let ids: Vec<String> = (0..DECISIONS_PER_WORKER_MAX + 2)
            .map(|n| n.to_string())
            .collect();
        let decisions = kept(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        check(&decisions, "id=1", &[]);
        check(&decisions, "id=2", &["2"]);
        assert_eq!(
            decisions.find(&Query::default()).len(),
            DECISIONS_PER_WORKER_MAX
        );
    }

    #[test]
    fn an_entry_survives_json() {
        let entry = Entry::of(&test_record());
        let json = serde_json::to_string(&entry).expect("plain values");
        assert_eq!(
            serde_json::from_str::<Entry>(&json).expect("its own output"),
            entry
        );
    }

    #[test]
    fn the_text_says_who_won_why_and_what_excluded_the_others() {
        let expected = "\
2026-11-01T12:00:00.250Z  req-1  POST /v1/chat/completions -> 200
  route default/chat-route, pool default/chat, model llama
  took 750.0 ms, first token after 50.0 ms, pick 14 µs, 120 tokens in (64 cached), 30 out
  queued at priority 0 behind 3, pool 1.12 full: sent after 25.0 ms
  try 1: 10.0.0.1:8000: connect
  try 2: 10.0.0.2:8000: answered
  picked by: best total (2 candidates, prompt of 4 blocks)
    endpoint      total queue×2 prefix×3 hit prefill ms
    10.0.0.1:8000     -       -        -   -          - <- try 1; already failed for this request
    10.0.0.2:8000 3.500   2.000    1.500   2       40.0 <- try 2
    10.0.0.3:8000 1.000   1.000    0.000   0       90.0
";
        assert_eq!(render_text(&Entry::of(&test_record())), expected);
    }
}
