//! SIGKILL at moments nobody chose: nothing that was stored is lost, torn or ordered again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use tidegate::tls::acme::queue::Dice;
use tidegate::tls::acme::store::{FolderStore, Key, Kind, Store};

use crate::acme::{all_issued, asking, automatic, certificates, curl, name};
use crate::acme_rough::number;
use crate::harness::front::Front;
use crate::harness::pebble::Ports;
use crate::harness::{Origin, Pebble, Proxy, tool, wait_until};

/// Kills; `TIDEGATE_TEST_KILLS=100` for a run by hand.
const KILLS: u64 = 20;
/// Longest life of a process, in milliseconds; an order takes about one second.
const LIFE_MAX: u64 = 2500;

/// Every record of the store by its place, each of which must be whole.
fn records(state: &Path) -> HashMap<(Kind, String), Vec<u8>> {
    let store = FolderStore::open(state).expect("the store opens");
    let mut found = HashMap::new();
    for kind in Kind::ALL {
        for key in store.list(kind).expect("the store lists") {
            let stored = store.load(&key).unwrap_or_else(|e| panic!("a torn record: {e}"));
            let value: serde_json::Value =
                serde_json::from_slice(&stored.expect("listed, so there").bytes).expect("JSON inside");
            found.insert((kind, format!("{key:?}")), value.to_string().into_bytes());
        }
    }
    found
}

#[tokio::test]
async fn a_kill_at_any_moment_loses_tears_and_repeats_nothing() {
    if !Pebble::is_here() {
        return;
    }
    let kills = number("TIDEGATE_TEST_KILLS", KILLS);
    let seed = number("TIDEGATE_TEST_SEED", u64::from(std::process::id()));
    let mut dice = Dice::new(seed);
    let origin = Origin::saying("ok").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[]).await;
    let front = Front::of(&pebble).await;
    // Ordered for the first time under fire; the first one is renewed again and again.
    let sites: Vec<String> = (0..kills * 2).map(|n| name(n as usize)).collect();
    let builder = asking(&pebble, ports, "[\"tls-alpn-01\", \"http-01\"]")
        .set("acme.directory", &format!("{:?}", front.directory()))
        .set("acme.concurrent", "1")
        // The first order of the first site, its renewals, and what the kills cut: more than half of the usual budget.
        .set("acme.orders", "2000");
    let mut proxy = sites.iter().fold(builder, |b, site| b.site(site, &automatic(&origin))).start().await;
    let state = proxy.path().join("state");
    let mut kept = HashMap::<(Kind, String), Vec<u8>>::new();
    // How many orders had been made for a site when its certificate was seen in the store.
    let mut ordered = BTreeMap::<&String, usize>::new();
    for kill in 0..kills {
        // Every fourth process is killed before it has said that it serves.
        if kill % 4 != 3 {
            proxy.await_ready().await;
            proxy.admin("POST", "/certs/renew?site=s0.test").await;
        }
        tokio::time::sleep(Duration::from_millis(dice.below(LIFE_MAX))).await;
        proxy.kill();

        let now = records(&state);
        for (place, before) in &kept {
            let (kind, site) = place;
            let Some(after) = now.get(place) else {
                assert_eq!(*kind, Kind::Failure, "seed {seed}, kill {kill}: {place:?} is lost");
                continue;
            };
            let same = match kind {
                Kind::Account => part(after, "key") == part(before, "key"),
                Kind::Certificate if !site.contains("s0.test") => {
                    part(after, "chain") == part(before, "chain") && part(after, "key") == part(before, "key")
                }
                _ => true,
            };
            assert!(same, "seed {seed}, kill {kill}: {place:?} was replaced");
        }
        kept = now;
        for site in sites.iter().skip(1) {
            let place = (Kind::Certificate, format!("{:?}", Key::new(Kind::Certificate, site)));
            let orders = front.orders_of(site).len();
            if kept.contains_key(&place) {
                let then = *ordered.entry(site).or_insert(orders);
                assert_eq!(then, orders, "seed {seed}, kill {kill}: {site} was ordered again");
            }
        }
        proxy.begin();
    }
    proxy.await_ready().await;
    // One at a time was for the kills; what they left over, up to two hundred sites, need not wait for each other.
    proxy.edit_config(|text| text.replace("concurrent = 1\n", "concurrent = 20\n"));
    proxy.reload().await;
    all_issued(&proxy, &sites).await;
    for site in &sites {
        assert_eq!(curl(&proxy, &pebble, site).await, "ok", "{site}");
    }
    assert_eq!(front.accounts(), 1);
    let log = pebble.log();
    let accounts: Vec<&str> = log.lines().filter(|line| line.contains("accounts in memory")).collect();
    assert!(
        accounts.len() == 1 && accounts[0].ends_with("There are now 1 accounts in memory"),
        "{accounts:?}"
    );
    let rows = certificates(&proxy).await;
    assert!(rows.iter().all(|row| row["last_error"].is_null()), "seed {seed}: {rows:#?}\n{}", proxy.stderr());
    // Half-written files hold keys: whoever opens the store clears them away.
    wait_until("nothing half written to be left", || litter(&state) == 0).await;
    let (made, fetched) = (front.orders().len(), front.fetched().len());
    tool::report(&format!("seed {seed}: {kills} kills, {made} orders, {} of them cut", made - fetched));
}

fn part(record: &[u8], name: &str) -> String {
    serde_json::from_slice::<serde_json::Value>(record).expect("JSON")[name].to_string()
}

/// Files that a crash left half written.
fn litter(state: &Path) -> usize {
    let folders = ["account", "certificate", "failure", "budget"];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(state.join("acme").join(folder)).unwrap());
    files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|e| e == "tmp")).count()
}
