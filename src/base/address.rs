//! Addresses of clients and endpoints, and sets of networks.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use prefix_trie::PrefixSet;

/// Flattens an IPv4-mapped IPv6 address (`::ffff:1.2.3.4`) to IPv4, so that one client has one address.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Whether an address belongs to this machine or to a private network: loopback, RFC 1918, RFC 6598, RFC 4193, link
/// local.
pub fn is_inner(address: IpAddr) -> bool {
    match canonical(address) {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_loopback() || v4.is_private() || v4.is_link_local() || (first, second & 0xc0) == (100, 64)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

/// What limits are kept for: an IPv4 address, or the /64 of an IPv6 address, because one client usually owns a
/// whole /64 and could otherwise take a new address for each request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ClientKey(pub u128);

impl ClientKey {
    /// The key of a client address.
    pub fn of(address: IpAddr) -> ClientKey {
        match canonical(address) {
            // The mapped form keeps v4 keys apart from every real /64.
            IpAddr::V4(v4) => ClientKey(u128::from(v4.to_ipv6_mapped())),
            IpAddr::V6(v6) => ClientKey(u128::from(v6) & !u128::from(u64::MAX)),
        }
    }

    /// The address, or the first one of the /64.
    pub fn address(self) -> IpAddr {
        canonical(IpAddr::V6(Ipv6Addr::from(self.0)))
    }
}

/// A set of networks; lookups cost the length of the longest matching prefix, whatever the size of the set.
#[derive(Debug, Clone, Default)]
pub struct CidrSet {
    v4: PrefixSet<ipnet::Ipv4Net>,
    v6: PrefixSet<ipnet::Ipv6Net>,
    written: Vec<String>,
}

impl CidrSet {
    /// Builds a set.
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> CidrSet {
        let mut set = CidrSet::default();
        for network in networks {
            set.written.push(network.to_string());
            set.insert(network);
        }
        set
    }

    /// Builds a set that does not remember how its networks were written: for long ones.
    pub fn unwritten(networks: impl IntoIterator<Item = IpNet>) -> CidrSet {
        let mut set = CidrSet::default();
        networks.into_iter().for_each(|network| set.insert(network));
        set
    }

    fn insert(&mut self, network: IpNet) {
        match network {
            IpNet::V4(net) => {
                self.v4.insert(net.trunc());
            }
            IpNet::V6(net) => {
                self.v6.insert(net.trunc());
            }
        }
    }

    /// Whether the address lies in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        match canonical(address) {
            IpAddr::V4(v4) => self.v4.get_lpm(&ipnet::Ipv4Net::from(v4)).is_some(),
            IpAddr::V6(v6) => self.v6.get_lpm(&ipnet::Ipv6Net::from(v6)).is_some(),
        }
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The networks in the order given.
    pub fn written(&self) -> &[String] {
        &self.written
    }
}

/// The address of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndpointAddress {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A name and port; resolved whenever a new connection is made.
    Name(Arc<str>, u16),
}

impl EndpointAddress {
    /// Whether it is an address of this machine's loopback. Where a name leads is decided elsewhere: it is none.
    pub fn is_loopback(&self) -> bool {
        matches!(self, EndpointAddress::Socket(at) if canonical(at.ip()).is_loopback())
    }

    /// The host part, without brackets.
    pub fn host(&self) -> String {
        match self {
            EndpointAddress::Socket(address) => address.ip().to_string(),
            EndpointAddress::Name(name, _) => name.to_string(),
        }
    }
}

impl EndpointAddress {
    /// The same with another host (an IP address or a name), another port, or both.
    pub fn moved(&self, host: Option<&str>, port: Option<u16>) -> EndpointAddress {
        let port = port.unwrap_or(match self {
            EndpointAddress::Socket(address) => address.port(),
            EndpointAddress::Name(_, port) => *port,
        });
        match (host.map(|host| (host, host.parse::<IpAddr>())), self) {
            (Some((_, Ok(ip))), _) => EndpointAddress::Socket(SocketAddr::new(ip, port)),
            (Some((name, Err(_))), _) => EndpointAddress::Name(name.into(), port),
            (None, EndpointAddress::Socket(address)) => {
                EndpointAddress::Socket(SocketAddr::new(address.ip(), port))
            }
            (None, EndpointAddress::Name(name, _)) => EndpointAddress::Name(name.clone(), port),
        }
    }
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointAddress::Socket(address) => write!(f, "{address}"),
            EndpointAddress::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// Cuts an address for the access log: /24 for IPv4, /48 for IPv6.
pub fn truncated(address: IpAddr) -> IpAddr {
    match canonical(address) {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            IpAddr::from([a, b, c, 0])
        }
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !((1u128 << 80) - 1))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_keys_merge_a_v6_64_and_flatten_mapped_v4() {
        let key = |s: &str| ClientKey::of(s.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("192.0.2.1").address().to_string(), "192.0.2.1");
        assert_eq!(key("2001:db8::1").address().to_string(), "2001:db8::");
    }

    #[test]
    fn cidr_sets_hold_networks_single_hosts_and_mapped_addresses() {
        let set = CidrSet::new(["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"].map(|s| s.parse().unwrap()));
        let has = |s: &str| set.contains(s.parse().unwrap());
        assert!(has("10.200.1.1") && has("192.0.2.7") && has("2001:db8:1::1") && has("::ffff:10.0.0.1"));
        assert!(!has("11.0.0.1") && !has("192.0.2.8") && !has("2001:db9::1"));
        assert!(!CidrSet::default().contains("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn truncation_keeps_24_and_48_bits() {
        assert_eq!(truncated("192.0.2.77".parse().unwrap()).to_string(), "192.0.2.0");
        assert_eq!(truncated("2001:db8:1:2:3::4".parse().unwrap()).to_string(), "2001:db8:1::");
    }
}
