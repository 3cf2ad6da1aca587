//! Backups: what opens, what does not, and what an import does to what is there.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::tls::acme::store::key::Purpose;
use crate::tls::acme::store::seal::{Ring, Sealed};
use crate::tls::acme::store::{Expect, FolderStore};

fn backup_key(number: u8) -> SealKey {
    SealKey::numbered(number, Purpose::Backups)
}

fn certificate(site: &str, issued_at: u64) -> Record {
    let made = rcgen::generate_simple_self_signed([site.to_owned()]).unwrap();
    let record = json!({
        "site": site, "names": [site], "directory": "https://ca.test/dir", "ca": "ca", "engine": "managed",
        "chain": made.cert.pem(), "key": made.signing_key.serialize_pem(), "issued_at": issued_at,
        "not_before": issued_at, "not_after": issued_at + 90, "suggested": null, "renew_at": issued_at + 60,
    });
    Record { key: Key::new(Kind::Certificate, site), bytes: Zeroizing::new(record.to_string().into_bytes()) }
}

fn account(secret: &str, registered: bool) -> Record {
    let url = "https://ca.test/dir";
    let credentials = registered.then(|| json!({ "id": "1" }));
    let record = json!({ "directory": url, "key": secret, "credentials": credentials, "created": 1 });
    Record { key: Key::new(Kind::Account, url), bytes: Zeroizing::new(record.to_string().into_bytes()) }
}

fn failure(site: &str, attempts: u32) -> Record {
    let record = json!({ "site": site, "names": [site], "attempts": attempts, "next_try": 9, "reason": "dns", "message": "m" });
    Record { key: Key::new(Kind::Failure, site), bytes: Zeroizing::new(record.to_string().into_bytes()) }
}

fn budget() -> Record {
    let bytes = Zeroizing::new(b"{\"left\":3.0,\"at\":5}".to_vec());
    Record { key: Key::new(Kind::Budget, "https://ca.test/dir"), bytes }
}

fn store() -> (tempfile::TempDir, FolderStore) {
    let state = tempfile::tempdir().unwrap();
    let store = FolderStore::open(state.path()).unwrap();
    (state, store)
}

fn fill(store: &dyn Store, records: &[Record]) {
    for record in records {
        store.save(&record.key, &record.bytes, &Expect::Any, None).unwrap();
    }
}

/// A backup of these, once through the file.
fn backup(records: &[Record]) -> Backup {
    unpack(&pack(records, &backup_key(1), 7).unwrap(), &backup_key(1)).unwrap()
}

fn outcomes(lines: &[Line]) -> Vec<Outcome> {
    lines.iter().map(|line| line.outcome).collect()
}

#[test]
fn a_whole_store_moves_through_one_file_whatever_it_was_encrypted_with() {
    let (_old, folder) = store();
    let old = Sealed::new(Arc::new(folder), Ring::default());
    fill(
        &old,
        &[
            account("k", true),
            certificate("a.test", 5),
            certificate("b.test", 6),
            failure("b.test", 2),
            budget(),
        ],
    );
    let (records, unreadable) = gather(&old).unwrap();
    assert_eq!((records.len(), unreadable.len()), (5, 0));
    let file = pack(&records, &backup_key(1), 7).unwrap();
    for secret in ["PRIVATE", "a.test", "credentials", "certificate"] {
        assert!(!file.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret} lies plain");
    }
    let backup = unpack(&file, &backup_key(1)).unwrap();
    assert_eq!(backup.created, 7);
    let (_new, new) = store();
    let dry = import(&new, &backup, false, true).unwrap();
    assert!(outcomes(&dry).iter().all(|outcome| *outcome == Outcome::Added));
    assert_eq!(gather(&new).unwrap().0.len(), 0, "a dry run writes nothing");
    let lines = import(&new, &backup, false, false).unwrap();
    assert_eq!(lines, dry);
    assert_eq!(
        lines.iter().map(|line| &*line.name).collect::<Vec<_>>()[..2],
        ["https://ca.test/dir", "a.test"]
    );
    let (moved, _) = gather(&new).unwrap();
    assert!(moved.iter().zip(&records).all(|(new, old)| new.key == old.key && new.bytes == old.bytes));
    let again = import(&new, &backup, true, false).unwrap();
    assert!(outcomes(&again).iter().all(|outcome| *outcome == Outcome::Same), "{again:?}");
}

#[test]
fn a_file_that_is_not_whole_and_as_it_was_does_not_open() {
    let file = pack(&[certificate("a.test", 5), account("k", true)], &backup_key(1), 7).unwrap();
    let start = file.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    // Every cut, and every bit at some places, would take minutes: each byte of the head, then a sample.
    for length in (0..start + 40).chain((start..file.len()).step_by(97)).chain(file.len() - 20..file.len()) {
        assert!(unpack(&file[..length], &backup_key(1)).is_err(), "cut at {length}");
    }
    for position in (0..start + 40).chain((start..file.len()).step_by(97)).chain(file.len() - 20..file.len())
    {
        let mut bent = file.clone();
        bent[position] ^= 1;
        assert!(unpack(&bent, &backup_key(1)).is_err(), "bent at {position}");
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(unpack(&longer, &backup_key(1)).map(|_| ()).unwrap_err().contains("damaged"));
    let wrong = unpack(&file, &backup_key(2)).map(|_| ()).unwrap_err();
    assert!(wrong.contains(backup_key(1).id()) && wrong.contains(backup_key(2).id()), "{wrong}");
    let mut newer = file.clone();
    newer[MAGIC.len()] = b'2';
    assert!(unpack(&newer, &backup_key(1)).map(|_| ()).unwrap_err().contains("does not know"));
    for other in [&b""[..], b"\n", b"PK\x03\x04", b"-----BEGIN CERTIFICATE-----\n", &[b'x'; 4096]] {
        assert!(unpack(other, &backup_key(1)).map(|_| ()).unwrap_err().contains("no backup"));
    }
}

#[test]
fn what_cannot_be_used_is_neither_exported_silently_nor_imported() {
    let (_state, store) = store();
    let bad = Record { key: Key::new(Kind::Certificate, "bad"), bytes: Zeroizing::new(b"{}".to_vec()) };
    fill(&store, &[certificate("a.test", 5), certificate("torn.test", 5), bad]);
    let torn = store.place(&Key::new(Kind::Certificate, "torn.test"));
    fs::write(&torn, "tidegate-store 1").unwrap();
    let (records, unreadable) = gather(&store).unwrap();
    assert_eq!((records.len(), unreadable.len()), (1, 2));
    assert!(unreadable.iter().any(|why| why.contains(torn.to_str().unwrap())), "{unreadable:?}");
    for (kind, content) in
        [(Kind::Certificate, "{}"), (Kind::Account, "[]"), (Kind::Failure, "1"), (Kind::Budget, "x")]
    {
        let record = Record { key: Key::new(kind, "x"), bytes: Zeroizing::new(content.into()) };
        let file = pack(&[certificate("a.test", 5), record], &backup_key(1), 7).unwrap();
        let error = unpack(&file, &backup_key(1)).map(|_| ()).unwrap_err();
        assert!(error.contains("cannot be used"), "{error}");
    }
    let sealed_store = Sealed::new(Arc::new(store), Ring::default());
    assert!(gather(&sealed_store).is_ok());
}

#[test]
fn newer_certificates_and_other_accounts_stay_unless_forced() {
    let (_state, store) = store();
    fill(
        &store,
        &[account("ours", true), certificate("a.test", 50), certificate("b.test", 50), failure("c.test", 1)],
    );
    let backup = backup(&[
        account("theirs", true),
        certificate("a.test", 40),
        certificate("b.test", 60),
        certificate("c.test", 1),
        failure("c.test", 5),
    ]);
    use Outcome::{Added, KeptHere, NewerHere, OtherAccount, Replaced};
    let expected = [OtherAccount, NewerHere, Replaced, Added, KeptHere];
    let lines = import(&store, &backup, false, false).unwrap();
    assert_eq!(outcomes(&lines), expected, "{lines:#?}");
    assert!(lines.iter().any(|line| line.outcome.is_trouble() && line.why.contains("--force")));
    let load = |record: &Record| store.load(&record.key).unwrap().unwrap().bytes;
    assert_ne!(load(&backup.records[0]), backup.records[0].bytes);
    assert_ne!(load(&backup.records[1]), backup.records[1].bytes);
    assert_eq!(load(&backup.records[2]), backup.records[2].bytes);
    let forced = import(&store, &backup, true, false).unwrap();
    assert_eq!(outcomes(&forced), [Replaced, Replaced, Outcome::Same, Outcome::Same, Replaced]);
    for record in &backup.records {
        assert_eq!(load(record), record.bytes);
    }
}

#[test]
fn the_same_account_is_taken_only_where_the_registered_one_is_missing() {
    let (_state, store) = store();
    fill(&store, &[account("k", false)]);
    assert_eq!(
        outcomes(&import(&store, &backup(&[account("k", true)]), false, false).unwrap()),
        [Outcome::Replaced]
    );
    assert_eq!(
        outcomes(&import(&store, &backup(&[account("k", false)]), false, false).unwrap()),
        [Outcome::Same]
    );
}

#[test]
fn damage_is_mended_and_what_is_locked_or_unreadable_is_left_alone() {
    let (_state, store) = store();
    let record = certificate("a.test", 5);
    fill(&store, std::slice::from_ref(&record));
    fs::write(store.place(&record.key), "torn").unwrap();
    let backup = backup(&[certificate("b.test", 1), record]);
    let held = store.lock("site a.test", Duration::from_secs(1)).unwrap().unwrap();
    assert_eq!(outcomes(&import(&store, &backup, false, false).unwrap()), [Outcome::Added, Outcome::Busy]);
    drop(held);
    assert_eq!(outcomes(&import(&store, &backup, false, false).unwrap()), [Outcome::Same, Outcome::Replaced]);
    // A folder in place of the record is no damage that an import may mend: the disk or a person is at work.
    let place = store.place(&backup.records[1].key);
    fs::remove_file(&place).unwrap();
    fs::create_dir(&place).unwrap();
    let (lines, error) = import(&store, &backup, true, false).unwrap_err();
    assert!(lines.is_empty() && error.to_string().contains(place.to_str().unwrap()), "{error}");
}
