//! Single picks.

use super::*;

#[track_caller]
fn check(picker: PickerConfig, text: &str, expected: &str) {
    check_ask(picker, text, &Ask::default(), expected);
}

#[track_caller]
fn check_ask(picker: PickerConfig, text: &str, ask: &Ask<'_>, expected: &str) {
    for seed in 0..20 {
        let state = world(text, picker.clone());
        assert_eq!(
            picked(&state, ask, ms(1), seed),
            expected,
            "{text}, seed {seed}"
        );
    }
}

/// How often each endpoint wins in 1,000 picks.
fn winners(state: &PoolState, names: &str) -> Vec<u32> {
    let mut rng = Rng::seeded(3);
    let mut wins = vec![0; names.len()];
    for _ in 0..1_000 {
        let pick = state.choose(&Ask::default(), ms(1), &mut rng).unwrap();
        wins[names.find(letter(pick.winner().address)).unwrap()] += 1;
    }
    wins
}

fn default() -> PickerConfig {
    PickerConfig::default()
}

fn queue() -> PickerConfig {
    only(&[(Scorer::Queue, 1.0)])
}

fn kv() -> PickerConfig {
    only(&[(Scorer::KvCache, 1.0)])
}

fn picker(kind: PickerKind, config: PickerConfig) -> PickerConfig {
    PickerConfig {
        picker: kind,
        ..config
    }
}

#[test]
fn the_emptiest_server_wins() {
    check(default(), "a:3/0.2 b:1/0.9 c:2/0.1", "c a b");
}

#[test]
fn the_shortest_queue_wins() {
    check(queue(), "a:3/0.2 b:1/0.9 c:2/0.1", "b c a");
}

#[test]
fn cache_space_breaks_ties_of_the_queue() {
    check(default(), "a:1/0.9 b:1/0.2", "b a");
}

#[test]
fn one_waiting_request_more_does_not_outweigh_a_full_cache() {
    check(default(), "a:0/0.95 b:1/0.1", "b a");
    check(default(), "a:100/0.4 b:103/0.1", "b a");
}

#[test]
fn many_waiting_requests_do() {
    check(default(), "a:0/0.95 b:20/0.1", "a b");
}

#[test]
fn a_missing_metric_is_neither_idle_nor_full() {
    check(queue(), "a:0/0 b:-/0 c:10/0", "a b c");
    check(kv(), "a:0/0.1 b:0/- c:0/0.9", "a b c");
    check(queue(), "a:0/0 b c:10/0", "a b c");
}

#[test]
fn a_stale_metric_is_neither_idle_nor_full() {
    let mut state = world("a:0/0 b:0/0 c:0/0", queue());
    let load = |waiting| Load {
        waiting: Some(waiting),
        ..Load::default()
    };
    state.scraped(address('a'), load(4), ms(1_500));
    state.scraped(address('b'), load(0), ms(1_500));
    assert_eq!(picked(&state, &Ask::default(), ms(2_001), 1), "b c a");
}

#[test]
fn without_any_metrics_the_load_is_spread_at_random() {
    let state = world("a b c d", default());
    let wins = winners(&state, "abcd");
    assert!(wins.iter().all(|&n| n > 200), "{wins:?}");
}

#[test]
fn equal_totals_are_drawn_at_random_and_the_report_says_so() {
    let state = world("a:1/0.5 b:1/0.5 c:9/0.5", default());
    let wins = winners(&state, "abc");
    assert!(wins[0] > 400 && wins[1] > 400 && wins[2] == 0, "{wins:?}");
    let pick = state
        .choose(&Ask::default(), ms(1), &mut Rng::seeded(1))
        .unwrap();
    assert_eq!(pick.report.reason, report::Reason::TieBroken);
}

#[test]
fn unready_endpoints_get_nothing() {
    check(queue(), "!a:0/0 b:5/0", "b");
    check(
        queue(),
        "!a:0/0 !b:0/0",
        "refused: none of 2 endpoints can take the request: 2 not ready, 0 already failed for it",
    );
    check(
        queue(),
        "",
        "refused: the pool has no endpoints: check that its selector matches pods",
    );
}

#[test]
fn only_the_subset_is_considered() {
    let subset = [address('b'), address('c'), address('z')];
    let ask = Ask {
        subset: Some(&subset),
        ..Ask::default()
    };
    check_ask(queue(), "a:0/0 b:2/0 c:1/0", &ask, "c b");
    let ask = Ask {
        subset: Some(&subset[2..]),
        ..Ask::default()
    };
    check_ask(
        queue(),
        "a:0/0",
        &ask,
        "refused: the request is restricted to endpoints, none of which is in the pool: check \
         the subset that the proxy sends",
    );
}

#[test]
fn what_already_failed_for_the_request_is_not_tried_again() {
    let avoid = [address('a'), address('b')];
    let ask = Ask {
        avoid: &avoid,
        ..Ask::default()
    };
    check_ask(queue(), "a:0/0 b:0/0 c:9/0", &ask, "c");
    check_ask(
        queue(),
        "a:0/0 b:0/0 !c:0/0",
        &ask,
        "refused: none of 3 endpoints can take the request: 1 not ready, 2 already failed for it",
    );
}

#[test]
fn the_order_is_as_long_as_configured() {
    let config = PickerConfig {
        endpoints_max: 2,
        ..queue()
    };
    check(config.clone(), "a:3/0 b:1/0 c:2/0", "b c");
    let none = PickerConfig {
        endpoints_max: 0,
        ..config
    };
    check(none, "a:3/0 b:1/0 c:2/0", "b");
}

#[test]
fn weights_decide_between_scorers_and_zero_switches_off() {
    let config = |kv| only(&[(Scorer::Queue, 1.0), (Scorer::KvCache, kv)]);
    check(config(0.0), "a:0/0.9 b:5/0.1", "a b");
    check(config(5.0), "a:0/0.9 b:5/0.1", "b a");
    check(config(f32::NAN), "a:0/0.9 b:5/0.1", "a b");
}

#[test]
fn servers_that_report_nonsense_do_not_break_the_pick() {
    // Unknown counts as the mean of the others, below zero as zero.
    check(kv(), "a:0/NaN b:0/0.1 c:0/-7", "c a b");
    check(kv(), "a:0/inf b:0/0.5 c:0/7", "b a c");
}

#[test]
fn weighted_random_follows_the_totals() {
    let config = picker(PickerKind::WeightedRandom, kv());
    let wins = winners(&world("a:0/0.1 b:0/0.7 c:0/1.0", config), "abc");
    assert!((700..800).contains(&wins[0]), "{wins:?}");
    assert!((200..300).contains(&wins[1]) && wins[2] <= 1, "{wins:?}");
}

#[test]
fn the_best_of_two_is_never_the_worst() {
    let config = picker(PickerKind::PowerOf(2), kv());
    let wins = winners(&world("a:0/0.1 b:0/0.4 c:0/0.9", config), "abc");
    // a is among two of three in two thirds of the draws, b wins without it.
    assert!((620..720).contains(&wins[0]) && wins[2] == 0, "{wins:?}");
}

#[test]
fn random_ignores_the_load() {
    let config = picker(PickerKind::Random, kv());
    let wins = winners(&world("a:0/0.1 b:0/0.9", config), "ab");
    assert!((430..570).contains(&wins[0]), "{wins:?}");
}

#[test]
fn round_robin_takes_turns_whatever_the_load() {
    let mut state = world("a:9/0.9 b:0/0.1 !c:0/0 d:0/0", PickerConfig::round_robin());
    let mut turns = String::new();
    for _ in 0..7 {
        let pick = state
            .choose(&Ask::default(), ms(1), &mut Rng::seeded(1))
            .unwrap();
        assert_eq!(pick.report.reason, report::Reason::Turn);
        turns.push(letter(pick.winner().address));
        let flight = state.begin(&Ask::default(), pick.winner().address, ms(1));
        state.finish(flight, served(), ms(1));
    }
    assert_eq!(turns, "abdabda");
}

#[test]
fn least_request_takes_the_one_with_fewest_in_flight() {
    let mut state = world("a:0/0 b:0/0 c:0/0", PickerConfig::least_request());
    let ask = Ask::default();
    let _a = begin(&mut state, 'a', &ask, ms(1));
    let _b = [
        begin(&mut state, 'b', &ask, ms(1)),
        begin(&mut state, 'b', &ask, ms(1)),
    ];
    assert_eq!(picked(&state, &ask, ms(1), 1), "c a b");
}

fn with_lora(running: &[&str], waiting: &[&str]) -> Load {
    let names = |names: &[&str]| names.iter().map(|&n| Arc::from(n)).collect();
    Load {
        waiting: Some(0),
        lora: Some(LoraLoad {
            max: 2,
            running: names(running),
            waiting: names(waiting),
        }),
        ..Load::default()
    }
}

#[test]
fn an_adapter_goes_where_it_is_loaded_then_where_it_fits() {
    let config = PickerConfig {
        endpoints_max: 4,
        ..only(&[(Scorer::Lora, 1.0)])
    };
    let mut state = world("a b c d", config);
    let loads = [
        with_lora(&["x", "y"], &[]),
        with_lora(&["x", "y"], &["poet"]),
        with_lora(&["x"], &[]),
        with_lora(&["poet", "y"], &[]),
    ];
    for (name, load) in "abcd".chars().zip(loads) {
        state.scraped(address(name), load, ms(0));
    }
    let ask = |model| Ask {
        model: Some(model),
        ..Ask::default()
    };
    assert_eq!(picked(&state, &ask("poet"), ms(1), 1), "d c b a");
    let firsts: String = (0..30)
        .map(|seed| picked(&state, &ask("base"), ms(1), seed).remove(0))
        .collect();
    assert!("abcd".chars().all(|name| firsts.contains(name)), "{firsts}");
    // Sent there since the scrape, so it will be loaded there.
    let _flight = begin(&mut state, 'a', &ask("poet"), ms(1));
    let order = picked(&state, &ask("poet"), ms(1), 1);
    assert!(
        order.starts_with("a d") || order.starts_with("d a"),
        "{order}"
    );
}

#[test]
fn a_session_stays_where_it_was() {
    let mut state = world("a b c", only(&[(Scorer::Session, 1.0)]));
    let ask = Ask {
        session: Some(77),
        ..Ask::default()
    };
    let flight = begin(&mut state, 'b', &ask, ms(1));
    state.finish(flight, served(), ms(2));
    assert!((0..20).all(|seed| picked(&state, &ask, ms(3), seed).starts_with('b')));
}

#[test]
fn requests_that_may_be_shed_are_shed_when_the_pool_is_full() {
    let ask = Ask {
        priority: -1,
        ..Ask::default()
    };
    check_ask(
        queue(),
        "a:5/0.1 b:4/0.81",
        &ask,
        "refused: the pool is saturated (1.01, limit \
        1.00) and requests of priority -1 are shed: retry later or raise the objective's priority",
    );
    check_ask(queue(), "a:5/0.1 b:4/0.79", &ask, "b a");
    check(queue(), "a:50/1 b:40/1", "b a");
}

#[test]
fn unknown_load_does_not_shed() {
    let ask = Ask {
        priority: -1,
        ..Ask::default()
    };
    let state = world("a:500/1", queue());
    assert!(picked(&state, &ask, ms(1), 1).starts_with("refused: the pool is saturated"));
    assert_eq!(picked(&state, &ask, ms(2_001), 1), "a");
}

#[test]
fn the_report_explains_every_endpoint_of_a_small_pool() {
    let state = world(
        "a:3/0.5 b:1/0.5 !c:0/0",
        only(&[(Scorer::Queue, 2.0), (Scorer::KvCache, 1.0)]),
    );
    let pick = state
        .choose(&Ask::default(), ms(1), &mut Rng::seeded(1))
        .unwrap();
    assert_eq!(
        pick.report.to_string(),
        "best total; 2 candidates, 1 not ready\n  \
         10.0.0.1:8000 1.700: holds 0/0 blocks, prefill in 0 ms, queue 0.60x2, kv-cache 0.50x1\n  \
         10.0.0.2:8000 2.500: holds 0/0 blocks, prefill in 0 ms, queue 1.00x2, kv-cache 0.50x1\n  \
         10.0.0.3:8000: not ready"
    );
}

#[test]
fn the_report_on_a_large_pool_is_short() {
    let addresses = (0..1_000_u16).map(|i| SocketAddr::from(([10, 1, 0, 1], 1_000 + i)));
    let pool = pool_of(addresses, queue());
    let mut state = PoolState::new(&pool, ms(0));
    for (at, endpoint) in pool.endpoints.iter().enumerate() {
        let load = Load {
            waiting: Some(1_000 - at as u32),
            ..Load::default()
        };
        state.scraped(endpoint.address, load, ms(0));
    }
    let pick = state
        .choose(&Ask::default(), ms(1), &mut Rng::seeded(1))
        .unwrap();
    let best: Vec<_> = pick
        .report
        .considered
        .iter()
        .map(|c| c.address.port())
        .collect();
    assert_eq!(best, (1_992..2_000).rev().collect::<Vec<_>>());
    assert_eq!(pick.report.counts.candidates, 1_000);
    assert_eq!(pick.order.len(), 3);
}
