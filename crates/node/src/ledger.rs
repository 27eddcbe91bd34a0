//! What was promised to pods, on disk: a file for each claim, whole or not there.
//!
//! A plan is written beside its place, synced, renamed and its folder synced, before it is acted on. How far its
//! devices are is in a second file, written as whole but not synced: it has to outlive processes, not the host.
//! With another boot, or without that file, a record reads as planned: no namespace and no move outlived the
//! host's end. A file that is not whole, or not ours, is set aside with a problem and never deleted.
//! The guard of a container reads the same files, while the driver runs or without it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_fabric::claim::ClaimRef;
use forebay_fabric::dhcp::Lease;
use forebay_fabric::plan::{AttachPlan, State};
use serde::{Deserialize, Serialize};

use crate::files;
use crate::ipam::Source;

/// The first word of each file; another version has another.
const MAGIC: &str = "forebay-claim-1";
/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How often a lock that another process has is tried again.
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// What a file may have at most, bytes; 32 devices with all that a claim can say take less than half.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What was promised for one claim.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// Namespace of the claim and its pod.
    pub namespace: String,
    /// Name of the claim.
    pub name: String,
    /// UID of the claim.
    pub uid: String,
    /// UID of the pod that it is for.
    pub pod_uid: String,
    /// Name of the pod.
    pub pod_name: String,
    /// The name that the pod has for it, if it was made from a template.
    #[serde(default)]
    pub claim_name_in_pod: Option<String>,
    /// Where the devices are, or go.
    pub netns: Option<PathBuf>,
    /// The devices.
    pub devices: Vec<DeviceRecord>,
    /// Devices that it only looks at.
    #[serde(default)]
    pub looked_at: Vec<LookedAt>,
}

/// A device that a claim may look at, and that stays with whoever has it (`adminAccess`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LookedAt {
    /// The request of the claim that it answers.
    pub request: String,
    /// The pool that it is published in.
    pub pool: String,
    /// Its name there.
    pub device: String,
    /// Which share of it, if the scheduler named one.
    pub share_id: Option<String>,
}

/// One device of a claim.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// How far it is.
    pub state: State,
    /// What is to be done.
    pub plan: AttachPlan,
    /// From whom its addresses are, if they are not the node's to give.
    #[serde(default)]
    pub source: Option<Source>,
}

impl DeviceRecord {
    /// The lease of its address, if it has one.
    pub fn lease(&self) -> Option<&Lease> {
        self.source.as_ref()?.lease.as_ref()
    }
}

impl ClaimRecord {
    /// Which claim.
    pub fn claim(&self) -> ClaimRef {
        let (namespace, name) = (self.namespace.clone(), self.name.clone());
        ClaimRef {
            namespace,
            name,
            uid: self.uid.clone(),
        }
    }

    /// Whether something of the host's goes into the pod: links on top of NICs that stay are to go with it.
    pub fn takes_from_host(&self) -> bool {
        self.devices.iter().any(|d| d.plan.share.child.is_none())
    }

    /// Sets the state of all devices.
    pub fn set(&mut self, state: State) {
        for device in &mut self.devices {
            device.state = state;
        }
    }
}

/// How far a claim's devices are.
#[derive(Serialize, Deserialize)]
struct Progress {
    netns: Option<PathBuf>,
    states: Vec<State>,
    /// Leases as they were last renewed, by place among the devices.
    #[serde(default)]
    leases: BTreeMap<usize, Lease>,
}

/// The folder of records.
#[derive(Clone, Debug)]
pub struct Ledger {
    folder: PathBuf,
    boot: String,
}

impl Ledger {
    /// Opens the folder, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made, or the kernel does not say which boot this is.
    pub fn open(folder: &Path) -> io::Result<Ledger> {
        let boot = fs::read_to_string(BOOT_ID)
            .map_err(|e| io::Error::new(e.kind(), format!("{BOOT_ID}: {e}")))?;
        Ledger::of_boot(folder, boot.trim())
    }

    /// As [`Ledger::open`], in the boot of the id `boot`, a word.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn of_boot(folder: &Path, boot: &str) -> io::Result<Ledger> {
        fs::create_dir_all(folder)?;
        Ok(Ledger {
            folder: folder.to_owned(),
            boot: boot.to_owned(),
        })
    }

    /// Waits until `until` for the turn to work on records, which one process has at a time: two drivers
    /// overlap in a rolling update. It is had until the answer is dropped, or the process ends.
    ///
    /// # Errors
    /// Another process has it all that time, or those of the file system.
    pub fn lock(&self, until: Instant) -> io::Result<File> {
        let path = self.folder.join("lock");
        let mut options = OpenOptions::new();
        let file = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < until => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(TryLockError::WouldBlock) => {
                    let why = format!(
                        "another driver has held {} for too long; it is tried again, and if this \
                         stays, look whether that driver hangs",
                        path.display()
                    );
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
                Err(TryLockError::Error(e)) => return Err(e),
            }
        }
    }

    /// Writes a record; when this is back, it is on disk.
    ///
    /// # Errors
    /// Those of the file system; the former record stays.
    pub fn write(&self, record: &ClaimRecord) -> io::Result<()> {
        let place = self.place(&record.uid)?;
        let json = serde_json::to_string(record).map_err(io::Error::other)?;
        let sum = checksum(json.as_bytes());
        let boot = &self.boot;
        let text = format!("{MAGIC} {sum:016x} {boot}\n{json}\n");
        files::replace_synced(&place, "tmp", text.as_bytes())?;
        // Of what was there before, which may have been the very same plan.
        files::forget(&place.with_extension("state"))
    }

    /// Writes down how far the devices of a record are that was written before; when this is back, every process
    /// reads it.
    ///
    /// # Errors
    /// Those of the file system, or there is no such record; what was noted before stays.
    pub fn note(&self, record: &ClaimRecord) -> io::Result<()> {
        let place = self.place(&record.uid)?;
        let of = sum_in(&place)?;
        let progress = Progress {
            netns: record.netns.clone(),
            states: record.devices.iter().map(|d| d.state).collect(),
            leases: (record.devices.iter().enumerate())
                .filter_map(|(at, device)| Some((at, device.lease()?.clone())))
                .collect(),
        };
        let json = serde_json::to_string(&progress).map_err(io::Error::other)?;
        let sum = checksum(json.as_bytes());
        let boot = &self.boot;
        let text = format!("{MAGIC} {sum:016x} {of} {boot}\n{json}\n");
        let state = place.with_extension("state");
        files::replace(&state, "state-tmp", text.as_bytes())
    }

    /// The record of a claim; none if there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not whole.
    pub fn read(&self, uid: &str) -> io::Result<Option<ClaimRecord>> {
        let place = self.place(uid)?;
        let (sum, mut record) = match fs::metadata(&place) {
            Ok(meta) if meta.len() > FILE_BYTES_MAX => return Err(broken("is too long")),
            Ok(_) => parse(&fs::read_to_string(&place)?, &self.boot)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        match fs::read_to_string(place.with_extension("state")) {
            Ok(text) => self.advance(&mut record, &sum, &text),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        Ok(Some(record))
    }

    /// Takes over how far devices are, if that is of this record and boot. In one boot it is always whole.
    fn advance(&self, record: &mut ClaimRecord, of: &str, text: &str) {
        let Some((head, json)) = text.split_once('\n') else {
            return;
        };
        let json = json.trim_end();
        let sum = checksum(json.as_bytes());
        if head != format!("{MAGIC} {sum:016x} {of} {}", self.boot) {
            return;
        }
        let progress = serde_json::from_str::<Progress>(json);
        if let Some(progress) = progress
            .ok()
            .filter(|p| p.states.len() == record.devices.len())
        {
            record.netns = progress.netns;
            for (device, state) in record.devices.iter_mut().zip(progress.states) {
                device.state = state;
            }
            for (at, lease) in progress.leases {
                if let Some(device) = record.devices.get_mut(at) {
                    device.source.get_or_insert_default().lease = Some(lease);
                }
            }
        }
    }

    /// Forgets a claim; one that is not known is no error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        let place = self.place(uid)?;
        // Left by a process that ended while it wrote; whether it is there or not, nobody reads it.
        for ending in ["tmp", "state-tmp"] {
            let _gone = fs::remove_file(place.with_extension(ending));
        }
        // First: a record without it is of devices that were not touched, which is so when it is removed.
        files::forget(&place.with_extension("state"))?;
        match fs::remove_file(place) {
            Ok(()) => files::sync(&self.folder),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// All records, by UID, and a sentence about each file that is none and was set aside.
    ///
    /// # Errors
    /// The folder cannot be read, or a file not be set aside.
    pub fn all(&self) -> io::Result<(Vec<ClaimRecord>, Vec<String>)> {
        let (mut records, mut problems) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let uid = path
                .file_stem()
                .and_then(|s| s.to_str())
                .unwrap_or_default();
            // Others are being written now, or were when a process ended; the records beside them count.
            if path.extension().is_none_or(|ending| ending != "claim") {
                continue;
            }
            match self.read(uid) {
                Ok(record) => records.extend(record),
                Err(e) => {
                    let aside = path.with_extension("broken");
                    fs::rename(&path, &aside)?;
                    problems.push(format!(
                        "{} {e}; kept as {}: look there for NICs that are missing",
                        path.display(),
                        aside.display()
                    ));
                }
            }
        }
        records.sort_by(|a, b| a.uid.cmp(&b.uid));
        Ok((records, problems))
    }

    /// Where the namespace of a claim's pod is held: see [`crate::netns::hold`].
    ///
    /// # Errors
    /// The UID is none.
    pub fn held_netns(&self, uid: &str) -> io::Result<PathBuf> {
        self.place(uid)?;
        Ok(self.folder.join("netns").join(uid))
    }

    fn place(&self, uid: &str) -> io::Result<PathBuf> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if uid.is_empty() || uid.len() > 64 || !uid.chars().all(plain) {
            return Err(io::Error::other(format!("`{uid}` is no UID")));
        }
        Ok(self.folder.join(format!("{uid}.claim")))
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The sum in a record's first line, by which its progress is known.
fn sum_in(place: &Path) -> io::Result<String> {
    let mut head = vec![0; MAGIC.len() + 17];
    File::open(place)?.read_exact(&mut head)?;
    let head = String::from_utf8_lossy(&head);
    let sum = head.strip_prefix(MAGIC).map(str::trim);
    sum.map(str::to_owned)
        .ok_or_else(|| broken("is of another version or program"))
}

/// A record with its sum.
fn parse(text: &str, boot: &str) -> io::Result<(String, ClaimRecord)> {
    let (head, json) = text.split_once('\n').ok_or_else(|| broken("is cut off"))?;
    let json = json
        .strip_suffix('\n')
        .ok_or_else(|| broken("is cut off"))?;
    let sum = head
        .strip_prefix(MAGIC)
        .ok_or_else(|| broken("is of another version or program"))?;
    // Records written before boots were told apart name none, and are taken for this one's.
    let (sum, of) = sum
        .trim()
        .split_once(' ')
        .unwrap_or_else(|| (sum.trim(), boot));
    if sum != format!("{:016x}", checksum(json.as_bytes())) {
        return Err(broken("was changed or is cut off"));
    }
    let mut record: ClaimRecord =
        serde_json::from_str(json).map_err(|_| broken("is of another version"))?;
    if of != boot {
        record.set(State::Planned);
        record.netns = None;
    }
    Ok((sum.to_owned(), record))
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// FNV-1a, 64 bits: against torn writes, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_is_set_aside_and_the_rest_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(folder.path()).unwrap();
        let record = |uid: &str| ClaimRecord {
            namespace: "team".into(),
            name: "nics".into(),
            uid: uid.into(),
            pod_uid: "p".into(),
            pod_name: "pod".into(),
            claim_name_in_pod: None,
            netns: None,
            devices: vec![],
            looked_at: vec![],
        };
        for uid in ["a", "b", "c"] {
            ledger.write(&record(uid)).unwrap();
        }
        let torn = folder.path().join("b.claim");
        let text = fs::read_to_string(&torn).unwrap();
        fs::write(&torn, &text[..text.len() - 4]).unwrap();
        let half = folder.path().join("c.tmp");
        fs::write(&half, "half").unwrap();
        let (records, problems) = ledger.all().unwrap();
        assert_eq!(records, [record("a"), record("c")]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(folder.path().join("b.broken").exists());
        assert!(ledger.read("../a").is_err());
        assert!(half.exists(), "who only reads leaves what is being written");
        ledger.remove("c").unwrap();
        assert!(!half.exists());
    }

    fn record_of(state: State, netns: Option<PathBuf>) -> ClaimRecord {
        ClaimRecord {
            namespace: "team".into(),
            name: "nics".into(),
            uid: "a".into(),
            pod_uid: "p".into(),
            pod_name: "pod".into(),
            claim_name_in_pod: None,
            netns,
            devices: vec![DeviceRecord {
                state,
                plan: AttachPlan {
                    requests: vec![],
                    pool: "node".into(),
                    device: "dev".into(),
                    host: Default::default(),
                    pod: Default::default(),
                    rules: vec![],
                    vrf: None,
                    without_programs: false,
                    share: Default::default(),
                    rdma: None,
                },
                source: None,
            }],
            looked_at: vec![],
        }
    }

    #[test]
    fn what_an_earlier_boot_moved_is_only_planned_in_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let record = record_of(State::Verified, Some("/run/netns/pod".into()));
        let first = Ledger::of_boot(folder.path(), "boot-1").unwrap();
        first.write(&record).unwrap();
        assert_eq!(first.read("a").unwrap(), Some(record.clone()));
        let second = Ledger::of_boot(folder.path(), "boot-2").unwrap();
        let now = second.read("a").unwrap().unwrap();
        assert_eq!((now.devices[0].state, now.netns), (State::Planned, None));
        assert_eq!(now.devices[0].plan, record.devices[0].plan);
    }

    #[test]
    fn how_far_devices_are_is_of_one_plan_and_one_boot() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Ledger::of_boot(folder.path(), "boot-1").unwrap();
        let planned = record_of(State::Planned, None);
        assert!(ledger.note(&planned).is_err(), "nothing was planned yet");
        ledger.write(&planned).unwrap();
        let verified = record_of(State::Verified, Some("/run/netns/pod".into()));
        ledger.note(&verified).unwrap();
        assert_eq!(ledger.read("a").unwrap(), Some(verified.clone()));
        let later = Ledger::of_boot(folder.path(), "boot-2").unwrap();
        assert_eq!(later.read("a").unwrap(), Some(planned.clone()));
        // As a host that went down while it wrote leaves it.
        let state = folder.path().join("a.state");
        let text = fs::read_to_string(&state).unwrap();
        for length in [0, 10, text.len() - 3] {
            fs::write(&state, &text[..length]).unwrap();
            assert_eq!(ledger.read("a").unwrap(), Some(planned.clone()));
        }
        ledger.note(&verified).unwrap();
        ledger.write(&planned).unwrap();
        assert_eq!(ledger.read("a").unwrap(), Some(planned), "planned anew");
        ledger.remove("a").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn one_driver_works_on_records_while_another_is_told_to_come_again() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path(), folder.path());
        let (old, new) = (Ledger::open(old).unwrap(), Ledger::open(new).unwrap());
        let held = old.lock(Instant::now()).unwrap();
        let why = new.lock(Instant::now()).unwrap_err().to_string();
        assert!(why.contains("another driver has held"), "{why}");
        drop(held);
        new.lock(Instant::now()).unwrap();
    }
}
