//! Endpoints that a name stands for: all its A and AAAA records, or its SRV records (RFC 2782).
//!
//! A name is asked for again when its time to live is over, within bounds, and a little earlier or later than that:
//! a thousand names do not ask in one moment. A family that is not answered keeps the addresses that it had, and keeps
//! nothing from the other one; so do the targets of SRV records. A failure is asked again sooner. The answer "none" must
//! stand for a while before it counts.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::task::JoinSet;

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
/// Of those, asked for at once.
const TARGETS_AT_ONCE: usize = 8;
/// Largest weight of an endpoint; those of SRV records go to 65,535 and are scaled to it.
const WEIGHT_MAX: u32 = 1_000;

/// What a question found, and for how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    members: Vec<Member>,
    ttl: Duration,
    /// Why some of them are what was found earlier, or are not there.
    missing: Option<String>,
}

/// What was found last, by name and family.
type Memory = HashMap<(Name, RecordType), Vec<IpAddr>>;

/// The answers about both families of a name.
type Families = [Result<Option<Vec<Record>>, String>; 2];

/// All addresses of a name.
#[derive(Debug, Default)]
struct Addresses {
    ips: BTreeSet<IpAddr>,
    /// The shortest time to live; zero where nothing has one.
    ttl: Duration,
    /// Why a family was not answered, and whether one was.
    missing: Option<String>,
    answered: bool,
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
    memory: Memory,
    /// Endpoints are known of which this watch cannot say to which name they belong: they stay until all is answered.
    inherited: bool,
    /// Moves the times of different names apart.
    seed: u64,
}

impl DnsWatch {
    /// Watches a `dns://` or `srv://` source. `known`: what was found when it was watched in another way.
    pub fn new(source: &Source, settings: &Resolution, known: &[Member]) -> DnsWatch {
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
            memory: inherit(source, known),
            inherited: matches!(source, Source::Srv(_)) && !known.is_empty(),
            seed: hash.finish() ^ clock::micros(),
        }
    }

    async fn ask(&mut self) -> Result<Found, String> {
        match &self.source {
            Source::Dns(host, port) => {
                let name = name(host)?;
                let answers = families(&self.resolver, &name).await;
                let Addresses { ips, ttl, missing, answered } = complete(&mut self.memory, &name, answers);
                match missing {
                    Some(why) if !answered => Err(why),
                    missing => {
                        let members = ips.into_iter().map(|ip| at(ip, *port, None)).collect();
                        Ok(Found { members, ttl, missing })
                    }
                }
            }
            Source::Srv(service) => {
                let found = services(&self.resolver, &name(service)?, &mut self.memory).await?;
                match found.missing {
                    Some(why) if self.inherited => Err(why),
                    _ => {
                        self.inherited = false;
                        Ok(found)
                    }
                }
            }
            other => Err(format!("{other} is no question to name servers")),
        }
    }

    /// Decides what an answer means, and when to ask again. `None`: there is nothing to tell.
    fn judge(&mut self, now: Millis, answer: Result<Found, String>) -> Option<Update> {
        let found = match answer {
            Err(why) => {
                self.pause = self.backoff();
                return Some(Update::Trouble(self.source.clone(), why));
            }
            Ok(found) => found,
        };
        let ttl = found.ttl.clamp(self.settings.ttl_min, self.settings.ttl_max);
        if let Some(why) = found.missing {
            self.pause = self.backoff().min(ttl);
            if found.members.is_empty() {
                return Some(Update::Trouble(self.source.clone(), why));
            }
            self.empty_since = None;
            return Some(Update::Partly(self.source.clone(), found.members, why));
        }
        self.failures = 0;
        self.pause = ttl;
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

    /// How long to wait after one more failure.
    fn backoff(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        (RETRY_MIN * (1 << self.failures.min(6).saturating_sub(1))).min(RETRY_MAX)
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

/// What was known of a name before it was watched in this way.
fn inherit(source: &Source, known: &[Member]) -> Memory {
    let mut memory = Memory::new();
    let Source::Dns(host, _) = source else { return memory };
    let Ok(name) = name(host) else { return memory };
    for member in known {
        if let EndpointAddress::Socket(address) = &member.address {
            let kind = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
            memory.entry((name.clone(), kind)).or_default().push(address.ip());
        }
    }
    memory
}

async fn families(resolver: &Resolver, name: &Name) -> Families {
    let (v4, v6) = tokio::join!(resolver.find(name, RecordType::A), resolver.find(name, RecordType::AAAA));
    [v4, v6]
}

/// All addresses of a name. A family that is not answered has those it had; one that has none, or of which the answer is
/// that there is no such name, has none.
fn complete(memory: &mut Memory, name: &Name, answers: Families) -> Addresses {
    let mut all = Addresses::default();
    let mut ttl: Option<Duration> = None;
    for (kind, answer) in [RecordType::A, RecordType::AAAA].into_iter().zip(answers) {
        let known = memory.entry((name.clone(), kind)).or_default();
        match answer {
            Ok(records) => {
                let records = records.unwrap_or_default();
                let ip = |record: &Record| match &record.data {
                    RData::A(a) => Some(IpAddr::from(a.0)),
                    RData::AAAA(aaaa) => Some(IpAddr::from(aaaa.0)),
                    _ => None,
                };
                *known = records.iter().filter_map(ip).take(MEMBERS_MAX).collect();
                if !records.is_empty() {
                    let this = shortest(&records);
                    ttl = Some(ttl.map_or(this, |other| other.min(this)));
                }
                all.answered = true;
            }
            Err(why) => {
                all.missing.get_or_insert(why);
            }
        }
        all.ips.extend(known.iter().copied());
    }
    all.ttl = ttl.unwrap_or_default();
    all
}

/// RFC 2782: of the records with the lowest priority, each address of each target, by weight. Those of higher numbers
/// are for when nothing of the lower ones is there.
async fn services(resolver: &Resolver, service: &Name, memory: &mut Memory) -> Result<Found, String> {
    let records = resolver.find(service, RecordType::SRV).await?.unwrap_or_default();
    let mut targets: Vec<SRV> = records
        .iter()
        .filter_map(|record| match &record.data {
            // "." as target: the service is decidedly not available there.
            RData::SRV(srv) if !srv.target.is_root() => Some(srv.clone()),
            _ => None,
        })
        .collect();
    targets.sort_by_key(|srv| srv.priority);
    let largest = targets.iter().map(|srv| srv.weight).max().unwrap_or(0);
    targets.truncate(TARGETS_MAX);
    memory.retain(|(name, _), _| targets.iter().any(|srv| srv.target == *name));
    let mut found = Found { members: Vec::new(), ttl: shortest(&records), missing: None };
    for equals in targets.chunk_by(|one, next| one.priority == next.priority) {
        let answers = of_all(resolver, equals).await;
        for (srv, answers) in equals.iter().zip(answers) {
            let Addresses { ips, ttl, missing, .. } = complete(memory, &srv.target, answers);
            if let Some(why) = missing {
                found.missing.get_or_insert(format!("of the target {}: {why}", plain(&srv.target)));
            } else {
                found.ttl = found.ttl.min(ttl);
            }
            let weight = Some(scaled(srv.weight, largest));
            found.members.extend(ips.into_iter().map(|ip| at(ip, srv.port, weight)));
        }
        if !found.members.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// The answers about each target, some at a time: one name server that is silent would hold up all after it.
async fn of_all(resolver: &Resolver, targets: &[SRV]) -> Vec<Families> {
    let mut all = Vec::new();
    for some in targets.chunks(TARGETS_AT_ONCE) {
        let mut asked = JoinSet::new();
        for (place, srv) in some.iter().enumerate() {
            let (resolver, name) = (resolver.clone(), srv.target.clone());
            asked.spawn(async move { (place, families(&resolver, &name).await) });
        }
        let mut answers: Vec<_> = asked.join_all().await;
        answers.sort_unstable_by_key(|(place, _)| *place);
        all.extend(answers.into_iter().map(|(_, families)| families));
    }
    all
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
        Ok(Found { members, ttl: Duration::from_secs(ttl), missing: None })
    }

    #[test]
    fn the_time_to_live_is_kept_within_its_bounds_and_failures_are_asked_again_sooner() {
        let mut watch = DnsWatch::new(&Source::Dns("api.internal".into(), 80), &settings(), &[]);
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
        let mut watch = DnsWatch::new(&Source::Dns("api.internal".into(), 80), &settings(), &[]);
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

    /// A family's answer: its addresses, by the last part, with this time to live.
    fn family(kind: RecordType, ttl: u32, lasts: &[u8]) -> Result<Option<Vec<Record>>, String> {
        let record = |last: &u8| {
            let data = match kind {
                RecordType::A => RData::A(std::net::Ipv4Addr::new(10, 0, 0, *last).into()),
                _ => RData::AAAA(std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, (*last).into()).into()),
            };
            Record::from_rdata(name("api.internal").unwrap(), ttl, data)
        };
        Ok(Some(lasts.iter().map(record).collect()))
    }

    #[test]
    fn regression_a_family_that_is_not_answered_keeps_its_addresses_and_holds_up_nothing_of_the_other() {
        let (mut memory, name) = (Memory::new(), name("api.internal").unwrap());
        let v4 = |lasts: &[u8]| family(RecordType::A, 20, lasts);
        let v6 = |lasts: &[u8]| family(RecordType::AAAA, 30, lasts);
        let failed = || Err("AAAA cannot be looked up".to_owned());
        let mut asked = |answers: Families| {
            let all = complete(&mut memory, &name, answers);
            let ips: Vec<String> = all.ips.iter().map(IpAddr::to_string).collect();
            (ips.join(" "), all.ttl.as_secs(), all.missing.is_some(), all.answered)
        };
        let is = |ips: &str, ttl, missing, answered| (ips.to_owned(), ttl, missing, answered);
        assert_eq!(
            asked([v4(&[1]), failed()]),
            is("10.0.0.1", 20, true, true),
            "nothing is known of the other"
        );
        assert_eq!(asked([v4(&[1]), v6(&[1])]), is("10.0.0.1 fd00::1", 20, false, true));
        assert_eq!(asked([v4(&[2]), failed()]), is("10.0.0.2 fd00::1", 20, true, true));
        assert_eq!(asked([failed(), v6(&[3])]), is("10.0.0.2 fd00::3", 30, true, true));
        assert_eq!(asked([failed(), failed()]), is("10.0.0.2 fd00::3", 0, true, false));
        assert_eq!(asked([v4(&[2]), Ok(None)]), is("10.0.0.2", 20, false, true), "no such name is an answer");
        assert_eq!(asked([v4(&[2]), Ok(Some(Vec::new()))]), is("10.0.0.2", 20, false, true), "so is none");
        assert_eq!(
            asked([failed(), Ok(None)]),
            is("10.0.0.2", 0, true, true),
            "which says nothing of the other"
        );
    }

    #[test]
    fn half_an_answer_is_told_with_its_trouble_and_asked_again_soon() {
        let mut watch = DnsWatch::new(&Source::Dns("api.internal".into(), 80), &settings(), &[]);
        let half = |ports: &[u16]| {
            found(50, ports).map(|found| Found { missing: Some("no answer".into()), ..found })
        };
        for pause in [1, 2, 4] {
            let told = watch.judge(Millis(0), half(&[1]));
            assert!(
                matches!(told, Some(Update::Partly(_, members, why)) if members.len() == 1 && why == "no answer")
            );
            assert_eq!(watch.pause, Duration::from_secs(pause));
        }
        // None and a failure is no answer: nothing is taken away, however long.
        for now in [0, 100_000] {
            assert!(matches!(watch.judge(Millis(now), half(&[])), Some(Update::Trouble(..))));
        }
        assert!(matches!(watch.judge(Millis(0), found(50, &[1])), Some(Update::Members(..))));
        assert_eq!(watch.pause, Duration::from_secs(50));
    }

    #[test]
    fn what_was_known_before_the_settings_changed_stands_in_too() {
        let known: Vec<Member> = ["10.0.0.1", "fd00::1"].map(|ip| at(ip.parse().unwrap(), 80, None)).into();
        let mut watch = DnsWatch::new(&Source::Dns("api.internal".into(), 80), &settings(), &known);
        let answers = [family(RecordType::A, 9, &[7]), Err("no answer".into())];
        let all = complete(&mut watch.memory, &name("api.internal").unwrap(), answers);
        let ips: Vec<String> = all.ips.iter().map(IpAddr::to_string).collect();
        assert_eq!(ips, ["10.0.0.7", "fd00::1"]);
        assert!(DnsWatch::new(&Source::Srv("_http._tcp.api.internal".into()), &settings(), &known).inherited);
    }

    #[test]
    fn weights_of_srv_records_are_scaled_only_where_they_must() {
        assert_eq!([0, 1, 500].map(|weight| scaled(weight, 500)), [1, 1, 500]);
        assert_eq!([0, 1, 6_553, 65_535].map(|weight| scaled(weight, 65_535)), [1, 1, 99, 1_000]);
    }
}
