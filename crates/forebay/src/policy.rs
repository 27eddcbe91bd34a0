//! The policy of pools that name none of their own: from a file or a text, put into each snapshot.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use forebay_cluster::{PickerFile, PickerInForce};
use forebay_model::{ObjectName, PickerConfig, Pool, Snapshot};
use tokio::sync::watch;

use crate::Failure;

/// Where the policy comes from.
#[derive(Clone, Debug)]
pub(crate) enum PolicySource {
    /// A file, which is followed.
    File(PathBuf),
    /// A text.
    Text(String),
}

/// The policy while it is followed.
#[derive(Debug)]
pub(crate) struct Policy {
    in_force: watch::Receiver<PickerInForce>,
    /// Pools with the policy, by the pools without it that they were made from, so that those which
    /// did not change are told by their pointers.
    made: HashMap<ObjectName, (Arc<Pool>, Arc<Pool>)>,
    /// What was told of it last.
    told: Option<PickerInForce>,
}

impl Policy {
    /// Reads it and follows it; must be called within a runtime.
    pub(crate) fn open(source: PolicySource) -> Result<Self, Failure> {
        let opened = match source {
            PolicySource::File(path) => PickerFile::open(path),
            PolicySource::Text(text) => PickerFile::text(&text),
        };
        let (file, in_force) = opened.map_err(|problems| {
            let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
            let text = lines.join("\n");
            Failure::world(format!("the picker's configuration does not hold:\n{text}"))
        })?;
        tokio::spawn(file.run());
        Ok(Self {
            in_force,
            made: HashMap::new(),
            told: None,
        })
    }

    /// Returns when it has changed.
    pub(crate) async fn changed(&mut self) {
        if self.in_force.changed().await.is_err() {
            // It is followed no more, which has been logged.
            std::future::pending().await
        }
    }

    /// Whether the file holds, once for each time that it was taken over or found wanting.
    pub(crate) fn news(&mut self) -> Option<bool> {
        let now = self.in_force.borrow().clone();
        let same = self.told.as_ref().is_some_and(|told| {
            Arc::ptr_eq(&told.picker, &now.picker) && told.problems == now.problems
        });
        if same {
            return None;
        }
        let sound = now.problems.is_empty();
        self.told = Some(now);
        Some(sound)
    }

    /// `snapshot` with the policy in every pool that names none of its own.
    pub(crate) fn put_into(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Snapshot> {
        let PickerInForce { picker, problems } = self.in_force.borrow_and_update().clone();
        let default = PickerConfig::default();
        let mut made = HashMap::new();
        let mut pools = snapshot.pools.clone();
        for (name, pool) in &mut pools {
            if pool.picker != default {
                continue;
            }
            let plain = Arc::clone(pool);
            let known = self
                .made
                .remove(name)
                .filter(|(before, with)| Arc::ptr_eq(before, &plain) && with.picker == *picker);
            let (_, with) = known.unwrap_or_else(|| {
                let with = Pool {
                    picker: (*picker).clone(),
                    ..(*plain).clone()
                };
                (Arc::clone(&plain), Arc::new(with))
            });
            *pool = Arc::clone(&with);
            made.insert(name.clone(), (plain, with));
        }
        self.made = made;
        let mut all = snapshot.problems.clone();
        all.extend(problems);
        Arc::new(Snapshot {
            pools,
            problems: all,
            ..(**snapshot).clone()
        })
    }
}
