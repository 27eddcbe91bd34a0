//! The gate against a list that is searched from end to end.

use proptest::prelude::*;

use super::*;

fn ms(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

const FULL: f32 = 1.0;
const FREE: f32 = 0.99;

fn small() -> GateLimits {
    GateLimits {
        requests_max: 4,
        bytes_max: 100,
        wait_max: Duration::from_millis(50),
        saturation_ceiling: 1.0,
    }
}

/// Offers words like `2a10` (priority 2, tenant a, 10 bytes) to a saturated pool, then opens it
/// and writes down the order in which they go, by their positions.
#[track_caller]
fn check(limits: GateLimits, text: &str, expected: &str) {
    let mut gate = Gate::new(limits);
    let mut tickets = Vec::new();
    let mut out = Vec::new();
    for (at, word) in text.split_whitespace().enumerate() {
        let split = word.find(|c: char| c.is_ascii_lowercase()).unwrap();
        let waiter = Waiter {
            priority: word[..split].parse().unwrap(),
            fairness: u64::from(word.as_bytes()[split]),
            bytes: word[split + 1..].parse().unwrap(),
        };
        match gate.offer(waiter, ms(0), FULL) {
            Offer::Go => out.push(format!("go {at}")),
            Offer::Wait { ticket, displaced } => {
                tickets.push((ticket, at));
                for lost in displaced {
                    let at = tickets.iter().find(|(t, _)| *t == lost).unwrap().1;
                    out.push(format!("displaced {at}"));
                }
            }
            Offer::Refuse(why) => out.push(format!("{} {at}", why.code())),
        }
    }
    while let Some(ticket) = gate.tick(ms(1), FREE).released {
        let at = tickets.iter().find(|(t, _)| *t == ticket).unwrap().1;
        out.push(at.to_string());
    }
    assert_eq!(out.join(", "), expected, "{text}");
    assert!(gate.is_empty() && gate.bytes() == 0 && gate.depths().next().is_none());
}

#[test]
fn higher_priorities_go_first_whenever_they_came() {
    check(small(), "0a1 2a1 -1a1 1a1", "1, 3, 0, 2");
}

#[test]
fn tenants_of_one_priority_take_turns() {
    check(
        GateLimits::default(),
        "0a1 0a1 0a1 0b1 0b1 0c1",
        "0, 3, 5, 1, 4, 2",
    );
}

#[test]
fn a_full_queue_refuses_what_is_not_more_important() {
    check(
        small(),
        "0a1 0a1 0a1 0a1 0b1 -1b1",
        "queue-full 4, queue-full 5, 0, 1, 2, 3",
    );
}

#[test]
fn the_more_important_displaces_the_youngest_of_the_least_important_biggest_tenant() {
    check(
        small(),
        "1a1 0a1 0a1 0b1 2c1 2c1 1b1",
        "displaced 2, displaced 3, displaced 1, 4, 5, 0, 6",
    );
}

#[test]
fn bytes_are_bounded_as_well() {
    check(
        small(),
        "0a60 0a60 0a40 0a101",
        "queue-full 1, queue-too-large 3, 0, 2",
    );
    let none = GateLimits {
        requests_max: 0,
        ..small()
    };
    check(none, "0a1 1a1", "queue-full 0, queue-full 1");
    check(small(), "0a60 -1a40 0b50", "queue-full 2, 0, 1");
    check(
        small(),
        "0a50 -1a20 -2a20 0b40",
        "displaced 2, displaced 1, 0, 3",
    );
}

#[test]
fn nobody_waits_in_front_of_an_open_gate_unless_others_do() {
    let mut gate = Gate::new(small());
    let waiter = |priority| Waiter {
        priority,
        fairness: 1,
        bytes: 1,
    };
    assert_eq!(gate.offer(waiter(0), ms(0), FREE), Offer::Go);
    assert!(matches!(
        gate.offer(waiter(0), ms(0), FULL),
        Offer::Wait { .. }
    ));
    assert!(matches!(
        gate.offer(waiter(0), ms(0), FREE),
        Offer::Wait { .. }
    ));
    assert_eq!(gate.offer(waiter(1), ms(0), FREE), Offer::Go);
    assert_eq!(gate.tick(ms(1), FULL), Tick::default());
}

#[test]
fn waiting_ends_after_its_time() {
    let mut gate = Gate::new(small());
    let waiter = Waiter {
        priority: 0,
        fairness: 1,
        bytes: 7,
    };
    let Offer::Wait { ticket, .. } = gate.offer(waiter, ms(0), FULL) else {
        panic!("the pool is full");
    };
    assert_eq!(gate.next_expiry(), Some(ms(50)));
    assert_eq!(gate.longest_wait(ms(49)), Some(Duration::from_millis(49)));
    assert_eq!((gate.ahead_of(0), gate.ahead_of(1)), (1, 0));
    assert_eq!(gate.tick(ms(49), FULL).expired, vec![]);
    assert_eq!(gate.tick(ms(50), FREE).expired, vec![ticket]);
    assert!(!gate.withdraw(ticket));
    assert_eq!((gate.len(), gate.bytes()), (0, 0));
}

/// The same rules, without any structure.
#[derive(Clone, Default)]
struct Naive {
    waiting: Vec<(Ticket, Waiter, Moment)>,
    served: BTreeMap<i32, u64>,
}

impl Naive {
    fn fits(&self, waiter: Waiter, limits: GateLimits) -> bool {
        let bytes: usize = self.waiting.iter().map(|(_, w, _)| w.bytes).sum();
        self.waiting.len() < limits.requests_max && bytes + waiter.bytes <= limits.bytes_max
    }

    /// Displaces until the request fits. If it never does, it is refused: all is as before.
    fn make_room(&mut self, waiter: Waiter, limits: GateLimits) -> Option<Vec<Ticket>> {
        let before = self.clone();
        let mut lost = Vec::new();
        while !self.fits(waiter, limits) {
            let Some(ticket) = self.displace(waiter.priority) else {
                *self = before;
                return None;
            };
            lost.push(ticket);
        }
        Some(lost)
    }

    fn displace(&mut self, below: i32) -> Option<Ticket> {
        let lowest = self.waiting.iter().map(|(_, w, _)| w.priority).min()?;
        if lowest >= below {
            return None;
        }
        let count = |flow: u64| {
            let same =
                |(_, w, _): &&(Ticket, Waiter, Moment)| w.priority == lowest && w.fairness == flow;
            self.waiting.iter().filter(same).count()
        };
        let victim = self
            .waiting
            .iter()
            .filter(|(_, w, _)| w.priority == lowest)
            .max_by_key(|(t, w, _)| (count(w.fairness), w.fairness, *t))?
            .0;
        self.remove(victim);
        Some(victim)
    }

    fn remove(&mut self, ticket: Ticket) {
        self.waiting.retain(|(t, _, _)| *t != ticket);
        let waiting = &self.waiting;
        self.served
            .retain(|p, _| waiting.iter().any(|(_, w, _)| w.priority == *p));
    }

    fn expire(&mut self, now: Moment, limits: GateLimits) -> Vec<Ticket> {
        let over = |since: Moment| now.since(since) >= limits.wait_max;
        let expired = self.waiting.iter().filter(|(_, _, s)| over(*s));
        let expired: Vec<_> = expired.map(|(t, _, _)| *t).collect();
        expired.iter().for_each(|t| self.remove(*t));
        expired
    }

    fn release(&mut self) -> Option<Ticket> {
        let priority = self.waiting.iter().map(|(_, w, _)| w.priority).max()?;
        let served = self.served.get(&priority).copied();
        let (_, flow, ticket) = self
            .waiting
            .iter()
            .filter(|(_, w, _)| w.priority == priority)
            // Flows past the last one first, then around.
            .map(|(t, w, _)| (served.is_some_and(|s| w.fairness <= s), w.fairness, *t))
            .min()?;
        self.served.insert(priority, flow);
        self.remove(ticket);
        Some(ticket)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Offer(i32, u64, usize, bool),
    Tick(u64, bool),
    Withdraw(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (-1_i32..3, prop_oneof![0_u64..4, Just(u64::MAX)], 1_usize..40, any::<bool>())
            .prop_map(|(p, f, b, free)| Op::Offer(p, f, b, free)),
        2 => (0_u64..20, any::<bool>()).prop_map(|(ms, free)| Op::Tick(ms, free)),
        1 => (0_usize..8).prop_map(Op::Withdraw),
    ]
}

/// Runs both side by side, and compares what they say and hold after each step.
fn agree(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let limits = GateLimits {
        requests_max: 8,
        ..small()
    };
    let (mut gate, mut naive) = (Gate::new(limits), Naive::default());
    let mut now = ms(0);
    for op in ops {
        match op {
            Op::Offer(priority, fairness, bytes, free) => {
                let waiter = Waiter {
                    priority,
                    fairness,
                    bytes,
                };
                let first = naive.waiting.iter().all(|(_, w, _)| w.priority < priority);
                let offer = gate.offer(waiter, now, if free { FREE } else { FULL });
                if first && free {
                    prop_assert_eq!(offer, Offer::Go);
                } else if let Some(lost) = naive.make_room(waiter, limits) {
                    let Offer::Wait { ticket, displaced } = offer else {
                        return Err(TestCaseError::fail(format!("{offer:?}")));
                    };
                    prop_assert_eq!(displaced, lost);
                    naive.waiting.push((ticket, waiter, now));
                } else {
                    prop_assert_eq!(offer, Offer::Refuse(GateRefusal::QueueFull));
                }
            }
            Op::Tick(later, free) => {
                now = now.plus(Duration::from_millis(later));
                let tick = gate.tick(now, if free { FREE } else { FULL });
                prop_assert_eq!(tick.expired, naive.expire(now, limits));
                let released = if free { naive.release() } else { None };
                prop_assert_eq!(tick.released, released);
            }
            Op::Withdraw(at) => {
                if let Some(&(ticket, _, _)) = naive.waiting.get(at) {
                    prop_assert!(gate.withdraw(ticket));
                    prop_assert!(!gate.withdraw(ticket));
                    naive.remove(ticket);
                }
            }
        }
        prop_assert_eq!(gate.len(), naive.waiting.len());
        let bytes: usize = naive.waiting.iter().map(|(_, w, _)| w.bytes).sum();
        prop_assert_eq!(gate.bytes(), bytes);
        prop_assert!(gate.len() <= limits.requests_max && gate.bytes() <= limits.bytes_max);
    }
    Ok(())
}

/// Found by the property below. The fourth offer of priority 0 would have to displace the only
/// request of priority -1, which would not be enough: it is refused, and priority -1 goes on
/// where it was.
#[test]
fn a_refused_request_leaves_the_turns_of_those_it_could_not_displace() {
    let ops = vec![
        Op::Offer(-1, 2, 1, false),
        Op::Offer(-1, 1, 1, false),
        Op::Tick(0, true),
        Op::Offer(0, 0, 33, false),
        Op::Offer(0, 0, 26, false),
        Op::Offer(0, 0, 21, false),
        Op::Tick(9, false),
        Op::Offer(0, 0, 21, false),
        Op::Tick(13, false),
        Op::Offer(-1, u64::MAX, 1, false),
        Op::Tick(3, true),
        Op::Tick(18, false),
        Op::Offer(-1, 0, 1, false),
        Op::Tick(7, true),
    ];
    agree(ops).unwrap();
}

proptest! {
    #[test]
    fn agrees_with_a_list(ops in prop::collection::vec(op(), 0..200)) {
        agree(ops)?;
    }
}
