//! Endpoints that a name stands for: all its A and AAAA records, or its SRV records (RFC 2782).
//!
//! A name is asked for again when its time to live is over, within bounds, and a little earlier or later than that:
//! a thousand names do not ask in one moment. Both families must answer, or half the endpoints would be gone when one
//! resolver hiccups. A failure is asked again sooner. The answer "none" must stand for a while before it counts.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::{MEMBERS_MAX, Member, Update, Watch};
use crate::base::address::EndpointAddress;
use crate::base::clock::{self, Millis};
use crate::config::model::{Resolution, Source};
use crate::net::dns::{Resolver, name, plain};

/// Time after a failure before the next question; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
/// See [`RETRY_MIN`].
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Names that are asked for at once, over all sources: each takes a socket or two.
const UNDER_WAY_MAX: usize = 64;
/// See [`UNDER_WAY_MAX`].
static PLACES: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(UNDER_WAY_MAX);
/// Targets of SRV records whose addresses are asked for.
const TARGETS_MAX: usize = 64;
/// Largest weight of an endpoint; those of SRV records go to 65,535 and are scaled to it.
const WEIGHT_MAX: u32 = 1_000;

/// What a question found, and for how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    members: Vec<Member>,
    ttl: Duration,
}

/// Watches one name.
pub struct DnsWatch {
    source: Source,
    settings: Resolution,
    resolver: Resolver,
    /// How long to wait before the next question.
    pause: Duration,
    failures: u32,
    /// Since when the answer has been "none"; `None` while it is not.
    empty_since: Option<Millis>,
    /// Moves the times of different names apart.
    seed: u64,
}

impl DnsWatch {
    /// Watches a `dns://` or `srv://` source.
    pub fn new(source: &Source, settings: &Resolution) -> DnsWatch {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hash = DefaultHasher::new();
        source.hash(&mut hash);
        DnsWatch {
            source: source.clone(),
            resolver: Resolver::new(&settings.resolvers),
            settings: settings.clone(),
            pause: Duration::ZERO,
            failures: 0,
            empty_since: None,
            seed: hash.finish() ^ clock::micros(),
        }
    }

    async fn ask(&self) -> Result<Found, String> {
        match &self.source {
            Source::Dns(host, port) => {
                let (addresses, ttl) = addresses(&self.resolver, &name(host)?).await?;
                let members = addresses.into_iter().map(|ip| at(ip, *port, None)).collect();
                Ok(Found { members, ttl })
            }
            Source::Srv(service) => services(&self.resolver, &name(service)?).await,
            other => Err(format!("{other} is no question to name servers")),
        }
    }

    /// Decides what an answer means, and when to ask again. `None`: there is nothing to tell.
    fn judge(&mut self, now: Millis, answer: Result<Found, String>) -> Option<Update> {
        let found = match answer {
            Err(why) => {
                self.failures = self.failures.saturating_add(1);
                self.pause = (RETRY_MIN * (1 << self.failures.min(6).saturating_sub(1))).min(RETRY_MAX);
                return Some(Update::Trouble(self.source.clone(), why));
            }
            Ok(found) => found,
        };
        self.failures = 0;
        self.pause = found.ttl.clamp(self.settings.ttl_min, self.settings.ttl_max);
        if !found.members.is_empty() {
            self.empty_since = None;
            return Some(Update::Members(self.source.clone(), found.members));
        }
        let since = *self.empty_since.get_or_insert(now);
        let held = Duration::from_millis(now.0.saturating_sub(since.0));
        if held >= self.settings.hold {
            return Some(Update::Members(self.source.clone(), Vec::new()));
        }
        self.pause = self.pause.min(self.settings.hold - held).max(Duration::from_millis(100));
        let hold = self.settings.hold;
        let why =
            format!("the name has no address; if that stays so for {hold:?}, its endpoints are given up");
        Some(Update::Trouble(self.source.clone(), why))
    }

    /// The pause give or take 10 %.
    fn jittered(&mut self) -> Duration {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.pause.mul_f64(0.9 + 0.2 * ((self.seed >> 40) as f64 / (1u64 << 24) as f64))
    }
}

#[async_trait]
impl Watch for DnsWatch {
    async fn next(&mut self) -> Option<Update> {
        loop {
            let pause = self.jittered();
            tokio::time::sleep(pause).await;
            let place = PLACES.acquire().await;
            let answer = self.ask().await;
            drop(place);
            if let Some(update) = self.judge(clock::now(), answer) {
                return Some(update);
            }
        }
    }
}

fn at(ip: IpAddr, port: u16, weight: Option<u32>) -> Member {
    Member { weight, ..Member::at(EndpointAddress::Socket((ip, port).into())) }
}

/// All addresses of a name and the shortest time to live; none where there is no such name.
async fn addresses(resolver: &Resolver, name: &Name) -> Result<(Vec<IpAddr>, Duration), String> {
    let (v4, v6) = tokio::join!(resolver.find(name, RecordType::A), resolver.find(name, RecordType::AAAA));
    let records: Vec<Record> = v4?.into_iter().chain(v6?).flatten().collect();
    let ip = |record: &Record| match &record.data {
        RData::A(a) => Some(IpAddr::from(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::from(aaaa.0)),
        _ => None,
    };
    let found: BTreeSet<IpAddr> = records.iter().filter_map(ip).collect();
    Ok((found.into_iter().take(MEMBERS_MAX).collect(), shortest(&records)))
}

/// RFC 2782: of the records with the lowest priority, each address of each target, by weight. Those of higher numbers
/// are for when nothing of the lower ones is there.
async fn services(resolver: &Resolver, service: &Name) -> Result<Found, String> {
    let records = resolver.find(service, RecordType::SRV).await?.unwrap_or_default();
    let mut targets: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.data {
            // "." as target: the service is decidedly not available there.
            RData::SRV(srv) if !srv.target.is_root() => Some(srv),
            _ => None,
        })
        .collect();
    targets.sort_by_key(|srv| srv.priority);
    let largest = targets.iter().map(|srv| srv.weight).max().unwrap_or(0);
    let mut found = Found { members: Vec::new(), ttl: shortest(&records) };
    let mut priority = None;
    for srv in targets.into_iter().take(TARGETS_MAX) {
        if priority.is_some_and(|priority| priority != srv.priority) && !found.members.is_empty() {
            break;
        }
        priority = Some(srv.priority);
        let (ips, ttl) = addresses(resolver, &srv.target)
            .await
            .map_err(|why| format!("of the target {}: {why}", plain(&srv.target)))?;
        found.ttl = found.ttl.min(ttl);
        let weight = Some(scaled(srv.weight, largest));
        found.members.extend(ips.into_iter().map(|ip| at(ip, srv.port, weight)));
    }
    Ok(found)
}

/// A weight of a SRV record as a weight of an endpoint. Zero is "hardly ever": 1.
fn scaled(weight: u16, largest: u16) -> u32 {
    let (weight, largest) = (u32::from(weight), u32::from(largest));
    if largest <= WEIGHT_MAX { weight.max(1) } else { (weight * WEIGHT_MAX / largest).max(1) }
}

fn shortest(records: &[Record]) -> Duration {
    Duration::from_secs(records.iter().map(|record| record.ttl).min().unwrap_or(0).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Resolution {
        let seconds = Duration::from_secs;
        Resolution { resolvers: Vec::new(), ttl_min: seconds(5), ttl_max: seconds(60), hold: seconds(30) }
    }

    fn found(ttl: u64, ports: &[u16]) -> Result<Found, String> {
        let members = ports.iter().map(|port| at([10, 0, 0, 1].into(), *port, None)).collect();
        Ok(Found { members, ttl: Duration::from_secs(ttl) })
    }

    #[test]
    fn the_time_to_live_is_kept_within_its_bounds_and_failures_are_asked_again_sooner() {
        let mut watch = DnsWatch::new(&Source::Dns("api.internal".into(), 80), &settings());
        for (ttl, pause) in [(0, 5), (20, 20), (86_400, 60)] {
            assert!(matches!(watch.judge(Millis(0), found(ttl, &[1])), Some(Update::Members(..))));
            assert_eq!(watch.pause, Duration::from_secs(pause));
            let jittered = watch.jittered();
            assert!(jittered >= watch.pause.mul_f64(0.9) && jittered <= watch.pause.mul_f64(1.1));
        }
        let pauses: Vec<u64> = (0..8)
            .map(|_| {
                let told = watch.judge(Millis(0), Err("nobody answers".into()));
                assert!(matches!(told, Some(Update::Trouble(..))));
                watch.pause.as_secs()
            })
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        assert!(watch.judge(Millis(0), found(7, &[1])).is_some());
        assert_eq!(watch.pause, Duration::from_secs(7));
    }

    #[test]
    fn the_answer_none_counts_only_when_it_stands() {
        let mut watch = DnsWatch::new(&Source::Dns("api.internal".into(), 80), &settings());
        watch.judge(Millis(0), found(20, &[1, 2]));
        for now in [1_000, 15_000, 30_999] {
            assert!(matches!(watch.judge(Millis(now), found(0, &[])), Some(Update::Trouble(..))), "{now}");
        }
        assert_eq!(watch.pause, Duration::from_millis(100), "asked again when the time is over");
        let told = watch.judge(Millis(31_000), found(0, &[]));
        assert!(matches!(told, Some(Update::Members(_, members)) if members.is_empty()));
        watch.judge(Millis(32_000), found(0, &[1]));
        assert!(matches!(watch.judge(Millis(33_000), found(0, &[])), Some(Update::Trouble(..))), "anew");
    }

    #[test]
    fn weights_of_srv_records_are_scaled_only_where_they_must() {
        assert_eq!([0, 1, 500].map(|weight| scaled(weight, 500)), [1, 1, 500]);
        assert_eq!([0, 1, 6_553, 65_535].map(|weight| scaled(weight, 65_535)), [1, 1, 99, 1_000]);
    }
}
