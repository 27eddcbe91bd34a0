//! What is known about beds between two commands: one folder each, with a record that is written
//! before anything is made and says whether all of it was.
//!
//! A folder with an unfinished record is what a crash leaves; `up` and `down` both clean it up.

use super::network;
use super::plan::{Bed, SLOTS, Shape};
use crate::shell;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The record of one bed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) bed: Bed,
    /// Its control groups, one per hierarchy.
    pub(super) groups: Vec<PathBuf>,
    /// Everything came up.
    pub(super) ready: bool,
}

/// The folder of everything that belongs to clusters, safe to delete while no bed is up.
pub(super) fn home() -> Result<PathBuf> {
    Ok(shell::cache_dir()?.join("cluster"))
}

/// The folder of the beds.
fn beds_dir() -> Result<PathBuf> {
    let dir = home()?.join("beds");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

impl Record {
    fn file(dir: &Path) -> PathBuf {
        dir.join("bed.json")
    }

    pub(super) fn write(&self) -> Result<()> {
        let file = Self::file(&self.bed.dir);
        let write = || {
            fs::create_dir_all(&self.bed.dir)?;
            fs::write(&file, serde_json::to_vec_pretty(self)?)
        };
        write().with_context(|| format!("cannot write {}", file.display()))
    }

    /// The record of a bed, if there is one.
    pub(super) fn read(name: &str) -> Result<Option<Self>> {
        Self::read_from(&beds_dir()?.join(name))
    }

    fn read_from(dir: &Path) -> Result<Option<Self>> {
        let file = Self::file(dir);
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged: delete it", file.display()))
                .map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }
}

/// All records there are, by name.
pub(super) fn all() -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(beds_dir()?).context("cannot list the beds")? {
        let path = entry?.path();
        if path.is_dir() {
            records.extend(Record::read_from(&path)?);
        }
    }
    records.sort_by(|one, other| one.bed.name.cmp(&other.bed.name));
    Ok(records)
}

/// Keeps other commands away from a bed as long as the value lives.
pub(super) fn lock(name: &str) -> Result<File> {
    let file = beds_dir()?.join(format!("{name}.lock"));
    let lock = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("bed {name}: another command is at work on it"),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", file.display()))
        }
    }
}

/// Gives a new bed its slot and writes its first record.
pub(super) fn reserve(
    name: &str,
    shape: Shape,
    groups: impl Fn(&Bed) -> Vec<PathBuf>,
) -> Result<Record> {
    // Two beds that start at once must not get one slot.
    let file = beds_dir()?.join("slots.lock");
    let lock = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
    lock.lock().context("cannot lock the slots")?;
    let taken: Vec<u8> = all()?.into_iter().map(|record| record.bed.slot).collect();
    let mut conflict = None;
    for slot in (0..SLOTS).filter(|slot| !taken.contains(slot)) {
        let bed = Bed {
            name: name.to_owned(),
            slot,
            shape,
            dir: beds_dir()?.join(name),
        };
        conflict = network::conflict(&bed)?;
        if conflict.is_none() {
            let record = Record {
                groups: groups(&bed),
                bed,
                ready: false,
            };
            record.write()?;
            return Ok(record);
        }
    }
    match conflict {
        Some(route) => {
            bail!("the addresses of every bed would shadow this host's route to {route}")
        }
        None => {
            bail!("{SLOTS} beds are up, and there is room for no more: end one with `cluster down`")
        }
    }
}
