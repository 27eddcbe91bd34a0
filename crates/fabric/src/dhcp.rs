//! The lease of an address: what a DHCP server said, and when it is to be asked again. Messages and sockets are
//! the host's; RFC 2131 is where the times are from.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::config::{Cidr, Mac, Route, TABLE_MAIN};

/// A time of this many seconds is forever (RFC 2131, 3.3).
pub const FOREVER_S: u32 = u32::MAX;
/// Routes of a lease that are carried out at most; a message has room for some hundreds.
pub const ROUTES_MAX: usize = 64;
/// Shortest time between two questions for one lease (RFC 2131, 4.4.5).
const RETRY_S: u64 = 60;

/// An address that a server gave for a time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub address: Cidr,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// The station that it was given to.
    pub mac: Mac,
    /// Its routes (option 121). The default gateway of option 3 is not among them: the pod has one.
    pub routes: Vec<Route>,
    /// When it was given, or last renewed, seconds since 1970.
    pub since_s: u64,
    /// For how long, seconds.
    pub lasts_s: u32,
    /// After how long who gave it is asked again, seconds (T1).
    pub renew_s: u32,
    /// After how long anybody is asked, seconds (T2).
    pub rebind_s: u32,
    /// Why it is the pod's no longer, though the pod still has the address.
    pub lost: Option<String>,
}

/// Whom to ask for a lease to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Nobody yet.
    Nobody,
    /// Who gave it.
    Server,
    /// Whoever answers.
    Anybody,
}

impl Lease {
    /// Times as a server said them, or the usual parts of `lasts_s` where it did not, or where they make no
    /// sense: (T1, T2).
    pub fn times(lasts_s: u32, renew_s: Option<u32>, rebind_s: Option<u32>) -> (u32, u32) {
        if lasts_s == FOREVER_S {
            return (FOREVER_S, FOREVER_S);
        }
        let rebind = rebind_s.filter(|t2| *t2 < lasts_s);
        let rebind = rebind.unwrap_or(lasts_s - lasts_s / 8);
        let renew = renew_s.filter(|t1| *t1 <= rebind);
        (renew.unwrap_or_else(|| (lasts_s / 2).min(rebind)), rebind)
    }

    /// Whom to ask at a time.
    pub fn due(&self, now_s: u64) -> Due {
        let past =
            |after_s: u32| after_s != FOREVER_S && now_s >= self.since_s + u64::from(after_s);
        if self.lost.is_some() || past(self.rebind_s) {
            Due::Anybody
        } else if past(self.renew_s) {
            Due::Server
        } else {
            Due::Nobody
        }
    }

    /// Whether its time is over.
    pub fn is_over(&self, now_s: u64) -> bool {
        self.lasts_s != FOREVER_S && now_s >= self.since_s + u64::from(self.lasts_s)
    }

    /// How long to wait after a question at `now_s` that nobody answered, seconds: half of what is left until
    /// others are asked or it is over.
    pub fn retry_s(&self, now_s: u64) -> u64 {
        let until = match self.due(now_s) {
            Due::Nobody | Due::Server => self.rebind_s,
            Due::Anybody => self.lasts_s,
        };
        let left = (self.since_s + u64::from(until)).saturating_sub(now_s);
        (left / 2).max(RETRY_S)
    }
}

/// The routes of option 121 (RFC 3442): a prefix's length, as many bytes of the destination as it needs, and the
/// gateway, which is 0.0.0.0 for what is on the link. None where the bytes make no sense.
pub fn classless_routes(option: &[u8]) -> Option<Vec<Route>> {
    let (mut routes, mut rest) = (Vec::new(), option);
    while let Some((&prefix_len, behind)) = rest.split_first() {
        let bytes = usize::from(prefix_len).div_ceil(8);
        if prefix_len > 32 || routes.len() == ROUTES_MAX {
            return None;
        }
        let (said, behind) = behind.split_at_checked(bytes)?;
        let (gateway, behind) = behind.split_first_chunk::<4>()?;
        let mut destination = [0; 4];
        destination[..bytes].copy_from_slice(said);
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len));
        let network = u32::from_be_bytes(destination) & mask.unwrap_or(0);
        let gateway = Ipv4Addr::from(*gateway);
        routes.push(Route {
            destination: Cidr {
                ip: Ipv4Addr::from(network).into(),
                prefix_len,
            },
            gateway: (!gateway.is_unspecified()).then_some(gateway.into()),
            source: None,
            on_link: gateway.is_unspecified(),
            table: TABLE_MAIN,
            metric: None,
        });
        rest = behind;
    }
    Some(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(lasts_s: u32) -> Lease {
        let (renew_s, rebind_s) = Lease::times(lasts_s, None, None);
        Lease {
            address: "10.0.0.5/24".parse().unwrap(),
            server: Ipv4Addr::new(10, 0, 0, 1),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            routes: Vec::new(),
            since_s: 1_000,
            lasts_s,
            renew_s,
            rebind_s,
            lost: None,
        }
    }

    #[test]
    fn at_half_time_the_server_is_asked_and_near_the_end_anybody() {
        let lease = lease(800);
        let at = |after: u64| (lease.due(1_000 + after), lease.is_over(1_000 + after));
        assert_eq!(at(399), (Due::Nobody, false));
        assert_eq!(at(400), (Due::Server, false));
        assert_eq!(at(700), (Due::Anybody, false));
        assert_eq!(at(800), (Due::Anybody, true));
        assert_eq!(lease.retry_s(1_400), 150, "half of what is left until T2");
        assert_eq!(lease.retry_s(1_790), 60);
        let lost = Lease {
            lost: Some("taken back".into()),
            ..lease
        };
        assert_eq!(lost.due(1_001), Due::Anybody, "it may be given again");
    }

    #[test]
    fn what_lasts_forever_is_never_due() {
        let lease = lease(FOREVER_S);
        assert_eq!(lease.due(u64::MAX), Due::Nobody);
        assert!(!lease.is_over(u64::MAX));
    }

    #[test]
    fn times_that_make_no_sense_are_the_usual_ones() {
        assert_eq!(Lease::times(800, Some(100), Some(200)), (100, 200));
        assert_eq!(Lease::times(800, Some(900), Some(900)), (400, 700));
        assert_eq!(Lease::times(800, Some(700), Some(300)), (300, 300));
        assert_eq!(Lease::times(1, None, None), (0, 1));
    }

    #[test]
    fn classless_routes_are_read_or_refused_as_a_whole() {
        let option = [24, 10, 1, 2, 10, 0, 0, 1, 12, 172, 31, 0, 0, 0, 0];
        let routes = classless_routes(&option).unwrap();
        let told: Vec<_> = routes
            .iter()
            .map(|r| {
                (
                    r.destination.to_string(),
                    r.gateway.map(|g| g.to_string()),
                    r.on_link,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("10.1.2.0/24".into(), Some("10.0.0.1".into()), false),
                ("172.16.0.0/12".into(), None, true),
            ]
        );
        assert_eq!(classless_routes(&[]), Some(Vec::new()));
        let default = classless_routes(&[0, 10, 0, 0, 1]).unwrap();
        assert_eq!(default[0].destination.to_string(), "0.0.0.0/0");
        for end in 1..8 {
            assert_eq!(classless_routes(&option[..end]), None, "cut off at {end}");
        }
        assert_eq!(classless_routes(&[33, 1, 2, 3, 4, 5, 10, 0, 0, 1]), None);
    }
}
