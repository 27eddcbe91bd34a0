//! Host names of listeners and routes: what two patterns have in common, and which of many overlap.

use std::collections::HashSet;

use forebay_model::route::HostPattern;

/// The hosts that both a listener and a route are for; empty if there is none.
pub(super) fn common(listener: Option<&HostPattern>, route: &[String]) -> Vec<Option<HostPattern>> {
    if route.is_empty() {
        return vec![listener.cloned()];
    }
    let route = route.iter().map(|host| HostPattern::parse(host));
    let mut hosts: Vec<_> = match listener {
        None => route.map(Some).collect(),
        Some(listener) => route
            .filter_map(|host| narrower(listener, host))
            .map(Some)
            .collect(),
    };
    hosts.sort();
    hosts.dedup();
    hosts
}

/// The narrower of two patterns, if one contains the other.
fn narrower(a: &HostPattern, b: HostPattern) -> Option<HostPattern> {
    let contains = |wide: &HostPattern, narrow: &HostPattern| match (wide, narrow) {
        (wide, HostPattern::Exact(host)) => wide.covers(host),
        (HostPattern::Suffix(wide), HostPattern::Suffix(narrow)) => narrow.ends_with(wide.as_str()),
        (HostPattern::Exact(_), HostPattern::Suffix(_)) => false,
    };
    if contains(a, &b) {
        Some(b)
    } else {
        contains(&b, a).then(|| a.clone())
    }
}

/// Sorts exact hosts first, then the longest wildcards, then every host.
pub(super) fn specificity(host: Option<&HostPattern>) -> (u8, std::cmp::Reverse<usize>) {
    match host {
        Some(HostPattern::Exact(_)) => (0, std::cmp::Reverse(0)),
        Some(HostPattern::Suffix(suffix)) => (1, std::cmp::Reverse(suffix.len())),
        None => (2, std::cmp::Reverse(0)),
    }
}

/// A set of patterns that finds overlaps without looking at each of them.
#[derive(Clone, Debug, Default)]
pub(super) struct HostSet {
    any: bool,
    exact: HashSet<String>,
    suffix: HashSet<String>,
    /// What follows each dot within a member, the dot included.
    tails: HashSet<String>,
}

impl HostSet {
    pub(super) fn insert(&mut self, host: Option<&HostPattern>) {
        let (set, text) = match host {
            None => {
                self.any = true;
                return;
            }
            Some(HostPattern::Exact(host)) => (&mut self.exact, host),
            Some(HostPattern::Suffix(suffix)) => (&mut self.suffix, suffix),
        };
        // Many routes are for one host: nothing is made for those after the first.
        if !set.contains(text) {
            set.insert(text.clone());
            self.tails.extend(tails(text).map(str::to_owned));
        }
    }

    /// Whether some host belongs to `host` and to a member.
    pub(super) fn overlaps(&self, host: Option<&HostPattern>) -> bool {
        let member = match host {
            None => self.any,
            Some(HostPattern::Exact(host)) => self.exact.contains(host),
            Some(HostPattern::Suffix(suffix)) => self.suffix.contains(suffix),
        };
        member || self.overlaps_beside(host)
    }

    /// Whether some host belongs to `host` and to a member other than `host` itself.
    pub(super) fn overlaps_beside(&self, host: Option<&HostPattern>) -> bool {
        let wider = |text| self.any || tails(text).any(|tail| self.suffix.contains(tail));
        match host {
            None => !self.exact.is_empty() || !self.suffix.is_empty(),
            Some(HostPattern::Exact(host)) => wider(host),
            Some(HostPattern::Suffix(suffix)) => wider(suffix) || self.tails.contains(suffix),
        }
    }
}

/// What follows each dot of `text` but a leading one, with the dot: the wildcards that cover it.
fn tails(text: &str) -> impl Iterator<Item = &str> {
    let dots = text.match_indices('.').filter(|(at, _)| *at > 0);
    dots.map(|(at, _)| &text[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: [&str; 9] = [
        "*",
        "*.com",
        "*.a.com",
        "*.x.a.com",
        "a.com",
        "x.a.com",
        "y.x.a.com",
        "b.com",
        "*.org",
    ];

    fn parse(host: &str) -> Option<HostPattern> {
        (host != "*").then(|| HostPattern::parse(host))
    }

    /// By the definition: one of the two covers the other, or a host of it.
    fn overlap(a: &Option<HostPattern>, b: &Option<HostPattern>) -> bool {
        match (a, b) {
            (None, _) | (_, None) => true,
            (Some(a), Some(b)) => narrower(a, b.clone()).is_some(),
        }
    }

    #[test]
    fn a_set_finds_the_overlaps_that_comparing_each_pair_finds() {
        for members in 0..1_usize << HOSTS.len() {
            let members: Vec<_> = HOSTS
                .iter()
                .enumerate()
                .filter(|(i, _)| members & (1 << i) != 0)
                .map(|(_, host)| parse(host))
                .collect();
            let mut set = HostSet::default();
            members.iter().for_each(|host| set.insert(host.as_ref()));
            for host in HOSTS.map(parse) {
                let with = |beside: bool| {
                    let mut others = members.iter().filter(|m| !beside || **m != host);
                    others.any(|member| overlap(member, &host))
                };
                assert_eq!(
                    set.overlaps(host.as_ref()),
                    with(false),
                    "{host:?} {members:?}"
                );
                assert_eq!(
                    set.overlaps_beside(host.as_ref()),
                    with(true),
                    "{host:?} {members:?}"
                );
            }
        }
    }
}
