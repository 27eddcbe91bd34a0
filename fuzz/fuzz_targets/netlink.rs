//! Whatever the kernel's netlink, or what is taken for it, answers: a datagram is cut into parts that lie within
//! it, in order, and attributes within theirs; nothing is read twice or beyond the end.
#![no_main]

use forebay_netlink_frames::{Says, attributes, parts, text};
use libfuzzer_sys::fuzz_target;

/// Nested deeper than any answer of the kernel is.
const DEPTH_MAX: usize = 8;

fn walk(bytes: &[u8], depth: usize) {
    let mut read = 0;
    for (_, value) in attributes(bytes) {
        read += 4 + value.len();
        assert!(read <= bytes.len(), "attributes do not overlap");
        assert!(text(value).len() <= value.len() * '\u{fffd}'.len_utf8());
        if depth < DEPTH_MAX {
            walk(value, depth + 1);
        }
    }
}

fuzz_target!(|datagram: &[u8]| {
    let mut read = 0;
    let mut ended = false;
    for part in parts(datagram) {
        assert!(!ended, "nothing comes after what makes no sense");
        match part {
            Ok(part) => match part.says {
                Says::Answer(_, body) => {
                    read += 16 + body.len();
                    assert!(read <= datagram.len(), "messages do not overlap");
                    walk(body, 0);
                }
                Says::Refused(refusal) => drop(refusal.to_string()),
                Says::Done | Says::Nothing => {}
            },
            Err(_) => ended = true,
        }
    }
    // Of one that speaks of itself as an answer about RDMA, what it tells is taken or refused.
    let mut answers = Vec::new();
    if forebay_rdma_netlink::message::take(datagram, 1, &mut answers).is_ok() {
        for answer in answers {
            drop((answer.netns_mode(), answer.clone().into_port(), answer.into_device()));
        }
    }
});
