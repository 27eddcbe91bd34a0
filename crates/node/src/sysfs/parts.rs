//! What belongs to an interface of the host and is found in sysfs: the virtual functions of its device, its
//! RDMA device, and the character devices by which a program uses that.
//!
//! Read when a claim is planned for, below any root; nothing is kept.

use std::path::{Path, PathBuf};

use forebay_fabric::share::{RdmaPart, Vf};

use super::rooted::Rooted;

/// Where the character devices of RDMA are, for containers too.
const DEVICES: &str = "/dev/infiniband";
/// Classes of character devices that belong to one RDMA device.
const CLASSES: [&str; 2] = ["class/infiniband_verbs", "class/infiniband_mad"];

/// Reads below a root, which is what `/sys` is to the host.
#[derive(Clone, Debug)]
pub struct Parts {
    root: PathBuf,
}

impl Parts {
    /// Below `root`.
    pub fn new(root: &Path) -> Parts {
        let root = root.to_owned();
        Parts { root }
    }

    /// The virtual functions of the device of an interface, those that have an interface on the host, by number.
    pub fn vfs(&self, interface: &str) -> Vec<Vf> {
        let files = Rooted::new(&self.root);
        let device = format!("class/net/{interface}/device");
        let names = files.list(&device).into_iter();
        let numbers = names.filter_map(|name| name.strip_prefix("virtfn")?.parse::<u32>().ok());
        let vf = |index: u32| {
            let at = format!("{device}/virtfn{index}");
            Some(Vf {
                index,
                address: files.target_name(&at)?.parse().ok()?,
                interface: files.list(&format!("{at}/net")).into_iter().next()?,
            })
        };
        let mut found: Vec<Vf> = numbers.filter_map(vf).collect();
        found.sort_by_key(|vf| vf.index);
        found
    }

    /// The RDMA device of an interface; none if it has none.
    pub fn rdma(&self, interface: &str) -> Option<RdmaPart> {
        let files = Rooted::new(&self.root);
        let own = format!("class/net/{interface}/device/infiniband");
        let of_function = files.list(&own).into_iter().next();
        // A software device says on which interface it is.
        let on_it = |name: &String| {
            let parent = files.text(&format!("class/infiniband/{name}/parent"));
            parent.as_deref() == Some(interface)
        };
        let software = || files.list("class/infiniband").into_iter().find(on_it);
        let name = of_function.or_else(software)?;
        Some(RdmaPart {
            devices: devices(&files, &name),
            name,
            own_namespace: false,
        })
    }
}

/// The character devices of an RDMA device: `uverbsN`, and where there are some `umadN` and `issmN`; and
/// the connection manager's, which is one for all.
fn devices(files: &Rooted, name: &str) -> Vec<PathBuf> {
    let of_it = |class: &&str| {
        let entries = files.list(class).into_iter();
        let own = |entry: &String| {
            let of = files.text(&format!("{class}/{entry}/ibdev"));
            of.as_deref() == Some(name)
        };
        entries.filter(own).collect::<Vec<String>>()
    };
    let mut names: Vec<String> = CLASSES.iter().flat_map(of_it).collect();
    if files.is_folder("class/misc/rdma_cm") && !names.is_empty() {
        names.push("rdma_cm".to_owned());
    }
    let path = |name: String| Path::new(DEVICES).join(name);
    names.into_iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn plant(root: &Path, files: &[(&str, &str)], links: &[(&str, &str)]) {
        for (path, content) in files {
            let at = root.join(path);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(at, content).unwrap();
        }
        for (path, target) in links {
            let at = root.join(path);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            symlink(target, at).unwrap();
        }
    }

    #[test]
    fn virtual_functions_are_those_with_an_interface_on_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let pci = |at: &str, file: &str| format!("devices/pci0000:00/0000:8f:{at}/{file}");
        let files = [
            (pci("00.0", "net/rail0/address"), "02:00:00:00:00:01"),
            (pci("00.1", "net/rail0v0/address"), "02:00:00:00:00:02"),
            (pci("01.2", "net/rail0v10/address"), "02:00:00:00:00:03"),
            // Its interface is in a pod.
            (pci("00.2", "class"), "0x020000"),
        ];
        let files = files.each_ref().map(|(path, text)| (&path[..], *text));
        let function = "devices/pci0000:00/0000:8f:00.0/virtfn";
        let names = ["0", "1", "10"].map(|n| format!("{function}{n}"));
        let links = [
            (&names[0][..], "../0000:8f:00.1"),
            (&names[1][..], "../0000:8f:00.2"),
            (&names[2][..], "../0000:8f:01.2"),
            ("devices/pci0000:00/0000:8f:00.0/net/rail0/device", "../.."),
            (
                "class/net/rail0",
                "../../devices/pci0000:00/0000:8f:00.0/net/rail0",
            ),
        ];
        plant(folder.path(), &files, &links);
        let parts = Parts::new(folder.path());
        let found: Vec<_> = parts
            .vfs("rail0")
            .into_iter()
            .map(|vf| (vf.index, vf.address.to_string(), vf.interface))
            .collect();
        let expected = [
            (0, "0000:8f:00.1", "rail0v0"),
            (10, "0000:8f:01.2", "rail0v10"),
        ];
        let expected = expected.map(|(n, at, name)| (n, at.to_owned(), name.to_owned()));
        assert_eq!(found, expected);
        assert_eq!(parts.vfs("rail1"), []);
    }

    #[test]
    fn the_character_devices_are_those_of_the_interfaces_rdma_device_alone() {
        let folder = tempfile::tempdir().unwrap();
        let files = [
            ("class/net/rail0/device/infiniband/mlx5_1/node_guid", "1"),
            ("class/infiniband/rxe0/parent", "eth7"),
            ("class/infiniband_verbs/uverbs0/ibdev", "mlx5_0"),
            ("class/infiniband_verbs/uverbs1/ibdev", "mlx5_1"),
            ("class/infiniband_verbs/uverbs2/ibdev", "rxe0"),
            ("class/infiniband_mad/umad1/ibdev", "mlx5_1"),
            ("class/infiniband_mad/issm1/ibdev", "mlx5_1"),
            ("class/misc/rdma_cm/dev", "10:1"),
        ];
        plant(folder.path(), &files, &[]);
        let parts = Parts::new(folder.path());
        let paths = |names: &[&str]| names.iter().map(|n| Path::new(DEVICES).join(n)).collect();
        let part = |name: &str, devices: &[&str]| RdmaPart {
            name: name.into(),
            devices: paths(devices),
            own_namespace: false,
        };
        let rail0 = part("mlx5_1", &["uverbs1", "issm1", "umad1", "rdma_cm"]);
        assert_eq!(parts.rdma("rail0"), Some(rail0));
        assert_eq!(
            parts.rdma("eth7"),
            Some(part("rxe0", &["uverbs2", "rdma_cm"]))
        );
        assert_eq!(parts.rdma("eth8"), None);
    }
}
