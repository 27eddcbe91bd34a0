//! Machine types whose NICs are known without looking: those that GKE's managed DRANET is for. Where the
//! documentation gives no number, none is here, and the driver's inventory tells later.

/// What is known of a type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    name: &'static str,
    /// Whether its NICs have RDMA.
    pub(super) rdma: bool,
    /// NICs for pods.
    pub(super) nics: u64,
    /// GPUs, or chips of TPUs.
    pub(super) accelerators: u64,
}

const fn rdma(name: &'static str, nics: u64, accelerators: u64) -> Known {
    Known {
        name,
        rdma: true,
        nics,
        accelerators,
    }
}

const fn netdev(name: &'static str, nics: u64, accelerators: u64) -> Known {
    Known {
        rdma: false,
        ..rdma(name, nics, accelerators)
    }
}

const MACHINES: [Known; 6] = [
    rdma("a3-ultragpu-8g", 8, 8),
    rdma("a4-highgpu-8g", 8, 8),
    rdma("a4x-highgpu-4g", 4, 4),
    rdma("a4x-maxgpu-4g-metal", 8, 4),
    netdev("ct6e-standard-4t", 2, 4),
    netdev("tpu7x-standard-4t", 2, 4),
];

pub(super) fn find(machine: &str) -> Option<Known> {
    MACHINES.into_iter().find(|known| known.name == machine)
}
