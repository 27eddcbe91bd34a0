//! The engine against what must always hold, and against simple models of its parts.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::tokens::output_token;
use super::*;
use crate::profile;

fn engine(settings: Settings) -> Engine {
    let profile = profile::named("rtxpro6000-llama-3.1-8b-tp1").expect("embedded");
    Engine::new(profile, settings, 1)
}

fn settings() -> Settings {
    Settings {
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        kv_blocks: 40,
        max_model_len: 640,
        max_loras: 2,
        requests_max: 1000,
        prefix_caching: true,
        async_scheduling: true,
        reserve_full_prompt: false,
        step_jitter: 0.0,
    }
}

fn request(id: RequestId, tokens: &[u32], output_tokens: u32) -> Request {
    let prompt = Prompt::from_tokens(tokens, 0);
    Request {
        id,
        prompt,
        output_tokens,
        output_seed: id,
        adapter: None,
    }
}

/// Runs until nothing is left; tokens that came out per request, and all reports.
fn run(engine: &mut Engine) -> (BTreeMap<RequestId, u32>, Vec<StepReport>) {
    let (mut counts, mut reports) = (BTreeMap::new(), Vec::new());
    while let Some(report) = engine.step(Moment::ORIGIN) {
        for id in &report.emitted {
            *counts.entry(*id).or_default() += 1;
        }
        reports.push(report);
        assert!(reports.len() < 100_000, "the engine must come to an end");
    }
    assert!(engine.is_idle(), "nothing to do means that nothing is left");
    (counts, reports)
}

fn check_invariants(engine: &Engine) {
    let held: Vec<&[BlockId]> = engine
        .sequences
        .iter()
        .flatten()
        .map(|sequence| sequence.blocks.as_slice())
        .collect();
    engine.pool.check(&held);
    let load = engine.load();
    assert!(load.running <= engine.settings.max_num_seqs);
    assert!(load.running_adapters.len() <= engine.settings.max_loras as usize);
    assert_eq!(
        engine.by_id.len(),
        engine.running.len() + engine.waiting.len()
    );
    for slot in &engine.running {
        let sequence = engine.sequence(*slot);
        let room = sequence.blocks.len() * BLOCK_TOKENS as usize;
        assert!(
            sequence.computed as usize <= room,
            "computed tokens have blocks"
        );
    }
}

#[derive(Clone, Debug)]
enum Op {
    Submit {
        family: u32,
        prompt: u32,
        output: u32,
        adapter: Option<u32>,
    },
    Step,
    Abort(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let submit = (0..3_u32, 1..200_u32, 1..60_u32, prop::option::of(0..4_u32)).prop_map(
        |(family, prompt, output, adapter)| Op::Submit {
            family,
            prompt,
            output,
            adapter,
        },
    );
    let op = prop_oneof![3 => submit, 6 => Just(Op::Step), 1 => (0..40_u64).prop_map(Op::Abort)];
    prop::collection::vec(op, 1..120)
}

fn check_ops(settings: Settings, ops: &[Op]) {
    let mut engine = engine(settings);
    let (mut next, mut wanted, mut came) = (0, BTreeMap::new(), BTreeMap::<u64, u32>::new());
    for op in ops {
        match op {
            Op::Submit {
                family,
                prompt,
                output,
                adapter,
            } => {
                let tokens: Vec<u32> = (0..*prompt).map(|i| family * 1000 + i).collect();
                let salt = adapter.map_or(0, |adapter| u64::from(adapter) + 1);
                let submitted = engine.submit(Request {
                    adapter: *adapter,
                    prompt: Prompt::from_tokens(&tokens, salt),
                    ..request(next, &tokens, *output)
                });
                submitted.expect("fits");
                wanted.insert(next, *output);
                next += 1;
            }
            Op::Step => {
                if let Some(report) = engine.step(Moment::ORIGIN) {
                    assert!(report.tokens <= settings.max_num_batched_tokens, "budget");
                    assert!(report.duration > Duration::ZERO);
                    for id in report.emitted {
                        *came.entry(id).or_default() += 1;
                    }
                }
            }
            Op::Abort(id) => {
                if engine.abort(*id) {
                    wanted.remove(id);
                    came.remove(id);
                }
            }
        }
        check_invariants(&engine);
    }
    let (rest, _) = run(&mut engine);
    for (id, count) in rest {
        *came.entry(id).or_default() += count;
    }
    assert_eq!(came, wanted, "every request gets all of its tokens");
    assert_eq!(
        engine.pool.free(),
        engine.settings.kv_blocks,
        "no block leaks"
    );
    check_invariants(&engine);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn blocks_never_leak_and_every_request_finishes(
        ops in ops(), async_scheduling: bool, reserve_full_prompt: bool, prefix_caching: bool,
    ) {
        check_ops(
            Settings { async_scheduling, reserve_full_prompt, prefix_caching, ..settings() },
            &ops,
        );
    }

    /// The model: with room for everything, a prompt's hits are the longest run of whole blocks that
    /// some earlier prompt starts with, except the block of its last token.
    #[test]
    fn cache_hits_agree_with_a_set_of_all_prefixes(
        prompts in prop::collection::vec((0..3_u32, 1..20_usize, 0..4_u32), 1..30),
    ) {
        let roomy = Settings {
            kv_blocks: 10_000, max_num_batched_tokens: 100_000, max_num_seqs: 100, ..settings()
        };
        let mut engine = engine(roomy);
        let mut seen: HashSet<Vec<u32>> = HashSet::new();
        let (mut expected, mut cached) = (Vec::new(), Vec::new());
        for (id, (family, length, own)) in prompts.iter().enumerate() {
            let mut tokens: Vec<u32> = (0..*length as u32 * 7).map(|i| family * 1000 + i).collect();
            tokens.extend((0..*own).map(|i| 9_000_000 + id as u32 * 100 + i));
            tokens.push(1);
            let usable = (tokens.len() - 1) / 16;
            let hit = (0..usable).take_while(|i| seen.contains(&tokens[..(i + 1) * 16])).count();
            expected.push((id as u64, hit as u32 * 16));
            for end in 1..=tokens.len() / 16 {
                seen.insert(tokens[..end * 16].to_vec());
            }
            engine.submit(request(id as u64, &tokens, 1)).expect("fits");
            if id % 3 == 0 {
                cached.extend(engine.step(Moment::ORIGIN).into_iter().flat_map(|r| r.admitted));
            }
        }
        cached.extend(run(&mut engine).1.into_iter().flat_map(|report| report.admitted));
        let cached: Vec<(u64, u32)> = cached.iter().map(|a| (a.id, a.cached_tokens)).collect();
        prop_assert_eq!(&cached, &expected);
        let hits: u32 = expected.iter().map(|(_, hit)| hit).sum();
        prop_assert_eq!(engine.totals().prefix_hits, u64::from(hits));
    }
}

#[test]
fn an_answer_is_found_in_the_cache_when_it_comes_back_as_history() {
    let mut engine = engine(Settings {
        kv_blocks: 1000,
        max_model_len: 4000,
        ..settings()
    });
    let first: Vec<u32> = (0..50).collect();
    engine.submit(request(7, &first, 40)).expect("fits");
    run(&mut engine);
    let mut second = first;
    second.extend((0..40).map(|index| output_token(7, index)));
    second.extend(100..120);
    engine.submit(request(8, &second, 1)).expect("fits");
    let (_, reports) = run(&mut engine);
    // 89 of 90 tokens were computed: the last output token is never fed back. 5 whole blocks.
    assert_eq!(
        reports[0].admitted,
        [Admitted {
            id: 8,
            cached_tokens: 80
        }]
    );
}

#[test]
fn the_last_admitted_is_preempted_and_finishes_later() {
    let tight = Settings {
        kv_blocks: 12,
        max_model_len: 192,
        ..settings()
    };
    let mut engine = engine(tight);
    for id in 0..2 {
        let tokens: Vec<u32> = (0..60).map(|i| id as u32 * 1000 + i).collect();
        engine.submit(request(id, &tokens, 100)).expect("fits");
    }
    let (counts, reports) = run(&mut engine);
    let preempted: Vec<RequestId> = reports.iter().flat_map(|r| r.preempted.clone()).collect();
    assert!(
        !preempted.is_empty() && preempted.iter().all(|id| *id == 1),
        "{preempted:?}"
    );
    assert_eq!(counts, BTreeMap::from([(0, 100), (1, 100)]));
    let finished: Vec<RequestId> = reports.iter().flat_map(|r| r.finished.clone()).collect();
    assert_eq!(finished, [0, 1]);
    assert_eq!(engine.totals().preemptions, preempted.len() as u64);
    assert_eq!(
        engine.totals().prompt_tokens,
        120,
        "a preempted request is admitted once"
    );
}

#[test]
fn long_prompts_are_prefilled_in_chunks_beside_running_requests() {
    let mut engine = engine(Settings {
        async_scheduling: false,
        ..settings()
    });
    engine.submit(request(0, &[1; 10], 20)).expect("fits");
    engine.step(Moment::ORIGIN);
    engine
        .submit(request(1, &(0..200).collect::<Vec<_>>(), 2))
        .expect("fits");
    let (_, reports) = run(&mut engine);
    let tokens: Vec<u32> = reports.iter().map(|report| report.tokens).take(5).collect();
    // 63 prompt tokens beside one output token, three times, then the rest.
    assert_eq!(tokens, [64, 64, 64, 12, 2]);
    assert!(reports[3].emitted.contains(&1) && !reports[2].emitted.contains(&1));
}

#[test]
fn requests_for_a_third_adapter_wait_and_others_pass_them() {
    let mut engine = engine(Settings {
        max_num_batched_tokens: 1000,
        ..settings()
    });
    for (id, adapter) in [
        (0, Some(1)),
        (1, Some(2)),
        (2, Some(3)),
        (3, None),
        (4, Some(1)),
    ] {
        let wanted = Request {
            adapter,
            ..request(id, &[id as u32; 20], 5)
        };
        engine.submit(wanted).expect("fits");
    }
    let first = engine.step(Moment::ORIGIN).expect("there is work");
    let admitted: Vec<RequestId> = first.admitted.iter().map(|admitted| admitted.id).collect();
    assert_eq!(admitted, [0, 1, 3, 4]);
    let load = engine.load();
    assert_eq!((load.waiting, load.waiting_deferred), (1, 1));
    assert_eq!(load.waiting_adapters, BTreeSet::from([3]));
    assert_eq!(run(&mut engine).0[&2], 5);
}

#[test]
fn with_async_scheduling_a_newcomer_waits_for_the_step_that_is_planned_already() {
    for (async_scheduling, steps) in [(false, 1), (true, 2)] {
        let mut engine = engine(Settings {
            async_scheduling,
            ..settings()
        });
        engine.submit(request(0, &[1; 10], 20)).expect("fits");
        engine.step(Moment::ORIGIN);
        engine.submit(request(1, &[2; 10], 20)).expect("fits");
        let mut taken = 0;
        while !engine
            .step(Moment::ORIGIN)
            .expect("there is work")
            .emitted
            .contains(&1)
        {
            taken += 1;
        }
        assert_eq!(taken + 1, steps);
    }
}

#[test]
fn requests_that_can_never_run_are_refused_with_the_reason() {
    let mut engine = engine(Settings {
        requests_max: 1,
        max_loras: 0,
        ..settings()
    });
    assert_eq!(engine.settings().max_model_len, 640);
    let long = request(0, &[1; 600], 41);
    let error = engine.submit(long).expect_err("641 tokens");
    assert_eq!(
        error.to_string(),
        "prompt and output are 641 tokens, the context takes 640"
    );
    assert_eq!(engine.submit(request(0, &[], 1)), Err(SubmitError::Empty));
    let adapter = Request {
        adapter: Some(1),
        ..request(0, &[1], 1)
    };
    assert_eq!(engine.submit(adapter), Err(SubmitError::NoAdapters));
    assert_eq!(engine.submit(request(0, &[1], 1)), Ok(()));
    assert_eq!(
        engine.submit(request(1, &[1], 1)),
        Err(SubmitError::Full { requests_max: 1 })
    );
}

#[test]
fn equal_seeds_give_equal_runs_and_jitter_depends_on_the_seed() {
    let run_with = |seed| {
        let profile = profile::named("rtxpro6000-llama-3.1-8b-tp1").expect("embedded");
        let mut engine = Engine::new(
            profile,
            Settings {
                step_jitter: 0.05,
                ..settings()
            },
            seed,
        );
        for id in 0..20 {
            engine
                .submit(request(id, &[id as u32; 50], 30))
                .expect("fits");
        }
        run(&mut engine).1
    };
    assert_eq!(run_with(1), run_with(1));
    assert_ne!(run_with(1), run_with(2));
}
