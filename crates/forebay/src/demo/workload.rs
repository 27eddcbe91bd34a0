//! What the demo asks for, and where the numbers come from. `docs/demo.md` tells the same in prose.

use std::time::Duration;

use forebay_simulate::load::{Arrivals, Distribution, Mixed, SharedPrefix, Workload};

use super::servers;
use crate::cli::{DemoArgs, Workload as Kind};

/// Conversations at a time, far above what any run reaches.
const IN_FLIGHT_MAX: u32 = 4_096;

/// One comparison. Times are those of the servers unless they are called real.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// The picker to compare with.
    pub(super) baseline: &'static str,
    /// What is asked; pauses in it are real time.
    pub(super) workload: Workload,
    /// Requests a second, once as many conversations end as begin.
    per_s: f64,
    /// Seconds during which they are sent.
    seconds: f64,
    /// Real seconds per second.
    pub(super) time_scale: f64,
}

/// The beginnings are those of llm-d's public benchmark "73-capacity": 150 groups of 5 prompts,
/// each 6,000 tokens that the group shares and 1,200 that it does not, on servers whose caches take
/// 2.46 million tokens in all: the prompts fill 73 % of them. Our four take 2.29 million, so 139
/// groups fill the same share.
///
/// A further turn is as long as in llm-d's public benchmark of multi-turn chats: a question of 500
/// tokens and an answer of 200. How many turns there are, and the pauses between them, are those of
/// "interactive-chat" in the workload catalogue of inference-perf; of the pauses only the share
/// `think` is made, so that a conversation fits into a demo.
fn shared(think: f64) -> SharedPrefix {
    SharedPrefix {
        groups: 139,
        prompts_per_group: 5,
        system_tokens: 6_000,
        question_tokens: 1_200,
        follow_up_tokens: Distribution::fixed(500.0),
        output_tokens: Distribution::fixed(200.0),
        turns: Distribution::log_normal_with_moments(4.0, 2.5, 1.0, 15.0),
        think_s: Distribution::log_normal_with_moments(45.0, 40.0, 5.0, 300.0).scaled(think),
    }
}

/// Tokens of answers a second that one server gave in the published comparison of this kind with the
/// same model: GKE Inference Gateway, 7,169 on eight A100.
const PUBLISHED_TOKENS_PER_S: f64 = 7_169.0 / 8.0;

impl Scenario {
    pub(super) fn of(kind: Kind, args: &DemoArgs) -> Self {
        match kind {
            Kind::Shared => {
                let shared = shared(args.think);
                let tokens_per_s = PUBLISHED_TOKENS_PER_S * f64::from(servers::COUNT);
                let published = tokens_per_s / shared.output_tokens.mean();
                let time_scale = args.time_scale.unwrap_or(0.5);
                Self {
                    name: "shared prefixes",
                    baseline: "round-robin",
                    per_s: args.rate.unwrap_or(published),
                    workload: Workload::SharedPrefix(SharedPrefix {
                        think_s: shared.think_s.scaled(time_scale),
                        ..shared
                    }),
                    seconds: f64::from(args.seconds.unwrap_or(150)),
                    time_scale,
                }
            }
            Kind::Mixed => Self {
                name: "nothing shared",
                baseline: "least-request",
                per_s: args.rate.unwrap_or(25.0),
                workload: Workload::Mixed(Mixed::azure_conversation()),
                seconds: f64::from(args.seconds.unwrap_or(30)),
                time_scale: args.time_scale.unwrap_or(1.0),
            },
        }
    }

    /// When conversations begin, in real time.
    pub(super) fn arrivals(&self) -> Arrivals {
        Arrivals::Poisson {
            per_s: self.conversations_per_s() / self.time_scale,
            in_flight_max: IN_FLIGHT_MAX,
        }
    }

    /// How long requests are sent, in real time.
    pub(super) fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds * self.time_scale)
    }

    fn conversations_per_s(&self) -> f64 {
        self.per_s / self.workload.mean_turns()
    }

    /// What is asked, in a few lines.
    pub(super) fn describe(&self) -> String {
        let Self {
            name,
            per_s,
            seconds,
            time_scale,
            ..
        } = self;
        let pace = match *time_scale {
            1.0 => String::new(),
            scale => format!(" One second of the servers takes {scale} s."),
        };
        let arrivals = match &self.workload {
            Workload::SharedPrefix(_) => format!(
                "{:.1} new conversations a second, Poisson: {per_s:.1} requests a second in the end",
                self.conversations_per_s()
            ),
            Workload::Mixed(_) => format!("{per_s:.1} requests a second, Poisson"),
        };
        format!(
            "Workload \"{name}\": {};\n{seconds} s, {arrivals}.{pace}",
            self.prompts()
        )
    }

    fn prompts(&self) -> String {
        match &self.workload {
            Workload::SharedPrefix(shared) => format!(
                "conversations in {} groups of {} prompts, {} tokens shared + {} own;\n\
                 {:.0} turns on average, {:.1} s apart, each {:.0} tokens more; {:.0} tokens of answer",
                shared.groups,
                shared.prompts_per_group,
                shared.system_tokens,
                shared.question_tokens,
                shared.turns.mean(),
                shared.think_s.mean() / self.time_scale,
                shared.follow_up_tokens.mean(),
                shared.output_tokens.mean(),
            ),
            Workload::Mixed(_) => {
                "lengths as in Azure's public conversation trace, no two prompts alike".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_simulate::profile;

    #[test]
    fn the_prompts_fill_as_much_of_the_caches_as_where_they_come_from() {
        let shared = shared(0.1);
        let of_group = shared.system_tokens + shared.prompts_per_group * shared.question_tokens;
        let prompts = f64::from(shared.groups * of_group);
        let blocks = profile::named(crate::cli::PROFILE)
            .expect("embedded")
            .kv_blocks;
        let caches = f64::from(blocks * 16) * f64::from(servers::COUNT);
        assert!(
            (prompts / caches - 0.73).abs() < 0.005,
            "{}",
            prompts / caches
        );
    }
}
