//! What a link may send and receive, enforced by the kernel's traffic control: a token bucket (tbf) where
//! the link sends, and for what it receives a redirection to a link in between (ifb) that has one.
//!
//! The link in between is in the pod too, and goes with it. Who has `NET_ADMIN` in the pod can take both
//! away: a share is enforced against use, not against root.

use std::io;

use forebay_fabric::share::{Bucket, Limits};
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};

use super::messages::updown;
use super::socket::Socket;
use forebay_netlink_frames::errno;

/// Attributes of tbf in `linux/pkt_sched.h`.
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
/// The link layer of a `tc_ratespec` that needs no table of rates.
const LINKLAYER_ETHERNET: u8 = 1;
/// Where in a `tc_tbf_qopt` the rate is, and its size.
const RATE_AT: std::ops::Range<usize> = 8..12;
const QOPT_BYTES: usize = 36;
/// The handle of an ingress qdisc.
const INGRESS: TcHandle = TcHandle {
    major: 0xffff,
    minor: 0,
};
/// Priority 1 for frames of every protocol (`ETH_P_ALL`, in the order of the network).
const FIRST_OF_ALL: u32 = 1 << 16 | 0x0300;

/// The name of the link in between, of the link `name`: in the pod, where only its own links are.
pub(super) fn between(name: &str) -> String {
    let sum = name.bytes().fold(0x811c_9dc5_u32, |sum, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!("fbin-{sum:08x}")
}

/// Gives link `index`, which is named `name`, its limits. What stands already stays.
pub(super) fn limit(socket: &mut Socket, index: u32, name: &str, limits: Limits) -> io::Result<()> {
    if let Some(bps) = limits.egress_bps {
        bucket(socket, index, Bucket::of(bps))?;
    }
    let Some(bps) = limits.ingress_bps else {
        return Ok(());
    };
    let between = between(name);
    let made = match index_of(socket, &between)? {
        Some(made) => made,
        None => {
            let mut link = LinkMessage::default();
            link.attributes.push(LinkAttribute::IfName(between.clone()));
            let kind = LinkInfo::Kind(InfoKind::Ifb);
            link.attributes.push(LinkAttribute::LinkInfo(vec![kind]));
            socket
                .create(&Message::NewLink(link))
                .map_err(|e| lacks(e, "ifb"))?;
            index_of(socket, &between)?.ok_or_else(|| lost(&between))?
        }
    };
    bucket(socket, made, Bucket::of(bps))?;
    socket.request(&Message::SetLink(updown(made, true)), 0)?;
    let mut qdisc = message(index, INGRESS, TcHandle::INGRESS);
    qdisc.attributes.push(TcAttribute::Kind("ingress".into()));
    socket
        .create(&Message::NewQueueDiscipline(qdisc))
        .map_err(|e| lacks(e, "the ingress qdisc"))?;
    if redirected(socket, index)? != Some(made) {
        let filter = Message::NewTrafficFilter(redirect(index, made));
        socket
            .request(&filter, NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|e| lacks(e, "the u32 classifier or the mirred action"))?;
    }
    Ok(())
}

/// The limits that link `index`, named `name`, has.
pub(super) fn limits(socket: &mut Socket, index: u32, name: &str) -> io::Result<Limits> {
    let rates = rates(socket)?;
    let of = |link: u32| {
        rates
            .iter()
            .find(|(at, _)| *at == link)
            .map(|(_, bps)| *bps)
    };
    let between = index_of(socket, &between(name))?;
    let ingress_bps = match between.and_then(of) {
        Some(bps) if redirected(socket, index)? == between => Some(bps),
        Some(_) | None => None,
    };
    Ok(Limits {
        egress_bps: of(index),
        ingress_bps,
    })
}

/// Takes away what [`limit`] made beside the link itself; what is not there is no error.
pub(super) fn clear(socket: &mut Socket, name: &str) -> io::Result<()> {
    match index_of(socket, &between(name))? {
        Some(index) => super::child::remove(socket, index),
        None => Ok(()),
    }
}

fn index_of(socket: &mut Socket, name: &str) -> io::Result<Option<u32>> {
    let found = socket.named(&[name.to_owned()])?.pop().flatten();
    Ok(found.map(|link| link.index))
}

fn lost(name: &str) -> io::Error {
    io::Error::other(format!("the link `{name}` went as soon as it was made"))
}

fn lacks(error: io::Error, what: &str) -> io::Error {
    match errno(&error) {
        // ENOENT, ENODEV, EOPNOTSUPP: no module has it.
        Some(2 | 19 | 95) => io::Error::new(
            error.kind(),
            format!(
                "this node's kernel lacks {what}, by which the bandwidth of a share is enforced"
            ),
        ),
        _ => error,
    }
}

fn message(index: u32, handle: TcHandle, parent: TcHandle) -> TcMessage {
    // The kernel's indices are positive and never reach the sign.
    let mut message = TcMessage::with_index(i32::try_from(index).unwrap_or(i32::MAX));
    message.header.handle = handle;
    message.header.parent = parent;
    message
}

fn bucket(socket: &mut Socket, index: u32, bucket: Bucket) -> io::Result<()> {
    let message = Message::NewQueueDiscipline(tbf(index, bucket));
    socket
        .request(&message, NLM_F_CREATE | NLM_F_REPLACE)
        .map_err(|e| lacks(e, "tbf"))
}

/// The request for a token bucket in front of link `index`.
fn tbf(index: u32, bucket: Bucket) -> TcMessage {
    let mut qopt = [0_u8; QOPT_BYTES];
    let rate = u32::try_from(bucket.rate).unwrap_or(u32::MAX);
    qopt[1] = LINKLAYER_ETHERNET;
    qopt[RATE_AT].copy_from_slice(&rate.to_ne_bytes());
    qopt[24..28].copy_from_slice(&bucket.queue.to_ne_bytes());
    let mut options = vec![(TBF_PARMS, qopt.to_vec())];
    if u64::from(rate) != bucket.rate {
        options.push((TBF_RATE64, bucket.rate.to_ne_bytes().to_vec()));
    }
    options.push((TBF_BURST, bucket.burst.to_ne_bytes().to_vec()));
    let options = options
        .into_iter()
        .map(|(kind, value)| TcOption::Other(DefaultNla::new(kind, value)));
    let mut message = message(index, TcHandle::UNSPEC, TcHandle::ROOT);
    message.attributes = vec![
        TcAttribute::Kind("tbf".into()),
        TcAttribute::Options(options.collect()),
    ];
    message
}

/// The rate of a token bucket that the kernel tells of, bits per second; none for anything else.
fn rate_of(message: &TcMessage) -> Option<u64> {
    let mut attributes = message.attributes.iter();
    let is_tbf = |a: &TcAttribute| matches!(a, TcAttribute::Kind(kind) if kind == "tbf");
    if message.header.parent != TcHandle::ROOT || !attributes.any(is_tbf) {
        return None;
    }
    let options = attributes.find_map(|attribute| match attribute {
        TcAttribute::Options(options) => options.iter().find_map(|option| match option {
            TcOption::Other(nla) => {
                let mut value = vec![0; nla.value_len()];
                nla.emit_value(&mut value);
                Some(value)
            }
            _ => None,
        }),
        _ => None,
    })?;
    let mut bytes_per_s = None;
    for option in NlasIterator::new(&options[..]) {
        let option = option.ok()?;
        match (option.kind(), option.value()) {
            (TBF_PARMS, value) => {
                let rate: [u8; 4] = value.get(RATE_AT)?.try_into().ok()?;
                let rate = u64::from(u32::from_ne_bytes(rate));
                bytes_per_s = bytes_per_s.or(Some(rate));
            }
            (TBF_RATE64, value) => {
                bytes_per_s = Some(u64::from_ne_bytes(value.try_into().ok()?));
            }
            _ => {}
        }
    }
    bytes_per_s.map(|rate| rate.saturating_mul(8))
}

/// The rates of all links that have a token bucket.
fn rates(socket: &mut Socket) -> io::Result<Vec<(u32, u64)>> {
    let all = socket.dump(Message::GetQueueDiscipline(TcMessage::default()))?;
    let rate = |message| match message {
        Message::NewQueueDiscipline(qdisc) => {
            let index = u32::try_from(qdisc.header.index).ok()?;
            Some((index, rate_of(&qdisc)?))
        }
        _ => None,
    };
    Ok(all.into_iter().filter_map(rate).collect())
}

/// The filter that sends all that link `index` receives through link `to`.
fn redirect(index: u32, to: u32) -> TcMessage {
    let mut mirror = TcMirror::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let parms = TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".into()),
        TcActionAttribute::Options(vec![parms]),
    ];
    let mut every = TcU32Selector::default();
    every.flags = TcU32SelectorFlags::Terminal;
    every.nkeys = 1;
    every.keys = vec![TcU32Key::default()];
    let mut filter = message(index, TcHandle::UNSPEC, INGRESS);
    filter.header.info = FIRST_OF_ALL;
    filter.attributes = vec![
        TcAttribute::Kind("u32".into()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(every)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    filter
}

/// Where what link `index` receives is sent.
fn redirected(socket: &mut Socket, index: u32) -> io::Result<Option<u32>> {
    let ask = message(index, TcHandle::UNSPEC, INGRESS);
    let filters = match socket.dump(Message::GetTrafficFilter(ask)) {
        // There is no ingress qdisc.
        Err(error) if matches!(errno(&error), Some(2 | 22)) => return Ok(None),
        other => other?,
    };
    let to = filters.iter().find_map(|message| match message {
        Message::NewTrafficFilter(filter) => filter.attributes.iter().find_map(sent_to),
        _ => None,
    });
    Ok(to)
}

fn sent_to(attribute: &TcAttribute) -> Option<u32> {
    let TcAttribute::Options(options) = attribute else {
        return None;
    };
    let actions = options.iter().filter_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    });
    let attributes = actions.flatten().flat_map(|action| &action.attributes);
    let options = attributes.filter_map(|attribute| match attribute {
        TcActionAttribute::Options(options) => Some(options),
        _ => None,
    });
    options.flatten().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror)) => Some(mirror.ifindex),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{Emitable, Parseable};

    use super::*;

    #[test]
    fn a_rate_is_read_back_as_it_was_asked_for_also_beyond_32_bits() {
        for bps in [8, 1_000_000, 34_359_738_360, 400_000_000_000] {
            let asked = tbf(7, Bucket::of(bps));
            let mut bytes = vec![0; asked.buffer_len()];
            asked.emit(&mut bytes);
            let told = TcMessage::parse(&bytes[..]).unwrap();
            assert_eq!(rate_of(&told), Some(bps));
        }
    }

    #[test]
    fn links_in_between_have_names_that_the_kernel_takes() {
        assert_ne!(between("net0"), between("net1"));
        assert_eq!(between("a-name-of-15-by").len(), 13);
    }
}
