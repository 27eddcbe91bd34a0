//! Policies put together from profiles, filters and scorers with parameters.

use forebay_model::endpoint::Stage;
use forebay_model::policy::{
    Band, Bands, Fairness, Filter, GradualShedding, LabelCondition, LabelOperator, LabelSelector,
    LoadLimits, PrefixAffinity, Profile, ProfileBy, Proximity, Saturation, Signal, SignalFilter,
    SignalTest,
};

use super::*;

fn profile(filters: &[Filter], scorers: &[Scorer]) -> Profile {
    let weighted = |scorer: &Scorer| WeightedScorer {
        scorer: scorer.clone(),
        weight: 1.0,
    };
    Profile {
        name: "only".to_owned(),
        filters: filters.to_vec(),
        scorers: scorers.iter().map(weighted).collect(),
        ..Profile::default()
    }
}

fn policy(filters: &[Filter], scorers: &[Scorer]) -> PickerConfig {
    PickerConfig {
        profiles: vec![profile(filters, scorers)],
        ..PickerConfig::default()
    }
}

/// Endpoints a, b, ... with labels as in `role=decode,gpu=h100` or `-` for none, and hosts h1, h1, h2, h2, ...
fn labelled(words: &str, picker: PickerConfig) -> PoolState {
    let names = (b'a'..=b'z').map(char::from);
    let addresses: Vec<_> = words
        .split(' ')
        .zip(names)
        .map(|(_, name)| address(name))
        .collect();
    let mut pool = pool_of(addresses, picker);
    for (at, (endpoint, word)) in pool.endpoints.iter_mut().zip(words.split(' ')).enumerate() {
        let labels = word.split(',').filter_map(|pair| pair.split_once('='));
        let key = |key: &str| match key {
            "role" => Role::LABEL.to_owned(),
            other => other.to_owned(),
        };
        let labels = labels.map(|(k, v)| (key(k), v.to_owned()));
        endpoint.labels = Arc::new(labels.collect());
        endpoint.topology.host = Some(format!("h{}", at / 2 + 1).into());
        endpoint.topology.zone = Some("z1".into());
    }
    PoolState::new(&pool, ms(0))
}

/// Who may be picked, whatever the seed.
fn pickable(state: &PoolState, ask: &Ask<'_>) -> String {
    let mut names: Vec<char> = Vec::new();
    for seed in 0..40 {
        match state.choose(ask, ms(1), &mut Rng::seeded(seed)) {
            Ok(pick) => names.push(letter(pick.winner().address)),
            Err(refusal) => return refusal.code().to_owned(),
        }
    }
    names.sort_unstable();
    names.dedup();
    names.into_iter().collect()
}

#[track_caller]
fn check(state: &PoolState, ask: &Ask<'_>, expected: &str) {
    assert_eq!(pickable(state, ask), expected);
}

#[test]
fn stages_go_by_the_label_of_roles_and_unlabelled_pods_decode() {
    let words =
        "role=prefill role=decode role=prefill-decode role=encode-prefill-decode role=encode -";
    let at = |stage| labelled(words, policy(&[Filter::Stage(stage)], &[]));
    check(&at(Stage::Prefill), &Ask::default(), "acd");
    check(&at(Stage::Decode), &Ask::default(), "bcdf");
    check(&at(Stage::Encode), &Ask::default(), "de");
}

#[test]
fn selectors_choose_by_labels_and_may_leave_nobody() {
    let selector = |operator, values: &[&str]| {
        Filter::Labels(LabelSelector {
            match_expressions: vec![LabelCondition {
                key: "gpu".to_owned(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
            ..LabelSelector::default()
        })
    };
    let words = "gpu=h100 gpu=l4 -";
    let at = |filter| labelled(words, policy(&[filter], &[]));
    check(
        &at(selector(LabelOperator::In, &["h100"])),
        &Ask::default(),
        "a",
    );
    check(
        &at(selector(LabelOperator::NotIn, &["h100"])),
        &Ask::default(),
        "bc",
    );
    check(
        &at(selector(LabelOperator::In, &["b200"])),
        &Ask::default(),
        "filtered",
    );
    let or_none = Filter::LabelOrNone {
        label: "gpu".to_owned(),
        values: vec!["l4".to_owned()],
    };
    check(&at(or_none), &Ask::default(), "bc");
}

#[test]
fn labels_that_change_are_followed() {
    let picker = policy(&[Filter::Stage(Stage::Prefill)], &[]);
    let mut state = labelled("role=prefill role=decode", picker.clone());
    check(&state, &Ask::default(), "a");
    let mut pool = pool_of([address('a'), address('b'), address('c')], picker);
    for (endpoint, role) in pool
        .endpoints
        .iter_mut()
        .zip(["decode", "prefill", "prefill"])
    {
        endpoint.labels = Arc::new([(Role::LABEL.to_owned(), role.to_owned())].into());
    }
    state.sync(&pool, ms(1));
    // Who just came gets a little too.
    check(&state, &Ask::default(), "bc");
}

#[test]
fn a_field_of_the_request_names_its_profile() {
    let named = |name: &str, stage| Profile {
        name: name.to_owned(),
        ..profile(&[Filter::Stage(stage)], &[])
    };
    let picker = PickerConfig {
        profiles: vec![
            named("prefill", Stage::Prefill),
            named("decode", Stage::Decode),
        ],
        profile_by: ProfileBy::Header {
            name: "epp-profile".to_owned(),
            default: "decode".to_owned(),
        },
        ..PickerConfig::default()
    };
    assert_eq!(reads_fields(&picker).as_slice(), ["epp-profile"]);
    let state = labelled("role=prefill role=decode", picker);
    let check = |value: Option<&str>, expected: &str| {
        let fields = value.map(|value| [("epp-profile", value)]);
        let ask = Ask {
            fields: fields.as_ref().map_or(&[], |fields| &fields[..]),
            ..Ask::default()
        };
        check(&state, &ask, expected);
    };
    check(Some("prefill"), "a");
    check(Some("decode"), "b");
    check(None, "b");
    check(Some(" "), "b");
    check(Some("encode"), "unknown-profile");
}

#[test]
fn the_field_counts_for_nothing_where_there_is_one_profile() {
    let picker = PickerConfig {
        profile_by: ProfileBy::Header {
            name: "epp-profile".to_owned(),
            default: "nobody".to_owned(),
        },
        ..policy(&[], &[])
    };
    assert!(reads_fields(&picker).is_empty());
    check(&labelled("- -", picker), &Ask::default(), "ab");
}

#[test]
fn load_limits_leave_out_who_is_beyond_and_all_stay_if_asked_for() {
    let limits = |all_if_none| {
        Filter::Load(LoadLimits {
            limits: vec![(Signal::Waiting, 2.0), (Signal::KvUsed, 0.5)],
            all_if_none,
        })
    };
    let at = |text: &str, all| world(text, policy(&[limits(all)], &[]));
    check(
        &at("a:2/0.5 b:3/0.1 c:0/0.9 d", false),
        &Ask::default(),
        "ad",
    );
    check(&at("b:3/0.1 c:0/0.9", false), &Ask::default(), "filtered");
    check(&at("b:3/0.1 c:0/0.9", true), &Ask::default(), "bc");
}

#[test]
fn a_signal_is_tested_alone_or_against_the_others() {
    let at = |passes, unknown_passes| {
        let filter = Filter::Signal(SignalFilter {
            signal: Signal::Waiting,
            passes,
            unknown_passes,
            all_if_none: false,
        });
        world("a:1/0 b:2/0 c:3/0 d:4/0 e", policy(&[filter], &[]))
    };
    for (passes, expected) in [
        (SignalTest::LessThan(2.0), "ae"),
        (SignalTest::AtMost(2.0), "abe"),
        (SignalTest::GreaterThan(3.0), "de"),
        (SignalTest::AtLeast(3.0), "cde"),
        (SignalTest::Equal(2.0), "be"),
        (SignalTest::NotEqual(2.0), "acde"),
        (SignalTest::Within(2.0, 3.0), "bce"),
        (
            SignalTest::Top {
                count: 2,
                highest: true,
            },
            "cde",
        ),
        (
            SignalTest::Top {
                count: 1,
                highest: false,
            },
            "ae",
        ),
        (
            SignalTest::Top {
                count: 9,
                highest: true,
            },
            "abcde",
        ),
        (
            SignalTest::Percentile {
                percentile: 50.0,
                highest: false,
            },
            "abe",
        ),
        (
            SignalTest::Percentile {
                percentile: 75.0,
                highest: true,
            },
            "cde",
        ),
        (
            SignalTest::Percentile {
                percentile: 0.0,
                highest: false,
            },
            "ae",
        ),
    ] {
        check(&at(passes, true), &Ask::default(), expected);
        let known = expected.trim_end_matches('e');
        check(&at(passes, false), &Ask::default(), known);
    }
}

#[test]
fn saturated_endpoints_are_left_out_while_others_are_not() {
    let at = |text: &str, headroom| world(text, policy(&[Filter::Unsaturated { headroom }], &[]));
    check(&at("a:5/0.1 b:6/0.1 c:0/0.81", 0.0), &Ask::default(), "a");
    check(&at("a:5/0.1 b:6/0.1 c:0/0.81", 0.2), &Ask::default(), "abc");
    check(&at("b:9/0.1 c:0/0.99", 0.0), &Ask::default(), "bc");
}

#[test]
fn a_session_stays_where_it_was_as_long_as_that_is_a_candidate() {
    let mut state = world(
        "a:9/0.9 b:0/0",
        policy(&[Filter::Session], &[Scorer::QueueSpan]),
    );
    let ask = Ask {
        session: Some(1),
        ..Ask::default()
    };
    check(&state, &ask, "b");
    let flight = begin(&mut state, 'a', &ask, ms(1));
    check(&state, &ask, "a");
    check(
        &state,
        &Ask {
            avoid: &[address('a')],
            ..ask
        },
        "b",
    );
    state.finish(flight, served(), ms(2));
}

#[test]
fn a_prompt_goes_where_it_is_cached_until_all_who_hold_it_are_too_far_behind() {
    let affinity = |affinity| policy(&[Filter::PrefixAffinity(affinity)], &[]);
    let check = |settings: PrefixAffinity, behind_tokens: usize, expected: &str| {
        let mut state = world("a b", affinity(settings));
        let (held, other) = (long_prompt(1, 1_000), long_prompt(2, behind_tokens));
        let ask = |prefix, tokens: usize| Ask {
            prefix,
            prompt_tokens: tokens as u32,
            stream: true,
            ..Ask::default()
        };
        let mut first = begin(&mut state, 'a', &ask(&held, 1_000), ms(0));
        state.first_byte(&mut first, ms(1));
        let behind = begin(&mut state, 'a', &ask(&other, behind_tokens), ms(1));
        self::check(&state, &ask(&held, 1_000), expected);
        state.finish(first, served(), ms(2));
        state.finish(behind, served(), ms(2));
    };
    // 1,000 tokens per second make milliseconds of tokens.
    let settings = PrefixAffinity {
        backlog_max_ms: Some(5_000.0),
        prefill_tokens_per_s: Some(1_000.0),
        ..PrefixAffinity::default()
    };
    check(settings.clone(), 4_900, "a");
    check(settings.clone(), 5_200, "ab");
    let tokens = PrefixAffinity {
        backlog_max_ms: None,
        backlog_max_tokens: Some(3_000),
        ..settings
    };
    check(tokens.clone(), 2_900, "a");
    check(tokens, 3_200, "ab");
    let for_ever = PrefixAffinity {
        backlog_max_ms: None,
        ..settings
    };
    check(for_ever, 100_000, "a");
    // Nothing is predicted yet, so that nobody is kept to.
    let predicted = PrefixAffinity {
        predicted: true,
        ..settings
    };
    check(predicted, 100, "ab");
    let curious = PrefixAffinity {
        exploration: 0.5,
        ..settings
    };
    check(curious, 100, "ab");
}

#[test]
fn lengths_of_prompts_have_pods_of_their_own() {
    let label = "llm-d.ai/context-length-range".to_owned();
    let words = |text: &str| text.replace("range", "llm-d.ai/context-length-range");
    let words = words("range=0-2048 range=2048-8192 range=nonsense -");
    let ask = |prompt_tokens| Ask {
        prompt_tokens,
        ..Ask::default()
    };
    let filtered = labelled(&words, policy(&[Filter::ContextLength(label.clone())], &[]));
    check(&filtered, &ask(1_000), "ad");
    check(&filtered, &ask(2_048), "abd");
    check(&filtered, &ask(9_000), "d");
    let scored = labelled(&words, policy(&[], &[Scorer::ContextLength { label }]));
    let order = |tokens| picked(&scored, &ask(tokens), ms(1), 1);
    // In range, no range, out of range but close.
    assert_eq!(order(1_000), "a d b");
    assert_eq!(order(9_000), "d b a");
}

#[test]
fn near_is_near_to_the_other_part_and_nothing_without_one() {
    let near = Topology {
        host: Some("h2".into()),
        zone: Some("z1".into()),
        ..Topology::default()
    };
    let ask = Ask {
        near: Some(&near),
        ..Ask::default()
    };
    let scored = labelled("- - - -", policy(&[], &[Scorer::Near]));
    check(&scored, &ask, "cd");
    check(&scored, &Ask::default(), "abcd");
    let filtered = |least| labelled("- - - -", policy(&[Filter::Near(least)], &[]));
    check(&filtered(Proximity::Host), &ask, "cd");
    check(&filtered(Proximity::Zone), &ask, "abcd");
    check(&filtered(Proximity::Host), &Ask::default(), "abcd");
    let elsewhere = Topology::default();
    let ask = Ask {
        near: Some(&elsewhere),
        ..Ask::default()
    };
    check(&filtered(Proximity::Host), &ask, "abcd");
}

#[test]
fn a_field_prefers_pods_with_its_value_as_label() {
    let scorer = Scorer::HeaderLabel {
        header: "x-zone".to_owned(),
        label: "zone".to_owned(),
    };
    let state = labelled("zone=a zone=b -", policy(&[], &[scorer]));
    let at = |value| {
        let fields = [("x-zone", value)];
        let ask = Ask {
            fields: &fields,
            ..Ask::default()
        };
        pickable(&state, &ask)
    };
    assert_eq!([at("b"), at("a"), at("c")], ["b", "a", "abc"]);
    check(&state, &Ask::default(), "abc");
}

#[test]
fn a_cold_prompt_goes_to_who_has_not_had_one_for_longest() {
    let mut state = world("a b c", policy(&[], &[Scorer::ColdSpread]));
    let mut flights = Vec::new();
    let mut order = String::new();
    for id in 0..6 {
        let prompt = long_prompt(id + 1, 500);
        let ask = Ask {
            prefix: &prompt,
            prompt_tokens: 500,
            ..Ask::default()
        };
        let pick = state.choose(&ask, ms(1), &mut Rng::seeded(1)).unwrap();
        let name = letter(pick.winner().address);
        order.push(name);
        flights.push(begin(&mut state, name, &ask, ms(1)));
    }
    assert_eq!(order, "abcabc");
    // One that somebody holds goes anywhere, and moves nobody in the order.
    let known = long_prompt(1, 500);
    let ask = Ask {
        prefix: &known,
        prompt_tokens: 500,
        ..Ask::default()
    };
    check(&state, &ask, "abc");
}

#[test]
fn scorers_of_llm_d_say_what_its_formulas_say() {
    let scores = |scorer: Scorer, text: &str| {
        let state = world(text, policy(&[], &[scorer]));
        let pick = state
            .choose(&Ask::default(), ms(1), &mut Rng::seeded(1))
            .unwrap();
        let percent = |c: &Considered| (c.total * 100.0).round() as i32;
        pick.report
            .considered
            .iter()
            .map(percent)
            .collect::<Vec<_>>()
    };
    assert_eq!(scores(Scorer::QueueSpan, "a:0/0 b:1/0 c:2/0"), [100, 50, 0]);
    assert_eq!(scores(Scorer::QueueSpan, "a:3/0 b:3/0"), [100, 100]);
    // What is unknown is the mean of what is known.
    assert_eq!(scores(Scorer::QueueSpan, "a:0/0 b:4/0 c"), [100, 0, 50]);
    let share = Scorer::QueueShare { queue_max: 10.0 };
    assert_eq!(scores(share, "a:0/0 b:5/0 c:30/0"), [50, 25, 0]);
    let signal = |lowest, range| Scorer::Signal {
        signal: Signal::KvUsed,
        lowest,
        range,
    };
    assert_eq!(
        scores(signal(true, None), "a:0/0.2 b:0/0.4 c:0/0.6 d"),
        [100, 50, 0, 0]
    );
    assert_eq!(
        scores(signal(false, Some((0.0, 0.5))), "a:0/0.2 b:0/0.9"),
        [40, 100]
    );
}

#[test]
fn active_requests_leave_a_gap_between_idle_and_busy() {
    let scorer = Scorer::ActiveRequests {
        idle_max: 1,
        busy_score_max: 0.5,
    };
    let mut state = world("a b c", policy(&[], &[scorer]));
    let ask = Ask::default();
    let mut flights = Vec::new();
    for (name, count) in [('a', 1), ('b', 2), ('c', 4)] {
        flights.extend((0..count).map(|_| begin(&mut state, name, &ask, ms(1))));
    }
    let pick = state.choose(&ask, ms(1), &mut Rng::seeded(1)).unwrap();
    let totals: Vec<f32> = pick.report.considered.iter().map(|c| c.total).collect();
    assert_eq!(totals, [1.0, 0.25, 0.0]);
}

#[test]
fn saturation_by_requests_in_flight_needs_no_metrics() {
    let picker = PickerConfig {
        saturation: Saturation::Inflight {
            requests_max: Some(2),
            tokens_max: Some(1_000),
        },
        ..PickerConfig::default()
    };
    let mut state = world("a b", picker);
    assert_eq!(state.saturation(ms(0)), 0.0);
    let prompt = |prompt_tokens| Ask {
        prompt_tokens,
        stream: true,
        ..Ask::default()
    };
    let first = begin(&mut state, 'a', &prompt(100), ms(0));
    assert_eq!(state.saturation(ms(0)), 0.25);
    // The larger share counts: 1,600 of 2,000 tokens, 2 of 4 requests.
    let second = begin(&mut state, 'b', &prompt(1_500), ms(0));
    assert_eq!(state.saturation(ms(0)), 0.8);
    state.finish(second, served(), ms(1));
    state.finish(first, served(), ms(1));
    assert_eq!(state.saturation(ms(1)), 0.0);
}

#[test]
fn bands_have_limits_ceilings_and_turns_of_their_own() {
    let band = |requests_max, ceiling, fairness| Band {
        requests_max,
        ceiling,
        fairness,
        ..Band::default()
    };
    let picker = PickerConfig {
        queue_at_saturation: Some(1.0),
        shed_negative: false,
        bands: Some(Bands {
            by_priority: [
                (10, band(2, 1.0, Fairness::Turns)),
                (-5, band(1, 0.5, Fairness::Arrival)),
            ]
            .into(),
            default: band(9, 0.8, Fairness::Arrival),
            negative: None,
        }),
        ..PickerConfig::default()
    };
    // 0.6 full.
    let mut state = world("a:3/0", picker.clone());
    let waiter = |priority, fairness| Waiter {
        priority,
        fairness,
        bytes: 1,
    };
    assert_eq!(state.offer(waiter(10, 1), ms(1)), Ok(Offer::Go));
    let low = state.offer(waiter(-5, 1), ms(1));
    assert!(matches!(low, Ok(Offer::Wait { .. })), "{low:?}");
    let full = state.offer(waiter(-5, 2), ms(1));
    assert_eq!(full, Ok(Offer::Refuse(GateRefusal::QueueFull)));
    // Full for all: who of a band goes first is the band's business.
    let mut state = world("a:5/0", picker);
    let mut ticket = |priority, fairness| match state.offer(waiter(priority, fairness), ms(1)) {
        Ok(Offer::Wait { ticket, .. }) => ticket,
        other => panic!("{other:?}"),
    };
    let arrivals = [ticket(0, 1), ticket(0, 1), ticket(0, 2)];
    state.scraped(
        address('a'),
        Load {
            waiting: Some(0),
            ..Load::default()
        },
        ms(2),
    );
    assert_eq!(state.turns(ms(2)).released, arrivals);
}

#[test]
fn some_are_shed_the_more_the_fuller_the_pool_is() {
    let refused = |text: &str, priority| {
        let picker = PickerConfig {
            shed_gradually: Some(GradualShedding {
                power: 1.0,
                scale: 1.0,
                ..GradualShedding::default()
            }),
            shed_at_saturation: 100.0,
            ..PickerConfig::default()
        };
        let state = world(text, picker);
        let mut rng = Rng::seeded(1);
        let ask = Ask {
            priority,
            ..Ask::default()
        };
        let picks = (0..1_000).map(|_| state.choose(&ask, ms(1), &mut rng));
        picks.filter(Result::is_err).count()
    };
    assert_eq!(refused("a:0/0", -1), 0);
    let some = refused("a:2/0", -1);
    assert!((330..470).contains(&some), "{some}");
    assert_eq!(refused("a:5/0", -1), 1_000);
    assert_eq!(refused("a:5/0", 0), 0);
}
