//! Policies side by side: every policy in every world with every seed, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use forebay_model::PickerConfig;

use super::baselines::{CacheAware, LeastRequest, RoundRobin, Sticky, Weighted};
use super::outcome::Score;
use super::router::{Forebay, Router};
use super::scenario::Scenario;
use super::{page, run};

/// A policy to compare.
#[derive(Clone, PartialEq, Debug)]
pub enum Policy {
    /// In turn.
    RoundRobin,
    /// Fewest requests in flight.
    LeastRequest,
    /// llm-d's profile that is compiled in.
    LlmdDefault,
    /// llm-d's sticky-until-saturated profile.
    LlmdSticky,
    /// SGLang's cache-aware router.
    SglangCacheAware,
    /// Forebay with a configuration.
    Forebay(Box<PickerConfig>),
}

/// A policy with its name in tables.
pub type Named = (String, Policy);

/// The policies of the published table; ours comes last.
#[must_use]
pub fn published() -> Vec<Named> {
    let named = |name: &str, policy| (name.to_owned(), policy);
    vec![
        named("round-robin", Policy::RoundRobin),
        named("least-request", Policy::LeastRequest),
        named("llm-d default", Policy::LlmdDefault),
        named("llm-d sticky", Policy::LlmdSticky),
        named("SGLang cache-aware", Policy::SglangCacheAware),
        named("Forebay", Policy::Forebay(Box::default())),
    ]
}

impl Policy {
    fn router(&self, scenario: &Scenario, endpoints: usize, seed: u64) -> Box<dyn Router> {
        match self {
            Self::RoundRobin => Box::new(RoundRobin::new(endpoints)),
            Self::LeastRequest => Box::new(LeastRequest::new(endpoints, seed)),
            Self::LlmdDefault => Box::new(Weighted::new(endpoints, seed)),
            Self::LlmdSticky => {
                let speed = scenario.prefill_tokens_per_s();
                Box::new(Sticky::new(endpoints, speed, seed))
            }
            Self::SglangCacheAware => Box::new(CacheAware::new(endpoints, seed)),
            Self::Forebay(config) => {
                let config = PickerConfig::clone(config);
                Box::new(Forebay::new(endpoints, config, seed))
            }
        }
    }
}

/// One cell of the table: a world, a policy, and its score for each seed.
#[derive(Clone, PartialEq, Debug)]
pub struct Cell {
    /// Index into the scenarios...
    pub scenario: usize,
    /// ...their loads...
    pub load: usize,
    /// ...and the policies.
    pub policy: usize,
    /// One score per seed.
    pub scores: Vec<Score>,
}

/// All cells, and what it took to play them.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The worlds.
    pub scenarios: Vec<Scenario>,
    /// The policies.
    pub policies: Vec<Named>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// By scenario, load and policy.
    pub cells: Vec<Cell>,
    /// Requests played, those of warm-up included.
    pub requests: u64,
    /// What playing took, summed over cores.
    pub cpu: Duration,
}

struct Job {
    cell: usize,
    seed: usize,
}

/// Plays everything.
#[must_use]
pub fn compare(scenarios: &[Scenario], policies: &[Named], seeds: &[u64]) -> Comparison {
    let mut cells = Vec::new();
    for (scenario, of) in scenarios.iter().enumerate() {
        for load in 0..of.loads.len() {
            cells.extend((0..policies.len()).map(|policy| Cell {
                scenario,
                load,
                policy,
                scores: vec![Score::default(); seeds.len()],
            }));
        }
    }
    let jobs: Vec<Job> = (0..cells.len())
        .flat_map(|cell| (0..seeds.len()).map(move |seed| Job { cell, seed }))
        .collect();
    let next = AtomicUsize::new(0);
    let done = Mutex::new((Vec::new(), 0_u64, Duration::ZERO));
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            let cell = &cells[job.cell];
            let scenario = &scenarios[cell.scenario];
            let world = scenario.world(scenario.loads[cell.load].1);
            let seed = seeds[job.seed];
            let policy = &policies[cell.policy].1;
            let mut router = policy.router(scenario, world.servers.len(), seed);
            let outcome = run(&world, router.as_mut(), seed);
            let score = outcome.score(scenario.slo);
            let mut done = done
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            done.0.push((job.cell, job.seed, score));
            done.1 += outcome.passages.len() as u64;
            done.2 += began.elapsed();
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let (scores, requests, cpu) = done
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    for (cell, seed, score) in scores {
        cells[cell].scores[seed] = score;
    }
    Comparison {
        scenarios: scenarios.to_vec(),
        policies: policies.to_vec(),
        seeds: seeds.to_vec(),
        cells,
        requests,
        cpu,
    }
}

impl Comparison {
    /// The comparison as Markdown.
    #[must_use]
    pub fn page(&self) -> String {
        page::render(self)
    }

    /// How well the last policy predicted latencies, as Markdown.
    #[must_use]
    pub fn accuracy(&self) -> String {
        page::accuracy(self)
    }

    /// A line for each number in which the last policy is neither best nor within 2 % of the best.
    #[must_use]
    pub fn shortfalls(&self) -> Vec<String> {
        page::shortfalls(self)
    }
}
