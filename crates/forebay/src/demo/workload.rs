//! What the demo asks for, and where the numbers come from. `docs/demo.md` tells the same in prose.

use forebay_simulate::load::{Arrivals, Mixed, SharedPrefix, Workload};

use crate::cli::{DemoArgs, Workload as Kind};

/// Conversations at a time, far above what any run reaches.
const IN_FLIGHT_MAX: u32 = 4_096;

/// One comparison.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// The picker to compare with.
    pub(super) baseline: &'static str,
    pub(super) workload: Workload,
    pub(super) arrivals: Arrivals,
    pub(super) conversations: u64,
    pub(super) time_scale: f64,
    pub(super) per_s: f64,
}

/// llm-d's public benchmark "73-capacity" has 150 groups of 5 prompts, each 6,000 tokens that the
/// group shares and 1,200 that it does not, on servers whose caches take 2.46 million tokens in
/// all: the prompts fill 73 % of them. Our four take 2.29 million, so 139 groups fill the same
/// share. Answers are 200 tokens instead of 1,000, which keeps a run short. 12 requests a second are
/// about what the four can prefill without any cache (86,000 tokens a second).
const SHARED: SharedPrefix = SharedPrefix {
    groups: 139,
    prompts_per_group: 5,
    system_tokens: 6_000,
    question_tokens: 1_200,
    output_tokens: 200,
    turns: 1,
};

impl Scenario {
    pub(super) fn of(kind: Kind, args: &DemoArgs) -> Self {
        let (name, baseline, workload, per_s, seconds) = match kind {
            Kind::Shared => (
                "shared prefixes",
                "round-robin",
                Workload::SharedPrefix(SHARED),
                12.0,
                40,
            ),
            Kind::Mixed => {
                let azure = Workload::Mixed(Mixed::azure_conversation());
                ("nothing shared", "least-request", azure, 25.0, 30)
            }
        };
        let per_s = args.rate.unwrap_or(per_s);
        let seconds = f64::from(args.seconds.unwrap_or(seconds));
        Self {
            name,
            baseline,
            workload,
            // Rates are in simulated time.
            arrivals: Arrivals::Poisson {
                per_s: per_s / args.time_scale,
                in_flight_max: IN_FLIGHT_MAX,
            },
            conversations: (per_s * seconds).max(1.0) as u64,
            time_scale: args.time_scale,
            per_s,
        }
    }

    /// What is asked, in one or two lines.
    pub(super) fn describe(&self) -> String {
        let what = match &self.workload {
            Workload::SharedPrefix(shared) => format!(
                "{} groups of {} prompts, {} tokens shared + {} own, {} tokens of answer",
                shared.groups,
                shared.prompts_per_group,
                shared.system_tokens,
                shared.question_tokens,
                shared.output_tokens
            ),
            Workload::Mixed(_) => {
                "lengths as in Azure's public conversation trace, no two prompts alike".to_owned()
            }
        };
        let Self {
            name,
            conversations,
            per_s,
            ..
        } = self;
        format!(
            "Workload \"{name}\": {what};\n{conversations} requests, {per_s} a second, Poisson."
        )
    }
}
