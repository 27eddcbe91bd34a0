//! What users of the world do: conversations as a pure function of a seed, and when they begin.
//!
//! Texts are bytes, four to a token as in [`crate::load`], so that the picker hashes what a gateway
//! would hash, and the engine's block hashes grow along with them. An answer that comes back in the
//! next turn's prompt is the one that the engine gave ([`output_token`]).

use std::time::Duration;

use forebay_model::Moment;
use rustc_hash::FxHashMap;

use crate::engine::tokens::{BLOCK_TOKENS, Random, block_hash, mix, output_token};
use crate::engine::{AdapterId, Prompt};
use crate::load::Distribution;

/// Bytes of a token.
pub const TOKEN_BYTES: usize = 4;

/// What is asked, and when.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Kinds of conversations with their shares of all that begin; the shares add up to 1.
    pub kinds: Vec<(f64, Talk)>,
    /// When conversations begin.
    pub arrivals: Arrivals,
    /// Adapters with the share of conversations that want each; empty for the base model alone.
    pub adapters: Vec<f64>,
}

/// One kind of conversation. Every turn sends the history so far.
#[derive(Clone, Debug)]
pub struct Talk {
    /// Distinct common beginnings; 0 for none.
    pub groups: u32,
    /// Length of a common beginning, in tokens.
    pub system_tokens: u32,
    /// Distinct first questions per group; 0 if all differ.
    pub prompts_per_group: u32,
    /// Length of the first question, in tokens.
    pub question_tokens: Distribution,
    /// Length of each further question (or tool result), in tokens.
    pub follow_up_tokens: Distribution,
    /// Length of each answer, in tokens.
    pub output_tokens: Distribution,
    /// Questions per conversation.
    pub turns: Distribution,
    /// From the end of an answer to the next question, in seconds.
    pub think_s: Distribution,
}

/// When conversations begin, at a mean rate that the load sets.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Arrivals {
    /// One after the other, independent.
    Poisson,
    /// Times of quiet and of bursts in turn, exponentially long; Poisson within each.
    Bursts {
        /// Mean length of a quiet time, in seconds.
        quiet_s: f64,
        /// Mean length of a burst, in seconds.
        burst_s: f64,
        /// The rate in a burst as a multiple of that in a quiet time.
        factor: f64,
    },
}

/// One conversation before it is held.
#[derive(Clone, Debug)]
pub struct Script {
    /// When it begins.
    pub begins: Moment,
    /// The adapter that it wants.
    pub adapter: Option<AdapterId>,
    /// Index of its kind, and which common beginning.
    beginning: Option<(usize, u32)>,
    /// Its turns; at least one.
    pub turns: Vec<Turn>,
    /// Seeds of its texts.
    seed: u64,
}

/// One question and its answer.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Turn {
    /// Length of the question, in tokens.
    question_tokens: u32,
    /// Seed of the question's text.
    question_seed: u64,
    /// Length of the answer, in tokens.
    pub output_tokens: u32,
    /// Seed of the answer's tokens.
    pub output_seed: u64,
    /// From the end of the answer before to this question.
    pub think: Duration,
    /// What the gateway's estimate of the prompt's length is off by, as a factor.
    pub estimate: f32,
}

/// A text that grows, with the chained hashes of its full blocks.
#[derive(Clone, Debug)]
pub struct Text {
    bytes: Vec<u8>,
    hashes: Vec<u64>,
    salt: u64,
}

/// The conversations of one run, in the order in which they begin.
#[derive(Debug)]
pub struct Scripts {
    traffic: Traffic,
    seed: u64,
    beginnings: FxHashMap<(usize, u32, Option<AdapterId>), Text>,
}

impl Text {
    fn new(adapter: Option<AdapterId>) -> Self {
        let salt = adapter.map_or(0, |adapter| mix(u64::from(adapter) + 1));
        Self {
            bytes: Vec::new(),
            hashes: Vec::new(),
            salt,
        }
    }

    /// The text as the gateway sees it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Chained hash of each full block of [`BLOCK_TOKENS`].
    #[must_use]
    pub fn block_hashes(&self) -> &[u64] {
        &self.hashes
    }

    /// Its length in tokens.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        u32::try_from(self.bytes.len() / TOKEN_BYTES).unwrap_or(u32::MAX)
    }

    /// The text as the engine sees it.
    #[must_use]
    pub fn prompt(&self) -> Prompt {
        let hashed = self.hashes.len() * BLOCK_TOKENS as usize * TOKEN_BYTES;
        Prompt {
            tokens: self.tokens(),
            block_hashes: self.hashes.clone(),
            tail: words(&self.bytes[hashed..]).collect(),
            salt: self.salt,
        }
    }

    /// Appends `tokens` words that depend on `seed` alone.
    pub fn say(&mut self, tokens: u32, seed: u64) {
        let mut random = Random::new(seed);
        let words = (0..tokens).map(|_| (random.bits() >> 32) as u32);
        self.push(words);
    }

    /// Appends an engine's answer.
    pub fn answer(&mut self, tokens: u32, seed: u64) {
        self.push((0..tokens).map(|index| output_token(seed, index)));
    }

    fn push(&mut self, words_to_add: impl Iterator<Item = u32>) {
        self.bytes.extend(words_to_add.flat_map(u32::to_le_bytes));
        let block_bytes = BLOCK_TOKENS as usize * TOKEN_BYTES;
        let mut last = self.hashes.last().copied().unwrap_or(self.salt);
        let mut block = [0; BLOCK_TOKENS as usize];
        for bytes in self.bytes[self.hashes.len() * block_bytes..].chunks_exact(block_bytes) {
            for (token, word) in block.iter_mut().zip(words(bytes)) {
                *token = word;
            }
            last = block_hash(last, &block);
            self.hashes.push(last);
        }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(TOKEN_BYTES).map(|word| {
        word.iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u32::from(*byte))
    })
}

impl Scripts {
    /// The conversations of `traffic` under `seed`.
    #[must_use]
    pub fn new(traffic: Traffic, seed: u64) -> Self {
        Self {
            traffic,
            seed,
            beginnings: FxHashMap::default(),
        }
    }

    /// All that begin before `until`, `per_s` of them a second on average.
    #[must_use]
    pub fn draw(&self, per_s: f64, until: Moment) -> Vec<Script> {
        let mut random = Random::new(mix(self.seed ^ 0x05c1_a975));
        let mut clock = ArrivalClock::new(self.traffic.arrivals, per_s, &mut random);
        let mut scripts = Vec::new();
        loop {
            let begins = clock.next(&mut random);
            if begins >= until {
                return scripts;
            }
            scripts.push(self.script(scripts.len() as u64, begins));
        }
    }

    fn script(&self, index: u64, begins: Moment) -> Script {
        let seed = mix(mix(self.seed) ^ mix(index));
        let mut random = Random::new(seed);
        let kind = chosen(
            self.traffic.kinds.iter().map(|(share, _)| *share),
            &mut random,
        );
        let adapter = (!self.traffic.adapters.is_empty()).then(|| {
            let adapter = chosen(self.traffic.adapters.iter().copied(), &mut random);
            AdapterId::try_from(adapter).unwrap_or(AdapterId::MAX)
        });
        let talk = &self.traffic.kinds[kind].1;
        let group = random.below(u64::from(talk.groups.max(1)));
        let first = random.below(u64::from(talk.prompts_per_group.max(1)));
        let mut turns = Vec::new();
        for at in 0..talk.turns.draw_count(&mut random) {
            let own_seed = random.bits();
            let (length, question_seed) = match (at, talk.prompts_per_group) {
                (0, 0) => (&talk.question_tokens, own_seed),
                (0, _) => (&talk.question_tokens, self.seed ^ mix(group << 32 | first)),
                _ => (&talk.follow_up_tokens, own_seed),
            };
            // A question that repeats has the same length each time.
            let question_tokens = match (at, talk.prompts_per_group) {
                (0, 1..) => length.draw_count(&mut Random::new(question_seed)),
                _ => length.draw_count(&mut random),
            };
            turns.push(Turn {
                question_tokens,
                question_seed,
                output_tokens: talk.output_tokens.draw_count(&mut random),
                output_seed: random.bits(),
                think: match at {
                    0 => Duration::ZERO,
                    _ => Duration::from_secs_f64(talk.think_s.draw(&mut random).max(0.0)),
                },
                estimate: (random.normal() * ESTIMATE_SIGMA).exp() as f32,
            });
        }
        Script {
            begins,
            adapter,
            beginning: (talk.groups > 0).then_some((kind, group as u32)),
            turns,
            seed,
        }
    }

    /// The text that a conversation starts from.
    pub fn beginning(&mut self, script: &Script) -> Text {
        let Some((kind, group)) = script.beginning else {
            return Text::new(script.adapter);
        };
        let (seed, tokens) = (self.seed, self.traffic.kinds[kind].1.system_tokens);
        let text = self
            .beginnings
            .entry((kind, group, script.adapter))
            .or_insert_with(|| {
                let mut text = Text::new(script.adapter);
                let said = mix(kind as u64 + 1) ^ mix(u64::from(group));
                text.say(tokens, mix(seed ^ said));
                text
            });
        text.clone()
    }
}

/// How far a gateway's estimate of a prompt's tokens from its bytes is off, as the deviation of the
/// logarithm: kinds of text differ in bytes per token.
const ESTIMATE_SIGMA: f64 = 0.1;

impl Turn {
    /// Appends the question to the history.
    pub fn ask(&self, text: &mut Text) {
        text.say(self.question_tokens, self.question_seed);
    }

    /// Appends the answer.
    pub fn answered(&self, text: &mut Text) {
        text.answer(self.output_tokens, self.output_seed);
    }
}

impl Script {
    /// A number that no other conversation of the run has.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.seed
    }
}

fn chosen(shares: impl Iterator<Item = f64>, random: &mut Random) -> usize {
    let mut left = random.unit();
    let mut last = 0;
    for (at, share) in shares.enumerate() {
        last = at;
        left -= share;
        if left < 0.0 {
            break;
        }
    }
    last
}

/// The moments at which conversations begin.
struct ArrivalClock {
    arrivals: Arrivals,
    /// Rate in quiet times, or always.
    quiet_per_s: f64,
    now_s: f64,
    bursting: bool,
    /// When quiet turns into a burst or back.
    turns_s: f64,
}

impl ArrivalClock {
    fn new(arrivals: Arrivals, per_s: f64, random: &mut Random) -> Self {
        let (quiet_per_s, turns_s) = match arrivals {
            Arrivals::Poisson => (per_s, f64::INFINITY),
            Arrivals::Bursts {
                quiet_s,
                burst_s,
                factor,
            } => {
                let weight = (quiet_s + burst_s * factor) / (quiet_s + burst_s);
                (per_s / weight, random.exponential() * quiet_s)
            }
        };
        Self {
            arrivals,
            quiet_per_s,
            now_s: 0.0,
            bursting: false,
            turns_s,
        }
    }

    fn next(&mut self, random: &mut Random) -> Moment {
        loop {
            let factor = match self.arrivals {
                Arrivals::Bursts { factor, .. } if self.bursting => factor,
                Arrivals::Bursts { .. } | Arrivals::Poisson => 1.0,
            };
            let next_s = self.now_s + random.exponential() / (self.quiet_per_s * factor);
            if next_s < self.turns_s {
                self.now_s = next_s;
                return Moment::from_micros((next_s * 1e6) as u64);
            }
            // The exponential has no memory: draw anew from the turn on.
            self.now_s = self.turns_s;
            self.bursting = !self.bursting;
            if let Arrivals::Bursts {
                quiet_s, burst_s, ..
            } = self.arrivals
            {
                let mean_s = if self.bursting { burst_s } else { quiet_s };
                self.turns_s += random.exponential() * mean_s;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn talk() -> Talk {
        Talk {
            groups: 3,
            system_tokens: 100,
            prompts_per_group: 2,
            question_tokens: Distribution::normal(20.0, 5.0, 5.0, 40.0),
            follow_up_tokens: Distribution::fixed(7.0),
            output_tokens: Distribution::fixed(30.0),
            turns: Distribution::fixed(3.0),
            think_s: Distribution::fixed(2.0),
        }
    }

    fn scripts(arrivals: Arrivals) -> Scripts {
        let traffic = Traffic {
            kinds: vec![(1.0, talk())],
            arrivals,
            adapters: Vec::new(),
        };
        Scripts::new(traffic, 1)
    }

    #[test]
    fn a_text_that_grew_is_the_prompt_of_its_tokens() {
        let mut scripts = scripts(Arrivals::Poisson);
        let script = scripts.script(4, Moment::ORIGIN);
        let mut text = scripts.beginning(&script);
        for turn in &script.turns {
            turn.ask(&mut text);
            let tokens: Vec<u32> = words(text.bytes()).collect();
            assert_eq!(text.prompt(), Prompt::from_tokens(&tokens, 0));
            turn.answered(&mut text);
        }
        assert_eq!(
            text.tokens() % 100,
            (script.turns[0].question_tokens + 14 + 90) % 100
        );
    }

    #[test]
    fn groups_share_beginnings_and_first_questions_repeat() {
        let mut scripts = scripts(Arrivals::Poisson);
        let mut first = std::collections::BTreeSet::new();
        let mut whole = std::collections::BTreeSet::new();
        for index in 0..300 {
            let script = scripts.script(index, Moment::ORIGIN);
            let mut text = scripts.beginning(&script);
            first.insert(text.bytes().to_vec());
            script.turns[0].ask(&mut text);
            whole.insert(text.bytes().to_vec());
        }
        assert_eq!((first.len(), whole.len()), (3, 6));
    }

    #[test]
    fn arrivals_keep_the_mean_rate_and_bursts_are_uneven() {
        let count = |arrivals| {
            let all = scripts(arrivals).draw(10.0, Moment::from_millis(2_000_000));
            let mut per_s = vec![0.0_f64; 2_000];
            for script in &all {
                per_s[(script.begins.as_micros() / 1_000_000) as usize] += 1.0;
            }
            let mean = per_s.iter().sum::<f64>() / per_s.len() as f64;
            let variance = per_s.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 2_000.0;
            (mean, variance / mean)
        };
        let (mean, ratio) = count(Arrivals::Poisson);
        assert!(
            (9.5..10.5).contains(&mean) && (0.9..1.1).contains(&ratio),
            "{mean} {ratio}"
        );
        let (mean, ratio) = count(Arrivals::Bursts {
            quiet_s: 10.0,
            burst_s: 2.0,
            factor: 8.0,
        });
        assert!((8.5..11.5).contains(&mean) && ratio > 4.0, "{mean} {ratio}");
    }
}
