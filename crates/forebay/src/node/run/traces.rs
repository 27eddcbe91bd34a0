//! Spans of a claim's life, sent over OTLP/gRPC: `claim` from the first prepare until its NICs are verified in
//! the pod, and below it `prepare`, `attach` with `verify`, `detach`, `unprepare`.
//!
//! A claim's UID is the id of its trace, so the spans of several calls, and of drivers one after the other, find
//! each other, and who has a claim has its trace. What does not fit into the queue is dropped: a collector that
//! is away costs nothing but spans.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use forebay_fabric::claim::ClaimRef;
use forebay_gateway::telemetry::exporter;
use forebay_node::attach::{FaultPoint, Faults};
use forebay_node::driver::DriverError;
use forebay_node::ledger::Ledger;
use forebay_node::observed::{Call, Took};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;

/// Spans that wait for the collector; later ones are dropped.
const QUEUED_MAX: usize = 512;
/// Spans in one export.
const BATCH_MAX: usize = 128;
/// Claims whose first prepare is remembered until they are verified.
const BEGUN_MAX: usize = 1024;

/// When the last attach came by; one works at a time. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps(Arc<Mutex<Marks>>);

#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    configured: Option<SystemTime>,
    checked: Option<SystemTime>,
}

impl Faults for Steps {
    fn at(&self, point: FaultPoint) -> io::Result<()> {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if point == FaultPoint::Configured {
            marks.configured = Some(SystemTime::now());
        } else if point == FaultPoint::Checked {
            marks.checked = Some(SystemTime::now());
        }
        Ok(())
    }
}

impl Steps {
    /// The time of verification, if it was within `whole`: the marks may be those of a later attach.
    fn verified(&self, whole: Took) -> Option<Took> {
        let marks = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, ended) = marks.configured.zip(marks.checked)?;
        let took = ended.duration_since(began).ok()?;
        let within = began >= whole.began && ended <= whole.began + whole.took;
        within.then_some(Took { began, took })
    }
}

/// Sends spans. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Traces {
    queue: mpsc::Sender<SpanData>,
    begun: Arc<Mutex<BTreeMap<String, SystemTime>>>,
    steps: Steps,
    ledger: Ledger,
    node: String,
}

impl Traces {
    /// Sends to the collector at `endpoint`; must be called within a runtime.
    ///
    /// # Errors
    /// It is no URL.
    pub(super) fn start(
        endpoint: &str,
        node: &str,
        (steps, ledger): (Steps, Ledger),
    ) -> Result<Traces, String> {
        let of_node = KeyValue::new("k8s.node.name", node.to_owned());
        let exporter = exporter(endpoint, "forebay-node", [of_node])
            .map_err(|error| format!("{endpoint}: {error}"))?;
        let (queue, spans) = mpsc::channel(QUEUED_MAX);
        tokio::spawn(export(spans, exporter));
        Ok(Traces {
            queue,
            begun: Arc::default(),
            steps,
            ledger,
            node: node.to_owned(),
        })
    }

    /// Tells of a call. Whose claims a pod has is read from the ledger beside it.
    pub(super) fn tell(&self, call: Call<'_>, done: Result<(), &DriverError>, took: Took) {
        let error = done.err().map(|error| error.0.clone());
        let (name, pod) = match call {
            Call::Prepare(claim) => {
                self.begin(claim, took.began);
                return self.send(&span("prepare", claim, took).with(error));
            }
            Call::Unprepare(claim) => {
                self.begun().remove(&claim.uid);
                return self.send(&span("unprepare", claim, took).with(error));
            }
            Call::Attach(sandbox) => ("attach", sandbox),
            Call::Detach(sandbox) => ("detach", sandbox),
            Call::Synchronize(_) => return,
        };
        let verified = self.steps.verified(took).filter(|_| name == "attach");
        let (own, uid, pod) = (self.clone(), pod.uid.clone(), pod.name.clone());
        tokio::task::spawn_blocking(move || {
            let Ok((records, _)) = own.ledger.all() else {
                return;
            };
            for record in records.iter().filter(|record| record.pod_uid == uid) {
                let claim = record.claim();
                let span = span(name, &claim, took).with(error.clone()).of_pod(&pod);
                own.send(&span);
                if let Some(verified) = verified {
                    own.send(
                        &self::span("verify", &claim, verified)
                            .of_pod(&pod)
                            .below(&span),
                    );
                }
                if name == "attach" && error.is_none() {
                    own.send(&own.whole(&claim, took).of_pod(&pod));
                }
            }
        });
    }

    fn begun(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, SystemTime>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, claim: &ClaimRef, at: SystemTime) {
        let mut begun = self.begun();
        if begun.len() >= BEGUN_MAX {
            begun.pop_first();
        }
        begun.entry(claim.uid.clone()).or_insert(at);
    }

    /// From the first prepare, if that was in this process, until now.
    fn whole(&self, claim: &ClaimRef, attach: Took) -> Span {
        let began = self.begun().remove(&claim.uid).unwrap_or(attach.began);
        let ended = attach.began + attach.took;
        let took = ended.duration_since(began).unwrap_or_default();
        let mut span = span("claim", claim, Took { began, took });
        (span.id, span.parent) = (root(claim), 0);
        span
    }

    fn send(&self, span: &Span) {
        // A full queue means that the collector does not keep up.
        let _dropped = self.queue.try_send(span.data(&self.node));
    }
}

async fn export(mut queue: mpsc::Receiver<SpanData>, exporter: SpanExporter) {
    let mut spans = Vec::with_capacity(BATCH_MAX);
    let mut told = false;
    while queue.recv_many(&mut spans, BATCH_MAX).await > 0 {
        let batch = std::mem::take(&mut spans);
        match exporter.export(batch).await {
            Ok(()) => told = false,
            Err(error) if !told => {
                tracing::warn!("spans are lost, the collector does not take them: {error}");
                told = true;
            }
            Err(_) => {}
        }
    }
}

/// A span, before it is put into words.
#[derive(Clone, PartialEq, Debug)]
struct Span {
    name: &'static str,
    claim: ClaimRef,
    pod: Option<String>,
    took: Took,
    id: u64,
    /// 0 for none.
    parent: u64,
    error: Option<String>,
}

fn span(name: &'static str, claim: &ClaimRef, took: Took) -> Span {
    Span {
        name,
        claim: claim.clone(),
        pod: None,
        took,
        id: crate::gateway::random_seed().max(1),
        parent: root(claim),
        error: None,
    }
}

/// A UID as Kubernetes makes them is a UUID: 128 bits, as an id of a trace is. Another one is summed up.
fn trace(claim: &ClaimRef) -> u128 {
    let digits: String = claim.uid.chars().filter(|c| *c != '-').collect();
    let uuid = u128::from_str_radix(&digits, 16).ok();
    uuid.filter(|id| *id != 0 && digits.len() == 32)
        .unwrap_or_else(|| {
            claim
                .uid
                .bytes()
                .fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |sum, byte| {
                    (sum ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
                })
        })
}

/// The id of the span `claim`, which is known before it is sent.
fn root(claim: &ClaimRef) -> u64 {
    #[allow(clippy::cast_possible_truncation, reason = "its lower half")]
    let id = trace(claim) as u64;
    id.max(1)
}

impl Span {
    fn with(mut self, error: Option<String>) -> Span {
        self.error = error;
        self
    }

    fn of_pod(mut self, pod: &str) -> Span {
        self.pod = Some(pod.to_owned());
        self
    }

    fn below(mut self, parent: &Span) -> Span {
        self.parent = parent.id;
        self
    }

    fn data(&self, node: &str) -> SpanData {
        let id = |id: u64| SpanId::from_bytes(id.to_be_bytes());
        let ClaimRef {
            namespace,
            name,
            uid,
        } = &self.claim;
        let mut attributes = vec![
            KeyValue::new("k8s.namespace.name", namespace.clone()),
            KeyValue::new("k8s.resourceclaim.name", name.clone()),
            KeyValue::new("k8s.resourceclaim.uid", uid.clone()),
            KeyValue::new("k8s.node.name", node.to_owned()),
        ];
        let pod = self.pod.clone();
        attributes.extend(pod.map(|pod| KeyValue::new("k8s.pod.name", pod)));
        SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(trace(&self.claim).to_be_bytes()),
                id(self.id),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: id(self.parent),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: self.name.into(),
            start_time: self.took.began,
            end_time: self.took.began + self.took.took,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: self.error.clone().map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder("forebay").build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn claim(uid: &str) -> ClaimRef {
        ClaimRef {
            namespace: "ai".into(),
            name: "nics".into(),
            uid: uid.into(),
        }
    }

    fn took(from_ms: u64, took_ms: u64) -> Took {
        Took {
            began: SystemTime::UNIX_EPOCH + Duration::from_millis(from_ms),
            took: Duration::from_millis(took_ms),
        }
    }

    #[test]
    fn a_claims_uid_is_the_id_of_its_trace() {
        let own = claim("0f9c2a4e-1b3d-4c5f-8a7b-0123456789ab");
        let attach = span("attach", &own, took(5, 100));
        let data = attach.data("n1");
        let id = "0f9c2a4e1b3d4c5f8a7b0123456789ab";
        assert_eq!(data.span_context.trace_id().to_string(), id);
        assert_eq!(data.parent_span_id.to_string(), &id[16..]);
        let verify = span("verify", &own, took(80, 20)).below(&attach).data("n1");
        assert_eq!(verify.parent_span_id, data.span_context.span_id());
        let failed = attach.with(Some("no".into())).data("n1");
        assert_eq!(failed.status, Status::error("no"));
        assert_ne!(trace(&claim("u-1")), trace(&claim("u-2")));
    }

    #[test]
    fn verification_counts_only_within_its_attach() {
        let steps = Steps::default();
        let within = took(10, 50);
        assert_eq!(steps.verified(within), None);
        *steps.0.lock().unwrap() = Marks {
            configured: Some(took(20, 0).began),
            checked: Some(took(45, 0).began),
        };
        assert_eq!(steps.verified(within), Some(took(20, 25)));
        assert_eq!(steps.verified(took(30, 50)), None);
    }
}
