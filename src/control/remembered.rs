//! The last endpoints that the container engine named, on disk: what a start has while the engine does not answer.
//!
//! One JSON file in the state folder. It counts only until the machine starts again: addresses of containers are given out
//! anew then, and one that was this site's may be another's. What cannot be read or written costs nothing else.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::model::Source;
use crate::config::section::{host, service};
use crate::discovery::{Member, Sets};
use crate::tls::file;

/// Largest file read: 10,000 containers at 200 bytes, with room.
const BYTES_MAX: usize = 16 << 20;
/// Differs after each start of the machine.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    boot: String,
    sets: Vec<StoredSet>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredSet {
    source: String,
    members: Vec<StoredMember>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredMember {
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    name: String,
}

fn path(state: &Path) -> PathBuf {
    state.join("containers.json")
}

fn boot() -> String {
    std::fs::read_to_string(BOOT).unwrap_or_default().trim().to_owned()
}

/// Takes in what was stored since the machine started.
pub(super) fn load(state: &Path, sets: &Sets) {
    let path = path(state);
    if !path.exists() {
        return;
    }
    let stored = file::read_bounded(&path, BYTES_MAX)
        .map_err(|error| error.to_string())
        .and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).map_err(|error| error.to_string()));
    let stored = match stored {
        Ok(stored) => stored,
        Err(why) => return tracing::warn!("{}: the last containers cannot be read: {why}", path.display()),
    };
    if stored.boot.is_empty() || stored.boot != boot() {
        return;
    }
    for set in stored.sets {
        let Some(Ok(source)) = service::containers(&set.source) else { continue };
        let members = set.members.into_iter().filter_map(|member| {
            let address = host::endpoint(&member.address).ok()?;
            Some(Member { address, weight: member.weight, name: member.name.into() })
        });
        sets.learn(&source, members.collect());
    }
}

/// Stores what is known now.
pub(super) fn save(state: &Path, sets: &Sets) {
    let of_engine =
        sets.list().into_iter().filter(|(source, set)| source.is_of_engine() && !set.members.is_empty());
    let stored = of_engine.map(|(source, set): (Source, _)| StoredSet {
        source: source.to_string(),
        members: set.members.iter().map(stored_member).collect(),
    });
    let stored = Stored { boot: boot(), sets: stored.collect() };
    let written = serde_json::to_vec(&stored)
        .map_err(std::io::Error::other)
        .and_then(|bytes| file::write_atomic(&path(state), &bytes, 0o600));
    if let Err(error) = written {
        tracing::warn!("the last containers cannot be kept in {}: {error}", path(state).display());
    }
}

fn stored_member(member: &Member) -> StoredMember {
    StoredMember { address: member.address.to_string(), weight: member.weight, name: member.name.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_known_is_known_again_until_the_machine_starts_anew() {
        let state = tempfile::tempdir().unwrap();
        let source = Source::Labels { site: "a.test".into(), route: "~^/v[0-9]|x/".into() };
        let asked = Source::Docker { project: Some("shop".into()), service: "web".into(), port: Some(8080) };
        let before = Sets::default();
        let member = |text: &str| Member {
            weight: Some(3),
            name: "web-1 0123456789ab".into(),
            ..Member::at(host::endpoint(text).unwrap())
        };
        before.learn(&source, vec![member("172.18.0.2:80"), member("[fd00::2]:80")]);
        before.learn(&asked, vec![member("172.18.0.3:8080")]);
        before.learn(&Source::File("/x".into()), vec![member("10.0.0.1:1")]);
        save(state.path(), &before);
        let after = Sets::default();
        load(state.path(), &after);
        assert_eq!(after.list().len(), 2);
        assert_eq!((after.of(&source), after.of(&asked)), (before.of(&source), before.of(&asked)));
        let text = std::fs::read_to_string(path(state.path())).unwrap();
        std::fs::write(path(state.path()), text.replace(&boot(), "another")).unwrap();
        let after = Sets::default();
        load(state.path(), &after);
        std::fs::write(path(state.path()), "{").unwrap();
        load(state.path(), &after);
        assert!(after.list().is_empty());
    }
}
