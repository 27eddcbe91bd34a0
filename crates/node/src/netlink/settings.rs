//! Settings that the kernel has for each interface and family: read from a link's message, where all of them
//! are, and written below `/proc/sys/net`, where writing them has the effects that belong to it.
//!
//! A link that moves to another namespace loses them; what the host had is written again when it comes back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf,
};

/// Of IPv4: all that can be written.
type Ipv4 = (&'static str, fn(&InetDevConf) -> i32);
const IPV4: [Ipv4; 32] = [
    ("forwarding", |c| c.forwarding),
    ("proxy_arp", |c| c.proxy_arp),
    ("accept_redirects", |c| c.accept_redirects),
    ("secure_redirects", |c| c.secure_redirects),
    ("send_redirects", |c| c.send_redirects),
    ("shared_media", |c| c.shared_media),
    ("rp_filter", |c| c.rp_filter),
    ("accept_source_route", |c| c.accept_source_route),
    ("bootp_relay", |c| c.bootp_relay),
    ("log_martians", |c| c.log_martians),
    ("tag", |c| c.tag),
    ("arp_filter", |c| c.arpfilter),
    ("medium_id", |c| c.medium_id),
    ("disable_xfrm", |c| c.noxfrm),
    ("disable_policy", |c| c.nopolicy),
    ("force_igmp_version", |c| c.force_igmp_version),
    ("arp_announce", |c| c.arp_announce),
    ("arp_ignore", |c| c.arp_ignore),
    ("promote_secondaries", |c| c.promote_secondaries),
    ("arp_accept", |c| c.arp_accept),
    ("arp_notify", |c| c.arp_notify),
    ("accept_local", |c| c.accept_local),
    ("src_valid_mark", |c| c.src_vmark),
    ("proxy_arp_pvlan", |c| c.proxy_arp_pvlan),
    ("route_localnet", |c| c.route_localnet),
    ("igmpv2_unsolicited_report_interval", |c| {
        c.igmpv2_unsolicited_report_interval
    }),
    ("igmpv3_unsolicited_report_interval", |c| {
        c.igmpv3_unsolicited_report_interval
    }),
    ("ignore_routes_with_linkdown", |c| {
        c.ignore_routes_with_linkdown
    }),
    ("drop_unicast_in_l2_multicast", |c| {
        c.drop_unicast_in_l2_multicast
    }),
    ("drop_gratuitous_arp", |c| c.drop_gratuitous_arp),
    ("bc_forwarding", |c| c.bc_forwarding),
    ("arp_evict_nocarrier", |c| c.arp_evict_nocarrier),
];

/// Of IPv6: what is set for an interface by people. The kernel changes others by itself, or by what routers say.
type Ipv6 = (&'static str, fn(&Inet6DevConf) -> i32);
const IPV6: [Ipv6; 19] = [
    ("forwarding", |c| c.forwarding),
    ("accept_ra", |c| c.accept_ra),
    ("accept_redirects", |c| c.accept_redirects),
    ("autoconf", |c| c.autoconf),
    ("dad_transmits", |c| c.dad_transmits),
    ("use_tempaddr", |c| c.use_tempaddr),
    ("accept_ra_defrtr", |c| c.accept_ra_defrtr),
    ("accept_ra_pinfo", |c| c.accept_ra_pinfo),
    ("accept_ra_rtr_pref", |c| c.accept_ra_rtr_pref),
    ("accept_ra_rt_info_max_plen", |c| {
        c.accept_ra_rt_info_max_plen
    }),
    ("proxy_ndp", |c| c.proxy_ndp),
    ("accept_source_route", |c| c.accept_source_route),
    ("disable_ipv6", |c| c.disable_ipv6),
    ("accept_dad", |c| c.accept_dad),
    ("ndisc_notify", |c| c.ndisc_notify),
    ("use_oif_addrs_only", |c| c.use_oif_addrs_only),
    ("keep_addr_on_down", |c| c.keep_addr_on_down),
    ("drop_unsolicited_na", |c| c.drop_unsolicited_na),
    ("addr_gen_mode", |c| c.addr_gen_mode),
];

/// The settings in a link's message.
pub(super) fn read(families: &[AfSpecUnspec]) -> BTreeMap<String, i32> {
    let mut settings = BTreeMap::new();
    for family in families {
        match family {
            AfSpecUnspec::Inet(parts) => {
                for part in parts {
                    if let AfSpecInet::DevConf(conf) = part {
                        settings.extend(IPV4.iter().map(|(k, of)| (format!("ipv4/{k}"), of(conf))));
                    }
                }
            }
            AfSpecUnspec::Inet6(parts) => {
                for part in parts {
                    if let AfSpecInet6::DevConf(conf) = part {
                        settings.extend(IPV6.iter().map(|(k, of)| (format!("ipv6/{k}"), of(conf))));
                    }
                }
            }
            _ => {}
        }
    }
    settings
}

/// Writes those of `wanted` that differ from `now`, for an interface of the namespace that this thread is in.
pub(super) fn write(
    sysctls: &Path,
    interface: &str,
    wanted: &BTreeMap<String, i32>,
    now: &BTreeMap<String, i32>,
) -> io::Result<()> {
    for (name, value) in wanted
        .iter()
        .filter(|(name, value)| now.get(*name) != Some(value))
    {
        let (family, key) = name.split_once('/').unwrap_or(("ipv4", name));
        let place = sysctls.join(family).join("conf").join(interface).join(key);
        std::fs::write(place, value.to_string())
            .map_err(|e| io::Error::new(e.kind(), format!("{name} = {value}: {e}")))?;
    }
    Ok(())
}
