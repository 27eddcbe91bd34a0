//! Whatever is on the wire where an address is asked for: a frame is no message or one that lies within it, and a
//! lease that is read has an address that a host can have, and times in their order.
#![no_main]

use forebay_fabric::config::Mac;
use forebay_node::ipam::message::{Answer, Question, message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(payload) = message(bytes) {
        assert!(payload.len() <= bytes.len());
    }
    // So that what is read gets beyond whose it is.
    let mut own = bytes.to_vec();
    if let Some(id) = own.get_mut(4..8) {
        id.copy_from_slice(&[0, 0, 0, 7]);
    }
    if let Some(mac) = own.get_mut(28..34) {
        mac.copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    }
    if let Some(magic) = own.get_mut(236..240) {
        magic.copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    }
    let (mac, id, for_s) = (Mac([2, 0, 0, 0, 0, 9]), 7, 0);
    match (Question { mac, id, for_s }).read(&own) {
        Some(Answer::Given(lease)) => {
            assert!(!lease.address.ip.is_unspecified() && !lease.address.ip.is_multicast());
            assert!(lease.renew_s <= lease.rebind_s && lease.rebind_s <= lease.lasts_s);
            assert!(lease.address.prefix_len <= 32);
        }
        Some(Answer::Refused(words)) => assert!(!words.contains(char::is_control)),
        Some(Answer::Offer { .. }) | None => {}
    }
});
