//! SIGTERM and SIGINT while the demo runs. They are noted from its very start, so that whatever it
//! is doing comes to an end in the usual way, and with it its folder, its servers and its gateway.
//!
//! After SIGKILL, a second signal, or the hang-up of its terminal, the folder with the manifests (a
//! few kilobytes below the system's folder for temporary files) stays; everything else ends with
//! the process.

use std::io;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::runtime;
use crate::Failure;

/// Tells whether the demo has been asked to end.
pub(super) struct Interrupt(watch::Receiver<Option<&'static str>>);

impl Interrupt {
    /// Notes signals from now on.
    pub(super) fn listen() -> Result<Self, Failure> {
        let runtime = runtime()?;
        let (tell, told) = watch::channel(None);
        spawn(runtime, tell)
            .map_err(|error| Failure::world(format!("no signal handler: {error}")))?;
        Ok(Self(told))
    }

    /// Waits until the demo is asked to end.
    pub(super) async fn told(&self) -> &'static str {
        let mut told = self.0.clone();
        match told.wait_for(Option::is_some).await {
            Ok(name) => (*name).unwrap_or_default(),
            // The thread that listens has ended: nobody will ask any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// An error once the demo has been asked to end.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match *self.0.borrow() {
            Some(name) => Err(broken_off(name)),
            None => Ok(()),
        }
    }
}

/// What is said of a comparison that a signal ended.
pub(super) fn broken_off(name: &str) -> Failure {
    Failure::world(format!("{name}: ended before the comparison was complete"))
}

fn spawn(runtime: Runtime, tell: watch::Sender<Option<&'static str>>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let name = next(&mut terminate, &mut interrupt).await;
                tell.send_replace(Some(name));
                // Whoever asks again does not want to wait for streams to end.
                let name = next(&mut terminate, &mut interrupt).await;
                eprintln!("forebay: {name} again");
                std::process::exit(1);
            });
        })
        .map(drop)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
