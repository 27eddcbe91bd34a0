//! What the tables do not say: shapes of models and facts of cards.

use crate::profile::AllReduce;

/// One hardware, model and tensor-parallel degree that was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) card: Card,
    pub(super) model: Model,
    pub(super) tensor_parallel: u32,
}

/// A card, from its data sheet unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Card {
    /// As the folder of its tables is named.
    pub(super) folder: &'static str,
    pub(super) name: &'static str,
    pub(super) memory_gib: u32,
    pub(super) memory_bytes_per_s: f64,
    pub(super) link_bytes_per_s: f64,
    pub(super) link_latency_us: f64,
    pub(super) link_note: &'static str,
    pub(super) layout: Layout,
}

/// How the tables of a card are laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Layout {
    /// `dense.csv`, `per_sequence.csv`, `attention.csv` and for experts `moe.csv`.
    Operators,
    /// One `layers.csv`, without decode attention.
    Layers,
}

/// A model, from its published `config.json`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    /// As the folder of its tables is named.
    pub(super) folder: &'static str,
    pub(super) name: &'static str,
    pub(super) layers: u32,
    pub(super) hidden: u32,
    pub(super) kv_heads: u32,
    pub(super) head_size: u32,
    pub(super) parameters: f64,
    pub(super) max_model_len: u32,
    /// Experts, and how many of them a token takes.
    pub(super) experts: Option<(u32, u32)>,
}

const RTX_PRO_6000: Card = Card {
    folder: "RTXPRO6000",
    name: "rtxpro6000",
    memory_gib: 96,
    memory_bytes_per_s: 1.597e12,
    link_bytes_per_s: 16e9,
    link_latency_us: 20.0,
    link_note: "PCIe: 16 GB/s and 20 us, from config.json of the truth runs",
    layout: Layout::Operators,
};

const RTX_4090: Card = Card {
    folder: "RTX4090",
    name: "rtx4090",
    memory_gib: 24,
    memory_bytes_per_s: 1.008e12,
    link_bytes_per_s: 16e9,
    link_latency_us: 20.0,
    link_note: "PCIe",
    layout: Layout::Operators,
};

const H100: Card = Card {
    folder: "H100",
    name: "h100",
    memory_gib: 80,
    memory_bytes_per_s: 3.35e12,
    link_bytes_per_s: 450e9,
    link_latency_us: 10.0,
    link_note: "NVLink 4: 450 GB/s each way from the data sheet, 10 us assumed",
    layout: Layout::Layers,
};

const LLAMA_3_1_8B: Model = Model {
    folder: "meta-llama/Llama-3.1-8B",
    name: "llama-3.1-8b",
    layers: 32,
    hidden: 4096,
    kv_heads: 8,
    head_size: 128,
    parameters: 8.03e9,
    max_model_len: 131_072,
    experts: None,
};

const QWEN3_32B: Model = Model {
    folder: "Qwen/Qwen3-32B",
    name: "qwen3-32b",
    layers: 64,
    hidden: 5120,
    kv_heads: 8,
    head_size: 128,
    parameters: 32.76e9,
    max_model_len: 40_960,
    experts: None,
};

const QWEN3_30B_A3B: Model = Model {
    folder: "Qwen/Qwen3-30B-A3B-Instruct-2507",
    name: "qwen3-30b-a3b",
    layers: 48,
    hidden: 2048,
    kv_heads: 4,
    head_size: 128,
    parameters: 30.53e9,
    max_model_len: 262_144,
    experts: Some((128, 8)),
};

/// Every setup with tables.
pub(super) const SETUPS: &[Setup] = &[
    setup(RTX_PRO_6000, LLAMA_3_1_8B, 1),
    setup(RTX_PRO_6000, LLAMA_3_1_8B, 2),
    setup(RTX_PRO_6000, QWEN3_32B, 1),
    setup(RTX_PRO_6000, QWEN3_32B, 2),
    setup(RTX_PRO_6000, QWEN3_30B_A3B, 1),
    setup(RTX_PRO_6000, QWEN3_30B_A3B, 2),
    setup(RTX_4090, LLAMA_3_1_8B, 1),
    setup(H100, LLAMA_3_1_8B, 1),
    setup(H100, LLAMA_3_1_8B, 2),
];

const fn setup(card: Card, model: Model, tensor_parallel: u32) -> Setup {
    Setup {
        card,
        model,
        tensor_parallel,
    }
}

/// Memory that is neither weights nor KV cache. With it the RTX 4090 gets the 2,588 blocks that were
/// reported for it; the other cards are assumed to spend the same.
const OVERHEAD_BYTES: f64 = 1.70e9;
const MEMORY_SHARE: f64 = 0.9;
const BYTES_PER_NUMBER: f64 = 2.0;
const GIB: f64 = 1_073_741_824.0;

impl Setup {
    pub(super) fn name(&self) -> String {
        format!(
            "{}-{}-tp{}",
            self.card.name, self.model.name, self.tensor_parallel
        )
    }

    /// KV bytes of one token in one layer on one GPU.
    pub(super) fn kv_bytes_per_token_layer(&self) -> f64 {
        let heads = f64::from(self.model.kv_heads) / f64::from(self.tensor_parallel);
        2.0 * heads * f64::from(self.model.head_size) * BYTES_PER_NUMBER
    }

    pub(super) fn kv_blocks(&self) -> u32 {
        let weights = self.model.parameters * BYTES_PER_NUMBER / f64::from(self.tensor_parallel);
        let free = MEMORY_SHARE * f64::from(self.card.memory_gib) * GIB - weights - OVERHEAD_BYTES;
        let block = 16.0 * f64::from(self.model.layers) * self.kv_bytes_per_token_layer();
        (free / block) as u32
    }

    pub(super) fn kv_blocks_note(&self) -> String {
        format!(
            "({MEMORY_SHARE} x {} GiB - {} GB weights / {} - 1.7 GB) / ({} KV bytes per token x 16)",
            self.card.memory_gib,
            self.model.parameters * BYTES_PER_NUMBER / 1e9,
            self.tensor_parallel,
            self.kv_bytes_per_token_layer() * f64::from(self.model.layers),
        )
    }

    /// A ring of two sends every byte once; each layer reduces after attention and after the MLP.
    pub(super) fn all_reduce(&self) -> Option<AllReduce> {
        let ranks = f64::from(self.tensor_parallel);
        (self.tensor_parallel > 1).then(|| AllReduce {
            bytes_per_token: f64::from(self.model.hidden) * BYTES_PER_NUMBER * 2.0 * (ranks - 1.0)
                / ranks,
            per_step: 2.0 * f64::from(self.model.layers),
            bandwidth_bytes_per_s: self.card.link_bytes_per_s,
            latency_us: self.card.link_latency_us,
        })
    }
}
