//! NICs that were given away, as they were then, on disk: their devices stay in the slice unchanged while the
//! interface is in a pod, also when another process of the driver comes.
//!
//! One file for each, written before the plan of its claim, taken away when the claim is. Whoever does either has the
//! turn to work on devices.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use forebay_fabric::machine::Nic;
use forebay_fabric::publish::device_name;

use crate::files;

/// So long a NIC is kept that no claim has: between its being kept and the claim's plan on disk there is a
/// moment, in this process or in one beside it, in which it may also end.
const GRACE: Duration = Duration::from_secs(60);
/// Bytes of a file at most; one with 256 GIDs takes a tenth.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The folder of them.
#[derive(Clone, Debug)]
pub struct Held {
    folder: PathBuf,
}

impl Held {
    /// Opens it below the driver's state; it is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(state: &Path) -> io::Result<Held> {
        let folder = state.join("held");
        fs::create_dir_all(&folder)?;
        Ok(Held { folder })
    }

    /// Keeps a NIC: whole or not, and known to every process from then on. Not synced, since no pod has a NIC
    /// after the machine went down, and then it is found on the host as it is.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn keep(&self, nic: &Nic) -> io::Result<()> {
        let place = self.place(&device_name(nic));
        let json = serde_json::to_vec(nic)?;
        // File systems make a file that takes another's place wait for the disk.
        if fs::read(&place).is_ok_and(|kept| kept == json) {
            // New again, so that it is not pruned before its claim is known.
            return File::open(&place)?.set_modified(SystemTime::now());
        }
        files::replace(&place, "tmp", &json)
    }

    /// All that are kept. One that cannot be read is left out: what is on the host is published then.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all(&self) -> io::Result<Vec<Nic>> {
        let mut nics = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let is_one = path.extension().is_some_and(|ending| ending == "nic");
            if is_one && fs::metadata(&path).is_ok_and(|meta| meta.len() <= FILE_BYTES_MAX) {
                let nic = fs::read(&path).ok();
                nics.extend(nic.and_then(|json| serde_json::from_slice(&json).ok()));
            }
        }
        Ok(nics)
    }

    /// Forgets these devices; one that is not known is no error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn forget<'a>(&self, devices: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        for device in devices {
            files::forget(&self.place(device))?;
        }
        Ok(())
    }

    /// Forgets what no claim has, by the devices that claims have, once it is not new.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn prune(&self, claimed: &BTreeSet<String>) -> io::Result<()> {
        for nic in self.all()? {
            let device = device_name(&nic);
            let written = fs::metadata(self.place(&device)).and_then(|meta| meta.modified());
            let old = written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > GRACE));
            if old && !claimed.contains(&device) {
                self.forget([device.as_str()])?;
            }
        }
        Ok(())
    }

    /// Names of devices are DNS labels.
    fn place(&self, device: &str) -> PathBuf {
        self.folder.join(format!("{device}.nic"))
    }
}

#[cfg(test)]
mod tests {
    use forebay_fabric::machine::{Netdev, Sriov};

    use super::*;

    #[test]
    fn a_nic_is_kept_until_it_is_forgotten_and_a_new_one_is_not_pruned() {
        let folder = tempfile::tempdir().unwrap();
        let held = Held::open(folder.path()).unwrap();
        let nic = Nic {
            pci: None,
            sriov: Sriov::None,
            netdev: Some(Netdev {
                name: "rail0".into(),
                kind: "veth".into(),
                mac: String::new(),
                mtu: 1500,
                addresses: Vec::new(),
                admin_up: true,
                state: "up".into(),
                speed_mbps: None,
                alias: String::new(),
            }),
            rdma: None,
        };
        held.keep(&nic).unwrap();
        fs::write(folder.path().join("held/torn.nic"), "{").unwrap();
        held.prune(&BTreeSet::new()).unwrap();
        let again = Held::open(folder.path()).unwrap();
        assert_eq!(again.all().unwrap(), [nic]);
        again.forget(["rail0", "unknown"]).unwrap();
        assert_eq!(again.all().unwrap(), []);
    }
}
