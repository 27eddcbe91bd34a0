//! CDI files: what the container runtime adds to containers that name a claim. To all of them the hook that
//! runs the guard; so a container of the claim cannot be made without it, whether this program runs or
//! not. And to those that name a device of it, the character devices of its RDMA: other containers of the
//! pod get none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::driver::Hook;
use crate::files;
use crate::ledger::{ClaimRecord, DeviceRecord};

/// The kind of our CDI devices; a claim's UID is the name of one, and begins those of its devices.
pub const KIND: &str = "forebay.dev/nic";
/// What the runtime lets the guard take at most, seconds; it fails the container after that.
const GUARD_TIMEOUT_S: u32 = 10;

/// The folder of CDI files, and how to call the guard from where the runtime is.
#[derive(Clone, Debug)]
pub struct Cdi {
    /// Where the runtime reads CDI files, such as `/var/run/cdi`.
    pub folder: PathBuf,
    /// The program on the host's file system.
    pub program: PathBuf,
    /// The ledger's folder, as the host sees it.
    pub state: PathBuf,
}

impl Cdi {
    /// Writes the file of a claim, so that the names of [`names`] can be passed to the runtime.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, record: &ClaimRecord) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let uid = &record.uid;
        let Hook {
            program,
            arguments,
            timeout_s,
        } = self.guard(uid);
        let hook = json!({
            "hookName": "createRuntime", "path": program, "args": arguments, "timeout": timeout_s,
        });
        let mut devices = vec![json!({ "name": uid, "containerEdits": { "hooks": [hook] } })];
        let with_nodes = record.devices.iter().enumerate();
        devices.extend(with_nodes.filter_map(|(at, device)| {
            let nodes = nodes(device)?;
            let name = format!("{uid}-{at}");
            Some(json!({ "name": name, "containerEdits": { "deviceNodes": nodes } }))
        }));
        let spec = json!({
            "cdiVersion": "0.5.0",
            "kind": KIND,
            "devices": devices,
        });
        // Runtimes read `.json` and `.yaml` only.
        files::replace(&self.place(uid), "tmp", format!("{spec:#}\n").as_bytes())
    }

    /// The call of the guard for a claim, before a container starts.
    pub fn guard(&self, uid: &str) -> Hook {
        let state = self.state.display().to_string();
        let arguments = [
            "forebay",
            "node",
            "guard",
            "--state-dir",
            &state,
            "--claim",
            uid,
        ];
        Hook {
            program: self.program.clone(),
            arguments: arguments.map(str::to_owned).to_vec(),
            timeout_s: GUARD_TIMEOUT_S,
        }
    }

    /// Takes the file of a claim away; one that is not there is no error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        files::forget(&self.place(uid))
    }

    /// Where the file of a claim is.
    pub fn place(&self, uid: &str) -> PathBuf {
        self.folder
            .join(Path::new(&format!("forebay.dev-nic_{uid}.json")))
    }
}

/// The names by which the runtime finds what belongs to the device at this place of a record.
pub fn names(record: &ClaimRecord, at: usize) -> Vec<String> {
    let uid = &record.uid;
    let mut names = vec![format!("{KIND}={uid}")];
    let has_nodes = record.devices.get(at).is_some_and(|d| nodes(d).is_some());
    names.extend(has_nodes.then(|| format!("{KIND}={uid}-{at}")));
    names
}

/// The character devices of a device, for containers that name it; none if it has none.
fn nodes(device: &DeviceRecord) -> Option<Vec<Value>> {
    let part = device.plan.rdma.as_ref()?;
    // What a node is, the runtime finds out when it makes it: numbers change with a driver's reload.
    let node = |path: &PathBuf| json!({ "path": path, "hostPath": path, "permissions": "rw" });
    let nodes: Vec<Value> = part.devices.iter().map(node).collect();
    (!nodes.is_empty()).then_some(nodes)
}

#[cfg(test)]
mod tests {
    use forebay_fabric::config::NetworkConfig;
    use forebay_fabric::plan::{AttachPlan, Interface, State, plan};
    use forebay_fabric::share::RdmaPart;

    use super::*;

    #[test]
    fn only_who_names_a_device_gets_its_character_devices() {
        let device = |name: &str, verbs: Option<&str>| {
            let place = ("node".to_owned(), name.to_owned());
            let (host, config) = (Interface::default(), NetworkConfig::default());
            let plan = plan(vec![name.into()], place, host, &config, &[]).unwrap();
            let rdma = verbs.map(|verbs| RdmaPart {
                name: "mlx5_0".into(),
                devices: vec![format!("/dev/infiniband/{verbs}").into()],
                own_namespace: false,
            });
            let plan = AttachPlan { rdma, ..plan };
            let state = State::Planned;
            DeviceRecord {
                state,
                plan,
                source: None,
            }
        };
        let record = ClaimRecord {
            namespace: "team".into(),
            name: "nics".into(),
            uid: "u".into(),
            pod_uid: "p".into(),
            pod_name: "pod".into(),
            claim_name_in_pod: None,
            netns: None,
            devices: vec![device("plain", None), device("rdma", Some("uverbs3"))],
            looked_at: vec![],
        };
        let folder = tempfile::tempdir().unwrap();
        let cdi = Cdi {
            folder: folder.path().to_owned(),
            program: "/forebay".into(),
            state: "/state".into(),
        };
        cdi.write(&record).unwrap();
        let text = fs::read_to_string(cdi.place("u")).unwrap();
        let spec: Value = serde_json::from_str(&text).unwrap();
        let named = |name: &str| {
            let devices = spec["devices"].as_array().unwrap().iter();
            let found = devices.filter(|d| d["name"] == name);
            found
                .map(|d| d["containerEdits"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&record, 0), ["forebay.dev/nic=u"]);
        assert_eq!(
            names(&record, 1),
            ["forebay.dev/nic=u", "forebay.dev/nic=u-1"]
        );
        assert!(named("u")[0].get("deviceNodes").is_none());
        assert!(
            named("u")[0]["hooks"][0]["args"]
                .as_array()
                .unwrap()
                .contains(&json!("guard"))
        );
        let path = "/dev/infiniband/uverbs3";
        let node = json!({ "path": path, "hostPath": path, "permissions": "rw" });
        assert_eq!(named("u-1"), [json!({ "deviceNodes": [node] })]);
        assert_eq!(named("u-0"), [] as [Value; 0]);
    }
}
