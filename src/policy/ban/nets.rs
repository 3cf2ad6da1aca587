//! Networks that are banned, as a tree: a look costs the length of an address, however many there are.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::Hit;
use super::book::Book;
use crate::config::model::Mode;

#[derive(Default)]
pub(super) struct Nets {
    v4: PrefixMap<Ipv4Net, Until>,
    v6: PrefixMap<Ipv6Net, Until>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Until {
    ns: u64,
    mode: Mode,
}

impl Nets {
    pub(super) fn build(book: &Book) -> Nets {
        let mut nets = Nets::default();
        for (net, ns) in &book.file {
            nets.add(*net, Until { ns: *ns, mode: book.file_mode });
        }
        for (key, entry) in book.commanded() {
            nets.add(key.net, Until { ns: entry.until_ns, mode: Mode::Enforce });
        }
        nets
    }

    fn add(&mut self, net: IpNet, new: Until) {
        // Of two for one network the stricter counts, of two alike the longer.
        let stricter = |old: Option<&Until>| {
            old.is_none_or(|old| (new.mode == Mode::Enforce, new.ns) > (old.mode == Mode::Enforce, old.ns))
        };
        match net {
            IpNet::V4(net) => {
                let net = net.trunc();
                if stricter(self.v4.get(&net)) {
                    self.v4.insert(net, new);
                }
            }
            IpNet::V6(net) => {
                let net = net.trunc();
                if stricter(self.v6.get(&net)) {
                    self.v6.insert(net, new);
                }
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// The longest of those that are enforced, else of those in shadow. Loopback is meant only where it is named itself.
    pub(super) fn look(&self, client: IpAddr, now: u64) -> Option<Hit> {
        let lasting = |until: &Until| (until.ns > now).then_some((until.mode == Mode::Enforce, until.ns));
        let found = match client {
            IpAddr::V4(address) => {
                let cover = self.v4.cover(&Ipv4Net::from(address));
                let named = |net: Ipv4Net| !address.is_loopback() || net.prefix_len() >= 8;
                cover.filter(|(net, _)| named(*net)).filter_map(|(_, until)| lasting(until)).max()
            }
            IpAddr::V6(address) => {
                let cover = self.v6.cover(&Ipv6Net::from(address));
                let named = |net: Ipv6Net| !address.is_loopback() || net.prefix_len() == 128;
                cover.filter(|(net, _)| named(*net)).filter_map(|(_, until)| lasting(until)).max()
            }
        };
        found.map(|(enforced, until)| Hit {
            left: (until != u64::MAX).then(|| Duration::from_nanos(until - now)),
            mode: if enforced { Mode::Enforce } else { Mode::Shadow },
            by_offences: false,
        })
    }
}
