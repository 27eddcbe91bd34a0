//! Operator-time tables to profile tables: sums what a layer runs, thins out the grids.
//!
//! Two layouts are read: `Operators` (all measured) and the older `Layers`, where decode attention is
//! derived from the memory bandwidth because it was not measured. Nothing is fitted here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::setups::{Layout, Setup};
use super::{CalibrateError, round};
use crate::grid::{Curve, Grid2, Grid4};
use crate::profile::Profile;

/// Operators of one transformer layer, with how often each runs, in both layouts. What a model does
/// not have is not in its table.
const PER_LAYER: &[(&str, f64)] = &[
    ("qkv_proj", 1.0),
    ("qk_norm", 1.0),
    ("rotary_emb", 1.0),
    ("o_proj", 1.0),
    ("gate_up_proj", 1.0),
    ("act_fn", 1.0),
    ("down_proj", 1.0),
    ("layernorm", 2.0),
    ("q_proj", 1.0),
    ("k_proj", 1.0),
    ("v_proj", 1.0),
    ("rope", 1.0),
    ("gate_proj", 1.0),
    ("up_proj", 1.0),
    ("input_layernorm", 1.0),
    ("post_layernorm", 1.0),
];
/// Operators that run once per step over all tokens.
const PER_STEP: &[&str] = &["embedding", "final_layernorm"];

/// Chunk lengths of the excess table, in tokens.
const MIXED_CHUNKS: &[u32] = &[16, 64, 128, 256, 512, 1024, 2048];
/// Tokens before the chunk, in the excess table.
const MIXED_BEFORE: &[u32] = &[0, 512, 2048, 8192];
/// Decode sequences of the excess table.
const MIXED_DECODES: &[u32] = &[1, 4, 16, 64, 128];
/// Decode context of the excess table, in tokens.
const MIXED_CONTEXT: &[u32] = &[16, 128, 512, 1024, 2048, 4096, 16_384];
/// Axes of the prefill table: those for which every pair was measured.
const PREFILL_CHUNKS: &[u32] = &[16, 32, 64, 128, 256, 512, 1024, 2048];
const PREFILL_BEFORE: &[u32] = &[0, 128, 512, 1024, 2048, 4096, 8192, 16_384];
/// Axes of the derived decode table of the older layout.
const DECODES: &[u32] = &[1, 2, 4, 8, 16, 32, 64, 128, 256];
const DECODE_CONTEXT: &[u32] = &[16, 128, 1024, 4096, 16_384];

/// Share of the memory bandwidth that decode attention reaches: 128 sequences of 1,024 tokens take
/// 405 us on the RTX PRO 6000, which is 1.33 of its 1.597 TB/s.
const DECODE_BANDWIDTH_SHARE: f64 = 0.83;

/// Values of each operator by its size.
type Operators = BTreeMap<String, BTreeMap<u32, f64>>;

/// The profile that the tables of `setup` under `root` give, with factor 1.
pub(super) fn profile(setup: &Setup, root: &Path) -> Result<Profile, CalibrateError> {
    let folder = root.join(setup.card.folder).join(setup.model.folder);
    let tensor_parallel = format!("tp{}", setup.tensor_parallel);
    let mut sources = vec![format!(
        "LLMServingSim operator tables (MIT): {}/{}, {tensor_parallel}",
        setup.card.folder, setup.model.folder
    )];
    if setup.tensor_parallel > 1 {
        sources.push(format!("all-reduce over {}", setup.card.link_note));
    }
    let empty = Profile {
        name: setup.name(),
        hardware: setup.card.folder.to_owned(),
        model: setup.model.folder.to_owned(),
        tensor_parallel: setup.tensor_parallel,
        sources,
        layers: setup.model.layers,
        kv_blocks: setup.kv_blocks(),
        kv_blocks_note: setup.kv_blocks_note(),
        max_model_len: setup.model.max_model_len,
        dense_us: Curve::default(),
        head_us: Curve::default(),
        decode_us: Grid2::default(),
        prefill_us: Grid2::default(),
        mixed_excess_us: Grid4::default(),
        all_reduce: setup.all_reduce(),
        factor: 1.0,
        factor_note: String::new(),
    };
    match setup.card.layout {
        Layout::Operators => {
            from_operators(setup, &folder.join("bf16").join(tensor_parallel), empty)
        }
        Layout::Layers => from_layers(setup, &folder.join(tensor_parallel), empty),
    }
}

fn from_operators(setup: &Setup, folder: &Path, empty: Profile) -> Result<Profile, CalibrateError> {
    let dense = operators(&folder.join("dense.csv"), 1, 2, 1.0)?;
    let head = operators(&folder.join("per_sequence.csv"), 1, 2, 1.0)?;
    let (experts_us, experts_source) = experts(setup, folder)?;
    let attention = Attention::read(&folder.join("attention.csv"))?;
    let mut sources = empty.sources.clone();
    sources.extend(experts_source);
    Ok(Profile {
        dense_us: dense_curve(setup, &dense, &experts_us),
        head_us: sum_curve(&head, &["lm_head", "sampler"]),
        decode_us: attention.decode_grid(),
        prefill_us: attention.prefill_grid()?,
        mixed_excess_us: attention.excess_grid()?,
        sources,
        ..empty
    })
}

fn from_layers(setup: &Setup, folder: &Path, empty: Profile) -> Result<Profile, CalibrateError> {
    let path = folder.join("layers.csv");
    let mut layers = operators(&path, 1, 4, 1e-3)?;
    for table in layers.values_mut() {
        // Every length up to 2,048 was measured; every 32nd says the same.
        table.retain(|tokens, _| *tokens <= 16 || tokens % 32 == 0);
    }
    let attention = layers
        .get("attn")
        .map(curve)
        .ok_or_else(|| CalibrateError::Content(path.clone(), "no row for attn".to_owned()))?;
    let bandwidth = setup.card.memory_bytes_per_s * DECODE_BANDWIDTH_SHARE;
    let bytes = setup.kv_bytes_per_token_layer();
    let floor = attention.y[0];
    let decode =
        |n: u32, context: u32| floor + f64::from(n) * f64::from(context) * bytes / bandwidth * 1e6;
    // A chunk attends to everything before it and to half of itself.
    let prefill = |chunk: u32, before: u32| {
        let own = attention.at(f64::from(chunk)) - floor;
        floor + own * (1.0 + 2.0 * f64::from(before) / f64::from(chunk))
    };
    let mut sources = empty.sources.clone();
    sources.push(format!(
        "older layout, unfused operators; decode attention derived: {DECODE_BANDWIDTH_SHARE} of \
         {} TB/s; attention to earlier chunks by area",
        setup.card.memory_bytes_per_s / 1e12
    ));
    let mut head = sum_curve(&layers, &["lm_head"]);
    let shown = head.x.partition_point(|sequences| *sequences <= 256.0);
    head.x.truncate(shown);
    head.y.truncate(shown);
    Ok(Profile {
        dense_us: dense_curve(setup, &layers, &BTreeMap::new()),
        head_us: head,
        decode_us: grid(DECODES, DECODE_CONTEXT, decode),
        prefill_us: grid(PREFILL_CHUNKS, PREFILL_BEFORE, prefill),
        sources,
        ..empty
    })
}

/// Everything but attention and head, over all layers.
fn dense_curve(setup: &Setup, table: &Operators, experts_us: &BTreeMap<u32, f64>) -> Curve {
    let experts = curve(experts_us);
    let layers = f64::from(setup.model.layers);
    let sizes = table.get("embedding").into_iter().flat_map(BTreeMap::keys);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for tokens in sizes {
        let of = |name: &str| {
            table
                .get(name)
                .and_then(|sizes| sizes.get(tokens))
                .unwrap_or(&0.0)
        };
        let layer: f64 = PER_LAYER.iter().map(|(name, times)| times * of(name)).sum();
        let once: f64 = PER_STEP.iter().map(|name| of(name)).sum();
        x.push(f64::from(*tokens));
        y.push(round(
            layers * (layer + experts.at(f64::from(*tokens))) + once,
            1,
        ));
    }
    Curve { x, y }
}

/// Time of the experts in one layer by tokens, and what to say about it. With T tokens that choose k
/// of E experts evenly, E (1 - (1 - k/E)^T) of them have something to do.
fn experts(
    setup: &Setup,
    folder: &Path,
) -> Result<(BTreeMap<u32, f64>, Option<String>), CalibrateError> {
    let Some((experts, chosen)) = setup.model.experts else {
        return Ok((BTreeMap::new(), None));
    };
    let own = folder.join("moe.csv");
    let (path, share, note) = if own.is_file() {
        (own, 1.0, "experts chosen evenly")
    } else {
        let parallel = f64::from(setup.tensor_parallel);
        let note = "experts chosen evenly; their tp1 times divided among the GPUs";
        (
            folder.with_file_name("tp1").join("moe.csv"),
            1.0 / parallel,
            note,
        )
    };
    let mut by_tokens: BTreeMap<u32, BTreeMap<u32, f64>> = BTreeMap::new();
    for row in rows(&path)? {
        let (tokens, active) = (integer(&path, &row, 0)?, integer(&path, &row, 1)?);
        by_tokens
            .entry(tokens)
            .or_default()
            .insert(active, number(&path, &row, 2)?);
    }
    let idle = 1.0 - f64::from(chosen) / f64::from(experts);
    let times = by_tokens
        .iter()
        .map(|(tokens, by_active)| {
            let active = f64::from(experts) * (1.0 - idle.powf(f64::from(*tokens)));
            (*tokens, share * curve(by_active).at(active))
        })
        .collect();
    Ok((times, Some(note.to_owned())))
}

/// Attention of one layer, by (chunk, before, decodes, context).
struct Attention {
    path: PathBuf,
    times: BTreeMap<[u32; 4], f64>,
}

impl Attention {
    fn read(path: &Path) -> Result<Self, CalibrateError> {
        let mut times = BTreeMap::new();
        for row in rows(path)? {
            let mut key = [0; 4];
            for (column, part) in key.iter_mut().enumerate() {
                *part = integer(path, &row, column)?;
            }
            times.insert(key, number(path, &row, 4)?);
        }
        Ok(Self {
            path: path.to_owned(),
            times,
        })
    }

    fn at(&self, key: [u32; 4]) -> Result<f64, CalibrateError> {
        self.times.get(&key).copied().ok_or_else(|| {
            CalibrateError::Content(self.path.clone(), format!("no measurement at {key:?}"))
        })
    }

    /// Every batch size, and every context that was measured for all of them.
    fn decode_grid(&self) -> Grid2 {
        let decodes = self.times.keys().filter(|key| key[0] == 0 && key[2] > 0);
        let (mut sizes, mut contexts): (Vec<u32>, Vec<u32>) =
            decodes.map(|key| (key[2], key[3])).unzip();
        for axis in [&mut sizes, &mut contexts] {
            axis.sort_unstable();
            axis.dedup();
        }
        let measured = |n: u32, context: u32| self.times.get(&[0, 0, n, context]).copied();
        contexts.retain(|context| sizes.iter().all(|n| measured(*n, *context).is_some()));
        grid(&sizes, &contexts, |n, context| {
            measured(n, context).expect("kept only contexts that all sizes have")
        })
    }

    fn prefill_grid(&self) -> Result<Grid2, CalibrateError> {
        for chunk in PREFILL_CHUNKS {
            for before in PREFILL_BEFORE {
                self.at([*chunk, *before, 0, 0])?;
            }
        }
        Ok(grid(PREFILL_CHUNKS, PREFILL_BEFORE, |chunk, before| {
            self.at([chunk, before, 0, 0]).expect("looked up above")
        }))
    }

    fn excess_grid(&self) -> Result<Grid4, CalibrateError> {
        let mut values = Vec::new();
        for chunk in MIXED_CHUNKS {
            for before in MIXED_BEFORE {
                for decodes in MIXED_DECODES {
                    for context in MIXED_CONTEXT {
                        let together = self.at([*chunk, *before, *decodes, *context])?;
                        let apart = self.at([*chunk, *before, 0, 0])?
                            + self.at([0, 0, *decodes, *context])?;
                        values.push(round(together - apart, 1));
                    }
                }
            }
        }
        let axes = [MIXED_CHUNKS, MIXED_BEFORE, MIXED_DECODES, MIXED_CONTEXT].map(floats);
        Ok(Grid4 { axes, values })
    }
}

/// Sums some operators over the sizes of the first.
fn sum_curve(table: &Operators, names: &[&str]) -> Curve {
    let sizes = names.first().and_then(|name| table.get(*name));
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for size in sizes.into_iter().flat_map(BTreeMap::keys) {
        let of = |name: &&str| {
            table
                .get(*name)
                .and_then(|sizes| sizes.get(size))
                .unwrap_or(&0.0)
        };
        x.push(f64::from(*size));
        y.push(round(names.iter().map(of).sum(), 1));
    }
    Curve { x, y }
}

fn curve(table: &BTreeMap<u32, f64>) -> Curve {
    Curve {
        x: table.keys().copied().map(f64::from).collect(),
        y: table.values().copied().collect(),
    }
}

fn grid(a: &[u32], b: &[u32], of: impl Fn(u32, u32) -> f64) -> Grid2 {
    let mut values = Vec::new();
    for outer in a {
        values.extend(b.iter().map(|inner| round(of(*outer, *inner), 1)));
    }
    Grid2 {
        a: floats(a),
        b: floats(b),
        values,
    }
}

fn floats(axis: &[u32]) -> Vec<f64> {
    axis.iter().copied().map(f64::from).collect()
}

/// Reads rows that start with an operator's name, with its size and time in the given columns.
fn operators(
    path: &Path,
    size: usize,
    time: usize,
    unit: f64,
) -> Result<Operators, CalibrateError> {
    let mut table = Operators::new();
    for row in rows(path)? {
        let (size, time) = (integer(path, &row, size)?, number(path, &row, time)?);
        table
            .entry(row[0].clone())
            .or_default()
            .insert(size, time * unit);
    }
    Ok(table)
}

/// Rows of a CSV file without quotes, the header left out.
fn rows(path: &Path) -> Result<Vec<Vec<String>>, CalibrateError> {
    let text =
        fs::read_to_string(path).map_err(|error| CalibrateError::File(path.to_owned(), error))?;
    let row = |line: &str| line.split(',').map(|cell| cell.trim().to_owned()).collect();
    Ok(text
        .lines()
        .skip(1)
        .filter(|line| !line.is_empty())
        .map(row)
        .collect())
}

fn integer(path: &Path, row: &[String], column: usize) -> Result<u32, CalibrateError> {
    cell(path, row, column)
}

fn number(path: &Path, row: &[String], column: usize) -> Result<f64, CalibrateError> {
    cell(path, row, column)
}

fn cell<T: std::str::FromStr>(
    path: &Path,
    row: &[String],
    column: usize,
) -> Result<T, CalibrateError> {
    row.get(column)
        .and_then(|cell| cell.parse().ok())
        .ok_or_else(|| {
            let problem = format!(
                "column {} of row {:?} is not a number",
                column + 1,
                row.join(",")
            );
            CalibrateError::Content(path.to_owned(), problem)
        })
}
