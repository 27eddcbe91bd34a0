//! Profiles: how long one forward pass takes on given hardware with a given model.
//!
//! A profile holds measured tables (per-operator times of the real kernels, down-sampled) and at
//! most one fitted factor; [`Profile::step_us`] adds them up for a batch. Files live in
//! `profiles/*.json`, are written by [`crate::calibrate`] and embedded here.
//! What a batch contains is the engine's business ([`crate::engine`]).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::grid::{Curve, Grid2, Grid4};

/// One hardware, model and tensor-parallel degree.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name on the command line, such as `rtxpro6000-llama-3.1-8b-tp1`.
    pub name: String,
    /// Accelerator.
    pub hardware: String,
    /// Model, as its publisher names it.
    pub model: String,
    /// GPUs that one replica spans.
    pub tensor_parallel: u32,
    /// Where the numbers come from, for people.
    pub sources: Vec<String>,
    /// Transformer layers.
    pub layers: u32,
    /// KV blocks of 16 tokens that fit beside the weights.
    pub kv_blocks: u32,
    /// The arithmetic behind `kv_blocks`.
    pub kv_blocks_note: String,
    /// Longest context that the model takes, in tokens.
    pub max_model_len: u32,
    /// Everything but attention, head and communication, all layers: µs by tokens in the step.
    pub dense_us: Curve,
    /// LM head and sampler: µs by sequences that emit a token.
    pub head_us: Curve,
    /// Decode attention of one layer: µs by sequences and mean context tokens.
    pub decode_us: Grid2,
    /// Prefill attention of one layer: µs by chunk tokens and tokens before the chunk.
    pub prefill_us: Grid2,
    /// What a kernel with both kinds costs beyond the sum, one layer: µs by chunk tokens, tokens
    /// before the chunk, decode sequences and their mean context.
    pub mixed_excess_us: Grid4,
    /// All-reduces of a tensor-parallel replica.
    pub all_reduce: Option<AllReduce>,
    /// The one fitted factor, on the whole step.
    pub factor: f64,
    /// How the factor was found.
    pub factor_note: String,
}

/// Two all-reduces per layer over the link between the GPUs.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllReduce {
    /// Bytes that one all-reduce moves per token.
    pub bytes_per_token: f64,
    /// All-reduces in one step.
    pub per_step: f64,
    /// Bandwidth, in bytes per second.
    pub bandwidth_bytes_per_s: f64,
    /// Time before the first byte, in µs.
    pub latency_us: f64,
}

/// What one forward pass works on.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Batch {
    /// Prefill chunks of more than one token.
    pub prefills: Vec<Chunk>,
    /// Sequences with a single new token.
    pub decodes: u32,
    /// Context of those sequences, summed, the new token included.
    pub decode_context_tokens: u64,
    /// Sequences that get an output token.
    pub emitting: u32,
}

/// Consecutive prompt tokens of one sequence.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Chunk {
    /// New tokens.
    pub tokens: u32,
    /// Tokens before them.
    pub context_tokens: u32,
}

impl Batch {
    /// New tokens in the step.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.decodes + self.prefills.iter().map(|chunk| chunk.tokens).sum::<u32>()
    }
}

impl Profile {
    /// Time of one step in µs.
    #[must_use]
    pub fn step_us(&self, batch: &Batch) -> f64 {
        let tokens = f64::from(batch.tokens());
        let communication = self.all_reduce.map_or(0.0, |link| {
            let transfer_us = tokens * link.bytes_per_token / link.bandwidth_bytes_per_s * 1e6;
            link.per_step * (link.latency_us + transfer_us)
        });
        let sum = self.dense_us.at(tokens)
            + self.head_us.at(f64::from(batch.emitting.max(1)))
            + f64::from(self.layers) * self.attention_us(batch)
            + communication;
        self.factor * sum
    }

    /// Attention of one layer. The table has one chunk per kernel; further chunks are added without
    /// their launch. The excess depends on the longest chunk, which sets the kernel's tiling.
    fn attention_us(&self, batch: &Batch) -> f64 {
        let n = f64::from(batch.decodes);
        let context = batch.decode_context_tokens as f64 / n.max(1.0);
        let mut us = if batch.decodes > 0 {
            self.decode_us.at(n, context)
        } else {
            0.0
        };
        let mut longest = None;
        for chunk in &batch.prefills {
            us += self.prefill_chunk_us(*chunk);
            longest = longest.max(Some(*chunk));
        }
        let Some(longest) = longest else {
            return us;
        };
        let launch = self.prefill_us.values.first().copied().unwrap_or_default();
        us -= launch * (batch.prefills.len() - 1) as f64;
        if batch.decodes > 0 {
            let (tokens, before) = (f64::from(longest.tokens), f64::from(longest.context_tokens));
            us += self.mixed_excess_us.at([tokens, before, n, context]);
        }
        us
    }

    /// A chunk longer than the table is several, one after the other: the areas add up.
    fn prefill_chunk_us(&self, chunk: Chunk) -> f64 {
        let longest = self.prefill_us.a.last().copied().unwrap_or(f64::MAX);
        let (mut tokens, mut before) = (f64::from(chunk.tokens), f64::from(chunk.context_tokens));
        let mut us = 0.0;
        while tokens > longest {
            us += self.prefill_us.at(longest, before);
            tokens -= longest;
            before += longest;
        }
        us + self.prefill_us.at(tokens, before)
    }

    /// Reads a profile file.
    ///
    /// # Errors
    /// If it is not JSON of this shape, or its tables do not fit their axes.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        let profile: Self =
            serde_json::from_str(text).map_err(|error| ProfileError::Shape(error.to_string()))?;
        let tables = [
            ("dense_us", profile.dense_us.is_sound()),
            ("head_us", profile.head_us.is_sound()),
            ("decode_us", profile.decode_us.is_sound()),
            ("prefill_us", profile.prefill_us.is_sound()),
            ("mixed_excess_us", profile.mixed_excess_us.is_sound()),
        ];
        match tables.iter().find(|(_, sound)| !sound) {
            Some((table, _)) => Err(ProfileError::Table {
                profile: profile.name,
                table,
            }),
            None => Ok(profile),
        }
    }

    /// The profile as its file: one line per field, so that a change shows in a diff.
    #[must_use]
    pub fn render(&self) -> String {
        let value = serde_json::to_value(self).expect("numbers and strings only");
        let fields = value.as_object().expect("a struct is an object");
        let lines: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("  \"{name}\": {value}"))
            .collect();
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }
}

/// Why a profile cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProfileError {
    /// Not JSON of the expected shape.
    Shape(String),
    /// A table does not fit its axes.
    Table {
        /// The profile.
        profile: String,
        /// Its field.
        table: &'static str,
    },
    /// No profile has this name.
    Unknown(String),
}

impl fmt::Display for ProfileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape(error) => write!(f, "profile file: {error}"),
            Self::Table { profile, table } => write!(
                f,
                "profile {profile}: values of {table} do not fit its axes; run cargo xtask calibrate"
            ),
            Self::Unknown(name) => {
                write!(
                    f,
                    "unknown profile {name}; there are: {}",
                    names().join(", ")
                )
            }
        }
    }
}

impl std::error::Error for ProfileError {}

/// Embedded profiles: name and file.
const EMBEDDED: &[(&str, &str)] = &[
    (
        "h100-llama-3.1-8b-tp1",
        include_str!("../profiles/h100-llama-3.1-8b-tp1.json"),
    ),
    (
        "h100-llama-3.1-8b-tp2",
        include_str!("../profiles/h100-llama-3.1-8b-tp2.json"),
    ),
    (
        "rtx4090-llama-3.1-8b-tp1",
        include_str!("../profiles/rtx4090-llama-3.1-8b-tp1.json"),
    ),
    (
        "rtxpro6000-llama-3.1-8b-tp1",
        include_str!("../profiles/rtxpro6000-llama-3.1-8b-tp1.json"),
    ),
    (
        "rtxpro6000-llama-3.1-8b-tp2",
        include_str!("../profiles/rtxpro6000-llama-3.1-8b-tp2.json"),
    ),
    (
        "rtxpro6000-qwen3-30b-a3b-tp1",
        include_str!("../profiles/rtxpro6000-qwen3-30b-a3b-tp1.json"),
    ),
    (
        "rtxpro6000-qwen3-30b-a3b-tp2",
        include_str!("../profiles/rtxpro6000-qwen3-30b-a3b-tp2.json"),
    ),
    (
        "rtxpro6000-qwen3-32b-tp1",
        include_str!("../profiles/rtxpro6000-qwen3-32b-tp1.json"),
    ),
    (
        "rtxpro6000-qwen3-32b-tp2",
        include_str!("../profiles/rtxpro6000-qwen3-32b-tp2.json"),
    ),
];

/// Names of the embedded profiles.
#[must_use]
pub fn names() -> Vec<&'static str> {
    EMBEDDED.iter().map(|(name, _)| *name).collect()
}

/// The embedded profile `name`.
///
/// # Errors
/// If there is none of that name; the message lists those that exist.
pub fn named(name: &str) -> Result<Profile, ProfileError> {
    let (_, text) = EMBEDDED
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| ProfileError::Unknown(name.to_owned()))?;
    Profile::parse(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(n: u32, context: u64) -> Batch {
        let decode_context_tokens = u64::from(n) * context;
        Batch {
            prefills: Vec::new(),
            decodes: n,
            decode_context_tokens,
            emitting: n,
        }
    }

    fn prefill(tokens: u32) -> Batch {
        let prefills = vec![Chunk {
            tokens,
            context_tokens: 0,
        }];
        Batch {
            prefills,
            emitting: 1,
            ..Batch::default()
        }
    }

    #[test]
    fn every_profile_loads_and_longer_work_takes_longer() {
        for name in names() {
            let profile = named(name).expect("embedded profiles are sound");
            assert_eq!(profile.name, name);
            assert!(profile.render().len() < 60 << 10 && profile.kv_blocks > 1000);
            let mut before = 0.0;
            for tokens in [16, 100, 700, 2048, 8192] {
                let us = profile.step_us(&prefill(tokens));
                assert!(us > before, "{name}: {tokens} tokens take {us} us");
                before = us;
            }
            assert!(profile.step_us(&decode(64, 4000)) > profile.step_us(&decode(64, 500)));
            let both = Batch {
                decodes: 32,
                decode_context_tokens: 32_000,
                ..prefill(512)
            };
            let apart = profile.step_us(&prefill(512)) + profile.step_us(&decode(32, 1000));
            assert!(
                profile.step_us(&both) < apart,
                "{name}: one step reads the weights once"
            );
        }
    }

    #[test]
    fn a_file_survives_reading_and_writing() {
        for (_, text) in EMBEDDED {
            assert_eq!(&Profile::parse(text).expect("sound").render(), text);
        }
    }

    #[test]
    fn unknown_profiles_and_broken_tables_are_named() {
        let error = named("abacus").expect_err("no such profile").to_string();
        assert!(
            error.starts_with("unknown profile abacus; there are: h100-"),
            "{error}"
        );
        let mut profile = named("h100-llama-3.1-8b-tp1").expect("embedded");
        profile.head_us.y.pop();
        let error = Profile::parse(&profile.render())
            .expect_err("a value is gone")
            .to_string();
        assert!(error.contains("values of head_us do not fit"), "{error}");
    }
}
