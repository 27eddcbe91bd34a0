//! Events: what happened to an object, for people. Sent in the background; what does not fit is dropped and
//! counted.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::kubernetes::server::{Server, Write};

use super::DeviceMetrics;

/// Events that wait; more are dropped.
const QUEUED_MAX: usize = 64;
/// The same is not said again within this time: who fails tries again every few seconds.
const REPEAT: Duration = Duration::from_secs(60);
/// So many are remembered for that.
const REMEMBERED_MAX: usize = 256;
/// Bytes of a message at most, as Kubernetes has it.
const MESSAGE_BYTES_MAX: usize = 1024;

/// What an event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// `v1`, …
    pub api_version: &'static str,
    /// `Pod`, …
    pub kind: &'static str,
    /// Its namespace; empty for an object of the whole cluster.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// To which object.
    pub subject: Subject,
    /// Whether somebody has to look.
    pub warning: bool,
    /// What, in one word.
    pub reason: &'static str,
    /// What, in a sentence.
    pub message: String,
}

/// Sends events. Clones are the same.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    metrics: DeviceMetrics,
}

impl Events {
    /// Sends to `server` as `component` on the node `host`; must be called within a runtime.
    #[must_use]
    pub fn start(server: Server, component: &str, host: &str, metrics: DeviceMetrics) -> Events {
        let (queue, waiting) = mpsc::channel(QUEUED_MAX);
        let sender = Sender {
            server,
            component: component.to_owned(),
            host: host.to_owned(),
            metrics: metrics.clone(),
            said: VecDeque::new(),
        };
        tokio::spawn(sender.run(waiting));
        Events { queue, metrics }
    }

    /// Has an event sent.
    pub fn tell(&self, event: Event) {
        if self.queue.try_send(event).is_err() {
            self.metrics.event(false);
        }
    }
}

/// Where an event is: one about an object of the whole cluster is where people look for it.
fn place(subject: &Subject) -> &str {
    match subject.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    }
}

struct Sender {
    server: Server,
    component: String,
    host: String,
    metrics: DeviceMetrics,
    said: VecDeque<(Event, Instant)>,
}

impl Sender {
    async fn run(mut self, mut waiting: mpsc::Receiver<Event>) {
        while let Some(event) = waiting.recv().await {
            let now = Instant::now();
            self.said.retain(|(_, at)| now.duration_since(*at) < REPEAT);
            if self.said.iter().any(|(said, _)| *said == event) {
                continue;
            }
            let path = format!("/api/v1/namespaces/{}/events", place(&event.subject));
            let document = self.document(&event, &super::statuses::time());
            let done = self.server.write(Write::Create, &path, &document).await;
            if let Err(error) = &done {
                let Subject { kind, name, .. } = &event.subject;
                tracing::warn!("an event of {kind} {name} was not taken: {error}");
            }
            self.metrics.event(done.is_ok());
            if self.said.len() == REMEMBERED_MAX {
                self.said.pop_front();
            }
            self.said.push_back((event, now));
        }
    }

    fn document(&self, event: &Event, time: &str) -> Value {
        let Subject {
            api_version,
            kind,
            namespace,
            name,
            uid,
        } = &event.subject;
        let message = &event.message;
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "generateName": format!("{name}."), "namespace": place(&event.subject) },
            "involvedObject": {
                "apiVersion": api_version, "kind": kind,
                "namespace": namespace, "name": name, "uid": uid,
            },
            "type": if event.warning { "Warning" } else { "Normal" },
            "reason": event.reason,
            "message": &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)],
            "source": { "component": self.component, "host": self.host },
            "reportingComponent": self.component,
            "reportingInstance": self.host,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        })
    }
}
