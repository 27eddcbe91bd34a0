//! The health of a NIC from what is seen of its link, without being fooled by a link that flaps: a pure
//! state machine to which the time is an argument.
//!
//! A link has to be down for a while before its NIC is unhealthy, and up for a longer while before it is
//! healthy again. One that goes down too often within a window is unhealthy until it was steady for long.
//! Unhealthy devices get taints: no new pods ([`Effect::NoSchedule`]), and if the operator wants, after a
//! time, no running ones ([`Effect::NoExecute`]).

use std::collections::{BTreeMap, VecDeque};

use crate::machine::Nic;

/// Key of the taint of a link that is down.
pub const LINK_DOWN: &str = "forebay.dev/link-down";
/// Key of the taint of a link that goes down again and again.
pub const LINK_FLAPPING: &str = "forebay.dev/link-flapping";
/// Key of the taint of a device that is no longer there though a claim has it.
pub const DEVICE_GONE: &str = "forebay.dev/device-gone";

/// What a taint does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Effect {
    /// No new pod gets the device.
    NoSchedule,
    /// And pods that have it are evicted.
    NoExecute,
}

/// A taint on a device.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Taint {
    /// Qualified key.
    pub key: &'static str,
    /// Why, in one word.
    pub value: &'static str,
    /// What it does.
    pub effect: Effect,
}

/// How patient to be. All in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Damping {
    /// So long a link is down before its NIC is unhealthy: longer than a retrain of a link.
    pub down_ms: u64,
    /// So long it is up before it is healthy again.
    pub up_ms: u64,
    /// How many times it may go down within [`Damping::window_ms`] without counting as flapping.
    pub falls_max: usize,
    /// The window of those falls.
    pub window_ms: u64,
    /// So long a flapping link has to be steady to be healthy again.
    pub steady_ms: u64,
    /// So long after it became unhealthy its pods are evicted; none for never.
    pub evict_ms: Option<u64>,
}

impl Default for Damping {
    fn default() -> Damping {
        Damping {
            down_ms: 2_000,
            up_ms: 10_000,
            falls_max: 3,
            window_ms: 300_000,
            steady_ms: 120_000,
            evict_ms: None,
        }
    }
}

/// What is seen of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Its link is up.
    Up,
    /// Its link is down.
    Down,
    /// It is there, and nothing can be said of its link: nobody has set it up.
    Idle,
    /// It is not there.
    Gone,
}

/// What a NIC's files say of it. The RDMA port's state counts where there is one, since it is known
/// even if nobody has set the net device up.
pub fn seen(nic: &Nic) -> Seen {
    let ports = nic.rdma.as_ref().map_or(&[][..], |rdma| &rdma.ports);
    if let Some(first) = ports.first() {
        let active = ports.iter().any(|port| port.state == "active");
        return match (active, first.phys_state.as_str()) {
            (true, _) => Seen::Up,
            // Of an Ethernet port that nobody has set up, and of no cable.
            (false, "disabled") if !nic.netdev.as_ref().is_some_and(|n| n.admin_up) => Seen::Idle,
            (false, _) => Seen::Down,
        };
    }
    match &nic.netdev {
        Some(netdev) if !netdev.admin_up => Seen::Idle,
        Some(netdev) => match netdev.state.as_str() {
            "down" | "lowerlayerdown" | "notpresent" => Seen::Down,
            _ => Seen::Up,
        },
        None => Seen::Idle,
    }
}

/// The damped state of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nothing is wrong.
    Healthy,
    /// Down, not yet for long.
    Falling { since_ms: u64 },
    /// Unhealthy.
    Unhealthy { since_ms: u64, why: Why },
    /// Unhealthy, and up again, not yet for long.
    Rising {
        since_ms: u64,
        unhealthy_since_ms: u64,
        why: Why,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Down,
    Flapping,
    Gone,
}

/// The health of one device over time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Watched {
    state: State,
    /// When the link went down, oldest first; at most `falls_max + 1`.
    falls_ms: VecDeque<u64>,
}

impl Default for Watched {
    fn default() -> Watched {
        Watched {
            state: State::Healthy,
            falls_ms: VecDeque::new(),
        }
    }
}

impl Watched {
    /// Takes in what is seen now. To be called with every scan, changed or not: time passes in here only.
    pub fn see(&mut self, seen: Seen, now_ms: u64, damping: &Damping) {
        let was_up = matches!(self.state, State::Healthy | State::Rising { .. });
        let down = matches!(seen, Seen::Down | Seen::Gone);
        if was_up && down {
            self.falls_ms.push_back(now_ms);
            while self.falls_ms.len() > damping.falls_max + 1 {
                self.falls_ms.pop_front();
            }
        }
        let recent = |at: &u64| now_ms.saturating_sub(*at) <= damping.window_ms;
        let falls = self.falls_ms.iter().filter(|at| recent(at)).count();
        let flapping = falls > damping.falls_max;
        self.state = match down {
            true => self.state.fall(seen, flapping, now_ms, damping),
            false => self.state.rise(now_ms, damping),
        };
        if self.state == State::Healthy {
            self.falls_ms.retain(recent);
        }
    }

    /// When [`Watched::see`] would change something though nothing new is seen; none if never.
    pub fn due_ms(&self, damping: &Damping) -> Option<u64> {
        match self.state {
            State::Healthy => None,
            State::Falling { since_ms } => Some(since_ms.saturating_add(damping.down_ms)),
            State::Unhealthy { since_ms, .. } => {
                damping.evict_ms.map(|evict| since_ms.saturating_add(evict))
            }
            State::Rising { since_ms, why, .. } => {
                Some(since_ms.saturating_add(damping.patience_ms(why)))
            }
        }
    }

    /// Whether it may be used.
    pub fn is_healthy(&self) -> bool {
        matches!(self.state, State::Healthy | State::Falling { .. })
    }

    /// Why it is as it is, for people; empty if nothing is wrong.
    pub fn message(&self) -> &'static str {
        match self.state {
            State::Healthy | State::Falling { .. } => "",
            State::Unhealthy { why, .. } | State::Rising { why, .. } => match why {
                Why::Down => "the link is down: look at cable, transceiver and switch port",
                Why::Flapping => {
                    "the link goes down again and again: look at cable and transceiver"
                }
                Why::Gone => "the device is no longer there: look at the kernel's log",
            },
        }
    }

    /// The taints that the device has now.
    pub fn taints(&self, now_ms: u64, damping: &Damping) -> Vec<Taint> {
        let (why, since_ms) = match self.state {
            State::Healthy | State::Falling { .. } => return Vec::new(),
            State::Unhealthy { since_ms, why } => (why, since_ms),
            State::Rising {
                unhealthy_since_ms,
                why,
                ..
            } => (why, unhealthy_since_ms),
        };
        // A link that came back evicts nobody any more.
        let still = matches!(self.state, State::Unhealthy { .. });
        let late = (damping.evict_ms).is_some_and(|evict| now_ms >= since_ms.saturating_add(evict));
        let effect = match still && late {
            true => Effect::NoExecute,
            false => Effect::NoSchedule,
        };
        let (key, value) = match why {
            Why::Down => (LINK_DOWN, "down"),
            Why::Flapping => (LINK_FLAPPING, "flapping"),
            Why::Gone => (DEVICE_GONE, "gone"),
        };
        vec![Taint { key, value, effect }]
    }
}

/// The health of all devices of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Monitor {
    damping: Damping,
    devices: BTreeMap<String, Watched>,
}

impl Monitor {
    /// A monitor that is so patient, and knows of no device yet.
    pub fn new(damping: Damping) -> Monitor {
        Monitor {
            damping,
            devices: BTreeMap::new(),
        }
    }

    /// Takes in what is seen of every published device, by name. Those that are not listed are forgotten.
    pub fn see(&mut self, seen: &BTreeMap<String, Seen>, now_ms: u64) {
        self.devices.retain(|name, _| seen.contains_key(name));
        for (name, seen) in seen {
            let device = self.devices.entry(name.clone()).or_default();
            device.see(*seen, now_ms, &self.damping);
        }
    }

    /// The devices by name.
    pub fn devices(&self) -> &BTreeMap<String, Watched> {
        &self.devices
    }

    /// The taints of those that have some, by name, as [`crate::publish::Input`] takes them.
    pub fn taints(&self, now_ms: u64) -> BTreeMap<String, Vec<Taint>> {
        let all = self.devices.iter();
        let taints = all.map(|(name, device)| (name.clone(), device.taints(now_ms, &self.damping)));
        taints.filter(|(_, taints)| !taints.is_empty()).collect()
    }

    /// When to look again though nothing changes; none for never.
    pub fn due_ms(&self) -> Option<u64> {
        let due = self.devices.values().map(|d| d.due_ms(&self.damping));
        due.flatten().min()
    }
}

impl Damping {
    fn patience_ms(&self, why: Why) -> u64 {
        match why {
            Why::Down | Why::Gone => self.up_ms,
            Why::Flapping => self.steady_ms,
        }
    }
}

impl State {
    fn fall(self, seen: Seen, flapping: bool, now_ms: u64, damping: &Damping) -> State {
        let why = match (flapping, seen) {
            (true, _) => Why::Flapping,
            (false, Seen::Gone) => Why::Gone,
            (false, Seen::Up | Seen::Down | Seen::Idle) => Why::Down,
        };
        match self {
            State::Healthy | State::Falling { .. } if flapping => State::Unhealthy {
                since_ms: now_ms,
                why,
            },
            State::Healthy => State::Falling { since_ms: now_ms },
            State::Falling { since_ms } if now_ms.saturating_sub(since_ms) >= damping.down_ms => {
                State::Unhealthy {
                    since_ms: now_ms,
                    why,
                }
            }
            State::Falling { since_ms } => State::Falling { since_ms },
            State::Unhealthy { since_ms, why: was } => State::Unhealthy {
                since_ms,
                // What flapped goes on as that until it was steady.
                why: if was == Why::Flapping { was } else { why },
            },
            State::Rising {
                unhealthy_since_ms,
                why: was,
                ..
            } => State::Unhealthy {
                since_ms: unhealthy_since_ms,
                why: if was == Why::Flapping { was } else { why },
            },
        }
    }

    fn rise(self, now_ms: u64, damping: &Damping) -> State {
        match self {
            State::Healthy | State::Falling { .. } => State::Healthy,
            State::Unhealthy { since_ms, why } => State::Rising {
                since_ms: now_ms,
                unhealthy_since_ms: since_ms,
                why,
            },
            State::Rising { since_ms, why, .. }
                if now_ms.saturating_sub(since_ms) >= damping.patience_ms(why) =>
            {
                State::Healthy
            }
            State::Rising { .. } => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays `12:down` (seconds, what is seen) and tells the key and effect after each.
    fn check(script: &str, expected: &str) {
        let damping = Damping {
            evict_ms: Some(60_000),
            ..Damping::default()
        };
        let mut watched = Watched::default();
        let mut said = Vec::new();
        for step in script.split_whitespace() {
            let (at, seen) = step.split_once(':').unwrap();
            let now_ms = at.parse::<u64>().unwrap() * 1_000;
            let seen = match seen {
                "up" => Seen::Up,
                "down" => Seen::Down,
                "gone" => Seen::Gone,
                _ => Seen::Idle,
            };
            watched.see(seen, now_ms, &damping);
            let taints = watched.taints(now_ms, &damping);
            said.push(taints.first().map_or_else(
                || "-".to_owned(),
                |taint| {
                    let strong = if taint.effect == Effect::NoExecute {
                        "!"
                    } else {
                        ""
                    };
                    format!("{}{strong}", taint.value)
                },
            ));
        }
        assert_eq!(said.join(" "), expected, "{script}");
    }

    #[test]
    fn a_short_fall_is_not_told() {
        check("0:up 1:down 2:up 60:up", "- - - -");
    }

    #[test]
    fn a_fall_that_lasts_is_told_and_taken_back_only_when_the_link_stays() {
        check(
            "0:up 1:down 3:down 4:up 13:up 14:up",
            "- - down down down -",
        );
        check(
            "0:down 2:down 3:up 4:down 5:up 14:up 15:up",
            "- down down down down down -",
        );
    }

    #[test]
    fn a_link_that_flaps_is_told_at_once_and_has_to_be_steady_for_long() {
        check(
            "0:up 1:down 2:up 3:down 4:up 5:down 6:up 7:down 8:up 127:up 128:up",
            "- - - - - - - flapping flapping flapping -",
        );
    }

    #[test]
    fn falls_long_ago_do_not_count() {
        check(
            "0:down 1:up 2:down 3:up 4:down 5:up 400:down 401:up",
            "- - - - - - - -",
        );
    }

    #[test]
    fn pods_are_evicted_late_and_never_for_a_link_that_came_back() {
        check(
            "0:down 2:down 61:down 62:down 63:up",
            "- down down down! down",
        );
        check("0:gone 2:gone 62:gone", "- gone gone!");
    }

    #[test]
    fn a_nic_that_nobody_set_up_is_not_unhealthy() {
        check("0:idle 100:idle 200:up", "- - -");
    }

    #[test]
    fn each_device_is_watched_for_itself_and_forgotten_when_it_is_no_longer_published() {
        let mut monitor = Monitor::new(Damping::default());
        let mut seen = BTreeMap::from([("a".to_owned(), Seen::Down), ("b".to_owned(), Seen::Up)]);
        monitor.see(&seen, 0);
        assert_eq!(monitor.due_ms(), Some(2_000));
        monitor.see(&seen, 2_000);
        let taints = monitor.taints(2_000);
        assert_eq!(taints.keys().collect::<Vec<_>>(), ["a"]);
        assert!(monitor.devices()["a"].message().contains("cable"));
        seen.remove("a");
        monitor.see(&seen, 3_000);
        assert_eq!(
            (monitor.devices().len(), monitor.taints(3_000).len()),
            (1, 0)
        );
    }

    #[test]
    fn a_port_tells_of_the_link_and_else_a_net_device_that_is_set_up() {
        let netdev = |admin_up: bool, state: &str| crate::machine::Netdev {
            name: "eth0".to_owned(),
            kind: "device".to_owned(),
            mac: String::new(),
            mtu: 1500,
            addresses: Vec::new(),
            admin_up,
            state: state.to_owned(),
            speed_mbps: None,
            alias: String::new(),
        };
        let port = |state: &str, phys_state: &str| crate::machine::RdmaDevice {
            name: "mlx5_0".to_owned(),
            node_guid: String::new(),
            firmware: String::new(),
            ports: vec![crate::machine::RdmaPort {
                number: 1,
                state: state.to_owned(),
                phys_state: phys_state.to_owned(),
                link_layer: "ethernet".to_owned(),
                rate_mbps: None,
                gids: Vec::new(),
            }],
        };
        let up = || Some(netdev(true, "up"));
        for (netdev, rdma, expected) in [
            (up(), None, Seen::Up),
            (Some(netdev(true, "unknown")), None, Seen::Up),
            (Some(netdev(true, "lowerlayerdown")), None, Seen::Down),
            (Some(netdev(false, "down")), None, Seen::Idle),
            (up(), Some(port("active", "linkup")), Seen::Up),
            (up(), Some(port("down", "polling")), Seen::Down),
            (up(), Some(port("down", "disabled")), Seen::Down),
            (
                Some(netdev(false, "down")),
                Some(port("down", "disabled")),
                Seen::Idle,
            ),
            (None, Some(port("init", "linkup")), Seen::Down),
            (None, None, Seen::Idle),
        ] {
            let sriov = crate::machine::Sriov::None;
            let nic = Nic {
                pci: None,
                sriov,
                netdev,
                rdma,
            };
            assert_eq!(seen(&nic), expected, "{nic:?}");
        }
    }

    #[test]
    fn who_waits_for_the_next_change_is_told_when_it_is_due() {
        let damping = Damping::default();
        let mut watched = Watched::default();
        assert_eq!(watched.due_ms(&damping), None);
        watched.see(Seen::Down, 500, &damping);
        assert_eq!(watched.due_ms(&damping), Some(2_500));
        watched.see(Seen::Down, 2_500, &damping);
        assert!(!watched.is_healthy());
        watched.see(Seen::Up, 3_000, &damping);
        assert_eq!(watched.due_ms(&damping), Some(13_000));
    }
}
