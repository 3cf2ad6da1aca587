//! What limits would fit what was seen, what they would have refused, and how far that can be trusted.
//!
//! A limit is twice what the busiest of ordinary clients sent in a window: ordinary are all but the one in a hundred
//! that sent most, and but those that sent a large part of everything alone. Where even the busiest sent no more than
//! twice that, it counts as ordinary too.

use std::sync::Arc;

use super::{Client, SiteSeen, Spread};
use crate::base::address::ClientKey;

/// A limit is at least this: pages with some images load many files at once.
const LIMIT_MIN: u64 = 20;
/// The most that a rate may say.
const LIMIT_MAX: u64 = 10_000_000;
/// A client that sent more than this part of a site's requests, in a thousand, does not shape the limit.
const LARGE_PART: u64 = 250;
/// Clients beside such a one below which nothing can be said about it.
const OTHERS_MIN: usize = 10;
/// Below these the data is thin.
const REQUESTS_MIN: u64 = 1_000;
const CLIENTS_MIN: u64 = 20;
const SECONDS_MIN: u64 = 60;
/// The smallest bound of a body.
const BODY_MIN: u64 = 64 << 10;
/// The smallest caps of connections: a browser over HTTP/1.1 opens six, and people share addresses.
const CLIENT_CAP_MIN: u64 = 32;
const SITE_CAP_MIN: u64 = 64;

/// All of it.
#[derive(Debug)]
pub struct Report {
    /// The sites that had requests, the busiest first.
    pub sites: Vec<SiteReport>,
    /// Sites that had none.
    pub silent: usize,
    /// For each connection: which it was of those its client had open.
    pub connections: Spread,
    /// What `max_connections_per_client` could be; `None` where there was no connection of which this can be said.
    pub cap: Option<Cap>,
}

/// What was seen of a site, and what would fit it.
#[derive(Debug)]
pub struct SiteReport {
    /// The site.
    pub name: Arc<str>,
    /// What was seen.
    pub seen: SiteSeen,
    /// How many clients; reckoned where not all were looked at.
    pub clients: u64,
    /// The client with most requests, and its part of them in a thousand.
    pub top: Option<(ClientKey, u64)>,
    /// A rate limit.
    pub limit: Limit,
    /// A bound for bodies.
    pub body: Body,
    /// Why this is to be read with care.
    pub warnings: Vec<String>,
}

/// A rate limit by client address over [`super::WINDOW`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Requests in a window, and at once.
    pub count: u64,
    /// Requests that it would have refused.
    pub refused: u64,
    /// Clients that it would have refused something.
    pub clients: u64,
}

/// `max_body`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    /// Bytes.
    pub max: u64,
}

/// A cap on connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    /// Open at once.
    pub max: u64,
    /// Connections that it would have refused.
    pub refused: u64,
}

impl Report {
    /// What comes of what was seen in so many seconds; `names` are those of the sites.
    pub fn new(names: &[Arc<str>], seen: (Vec<SiteSeen>, Spread), seconds: u64) -> Report {
        let (sites, connections) = seen;
        let (busy, silent): (Vec<_>, Vec<_>) =
            names.iter().zip(sites).partition(|(_, seen)| seen.requests > 0);
        let mut sites: Vec<_> =
            busy.into_iter().map(|(name, seen)| SiteReport::new(name.clone(), seen, seconds)).collect();
        sites.sort_by(|a, b| b.seen.requests.cmp(&a.seen.requests).then_with(|| a.name.cmp(&b.name)));
        let cap = (connections.count() > 0).then(|| {
            let max =
                round_up(2 * ordinary(connections.quantile(999), connections.max())).max(CLIENT_CAP_MIN);
            Cap { max, refused: connections.above(max) }
        });
        Report { sites, silent: silent.len(), connections, cap }
    }
}

impl SiteReport {
    fn new(name: Arc<str>, seen: SiteSeen, seconds: u64) -> SiteReport {
        let part = |client: &Client| client.requests.saturating_mul(1000) / seen.requests.max(1);
        let top = seen.clients.iter().max_by_key(|client| client.requests);
        let top = top.map(|client| (client.key, part(client)));
        let others = seen.clients.iter().filter(|client| part(client) <= LARGE_PART);
        let others: Vec<u64> = others.map(|client| u64::from(client.most)).collect();
        let all: Vec<u64> = seen.clients.iter().map(|client| u64::from(client.most)).collect();
        let shaping = if others.len() >= OTHERS_MIN { &others } else { &all };
        // They stand in order.
        let busiest = shaping.last().copied().unwrap_or(0);
        let most_of_them = shaping.len().saturating_mul(99).div_ceil(100).saturating_sub(1);
        let usual = ordinary(shaping.get(most_of_them).copied().unwrap_or(0), busiest);
        let count = round_up(2 * usual).clamp(LIMIT_MIN, LIMIT_MAX);
        let above = all.iter().filter(|most| **most > count).count() as u64;
        let limit = Limit {
            count,
            refused: seen.windows.excess(count).min(seen.requests),
            clients: above.saturating_mul(seen.one_in),
        };
        let clients = (all.len() as u64).saturating_mul(seen.one_in);
        let left_out = all.len() - shaping.len();
        let warnings = warnings(&seen, clients, top.map_or(0, |(_, part)| part), left_out, seconds);
        let body = Body {
            max: seen
                .bodies
                .max()
                .saturating_mul(2)
                .max(BODY_MIN)
                .checked_next_power_of_two()
                .unwrap_or(u64::MAX),
        };
        SiteReport { name, clients, top, limit, body, warnings, seen }
    }
}

fn warnings(seen: &SiteSeen, clients: u64, top: u64, left_out: usize, seconds: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if seconds < SECONDS_MIN || seen.requests < REQUESTS_MIN || clients < CLIENTS_MIN {
        warnings.push(format!(
            "thin data: {} requests of {clients} clients in {seconds} s. Watch longer, at a busy time, before you \
             believe it",
            seen.requests
        ));
    }
    if top > LARGE_PART {
        let part = top / 10;
        warnings.push(match left_out {
            0 => format!(
                "one client sent {part} % of the requests and there are too few others to compare it with: the limit \
                 is shaped by it"
            ),
            _ => format!(
                "one client sent {part} % of the requests and was left out of the proposal: a proxy or a CDN in front \
                 (set `trusted_proxies`), an office behind one address, a monitor, or an attacker"
            ),
        });
    }
    if seen.one_in > 1 {
        warnings.push(format!(
            "too many clients to look at all: one in {} was, chosen by chance; what follows is reckoned from those",
            seen.one_in
        ));
    }
    if seen.too_large > 0 {
        warnings.push(format!(
            "{} requests were refused for their size by the `max_body` in force; how large they were is not known",
            seen.too_large
        ));
    }
    warnings
}

/// What `max_connections` of a site could be that had so many open at once.
pub fn site_cap(peak: u64) -> u64 {
    round_up(peak.saturating_mul(4)).max(SITE_CAP_MIN)
}

/// The busiest counts as ordinary where it is near the others.
fn ordinary(most_of_them: u64, busiest: u64) -> u64 {
    if busiest <= most_of_them.saturating_mul(2) { busiest } else { most_of_them }
}

/// The next number that people would write.
fn round_up(value: u64) -> u64 {
    const STEPS: [u64; 11] = [10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100];
    let mut scale = 1u64;
    while value > scale.saturating_mul(100) {
        scale = scale.saturating_mul(10);
    }
    let step = STEPS.iter().map(|step| step.saturating_mul(scale)).find(|step| *step >= value);
    if value < 10 { value } else { step.unwrap_or(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_up_to_what_people_write() {
        let up = [0, 7, 10, 11, 26, 81, 100, 101, 1_999, 60_000].map(round_up);
        assert_eq!(up, [0, 7, 10, 12, 30, 100, 100, 120, 2_000, 60_000]);
        assert!(round_up(u64::MAX) > u64::MAX / 2);
    }

    #[test]
    fn the_busiest_is_ordinary_where_it_is_near_the_others() {
        assert_eq!((ordinary(10, 20), ordinary(10, 21), ordinary(0, 5)), (20, 10, 0));
    }
}
