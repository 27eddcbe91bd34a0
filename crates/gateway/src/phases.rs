//! The phases between what a request says and where it goes: rewrite, admit, pick.
//!
//! Every shell calls these: the data plane for requests that it serves itself (`inference.rs`), the
//! endpoint picker for those that another proxy asks about (`epp`). They take the parts that they need
//! and not an exchange, so that both come to the same decision by the same lines. How it went is noted
//! in the record; the choice itself is made by `forebay-decide`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use forebay_decide::{Ask, BlockHash, Refusal as PickRefusal, Waiter};
use forebay_model::Pool;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::pools::{InFlight, PoolRuntime};
use crate::queue::{self, Place};
use crate::reading::Reading;
use crate::record::Record;
use crate::respond::Refusal;
use crate::worker::Worker;
use crate::{catalogue, clock};

/// Endpoints to try, best first.
pub(crate) type Order = SmallVec<[SocketAddr; 3]>;

/// The name that the server sees, where a rule changes it.
pub(crate) fn rewrite(
    worker: &Worker,
    record: &mut Record,
    pool: &Pool,
    reading: &Reading,
) -> Option<Arc<str>> {
    let model = reading.model.as_deref()?;
    let rule = pool.rewrite_for(model)?;
    let target = rule.target_at(worker.rng.borrow_mut().next_u64());
    if &*target.model == model {
        return None;
    }
    record.model_served = Some(Arc::clone(&target.model));
    Some(Arc::clone(&target.model))
}

/// Lets a request for `model` into the pool: refused if the pool does not have it, at once if there is
/// room (`None`), or after its turn came, with the room that is kept for it.
pub(crate) async fn admit(
    worker: &Rc<Worker>,
    record: &mut Record,
    runtime: &Arc<PoolRuntime>,
    model: Option<&str>,
    waiter: Waiter,
    deadline: Option<Instant>,
) -> Result<Option<Place>, Refusal> {
    if let Some(model) = model
        && !catalogue::has(worker, runtime, model)
    {
        Box::pin(catalogue::check(worker, runtime, model)).await?;
    }
    match queue::enter(record, runtime, waiter)? {
        None => Ok(None),
        // Boxed, so that those who need not wait do not carry it along.
        Some(waiting) => Box::pin(waiting.turn(worker, record, deadline))
            .await
            .map(Some),
    }
}

/// What the choice looks at. `prefix` comes from [`Reading::hash_prompt`].
pub(crate) fn ask<'a>(
    record: &Record,
    reading: &Reading,
    model: Option<&'a str>,
    prefix: &'a [BlockHash],
    session: Option<u64>,
) -> Ask<'a> {
    Ask {
        model,
        prefix,
        prompt_tokens: reading.prompt_tokens,
        output_tokens_max: reading.output_tokens_max(),
        session,
        priority: record.priority,
        stream: record.stream,
        ..Ask::default()
    }
}

/// Chooses endpoints, and notes how. The request counts at the first of them before anybody else
/// can choose.
pub(crate) fn pick(
    worker: &Rc<Worker>,
    record: &mut Record,
    runtime: &Arc<PoolRuntime>,
    ask: &Ask<'_>,
) -> Result<(Order, InFlight), PickRefusal> {
    let began = clock::now();
    let picked = {
        let mut rng = worker.rng.borrow_mut();
        let mut state = runtime.state();
        state.choose(ask, began, &mut rng).map(|pick| {
            let flight = state.begin(ask, pick.winner().address, began);
            (pick, flight)
        })
    };
    let took = clock::now().since(began).as_micros();
    record.pick_us = Some(u32::try_from(took).unwrap_or(u32::MAX));
    let (picked, flight) = picked?;
    let flight = InFlight::begun(worker, runtime, picked.winner().address, flight);
    let order = picked.order.iter().map(|choice| choice.address).collect();
    record.report = Some(Box::new(picked.report));
    Ok((order, flight))
}
