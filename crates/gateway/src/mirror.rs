//! Request mirroring: a copy of the request whose answer nobody reads.

use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use forebay_model::route::{Mirror, Target};

use crate::exchange::Exchange;
use crate::onward::Onward;
use crate::service::Way;
use crate::upstream::{self, Peer};

/// Copies under way in the process; further ones are left out, since a slow mirror must not take
/// memory from real traffic.
const COPIES_MAX: usize = 1024;
/// How long a copy may take altogether.
const COPY_TIMEOUT: Duration = Duration::from_secs(60);

static COPIES: AtomicUsize = AtomicUsize::new(0);

/// Whether this request is one of those that are copied.
pub(crate) fn is_drawn(ex: &Exchange, mirror: &Mirror) -> bool {
    let drawn = ex.worker.rng.borrow_mut().next_u64() % u64::from(mirror.denominator.max(1));
    drawn < u64::from(mirror.numerator)
}

/// Sends a copy of `onward`, whose body has been read.
pub(crate) fn send(ex: &Exchange, mirror: &Mirror, onward: &Onward) {
    let Some(peer) = destination(ex, &mirror.target) else {
        return;
    };
    let Some(body) = onward.body.copy() else {
        return;
    };
    let Some(copying) = Copying::begin(&COPIES) else {
        return;
    };
    let worker = Rc::clone(&ex.worker);
    let head = onward.head.clone();
    tokio::task::spawn_local(async move {
        let _copying = copying;
        let head = head.to_endpoint(None);
        let limit = worker.shared.settings.connect_timeout;
        let copy = async {
            let sent = upstream::send(&worker.idle, &peer, &head, body, limit).await;
            if let Ok(mut answer) = sent {
                while let Some(Ok(_)) = std::future::poll_fn(|cx| answer.body.poll_frame(cx)).await
                {
                }
            }
        };
        let _unfinished = tokio::time::timeout(COPY_TIMEOUT, copy).await;
    });
}

/// A place among the copies, given back when dropped: by a copy that panics, too.
#[derive(Debug)]
struct Copying(&'static AtomicUsize);

impl Copying {
    fn begin(copies: &'static AtomicUsize) -> Option<Self> {
        let place = Self(copies);
        (copies.fetch_add(1, Ordering::Relaxed) < COPIES_MAX).then_some(place)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn destination(ex: &Exchange, target: &Target) -> Option<Peer> {
    let drawn = |len: usize| ex.worker.rng.borrow_mut().below(len);
    match target {
        Target::Service(to) => {
            let to = ex.live.snapshot.services.get(to)?;
            let way = Way::to(ex, to).ok()?;
            let some = !to.endpoints.is_empty();
            some.then(|| way.peer(to.endpoints[drawn(to.endpoints.len())]))
        }
        Target::Pool(name) => {
            let pool = ex.live.snapshot.pools.get(name)?;
            let ready: Vec<_> = pool.ready().map(|e| e.address).collect();
            (!ready.is_empty()).then(|| Peer::plain(ready[drawn(ready.len())], pool.protocol))
        }
        Target::Broken(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back_however_a_copy_ends() {
        static OWN: AtomicUsize = AtomicUsize::new(0);
        let all: Vec<_> = (0..COPIES_MAX).map(|_| Copying::begin(&OWN)).collect();
        assert!(all.iter().all(Option::is_some));
        assert!(Copying::begin(&OWN).is_none());
        drop(all);
        let panics = std::thread::spawn(|| {
            let _copying = Copying::begin(&OWN);
            panic!("a copy breaks");
        });
        assert!(panics.join().is_err());
        assert_eq!(OWN.load(Ordering::Relaxed), 0);
    }
}
