//! The KV block pool: reference counts, a hash map of cached blocks, and an LRU list of free ones.
//!
//! As in vLLM: a freed block keeps its content and hash until it is taken for something else, so the
//! list of free blocks is at once the cache's eviction order. Who may have blocks is decided in
//! [`super`].

use std::collections::HashMap;

/// Number of a block in its pool.
pub(crate) type BlockId = u32;

const NONE: BlockId = BlockId::MAX;

/// A change of what the cache holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CacheChange {
    /// A block can be found by its hash from now on.
    Stored(StoredBlock),
    /// The block with this hash was taken for something else.
    Removed {
        /// Its hash.
        hash: u64,
    },
}

/// A full block: whose it is, and where in the sequence it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoredBlock {
    /// Its hash.
    pub hash: u64,
    /// The hash of the block before it.
    pub parent: Option<u64>,
    /// The request that filled it.
    pub request: super::RequestId,
    /// How many blocks of the request come before it.
    pub position: u32,
}

#[derive(Clone, Debug)]
struct Block {
    references: u32,
    hash: Option<u64>,
    previous: BlockId,
    next: BlockId,
}

/// All KV blocks of one engine. Its size is fixed; who finds no free block must wait or preempt.
#[derive(Clone, Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    cached: HashMap<u64, BlockId>,
    /// Least recently freed block.
    head: BlockId,
    /// Most recently freed block.
    tail: BlockId,
    free: u32,
    /// What changed since somebody last asked; `None` if nobody does.
    changes: Option<Vec<CacheChange>>,
}

impl BlockPool {
    pub(crate) fn new(count: u32) -> Self {
        let mut pool = Self {
            blocks: vec![
                Block {
                    references: 0,
                    hash: None,
                    previous: NONE,
                    next: NONE
                };
                count as usize
            ],
            cached: HashMap::new(),
            head: NONE,
            tail: NONE,
            free: 0,
            changes: None,
        };
        for id in 0..count {
            pool.append_free(id);
        }
        pool
    }

    /// Blocks that nobody holds, cached ones included.
    pub(crate) const fn free(&self) -> u32 {
        self.free
    }

    /// The blocks that hold the longest cached prefix of `hashes`, without taking them.
    pub(crate) fn cached_prefix(&self, hashes: &[u64]) -> Vec<BlockId> {
        hashes
            .iter()
            .map_while(|hash| self.cached.get(hash).copied())
            .collect()
    }

    /// How many of `ids` nobody holds: taking them uses up free blocks.
    pub(crate) fn free_among(&self, ids: &[BlockId]) -> u32 {
        let free = ids
            .iter()
            .filter(|id| self.blocks[**id as usize].references == 0)
            .count();
        u32::try_from(free).expect("not more than blocks")
    }

    /// Adds a reference to a cached block.
    pub(crate) fn take_cached(&mut self, id: BlockId) {
        if self.blocks[id as usize].references == 0 {
            self.unlink(id);
        }
        self.blocks[id as usize].references += 1;
    }

    /// Takes the least recently used free block; its old content is gone.
    pub(crate) fn take_new(&mut self) -> Option<BlockId> {
        let id = self.head;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        let block = &mut self.blocks[id as usize];
        block.references = 1;
        if let Some(hash) = block.hash.take() {
            self.cached.remove(&hash);
            if let Some(changes) = &mut self.changes {
                changes.push(CacheChange::Removed { hash });
            }
        }
        Some(id)
    }

    /// Records what a full block holds. If another block already holds it, that one stays the
    /// cached copy.
    pub(crate) fn set_hash(&mut self, id: BlockId, stored: StoredBlock) {
        let hash = stored.hash;
        if let std::collections::hash_map::Entry::Vacant(entry) = self.cached.entry(hash) {
            entry.insert(id);
            self.blocks[id as usize].hash = Some(hash);
            if let Some(changes) = &mut self.changes {
                changes.push(CacheChange::Stored(stored));
            }
        }
    }

    /// Notes changes from now on.
    pub(crate) fn note_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// What changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<CacheChange> {
        self.changes
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Drops one reference.
    pub(crate) fn release(&mut self, id: BlockId) {
        let block = &mut self.blocks[id as usize];
        block.references = block
            .references
            .checked_sub(1)
            .expect("a released block was taken before");
        if block.references == 0 {
            self.append_free(id);
        }
    }

    fn append_free(&mut self, id: BlockId) {
        let tail = self.tail;
        let block = &mut self.blocks[id as usize];
        (block.previous, block.next) = (tail, NONE);
        match tail {
            NONE => self.head = id,
            _ => self.blocks[tail as usize].next = id,
        }
        self.tail = id;
        self.free += 1;
    }

    fn unlink(&mut self, id: BlockId) {
        let (previous, next) = {
            let block = &self.blocks[id as usize];
            (block.previous, block.next)
        };
        match previous {
            NONE => self.head = next,
            _ => self.blocks[previous as usize].next = next,
        }
        match next {
            NONE => self.tail = previous,
            _ => self.blocks[next as usize].previous = previous,
        }
        self.free -= 1;
    }

    /// Checks the pool against the blocks that its users say they hold.
    #[cfg(test)]
    pub(crate) fn check(&self, held: &[&[BlockId]]) {
        let mut counts = vec![0_u32; self.blocks.len()];
        for id in held.iter().copied().flatten() {
            counts[*id as usize] += 1;
        }
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.references, counts[id], "references of block {id}");
            if let Some(hash) = block.hash {
                assert_eq!(
                    self.cached.get(&hash),
                    Some(&(id as BlockId)),
                    "cached copy"
                );
            }
        }
        let mut listed = 0;
        let (mut id, mut previous) = (self.head, NONE);
        while id != NONE {
            let block = &self.blocks[id as usize];
            assert_eq!(block.references, 0, "a free block has no holder");
            assert_eq!(block.previous, previous, "list is linked both ways");
            (previous, id) = (id, block.next);
            listed += 1;
        }
        assert_eq!(listed, self.free);
        assert_eq!(
            listed as usize,
            counts.iter().filter(|count| **count == 0).count()
        );
        let hashed = self
            .blocks
            .iter()
            .filter(|block| block.hash.is_some())
            .count();
        assert_eq!(hashed, self.cached.len(), "every cached hash has its block");
    }
}
