//! The election with a simulated clock: every step of candidates, server and network is a choice of
//! the test.

use super::*;

fn record(holder: &str, renewed: &str) -> Record {
    Record {
        holder: holder.to_owned(),
        duration_s: 15,
        acquired: "0".to_owned(),
        renewed: renewed.to_owned(),
        transitions: 0,
    }
}

fn at(version: &str, record: Record) -> Seen {
    let version = version.to_owned();
    Seen { version, record }
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_lease_that_nobody_has_is_taken_and_renewed() {
    let start = Instant::now();
    let mut a = Candidate::new("a".to_owned());
    let Step::Create(first) = a.step(None, start, "t0") else {
        panic!("the first makes the lease");
    };
    assert_eq!((first.holder.as_str(), first.transitions), ("a", 0));
    assert!(!a.leads(start), "not before the server took it");
    a.written(first.clone(), start);
    assert!(a.leads(start + seconds(9)) && !a.leads(start + seconds(10)));
    let renewed = a.step(Some(&at("1", first)), start + seconds(2), "t2");
    let want = Record {
        acquired: "t0".to_owned(),
        ..record("a", "t2")
    };
    assert_eq!(renewed, Step::Replace("1".to_owned(), want));
}

#[test]
fn anothers_lease_is_waited_for_until_it_has_not_changed_for_its_duration() {
    let start = Instant::now();
    let mut b = Candidate::new("b".to_owned());
    // The times in the record are decades old, which says nothing: the other clock may be wrong.
    let held = at("1", record("a", "1990-01-01T00:00:00Z"));
    assert_eq!(b.step(Some(&held), start, "t"), Step::Wait);
    assert_eq!(b.step(Some(&held), start + seconds(14), "t"), Step::Wait);
    let renewed = at("2", record("a", "1990-01-01T00:00:14Z"));
    assert_eq!(b.step(Some(&renewed), start + seconds(15), "t"), Step::Wait);
    assert_eq!(b.step(Some(&renewed), start + seconds(29), "t"), Step::Wait);
    let Step::Replace(version, taken) = b.step(Some(&renewed), start + seconds(30), "t") else {
        panic!("the lease has run out");
    };
    assert_eq!(version, "2");
    assert_eq!((taken.holder.as_str(), taken.transitions), ("b", 1));
}

#[test]
fn a_lease_that_was_given_back_is_taken_at_once() {
    let now = Instant::now();
    let a = Candidate::new("a".to_owned());
    let held = at("5", record("a", "t"));
    let Some(Step::Replace(version, free)) = a.release(&held, "t1") else {
        panic!("our own lease can be given back");
    };
    assert_eq!((version.as_str(), free.holder.as_str()), ("5", ""));
    assert_eq!(a.release(&at("6", record("b", "t")), "t1"), None);
    let mut b = Candidate::new("b".to_owned());
    let step = b.step(Some(&at("6", free)), now, "t2");
    assert!(matches!(step, Step::Replace(_, taken) if taken.holder == "b"));
}

/// A server with one Lease, and two candidates whose requests take, lose or delay what they like.
struct World {
    start: Instant,
    now: Instant,
    lease: Option<Seen>,
    writes: u64,
    candidates: [Candidate; 2],
    /// What a candidate has decided on, to be written later: the requests of one are in order.
    under_way: [Option<(Step, Instant)>; 2],
}

impl World {
    fn write(&mut self, i: usize, answered: bool) {
        let Some((step, began)) = self.under_way[i].take() else {
            return;
        };
        let record = match step {
            Step::Create(record) if self.lease.is_none() => record,
            Step::Replace(version, record)
                if self.lease.as_ref().is_some_and(|l| l.version == version) =>
            {
                record
            }
            Step::Create(_) | Step::Replace(..) | Step::Wait => return,
        };
        self.writes += 1;
        self.lease = Some(at(&self.writes.to_string(), record.clone()));
        if answered {
            self.candidates[i].written(record, began);
        }
    }

    fn look(&mut self, i: usize) {
        let time = self.writes.to_string();
        let step = self.candidates[i].step(self.lease.as_ref(), self.now, &time);
        if step == Step::Wait {
            self.candidates[i].lost();
        }
        self.under_way[i] = Some((step, self.now));
    }
}

/// A generator of numbers that is the same in every run.
fn numbers(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    }
}

#[test]
fn of_two_candidates_never_both_lead_and_mostly_one_does() {
    let (mut led, mut changes) = (0, 0);
    for seed in 0..200 {
        let mut draw = numbers(seed + 1);
        let start = Instant::now();
        let mut world = World {
            start,
            now: start,
            lease: None,
            writes: 0,
            candidates: ["a", "b"].map(|name| Candidate::new(name.to_owned())),
            under_way: [None, None],
        };
        let mut last = None;
        for _ in 0..2_000 {
            world.now += Duration::from_millis(draw(1_000));
            let i = usize::try_from(draw(2)).unwrap();
            // For half a minute at a time one of them may have no network at all.
            let elapsed = world.now.duration_since(world.start).as_secs() + seed % 30;
            let cut_off = (elapsed / 30 + seed) % 4 == i as u64;
            match draw(10) {
                _ if cut_off => {}
                0..=4 => world.look(i),
                5..=8 => world.write(i, true),
                // The server took it and the answer is lost.
                _ => world.write(i, false),
            }
            let leaders = world.candidates.iter().filter(|c| c.leads(world.now));
            let leaders: Vec<_> = leaders.map(|c| c.identity.clone()).collect();
            assert!(leaders.len() < 2, "seed {seed}: {leaders:?}");
            led += leaders.len();
            if let Some(leader) = leaders.into_iter().next() {
                changes += usize::from(last.as_ref().is_some_and(|last| *last != leader));
                last = Some(leader);
            }
        }
    }
    assert!(led > 100_000, "a leader in only {led} of 400,000 moments");
    assert!(
        changes > 200,
        "the lease changed hands only {changes} times"
    );
}
