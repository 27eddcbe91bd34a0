//! What the conformance suite of the Inference Extension asks of pickers under test, and nobody else
//! should: a field of the request says which endpoints are picked, and one of the response tells which
//! endpoint answered. Off unless a flag switches it on, since it lets clients choose.

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_decide::Ask;
use forebay_model::Pool;
use forebay_wire::ext_proc::HeaderMutation;

use super::answer;
use super::head::Noted;
use crate::phases::Order;
use crate::pools::{InFlight, PoolRuntime};
use crate::worker::Worker;

/// The field by which the suite learns which endpoint answered.
const SERVED: &str = "x-conformance-test-served-endpoint";

/// The endpoints that the request names by address, with or without a port, in its order.
pub(super) fn of(pool: &Pool, noted: &Noted<'_>) -> Option<Vec<SocketAddr>> {
    let names = noted.test_selection?;
    let mut found = Vec::new();
    for name in names.split(',').map(str::trim) {
        let is =
            |address: &SocketAddr| name.parse() == Ok(*address) || name.parse() == Ok(address.ip());
        let named = pool.ready().map(|e| e.address).filter(is);
        found.extend(named.take(super::PASSED_OVER_MAX));
    }
    Some(found)
}

/// The list in the order in which the request names it, booked at its first.
pub(super) fn ordered(
    worker: &std::rc::Rc<Worker>,
    runtime: &Arc<PoolRuntime>,
    ask: &Ask<'_>,
    flight: InFlight,
    named: &[SocketAddr],
) -> (Order, InFlight) {
    let order = Order::from_slice(named);
    match order.first() {
        Some(&first) if first != flight.address() => {
            drop(flight);
            (order, InFlight::begin(worker, runtime, ask, first))
        }
        Some(_) | None => (order, flight),
    }
}

/// Tells the client where it was served.
pub(super) fn report(served: Option<SocketAddr>, mutation: &mut HeaderMutation) {
    if let Some(served) = served {
        mutation
            .set_headers
            .push(answer::set(SERVED, served.to_string()));
    }
}
