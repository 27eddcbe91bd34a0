//! A pool of model servers, their users and a gateway's policy in virtual time.
//!
//! The servers are [`Engine`]s, the policy is a [`Router`]: Forebay's own is
//! [`router::Forebay`], the very code that the gateway runs, the others are in [`baselines`]. Requests
//! take [`NETWORK`] each way, metrics are scraped every [`SCRAPE_EVERY`] and are [`NETWORK`] old when
//! they arrive. [`run`] plays one world to its end; [`scenario`] has the worlds that policies are
//! compared in, [`compare`] does that. Same arguments, same outcome, on every machine.
//!
//! Every number that comes out of here is of a simulation.

pub mod baselines;
pub mod compare;
pub mod outcome;
mod page;
pub mod router;
pub mod scenario;
pub mod traffic;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use forebay_decide::{End, EndKind};
use forebay_model::load::LoraLoad;
use forebay_model::{Load, Moment};

use crate::engine::{BLOCK_TOKENS, Engine, Request, Settings, StepReport};
use crate::profile::Profile;
use outcome::{Outcome, Passage};
use router::{Door, Id, Router, Seen};
use traffic::{Script, Scripts, Text, Traffic};

/// From the gateway to a server or back, for requests, answers and scrapes.
pub const NETWORK: Duration = Duration::from_micros(500);
/// Between two scrapes of one server. Servers are scraped in turn, not all at once.
pub const SCRAPE_EVERY: Duration = Duration::from_millis(50);
/// How often those who wait in the gateway are looked at if nothing else happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The base model's name.
const MODEL: &str = "base";

/// One world.
#[derive(Clone, Debug)]
pub struct World {
    /// Its servers.
    pub servers: Vec<(Arc<Profile>, Settings)>,
    /// Its users.
    pub traffic: Traffic,
    /// Conversations that begin per second, on average.
    pub conversations_per_s: f64,
    /// Requests that arrive before this count for nothing: caches and queues fill.
    pub warm_up: Duration,
    /// For so long after that requests are measured.
    pub measured: Duration,
    /// Answers to measured requests that take longer than this after the last arrival count as
    /// never given.
    pub drain: Duration,
}

#[derive(Debug)]
enum Event {
    /// Conversation `.0` asks its next question.
    Asks(u32),
    /// A request reaches a server.
    Reaches(usize, Id),
    /// A server's step is over.
    StepEnds(usize),
    /// The first token of an answer reaches the gateway.
    FirstToken(Id),
    /// The last one does.
    LastToken(Id),
    /// A server answers a scrape...
    Scrape(usize),
    /// ...and the gateway has it.
    Scraped(usize, Box<Load>),
    /// Somebody may have waited too long.
    Look,
}

/// Orders events by time and, at one time, by the order in which they were planned.
struct Planned {
    at: Moment,
    number: u64,
    event: Event,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Server {
    engine: Engine,
    /// The step that runs.
    step: Option<StepReport>,
}

/// A conversation that is being held.
struct Held {
    script: Script,
    text: Option<Text>,
    turn: usize,
}

struct Play<'a> {
    world: &'a World,
    router: &'a mut dyn Router,
    events: BinaryHeap<Reverse<Planned>>,
    planned: u64,
    now: Moment,
    servers: Vec<Server>,
    scripts: Scripts,
    held: Vec<Held>,
    /// By request id.
    passages: Vec<Passage>,
    /// Names of adapters, by number.
    adapters: Vec<Arc<str>>,
    /// Measured requests that are not settled.
    open: usize,
    arrivals_end: Moment,
}

/// Plays `world` with `router` deciding.
pub fn run(world: &World, router: &mut dyn Router, seed: u64) -> Outcome {
    let mut play = Play::new(world, router, seed);
    let last = play.arrivals_end.plus(world.drain);
    while let Some(Reverse(planned)) = play.events.pop() {
        if planned.at > last || (planned.at >= play.arrivals_end && play.open == 0) {
            break;
        }
        play.now = planned.at;
        play.happens(planned.event);
    }
    let end = play.now;
    let totals = play.servers.iter().map(|server| server.engine.totals());
    Outcome::new(world, play.passages, end, totals.collect())
}

impl<'a> Play<'a> {
    fn new(world: &'a World, router: &'a mut dyn Router, seed: u64) -> Self {
        let arrivals_end = Moment::ORIGIN.plus(world.warm_up + world.measured);
        let scripts = Scripts::new(world.traffic.clone(), seed);
        let held = scripts.draw(world.conversations_per_s, arrivals_end);
        let held = held.into_iter().map(|script| Held {
            script,
            text: None,
            turn: 0,
        });
        let server = |(at, (profile, settings)): (usize, &(Arc<Profile>, Settings))| Server {
            engine: Engine::new(Profile::clone(profile), *settings, seed ^ at as u64),
            step: None,
        };
        let adapters = 0..world.traffic.adapters.len();
        let mut play = Self {
            world,
            router,
            events: BinaryHeap::new(),
            planned: 0,
            now: Moment::ORIGIN,
            servers: world.servers.iter().enumerate().map(server).collect(),
            scripts,
            held: held.collect(),
            passages: Vec::new(),
            adapters: adapters.map(|n| format!("adapter-{n}").into()).collect(),
            open: 0,
            arrivals_end,
        };
        for at in 0..play.held.len() {
            let begins = play.held[at].script.begins;
            play.plan(begins, Event::Asks(at as u32));
        }
        for at in 0..play.servers.len() {
            let phase = SCRAPE_EVERY / play.servers.len() as u32 * at as u32;
            play.plan(Moment::ORIGIN.plus(phase), Event::Scrape(at));
        }
        play.plan(Moment::ORIGIN.plus(LOOK_EVERY), Event::Look);
        play
    }

    fn plan(&mut self, at: Moment, event: Event) {
        self.planned += 1;
        let number = self.planned;
        self.events.push(Reverse(Planned { at, number, event }));
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Asks(conversation) => self.asks(conversation),
            Event::Reaches(at, id) => self.reaches(at, id),
            Event::StepEnds(at) => self.step_ends(at),
            Event::FirstToken(id) => {
                self.passages[id as usize].first = Some(self.now);
                self.router.first_byte(id, self.now);
                self.turns();
            }
            Event::LastToken(id) => self.last_token(id),
            Event::Scrape(at) => {
                let load = self.load(at);
                let (arrives, next) = (self.now.plus(NETWORK), self.now.plus(SCRAPE_EVERY));
                self.plan(arrives, Event::Scraped(at, Box::new(load)));
                self.plan(next, Event::Scrape(at));
            }
            Event::Scraped(at, load) => {
                self.router.scraped(at, *load, self.now);
                self.turns();
            }
            Event::Look => {
                self.turns();
                self.plan(self.now.plus(LOOK_EVERY), Event::Look);
            }
        }
    }

    fn asks(&mut self, conversation: u32) {
        if self.now >= self.arrivals_end {
            return;
        }
        let held = &mut self.held[conversation as usize];
        let scripts = &mut self.scripts;
        let mut text = held
            .text
            .take()
            .unwrap_or_else(|| scripts.beginning(&held.script));
        let turn = held.script.turns[held.turn];
        turn.ask(&mut text);
        let id = self.passages.len() as Id;
        let measured = self.now >= Moment::ORIGIN.plus(self.world.warm_up);
        self.open += usize::from(measured);
        let mut passage = Passage::new(conversation, self.now, measured);
        passage.prompt_tokens = text.tokens();
        passage.output_tokens = turn.output_tokens;
        self.passages.push(passage);
        held.text = Some(text);
        match self.router.offer(id, self.now) {
            Door::Go => self.send(id),
            Door::Wait => {}
            Door::Refuse => self.refused(id),
        }
    }

    fn send(&mut self, id: Id) {
        let conversation = self.passages[id as usize].conversation as usize;
        let Held { script, text, turn } = &self.held[conversation];
        let text = text.as_ref().expect("asked, and so begun");
        let model = match script.adapter {
            Some(adapter) => &*self.adapters[adapter as usize],
            None => MODEL,
        };
        let seen = Seen {
            model,
            bytes: text.bytes(),
            block_hashes: text.block_hashes(),
            prompt_tokens: (text.tokens() as f32 * script.turns[*turn].estimate) as u32,
        };
        match self.router.send(id, &seen, self.now) {
            Some(at) => {
                let passage = &mut self.passages[id as usize];
                passage.sent = Some((self.now, at));
                passage.predicted = self.router.predicted(id);
                self.plan(self.now.plus(NETWORK), Event::Reaches(at, id));
            }
            None => self.refused(id),
        }
    }

    fn turns(&mut self) {
        let called = self.router.turns(self.now);
        called.go.into_iter().for_each(|id| self.send(id));
        called.refused.into_iter().for_each(|id| self.refused(id));
    }

    /// A request that is refused ends its conversation.
    fn refused(&mut self, id: Id) {
        self.passages[id as usize].refused = true;
        self.settle(id);
    }

    fn settle(&mut self, id: Id) {
        let passage = &self.passages[id as usize];
        self.open -= usize::from(passage.measured);
    }

    fn reaches(&mut self, at: usize, id: Id) {
        let held = &self.held[self.passages[id as usize].conversation as usize];
        let turn = &held.script.turns[held.turn];
        let request = Request {
            id: u64::from(id),
            prompt: held.text.as_ref().expect("asked, and so begun").prompt(),
            output_tokens: turn.output_tokens,
            output_seed: turn.output_seed,
            adapter: held.script.adapter,
        };
        if self.servers[at].engine.submit(request).is_err() {
            // Longer than the server takes: an answer without tokens.
            self.passages[id as usize].refused = true;
            self.router
                .finish(id, End::plain(EndKind::Served), self.now);
            self.settle(id);
            return;
        }
        if self.servers[at].step.is_none() {
            self.step(at);
        }
    }

    fn step(&mut self, at: usize) {
        let server = &mut self.servers[at];
        server.step = server.engine.step(self.now);
        let Some(report) = &server.step else {
            return;
        };
        let ends = report.ends_at;
        for admitted in &report.admitted {
            self.passages[admitted.id as usize].cached_tokens = Some(admitted.cached_tokens);
        }
        self.plan(ends, Event::StepEnds(at));
    }

    fn step_ends(&mut self, at: usize) {
        let Some(report) = self.servers[at].step.take() else {
            return;
        };
        let arrives = self.now.plus(NETWORK);
        for id in &report.emitted {
            let passage = &mut self.passages[*id as usize];
            if !std::mem::replace(&mut passage.emitted, true) {
                self.plan(arrives, Event::FirstToken(*id as Id));
            }
        }
        for id in &report.finished {
            self.plan(arrives, Event::LastToken(*id as Id));
        }
        self.step(at);
    }

    fn last_token(&mut self, id: Id) {
        let passage = &mut self.passages[id as usize];
        passage.last = Some(self.now);
        let end = End {
            kind: EndKind::Served,
            prompt_tokens: Some(passage.prompt_tokens),
            cached_tokens: passage.cached_tokens,
            output_tokens: Some(passage.output_tokens),
        };
        let conversation = passage.conversation;
        self.router.finish(id, end, self.now);
        self.settle(id);
        self.turns();
        let held = &mut self.held[conversation as usize];
        let turn = held.script.turns[held.turn];
        held.turn += 1;
        match held.script.turns.get(held.turn) {
            Some(next) => {
                let text = held.text.as_mut().expect("asked, and so begun");
                turn.answered(text);
                let asks = self.now.plus(next.think);
                self.plan(asks, Event::Asks(conversation));
            }
            None => held.text = None,
        }
    }

    /// What a scrape of the server says now.
    fn load(&self, at: usize) -> Load {
        let engine = &self.servers[at].engine;
        let load = engine.load();
        let settings = engine.settings();
        let named = |those: &std::collections::BTreeSet<u32>| -> Vec<Arc<str>> {
            let names = those
                .iter()
                .map(|n| Arc::clone(&self.adapters[*n as usize]));
            names.collect()
        };
        Load {
            waiting: Some(load.waiting),
            running: Some(load.running),
            kv_used: Some(load.kv_used as f32),
            block_tokens: Some(BLOCK_TOKENS),
            blocks: Some(u64::from(settings.kv_blocks)),
            lora: (settings.max_loras > 0).then(|| LoraLoad {
                max: settings.max_loras,
                running: named(&load.running_adapters),
                waiting: named(&load.waiting_adapters),
            }),
        }
    }
}
