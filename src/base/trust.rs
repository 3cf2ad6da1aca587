//! Networks with names: those of well-known proxies, as their operators publish them, and those of every private
//! network. The data stand in `trust.txt`.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;

use crate::base::address::canonical;

/// A list of networks with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// What the configuration calls it.
    pub name: &'static str,
    /// Where it is published.
    pub source: &'static str,
    /// The networks, in the order of the source.
    pub networks: Vec<IpNet>,
}

static LISTS: LazyLock<Vec<List>> = LazyLock::new(|| parse(include_str!("trust.txt")));

/// Lists that are no proxy of somebody else's: whatever comes from there is not a content delivery network.
const OWN: [&str; 2] = ["loopback", "private"];

/// Every list.
pub fn lists() -> &'static [List] {
    &LISTS
}

/// The networks of a list.
pub fn find(name: &str) -> Option<&'static [IpNet]> {
    lists().iter().find(|list| list.name == name).map(|list| &*list.networks)
}

/// The well-known proxy that an address belongs to. A walk through all networks: for once a connection, not for each
/// request.
pub fn name_of(address: IpAddr) -> Option<&'static str> {
    let address = canonical(address);
    let mut proxies = lists().iter().filter(|list| !OWN.contains(&list.name));
    proxies.find(|list| list.networks.iter().any(|network| network.contains(&address))).map(|list| list.name)
}

/// Reads the data. Lines that are no network are left out; a test sees to it that there are none.
fn parse(text: &'static str) -> Vec<List> {
    let mut lists: Vec<List> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some((name, source)) = line.strip_prefix('[').and_then(|line| line.split_once("] ")) {
            lists.push(List { name, source, networks: Vec::new() });
        } else if let (Some(list), Ok(network)) = (lists.last_mut(), line.parse()) {
            list.networks.push(network);
        }
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_data_is_a_network_without_host_bits_and_stands_once() {
        let text = include_str!("trust.txt");
        let lines = text.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_hexdigit() || c == ':'));
        let all: Vec<&IpNet> = lists().iter().flat_map(|list| &list.networks).collect();
        assert_eq!(lines.count(), all.len());
        for (index, network) in all.iter().enumerate() {
            assert_eq!(network.trunc(), **network, "{network}");
            assert!(network.prefix_len() > 5, "{network} is half the world");
            assert!(!all[..index].contains(network), "{network} stands twice");
        }
        for list in lists() {
            assert!(!list.networks.is_empty() && !list.source.is_empty(), "{}", list.name);
        }
    }

    #[test]
    fn a_proxy_is_known_by_its_address_and_a_private_network_is_none() {
        let name = |text: &str| name_of(text.parse().unwrap());
        assert_eq!(name("104.16.1.1"), Some("cloudflare"));
        assert_eq!(name("::ffff:104.16.1.1"), Some("cloudflare"));
        assert_eq!(name("2606:4700::6810:1"), Some("cloudflare"));
        assert_eq!(name("151.101.1.1"), Some("fastly"));
        assert_eq!((name("10.0.0.1"), name("127.0.0.1"), name("192.0.2.1")), (None, None, None));
        assert!(find("private").unwrap().len() == 5 && find("nobody").is_none());
    }
}
