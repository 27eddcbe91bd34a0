//! The queue at a pool: who goes when the pool gets emptier, and how many at once.

use super::*;

/// One request in a server's queue fills it.
fn narrow() -> PickerConfig {
    PickerConfig {
        saturation_queue: 1,
        ..PickerConfig::default()
    }
}

fn waiter(priority: i32) -> Waiter {
    Waiter {
        priority,
        fairness: 0,
        bytes: 1,
    }
}

fn load(waiting: u32) -> Load {
    Load {
        waiting: Some(waiting),
        ..Load::default()
    }
}

/// Offers a request that has to wait.
#[track_caller]
fn queue(state: &mut PoolState, priority: i32, now: Moment) -> Ticket {
    match state.offer(waiter(priority), now) {
        Ok(Offer::Wait { ticket, .. }) => ticket,
        other => panic!("it does not wait: {other:?}"),
    }
}

#[test]
fn a_free_place_goes_to_one_who_waits() {
    let mut state = world("a:1/0", narrow());
    let first = queue(&mut state, 0, ms(1));
    let second = queue(&mut state, 0, ms(1));
    let urgent = queue(&mut state, 3, ms(2));
    assert_eq!(state.turns(ms(3)), Turns::default());
    state.scraped(address('a'), load(0), ms(4));
    assert_eq!(state.turns(ms(4)).released, [urgent]);
    assert_eq!(state.turns(ms(4)), Turns::default());
    state.scraped(address('a'), load(0), ms(5));
    // On its way, it counts in spite of a scrape that does not know it yet.
    assert_eq!(state.turns(ms(5)), Turns::default());
    // It left, or went somewhere else.
    state.arrived();
    assert_eq!(state.turns(ms(5)).released, [first]);
    state.arrived();
    assert_eq!(state.turns(ms(5)).released, [second]);
}

#[test]
fn what_was_booked_fills_the_place_that_was_kept() {
    let mut state = world("a:0/0", narrow());
    let flight = begin(&mut state, 'a', &Ask::default(), ms(1));
    let (one, two) = (queue(&mut state, 0, ms(2)), queue(&mut state, 0, ms(2)));
    state.finish(flight, served(), ms(3));
    assert_eq!(state.turns(ms(3)).released, [one]);
    let flight = begin(&mut state, 'a', &Ask::default(), ms(4));
    state.arrived();
    assert_eq!(state.turns(ms(4)), Turns::default());
    state.finish(flight, served(), ms(5));
    assert_eq!(state.turns(ms(5)).released, [two]);
}

#[test]
fn negative_priorities_never_wait_and_never_overtake() {
    let mut state = world("a:0/0", narrow());
    assert_eq!(state.offer(waiter(-1), ms(1)), Ok(Offer::Go));
    state.scraped(address('a'), load(1), ms(1));
    let saturated = |offer| matches!(offer, Err(Refusal::Saturated { priority: -1, .. }));
    assert!(saturated(state.offer(waiter(-1), ms(1))));
    let waits = queue(&mut state, 0, ms(1));
    // Room comes up, and somebody waits for it.
    state.scraped(address('a'), load(0), ms(2));
    assert!(saturated(state.offer(waiter(-1), ms(2))));
    assert_eq!(state.turns(ms(2)).released, [waits]);
}

#[test]
fn a_pool_of_which_nothing_is_known_keeps_nobody() {
    let mut state = world("a:9/1 b", PickerConfig::default());
    let tickets = [0, 0, 7].map(|priority| queue(&mut state, priority, ms(1)));
    assert_eq!(state.turns(ms(2_000)), Turns::default());
    assert_eq!(
        state.turns(ms(2_001)).released,
        [tickets[2], tickets[0], tickets[1]]
    );
    assert_eq!(state.offer(waiter(0), ms(2_001)), Ok(Offer::Go));
}

#[test]
fn nobody_waits_where_queueing_is_off_or_ends() {
    let off = PickerConfig {
        queue_at_saturation: None,
        ..PickerConfig::default()
    };
    let mut state = world("a:9/1", off.clone());
    assert_eq!(state.offer(waiter(0), ms(1)), Ok(Offer::Go));
    let mut state = world("a:9/1", PickerConfig::default());
    let one = queue(&mut state, 0, ms(1));
    state.sync(&pool_of([address('a')], off), ms(2));
    assert_eq!(state.turns(ms(2)).released, [one]);
    let mut state = world("a:9/1", PickerConfig::default());
    let one = queue(&mut state, 0, ms(1));
    state.open_gate();
    assert_eq!(state.turns(ms(2)).released, [one]);
}

#[test]
fn waits_end_by_the_time_limit_in_force() {
    let mut state = world("a:9/1", PickerConfig::default());
    let one = queue(&mut state, 0, ms(1));
    let shorter = PickerConfig {
        queue_timeout_ms: 10,
        ..PickerConfig::default()
    };
    state.sync(&pool_of([address('a')], shorter), ms(2));
    assert_eq!(state.turns(ms(10)), Turns::default());
    let turns = state.turns(ms(11));
    assert_eq!((turns.released, turns.expired), (vec![], vec![one]));
}

#[test]
fn kv_cache_of_what_was_answered_since_the_scrape_is_free_again() {
    let mut state = world("a", PickerConfig::default());
    let large = Load {
        waiting: Some(0),
        kv_used: Some(0.0),
        blocks: Some(100),
        block_tokens: Some(16),
        ..Load::default()
    };
    state.scraped(address('a'), large, ms(1));
    let ask = Ask {
        prompt_tokens: 1_400,
        ..Ask::default()
    };
    let flight = begin(&mut state, 'a', &ask, ms(2));
    let waits = queue(&mut state, 0, ms(3));
    state.finish(flight, served(), ms(4));
    assert_eq!(state.turns(ms(4)).released, [waits]);
    assert_eq!(state.saturation(ms(4)), 0.0);
}

/// Sends `arriving` requests per interval to a server that takes whatever it is sent at once, and
/// reports no first bytes. Returns who waits after each scrape.
fn waiting_at_a_fast_server(arriving: usize, intervals: u64, every: u64) -> Vec<usize> {
    let mut state = world("a:0/0", PickerConfig::default());
    let mut waiting = Vec::new();
    for interval in 1..=intervals {
        let now = ms(interval * every);
        state.scraped(address('a'), load(0), now);
        let mut released = state.turns(now).released;
        while released.pop().is_some() {
            drop(begin(&mut state, 'a', &Ask::default(), now));
            state.arrived();
            released.extend(state.turns(now).released);
        }
        for _ in 0..arriving {
            if state.offer(waiter(0), now) == Ok(Offer::Go) {
                drop(begin(&mut state, 'a', &Ask::default(), now));
            }
        }
        waiting.push(state.gate().len());
    }
    waiting
}

#[test]
fn a_server_that_keeps_up_does_not_pass_for_full_for_long() {
    assert_eq!(waiting_at_a_fast_server(5, 10, 50), [0; 10]);
    let waiting = waiting_at_a_fast_server(40, 40, 50);
    assert!(waiting[0] > 0, "a burst at a server of unknown speed waits");
    assert_eq!(waiting[39], 0, "{waiting:?}");
}

#[test]
fn a_long_gap_between_scrapes_tells_nothing_of_a_servers_pace() {
    let mut state = world("a:0/0", narrow());
    for _ in 0..50 {
        drop(begin(&mut state, 'a', &Ask::default(), ms(1)));
    }
    state.scraped(address('a'), load(0), ms(2_001));
    drop(begin(&mut state, 'a', &Ask::default(), ms(2_001)));
    assert!(state.saturation(ms(2_001)) >= 1.0);
}

#[test]
fn requests_that_never_arrived_are_none_that_the_server_took() {
    let mut state = world("a:0/0", narrow());
    for _ in 0..3 {
        let flight = begin(&mut state, 'a', &Ask::default(), ms(1));
        state.finish(flight, End::plain(EndKind::Cancelled), ms(2));
    }
    state.scraped(address('a'), load(0), ms(50));
    drop(begin(&mut state, 'a', &Ask::default(), ms(51)));
    assert!(state.saturation(ms(51)) >= 1.0);
}
