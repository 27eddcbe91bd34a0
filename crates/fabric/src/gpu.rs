//! What NVIDIA's management library tells of GPUs and sysfs does not: the model, whether NVLink-C2C leads to
//! the CPU, and the NVLink domain.
//!
//! Pure: the answer of `nvidia-smi` is an argument; who runs it is `forebay-node`. Why the program and not
//! the library: docs/decisions/014-gpus-by-nvidia-smi.md.

use crate::cloud::Place;
use crate::machine::{Attachment, Machine, PciAddress, Problem};

/// What is asked: `nvidia-smi --query-gpu=FIELDS --format=csv,noheader`.
pub const FIELDS: &str =
    "pci.bus_id,name,c2c.mode,fabric.state,fabric.status,fabric.clusterUuid,fabric.cliqueId";
/// What is asked of a driver that does not know all of [`FIELDS`] (before R545).
pub const OLD_FIELDS: &str = "pci.bus_id,name";
/// Bytes of an answer that are looked at; a longer one is refused by who asks.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What is told of a GPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GpuFacts {
    /// Which one.
    pub address: PciAddress,
    /// Its name: `NVIDIA H100 80GB HBM3`.
    pub model: String,
    /// Whether a coherent link leads to the CPU; none where that is not told.
    pub c2c: Option<bool>,
    /// Its place in an NVLink fabric of several machines.
    pub fabric: Fabric,
}

/// A GPU's place in an NVLink fabric of several machines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fabric {
    /// It is in none, or that is not told.
    None,
    /// It registers with one: to be asked again soon.
    Joining,
    /// It is in this one, `CLUSTER-UUID.CLIQUE` as in the node label `nvidia.com/gpu.clique`.
    In(String),
}

/// Reads an answer to [`FIELDS`] or [`OLD_FIELDS`]. A line that cannot be read costs what it would have told.
pub fn parse(answer: &str) -> (Vec<GpuFacts>, Vec<Problem>) {
    let mut gpus = Vec::new();
    let mut problems = Vec::new();
    for line in answer.lines().filter(|line| !line.trim().is_empty()) {
        match gpu(line) {
            Ok(gpu) => gpus.push(gpu),
            Err(reason) => problems.push(Problem {
                path: "nvidia-smi".to_owned(),
                reason,
            }),
        }
    }
    (gpus, problems)
}

fn gpu(line: &str) -> Result<GpuFacts, String> {
    let mut fields = line.split(',').map(str::trim);
    let mut next = || fields.next().unwrap_or_default();
    Ok(GpuFacts {
        address: next()
            .parse()
            .map_err(|error| format!("{error}, in {line:?}"))?,
        model: next().to_owned(),
        c2c: match next() {
            "Enabled" => Some(true),
            "Disabled" => Some(false),
            _ => None,
        },
        fabric: match (next(), next(), next(), next()) {
            ("In Progress", ..) => Fabric::Joining,
            ("Completed", "Success", cluster, clique) if is_cluster(cluster) => {
                Fabric::In(format!("{}.{clique}", cluster.to_ascii_lowercase()))
            }
            _ => Fabric::None,
        },
    })
}

/// Whether it is the UUID of a fabric: the switches of one machine alone have one of zeros.
fn is_cluster(uuid: &str) -> bool {
    let digits = uuid.bytes().filter(|b| *b != b'-');
    digits.clone().count() == 32
        && digits.clone().all(|b| b.is_ascii_hexdigit())
        && digits.into_iter().any(|b| b != b'0')
}

/// Adds what is told of GPUs to the machine, and to its place the NVLink domain: GPUs know best, since a cloud
/// tells of racks, which may be partitioned. The answer is why there is no domain though they are in some.
pub fn tell(machine: &mut Machine, place: &mut Place, gpus: &[GpuFacts]) -> Option<Problem> {
    machine.tell_of_gpus(gpus);
    match nvlink_domain(gpus) {
        Ok(Some(domain)) => {
            domain.clone_into(&mut place.nvlink_domain);
            None
        }
        Ok(None) => None,
        Err(problem) => {
            place.nvlink_domain.clear();
            Some(problem)
        }
    }
}

/// The NVLink domain of the machine: that of all its GPUs that are in one.
///
/// # Errors
/// They are in several: a NIC is near GPUs of more than one of them, so none can be published for it.
fn nvlink_domain(gpus: &[GpuFacts]) -> Result<Option<&str>, Problem> {
    let mut domains = gpus.iter().filter_map(|gpu| match &gpu.fabric {
        Fabric::In(domain) => Some(domain.as_str()),
        Fabric::None | Fabric::Joining => None,
    });
    let first = domains.next();
    match domains.find(|other| Some(*other) != first) {
        None => Ok(first),
        Some(other) => Err(Problem {
            path: "forebay.dev/nvlinkDomain".to_owned(),
            reason: format!(
                "is not published: GPUs of this machine are in {} and in {other}",
                first.unwrap_or_default()
            ),
        }),
    }
}

impl Machine {
    /// Adds what is told of its GPUs. Those that sysfs does not have are not added.
    fn tell_of_gpus(&mut self, gpus: &[GpuFacts]) {
        for accelerator in &mut self.accelerators {
            let told = gpus.iter().find(|g| g.address == accelerator.pci.address);
            let Some(told) = told else { continue };
            accelerator.model.clone_from(&told.model);
            match told.c2c {
                Some(true) => accelerator.attachment = Attachment::C2c,
                Some(false) => accelerator.attachment = Attachment::Pcie,
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "8DA41F27-6A5C-4EF3-9B0D-1C2E3F4A5B6C";

    fn line(bus: &str, rest: &str) -> String {
        format!("{bus}, NVIDIA GB200, {rest}\n")
    }

    fn in_fabric(bus: &str, cluster: &str, clique: u32) -> String {
        line(
            bus,
            &format!("Enabled, Completed, Success, {cluster}, {clique}"),
        )
    }

    #[test]
    fn an_answer_is_read_line_by_line() {
        let text = in_fabric("00000008:06:00.0", CLUSTER, 32766)
            + &line("00000009:06:00.0", "[N/A], In Progress, N/A, N/A, N/A")
            + "00000018:06:00.0, NVIDIA H100 80GB HBM3\n"
            + "\nNo devices were found\n";
        let (gpus, problems) = parse(&text);
        let fabric: Vec<&Fabric> = gpus.iter().map(|gpu| &gpu.fabric).collect();
        let domain = format!("{}.32766", CLUSTER.to_lowercase());
        assert_eq!(
            fabric,
            [&Fabric::In(domain), &Fabric::Joining, &Fabric::None]
        );
        assert_eq!(gpus[0].address.to_string(), "0008:06:00.0");
        assert_eq!(
            (gpus[0].c2c, gpus[1].c2c, gpus[2].c2c),
            (Some(true), None, None)
        );
        assert_eq!(gpus[2].model, "NVIDIA H100 80GB HBM3");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].reason.contains("No devices"), "{problems:?}");
    }

    #[test]
    fn a_fabric_counts_only_once_it_is_joined_and_of_several_machines() {
        for rest in [
            "Disabled, Completed, Success, 00000000-0000-0000-0000-000000000000, 0",
            "Disabled, Completed, Insufficient Resources, 8da41f27-6a5c-4ef3-9b0d-1c2e3f4a5b6c, 1",
            // As an H100 in a virtual machine says it, driver 580.
            "Disabled, N/A, N/A, N/A, N/A",
            "Disabled, Completed, Success, N/A, 1",
        ] {
            let (gpus, _) = parse(&line("00000000:06:00.0", rest));
            assert_eq!(gpus[0].fabric, Fabric::None, "{rest}");
        }
    }

    #[test]
    fn a_machine_has_the_domain_on_which_its_gpus_agree() {
        let two = |clique| {
            let text = in_fabric("00000008:06:00.0", CLUSTER, 1)
                + &in_fabric("00000009:06:00.0", CLUSTER, clique)
                + &line("00000018:06:00.0", "Enabled, In Progress, N/A, N/A, N/A");
            parse(&text).0
        };
        let domain = format!("{}.1", CLUSTER.to_lowercase());
        assert_eq!(nvlink_domain(&two(1)).unwrap(), Some(domain.as_str()));
        let problem = nvlink_domain(&two(2)).unwrap_err();
        assert!(problem.reason.contains(".1 and in "), "{problem}");
        assert_eq!(nvlink_domain(&[]).unwrap(), None);
    }
}
