//! The worlds that policies are compared in.
//!
//! Shapes come from public workloads and are named where they are; rates are chosen so that the
//! moderate load is well below what the pool can bear with good placement and the high one near it.

use std::sync::Arc;
use std::time::Duration;

use super::World;
use super::baselines::prefill_tokens_per_s;
use super::outcome::Slo;
use super::traffic::{Arrivals, Talk, Traffic};
use crate::engine::Settings;
use crate::load::{Distribution, Mixed};
use crate::profile::{self, Profile};

/// Seeds of the runs that the published table shows. Nothing may be tuned on them.
pub const EVALUATION_SEEDS: [u64; 5] = [9001, 9002, 9003, 9004, 9005];
/// Seeds to tune on.
pub const TUNING_SEEDS: [u64; 3] = [11, 12, 13];

/// Servers of one kind.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Servers {
    /// How many.
    pub count: usize,
    /// Name of their profile.
    pub profile: &'static str,
    /// KV blocks, if not the profile's.
    pub kv_blocks: Option<u32>,
    /// Adapters in one batch.
    pub max_loras: u32,
}

/// A kind of world, at several loads.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// A word for the command line.
    pub name: &'static str,
    /// What it is, for people.
    pub about: &'static str,
    /// Its servers.
    pub servers: Vec<Servers>,
    /// Its users.
    pub traffic: Traffic,
    /// Name of each load, and how many conversations begin per second.
    pub loads: [(&'static str, f64); 2],
    /// What counts for goodput.
    pub slo: Slo,
    /// Seconds until measuring begins.
    pub warm_up_s: u64,
    /// Seconds of measuring.
    pub measured_s: u64,
}

const H100: &str = "h100-llama-3.1-8b-tp1";

fn eight(profile: &'static str) -> Vec<Servers> {
    vec![Servers {
        count: 8,
        profile,
        kv_blocks: None,
        max_loras: 0,
    }]
}

fn traffic(talk: Talk) -> Traffic {
    Traffic {
        kinds: vec![(1.0, talk)],
        arrivals: Arrivals::Poisson,
        adapters: Vec::new(),
    }
}

/// Single questions without anything in common.
fn single(lengths: Mixed) -> Talk {
    Talk {
        groups: 0,
        system_tokens: 0,
        prompts_per_group: 0,
        question_tokens: lengths.input,
        follow_up_tokens: Distribution::fixed(1.0),
        output_tokens: lengths.output,
        turns: Distribution::fixed(1.0),
        think_s: Distribution::fixed(0.0),
    }
}

/// All of them, in the order of the table.
#[must_use]
pub fn all() -> Vec<Scenario> {
    vec![
        shared_prefix(),
        multi_turn(),
        agentic(),
        lora(),
        mixed_hardware(),
        bursts(),
    ]
}

fn shared_prefix() -> Scenario {
    Scenario {
        name: "shared-prefix",
        about: "llm-d's 73-capacity shape: 150 groups of 5 prompts, 6,000 tokens in common and 1,200 of \
                their own, 1,000 out; 8 × Qwen3-32B on 2 RTX PRO 6000 with room for 307,328 tokens each",
        servers: vec![Servers {
            kv_blocks: Some(19_208),
            ..eight("rtxpro6000-qwen3-32b-tp2")[0]
        }],
        traffic: traffic(Talk {
            groups: 150,
            system_tokens: 6_000,
            prompts_per_group: 5,
            question_tokens: Distribution::fixed(1_200.0),
            follow_up_tokens: Distribution::fixed(1.0),
            output_tokens: Distribution::normal(1_000.0, 100.0, 500.0, 1_500.0),
            turns: Distribution::fixed(1.0),
            think_s: Distribution::fixed(0.0),
        }),
        loads: [("moderate", 3.0), ("high", 4.5)],
        slo: Slo {
            ttft_ms: 2_000.0,
            tpot_ms: 80.0,
        },
        warm_up_s: 150,
        measured_s: 200,
    }
}

fn multi_turn() -> Scenario {
    Scenario {
        name: "multi-turn",
        about: "chat: 20 system prompts of 1,500 tokens, 6 turns of 150 in and 250 out on average, 20 s to \
                think; 8 × Llama-3.1-8B on an H100",
        servers: eight(H100),
        traffic: traffic(Talk {
            groups: 20,
            system_tokens: 1_500,
            prompts_per_group: 0,
            question_tokens: Distribution::log_normal_with_moments(150.0, 200.0, 10.0, 4_000.0),
            follow_up_tokens: Distribution::log_normal_with_moments(150.0, 200.0, 10.0, 4_000.0),
            output_tokens: Distribution::log_normal_with_moments(250.0, 200.0, 10.0, 2_000.0),
            turns: Distribution::log_normal_with_moments(6.0, 4.0, 1.0, 30.0),
            think_s: Distribution::log_normal_with_moments(20.0, 20.0, 1.0, 120.0),
        }),
        loads: [("moderate", 12.0), ("high", 18.0)],
        slo: Slo {
            ttft_ms: 500.0,
            tpot_ms: 40.0,
        },
        warm_up_s: 150,
        measured_s: 150,
    }
}

fn agentic() -> Scenario {
    Scenario {
        name: "agentic",
        about: "agents: 4 system prompts of 6,000 tokens, tasks of 4,000 tokens, 12 steps with tool results \
                of 1,200 tokens and answers of 150 on average, 3 s per tool call; 8 × Llama-3.1-8B on an H100",
        servers: eight(H100),
        traffic: traffic(Talk {
            groups: 4,
            system_tokens: 6_000,
            prompts_per_group: 0,
            question_tokens: Distribution::log_normal_with_moments(
                4_000.0, 4_000.0, 200.0, 24_000.0,
            ),
            follow_up_tokens: Distribution::log_normal_with_moments(
                1_200.0, 1_800.0, 30.0, 12_000.0,
            ),
            output_tokens: Distribution::log_normal_with_moments(150.0, 150.0, 10.0, 1_500.0),
            turns: Distribution::log_normal_with_moments(12.0, 8.0, 2.0, 50.0),
            think_s: Distribution::log_normal_with_moments(3.0, 4.0, 0.1, 60.0),
        }),
        loads: [("moderate", 1.5), ("high", 2.2)],
        slo: Slo {
            ttft_ms: 1_000.0,
            tpot_ms: 40.0,
        },
        warm_up_s: 120,
        measured_s: 180,
    }
}

fn lora() -> Scenario {
    let tiers = [0.6, 0.3, 0.1];
    Scenario {
        name: "lora",
        about: "15 adapters in three tiers of five with 60, 30 and 10 % of the requests, 3 to a batch, lengths \
                as in Azure's conversations (2023); 8 × Llama-3.1-8B on an H100",
        servers: vec![Servers {
            max_loras: 3,
            ..eight(H100)[0]
        }],
        traffic: Traffic {
            adapters: tiers.iter().flat_map(|tier| [tier / 5.0; 5]).collect(),
            ..traffic(single(Mixed::azure_conversation()))
        },
        loads: [("moderate", 35.0), ("high", 55.0)],
        slo: Slo {
            ttft_ms: 1_000.0,
            tpot_ms: 40.0,
        },
        warm_up_s: 60,
        measured_s: 120,
    }
}

fn mixed_hardware() -> Scenario {
    let of = |count, profile| Servers {
        count,
        profile,
        kv_blocks: None,
        max_loras: 0,
    };
    let documents = Talk {
        groups: 40,
        system_tokens: 2_000,
        prompts_per_group: 0,
        question_tokens: Distribution::log_normal_with_moments(300.0, 200.0, 20.0, 2_000.0),
        output_tokens: Distribution::log_normal_with_moments(200.0, 150.0, 10.0, 1_000.0),
        ..single(Mixed::azure_conversation())
    };
    Scenario {
        name: "mixed-hardware",
        about: "half documents of 2,000 tokens with questions of 300, half single prompts as in Azure's \
                conversations; Llama-3.1-8B on 2 H100, 3 RTX PRO 6000 and 3 RTX 4090",
        servers: vec![
            of(2, H100),
            of(3, "rtxpro6000-llama-3.1-8b-tp1"),
            of(3, "rtx4090-llama-3.1-8b-tp1"),
        ],
        traffic: Traffic {
            kinds: vec![(0.5, documents), (0.5, single(Mixed::azure_conversation()))],
            ..traffic(single(Mixed::azure_conversation()))
        },
        loads: [("moderate", 25.0), ("high", 45.0)],
        slo: Slo {
            ttft_ms: 500.0,
            tpot_ms: 30.0,
        },
        warm_up_s: 60,
        measured_s: 180,
    }
}

fn bursts() -> Scenario {
    Scenario {
        name: "bursts",
        about: "code completion: lengths as in Azure's code trace (2023) after one of 50 beginnings of 1,000 \
                tokens, in bursts of 2 s at 10 times the rate every 20 s; 8 × Llama-3.1-8B on an H100",
        servers: eight(H100),
        traffic: Traffic {
            arrivals: Arrivals::Bursts {
                quiet_s: 18.0,
                burst_s: 2.0,
                factor: 10.0,
            },
            ..traffic(Talk {
                groups: 50,
                system_tokens: 1_000,
                ..single(Mixed::azure_code())
            })
        },
        loads: [("moderate", 20.0), ("high", 35.0)],
        slo: Slo {
            ttft_ms: 1_000.0,
            tpot_ms: 60.0,
        },
        warm_up_s: 40,
        measured_s: 300,
    }
}

impl Scenario {
    /// The scenario with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        all().into_iter().find(|scenario| scenario.name == name)
    }

    fn kinds(&self) -> Vec<(Servers, Arc<Profile>)> {
        let kinds = self.servers.iter().map(|servers| {
            let profile = profile::named(servers.profile).expect("the names above are embedded");
            (*servers, Arc::new(profile))
        });
        kinds.collect()
    }

    /// Its world with so many conversations a second.
    #[must_use]
    pub fn world(&self, conversations_per_s: f64) -> World {
        let mut servers = Vec::new();
        for (kind, profile) in self.kinds() {
            let own = Settings::of(&profile);
            let settings = Settings {
                kv_blocks: kind.kv_blocks.unwrap_or(own.kv_blocks),
                max_loras: kind.max_loras,
                ..own
            };
            for _ in 0..kind.count {
                servers.push((Arc::clone(&profile), settings));
            }
        }
        World {
            servers,
            traffic: self.traffic.clone(),
            conversations_per_s,
            warm_up: Duration::from_secs(self.warm_up_s),
            measured: Duration::from_secs(self.measured_s),
            drain: Duration::from_secs(120),
        }
    }

    /// Prefill speed of its servers in tokens per second, on average: what a policy with one
    /// number for all would be told.
    #[must_use]
    pub fn prefill_tokens_per_s(&self) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for (kind, profile) in self.kinds() {
            sum += kind.count as f64 * prefill_tokens_per_s(&profile);
            count += kind.count as f64;
        }
        sum / count
    }
}
