//! What a collector of traces gets from the driver of a node. The collector of this check is a socket that
//! takes every call: the spans are found in what it got by their names and by the id of their trace, without a decoder.

use super::objects::{apply, claim_of, delete, named, pod, ready, request, template};
use super::world::{Node, World};
use super::{Table, install, rolled_out, wait};
use anyhow::{Context, Result, ensure};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Where it listens, in the network namespace of the node.
const ADDRESS: &str = "127.0.0.1:4317";

/// Runs it.
pub(super) fn run(world: &World<'_>, table: &mut Table) {
    let [node, _] = &world.nodes[..] else { return };
    table.check("a claim is a trace, from prepare to unprepare", || {
        let endpoint = format!("extraArgs={{--otlp-endpoint=http://{ADDRESS}}}");
        let collector = Collector::start(node)?;
        install(world.bed, &[&endpoint])?;
        rolled_out(world.bed)?;
        let traced = traced(world, node, &collector);
        install(world.bed, &[])?;
        rolled_out(world.bed)?;
        traced
    });
}

fn traced(world: &World<'_>, node: &Node, collector: &Collector) -> Result<String> {
    let bed = world.bed;
    let before = node.link("rail4").context("no rail4")?;
    let request = request("nic", "dra.net", &named("rail4"));
    let objects = [
        template("traced", &[request], &[]),
        pod("traced", &node.name, "traced"),
    ];
    apply(bed, &objects)?;
    ready(bed, "traced")?;
    let claim = claim_of(bed, "traced")?;
    let uid = claim["metadata"]["uid"].as_str().context("no UID")?;
    let trace = u128::from_str_radix(&uid.replace('-', ""), 16).context("no UUID")?;
    let has = |name: &str| collector.has(trace, name);
    for name in ["prepare", "attach", "verify", "claim"] {
        wait(&format!("the span {name}"), || Ok(has(name).then_some(())))?;
    }
    ensure!(!has("detach"), "a NIC is taken from a pod that runs");
    delete(bed, &["traced"])?;
    for name in ["detach", "unprepare"] {
        wait(&format!("the span {name}"), || Ok(has(name).then_some(())))?;
    }
    node.wait_back("rail4", &before)?;
    Ok(
        "prepare, attach, verify, claim, detach, unprepare, all of the trace of the claim's UID"
            .to_owned(),
    )
}

/// Takes what is sent to it, until the program ends: its driver is told of another place before that.
struct Collector(Arc<Mutex<Vec<Vec<u8>>>>);

impl Collector {
    /// Listens where the driver of a node can reach it.
    fn start(node: &Node) -> Result<Collector> {
        let got = Collector(Arc::default());
        let (sink, netns) = (
            Arc::clone(&got.0),
            Path::new("/run/netns").join(&node.netns),
        );
        let (listens, heard) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let bound = crate::cluster::enter(&netns).and_then(|()| {
                let listener = TcpListener::bind(ADDRESS).context(ADDRESS)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            });
            let listener = match bound {
                Ok(listener) => listener,
                Err(error) => return drop(listens.send(Err(error))),
            };
            // Whoever waits has it, and this thread works for as long as there is a program.
            let _told = listens.send(Ok(()));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            if let Ok(runtime) = runtime {
                runtime.block_on(serve(listener, sink));
            }
        });
        heard.recv().context("the collector's thread ended")??;
        Ok(got)
    }

    /// Whether a span of this name is part of a trace.
    fn has(&self, trace: u128, name: &str) -> bool {
        let bodies = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bodies
            .iter()
            .any(|body| names(body, trace).contains(&name.as_bytes()))
    }
}

async fn serve(listener: TcpListener, sink: Arc<Mutex<Vec<Vec<u8>>>>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(take(stream, Arc::clone(&sink)));
    }
}

/// Every call of one connection. What breaks is the driver's to tell, as it is with any collector.
async fn take(stream: tokio::net::TcpStream, sink: Arc<Mutex<Vec<Vec<u8>>>>) -> Option<()> {
    let mut calls = h2::server::handshake(stream).await.ok()?;
    while let Some(Ok((request, mut answer))) = calls.accept().await {
        let sink = Arc::clone(&sink);
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut whole = Vec::new();
            while let Some(Ok(part)) = body.data().await {
                let _given = body.flow_control().release_capacity(part.len());
                whole.extend_from_slice(&part);
            }
            sink.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(whole);
            let head = http::Response::builder().header("content-type", "application/grpc");
            let mut sent = answer.send_response(head.body(()).ok()?, false).ok()?;
            // An empty answer: not compressed, no bytes.
            sent.send_data(vec![0; 5].into(), false).ok()?;
            let ok = http::HeaderValue::from_static("0");
            let trailers = [(http::HeaderName::from_static("grpc-status"), ok)];
            sent.send_trailers(trailers.into_iter().collect()).ok()
        });
    }
    Some(())
}

/// Names of the spans of a trace in a protobuf message. Of a span the id of its trace is the first field, of which only
/// short ones of bytes come before its name, the fifth.
fn names(message: &[u8], trace: u128) -> Vec<&[u8]> {
    let begin = [&[0x0a, 16][..], &trace.to_be_bytes()].concat();
    let mut found = Vec::new();
    for at in memchr::memmem::find_iter(message, &begin) {
        let mut rest = &message[at + begin.len()..];
        while let [tag, length, after @ ..] = rest {
            let Some((field, next)) = after.split_at_checked(usize::from(*length)) else {
                break;
            };
            if *tag == 0x2a {
                found.push(field);
            }
            if !matches!(tag, 0x12 | 0x1a | 0x22) {
                break;
            }
            rest = next;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_the_spans_of_their_trace_alone() {
        let span = |trace: u128, name: &[u8]| {
            let length = u8::try_from(name.len()).expect("short");
            let head = [&[0x0a, 16][..], &trace.to_be_bytes(), &[0x12, 8], &[1; 8]].concat();
            [&head, &[0x22, 8][..], &[2; 8], &[0x2a, length], name].concat()
        };
        let message = [span(7, b"prepare"), span(8, b"attach"), span(7, b"verify")].concat();
        assert_eq!(names(&message, 7), [&b"prepare"[..], b"verify"]);
        assert_eq!(names(&message[..30], 7), [] as [&[u8]; 0], "cut off");
    }
}
