//! Waiting for a place in a saturated pool.
//!
//! Who goes when is decided by `forebay-decide` under the pool's mutex; here one task per request
//! holds its place, and gives it up when the client leaves, when the route's time is over or when
//! the process ends. A request that was let go keeps its [`Place`] until it is booked at an
//! endpoint, so that as many go as there is room for.

use std::sync::Arc;
use std::time::Duration;

use forebay_decide::{PoolState, Ticket, Waiter};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::clock;
use crate::inference::sleep_until;
use crate::pools::{PoolRuntime, Queued, Rejected, Turn};
use crate::record::{Record, Stay, StayEnd};
use crate::respond::Refusal;
use crate::worker::Worker;

/// The longest time between two looks at the pool while a request waits. Whatever makes room says
/// so; what does not is metrics that grow stale while nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The part of the drain timeout after which those who still wait are refused: whose turn came
/// later than that would hardly live to see the end of its answer.
const DRAIN_SHARE: f64 = 0.5;

/// A request in the queue. Dropped, it is there no more.
#[derive(Debug)]
pub(crate) struct Waiting {
    runtime: Arc<PoolRuntime>,
    ticket: Ticket,
    turn: oneshot::Receiver<Turn>,
}

/// Room in a pool that is kept for one request until it is booked at an endpoint.
#[derive(Debug)]
pub(crate) struct Place(Arc<PoolRuntime>);

/// Lets a request into the pool: at once (`None`), or after a wait that begins here.
pub(crate) fn enter(
    record: &mut Record,
    runtime: &Arc<PoolRuntime>,
    waiter: Waiter,
) -> Result<Option<Waiting>, Refusal> {
    let now = clock::now();
    match runtime.offer(waiter, now) {
        Ok(None) => Ok(None),
        Ok(Some(queued)) => {
            let Queued {
                ticket,
                turn,
                ahead,
                saturation,
            } = queued;
            // What becomes of it if nobody is left to say so.
            record.stay = Some(Stay {
                since: now,
                until: None,
                end: StayEnd::ClientGone,
                ahead: u32::try_from(ahead).unwrap_or(u32::MAX),
                saturation,
            });
            Ok(Some(Waiting {
                runtime: Arc::clone(runtime),
                ticket,
                turn,
            }))
        }
        Err(rejected) => {
            let (end, refusal) = match rejected {
                Rejected::Shed(refusal) => (StayEnd::Shed, Refusal::not_picked(&refusal)),
                Rejected::Queue(refusal) => {
                    (StayEnd::Refused(refusal), Refusal::not_queued(refusal))
                }
            };
            let state = runtime.state();
            record.stay = Some(Stay {
                since: now,
                until: Some(now),
                end,
                ahead: u32::try_from(state.gate().len()).unwrap_or(u32::MAX),
                saturation: state.expected_saturation(now),
            });
            Err(refusal)
        }
    }
}

impl Waiting {
    /// Waits for the turn.
    pub(crate) async fn turn(
        mut self,
        worker: &Worker,
        record: &mut Record,
        deadline: Option<Instant>,
    ) -> Result<Place, Refusal> {
        let shared = &worker.shared;
        let drained = drained(shared.drain.subscribe(), shared.settings.drain_timeout);
        let mut drained = std::pin::pin!(drained);
        let wait_max = Duration::from_millis(self.runtime.pool().picker.queue_timeout_ms);
        let mut look_at = Instant::now() + wait_max.min(LOOK_EVERY);
        let (end, outcome) = loop {
            tokio::select! {
                biased;
                turn = &mut self.turn => match turn {
                    Ok(Turn::Refused(why)) => {
                        break (StayEnd::Refused(why), Err(Refusal::not_queued(why)));
                    }
                    // A request in the queue always has its sender there.
                    Ok(Turn::Go) | Err(_) => {
                        break (StayEnd::Sent, Ok(Place(Arc::clone(&self.runtime))));
                    }
                },
                () = sleep_until(deadline) => {
                    break (StayEnd::TimedOut, Err(Refusal::timed_out("time limit")));
                }
                () = &mut drained => break (StayEnd::Draining, Err(Refusal::draining())),
                () = tokio::time::sleep_until(look_at) => {
                    // Whose time is over, this request's included, learns it from there.
                    self.runtime.change(clock::now(), |_unchanged| ());
                    look_at = Instant::now() + wait_max.min(LOOK_EVERY);
                }
            }
        };
        if let Some(stay) = &mut record.stay {
            stay.until = Some(clock::now());
            stay.end = end;
        }
        outcome
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.turn.close();
        match self.turn.try_recv() {
            // Its turn came just when it left: somebody else takes the place.
            Ok(Turn::Go) => drop(Place(Arc::clone(&self.runtime))),
            Ok(Turn::Refused(_)) | Err(_) => self.runtime.leave(self.ticket),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.change(clock::now(), PoolState::arrived);
    }
}

/// Returns when those who wait are refused because the process ends: at once if it ends already.
async fn drained(mut drain: watch::Receiver<bool>, timeout: Duration) {
    if *drain.borrow_and_update() {
        return;
    }
    let _sender_gone = drain.wait_for(|draining| *draining).await;
    tokio::time::sleep(timeout.mul_f64(DRAIN_SHARE)).await;
}
