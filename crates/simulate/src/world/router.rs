//! Who decides in the world: the seam between it and a policy, and Forebay's own behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_decide::{
    Ask, BlockHash, ChainSeed, End, Flight, Offer, PoolState, Prediction, Rng, Ticket, Waiter,
    chain,
};
use forebay_model::{
    AppProtocol, Endpoint, Load, Moment, ObjectName, PickerConfig, Pool, Role, Topology,
};
use rustc_hash::FxHashMap;

/// Names a request in the world: requests are numbered as they arrive.
pub type Id = u32;

/// What a gateway sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The model's or the adapter's name.
    pub model: &'a str,
    /// The prompt's bytes.
    pub bytes: &'a [u8],
    /// Chained hashes of the prompt's blocks of 16 tokens, for policies that look at tokens.
    pub block_hashes: &'a [u64],
    /// Prompt length in tokens, estimated from the bytes.
    pub prompt_tokens: u32,
}

/// What becomes of a request that arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// It may be sent.
    Go,
    /// It waits in the gateway.
    Wait,
    /// It is refused.
    Refuse,
}

/// Requests that stop waiting in the gateway.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Called {
    /// These may be sent, in this order.
    pub go: Vec<Id>,
    /// These are refused.
    pub refused: Vec<Id>,
}

/// A policy with its state: told of scrapes and of answers, asked where requests go. Endpoints are
/// numbered from 0.
pub trait Router {
    /// The server at `at` was scraped.
    fn scraped(&mut self, at: usize, load: Load, now: Moment);

    /// A request arrives.
    fn offer(&mut self, _id: Id, _now: Moment) -> Door {
        Door::Go
    }

    /// Who stops waiting now; asked after everything that may have made room.
    fn turns(&mut self, _now: Moment) -> Called {
        Called::default()
    }

    /// Sends a request: the endpoint's number, or `None` if it is refused.
    fn send(&mut self, id: Id, seen: &Seen<'_>, now: Moment) -> Option<usize>;

    /// The first byte of an answer came.
    fn first_byte(&mut self, _id: Id, _now: Moment) {}

    /// An answer is complete.
    fn finish(&mut self, id: Id, end: End, now: Moment);

    /// The latency that it predicted for a request that it sent, if it did.
    fn predicted(&self, _id: Id) -> Option<Prediction> {
        None
    }
}

/// Forebay's policy: the very code that the gateway runs.
#[derive(Debug)]
pub struct Forebay {
    state: PoolState,
    rng: Rng,
    hashes: Vec<BlockHash>,
    flights: FxHashMap<Id, Flight>,
    waiting: FxHashMap<Ticket, Id>,
    /// Let go by the gate, not sent yet.
    called: Vec<Id>,
}

/// The address of the endpoint with number `at`.
#[must_use]
pub fn address(at: usize) -> SocketAddr {
    let [high, low] = u16::try_from(at).unwrap_or(u16::MAX).to_be_bytes();
    SocketAddr::from(([10, 0, high, low], 8000))
}

fn number(address: SocketAddr) -> Option<usize> {
    match address {
        SocketAddr::V4(v4) => {
            let [_, _, high, low] = v4.ip().octets();
            Some(usize::from(u16::from_be_bytes([high, low])))
        }
        SocketAddr::V6(_) => None,
    }
}

impl Forebay {
    /// The policy `picker` over `endpoints` servers.
    #[must_use]
    pub fn new(endpoints: usize, picker: PickerConfig, seed: u64) -> Self {
        let endpoint = |at| Endpoint {
            address: address(at),
            pod: "pod".into(),
            labels: Arc::default(),
            engine: None,
            role: Role::Both,
            topology: Topology::default(),
            ready: true,
        };
        let pool = Pool {
            name: ObjectName::new("world", "pool"),
            endpoints: (0..endpoints).map(endpoint).collect(),
            protocol: AppProtocol::Http,
            picker,
            objectives: Default::default(),
            external: None,
            rewrites: Vec::new(),
        };
        Self {
            state: PoolState::new(&pool, Moment::ORIGIN),
            rng: Rng::seeded(seed),
            hashes: Vec::new(),
            flights: FxHashMap::default(),
            waiting: FxHashMap::default(),
            called: Vec::new(),
        }
    }

    /// The state that decides.
    #[must_use]
    pub fn state(&self) -> &PoolState {
        &self.state
    }
}

impl Router for Forebay {
    fn scraped(&mut self, at: usize, load: Load, now: Moment) {
        self.state.scraped(address(at), load, now);
    }

    fn offer(&mut self, id: Id, now: Moment) -> Door {
        let waiter = Waiter {
            priority: 0,
            fairness: 0,
            bytes: 0,
        };
        match self.state.offer(waiter, now) {
            Ok(Offer::Go) => Door::Go,
            Ok(Offer::Wait { ticket, .. }) => {
                self.waiting.insert(ticket, id);
                Door::Wait
            }
            Ok(Offer::Refuse(_)) | Err(_) => Door::Refuse,
        }
    }

    fn turns(&mut self, now: Moment) -> Called {
        if self.waiting.is_empty() {
            return Called::default();
        }
        let turns = self.state.turns(now);
        let mut ids = |tickets: Vec<Ticket>| -> Vec<Id> {
            let waiting = tickets.iter().filter_map(|t| self.waiting.remove(t));
            waiting.collect()
        };
        let called = Called {
            go: ids(turns.released),
            refused: ids(turns.expired),
        };
        self.called.extend(&called.go);
        called
    }

    fn send(&mut self, id: Id, seen: &Seen<'_>, now: Moment) -> Option<usize> {
        let config = self.state.config();
        self.hashes.clear();
        if forebay_decide::reads_prefix(config) {
            let seed = ChainSeed {
                model: seen.model,
                cache_salt: None,
            };
            let (block, max) = (config.prefix_block_bytes, config.prefix_blocks_max);
            let spans = std::iter::once(seen.bytes);
            chain(seed, spans, block, max, &mut self.hashes);
        }
        let ask = Ask {
            model: Some(seen.model),
            prefix: &self.hashes,
            prompt_tokens: seen.prompt_tokens,
            stream: true,
            ..Ask::default()
        };
        let picked = self.state.choose(&ask, now, &mut self.rng);
        let sent = picked.ok().and_then(|pick| {
            let to = pick.winner().address;
            self.flights.insert(id, self.state.begin(&ask, to, now));
            number(to)
        });
        if let Some(at) = self.called.iter().position(|called| *called == id) {
            self.called.swap_remove(at);
            self.state.arrived();
        }
        sent
    }

    fn first_byte(&mut self, id: Id, now: Moment) {
        if let Some(flight) = self.flights.get_mut(&id) {
            self.state.first_byte(flight, now);
        }
    }

    fn finish(&mut self, id: Id, end: End, now: Moment) {
        if let Some(flight) = self.flights.remove(&id) {
            self.state.finish(flight, end, now);
        }
    }

    fn predicted(&self, id: Id) -> Option<Prediction> {
        self.flights.get(&id)?.predicted()
    }
}
