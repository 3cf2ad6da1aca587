//! What is let in, kept and let go, with time moved by hand.

use super::*;
use crate::base::unit::Rate;
use crate::config::model::{self, Allowed, Located, OnDemand, Origin};
use crate::tls::acme::Challenges;
use crate::tls::acme::record::Certificate;
use crate::tls::acme::store::{FolderStore, Store};

const DAY: u64 = 24 * 60 * 60;

fn rules(allow: &[&str], ask: Option<&str>) -> Arc<Rules> {
    let allow = allow.iter().map(|text| Located {
        value: crate::config::section::demand::allowed(text).unwrap(),
        origin: Origin::Default,
    });
    let said = OnDemand {
        origin: Origin::Default,
        allow: allow.collect::<Vec<Located<Allowed>>>(),
        ask: ask.map(|text| Located {
            value: crate::config::section::demand::ask_url(text).unwrap(),
            origin: Origin::Default,
        }),
        orders: Rate { count: 10, per: Duration::from_secs(60) },
    };
    let terms = Terms { site: "site".into(), tenant: "site".into(), position: 7, said: Arc::new(said) };
    Arc::new(Rules::new(vec![terms], false))
}

/// A manager that holds certificates for these names, each asked for or not; valid for 90 days, due in 60.
fn manager(names: &[(&str, bool)]) -> (tempfile::TempDir, Arc<Manager>, u64) {
    let state = tempfile::tempdir().unwrap();
    let store = FolderStore::open(state.path()).unwrap();
    let now = now();
    for (name, asked) in names {
        let pair = rcgen::generate_simple_self_signed([(*name).to_owned()]).unwrap();
        let certificate = Certificate {
            site: demand::id(name),
            names: vec![(*name).to_owned()],
            directory: "https://ca.test/dir".into(),
            ca: "ca.test".into(),
            engine: "managed".into(),
            chain: pair.cert.pem(),
            key: pair.signing_key.serialize_pem(),
            issued_at: now,
            not_before: now,
            not_after: now + 90 * DAY,
            suggested: None,
            renew_at: now + 60 * DAY,
            hurried: false,
            demand: Some(Demanded { site: "site".into(), asked: *asked }),
        };
        let place = Key::new(Kind::Certificate, &demand::id(name));
        store.save(&place, &record::bytes(&certificate), &Expect::Absent, None).unwrap();
    }
    let manager = Manager::open(&settings(), state.path(), Challenges::new()).unwrap();
    (state, manager, now)
}

fn settings() -> model::Acme {
    model::Acme {
        directories: vec![model::Directory {
            name: "ca.test".into(),
            url: "https://ca.test/dir".into(),
            eab: None,
        }],
        email: None,
        ca_file: None,
        challenges: vec![ChallengeKind::Http01],
        orders_per_3h: 300,
        concurrent: 4,
        profile: None,
        engine: model::AcmeEngine::Auto,
        staging: model::Staging::Off,
        dns: None,
        store_key: None,
    }
}

/// What a reload does.
fn reload(manager: &Manager, rules: &Arc<Rules>) -> Names {
    manager.allow(Arc::clone(rules), vec![ChallengeKind::Http01]);
    let names = manager.named(rules, |_| false);
    let wanted = names.keys().map(|name| Wanted {
        site: demand::id(name),
        names: vec![HostPattern::Exact(Arc::clone(name))],
        challenge: Vec::new(),
        tenant: "site".into(),
        on_demand: Some("site".into()),
    });
    manager.want(wanted.collect());
    names
}

#[tokio::test]
async fn what_is_asked_for_is_renewed_and_what_is_not_is_dropped_when_it_expires() {
    let (state, manager, now) = manager(&[("used.test", true), ("unused.test", false), ("late.test", false)]);
    let rules = rules(&[".test.test", "used.test", "unused.test", "late.test"], None);
    let names = reload(&manager, &rules);
    assert_eq!((names.len(), names["used.test"].position), (3, 7));
    let due = |id: &str, at: u64| manager.lock().queue.turn(&demand::id(id), at);
    assert_eq!(due("used.test", now + 61 * DAY), Turn::Now);
    assert_eq!(due("unused.test", now + 61 * DAY), Turn::Unknown);
    // Somebody comes in the last third: it is renewed all the same, and a restart knows.
    names["late.test"].touch();
    assert!(manager.tend().await.is_none());
    assert_eq!(due("late.test", now + 61 * DAY), Turn::Now);
    let again = Manager::open(&settings(), state.path(), Challenges::new()).unwrap();
    let kept = again.named(&rules, |_| false);
    assert!(
        kept["late.test"].asked.load(Ordering::Relaxed) && !kept["unused.test"].asked.load(Ordering::Relaxed)
    );

    let Look { noted, dropped, .. } = manager.lock().look_through(now + 90 * DAY);
    assert!(noted.is_empty(), "written once");
    assert_eq!(dropped, [(demand::id("unused.test"), false)]);
    // What is asked for serves on for a week, as the renewal is tried.
    let mut dropped = manager.lock().look_through(now + 97 * DAY).dropped;
    dropped.sort();
    assert_eq!(dropped, [(demand::id("late.test"), true), (demand::id("used.test"), true)]);
    assert!(manager.status().is_empty());
}

#[tokio::test]
async fn names_follow_the_rules_and_other_peoples_answers_do_not_count() {
    let (_state, manager, _) = manager(&[("a.test.test", true), ("b.test.test", true)]);
    let listed = rules(&["*.test.test"], None);
    assert_eq!(reload(&manager, &listed).len(), 2);
    assert_eq!(manager.named(&listed, |name| name == "a.test.test").len(), 1, "one is a host now");
    let states: Vec<_> = manager.status().iter().map(|s| (s.site.to_string(), s.state)).collect();
    assert_eq!(states, [("site".to_owned(), "valid"), ("site".to_owned(), "valid")]);

    let none = rules(&["other.test"], None);
    assert!(reload(&manager, &none).is_empty() && manager.status().is_empty());
    let why = manager.still_allowed("@a.test.test").await.unwrap_err();
    assert!(why.contains("No site takes a.test.test"), "{why}");

    // Taken on the word of the site's own question, and only so long as that says yes.
    let asks = rules(&[], Some("http://127.0.0.1:1/"));
    assert_eq!(reload(&manager, &asks).len(), 2);
    let why = manager.still_allowed("@a.test.test").await.unwrap_err();
    assert!(why.contains("`ask` gave no answer"), "{why}");
    assert_eq!(manager.questions(), [("none", 1)]);
    for held in manager.lock().held.values_mut() {
        held.record.demand = Some(Demanded { site: "another".into(), asked: true });
    }
    assert!(reload(&manager, &asks).is_empty(), "another site's answer");
    assert_eq!(reload(&manager, &listed).len(), 2, "a list needs no answer");
}

#[tokio::test]
async fn a_name_is_let_in_once_and_out_when_its_order_fails() {
    let (_state, manager, now) = manager(&[]);
    reload(&manager, &rules(&["*.test.test"], None));
    for (name, refused) in [("a.other.test", Refusal::Disallowed), ("b.a.test.test", Refusal::Disallowed)] {
        let (refusal, _) = manager.admit_name(&demand::id(name), name).await.unwrap_err();
        assert_eq!(refusal, refused, "{name}");
    }
    let id = demand::id("a.test.test");
    assert_eq!(manager.admit_name(&id, "a.test.test").await, Ok(false));
    assert_eq!(manager.lock().queue.turn(&id, now + 1), Turn::Now);
    // A reload in between keeps what waits.
    reload(&manager, &rules(&["*.test.test"], None));
    assert_eq!(manager.lock().queue.turn(&id, now + 1), Turn::Now);
    let error = crate::tls::acme::issuer::IssueError::new(crate::tls::acme::issuer::Reason::Dns, "no");
    let failure = manager.lock().failed(&id, vec!["a.test.test".into()], 0, &error);
    manager.let_go(&id, &failure);
    assert_eq!(manager.lock().queue.turn(&id, now + 1), Turn::Unknown);
    let (refusal, time) = manager.admit_name(&id, "a.test.test").await.unwrap_err();
    assert!(refusal == Refusal::Failed && time > Duration::from_secs(40), "{time:?}");
    assert_eq!(manager.status()[0].state, "failed");
    assert!(manager.renew("@b.a.test.test").is_err() && manager.renew("@a.test.test").is_ok());
    assert_eq!(manager.lock().queue.turn(&id, now + 1), Turn::Now);
    // A failure that nobody cares about any more is forgotten.
    manager.lock().forget(&id);
    let over = manager.lock().look_through(failure.next_try + FAILED_FOR).over;
    assert_eq!((over.len(), manager.status().len()), (1, 0));
    // And the site has as many new names as its pace allows.
    for n in 0..4 {
        let name = format!("n{n}.test.test");
        assert_eq!(manager.admit_name(&demand::id(&name), &name).await, Ok(false));
    }
    let (refusal, _) = manager.admit_name(&demand::id("n9.test.test"), "n9.test.test").await.unwrap_err();
    assert_eq!(refusal, Refusal::Limit);
}

#[tokio::test]
async fn regression_a_certificate_got_for_another_sites_question_is_wanted_by_who_takes_it_over() {
    let (_state, manager, _) = manager(&[("a.test.test", true)]);
    let asks = rules(&[], Some("http://127.0.0.1:1/"));
    for held in manager.lock().held.values_mut() {
        held.record.demand = Some(Demanded { site: "another".into(), asked: true });
    }
    assert!(reload(&manager, &asks).is_empty() && manager.status().is_empty());
    manager.lock().answers.put(
        "a.test.test http://127.0.0.1:1/",
        ask::Answer::Yes,
        clock::now().after(YES_FOR),
    );
    let id = demand::id("a.test.test");
    assert_eq!(manager.admit_name(&id, "a.test.test").await, Ok(true));
    let states: Vec<_> = manager.status().iter().map(|status| status.state).collect();
    assert_eq!(states, ["valid"], "nobody has reloaded, and it is looked after");
}

#[tokio::test]
async fn regression_a_renewed_root_of_the_authority_is_taken_over() {
    let (state, manager, _) = manager(&[]);
    let file = state.path().join("ca.pem");
    let write = || {
        let root = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap();
        std::fs::write(&file, root.cert.pem()).unwrap();
    };
    let settings = model::Acme { ca_file: Some(file.clone()), ..settings() };
    let engines = || {
        manager.reconfigure(&settings).unwrap();
        Arc::clone(&manager.lock().engines)
    };
    write();
    let first = engines();
    assert!(Arc::ptr_eq(&first, &engines()), "nothing changed");
    write();
    let second = engines();
    assert!(!Arc::ptr_eq(&first, &second));
    std::fs::write(&file, "no certificate").unwrap();
    assert!(manager.reconfigure(&settings).is_err());
    std::fs::remove_file(&file).unwrap();
    assert!(Arc::ptr_eq(&second, &engines()), "what cannot be read leaves it in force");
}

#[tokio::test]
async fn a_host_that_cannot_be_proven_does_not_let_the_certificate_of_the_others_run_out() {
    let (_state, manager, now) = manager(&[("old.test", true)]);
    let site: Arc<str> = demand::id("old.test");
    let hosts = ["old.test", "never.test"];
    let names = || hosts.iter().map(|host| HostPattern::Exact((*host).into())).collect();
    let (challenge, tenant) = (vec![ChallengeKind::TlsAlpn01, ChallengeKind::Http01], "shop".into());
    manager.want(vec![Wanted { site: site.clone(), names: names(), challenge, tenant, on_demand: None }]);
    let ordered = |attempts: u32, renew_at: u64| {
        let mut inner = manager.lock();
        inner.held.get_mut(&site).unwrap().record.renew_at = renew_at;
        let names = hosts.map(str::to_owned).to_vec();
        let (reason, message) = ("validation".into(), String::new());
        let failure =
            Failure { site: site.clone(), names, attempts, next_try: now, at: now, reason, message };
        inner.failures.insert(site.clone(), failure);
        inner.job(&site, 0).unwrap().names
    };
    let due: Vec<usize> = (0..7).map(|attempts| ordered(attempts, now - 1).len()).collect();
    assert_eq!(due, [2, 2, 1, 2, 1, 2, 1]);
    assert_eq!(ordered(2, now - 1), ["old.test"]);
    let ways = |attempts: u32| {
        ordered(attempts, now - 1);
        manager.lock().job(&site, 0).unwrap().challenges[0]
    };
    assert_ne!(ways(2), ways(4), "each way has its turn for some names, too");
    assert_eq!(ordered(2, now + DAY).len(), 2, "it is not due");
}
