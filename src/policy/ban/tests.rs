//! Tests of bans, by a clock moved by hand.

use std::time::Duration;

use governor::clock::FakeRelativeClock;

use super::*;
use crate::base::outcome::Outcome;
use crate::base::unit::parse_rate;
use crate::config::model::BanRule;

type Fake = Bans<FakeRelativeClock>;

fn fake(entries: usize) -> (FakeRelativeClock, Fake, Arc<Table<FakeRelativeClock>>) {
    let clock = FakeRelativeClock::default();
    // The first nanosecond is the moment of what was forgotten.
    let buckets = Arc::new(Table::with_clock(1 << 16, clock.clone()));
    (clock.clone(), Bans::with_clock(entries, clock), buckets)
}

fn said(after: &str, time: u64, mode: Mode) -> BanRule {
    let time = Duration::from_secs(time);
    BanRule { after: parse_rate(after).unwrap(), time, offences: vec![Offence::RateLimit], mode }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn order(net: &str, seconds: u64) -> Order {
    Order { net: file::net(net).unwrap(), time: Duration::from_secs(seconds), why: "abuse".into() }
}

fn enforced(bans: &Fake, client: &str) -> bool {
    bans.look(ip(client), None).is_some_and(|hit| hit.mode == Mode::Enforce)
}

#[test]
fn so_many_offences_ban_a_client_for_so_long_and_nobody_else() {
    let (clock, bans, buckets) = fake(16);
    let rule = Rule::compile(&said("3 per 1m", 600, Mode::Enforce), None, &buckets);
    let offend = |client: &str| bans.offend(&rule, ip(client), Offence::RateLimit);
    assert_eq!([offend("192.0.2.1"), offend("192.0.2.1"), offend("192.0.2.1")], [false, false, true]);
    assert!(enforced(&bans, "192.0.2.1") && enforced(&bans, "::ffff:192.0.2.1"));
    assert!(!enforced(&bans, "192.0.2.2"));
    assert!(!offend("192.0.2.1"), "who is banned is not banned anew");
    let (_, entry, left) = bans.list().remove(0);
    assert_eq!((entry.by, left), (By::Offences, Duration::from_secs(600)));
    assert!(entry.why.contains("3 offences") && entry.why.contains("rate-limit"), "{}", entry.why);
    clock.advance(Duration::from_secs(599));
    let hit = bans.look(ip("192.0.2.1"), None).unwrap();
    assert_eq!(hit.left, Some(Duration::from_secs(1)));
    clock.advance(Duration::from_secs(1));
    assert!(!enforced(&bans, "192.0.2.1"));
    assert!(bans.sweep() && bans.list().is_empty() && !bans.sweep());
}

#[test]
fn an_offence_does_not_shorten_a_ban_by_command() {
    let (clock, bans, buckets) = fake(16);
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), None, &buckets);
    bans.ban(order("192.0.2.1", 86_400)).unwrap();
    for _ in 0..5 {
        assert!(!bans.offend(&rule, ip("192.0.2.1"), Offence::RateLimit));
    }
    clock.advance(Duration::from_secs(80_000));
    assert!(enforced(&bans, "192.0.2.1"));
    let list = bans.list();
    assert_eq!((list.len(), list[0].1.by), (1, By::Command));
}

#[test]
fn offences_far_apart_and_those_not_listed_ban_nobody() {
    let (clock, bans, buckets) = fake(16);
    let rule = Rule::compile(&said("3 per 1m", 600, Mode::Enforce), None, &buckets);
    for _ in 0..20 {
        assert!(!bans.offend(&rule, ip("192.0.2.1"), Offence::RateLimit));
        clock.advance(Duration::from_secs(21));
        assert!(!bans.offend(&rule, ip("192.0.2.2"), Offence::Flood));
    }
    assert!(bans.look(ip("192.0.2.2"), None).is_none());
}

#[test]
fn a_v6_client_is_its_64_and_loopback_is_banned_only_by_name() {
    let (_, bans, buckets) = fake(16);
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), None, &buckets);
    assert!(bans.offend(&rule, ip("2001:db8::1"), Offence::RateLimit));
    assert!(enforced(&bans, "2001:db8::ffff") && !enforced(&bans, "2001:db8:0:1::1"));
    for loopback in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert!(!bans.offend(&rule, ip(loopback), Offence::RateLimit));
    }
    bans.ban(order("0.0.0.0/0", 60)).unwrap();
    bans.ban(order("::/0", 60)).unwrap();
    assert!(enforced(&bans, "198.51.100.1") && enforced(&bans, "2001:db8:9::1"));
    assert!(!enforced(&bans, "127.0.0.1") && !enforced(&bans, "::1"));
    bans.ban(order("127.0.0.1", 60)).unwrap();
    bans.ban(order("::1", 60)).unwrap();
    assert!(enforced(&bans, "127.0.0.1") && enforced(&bans, "::1") && !enforced(&bans, "127.0.0.2"));
}

#[test]
fn a_content_delivery_network_that_nobody_trusts_is_banned_by_command_alone() {
    let (_, bans, buckets) = fake(16);
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), None, &buckets);
    let edge = trust::find("cloudflare").unwrap()[0].addr().to_string();
    assert!(!bans.offend(&rule, ip(&edge), Offence::RateLimit) && !enforced(&bans, &edge));
    bans.ban(order(&edge, 60)).unwrap();
    assert!(enforced(&bans, &edge));
}

#[test]
fn a_ban_of_one_site_holds_there_alone() {
    let (_, bans, buckets) = fake(16);
    let (shop, blog): (Arc<str>, Arc<str>) = ("shop".into(), "blog".into());
    let rule = |site| Rule::compile(&said("1 per 1m", 600, Mode::Enforce), Some(site), &buckets);
    let (of_shop, of_blog) = (rule(&shop), rule(&blog));
    assert!(bans.offend(&of_shop, ip("192.0.2.1"), Offence::RateLimit));
    assert!(bans.look(ip("192.0.2.1"), None).is_none(), "not at the door");
    assert!(bans.look(ip("192.0.2.1"), Some(&of_shop.scope)).is_some());
    assert!(bans.look(ip("192.0.2.1"), Some(&of_blog.scope)).is_none());
    // A rule compiled again, as in a reload, is the same one.
    assert!(bans.look(ip("192.0.2.1"), Some(&rule(&shop).scope)).is_some());
}

#[test]
fn what_is_in_shadow_refuses_nobody_and_hides_nothing_that_does() {
    let (_, bans, buckets) = fake(16);
    let shadow = Rule::compile(&said("1 per 1m", 600, Mode::Shadow), None, &buckets);
    assert!(bans.offend(&shadow, ip("192.0.2.1"), Offence::RateLimit));
    assert_eq!(bans.look(ip("192.0.2.1"), None).map(|hit| hit.mode), Some(Mode::Shadow));
    bans.ban(order("192.0.2.0/24", 60)).unwrap();
    assert!(enforced(&bans, "192.0.2.1"));
    bans.take_file(file::parse("203.0.113.0/24").0, Mode::Shadow);
    assert_eq!(
        bans.look(ip("203.0.113.9"), None),
        Some(Hit { left: None, mode: Mode::Shadow, by_offences: false })
    );
}

#[test]
fn commands_ban_and_unban_networks_and_a_wider_one_outlives_a_narrower() {
    let (clock, bans, buckets) = fake(16);
    bans.ban(order("192.0.2.0/24", 600)).unwrap();
    bans.ban(order("192.0.2.7", 60)).unwrap();
    clock.advance(Duration::from_secs(61));
    assert!(enforced(&bans, "192.0.2.7"), "by the network around it");
    assert!(bans.sweep());
    assert_eq!(bans.unban(file::net("192.0.2.7").unwrap()), 0);
    assert_eq!(bans.unban(file::net("192.0.2.0/24").unwrap()), 1);
    assert!(bans.look(ip("192.0.2.7"), None).is_none());
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), None, &buckets);
    assert!(bans.offend(&rule, ip("192.0.2.7"), Offence::RateLimit) && enforced(&bans, "192.0.2.7"));
    assert_eq!(bans.unban(file::net("192.0.2.7").unwrap()), 1, "also what was banned by offences");
    assert!(!enforced(&bans, "192.0.2.7"));
}

#[test]
fn a_file_is_replaced_as_a_whole_and_its_days_end() {
    let (_, bans, _) = fake(16);
    bans.take_file(file::parse("192.0.2.0/24\n198.51.100.1 until 2001-01-01\n").0, Mode::Enforce);
    assert!(enforced(&bans, "192.0.2.1") && !enforced(&bans, "198.51.100.1"));
    assert_eq!(bans.look(ip("192.0.2.1"), None).unwrap().left, None, "for ever");
    bans.take_file(file::parse("198.51.100.0/24").0, Mode::Enforce);
    assert!(!enforced(&bans, "192.0.2.1") && enforced(&bans, "198.51.100.1"));
    bans.take_file(Vec::new(), Mode::Enforce);
    assert!(bans.look(ip("198.51.100.1"), None).is_none() && bans.active.load(Ordering::Relaxed) == 0);
}

#[test]
fn when_there_is_no_room_the_ban_by_offences_that_ends_soonest_gives_way_never_a_command() {
    let (clock, bans, buckets) = fake(3);
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), None, &buckets);
    let offend = |client: &str| bans.offend(&rule, ip(client), Offence::RateLimit);
    bans.ban(order("203.0.113.1", 10)).unwrap();
    assert!(offend("192.0.2.1"));
    clock.advance(Duration::from_secs(1));
    assert!(offend("192.0.2.2") && offend("192.0.2.3"));
    assert!(!enforced(&bans, "192.0.2.1") && enforced(&bans, "192.0.2.2") && enforced(&bans, "203.0.113.1"));
    assert_eq!((bans.given_way(), bans.list().len()), (1, 3));
    for address in ["203.0.113.2", "203.0.113.3"] {
        bans.ban(order(address, 60)).unwrap();
    }
    assert!(bans.ban(order("203.0.113.4", 60)).unwrap_err().contains("no room"));
    assert!(!offend("192.0.2.9"), "only commands are left");
    bans.ban(order("203.0.113.2", 99)).unwrap();
}

#[test]
fn a_flood_of_offenders_stays_within_its_bound() {
    let (clock, bans, buckets) = fake(1000);
    clock.advance(Duration::from_secs(1));
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), None, &buckets);
    for number in 0..20_000u32 {
        let client = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        assert!(bans.offend(&rule, client, Offence::RateLimit));
    }
    assert_eq!((bans.list().len(), bans.given_way()), (1000, 19_000));
    assert!(bans.table.bytes() <= 1000 * PLACES * 16 + 4096);
    let banned = |number: u32| bans.look(IpAddr::from((0x0a00_0000 + number).to_be_bytes()), None).is_some();
    assert_eq!((0..20_000).filter(|number| banned(*number)).count(), 1000, "what the book knows is in force");
}

#[test]
fn what_was_stored_is_taken_in_again() {
    let (_, before, buckets) = fake(16);
    let site: Arc<str> = "shop".into();
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), Some(&site), &buckets);
    assert!(before.offend(&rule, ip("192.0.2.1"), Offence::RateLimit));
    before.ban(order("198.51.100.0/24", 60)).unwrap();
    let (_, after, buckets) = fake(16);
    for (key, entry, left) in before.list() {
        after.restore(key, Entry::stored(entry.since, entry.by, entry.why), left, &buckets);
    }
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), Some(&site), &buckets);
    assert!(after.look(ip("192.0.2.1"), Some(&rule.scope)).is_some() && enforced(&after, "198.51.100.9"));
    assert!(!after.sweep(), "nothing is new");
}

#[test]
fn outcomes_that_are_offences() {
    assert_eq!(offence(Outcome::RateLimited), Some(Offence::RateLimit));
    assert_eq!(offence(Outcome::BadFraming), Some(Offence::BadRequest));
    assert_eq!(offence(Outcome::ClientFlood), Some(Offence::Flood));
    for harmless in [Outcome::Served, Outcome::Banned, Outcome::ClientGone, Outcome::UpstreamTimeout] {
        assert_eq!(offence(harmless), None);
    }
}

#[test]
fn regression_what_a_virtual_patch_refuses_is_an_offence() {
    assert_eq!(super::offence(Outcome::Patched), Some(Offence::Patch));
    assert_eq!(super::offence(Outcome::Served), None);
}

#[test]
fn regression_the_end_of_a_clients_ban_leaves_the_networks_alone_and_a_long_list_is_whole() {
    let (clock, bans, buckets) = fake(2_000);
    let file = || file::parse("203.0.113.0/24\n198.51.100.0/24 until 2999-12-31").0;
    bans.take_file(file(), Mode::Enforce);
    let nets = bans.nets.load_full();
    let rule = Rule::compile(&said("1 per 1m", 600, Mode::Enforce), None, &buckets);
    for number in 0..1_000_u32 {
        let client = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        assert!(bans.offend(&rule, client, Offence::RateLimit));
    }
    let mut listed: Vec<_> = bans.list().into_iter().map(|(key, ..)| key).collect();
    listed.dedup();
    assert_eq!((listed.len(), bans.len(), bans.count(By::Offences)), (1_000, 1_000, 1_000));
    clock.advance(Duration::from_secs(600));
    assert!(bans.sweep() && bans.list().is_empty());
    bans.take_file(file(), Mode::Enforce);
    assert!(Arc::ptr_eq(&nets, &bans.nets.load_full()), "making them anew would keep workers waiting");
    assert!(enforced(&bans, "203.0.113.9"));
    bans.take_file(Vec::new(), Mode::Enforce);
    assert!(!enforced(&bans, "203.0.113.9"));
}
