//! Device metadata files (KEP-5304): in every container that names a claim, a file for each request says which
//! devices it got, with their published attributes and how they look in the pod.
//!
//! A file is written when the claim is prepared, again with the network's data when its NICs are attached,
//! which is before any container is made, and removed when the claim is released. A CDI file of its own
//! mounts them. Nothing here is needed to find a NIC again: the ledger is.

mod driver;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use forebay_fabric::claim::{ClaimRef, NetworkData, parent};
use serde_json::{Map, Value, json};

pub use driver::Described;

use crate::files::{forget, forget_folder, replace};

/// The kind of the CDI devices, one for each request of a claim.
pub const KIND: &str = "forebay.dev/metadata";
/// Where containers look for the files, as Kubernetes has it.
const IN_CONTAINER: &str = "/var/run/kubernetes.io/dra-device-attributes";
/// The versions of the format; a reader takes the first that it knows.
const VERSIONS: [&str; 2] = [
    "metadata.resource.k8s.io/v1beta1",
    "metadata.resource.k8s.io/v1alpha1",
];
/// Bytes of a file: 32 devices with all their attributes take less than a quarter.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Files {
    /// A folder of the host, below that of the ledger.
    pub folder: PathBuf,
    /// Where the runtime reads CDI files.
    pub cdi: PathBuf,
    /// The driver's name.
    pub driver: String,
}

/// A device of a request.
#[derive(Clone, PartialEq, Debug)]
pub struct Subject {
    /// The request, `request` or `request/subrequest`.
    pub request: String,
    /// The pool of the slice that it is published in.
    pub pool: String,
    /// Its name there.
    pub device: String,
    /// Which share of it.
    pub share_id: Option<String>,
    /// Its attributes, as in a ResourceSlice.
    pub attributes: Map<String, Value>,
}

impl Files {
    /// Writes the files of a claim, and the CDI file that mounts them. `pod_name` is the pod's own name of a
    /// claim that was made from a template. Answers the CDI name for each request, without its subrequest.
    ///
    /// # Errors
    /// Those of the file system; or a name that must not be in a path.
    pub fn write(
        &self,
        claim: &ClaimRef,
        pod_name: Option<&str>,
        devices: &[Subject],
    ) -> io::Result<BTreeMap<String, String>> {
        let folder = self.of_claim(&claim.uid)?;
        fs::create_dir_all(&folder)?;
        let mut by_request: BTreeMap<&str, Vec<&Subject>> = BTreeMap::new();
        for device in devices {
            by_request.entry(&device.request).or_default().push(device);
        }
        let (mut names, mut cdi) = (BTreeMap::new(), Vec::new());
        for (request, devices) in by_request {
            let base = parent(request);
            let place = folder.join(format!("{}.json", word(base)?));
            let object = self.object(claim, pod_name, request, &devices);
            replace(&place, "tmp", &stream(&object))?;
            let (kind, name) = match pod_name {
                Some(name) => ("resourceclaimtemplates", name),
                None => ("resourceclaims", claim.name.as_str()),
            };
            let file = format!("{}-metadata.json", self.driver);
            let target = format!("{IN_CONTAINER}/{kind}/{}/{base}/{file}", word(name)?);
            let device = format!("{}_{base}", claim.uid);
            cdi.push(json!({
                "name": device,
                "containerEdits": { "mounts": [{
                    "hostPath": place, "containerPath": target,
                    "options": ["ro", "rbind", "rprivate"],
                }] },
            }));
            names.insert(base.to_owned(), format!("{KIND}={device}"));
        }
        let spec = json!({ "cdiVersion": "0.5.0", "kind": KIND, "devices": cdi });
        fs::create_dir_all(&self.cdi)?;
        // Runtimes read `.json` and `.yaml` only.
        let place = self.cdi_file(&claim.uid);
        replace(&place, "tmp", format!("{spec:#}\n").as_bytes())?;
        Ok(names)
    }

    /// Says in the files of a claim how its devices look in the pod, by pool, device and share. A claim without files
    /// was prepared by a driver that made none, and has none mounted.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn attached(&self, uid: &str, network: &BTreeMap<Key, NetworkData>) -> io::Result<()> {
        let entries = match fs::read_dir(self.of_claim(uid)?) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let place = entry?.path();
            if place
                .extension()
                .is_none_or(|extension| extension != "json")
            {
                continue;
            }
            let mut object = read(&place)?;
            let mut changed = false;
            for device in devices_of(&mut object) {
                let said = |name: &str| device[name].as_str().map(str::to_owned);
                let text = |name: &str| said(name).unwrap_or_default();
                let key = (text("pool"), text("name"), said("shareID"));
                let Some(data) = network.get(&key) else {
                    continue;
                };
                let data = data.json();
                changed |= device["networkData"] != data;
                device["networkData"] = data;
            }
            if changed {
                let generation = object["metadata"]["generation"].as_u64().unwrap_or(0);
                object["metadata"]["generation"] = json!(generation + 1);
                replace(&place, "tmp", &stream(&object))?;
            }
        }
        Ok(())
    }

    /// Removes the files of a claim; those that are not there are no error.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn remove(&self, uid: &str) -> io::Result<()> {
        let folder = self.of_claim(uid)?;
        // Who reads the mount goes first.
        forget(&self.cdi_file(uid))?;
        forget_folder(&folder)
    }

    fn of_claim(&self, uid: &str) -> io::Result<PathBuf> {
        Ok(self.folder.join(word(uid)?))
    }

    fn cdi_file(&self, uid: &str) -> PathBuf {
        let name = format!("forebay.dev-metadata_{uid}.json");
        self.cdi.join(name)
    }

    fn object(
        &self,
        claim: &ClaimRef,
        pod_name: Option<&str>,
        request: &str,
        devices: &[&Subject],
    ) -> Value {
        let device = |device: &&Subject| {
            let mut one = json!({
                "driver": self.driver, "pool": device.pool, "name": device.device,
                "attributes": device.attributes,
            });
            if let Some(share) = &device.share_id {
                one["shareID"] = json!(share);
            }
            one
        };
        let devices: Vec<Value> = devices.iter().map(device).collect();
        let mut object = json!({
            "kind": "DeviceMetadata",
            "metadata": {
                "name": claim.name, "namespace": claim.namespace, "uid": claim.uid, "generation": 1,
            },
            "requests": [{ "name": request, "devices": devices }],
        });
        if let Some(name) = pod_name {
            object["podClaimName"] = json!(name);
        }
        object
    }
}

/// A device of a claim: pool, name, share.
pub(crate) type Key = (String, String, Option<String>);

/// A name that may be part of a path: those of Kubernetes' objects and requests all may.
fn word(name: &str) -> io::Result<&str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    match !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain) {
        true => Ok(name),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is no name of an object"),
        )),
    }
}

fn devices_of(object: &mut Value) -> impl Iterator<Item = &mut Value> {
    let requests = object["requests"].as_array_mut().into_iter().flatten();
    requests.flat_map(|request| request["devices"].as_array_mut().into_iter().flatten())
}

/// The object once in each version, one after the other.
fn stream(object: &Value) -> Vec<u8> {
    let mut text = String::new();
    for version in VERSIONS {
        let mut object = object.clone();
        object["apiVersion"] = json!(version);
        text += &format!("{object:#}\n");
    }
    text.into_bytes()
}

/// The first object of a file.
fn read(place: &Path) -> io::Result<Value> {
    let wrong = |why: String| {
        let why = format!("{}: {why}", place.display());
        io::Error::new(io::ErrorKind::InvalidData, why)
    };
    if fs::metadata(place)?.len() > FILE_BYTES_MAX {
        return Err(wrong(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    let text = fs::read_to_string(place)?;
    let mut objects = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    let first = objects.next().ok_or_else(|| wrong("empty".to_owned()))?;
    first.map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> ClaimRef {
        ClaimRef {
            namespace: "ai".into(),
            name: "train-nics-x7k".into(),
            uid: "u-1".into(),
        }
    }

    fn device(request: &str, name: &str) -> Subject {
        let attributes = json!({ "dra.net/rdma": { "bool": true } });
        Subject {
            request: request.into(),
            pool: "n1".into(),
            device: name.into(),
            share_id: None,
            attributes: attributes.as_object().unwrap().clone(),
        }
    }

    fn files(folder: &tempfile::TempDir) -> Files {
        Files {
            folder: folder.path().join("metadata"),
            cdi: folder.path().join("cdi"),
            driver: "dra.net".into(),
        }
    }

    #[test]
    fn each_request_has_a_file_where_containers_look_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder);
        let devices = [
            device("fast/first", "a"),
            device("slow", "b"),
            device("slow", "c"),
        ];
        let names = files.write(&claim(), Some("nics"), &devices).unwrap();
        assert_eq!(names["fast"], "forebay.dev/metadata=u-1_fast");
        let spec = fs::read_to_string(folder.path().join("cdi/forebay.dev-metadata_u-1.json"));
        let spec: Value = serde_json::from_str(&spec.unwrap()).unwrap();
        let mount = &spec["devices"][0]["containerEdits"]["mounts"][0];
        assert_eq!(
            mount["containerPath"],
            "/var/run/kubernetes.io/dra-device-attributes/resourceclaimtemplates/nics/fast/\
             dra.net-metadata.json"
        );
        let object = read(Path::new(mount["hostPath"].as_str().unwrap())).unwrap();
        assert_eq!(object["apiVersion"], VERSIONS[0]);
        assert_eq!(
            (&object["podClaimName"], &object["requests"][0]["name"]),
            (&json!("nics"), &json!("fast/first"))
        );
        let slow = read(&files.folder.join("u-1/slow.json")).unwrap();
        assert_eq!(slow["requests"][0]["devices"][1]["name"], "c");
        // A claim that the pod names itself is found by that name.
        files.write(&claim(), None, &devices[..1]).unwrap();
        let spec = fs::read_to_string(folder.path().join("cdi/forebay.dev-metadata_u-1.json"));
        assert!(
            spec.unwrap()
                .contains("/resourceclaims/train-nics-x7k/fast/")
        );
    }

    #[test]
    fn what_is_attached_is_added_once_and_all_goes_with_the_claim() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder);
        files.write(&claim(), None, &[device("nic", "a")]).unwrap();
        let data = NetworkData {
            interface: "rdma0".into(),
            mac: "02:00:00:00:00:01".into(),
            ips: vec!["10.0.0.5/24".into()],
        };
        let network = BTreeMap::from([(("n1".to_owned(), "a".to_owned(), None), data)]);
        files.attached("u-1", &network).unwrap();
        files.attached("u-1", &network).unwrap();
        let place = files.folder.join("u-1/nic.json");
        let object = read(&place).unwrap();
        assert_eq!(object["metadata"]["generation"], 2);
        assert_eq!(
            object["requests"][0]["devices"][0]["networkData"],
            json!({ "interfaceName": "rdma0", "hardwareAddress": "02:00:00:00:00:01", "ips": ["10.0.0.5/24"] })
        );
        // Every version says the same.
        assert_eq!(
            fs::read_to_string(&place).unwrap().matches("rdma0").count(),
            VERSIONS.len()
        );
        files.remove("u-1").unwrap();
        files.remove("u-1").unwrap();
        assert!(
            !place.exists()
                && fs::read_dir(folder.path().join("cdi"))
                    .unwrap()
                    .next()
                    .is_none()
        );
        files.attached("u-1", &network).unwrap();
    }

    #[test]
    fn two_shares_of_one_device_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder);
        let share = |id: &str| Subject {
            share_id: Some(id.into()),
            ..device("nic", "a")
        };
        files
            .write(&claim(), None, &[share("s-1"), share("s-2")])
            .unwrap();
        let one = |id: &str, interface: &str| {
            let data = NetworkData {
                interface: interface.into(),
                ..NetworkData::default()
            };
            (("n1".to_owned(), "a".to_owned(), Some(id.to_owned())), data)
        };
        let network = BTreeMap::from([one("s-1", "net0"), one("s-2", "net1")]);
        files.attached("u-1", &network).unwrap();
        let object = read(&files.folder.join("u-1/nic.json")).unwrap();
        let devices = &object["requests"][0]["devices"];
        for (at, (share, interface)) in [("s-1", "net0"), ("s-2", "net1")].iter().enumerate() {
            assert_eq!(devices[at]["shareID"], *share);
            assert_eq!(devices[at]["networkData"]["interfaceName"], *interface);
        }
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(&folder);
        for uid in ["", "..", "a/b", ".x"] {
            assert!(files.remove(uid).is_err(), "{uid}");
        }
        assert!(
            files
                .write(&claim(), Some("../x"), &[device("nic", "a")])
                .is_err()
        );
    }
}
