//! Batches of KV cache events as vLLM and SGLang publish them: msgpack, of which three shapes are
//! about. Batches and events are arrays (older vLLM, SGLang), or maps, or arrays of maps; block
//! hashes are numbers or bytes; fields that are not known are skipped.
//!
//! One pass without a tree. What an event claims about its own length is held against the bytes
//! that are there, so that nothing is allocated for what did not arrive; an event that cannot be
//! read costs itself and not the batch. Whether batches are missing is found in [`Sequence`]; what
//! events mean is the index's matter (`forebay_decide::prefix`).

mod msgpack;
mod sequence;
#[cfg(test)]
mod tests;

use forebay_model::kv::{BlockName, CacheEvent, ExtraKeys, Lora, Removed, Stored, Tier};

use msgpack::{Reader, Value};
pub use sequence::{Sequence, Verdict};

/// Tokens of one event; more make it unreadable. The longest contexts have a few millions.
const TOKENS_MAX: usize = 1 << 22;
/// Blocks of one event; more make it unreadable.
const BLOCKS_MAX: usize = 1 << 20;

/// One message's payload.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Batch {
    /// When it was made, in seconds of the server's clock.
    pub timestamp_s: f64,
    /// The data-parallel rank that it is of.
    pub rank: Option<u32>,
    /// What happened, in order.
    pub events: Vec<CacheEvent>,
    /// Events that could not be read, or are of a kind that is not known.
    pub unreadable: u32,
}

/// Why a payload is no batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// It ends within a value.
    Truncated,
    /// It is not what a batch looks like.
    Shape(&'static str),
    /// Values within values beyond any reason.
    TooDeep,
}

impl std::fmt::Display for BatchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("the payload ends within a value"),
            Self::Shape(what) => write!(f, "the payload is no batch of events: {what}"),
            Self::TooDeep => f.write_str("the payload has values within values beyond any reason"),
        }
    }
}

impl std::error::Error for BatchError {}

/// Reads a batch.
///
/// # Errors
/// If the payload as a whole cannot be read; events before the fault are lost with it, since where
/// the next one begins is not known.
pub fn decode(payload: &[u8]) -> Result<Batch, BatchError> {
    let mut reader = Reader::new(payload);
    let mut batch = Batch::default();
    match reader.value()? {
        Value::Array(len) => {
            for position in 0..len {
                match position {
                    0 => batch.timestamp_s = reader.number()?.unwrap_or_default(),
                    1 => events(&mut reader, &mut batch)?,
                    2 => batch.rank = rank(&mut reader)?,
                    _ => reader.skip()?,
                }
            }
            if len < 2 {
                return Err(BatchError::Shape("it has no events"));
            }
        }
        Value::Map(len) => {
            let mut found = false;
            for _ in 0..len {
                match reader.text()? {
                    Some(b"ts") => batch.timestamp_s = reader.number()?.unwrap_or_default(),
                    Some(b"events") => {
                        found = true;
                        events(&mut reader, &mut batch)?;
                    }
                    Some(b"data_parallel_rank") => batch.rank = rank(&mut reader)?,
                    _ => reader.skip()?,
                }
            }
            if !found {
                return Err(BatchError::Shape("it has no events"));
            }
        }
        _ => return Err(BatchError::Shape("neither an array nor a map")),
    }
    Ok(batch)
}

fn rank(reader: &mut Reader<'_>) -> Result<Option<u32>, BatchError> {
    let rank = reader.integer()?;
    Ok(rank.and_then(|rank| u32::try_from(rank).ok()))
}

fn events(reader: &mut Reader<'_>, batch: &mut Batch) -> Result<(), BatchError> {
    let Value::Array(len) = reader.value()? else {
        return Err(BatchError::Shape("events are no array"));
    };
    for _ in 0..len {
        // The event's bytes first: whatever is wrong in there, the next one begins after them.
        let mut own = Reader::new(reader.raw()?);
        match event(&mut own) {
            Ok(Some(event)) => batch.events.push(event),
            Ok(None) | Err(_) => batch.unreadable += 1,
        }
    }
    Ok(())
}

/// Fields of an event in the order of the array form.
const STORED: [Field; 11] = [
    Field::Blocks,
    Field::Parent,
    Field::Tokens,
    Field::BlockTokens,
    Field::LoraNumber,
    Field::Medium,
    Field::LoraName,
    Field::Extra,
    Field::Group,
    Field::Kind,
    Field::Window,
];
const REMOVED: [Field; 3] = [Field::Blocks, Field::Medium, Field::Group];

#[derive(Clone, Copy, Debug)]
enum Field {
    Blocks,
    Parent,
    Tokens,
    BlockTokens,
    LoraNumber,
    Medium,
    LoraName,
    Extra,
    Group,
    Kind,
    Window,
}

impl Field {
    fn named(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"block_hashes" => Self::Blocks,
            b"parent_block_hash" => Self::Parent,
            b"token_ids" => Self::Tokens,
            b"block_size" => Self::BlockTokens,
            b"lora_id" => Self::LoraNumber,
            b"medium" => Self::Medium,
            b"lora_name" => Self::LoraName,
            b"extra_keys" => Self::Extra,
            b"group_idx" => Self::Group,
            b"kv_cache_spec_kind" => Self::Kind,
            b"kv_cache_spec_sliding_window" => Self::Window,
            _ => return None,
        })
    }
}

/// What has been read of an event, whatever its kind.
#[derive(Debug, Default)]
struct Parts<'a> {
    blocks: Vec<BlockName>,
    parent: Option<BlockName>,
    tokens: Vec<u32>,
    block_tokens: u32,
    lora_number: Option<u64>,
    lora_name: Option<&'a str>,
    medium: Option<&'a str>,
    extra: Option<&'a [u8]>,
    group: u32,
    kind: Option<&'a str>,
    window: bool,
}

fn event(reader: &mut Reader<'_>) -> Result<Option<CacheEvent>, BatchError> {
    let mut parts = Parts::default();
    let tag = match reader.value()? {
        Value::Array(0) => return Ok(None),
        Value::Array(len) => {
            let tag = reader.text()?.unwrap_or_default();
            let order: &[Field] = match tag {
                b"BlockStored" => &STORED,
                b"BlockRemoved" => &REMOVED,
                _ => &[],
            };
            for position in 1..len {
                match order.get(position - 1) {
                    Some(field) => parts.read(*field, reader)?,
                    None => reader.skip()?,
                }
            }
            tag
        }
        Value::Map(len) => {
            let mut tag: &[u8] = b"";
            for _ in 0..len {
                let name = reader.text()?.unwrap_or_default();
                match Field::named(name) {
                    Some(field) => parts.read(field, reader)?,
                    None if name == b"type" => tag = reader.text()?.unwrap_or_default(),
                    None => reader.skip()?,
                }
            }
            tag
        }
        _ => return Ok(None),
    };
    match tag {
        b"BlockStored" => parts.stored(),
        b"BlockRemoved" => Ok(Some(CacheEvent::Removed(Removed {
            blocks: parts.blocks,
            tier: Tier::of_medium(parts.medium),
            group: parts.group,
        }))),
        b"AllBlocksCleared" => Ok(Some(CacheEvent::Cleared)),
        _ => Ok(None),
    }
}

impl<'a> Parts<'a> {
    fn read(&mut self, field: Field, reader: &mut Reader<'a>) -> Result<(), BatchError> {
        match field {
            Field::Blocks => self.blocks = names(reader)?,
            Field::Parent => self.parent = name(reader)?,
            Field::Tokens => self.tokens = tokens(reader)?,
            Field::BlockTokens => {
                let tokens = reader.integer()?.unwrap_or_default();
                self.block_tokens = u32::try_from(tokens).unwrap_or_default();
            }
            Field::LoraNumber => self.lora_number = reader.integer()?.map(|n| n as u64),
            Field::Medium => self.medium = reader.string()?,
            Field::LoraName => self.lora_name = reader.string()?,
            Field::Extra => self.extra = Some(reader.raw()?),
            Field::Group => {
                let group = reader.integer()?.unwrap_or_default();
                self.group = u32::try_from(group).unwrap_or(u32::MAX);
            }
            Field::Kind => self.kind = reader.string()?,
            Field::Window => self.window = reader.integer()?.is_some(),
        }
        Ok(())
    }

    /// The event, if its parts fit each other.
    fn stored(self) -> Result<Option<CacheEvent>, BatchError> {
        let whole = self.blocks.len().checked_mul(self.block_tokens as usize);
        let fits = self.tokens.is_empty() || whole.is_some_and(|n| n <= self.tokens.len());
        if self.block_tokens == 0 || !fits {
            return Ok(None);
        }
        let extra = match self.extra {
            None => Vec::new(),
            Some(raw) => extra_keys(raw, self.lora_name, self.blocks.len())?,
        };
        let lora = match (self.lora_name, self.lora_number) {
            (Some(name), _) => Lora::Named(name.into()),
            (None, Some(number)) => Lora::Numbered(number),
            (None, None) => Lora::Base,
        };
        // Kinds that keep every block: the plain one, and those with compressed or sink attention.
        let full = |kind: &str| kind.contains("full") || kind.contains("mla");
        Ok(Some(CacheEvent::Stored(Stored {
            full_attention: !self.window && self.kind.is_none_or(full),
            blocks: self.blocks,
            parent: self.parent,
            tokens: self.tokens,
            block_tokens: self.block_tokens,
            lora,
            tier: Tier::of_medium(self.medium),
            extra,
            group: self.group,
        })))
    }
}

/// One digest for each block; none at all if no block has any key but its adapter's.
fn extra_keys(raw: &[u8], lora: Option<&str>, blocks: usize) -> Result<Vec<ExtraKeys>, BatchError> {
    let mut reader = Reader::new(raw);
    let Value::Array(len) = reader.value()? else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for _ in 0..len.min(blocks) {
        let mut keys = ExtraKeys::default();
        if let Value::Array(len) = reader.peek()? {
            reader.value()?;
            for _ in 0..len {
                let raw = reader.raw()?;
                let text = Reader::new(raw).string()?;
                if text.is_none() || text != lora {
                    keys = keys.and(text.map_or(raw, str::as_bytes));
                }
            }
        } else {
            reader.skip()?;
        }
        all.push(keys);
    }
    if all.iter().all(|keys| keys.is_none()) {
        all.clear();
    } else {
        all.resize(blocks, ExtraKeys::default());
    }
    Ok(all)
}

fn names(reader: &mut Reader<'_>) -> Result<Vec<BlockName>, BatchError> {
    let Value::Array(len) = reader.value()? else {
        return Err(BatchError::Shape("block hashes are no array"));
    };
    if len > BLOCKS_MAX {
        return Err(BatchError::Shape("too many blocks"));
    }
    // Each takes a byte at least: no more room than has arrived.
    let mut names = Vec::with_capacity(len.min(reader.left()));
    for _ in 0..len {
        names.push(name(reader)?.ok_or(BatchError::Shape("a block without a hash"))?);
    }
    Ok(names)
}

fn name(reader: &mut Reader<'_>) -> Result<Option<BlockName>, BatchError> {
    Ok(match reader.value()? {
        Value::Nil => None,
        Value::Integer(number) => Some(number as u64),
        Value::Bytes(bytes) => Some(tail(bytes)),
        _ => {
            return Err(BatchError::Shape(
                "a hash that is neither a number nor bytes",
            ));
        }
    })
}

/// The last eight bytes: hashes are long, and any part of one tells blocks apart.
fn tail(bytes: &[u8]) -> BlockName {
    let last = &bytes[bytes.len().saturating_sub(8)..];
    last.iter()
        .fold(0, |name, byte| name << 8 | u64::from(*byte))
}

fn tokens(reader: &mut Reader<'_>) -> Result<Vec<u32>, BatchError> {
    let Value::Array(len) = reader.value()? else {
        return Err(BatchError::Shape("token ids are no array"));
    };
    if len > TOKENS_MAX {
        return Err(BatchError::Shape("too many tokens"));
    }
    let mut tokens = Vec::with_capacity(len.min(reader.left()));
    for _ in 0..len {
        let token = reader.integer()?;
        // Placeholders may be negative: what counts is that they are always the same.
        tokens.push(token.ok_or(BatchError::Shape("a token that is no number"))? as u32);
    }
    Ok(tokens)
}

/// A topic of the form `kv@POD@MODEL`: the pod and the model, which may contain a further `@`.
#[must_use]
pub fn topic_parts(topic: &str) -> Option<(&str, &str)> {
    topic.strip_prefix("kv@")?.split_once('@')
}
