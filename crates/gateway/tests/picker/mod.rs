//! A real endpoint picker: the generated gRPC service on a socket, which does what requests tell it.
//!
//! What a request's `x-pick` names is where it goes; what its `x-do` says is how the picker behaves
//! (see `answer.rs`). Everything that it is shown is kept.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a part of each crate that includes it, and each uses a part of it"
)]

pub mod answer;
pub mod bed;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use forebay_wire::ext_proc::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use forebay_wire::ext_proc::processing_response::Response as Said;
use forebay_wire::ext_proc::{ProcessingRequest, ProcessingResponse};
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tonic::{Request, Response, Status, Streaming};

use crate::common::Spawner;

/// What a picker was shown on one call.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Fields of the request, those of its line among them.
    pub request: BTreeMap<String, String>,
    pub body: Vec<u8>,
    /// Lengths of the messages that the body came in.
    pub pieces: Vec<usize>,
    /// The subset, if there was one.
    pub subset: Option<Vec<String>>,
    /// Fields of the response.
    pub response: BTreeMap<String, String>,
    pub served: Option<String>,
    pub response_body: Vec<u8>,
    pub response_pieces: Vec<usize>,
    pub trailers: BTreeMap<String, String>,
    /// The gateway ended the call as it should.
    pub ended: bool,
}

/// A picker; stopped when dropped.
pub struct Picker {
    pub address: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    calls: Mutex<Vec<Seen>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    connections: AtomicUsize,
    forgets: AtomicBool,
}

impl Picker {
    /// Without TLS.
    pub fn plain() -> Self {
        Self::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), None)
    }

    /// Without TLS, where another was before.
    pub fn at(address: SocketAddr) -> Self {
        Self::start(TcpListener::bind(address).unwrap(), None)
    }

    /// Keeps nothing of what it is shown, for those who show it much.
    pub fn forgetful() -> Self {
        let picker = Self::plain();
        picker.state.forgets.store(true, Ordering::SeqCst);
        picker
    }

    pub fn with_tls(config: ServerConfig) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self::start(listener, Some(config))
    }

    fn start(listener: TcpListener, tls: Option<ServerConfig>) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let (stop, stopped) = watch::channel(false);
        let own = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(accept(listener, tls, own, stopped));
        });
        Self {
            address,
            state,
            stop,
        }
    }

    /// What it has been shown, call by call, in the order in which they came.
    pub fn calls(&self) -> Vec<Seen> {
        self.state.calls.lock().unwrap().clone()
    }

    /// What it was shown last.
    pub fn last(&self) -> Seen {
        self.calls().pop().expect("a call")
    }

    /// Calls that were open at once, at most.
    pub fn most_open(&self) -> usize {
        self.state.most_open.load(Ordering::SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Closes its port and every connection.
    pub fn stop(&self) {
        self.stop.send_replace(true);
        crate::common::eventually("the picker is gone", || {
            TcpListener::bind(self.address).is_ok()
        });
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    state: Arc<State>,
    mut stopped: watch::Receiver<bool>,
) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    loop {
        let stream = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            accepted = listener.accept() => accepted.unwrap().0,
        };
        stream.set_nodelay(true).unwrap();
        state.connections.fetch_add(1, Ordering::SeqCst);
        let service = ExternalProcessorServer::new(Service(Arc::clone(&state)));
        let (tls, mut stopped) = (tls.clone(), stopped.clone());
        tokio::spawn(async move {
            let mut builder = hyper::server::conn::http2::Builder::new(Spawner);
            builder.max_concurrent_streams(1024);
            let service = TowerToHyperService::new(service);
            let connection: Pin<Box<dyn Future<Output = ()> + Send>> = match tls {
                None => Box::pin(async move {
                    let io = TokioIo::new(stream);
                    let _closed = builder.serve_connection(io, service).await;
                }),
                Some(tls) => Box::pin(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        let io = TokioIo::new(stream);
                        let _closed = builder.serve_connection(io, service).await;
                    }
                }),
            };
            tokio::select! {
                () = connection => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
            }
        });
    }
}

struct Service(Arc<State>);

type Outgoing = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalProcessor for Service {
    type ProcessStream = Outgoing;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Outgoing>, Status> {
        let (out, answers) = mpsc::channel(64);
        let mut call = Call {
            number: {
                let mut calls = self.0.calls.lock().unwrap();
                if !self.0.forgets.load(Ordering::SeqCst) {
                    calls.push(Seen::default());
                }
                calls.len().wrapping_sub(1)
            },
            state: Arc::clone(&self.0),
            incoming: request.into_inner(),
            out,
        };
        tokio::spawn(async move {
            let open = call.state.open.fetch_add(1, Ordering::SeqCst) + 1;
            call.state.most_open.fetch_max(open, Ordering::SeqCst);
            if let Err(status) = answer::answer(&mut call).await {
                let _gone = call.out.send(Err(status)).await;
            }
            call.state.open.fetch_sub(1, Ordering::SeqCst);
        });
        let stream = futures_util::stream::unfold(answers, async |mut answers| {
            answers.recv().await.map(|answer| (answer, answers))
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

struct Call {
    number: usize,
    state: Arc<State>,
    incoming: Streaming<ProcessingRequest>,
    out: mpsc::Sender<Result<ProcessingResponse, Status>>,
}

impl Call {
    fn note<T>(&self, note: impl FnOnce(&mut Seen) -> T) -> T {
        let mut calls = self.state.calls.lock().unwrap();
        match calls.get_mut(self.number) {
            Some(seen) => note(seen),
            None => note(&mut Seen::default()),
        }
    }

    /// The next thing that is shown; `None` at the end of the call.
    async fn next(&mut self) -> Result<Option<ProcessingRequest>, Status> {
        let message = self.incoming.message().await?;
        if message.is_none() {
            self.note(|seen| seen.ended = true);
        }
        Ok(message)
    }

    async fn say(&self, said: Said) {
        self.send(ProcessingResponse {
            response: Some(said),
            ..ProcessingResponse::default()
        })
        .await;
    }

    async fn send(&self, message: ProcessingResponse) {
        let _gone = self.out.send(Ok(message)).await;
    }
}
