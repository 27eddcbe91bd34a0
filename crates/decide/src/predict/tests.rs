//! Against a model that is known: what is learned, how fast, and what hostile numbers do.

use proptest::prelude::*;

use super::*;
use crate::rng::Rng;

/// A server whose latencies follow the laws that the features assume, times `slow`.
struct Server {
    slow: f64,
}

impl Server {
    fn ttft_ms(&self, s: &Situation) -> f64 {
        let work = f64::from(s.ahead_tokens + s.uncached_tokens) / 1e3;
        self.slow * (20.0 + 40.0 * work + 10.0 * f64::from(s.running) / 32.0)
    }

    fn tpot_ms(&self, s: &Situation) -> f64 {
        let prefill = f64::from(s.prefill_tokens_per_s) / 1e4;
        self.slow * (8.0 + 3.0 * f64::from(s.running) / 32.0 + 6.0 * prefill)
    }
}

fn situation(rng: &mut Rng) -> Situation {
    let prompt = 200.0 + rng.unit() as f32 * 8_000.0;
    Situation {
        waiting: 0.0,
        running: rng.below(64) as f32,
        kv_used: rng.unit() as f32 * 0.8,
        ahead_tokens: rng.unit() as f32 * 4_000.0,
        uncached_tokens: prompt * rng.unit() as f32,
        prompt_tokens: prompt,
        prefill_tokens_per_s: rng.unit() as f32 * 10_000.0,
        context_tokens: rng.unit() as f32 * 100_000.0,
        adapter_blocked: false,
        displaced: 0.0,
    }
}

/// One answer with an error of `noise` (as the deviation of the logarithm).
fn serve(predictor: &mut Predictor, slot: usize, server: &Server, noise: f64, rng: &mut Rng) {
    let situation = situation(rng);
    let begun = Begun {
        situation,
        predicted: predictor.predict(slot, &situation),
    };
    // The sum of twelve is near enough to normal.
    let mut factor = || {
        let sum: f64 = (0..12).map(|_| rng.unit()).sum();
        ((sum - 6.0) * noise).exp()
    };
    predictor.observe_ttft(slot, &begun, server.ttft_ms(&situation) * factor());
    predictor.observe_tpot(slot, &begun, server.tpot_ms(&situation) * factor());
}

/// Mean relative error of the predictions for `server` in `slot`.
fn error(predictor: &Predictor, slot: usize, server: &Server, rng: &mut Rng) -> f64 {
    let errors = (0..200).map(|_| {
        let situation = situation(rng);
        let predicted = predictor.predict(slot, &situation).expect("ready");
        let ttft = f64::from(predicted.ttft_ms) / server.ttft_ms(&situation) - 1.0;
        let tpot = f64::from(predicted.tpot_ms) / server.tpot_ms(&situation) - 1.0;
        ttft.abs().max(tpot.abs())
    });
    errors.sum::<f64>() / 200.0
}

#[test]
fn nothing_is_predicted_of_a_pool_that_is_not_known() {
    let mut predictor = Predictor::default();
    let mut rng = Rng::seeded(1);
    for n in 0..OBSERVATIONS_MIN {
        assert_eq!(predictor.predict(0, &situation(&mut rng)), None, "{n}");
        serve(&mut predictor, 0, &Server { slow: 1.0 }, 0.0, &mut rng);
    }
    let first = predictor.predict(0, &situation(&mut rng));
    assert!(first.is_some_and(|first| first.own));
    assert!(predictor.accuracy().ready);
}

#[test]
fn mixed_hardware_is_told_apart_and_a_newcomer_starts_as_the_pool_is() {
    let mut predictor = Predictor::default();
    let mut rng = Rng::seeded(2);
    let servers = [1.0, 3.0].map(|slow| Server { slow });
    for _ in 0..300 {
        for (slot, server) in servers.iter().enumerate() {
            serve(&mut predictor, slot, server, 0.1, &mut rng);
        }
    }
    for (slot, server) in servers.iter().enumerate() {
        let error = error(&predictor, slot, server, &mut rng);
        assert!(error < 0.08, "{slot}: {error}");
    }
    let newcomer = Server { slow: 3.0 };
    let s = situation(&mut rng);
    let pool = predictor.predict(9, &s).expect("from the pool");
    let (fast, slow) = (servers[0].ttft_ms(&s) as f32, servers[1].ttft_ms(&s) as f32);
    assert!(
        !pool.own && fast < pool.ttft_ms && pool.ttft_ms < slow,
        "{pool:?}"
    );
    for _ in 0..20 {
        serve(&mut predictor, 9, &newcomer, 0.1, &mut rng);
    }
    let error = error(&predictor, 9, &newcomer, &mut rng);
    assert!(error < 0.2, "after 20 answers: {error}");
}

#[test]
fn ninety_percent_stay_below_the_high_prediction() {
    let mut predictor = Predictor::default();
    let mut rng = Rng::seeded(3);
    for _ in 0..3_000 {
        serve(&mut predictor, 0, &Server { slow: 1.0 }, 0.3, &mut rng);
    }
    let accuracy = predictor.accuracy();
    for kind in [accuracy.ttft, accuracy.tpot] {
        assert!((0.86..0.94).contains(&kind.coverage), "{kind:?}");
        assert!((0.15..0.35).contains(&kind.mape), "{kind:?}");
        assert_eq!(kind.drifts, 0, "{kind:?}");
    }
}

#[test]
fn a_server_that_becomes_slower_or_faster_is_learned_anew() {
    let mut predictor = Predictor::default();
    let mut rng = Rng::seeded(4);
    for slow in [1.0, 4.0, 0.5] {
        let server = Server { slow };
        for _ in 0..120 {
            serve(&mut predictor, 0, &server, 0.05, &mut rng);
        }
        let error = error(&predictor, 0, &server, &mut rng);
        assert!(error < 0.1, "{slow}: {error}");
    }
}

#[test]
fn more_work_ahead_is_never_predicted_to_be_faster() {
    let mut predictor = Predictor::default();
    let mut rng = Rng::seeded(5);
    for _ in 0..500 {
        serve(&mut predictor, 0, &Server { slow: 1.0 }, 0.8, &mut rng);
        let s = situation(&mut rng);
        let more = Situation {
            ahead_tokens: s.ahead_tokens + 1_000.0,
            running: s.running + 10.0,
            ..s
        };
        if let (Some(less), Some(more)) = (predictor.predict(0, &s), predictor.predict(0, &more)) {
            assert!(more.ttft_ms >= less.ttft_ms && more.tpot_ms >= less.tpot_ms);
        }
    }
}

#[test]
fn an_endpoint_that_leaves_takes_what_was_learned_of_it_along() {
    let mut predictor = Predictor::default();
    let mut rng = Rng::seeded(6);
    for _ in 0..100 {
        serve(&mut predictor, 0, &Server { slow: 1.0 }, 0.1, &mut rng);
        serve(&mut predictor, 1, &Server { slow: 5.0 }, 0.1, &mut rng);
    }
    predictor.forget(1);
    let s = situation(&mut rng);
    let after = predictor.predict(1, &s).expect("from the pool");
    assert!(!after.own && f64::from(after.ttft_ms) < Server { slow: 5.0 }.ttft_ms(&s));
}

fn hostile() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(f32::MAX),
        Just(-1.0),
        Just(0.0),
        0.0_f32..1e6,
    ]
}

fn any_situation() -> impl Strategy<Value = Situation> {
    (prop::array::uniform9(hostile()), any::<bool>()).prop_map(|(n, blocked)| Situation {
        waiting: n[0],
        running: n[1],
        kv_used: n[2],
        ahead_tokens: n[3],
        uncached_tokens: n[4],
        prompt_tokens: n[5],
        prefill_tokens_per_s: n[6],
        context_tokens: n[7],
        adapter_blocked: blocked,
        displaced: n[8],
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is observed, predictions are finite, within bounds, and in order.
    #[test]
    fn hostile_numbers_stay_bounded(
        seen in prop::collection::vec((any_situation(), 0.0_f64..1e12, 0_usize..3), 0..300),
        asked in any_situation(),
    ) {
        let mut predictor = Predictor::default();
        for (situation, ms, slot) in seen {
            let begun = Begun { situation, predicted: predictor.predict(slot, &situation) };
            predictor.observe_ttft(slot, &begun, ms);
            predictor.observe_tpot(slot, &begun, ms / 10.0);
        }
        if let Some(p) = predictor.predict(0, &asked) {
            let max = LATENCY_MAX_MS as f32;
            prop_assert!((TTFT_MIN_MS as f32..=max).contains(&p.ttft_ms));
            prop_assert!((TPOT_MIN_MS as f32..=max).contains(&p.tpot_ms));
            prop_assert!((p.ttft_ms..=max).contains(&p.ttft_high_ms));
            prop_assert!((p.tpot_ms..=max).contains(&p.tpot_high_ms));
            prop_assert!(p.cost.prefill_ms.is_finite() && p.cost.prefill_ms >= 0.0);
            prop_assert!(p.cost.token_ms.is_finite() && p.cost.token_ms >= 0.0);
        }
        let accuracy = predictor.accuracy();
        prop_assert!((0.0..=10.0).contains(&accuracy.ttft.mape));
        prop_assert!((0.0..=1.0).contains(&accuracy.tpot.coverage));
    }

    /// Recursive least squares against the batch solution of the same weighted problem, where no
    /// bound is touched: two features, noise-free, so both must find the coefficients.
    #[test]
    fn the_recursion_finds_what_least_squares_finds(
        truth in prop::array::uniform2(1.0_f64..50.0), seed in 0_u64..1_000,
    ) {
        let mut rng = Rng::seeded(seed);
        let mut regression = Regression::new(Prior { deviation: [100.0; 2] });
        let mut sums = [[0.0; 2]; 2];
        let mut sides = [0.0; 2];
        for _ in 0..200 {
            let x = [1.0, rng.unit() * 3.0];
            let y = truth[0] + truth[1] * x[1];
            regression.observe(&x, y, 0.1);
            for row in 0..2 {
                sides[row] += x[row] * y;
                for column in 0..2 {
                    sums[row][column] += x[row] * x[column];
                }
            }
        }
        let determinant = sums[0][0] * sums[1][1] - sums[0][1] * sums[1][0];
        let solved = [
            (sides[0] * sums[1][1] - sides[1] * sums[0][1]) / determinant,
            (sides[1] * sums[0][0] - sides[0] * sums[1][0]) / determinant,
        ];
        for x in [0.0, 1.5, 3.0] {
            let (found, expected) = (regression.at(&[1.0, x]), solved[0] + solved[1] * x);
            prop_assert!((found - expected).abs() < 0.01 * expected, "{found} {expected}");
        }
    }
}
