//! What is asked: conversations as a pure function of a seed and a number.
//!
//! Texts are random words of three letters and a space, four bytes each: one token for the simulated
//! server, about one for a real one. Lengths are in these tokens. When they are sent is in
//! [`super::Arrivals`].

use crate::engine::tokens::{Random, mix};

/// A kind of traffic.
#[derive(Clone, PartialEq, Debug)]
pub enum Workload {
    /// Groups of users with a long common beginning each (a system prompt, a document).
    SharedPrefix(SharedPrefix),
    /// Prompts that have nothing in common, with lengths from two distributions.
    Mixed(Mixed),
}

/// See [`Workload::SharedPrefix`]. Every turn sends the history so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SharedPrefix {
    /// Distinct common beginnings.
    pub groups: u32,
    /// Distinct conversations per group; later ones repeat them word by word.
    pub prompts_per_group: u32,
    /// Length of the common beginning, in tokens.
    pub system_tokens: u32,
    /// Length of each question, in tokens.
    pub question_tokens: u32,
    /// Length of each answer, in tokens.
    pub output_tokens: u32,
    /// Questions per conversation.
    pub turns: u32,
}

/// See [`Workload::Mixed`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Mixed {
    /// Prompt lengths.
    pub input: LogNormal,
    /// Answer lengths.
    pub output: LogNormal,
}

/// Lengths whose logarithm is normal, cut off at both ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LogNormal {
    /// Mean of the natural logarithm.
    pub mu: f64,
    /// Deviation of the natural logarithm.
    pub sigma: f64,
    /// Longest length, in tokens; longer draws become this one.
    pub max: u32,
}

impl Mixed {
    /// Azure's public trace of 2023, conversations: fitted by the moments of the logarithms of its
    /// 19,366 requests, cut off at its longest.
    #[must_use]
    pub const fn azure_conversation() -> Self {
        Self {
            input: LogNormal {
                mu: 6.633,
                sigma: 0.985,
                max: 14_050,
            },
            output: LogNormal {
                mu: 5.019,
                sigma: 0.859,
                max: 1000,
            },
        }
    }

    /// Azure's public trace of 2023, code completion: fitted in the same way to 8,819 requests.
    #[must_use]
    pub const fn azure_code() -> Self {
        Self {
            input: LogNormal {
                mu: 6.999,
                sigma: 1.360,
                max: 7437,
            },
            output: LogNormal {
                mu: 2.788,
                sigma: 0.847,
                max: 1899,
            },
        }
    }
}

impl LogNormal {
    fn draw(&self, random: &mut Random) -> u32 {
        let length = (self.mu + self.sigma * random.normal()).exp();
        (length as u32).clamp(1, self.max.max(1))
    }
}

/// What one user does: one question after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conversation {
    /// The common beginning; empty for none.
    pub system: String,
    /// The questions, each sent when the answer before it is complete.
    pub turns: Vec<Turn>,
}

/// One question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Its text.
    pub question: String,
    /// Length of the answer that is asked for, in tokens.
    pub output_tokens: u32,
}

impl Workload {
    /// The conversation with number `index` under `seed`.
    #[must_use]
    pub fn conversation(&self, seed: u64, index: u64) -> Conversation {
        let mut random = Random::new(mix(seed) ^ mix(index));
        match self {
            Self::SharedPrefix(shared) => shared.conversation(seed, &mut random),
            Self::Mixed(mixed) => {
                let question = text(mixed.input.draw(&mut random), random.bits());
                let output_tokens = mixed.output.draw(&mut random);
                let turns = vec![Turn {
                    question,
                    output_tokens,
                }];
                Conversation {
                    system: String::new(),
                    turns,
                }
            }
        }
    }

    /// Requests in one conversation.
    #[must_use]
    pub const fn turns(&self) -> u32 {
        match self {
            Self::SharedPrefix(shared) => shared.turns,
            Self::Mixed(_) => 1,
        }
    }
}

impl SharedPrefix {
    fn conversation(&self, seed: u64, random: &mut Random) -> Conversation {
        let group = random.below(u64::from(self.groups.max(1)));
        let prompt = random.below(u64::from(self.prompts_per_group.max(1)));
        let system_seed = mix(seed ^ mix(group + 1));
        let turn = |number: u32| Turn {
            question: text(
                self.question_tokens,
                mix(system_seed ^ mix(prompt + 1) ^ u64::from(number)),
            ),
            output_tokens: self.output_tokens.max(1),
        };
        let system = text(self.system_tokens, system_seed);
        Conversation {
            system,
            turns: (0..self.turns.max(1)).map(turn).collect(),
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

    const SHARED: SharedPrefix = SharedPrefix {
        groups: 3,
        prompts_per_group: 2,
        system_tokens: 100,
        question_tokens: 10,
        output_tokens: 20,
        turns: 2,
    };

    #[test]
    fn groups_share_their_beginning_and_prompts_repeat() {
        let workload = Workload::SharedPrefix(SHARED);
        let all: Vec<Conversation> = (0..200).map(|i| workload.conversation(1, i)).collect();
        let systems: BTreeSet<&str> = all.iter().map(|c| c.system.as_str()).collect();
        let firsts: BTreeSet<&str> = all.iter().map(|c| c.turns[0].question.as_str()).collect();
        assert_eq!((systems.len(), firsts.len()), (3, 6));
        assert!(
            all.iter()
                .all(|c| c.system.len() == 400 && c.turns.len() == 2)
        );
        assert!(
            all.iter()
                .all(|c| c.turns[0].question != c.turns[1].question)
        );
        assert_eq!(all[7], workload.conversation(1, 7));
        assert_ne!(all[7].turns, workload.conversation(2, 7).turns);
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
