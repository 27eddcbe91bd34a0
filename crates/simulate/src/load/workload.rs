//! What is asked: conversations as a pure function of a seed and a number.
//!
//! Texts are random words of three letters and a space, four bytes each: one token for the simulated
//! server, about one for a real one. Lengths are in these tokens. When they are sent is in
//! [`super::Arrivals`].

use std::time::Duration;

use super::distribution::Distribution;
use crate::engine::tokens::{Random, mix};

/// A kind of traffic.
#[derive(Clone, PartialEq, Debug)]
pub enum Workload {
    /// Groups of users with a long common beginning each (a system prompt, a document).
    SharedPrefix(SharedPrefix),
    /// Prompts that have nothing in common, with lengths from two distributions.
    Mixed(Mixed),
}

/// See [`Workload::SharedPrefix`]. Every turn sends the history so far: the prompt of the turn before,
/// the answer that came, and the next question.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct SharedPrefix {
    /// Distinct common beginnings.
    pub groups: u32,
    /// Distinct first questions per group; later conversations repeat them word by word, and go on
    /// in their own way.
    pub prompts_per_group: u32,
    /// Length of the common beginning, in tokens.
    pub system_tokens: u32,
    /// Length of the first question, in tokens.
    pub question_tokens: u32,
    /// Length of each further question, in tokens.
    pub follow_up_tokens: Distribution,
    /// Length of each answer, in tokens.
    pub output_tokens: Distribution,
    /// Questions per conversation.
    pub turns: Distribution,
    /// From the end of an answer to the next question, in seconds.
    pub think_s: Distribution,
}

/// See [`Workload::Mixed`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Mixed {
    /// Prompt lengths, in tokens.
    pub input: Distribution,
    /// Answer lengths, in tokens.
    pub output: Distribution,
}

impl Mixed {
    /// Azure's public trace of 2023, conversations: fitted by the moments of the logarithms of its
    /// 19,366 requests, cut off at its longest.
    #[must_use]
    pub const fn azure_conversation() -> Self {
        Self {
            input: Distribution::log_normal(6.633, 0.985, 1.0, 14_050.0),
            output: Distribution::log_normal(5.019, 0.859, 1.0, 1000.0),
        }
    }

    /// Azure's public trace of 2023, code completion: fitted in the same way to 8,819 requests.
    #[must_use]
    pub const fn azure_code() -> Self {
        Self {
            input: Distribution::log_normal(6.999, 1.360, 1.0, 7437.0),
            output: Distribution::log_normal(2.788, 0.847, 1.0, 1899.0),
        }
    }
}

/// What one user does: one question after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// The common beginning; empty for none.
    pub system: String,
    /// The questions, each sent some time after the answer before it is complete.
    pub turns: Vec<Turn>,
}

/// One question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Its text.
    pub question: String,
    /// Length of the answer that is asked for, in tokens.
    pub output_tokens: u32,
    /// From the end of the answer before to this question; zero for the first.
    pub think: Duration,
}

impl Workload {
    /// The conversation with number `index` under `seed`.
    #[must_use]
    pub fn conversation(&self, seed: u64, index: u64) -> Conversation {
        let mut random = Random::new(mix(seed) ^ mix(index));
        match self {
            Self::SharedPrefix(shared) => shared.conversation(seed, &mut random),
            Self::Mixed(mixed) => {
                let question = text(mixed.input.draw_count(&mut random), random.bits());
                let turns = vec![Turn {
                    question,
                    output_tokens: mixed.output.draw_count(&mut random),
                    think: Duration::ZERO,
                }];
                Conversation {
                    system: String::new(),
                    turns,
                }
            }
        }
    }

    /// Requests in one conversation, on average.
    #[must_use]
    pub fn mean_turns(&self) -> f64 {
        match self {
            Self::SharedPrefix(shared) => shared.turns.mean(),
            Self::Mixed(_) => 1.0,
        }
    }
}

impl SharedPrefix {
    fn conversation(&self, seed: u64, random: &mut Random) -> Conversation {
        let group = random.below(u64::from(self.groups.max(1)));
        let prompt = random.below(u64::from(self.prompts_per_group.max(1)));
        let system_seed = mix(seed ^ mix(group + 1));
        let mut turns = vec![Turn {
            question: text(self.question_tokens, mix(system_seed ^ mix(prompt + 1))),
            output_tokens: self.output_tokens.draw_count(random),
            think: Duration::ZERO,
        }];
        for _ in 1..self.turns.draw_count(random) {
            turns.push(Turn {
                question: text(self.follow_up_tokens.draw_count(random), random.bits()),
                output_tokens: self.output_tokens.draw_count(random),
                think: Duration::from_secs_f64(self.think_s.draw(random).max(0.0)),
            });
        }
        Conversation {
            system: text(self.system_tokens, system_seed),
            turns,
        }
    }
}

/// `tokens` words that depend on the seed alone.
fn text(tokens: u32, seed: u64) -> String {
    let mut random = Random::new(seed);
    let mut text = String::with_capacity(tokens as usize * 4);
    for _ in 0..tokens {
        let bits = random.bits();
        for shift in [0, 16, 32] {
            let letter = u8::try_from((bits >> shift) % 26).unwrap_or(0);
            text.push(char::from(b'a' + letter));
        }
        text.push(' ');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn shared() -> SharedPrefix {
        SharedPrefix {
            groups: 3,
            prompts_per_group: 2,
            system_tokens: 100,
            question_tokens: 10,
            follow_up_tokens: Distribution::normal(8.0, 2.0, 1.0, 20.0),
            output_tokens: Distribution::normal(20.0, 5.0, 10.0, 30.0),
            turns: Distribution::log_normal_with_moments(4.0, 2.5, 1.0, 15.0),
            think_s: Distribution::log_normal_with_moments(45.0, 40.0, 5.0, 300.0),
        }
    }

    #[test]
    fn groups_share_their_beginning_and_first_questions_repeat() {
        let workload = Workload::SharedPrefix(shared());
        let all: Vec<Conversation> = (0..200).map(|i| workload.conversation(1, i)).collect();
        let distinct = |of: fn(&Conversation) -> &str| -> usize {
            all.iter().map(of).collect::<BTreeSet<_>>().len()
        };
        assert_eq!(distinct(|c| &c.system), 3);
        assert_eq!(distinct(|c| &c.turns[0].question), 6);
        assert!(all.iter().all(|c| c.system.len() == 400));
        assert_eq!(all[7], workload.conversation(1, 7));
        assert_ne!(all[7].turns, workload.conversation(2, 7).turns);
    }

    #[test]
    fn conversations_go_on_in_their_own_way_and_pause_in_between() {
        let workload = Workload::SharedPrefix(shared());
        let all: Vec<Conversation> = (0..2_000).map(|i| workload.conversation(1, i)).collect();
        let turns: usize = all.iter().map(|c| c.turns.len()).sum();
        let mean = turns as f64 / all.len() as f64;
        // Cutting off at 1 and 15 and rounding move the mean a little.
        assert!((mean - workload.mean_turns()).abs() < 0.15, "{mean}");
        assert!(all.iter().all(|c| (1..=15).contains(&c.turns.len())));
        assert!(all.iter().all(|c| c.turns[0].think.is_zero()));
        let later: Vec<&Turn> = all.iter().flat_map(|c| &c.turns[1..]).collect();
        let distinct: BTreeSet<&str> = later.iter().map(|t| t.question.as_str()).collect();
        assert_eq!(distinct.len(), later.len());
        let pauses = later.iter().map(|turn| turn.think.as_secs_f64());
        assert!(pauses.clone().all(|s| (5.0..=300.0).contains(&s)));
        let mean_s = pauses.sum::<f64>() / later.len() as f64;
        assert!((43.0..47.0).contains(&mean_s), "{mean_s}");
    }

    #[test]
    fn drawn_lengths_have_the_moments_of_the_trace() {
        let workload = Workload::Mixed(Mixed::azure_conversation());
        let lengths: Vec<f64> = (0..4000)
            .map(|i| workload.conversation(5, i).turns[0].question.len() as f64 / 4.0)
            .collect();
        let mean = lengths.iter().sum::<f64>() / lengths.len() as f64;
        // The trace's own mean is 1,155; the fit's, cut off, lies a little above.
        assert!((1100.0..1350.0).contains(&mean), "{mean}");
    }
}
