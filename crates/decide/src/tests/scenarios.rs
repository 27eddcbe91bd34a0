//! What happens over time: herds, failures, recoveries, caches, comings and goings.

use super::*;
use crate::prefix::base_blocks;

const RESET: FailureKind = FailureKind::Reset;

fn load(waiting: u32, running: u32) -> Load {
    Load {
        waiting: Some(waiting),
        running: Some(running),
        kv_used: Some(0.3),
        ..Load::default()
    }
}

fn streamed(prefix: &[BlockHash], prompt_tokens: u32) -> Ask<'_> {
    Ask {
        prefix,
        prompt_tokens,
        stream: true,
        ..Ask::default()
    }
}

/// Sends `count` requests where the pool wants them, without any answer or scrape in between.
fn burst(state: &mut PoolState, ask: &Ask<'_>, count: usize, now: Moment) -> Vec<(char, Flight)> {
    let mut rng = Rng::seeded(5);
    let mut send = || {
        let winner = state.choose(ask, now, &mut rng).unwrap().winner().address;
        (letter(winner), state.begin(ask, winner, now))
    };
    (0..count).map(|_| send()).collect()
}

fn count(sent: &[(char, Flight)], name: char) -> usize {
    sent.iter().filter(|(to, _)| *to == name).count()
}

/// Lets a request fail at `name`.
fn fail(state: &mut PoolState, name: char, now: Moment) {
    let flight = begin(state, name, &Ask::default(), now);
    state.finish(flight, failed(RESET), now);
}

fn serve(state: &mut PoolState, name: char, now: Moment) {
    let flight = begin(state, name, &Ask::default(), now);
    state.finish(flight, served(), now);
}

fn view(state: &PoolState, name: char, now: Moment) -> EndpointView {
    state
        .view(now)
        .find(|v| v.address == address(name))
        .unwrap()
}

#[test]
fn a_hundred_requests_between_two_scrapes_spread() {
    for scorers in [
        PickerConfig::default(),
        only(&[(Scorer::Queue, 1.0)]),
        only(&[(Scorer::TokenLoad, 1.0)]),
        only(&[(Scorer::InflightTokens, 1.0)]),
        PickerConfig::least_request(),
    ] {
        let mut state = world("a:0/0.3 b:0/0.3 c:0/0.3 d:0/0.3 e:0/0.3", scorers.clone());
        let sent = burst(&mut state, &streamed(&[], 500), 100, ms(1));
        for name in "abcde".chars() {
            assert!(
                (19..=21).contains(&count(&sent, name)),
                "{name} {scorers:?}"
            );
        }
    }
}

#[test]
fn a_burst_fills_up_the_shorter_queues_first() {
    let mut state = world("a:0/0.3 b:10/0.3 c:0/0.3", only(&[(Scorer::Queue, 1.0)]));
    let sent = burst(&mut state, &streamed(&[], 500), 26, ms(1));
    assert_eq!(
        "abc".chars().map(|n| count(&sent, n)).collect::<Vec<_>>(),
        [12, 2, 12]
    );
}

#[test]
fn a_burst_does_not_pile_up_on_an_endpoint_without_metrics() {
    let mut state = world("a:0/0.3 b c:0/0.3 d:0/0.3", PickerConfig::default());
    let sent = burst(&mut state, &streamed(&[], 500), 100, ms(1));
    assert!(
        (15..=35).contains(&count(&sent, 'b')),
        "{}",
        count(&sent, 'b')
    );
}

#[test]
fn the_numbers_of_a_scrape_follow_what_happens_after_it() {
    let mut state = world("a", PickerConfig::default());
    let ask = streamed(&[], 100);
    let waiting = |state: &PoolState| view(state, 'a', ms(500)).waiting.unwrap();
    let mut early = begin(&mut state, 'a', &ask, ms(1));
    state.scraped(address('a'), load(3, 7), ms(10));
    assert_eq!(waiting(&state), 3.0);
    let mut late = begin(&mut state, 'a', &ask, ms(11));
    assert_eq!(waiting(&state), 4.0);
    state.first_byte(&mut early, ms(12));
    assert_eq!(waiting(&state), 3.0);
    state.first_byte(&mut late, ms(13));
    state.first_byte(&mut late, ms(14));
    assert_eq!(waiting(&state), 2.0);
    state.finish(early, served(), ms(15));
    state.finish(late, served(), ms(16));
    assert_eq!(waiting(&state), 2.0);
    let given_up = begin(&mut state, 'a', &ask, ms(17));
    state.finish(given_up, End::plain(EndKind::Cancelled), ms(18));
    assert_eq!(waiting(&state), 2.0);
    state.scraped(address('a'), load(0, 9), ms(20));
    assert_eq!(waiting(&state), 0.0);
}

#[test]
fn counters_return_to_zero_whatever_the_order_of_events() {
    let mut state = world("a:2/0.5", PickerConfig::default());
    let prompt = long_prompt(1, 2_000);
    let ask = streamed(&prompt, 2_000);
    let whole = Ask {
        stream: false,
        ..ask
    };
    let ends = [
        served(),
        failed(RESET),
        End::plain(EndKind::Cancelled),
        failed(FailureKind::Status5xx(503)),
    ];
    let mut flights = Vec::new();
    for step in 0..40_u64 {
        let ask = if step % 3 == 0 { &whole } else { &ask };
        flights.push(begin(&mut state, 'a', ask, ms(step)));
        if step % 4 == 1 {
            let at = step as usize / 2;
            state.first_byte(&mut flights[at], ms(step));
        }
        if step % 10 == 5 {
            state.scraped(address('a'), load(step as u32 % 3, 4), ms(step));
        }
    }
    assert_eq!(view(&state, 'a', ms(41)).inflight_requests, 40);
    for (at, flight) in flights.into_iter().rev().enumerate() {
        state.finish(flight, ends[at % 4], ms(50 + at as u64));
    }
    let end = view(&state, 'a', ms(90));
    assert_eq!((end.inflight_requests, end.inflight_tokens), (0, 0));
    assert!(end.backlog_ms < 1.0, "{}", end.backlog_ms);
}

#[test]
fn the_longest_prefix_wins_until_its_endpoint_is_behind() {
    let config = PickerConfig {
        sticky_share: 1.0,
        ..PickerConfig::default()
    };
    let mut state = world("a:0/0.3 b:0/0.3 c:0/0.3", config);
    let prompt = long_prompt(1, 8_000);
    let ask = streamed(&prompt, 8_000);
    let mut flight = begin(&mut state, 'b', &ask, ms(1));
    state.first_byte(&mut flight, ms(500));
    state.finish(flight, served(), ms(900));
    let pick = state.choose(&ask, ms(901), &mut Rng::seeded(1)).unwrap();
    assert_eq!(letter(pick.winner().address), 'b');
    // 125 blocks of the first size, less what the last, longer one would take.
    assert_eq!(pick.winner().hit_blocks, 124);
    assert!((7_850..=8_000).contains(&pick.winner().hit_tokens));
    // 25 requests wait there for as many other prompts of 8,000 tokens.
    let others: Vec<_> = (2..27).map(|id| long_prompt(id, 8_000)).collect();
    let _flights: Vec<_> = others
        .iter()
        .map(|other| begin(&mut state, 'b', &streamed(other, 8_000), ms(902)))
        .collect();
    assert!(!picked(&state, &ask, ms(903), 1).starts_with('b'));
}

#[test]
fn a_share_of_a_prompt_is_counted_by_length_not_by_blocks() {
    let check = |common_bytes: usize, share: f32, sticky: report::Sticky| {
        let mut config = only(&[(Scorer::Prefix, 1.0)]);
        config.sticky_share = 0.8;
        let mut state = world("a b", config);
        let mut text = vec![1; 32_000];
        let before = prompt(&text);
        let _flight = begin(&mut state, 'a', &streamed(&before, 8_000), ms(1));
        text[common_bytes..].fill(2);
        let ask_blocks = prompt(&text);
        let ask = streamed(&ask_blocks, 8_000);
        let pick = state.choose(&ask, ms(2), &mut Rng::seeded(1)).unwrap();
        let a = &pick.report.considered[0];
        assert_eq!((a.scores[0], pick.report.sticky), (share, sticky));
        assert_eq!(a.hit_blocks, (share * 124.0).round() as u32);
    };
    // 124 base blocks in 71 blocks, the last of which are four long.
    check(255, 0.0, report::Sticky::Idle);
    check(256, 1.0 / 124.0, report::Sticky::Idle);
    check(32 * 256, 32.0 / 124.0, report::Sticky::Idle);
    // Nine tenths of the blocks, but not four fifths of the prompt.
    check(96 * 256, 96.0 / 124.0, report::Sticky::Idle);
    check(100 * 256, 100.0 / 124.0, report::Sticky::Kept);
    check(124 * 256, 1.0, report::Sticky::Kept);
}

#[test]
fn sticky_keeps_to_the_cache_until_it_is_saturated() {
    let config = PickerConfig {
        scorers: vec![],
        sticky_share: 0.8,
        sticky_backlog_max_ms: 1_000,
        ..PickerConfig::default()
    };
    let mut state = world("a:0/0.3 b:0/0.3 c:0/0.3", config);
    let prompt = long_prompt(1, 4_000);
    let ask = streamed(&prompt, 4_000);
    let mut flight = begin(&mut state, 'c', &ask, ms(1));
    state.first_byte(&mut flight, ms(251));
    let sticky = |state: &PoolState| {
        let pick = state.choose(&ask, ms(260), &mut Rng::seeded(1)).unwrap();
        (pick.report.sticky, pick.report.counts.candidates)
    };
    assert_eq!(sticky(&state), (report::Sticky::Kept, 1));
    assert_eq!(picked(&state, &ask, ms(260), 1), "c");
    // 20,000 tokens of others' prompts are more than a second of prefill.
    let flight_of_others = begin(&mut state, 'c', &streamed(&[], 20_000), ms(260));
    assert_eq!(sticky(&state), (report::Sticky::Released, 3));
    // If the others have as much before them, c is as good as they are.
    let _a = begin(&mut state, 'a', &streamed(&[], 20_000), ms(260));
    let _b = begin(&mut state, 'b', &streamed(&[], 20_000), ms(260));
    assert_eq!(sticky(&state), (report::Sticky::Kept, 1));
    state.finish(flight_of_others, served(), ms(260));
    // The server's own queue counts as well.
    state.scraped(address('c'), load(6, 200), ms(260));
    assert_eq!(sticky(&state), (report::Sticky::Released, 3));
    state.finish(flight, served(), ms(261));
}

#[test]
fn backlogs_are_compared_in_time_at_each_endpoints_own_speed() {
    let mut state = world("a b", only(&[(Scorer::TokenLoad, 1.0)]));
    // a prefills 40,000 tokens a second, b 4,000.
    for i in 0..60 {
        for (name, ms_taken) in [('a', 100), ('b', 1_000)] {
            let mut flight = begin(&mut state, name, &streamed(&[], 4_000), ms(i * 2_000));
            state.first_byte(&mut flight, ms(i * 2_000 + ms_taken));
            state.finish(flight, served(), ms(i * 2_000 + ms_taken));
        }
    }
    let now = ms(200_000);
    let speed = |name| view(&state, name, now).prefill_tokens_per_s;
    assert!((39_000.0..41_000.0).contains(&speed('a')), "{}", speed('a'));
    assert!((3_900.0..5_000.0).contains(&speed('b')), "{}", speed('b'));
    let _a = begin(&mut state, 'a', &streamed(&[], 16_000), now);
    assert_eq!(picked(&state, &streamed(&[], 4_000), now, 1), "a b");
}

#[test]
fn whole_answers_and_short_prompts_do_not_tell_the_prefill_speed() {
    let mut state = world("a", PickerConfig::default());
    let whole = Ask {
        prompt_tokens: 8_000,
        ..Ask::default()
    };
    for ask in [whole, streamed(&[], 200)] {
        let mut flight = begin(&mut state, 'a', &ask, ms(0));
        state.first_byte(&mut flight, ms(30_000));
        state.finish(flight, served(), ms(30_000));
    }
    assert_eq!(view(&state, 'a', ms(30_001)).prefill_tokens_per_s, 15_928.0);
}

#[test]
fn the_backlog_of_whole_answers_drains_with_time() {
    let mut state = world("a", PickerConfig::default());
    let whole = Ask {
        prompt_tokens: 15_928,
        ..Ask::default()
    };
    let backlog = |state: &PoolState, at| view(state, 'a', ms(at)).backlog_ms.round();
    let first = begin(&mut state, 'a', &whole, ms(0));
    let second = begin(&mut state, 'a', &whole, ms(500));
    assert_eq!(
        (backlog(&state, 500), backlog(&state, 1_000)),
        (1_500.0, 1_000.0)
    );
    state.finish(second, failed(RESET), ms(1_000));
    assert_eq!(backlog(&state, 1_000), 500.0);
    state.finish(first, served(), ms(9_000));
    assert_eq!(backlog(&state, 9_000), 0.0);
}

#[test]
fn three_failures_in_a_row_take_an_endpoint_out_for_a_second() {
    let mut state = world("a:0/0 b:3/0 c:5/0", only(&[(Scorer::Queue, 1.0)]));
    fail(&mut state, 'a', ms(1));
    fail(&mut state, 'a', ms(2));
    serve(&mut state, 'a', ms(3));
    fail(&mut state, 'a', ms(4));
    fail(&mut state, 'a', ms(5));
    assert_eq!(state.ejected(address('a'), ms(6)), None);
    fail(&mut state, 'a', ms(6));
    let ejection = state.ejected(address('a'), ms(7)).unwrap();
    assert_eq!(ejection.cause, EjectionCause::Failures(RESET));
    assert_eq!((ejection.since, ejection.until), (ms(6), Some(ms(1_006))));
    assert_eq!(picked(&state, &Ask::default(), ms(7), 1), "b c");
    assert_eq!(picked(&state, &Ask::default(), ms(1_006), 1), "a b c");
}

#[test]
fn clients_that_go_away_are_not_failures() {
    let mut state = world("a b", PickerConfig::default());
    for i in 0..10 {
        let flight = begin(&mut state, 'a', &Ask::default(), ms(i));
        state.finish(flight, End::plain(EndKind::Cancelled), ms(i));
    }
    assert_eq!(state.ejected(address('a'), ms(10)), None);
}

#[test]
fn each_further_ejection_is_twice_as_long_up_to_thirty_seconds() {
    let mut state = world("a b", PickerConfig::default());
    let mut now = 0;
    let mut lengths = Vec::new();
    for _ in 0..3 {
        fail(&mut state, 'a', ms(now));
    }
    for _ in 0..7 {
        let until = state.ejected(address('a'), ms(now)).unwrap().until.unwrap();
        lengths.push(until.since(ms(now)).as_secs());
        now = until.as_micros() / 1_000;
        fail(&mut state, 'a', ms(now));
    }
    assert_eq!(lengths, [1, 2, 4, 8, 16, 30, 30]);
    now += 30_000;
    serve(&mut state, 'a', ms(now));
    now += 70_000;
    for _ in 0..3 {
        fail(&mut state, 'a', ms(now));
    }
    let until = state.ejected(address('a'), ms(now)).unwrap().until;
    assert_eq!(
        until,
        Some(ms(now + 1_000)),
        "a minute without failures is forgiven"
    );
}

#[test]
fn failures_of_requests_sent_before_the_ejection_do_not_prolong_it() {
    let mut state = world("a b", PickerConfig::default());
    let flights: Vec<_> = (0..50)
        .map(|_| begin(&mut state, 'a', &Ask::default(), ms(0)))
        .collect();
    for flight in flights {
        state.finish(flight, failed(RESET), ms(10));
    }
    let until = state.ejected(address('a'), ms(10)).unwrap().until;
    assert_eq!(until, Some(ms(1_010)));
}

#[test]
fn at_most_half_of_a_pool_is_ejected_for_failures() {
    let mut state = world("a b c d e", PickerConfig::default());
    for name in "abcde".chars() {
        for _ in 0..5 {
            fail(&mut state, name, ms(1));
        }
    }
    let out = state
        .health(ms(2))
        .filter(|(_, _, ejection)| ejection.is_some());
    assert_eq!(out.count(), 2);
    let mut alone = world("a", PickerConfig::default());
    (0..5).for_each(|_| fail(&mut alone, 'a', ms(1)));
    assert_eq!(picked(&alone, &Ask::default(), ms(2), 1), "a");
}

#[test]
fn an_endpoint_on_probation_gets_one_request_at_a_time_and_then_its_share_slowly() {
    let mut state = world("a b c", only(&[(Scorer::InflightRequests, 1.0)]));
    let ask = Ask::default();
    let _busy = ["b"; 30].map(|_| begin(&mut state, 'b', &ask, ms(0)));
    let _busy = ["c"; 30].map(|_| begin(&mut state, 'c', &ask, ms(0)));
    for _ in 0..3 {
        fail(&mut state, 'a', ms(1));
    }
    let probe = burst(&mut state, &ask, 4, ms(2_000));
    assert_eq!(count(&probe, 'a'), 1);
    let mut probe: Vec<_> = probe.into_iter().filter(|(name, _)| *name == 'a').collect();
    state.finish(probe.remove(0).1, served(), ms(2_100));
    // Half of the ramp: half of the mean of b and c.
    let sent = burst(&mut state, &ask, 40, ms(4_600));
    assert!(
        (17..=23).contains(&count(&sent, 'a')),
        "{}",
        count(&sent, 'a')
    );
    let sent = burst(&mut state, &ask, 60, ms(8_000));
    let total = view(&state, 'a', ms(8_000)).inflight_requests;
    assert!(total >= 54, "{total} in flight, {} new", count(&sent, 'a'));
}

#[test]
fn three_failed_scrapes_silence_an_endpoint_until_one_works() {
    let mut state = world("a:0/0 b:9/0 c:9/0", only(&[(Scorer::Queue, 1.0)]));
    for i in 0..3 {
        assert_eq!(state.ejected(address('a'), ms(i)), None);
        state.scrape_failed(address('a'), ms(i));
    }
    let ejection = state.ejected(address('a'), ms(60_000)).unwrap();
    assert_eq!(
        (ejection.cause, ejection.until),
        (EjectionCause::Silence, None)
    );
    assert!(!picked(&state, &Ask::default(), ms(4), 1).contains('a'));
    state.scraped(address('a'), load(0, 0), ms(500));
    assert_eq!(state.ejected(address('a'), ms(500)), None);
    assert!(matches!(
        view(&state, 'a', ms(501)).standing,
        Standing::Ramping(_)
    ));
    // The ramp applies: idle as it looks, it gets one request before the others are busy.
    let sent = burst(&mut state, &Ask::default(), 4, ms(501));
    assert_eq!(count(&sent, 'a'), 1);
    assert_eq!(view(&state, 'a', ms(6_000)).standing, Standing::Good);
}

#[test]
fn silence_knows_no_half_but_if_all_are_silent_all_are_tried() {
    let mut state = world("a:0/0 b:0/0 !c:0/0", only(&[(Scorer::Queue, 1.0)]));
    for name in "aabbab".chars() {
        state.scrape_failed(address(name), ms(1));
    }
    assert!(state.ejected(address('a'), ms(1)).is_some());
    assert!(state.ejected(address('b'), ms(1)).is_some());
    let pick = state
        .choose(&Ask::default(), ms(2), &mut Rng::seeded(1))
        .unwrap();
    assert!(pick.report.panic);
    assert_eq!(pick.report.counts.candidates, 2);
    assert_eq!(pick.order.len(), 2);
}

#[test]
fn sync_keeps_what_is_known_of_those_that_stay() {
    let config = PickerConfig::default();
    let mut state = world("a:1/0.1 b:2/0.2", config.clone());
    let prompt = long_prompt(1, 2_000);
    let ask = streamed(&prompt, 2_000);
    let flight = begin(&mut state, 'b', &ask, ms(1));
    let before = view(&state, 'b', ms(2));
    state.sync(&pool_of(['b', 'c'].map(address), config), ms(2));
    assert_eq!(view(&state, 'b', ms(2)), before);
    assert!(state.view(ms(2)).all(|v| v.address != address('a')));
    assert!(matches!(
        view(&state, 'c', ms(2)).standing,
        Standing::Ramping(_)
    ));
    state.finish(flight, served(), ms(3));
    assert_eq!(view(&state, 'b', ms(3)).inflight_requests, 0);
}

#[test]
fn a_changed_policy_applies_at_once() {
    let mut state = world("a:0/0.9 b:9/0.1", only(&[(Scorer::Queue, 1.0)]));
    assert_eq!(picked(&state, &Ask::default(), ms(1), 1), "a b");
    let kv = only(&[(Scorer::KvCache, 1.0)]);
    state.sync(&pool_of(['a', 'b'].map(address), kv), ms(1));
    assert_eq!(picked(&state, &Ask::default(), ms(1), 1), "b a");
}

#[test]
fn a_new_block_size_empties_the_index() {
    let mut state = world("a b", PickerConfig::default());
    let prompt = long_prompt(1, 2_000);
    let flight = begin(&mut state, 'a', &streamed(&prompt, 2_000), ms(1));
    state.finish(flight, served(), ms(1));
    assert_eq!(
        view(&state, 'a', ms(1)).prefix_blocks,
        base_blocks(prompt.len())
    );
    let config = PickerConfig {
        prefix_block_bytes: 512,
        ..PickerConfig::default()
    };
    state.sync(&pool_of(['a', 'b'].map(address), config), ms(2));
    assert_eq!(view(&state, 'a', ms(2)).prefix_blocks, 0);
}

#[test]
fn a_flight_of_a_removed_endpoint_ends_harmlessly() {
    let config = PickerConfig::default();
    let mut state = world("a b", config.clone());
    let prompt = long_prompt(1, 2_000);
    let ask = streamed(&prompt, 2_000);
    let mut flight = begin(&mut state, 'a', &ask, ms(1));
    let other = begin(&mut state, 'a', &ask, ms(1));
    // c takes the slot that a had.
    state.sync(&pool_of(['b', 'c'].map(address), config.clone()), ms(2));
    state.first_byte(&mut flight, ms(3));
    state.finish(flight, failed(RESET), ms(4));
    assert_eq!(view(&state, 'c', ms(4)).inflight_requests, 0);
    // a comes back: still none of the old one's business.
    state.sync(&pool_of(['a', 'b'].map(address), config), ms(5));
    state.finish(other, served(), ms(6));
    assert_eq!(view(&state, 'a', ms(6)).inflight_requests, 0);
    let nowhere = begin(&mut state, 'z', &ask, ms(7));
    state.finish(nowhere, failed(RESET), ms(8));
}

#[test]
fn a_reused_slot_does_not_inherit_memory() {
    let config = PickerConfig::default();
    let mut state = world("a b", config.clone());
    let prompt = long_prompt(1, 2_000);
    let ask = Ask {
        session: Some(9),
        ..streamed(&prompt, 2_000)
    };
    let flight = begin(&mut state, 'a', &ask, ms(1));
    state.finish(flight, served(), ms(1));
    state.sync(&pool_of([address('b')], config.clone()), ms(2));
    state.sync(&pool_of(['b', 'c'].map(address), config), ms(3));
    let c = view(&state, 'c', ms(4));
    assert_eq!((c.prefix_blocks, c.load), (0, None));
    let pick = state.choose(&ask, ms(4), &mut Rng::seeded(1)).unwrap();
    assert!(pick.order.iter().all(|choice| choice.hit_blocks == 0));
    let session = pick
        .report
        .scorers
        .iter()
        .position(|s| s.scorer == Scorer::Session);
    assert!(
        pick.report
            .considered
            .iter()
            .all(|c| c.scores[session.unwrap()] == 0.0)
    );
}

#[test]
fn a_prompt_that_never_arrived_is_not_in_cache() {
    let mut state = world("a b", PickerConfig::default());
    let prompt = long_prompt(1, 2_000);
    let ask = streamed(&prompt, 2_000);
    for end in [failed(FailureKind::Connect), End::plain(EndKind::Cancelled)] {
        let flight = begin(&mut state, 'a', &ask, ms(1));
        assert_eq!(
            view(&state, 'a', ms(1)).prefix_blocks,
            base_blocks(prompt.len())
        );
        state.finish(flight, end, ms(2));
        assert_eq!(view(&state, 'a', ms(2)).prefix_blocks, 0);
    }
    let mut flight = begin(&mut state, 'a', &ask, ms(3));
    state.first_byte(&mut flight, ms(4));
    state.finish(flight, failed(RESET), ms(5));
    assert_eq!(
        view(&state, 'a', ms(5)).prefix_blocks,
        base_blocks(prompt.len())
    );
}

/// Serves a prompt of 4,000 tokens, of which the server found `cached` in its cache.
fn serve_prompt(state: &mut PoolState, id: u8, cached: Option<u32>, now: u64) -> u32 {
    let prompt = long_prompt(id, 4_000);
    let mut flight = begin(state, 'a', &streamed(&prompt, 4_000), ms(now));
    state.first_byte(&mut flight, ms(now + 1));
    let claimed = flight.hit_tokens();
    let end = End {
        prompt_tokens: Some(4_100),
        cached_tokens: cached,
        ..served()
    };
    state.finish(flight, end, ms(now + 2));
    claimed
}

fn small_cache() -> PickerConfig {
    PickerConfig {
        prefix_blocks_per_endpoint: 1_000,
        ..PickerConfig::default()
    }
}

#[test]
fn a_server_that_lost_a_prompt_lost_everything_older_and_has_less_room() {
    let mut state = world("a", small_cache());
    for id in 0..10 {
        assert_eq!(serve_prompt(&mut state, id, Some(0), u64::from(id) * 10), 0);
    }
    let blocks = base_blocks(long_prompt(0, 4_000).len());
    assert_eq!(view(&state, 'a', ms(200)).prefix_blocks, 10 * blocks);
    // The sixth of ten prompts is gone, so the first five are as well.
    assert!(serve_prompt(&mut state, 5, Some(0), 200) > 3_900);
    let after = view(&state, 'a', ms(300));
    assert_eq!(after.prefix_blocks, 5 * blocks);
    assert!(
        (500..900).contains(&after.prefix_blocks_max),
        "{}",
        after.prefix_blocks_max
    );
    assert_eq!(serve_prompt(&mut state, 4, Some(0), 300), 0);
    assert!(serve_prompt(&mut state, 5, Some(4_000), 400) > 3_900);
}

#[test]
fn a_server_that_reports_no_cached_tokens_changes_nothing() {
    let mut state = world("a", small_cache());
    serve_prompt(&mut state, 1, None, 0);
    let before = view(&state, 'a', ms(5));
    assert!(serve_prompt(&mut state, 1, None, 10) > 3_900);
    let after = view(&state, 'a', ms(15));
    assert_eq!(after.prefix_blocks, before.prefix_blocks);
    assert_eq!(after.prefix_blocks_max, 1_000);
}

#[test]
fn a_miss_on_a_prompt_that_is_still_being_computed_proves_nothing() {
    let mut state = world("a", small_cache());
    serve_prompt(&mut state, 1, Some(0), 0);
    let prompt = long_prompt(2, 4_000);
    let first = begin(&mut state, 'a', &streamed(&prompt, 4_000), ms(10));
    serve_prompt(&mut state, 2, Some(0), 11);
    let after = view(&state, 'a', ms(20));
    assert_eq!(
        (after.prefix_blocks, after.prefix_blocks_max),
        (2 * base_blocks(prompt.len()), 1_000)
    );
    state.finish(first, served(), ms(30));
}

#[test]
fn capacity_recovers_when_claims_hold() {
    let mut state = world("a", small_cache());
    for id in 0..10 {
        serve_prompt(&mut state, id, Some(0), u64::from(id) * 10);
    }
    serve_prompt(&mut state, 0, Some(0), 200);
    serve_prompt(&mut state, 9, Some(0), 210);
    let shrunk = view(&state, 'a', ms(220)).prefix_blocks_max;
    assert!(shrunk < 800, "{shrunk}");
    for round in 0..2_000_u64 {
        let id = (round % 16) as u8;
        let fits = u32::from(round >= 16) * 4_000;
        serve_prompt(&mut state, id, Some(fits), 300 + round * 10);
    }
    // It said 4,000 cached tokens more often than was claimed: it has more room than thought.
    let grown = view(&state, 'a', ms(100_000)).prefix_blocks_max;
    assert!((1_000..=4_000).contains(&grown), "{grown}");
}

#[test]
fn capacity_comes_from_the_servers_own_numbers() {
    let mut state = world("a", PickerConfig::default());
    assert_eq!(view(&state, 'a', ms(0)).prefix_blocks_max, 31_250);
    let scrape = Load {
        blocks: Some(19_208),
        block_tokens: Some(16),
        ..load(0, 0)
    };
    state.scraped(address('a'), scrape, ms(1));
    assert_eq!(
        view(&state, 'a', ms(1)).prefix_blocks_max,
        19_208 * 16 * 4 / 256
    );
}

#[test]
fn prompts_sent_since_the_scrape_fill_the_kv_cache() {
    let mut state = world("a b", only(&[(Scorer::KvCache, 1.0)]));
    let scrape = Load {
        blocks: Some(1_000),
        block_tokens: Some(16),
        ..load(0, 0)
    };
    state.scraped(address('a'), scrape.clone(), ms(1));
    state.scraped(
        address('b'),
        Load {
            kv_used: Some(0.4),
            ..scrape
        },
        ms(1),
    );
    assert_eq!(picked(&state, &Ask::default(), ms(2), 1), "a b");
    let _flight = begin(&mut state, 'a', &streamed(&[], 4_000), ms(2));
    assert_eq!(picked(&state, &Ask::default(), ms(3), 1), "b a");
}

#[test]
fn stale_after_means_stale_after() {
    let mut state = world("a:7/0.5", PickerConfig::default());
    state.scraped(address('a'), load(1, 1), ms(100));
    let waiting = |at| view(&state, 'a', ms(at)).waiting;
    assert_eq!((waiting(2_100), waiting(2_101)), (Some(1.0), None));
    assert_eq!(
        view(&state, 'a', ms(2_101)).load_age,
        Some(Duration::from_millis(2_001))
    );
}
