use forebay_model::kv::{CacheEvent, Lora, Stored, Tier};
use forebay_model::picker::PrecisePrefix;

use super::*;

fn precise() -> PickerConfig {
    PickerConfig {
        precise_prefix: Some(PrecisePrefix::default()),
        sticky_share: 1.0,
        ..PickerConfig::default()
    }
}

fn tokens(id: u32) -> Vec<u32> {
    (0..1_000).map(|at| id * 10_000 + at).collect()
}

fn stored(id: u32, blocks: usize) -> Stored {
    Stored {
        blocks: (0..blocks as u64)
            .map(|at| u64::from(id) << 32 | at)
            .collect(),
        tokens: tokens(id)[..blocks * 16].to_vec(),
        block_tokens: 16,
        full_attention: true,
        ..Stored::default()
    }
}

fn tell(state: &mut PoolState, name: char, stored: Stored) {
    state.kv_apply(address(name), &[CacheEvent::Stored(stored)]);
}

/// Knowledge and tokens of each endpoint, for the prompt `id` by its tokens and bytes.
fn known(state: &PoolState, id: u32, model: Option<&str>) -> Vec<(Knowledge, u32)> {
    let mut chains = Vec::new();
    if let Some(plan) = state.token_plan(model) {
        plan.hash(&tokens(id), None, &mut chains);
    }
    let prefix = long_prompt(id as u8, 1_000);
    let ask = Ask {
        model,
        prefix: &prefix,
        tokens: &chains,
        prompt_tokens: 1_000,
        ..Ask::default()
    };
    let pick = state.choose(&ask, ms(1), &mut Rng::seeded(1));
    let considered = pick.expect("an endpoint").report.considered;
    considered
        .iter()
        .map(|c| (c.knowledge, c.hit_tokens))
        .collect()
}

#[test]
fn each_endpoint_is_known_by_the_best_that_there_is() {
    let mut state = world("a b c d", precise());
    state.kv_follow(address('a'), Following::Wholly);
    state.kv_follow(address('b'), Following::Partly);
    state.kv_follow(address('c'), Following::Wholly);
    // All are sent the prompt, and nobody says so in time but a and b, who hold a part of it.
    let prefix = long_prompt(1, 1_000);
    let ask = Ask {
        prefix: &prefix,
        prompt_tokens: 1_000,
        ..Ask::default()
    };
    for name in ['a', 'b', 'c', 'd'] {
        let flight = begin(&mut state, name, &ask, ms(0));
        state.finish(flight, served(), ms(1));
    }
    tell(&mut state, 'a', stored(1, 10));
    tell(&mut state, 'b', stored(1, 10));
    state.kv_follow(address('c'), Following::Lost);
    let sent = known(&state, 1, None)[3].1;
    assert!(sent > 900);
    assert_eq!(
        known(&state, 1, None),
        [
            (Knowledge::Events, 160),
            (Knowledge::EventsInPart, sent),
            (Knowledge::EventsLost, sent),
            (Knowledge::Unheard, sent),
        ]
    );
    let untold = world("a", PickerConfig::default());
    assert_eq!(known(&untold, 1, None)[0].0, Knowledge::Sent);
    // A server that went away has lost its cache, whatever it said.
    for at in 0..9 {
        state.scrape_failed(address('a'), ms(at * 1_000));
    }
    state.scraped(address('a'), Load::default(), ms(60_000));
    assert_eq!(state.kv_following(address('a')), Following::Lost);
}

#[test]
fn slow_tiers_count_as_less() {
    let mut state = world("a", precise());
    state.kv_follow(address('a'), Following::Wholly);
    tell(&mut state, 'a', stored(1, 10));
    let copied = Stored {
        tokens: Vec::new(),
        tier: Tier::Host,
        ..stored(1, 10)
    };
    tell(&mut state, 'a', copied);
    assert_eq!(known(&state, 1, None), [(Knowledge::Events, 160)]);
    let removed = forebay_model::kv::Removed {
        blocks: (5..10).map(|at| 1 << 32 | at).collect(),
        ..Default::default()
    };
    state.kv_apply(address('a'), &[CacheEvent::Removed(removed)]);
    // Five blocks at once, five at four fifths.
    assert_eq!(known(&state, 1, None), [(Knowledge::Events, 80 + 64)]);
}

#[test]
fn a_prompt_that_was_just_sent_counts_until_the_server_should_have_told() {
    let mut state = world("a b", precise());
    for name in ['a', 'b'] {
        state.kv_follow(address(name), Following::Wholly);
    }
    let mut chains = Vec::new();
    let plan = state.token_plan(None).expect("endpoints tell");
    plan.hash(&tokens(1), None, &mut chains);
    let ask = Ask {
        tokens: &chains,
        prompt_tokens: 1_000,
        ..Ask::default()
    };
    let flight = begin(&mut state, 'a', &ask, ms(0));
    assert_eq!(flight.hit_tokens(), 0);
    assert_eq!(known(&state, 1, None)[0].1, 992);
    assert_eq!(known(&state, 1, None)[1].1, 0);
    state.scraped(address('a'), Load::default(), ms(2_000));
    assert_eq!(known(&state, 1, None)[0].1, 0);
    state.finish(flight, served(), ms(2_001));
}

#[test]
fn an_adapter_that_events_name_has_a_cache_of_its_own() {
    let mut state = world("a", precise());
    state.kv_follow(address('a'), Following::Wholly);
    let for_adapter = Stored {
        lora: Lora::Named("sql".into()),
        ..stored(1, 10)
    };
    tell(&mut state, 'a', for_adapter);
    assert_eq!(known(&state, 1, Some("sql"))[0].1, 160);
    assert_eq!(known(&state, 1, Some("llama"))[0].1, 0);
}

#[test]
fn tokens_that_servers_count_otherwise_are_not_trusted() {
    let mut state = world("a", precise());
    state.kv_follow(address('a'), Following::Wholly);
    tell(&mut state, 'a', stored(1, 10));
    let mut chains = Vec::new();
    let plan = state.token_plan(None).expect("it tells");
    plan.hash(&tokens(1), None, &mut chains);
    let mut serve = |counted: u32, times: usize| {
        for _ in 0..times {
            let ask = Ask {
                tokens: &chains,
                prompt_tokens: 1_000,
                ..Ask::default()
            };
            let flight = begin(&mut state, 'a', &ask, ms(0));
            let end = End {
                prompt_tokens: Some(counted),
                ..served()
            };
            state.finish(flight, end, ms(1));
        }
        known(&state, 1, None)[0].0
    };
    assert_eq!(serve(1_001, 3), Knowledge::Events);
    assert_eq!(serve(1_001, 1), Knowledge::TokensDiffer);
    assert_eq!(serve(1_000, 4), Knowledge::TokensDiffer);
    assert_eq!(serve(1_000, 1), Knowledge::Events);
    assert_eq!(serve(999, 16), Knowledge::TokensDiffer);
}
