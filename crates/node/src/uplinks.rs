//! Which interfaces carry the host's default routes: they are the host's own and never a pod's.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Bytes of a table of routes that are read; a host with more has them cut at a line.
const TABLE_BYTES_MAX: u64 = 4 << 20;
/// `RTF_REJECT`: a route that leads nowhere.
const REJECT: u32 = 0x200;

/// Their names, from the tables of routes below `proc`, which is what `/proc` is to a host. A host without
/// IPv6 has one table less.
///
/// # Errors
/// Those of the file system: who does not know the uplinks must not give any NIC away.
pub fn read(proc: &Path) -> io::Result<BTreeSet<String>> {
    let mut names = ipv4(&table(&proc.join("net/route"))?);
    match table(&proc.join("net/ipv6_route")) {
        Ok(text) => names.extend(ipv6(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(names)
}

fn table(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = File::open(path).map_err(|e| io::Error::new(e.kind(), told(path, &e)))?;
    file.take(TABLE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|e| io::Error::new(e.kind(), told(path, &e)))?;
    Ok(text)
}

fn told(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// `/proc/net/route`: interface, destination, gateway, flags, references, use, metric, mask.
fn ipv4(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [interface, destination, _, flags, _, _, _, mask, ..] = fields[..] else {
            return None;
        };
        let zero = |hex| u32::from_str_radix(hex, 16).is_ok_and(|value| value == 0);
        let leads = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & REJECT == 0);
        (zero(destination) && zero(mask) && leads).then(|| interface.to_owned())
    };
    text.lines().skip(1).filter_map(name).collect()
}

/// `/proc/net/ipv6_route`: destination, its length, source, its length, next hop, metric, references, use,
/// flags, interface.
fn ipv6(text: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, length, _, _, _, _, _, _, flags, interface] = fields[..] else {
            return None;
        };
        let everything = length == "00" && destination.bytes().all(|b| b == b'0');
        let leads = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & REJECT == 0);
        (everything && leads && interface != "lo").then(|| interface.to_owned())
    };
    text.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_route_names_an_uplink_and_no_other_route_does() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t0101000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  eth1\t00000000\t0102000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
                  rail0\t0001000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                  half\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0\n\
                  *\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0\n\
                  short\t00000000\n";
        assert_eq!(ipv4(v4).into_iter().collect::<Vec<_>>(), ["eth0", "eth1"]);
        let zero = "0".repeat(32);
        let local = format!("fe80{}", "0".repeat(28));
        let v6 = format!(
            "{zero} 00 {zero} 00 {local} 00000400 00000001 00000000 00000003 eth2\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n\
             {local} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 rail0\n\
             nonsense\n"
        );
        assert_eq!(ipv6(&v6).into_iter().collect::<Vec<_>>(), ["eth2"]);
    }

    #[test]
    fn a_host_whose_routes_cannot_be_read_is_an_error_that_names_the_file() {
        let empty = tempfile::tempdir().unwrap();
        let error = read(empty.path()).unwrap_err();
        assert!(error.to_string().contains("net/route"), "{error}");
    }
}
