//! Against bytes: the requests are those that `rdma` of iproute2 6.1 sends, and the answers are ones that it
//! understood. Where this kernel has RDMA, it is asked too; where not, that is said.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::os::fd::AsFd as _;

use forebay_rdma_netlink::message::Request;
use forebay_rdma_netlink::{Device, Kernel, NetnsMode, Port, Rdma, Recorded};

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |text| u8::from_str_radix(text, 16).unwrap();
    hex.split_whitespace().map(byte).collect()
}

/// `rdma dev show`: the request, and a device with the end.
const DEVICES: &str = "10 00 00 00 01 14 05 03 33 1f 08 6b 00 00 00 00";
const ONE_DEVICE: &str = "\
    58 00 00 00 01 14 02 00 33 1f 08 6b 4d 00 00 00 08 00 01 00 03 00 00 00 0b 00 02 00 6d 6c 78 35 \
    5f 30 00 00 08 00 03 00 01 00 00 00 0f 00 05 00 32 38 2e 33 39 2e 31 30 30 32 00 00 0c 00 06 00 \
    88 77 66 55 44 33 22 11 05 00 0e 00 01 00 00 00 07 00 43 00 69 62 00 00 \
    14 00 00 00 03 00 02 00 33 1f 08 6b 4d 00 00 00 00 00 00 00";
/// `rdma link show`.
const PORT: &str = "20 00 00 00 05 14 05 00 33 1f 08 6b 00 00 00 00 08 00 01 00 03 00 00 00 08 00 03 00 01 00 00 00";
const ONE_PORT: &str = "\
    50 00 00 00 05 14 00 00 33 1f 08 6b 4d 00 00 00 08 00 01 00 03 00 00 00 0b 00 02 00 6d 6c 78 35 \
    5f 30 00 00 08 00 03 00 01 00 00 00 05 00 0c 00 04 00 00 00 05 00 0d 00 05 00 00 00 08 00 32 00 \
    09 00 00 00 0a 00 33 00 72 61 69 6c 30 00 00 00 \
    24 00 00 00 02 00 00 00 33 1f 08 6b 4d 00 00 00 00 00 00 00 20 00 00 00 05 14 05 00 33 1f 08 6b \
    00 00 00 00";
/// `rdma system show`.
const MODE: &str = "10 00 00 00 06 14 05 00 33 1f 08 6b 00 00 00 00";
const EXCLUSIVE: &str = "\
    18 00 00 00 06 14 00 00 33 1f 08 6b 4d 00 00 00 05 00 42 00 00 00 00 00 \
    24 00 00 00 02 00 00 00 33 1f 08 6b 4d 00 00 00 00 00 00 00 10 00 00 00 06 14 05 00 33 1f 08 6b \
    00 00 00 00";
/// `rdma system set netns shared`, and that it is done.
const SET_SHARED: &str = "18 00 00 00 07 14 05 00 33 1f 08 6b 00 00 00 00 05 00 42 00 01 00 00 00";
const DONE: &str = "\
    24 00 00 00 02 00 00 00 33 1f 08 6b 4d 00 00 00 00 00 00 00 18 00 00 00 07 14 05 00 33 1f 08 6b \
    00 00 00 00";
/// `rdma dev set mlx5_0 netns NAME`, the file of which was number 4.
const MOVE: &str = "20 00 00 00 02 14 05 00 33 1f 08 6b 00 00 00 00 08 00 01 00 03 00 00 00 08 00 44 00 04 00 00 00";

fn kernel(exchanges: &[(&str, &str)]) -> Rdma<Recorded> {
    let add =
        |all: Recorded, (asked, told): &(&str, &str)| all.then(&bytes(asked), &[&bytes(told)]);
    Rdma::new(exchanges.iter().fold(Recorded::new(), add))
}

fn mlx5_0() -> Device {
    Device {
        index: 3,
        name: "mlx5_0".into(),
        ports: 1,
        firmware: "28.39.1002".into(),
        node_guid: 0x1122_3344_5566_7788,
        protocol: "ib".into(),
    }
}

#[test]
fn devices_and_their_ports_are_told() {
    let mut rdma = kernel(&[(DEVICES, ONE_DEVICE), (PORT, ONE_PORT)]);
    let devices = rdma.devices().unwrap();
    assert_eq!(devices, [mlx5_0()]);
    let port = Port {
        device: 3,
        number: 1,
        state: 4,
        phys_state: 5,
        netdev: Some((9, "rail0".into())),
    };
    assert_eq!(rdma.ports(&devices[0]).unwrap(), [port]);
}

#[test]
fn the_mode_of_namespaces_is_told_and_set() {
    let mut rdma = kernel(&[(MODE, EXCLUSIVE), (SET_SHARED, DONE)]);
    assert_eq!(rdma.netns_mode().unwrap(), NetnsMode::Exclusive);
    rdma.set_netns_mode(NetnsMode::Shared).unwrap();
}

#[test]
fn a_device_is_moved_by_its_number_and_the_file_of_a_namespace() {
    let mut sent = bytes(MOVE);
    sent[8..12].copy_from_slice(&7_u32.to_ne_bytes());
    assert_eq!(Request::Move(3, 4).encode(7), sent);
    // With a file of this process.
    let file = std::fs::File::open("/proc/self/ns/net").unwrap();
    let number = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap();
    let asked = Request::Move(3, number).encode(0);
    let mut rdma = Rdma::new(Recorded::new().then(&asked, &[&bytes(DONE)]));
    rdma.move_to(3, file.as_fd()).unwrap();
}

#[test]
fn what_the_kernel_refuses_is_an_error_of_the_system() {
    // EBUSY: another namespace has devices.
    let busy = DONE.replacen("4d 00 00 00 00 00 00 00", "4d 00 00 00 f0 ff ff ff", 1);
    let mut rdma = kernel(&[(SET_SHARED, &busy)]);
    let error = rdma.set_netns_mode(NetnsMode::Shared).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(16), "{error}");
}

#[test]
fn an_answer_that_is_cut_off_is_an_error_wherever_it_is_cut() {
    let whole = bytes(ONE_DEVICE);
    for end in 1..whole.len() {
        let recorded = Recorded::new().then(&bytes(DEVICES), &[&whole[..end]]);
        let told = Rdma::new(recorded).devices();
        assert!(told.is_err(), "{end}: {told:?}");
    }
}

#[test]
fn an_answer_to_a_request_that_was_given_up_is_left_out() {
    let mut answers = Vec::new();
    let late = bytes(ONE_DEVICE);
    assert!(!forebay_rdma_netlink::message::take(&late, 1, &mut answers).unwrap());
    assert_eq!(answers, []);
}

#[test]
fn this_kernel_answers_if_it_has_rdma() {
    let Some(kernel) = Kernel::open().unwrap() else {
        eprintln!("skipped: this kernel has no RDMA (CONFIG_INFINIBAND)");
        return;
    };
    let mut rdma = Rdma::new(kernel);
    rdma.netns_mode().unwrap();
    for device in rdma.devices().unwrap() {
        match rdma.ports(&device) {
            Ok(ports) => assert_eq!(ports.len(), device.ports as usize, "{device:?}"),
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
        }
    }
}
