//! A world plays the same way every time, keeps its books, and shows what good placement is worth.

use super::compare::{Policy, compare, published};
use super::router::{Forebay, Router};
use super::scenario::{Scenario, Servers};
use super::*;

/// A small shared-prefix world.
fn small() -> Scenario {
    let mut scenario = Scenario::named("shared-prefix").expect("is there");
    scenario.servers = vec![Servers {
        count: 4,
        profile: "h100-llama-3.1-8b-tp1",
        kv_blocks: Some(2_000),
        max_loras: 0,
    }];
    let talk = &mut scenario.traffic.kinds[0].1;
    talk.groups = 24;
    talk.system_tokens = 2_000;
    talk.question_tokens = crate::load::Distribution::fixed(200.0);
    talk.output_tokens = crate::load::Distribution::fixed(50.0);
    scenario.loads = [("moderate", 20.0), ("high", 40.0)];
    (scenario.warm_up_s, scenario.measured_s) = (5, 15);
    scenario
}

#[test]
fn the_same_seed_plays_the_same_way() {
    let world = small().world(20.0);
    let play = |seed| {
        let mut router = Forebay::new(4, Default::default(), seed);
        let outcome = run(&world, &mut router, seed);
        let ends: Vec<_> = outcome.passages.iter().map(|p| (p.sent, p.last)).collect();
        ends
    };
    assert_eq!(play(1), play(1));
    assert_ne!(play(1), play(2));
}

#[test]
fn every_request_is_answered_and_the_books_are_empty_afterwards() {
    let world = World {
        drain: Duration::from_secs(3_600),
        warm_up: Duration::ZERO,
        ..small().world(30.0)
    };
    let mut router = Forebay::new(4, Default::default(), 3);
    let outcome = run(&world, &mut router, 3);
    assert!(outcome.passages.len() > 300);
    let answered = |p: &Passage| p.first.is_some() && p.last >= p.first && !p.refused;
    assert!(outcome.passages.iter().all(answered));
    for view in router.state().view(outcome.end) {
        assert_eq!((view.inflight_requests, view.inflight_tokens), (0, 0));
    }
}

#[test]
fn ours_beats_turns_on_shared_prefixes() {
    let scenario = small();
    let policies: Vec<_> = published()
        .into_iter()
        .filter(|(_, policy)| matches!(policy, Policy::RoundRobin | Policy::Forebay(_)))
        .collect();
    let comparison = compare(&[scenario], &policies, &[1, 2]);
    for pair in comparison.cells.chunks(2) {
        for (turns, ours) in pair[0].scores.iter().zip(&pair[1].scores) {
            assert!(ours.hit_rate > turns.hit_rate + 0.15, "{turns:?} {ours:?}");
            assert!(
                ours.ttft_p95_ms < 0.75 * turns.ttft_p95_ms,
                "{turns:?} {ours:?}"
            );
            assert!(
                ours.goodput_per_s >= turns.goodput_per_s,
                "{turns:?} {ours:?}"
            );
            assert_eq!((ours.requests, ours.refused), (turns.requests, 0));
        }
    }
}

/// Scrapes are what the servers said a network delay ago, and come at the stated pace.
#[test]
fn scrapes_come_at_their_pace() {
    struct Counting(Vec<Vec<u64>>);
    impl Router for Counting {
        fn scraped(&mut self, at: usize, load: Load, now: Moment) {
            assert!(load.waiting.is_some() && load.blocks.is_some());
            self.0[at].push(now.as_micros());
        }
        fn send(&mut self, _id: Id, _seen: &Seen<'_>, _now: Moment) -> Option<usize> {
            Some(0)
        }
        fn finish(&mut self, _id: Id, _end: End, _now: Moment) {}
    }
    let mut router = Counting(vec![Vec::new(); 4]);
    run(&small().world(1.0), &mut router, 1);
    for (at, times) in router.0.iter().enumerate() {
        assert!(times.len() >= 20 * 20);
        let first = 500 + 12_500 * at as u64;
        assert!(
            times
                .iter()
                .enumerate()
                .all(|(n, t)| *t == first + n as u64 * 50_000)
        );
    }
}
