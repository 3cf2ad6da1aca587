//! The certificate store when things go wrong, encrypted, and on its way to another machine: with real files, a real
//! small disk, and Pebble counting what it is asked for.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustls::version::TLS13;
use serde_json::Value;

use crate::acme::{all_issued, asking, automatic, certificates, curl, unreachable, wait_for_long};
use crate::harness::pebble::Ports;
use crate::harness::proxy::run_to_end;
use crate::harness::tls::{client_config, connect};
use crate::harness::{Origin, Pebble, Proxy, ProxyBuilder, tool, wait_for, wait_until};

const BOTH: &str = "[\"tls-alpn-01\", \"http-01\"]";

/// A proxy that has a certificate from Pebble for each of these sites.
struct House {
    origin: Origin,
    pebble: Pebble,
    proxy: Proxy,
}

impl House {
    async fn new(sites: &[&str], prepare: impl FnOnce(ProxyBuilder) -> ProxyBuilder) -> House {
        let origin = Origin::saying("ok").await;
        let ports = Ports::free();
        let pebble = Pebble::start(ports, &[]).await;
        let mut builder = prepare(asking(&pebble, ports, BOTH));
        for site in sites {
            builder = builder.site(site, &automatic(&origin));
        }
        let proxy = builder.start().await;
        all_issued(&proxy, &sites.iter().map(ToString::to_string).collect::<Vec<_>>()).await;
        House { origin, pebble, proxy }
    }

    fn store(&self) -> PathBuf {
        self.proxy.path().join("state/acme")
    }

    fn record(&self, site: &str) -> PathBuf {
        self.store().join(format!("certificate/{site}.rec"))
    }

    async fn serves(&self, site: &str) {
        assert_eq!(curl(&self.proxy, &self.pebble, site).await, "ok", "{site}\n{}", self.proxy.stderr());
    }

    /// The certificate that is served, in DER.
    async fn leaf(&self, site: &str) -> Vec<u8> {
        served(&self.proxy, &self.pebble, site).await.expect("a handshake")
    }

    async fn refuses(&self, site: &str) {
        assert!(served(&self.proxy, &self.pebble, site).await.is_none(), "{site} must not answer");
    }

    /// Accounts and orders that Pebble was asked for.
    fn asked(&self) -> (usize, usize) {
        (self.pebble.accounts(), self.pebble.orders())
    }

    /// Waits until `certs` tells this about a site; gives all of what it tells.
    async fn told(&self, site: &str, word: &str) -> String {
        let what = format!("{site} to tell of {word:?}");
        let found = wait_for_long(&what, || async {
            let rows = certificates(&self.proxy).await;
            let row = rows.iter().find(|row| row["site"] == site)?;
            let error = row["last_error"].as_str()?;
            error.contains(word).then(|| error.to_owned())
        });
        match found.await {
            Some(found) => found,
            None => panic!("{:#?}\n{}", certificates(&self.proxy).await, self.proxy.stderr()),
        }
    }

    async fn state_is(&self, site: &str, state: &str) {
        let what = format!("{site} to be {state}");
        let found = wait_for_long(&what, || async {
            let rows = certificates(&self.proxy).await;
            rows.iter().any(|row| row["site"] == site && row["state"] == state).then_some(())
        });
        if found.await.is_none() {
            panic!("{:#?}\n{}", certificates(&self.proxy).await, self.proxy.stderr());
        }
    }

    fn renew(&self, site: &str) -> Output {
        self.proxy.command(&["certs", "renew", site])
    }

    /// Says something in `[acme]`, besides or instead of what is there.
    async fn acme(&self, name: &str, value: Option<&str>) {
        self.proxy.edit_config(|text| {
            let kept: Vec<&str> =
                text.lines().filter(|line| !line.starts_with(&format!("{name} ="))).collect();
            let line = value.map(|value| format!("[acme]\n{name} = {value}")).unwrap_or("[acme]".into());
            kept.join("\n").replace("[acme]", &line) + "\n"
        });
        self.proxy.reload().await;
    }

    async fn encrypted(&self) {
        let found = wait_for_long("everything to be encrypted", || async {
            let answer = self.proxy.admin("GET", "/certs").await;
            (answer["store"]["encrypted"] == true).then_some(())
        });
        assert!(found.await.is_some(), "{}", self.proxy.stderr());
    }
}

async fn served(proxy: &Proxy, pebble: &Pebble, site: &str) -> Option<Vec<u8>> {
    let config = client_config(pebble.roots(), &[], &[&TLS13]);
    connect(config, proxy.https(), site).await.ok().map(|wire| wire.tls.leaf)
}

/// All files below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![folder.to_path_buf()]);
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => todo.push(path),
                false => drop(found.insert(path.clone(), fs::read(&path).unwrap())),
            }
        }
    }
    found
}

/// Accounts and certificates as they lie there.
fn records(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = files(store);
    all.retain(|path, _| {
        path.starts_with(store.join("account")) || path.starts_with(store.join("certificate"))
    });
    all
}

fn holds(store: &Path, text: &str) -> bool {
    files(store).values().any(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
}

fn write_key(path: &Path, seed: u8) {
    let digits: String =
        (0..32).map(|n: u8| format!("{:02x}", n.wrapping_mul(37).wrapping_add(seed))).collect();
    fs::write(path, digits).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A small disk in memory; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None`: not allowed here, and the test is skipped.
    fn mount(at: &Path) -> Option<Disk> {
        if !rustix::process::geteuid().is_root() {
            tool::skip("mounting a small disk needs root");
            return None;
        }
        fs::create_dir_all(at).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs"]).arg(at).status();
        if !mounted.is_ok_and(|status| status.success()) {
            tool::skip("a tmpfs cannot be mounted here");
            return None;
        }
        Some(Disk(at.to_path_buf()))
    }

    fn remount(&self, how: &str) {
        let status =
            Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }

    /// Takes the last byte; gives the file that does so.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        while std::io::Write::write(&mut file, &[1; 4096]).is_ok_and(|written| written > 0) {}
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: the process may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_store_is_encrypted_while_it_runs_and_a_wrong_key_costs_nothing_but_itself() {
    if !Pebble::is_here() {
        return;
    }
    let mut house = House::new(&["a.test", "b.test"], |builder| builder).await;
    let asked = house.asked();
    assert_eq!(asked.0, 1, "{}", house.pebble.log());
    assert!(holds(&house.store(), "PRIVATE KEY"));
    let key = house.proxy.path().join("store.key");
    write_key(&key, 1);
    house.acme("store_key", Some("{ file = \"store.key\" }")).await;
    house.encrypted().await;
    for plain in ["PRIVATE KEY", "CERTIFICATE", "credentials", "chain"] {
        assert!(!holds(&house.store(), plain), "{plain} lies there");
    }
    house.serves("a.test").await;
    house.proxy.restart().await;
    house.serves("b.test").await;

    // Another key under the same name: what is in memory serves on, and after a restart nothing is touched.
    let before = records(&house.store());
    write_key(&key, 2);
    house.proxy.reload().await;
    wait_until("the refusal", || {
        house.proxy.stderr().contains("The former settings of [acme] stay in force.")
    })
    .await;
    house.serves("a.test").await;
    house.proxy.restart().await;
    let said = house.proxy.stderr();
    let path = house.store().join("account").display().to_string();
    assert!(said.contains("automatic certificates are off") && said.contains(&path), "{said}");
    assert!(said.contains("is encrypted with the key") && said.contains("`previous`"), "{said}");
    house.refuses("a.test").await;
    assert_eq!(house.proxy.admin("GET", "/certs").await["open"], false);
    assert_eq!(records(&house.store()), before, "nothing was written or removed");
    // Without any key it is the same, and the way out is named.
    house.acme("store_key", None).await;
    wait_until("the way out", || house.proxy.stderr().contains("no key is said")).await;
    assert!(house.proxy.stderr().contains("certs export"));
    house.refuses("a.test").await;
    assert_eq!(records(&house.store()), before);

    // With the former key it goes on, and everything is encrypted anew.
    write_key(&house.proxy.path().join("old.key"), 1);
    house.acme("store_key", Some("{ file = \"store.key\", previous = [{ file = \"old.key\" }] }")).await;
    house.serves("a.test").await;
    house.encrypted().await;
    house.acme("store_key", Some("{ file = \"store.key\" }")).await;
    house.proxy.restart().await;
    house.serves("a.test").await;
    house.serves("b.test").await;
    assert_eq!(house.asked(), asked, "no account and no order came of all this:\n{}", house.pebble.log());
}

#[tokio::test]
async fn a_key_that_others_may_read_is_refused_and_taken_once_it_is_put_right() {
    let origin = Origin::saying("ok").await;
    let builder =
        unreachable().set("acme.store_key", "{ file = \"store.key\" }").site("a.test", &automatic(&origin));
    let key = builder.folder().join("store.key");
    write_key(&key, 1);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let proxy = builder.start().await;
    let said = proxy.stderr();
    let named = said.contains("automatic certificates are off") && said.contains(key.to_str().unwrap());
    assert!(named && said.contains("mode 0644") && said.contains("chmod 600"), "{said}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    proxy.reload().await;
    assert_eq!(proxy.admin("GET", "/certs").await["open"], true, "{}", proxy.stderr());
}

#[tokio::test]
async fn a_store_moves_to_another_machine_and_a_running_process_takes_over_what_comes() {
    if !Pebble::is_here() {
        return;
    }
    let house = House::new(&["a.test", "b.test"], |builder| builder).await;
    let desk = tempfile::tempdir().unwrap();
    let (key, wrong) = (desk.path().join("backup.key"), desk.path().join("wrong.key"));
    write_key(&key, 3);
    write_key(&wrong, 4);
    let (key, wrong) = (key.display().to_string(), wrong.display().to_string());
    let file = desk.path().join("first.tdg").display().to_string();
    let export = |file: &str, more: &[&str]| {
        let args = ["certs", "export", file, "--key-file", &key];
        house.proxy.command(&[&args, more].concat())
    };
    let said = tool::stdout_of(&export(&file, &[]));
    assert!(said.contains("1 account, 2 certificates"), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!holds(desk.path(), "PRIVATE KEY") && !holds(desk.path(), "a.test"));
    let again = export(&file, &[]);
    assert!(again.status.code() == Some(1) && tool::text(&again.stderr).contains("--force"));
    tool::stdout_of(&export(&file, &["--force", "--format", "json"]));
    let without_key = house.proxy.command(&["certs", "export", "-"]);
    assert!(tool::text(&without_key.stderr).contains("always encrypted"), "{without_key:?}");
    let asked = house.asked();

    // The new machine, before it starts: its own state folder, and a key of its own for the store.
    let builder = Proxy::builder()
        .set("acme.email", "\"ops@tidegate.test\"")
        .set("acme.directory", &format!("{:?}", house.pebble.directory()))
        .set("acme.ca_file", &format!("{:?}", house.pebble.listener_ca()))
        .set("acme.store_key", "{ file = \"store.key\" }")
        .site("a.test", &automatic(&house.origin))
        .site("b.test", &automatic(&house.origin));
    write_key(&builder.folder().join("store.key"), 5);
    let config = builder.write().display().to_string();
    let import = |file: &str, key: &str, more: &[&str]| {
        let args = ["certs", "import", file, "--key-file", key, "--config", &config];
        run_to_end(&[&args, more].concat())
    };
    let state = builder.folder().join("state");
    let bytes = fs::read(&file).unwrap();
    for (name, content) in [("cut", &bytes[..bytes.len() - 1]), ("empty", &[]), ("doubled", &bytes.repeat(2))]
    {
        let bad = desk.path().join(name);
        fs::write(&bad, content).unwrap();
        let output = import(bad.to_str().unwrap(), &key, &[]);
        assert!(output.status.code() == Some(1), "{name}: {output:?}");
    }
    assert!(tool::text(&import(&file, &wrong, &[]).stderr).contains("needs the key"));
    let dry = tool::stdout_of(&import(&file, &key, &["--dry-run"]));
    assert!(dry.contains("would be added"), "{dry}");
    assert!(!state.exists(), "nothing was written so far");
    let said = tool::stdout_of(&import(&file, &key, &[]));
    assert!(said.contains("added") && said.contains("no process is running here"), "{said}");
    assert!(!holds(&state, "PRIVATE KEY"), "what is imported is encrypted with the key of that store");
    let proxy = builder.start().await;
    let new = |site: &'static str| served(&proxy, &house.pebble, site);
    assert_eq!(new("a.test").await, Some(house.leaf("a.test").await));
    assert_eq!(new("b.test").await, Some(house.leaf("b.test").await));
    assert_eq!(house.asked(), asked, "what was moved is not ordered again");

    // A newer one comes to the running process, through a pipe's worth of standard output.
    let old = house.leaf("a.test").await;
    tool::stdout_of(&house.renew("a.test"));
    let fresh = wait_for_long("the new certificate", || async {
        Some(house.leaf("a.test").await).filter(|leaf| *leaf != old)
    });
    let fresh = fresh.await.expect("renewed");
    let newer = desk.path().join("newer.tdg").display().to_string();
    fs::write(&newer, export("-", &[]).stdout).unwrap();
    let report = tool::stdout_of(&import(&newer, &key, &["--format", "json"]));
    let report: Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["process"]["taken"], serde_json::json!(["a.test"]), "{report:#}");
    assert_eq!(new("a.test").await, Some(fresh.clone()), "in force when the command returns");

    // The older backup takes nothing back unless it is told to.
    let said = tool::stdout_of(&import(&file, &key, &[]));
    assert!(said.contains("newer here") && said.contains("0 taken"), "{said}");
    assert_eq!(new("a.test").await, Some(fresh));
    tool::stdout_of(&import(&file, &key, &["--force"]));
    assert_eq!(new("a.test").await, Some(old));
    assert_eq!(house.asked().0, 1);
}

#[tokio::test]
async fn a_store_that_became_read_only_serves_on_and_nothing_is_ordered() {
    if !Pebble::is_here() {
        return;
    }
    let mut disk = None;
    let mut house = House::new(&["a.test"], |builder| {
        disk = Disk::mount(&builder.folder().join("state/acme"));
        builder
    })
    .await;
    let Some(disk) = disk else { return };
    let asked = house.asked();
    disk.remount("ro");
    tool::stdout_of(&house.renew("a.test"));
    let said = house.told("a.test", "Read-only").await;
    assert!(
        said.contains(house.store().to_str().unwrap()) && said.contains("Mount that disk writable"),
        "{said}"
    );
    house.serves("a.test").await;
    house.proxy.restart().await;
    house.serves("a.test").await;
    assert_eq!(house.asked(), asked, "{}", house.pebble.log());
    disk.remount("rw");
    let old = house.leaf("a.test").await;
    tool::stdout_of(&house.renew("a.test"));
    let renewed =
        wait_for_long("the new certificate", || async { (house.leaf("a.test").await != old).then_some(()) });
    assert!(renewed.await.is_some(), "{}", house.proxy.stderr());
    assert_eq!(house.asked(), (1, asked.1 + 1));
    drop(house);
    drop(disk);
}

#[tokio::test]
async fn a_full_disk_tears_nothing_orders_nothing_and_is_forgotten_when_there_is_room() {
    if !Pebble::is_here() {
        return;
    }
    let mut disk = None;
    let house = House::new(&["a.test"], |builder| {
        disk = Disk::mount(&builder.folder().join("state/acme"));
        builder
    })
    .await;
    let Some(disk) = disk else { return };
    let (asked, before) = (house.asked(), records(&house.store()));
    let filler = disk.fill();
    tool::stdout_of(&house.renew("a.test"));
    let said = house.told("a.test", "No space left").await;
    assert!(
        said.contains(house.store().to_str().unwrap()) && said.contains("Make room on that disk"),
        "{said}"
    );
    house.proxy.write_site("late.test", &automatic(&house.origin));
    house.proxy.reload().await;
    house.serves("a.test").await;
    assert_eq!(house.asked(), asked, "{}", house.pebble.log());
    assert_eq!(records(&house.store()), before, "whole, and no half file beside them");
    fs::remove_file(filler).unwrap();
    all_issued(&house.proxy, &["late.test".to_owned()]).await;
    house.serves("late.test").await;
    assert_eq!(house.asked().0, 1);
    assert!(records(&house.store()).keys().all(|path| path.extension().is_some_and(|e| e == "rec")));
    drop(house);
    drop(disk);
}

#[tokio::test]
async fn a_damaged_certificate_serves_from_memory_is_not_ordered_again_and_heals_when_put_back() {
    if !Pebble::is_here() {
        return;
    }
    let mut house = House::new(&["a.test", "b.test"], |builder| builder).await;
    let asked = house.asked();
    let path = house.record("a.test");
    let whole = fs::read(&path).unwrap();
    let mut bent = whole.clone();
    let middle = bent.len() / 2;
    bent[middle] ^= 0x20;
    let cut = whole[..whole.len() / 2].to_vec();
    for damage in [bent, cut, Vec::new()] {
        fs::write(&path, &damage).unwrap();
        // Either it has been noticed already, or the order notices it.
        drop(house.renew("a.test"));
        let said = house.told("a.test", "is damaged").await;
        assert!(said.contains(path.to_str().unwrap()) && said.contains("Restore it from a backup"), "{said}");
        house.serves("a.test").await;
        assert_eq!(house.asked(), asked, "{}", house.pebble.log());
    }
    // After a restart there is nothing to serve for this site; the other one is not affected, and nothing is ordered.
    house.proxy.restart().await;
    house.refuses("a.test").await;
    house.serves("b.test").await;
    let said = house.told("a.test", "is damaged").await;
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    let refused = house.renew("a.test");
    assert!(refused.status.code() == Some(1), "{refused:?}");
    // Nobody tells it: it looks by itself.
    fs::write(&path, &whole).unwrap();
    let healed = wait_for_long("the site to serve again", || async {
        served(&house.proxy, &house.pebble, "a.test").await.map(drop)
    });
    assert!(healed.await.is_some(), "{}", house.proxy.stderr());
    house.serves("a.test").await;
    house.state_is("a.test", "valid").await;
    assert_eq!(house.asked(), asked, "{}", house.pebble.log());
}

#[tokio::test]
async fn a_damaged_account_leads_to_no_new_one() {
    if !Pebble::is_here() {
        return;
    }
    let mut house = House::new(&["a.test"], |builder| builder).await;
    let asked = house.asked();
    let account = fs::read_dir(house.store().join("account")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&account).unwrap();
    fs::write(&account, &whole[..whole.len() - 1]).unwrap();
    house.proxy.restart().await;
    house.serves("a.test").await;
    house.proxy.write_site("late.test", &automatic(&house.origin));
    house.proxy.reload().await;
    let said = house.told("late.test", "is damaged").await;
    assert!(said.contains(account.to_str().unwrap()) && said.contains("no account is made"), "{said}");
    assert_eq!(house.asked(), asked, "{}", house.pebble.log());
    fs::write(&account, &whole).unwrap();
    tool::stdout_of(&house.renew("late.test"));
    all_issued(&house.proxy, &["late.test".to_owned()]).await;
    assert_eq!(house.asked(), (1, asked.1 + 1), "with the old account:\n{}", house.pebble.log());
}

#[tokio::test]
async fn records_that_may_not_be_read_are_named_and_neither_replaced_nor_ordered_again() {
    if !Pebble::is_here() || !tool::requires("setpriv", &["--version"]) {
        return;
    }
    let mut house = House::new(&["a.test", "b.test"], ProxyBuilder::obeying_permissions).await;
    let asked = house.asked();
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let path = house.record("a.test");
    mode(&path, 0o000);
    drop(house.renew("a.test"));
    let said = house.told("a.test", "Permission denied").await;
    assert!(said.contains(path.to_str().unwrap()) && said.contains("the user Tidegate runs as"), "{said}");
    house.serves("a.test").await;
    house.proxy.restart().await;
    house.serves("b.test").await;
    house.refuses("a.test").await;
    house.told("a.test", "Permission denied").await;
    mode(&path, 0o600);
    house.proxy.admin("POST", "/certs/reread").await;
    house.serves("a.test").await;

    // A folder that may not be written, and one that may not be entered.
    let folder = house.store().join("certificate");
    mode(&folder, 0o500);
    tool::stdout_of(&house.renew("b.test"));
    house.told("b.test", "Permission denied").await;
    house.serves("b.test").await;
    mode(&folder, 0o000);
    house.proxy.restart().await;
    wait_until("the reason", || house.proxy.stderr().contains("automatic certificates are off")).await;
    assert!(house.proxy.stderr().contains(folder.to_str().unwrap()), "{}", house.proxy.stderr());
    mode(&folder, 0o700);
    house.proxy.reload().await;
    house.serves("a.test").await;
    house.serves("b.test").await;
    // What was asked for by hand, before, has no memory over a restart.
    assert_eq!(house.asked(), asked, "{}", house.pebble.log());
}
