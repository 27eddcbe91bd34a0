//! gRPC services on a Unix socket: HTTP/2 connections, each request to the service of its path.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;

use super::authority::Localhost;

/// Connections at once. A kubelet has two or three; more wait in the socket's backlog.
const CONNECTIONS_MAX: usize = 64;
/// How long no further connection is taken after taking one failed (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Answer = BoxFuture<'static, Response<Body>>;
type Call = Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

/// Services by name.
#[derive(Clone, Default)]
pub(super) struct Services(Vec<(&'static str, Call)>);

impl Services {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// This one too.
    pub(super) fn with<S>(mut self, service: S) -> Self
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let call: Call = Arc::new(move |request| {
            let mut service = service.clone();
            async move {
                let Ok(()) = poll_fn(|context| service.poll_ready(context)).await;
                let Ok(response) = service.call(request).await;
                response
            }
            .boxed()
        });
        self.0.push((S::NAME, call));
        self
    }

    async fn call(self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().trim_start_matches('/');
        let name = path.split_once('/').map_or("", |(name, _)| name);
        match self.0.iter().find(|(known, _)| *known == name) {
            Some((_, call)) => call(request).await,
            None => tonic::Status::unimplemented(format!("no service {name}")).into_http(),
        }
    }
}

/// Serves until `stopping` is true, then finishes what was begun.
pub(super) async fn serve(
    listener: UnixListener,
    services: Services,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let full = connections.len() >= CONNECTIONS_MAX;
        let for_next = stopping.clone();
        tokio::select! {
            accepted = listener.accept(), if !full => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, services.clone(), for_next));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
            () = stopped(&mut stopping) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits until it is to end. Whoever would say so being gone is the end too.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn connection(stream: UnixStream, services: Services, mut stopping: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let services = services.clone();
        async move { Ok::<_, std::convert::Infallible>(services.call(request).await) }
    });
    let connection = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(Localhost::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    // However it ends, the other side is gone; it comes back by itself.
    let gone = tokio::select! {
        _ = connection.as_mut() => true,
        () = stopped(&mut stopping) => false,
    };
    if !gone {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
