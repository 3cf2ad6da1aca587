//! Bans as operators see them: by command, by file, listed, and kept over a restart.
//!
//! One JSON file in the state folder. A command's ban is on disk before the command is answered; those by offences
//! follow within `EVERY`, and at a graceful end. What cannot be read or written is told and costs nothing else.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::base::clock;
use crate::base::unit::print_duration;
use crate::config::Diagnostic;
use crate::config::model::{Mode, Server};
use crate::control::Control;
use crate::policy::ban::{Bans, By, Entry, Key, Order, WHY_MAX, file};
use crate::snapshot::resident::Residents;
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;
use crate::tls;

/// Largest file read: a million bans at 500 bytes.
const BYTES_MAX: usize = 512 << 20;
/// Largest file of networks read: 100,000 lines at 200 bytes, with room.
const FILE_BYTES_MAX: usize = 32 << 20;
/// How often bans that are over end, and new ones are stored.
const EVERY: Duration = Duration::from_secs(1);
/// A book with more bans than this is written less often.
const LONG: usize = 10_000;
const EVERY_LONG: Duration = Duration::from_secs(10);
/// The longest ban by command.
const TIME_MAX: Duration = Duration::from_secs(366 * 86_400);

/// Why there are no more bans by command.
const STOPPING: &str = "this process is ending; ask the one that takes its place";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Stored {
    version: u32,
    bans: Vec<StoredBan>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredBan {
    net: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    site: Option<Arc<str>>,
    shadow: bool,
    /// Seconds since 1970.
    since: u64,
    until: u64,
    command: bool,
    why: String,
}

fn path(state: &Path) -> PathBuf {
    state.join("bans.json")
}

/// Takes in what was stored and is not over. Clocks that jump make a ban shorter or longer, never endless.
pub(super) fn load(state: &Path, residents: &Residents) {
    let path = path(state);
    if !path.exists() {
        return;
    }
    let stored = tls::file::read_bounded(&path, BYTES_MAX)
        .map_err(|error| error.to_string())
        .and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).map_err(|error| error.to_string()));
    let stored = match stored {
        Ok(stored) => stored,
        Err(why) => {
            return tracing::error!(
                "{}: bans cannot be read, nobody is banned by them: {why}",
                path.display()
            );
        }
    };
    let now = clock::wall().as_secs();
    for ban in stored.bans.into_iter().filter(|ban| ban.until > now) {
        let mode = if ban.shadow { Mode::Shadow } else { Mode::Enforce };
        let by = if ban.command { By::Command } else { By::Offences };
        let left = Duration::from_secs(ban.until - now).min(TIME_MAX);
        let Ok(net) = file::net(&ban.net) else { continue };
        let key = Key { net, site: ban.site, mode };
        residents.restore_ban(key, Entry::stored(ban.since, by, ban.why), left);
    }
}

fn save(state: &Path, bans: &Bans) -> Result<(), String> {
    let now = clock::wall().as_secs();
    let stored = bans.list().into_iter().map(|(key, entry, left)| StoredBan {
        net: key.net.to_string(),
        site: key.site,
        shadow: key.mode == Mode::Shadow,
        since: entry.since,
        until: now.saturating_add(left.as_secs()).saturating_add(1),
        command: entry.by == By::Command,
        why: entry.why,
    });
    let stored = Stored { version: 1, bans: stored.collect() };
    let written = serde_json::to_vec(&stored)
        .map_err(std::io::Error::other)
        .and_then(|bytes| tls::file::write_atomic(&path(state), &bytes, 0o600));
    written.map_err(|error| format!("bans cannot be kept in {}: {error}", path(state).display()))
}

/// Reads the file of networks anew; gives what is wrong with it. A file that cannot be read leaves the last one in force.
pub(super) fn read_file(server: &Server, residents: &Residents) -> Vec<Diagnostic> {
    let Some(said) = &server.bans.file else {
        residents.bans.take_file(Vec::new(), Mode::Enforce);
        return Vec::new();
    };
    let text = tls::file::read_bounded(&said.value, FILE_BYTES_MAX)
        .map_err(|error| error.to_string())
        .and_then(|bytes| String::from_utf8(bytes.to_vec()).map_err(|_| "it is no text in UTF-8".to_owned()));
    let text = match text {
        Ok(text) => text,
        Err(why) => {
            let message = format!("{} cannot be read: {why}", said.value.display());
            let problem = Diagnostic::error("bad-bans", &said.origin, message);
            return vec![
                problem.help("the networks that it named last stay banned; mend the file, or remove `file`"),
            ];
        }
    };
    let (lines, wrong) = file::parse(&text);
    residents.bans.take_file(lines, server.bans.mode);
    let wrong = wrong.into_iter().map(|why| {
        let message = format!("{}: {why}", said.value.display());
        Diagnostic::warning("bad-bans", &said.origin, message)
            .help("the line is left out, the others are in force")
    });
    wrong.collect()
}

/// Ends what is over and stores what is new, for ever.
pub async fn run(control: Arc<Control>) {
    loop {
        let long = control.residents.bans.len() > LONG;
        tokio::time::sleep(if long { EVERY_LONG } else { EVERY }).await;
        let control = control.clone();
        // The disk may be slow, and a million bans are a long file.
        let stored = tokio::task::spawn_blocking(move || control.keep_bans()).await;
        if let Err(error) = stored {
            tracing::error!("bans are not kept: {error}");
        }
    }
}

impl Control {
    /// Ends bans that are over, and stores them where something changed.
    pub fn keep_bans(&self) {
        if let Some(_leave) = self.keeping()
            && self.residents.bans.sweep()
            && let Err(why) = save(&self.server().state, &self.residents.bans)
        {
            tracing::warn!("{why}; they are lost with the process");
        }
    }

    /// Bans an address or a network from all sites.
    ///
    /// # Errors
    /// A sentence: why not.
    pub fn ban(&self, said: &str, time: Duration, why: &str) -> Result<Value, String> {
        let net = file::net(said)?;
        let trusted = |address: IpAddr| self.server().trusted_proxies.contains(address);
        if said.parse::<IpAddr>().is_ok_and(trusted) {
            return Err(format!("{net} is a trusted proxy of [server]: those are never banned"));
        }
        if time.is_zero() || time > TIME_MAX {
            return Err(format!(
                "a ban lasts from 1s to {}: for longer, write it into the file of [bans]",
                print_duration(TIME_MAX)
            ));
        }
        if why.len() > WHY_MAX || why.chars().any(char::is_control) {
            return Err(format!("the reason has at most {WHY_MAX} bytes, and no control characters"));
        }
        let _leave = self.keeping().ok_or(STOPPING)?;
        let bans = &self.residents.bans;
        bans.ban(Order { net, time, why: why.to_owned() })?;
        tracing::info!(net = %net, why, "banned by command for {}", print_duration(time));
        save(&self.server().state, bans).map_err(|problem| format!("it is in force, but {problem}"))?;
        Ok(json!({ "net": net.to_string(), "for_seconds": time.as_secs() }))
    }

    /// Ends the bans of an address or a network.
    ///
    /// # Errors
    /// A sentence: why not.
    pub fn unban(&self, net: &str) -> Result<Value, String> {
        let net = file::net(net)?;
        let _leave = self.keeping().ok_or(STOPPING)?;
        let bans = &self.residents.bans;
        let ended = bans.unban(net);
        if ended == 0 {
            let and = if bans.in_file() > 0 { "; what the file of [bans] says ends only there" } else { "" };
            return Err(format!("{net} is not banned by offences or by command{and}"));
        }
        tracing::info!(net = %net, "unbanned by command");
        save(&self.server().state, bans).map_err(|problem| format!("it is in force, but {problem}"))?;
        Ok(json!({ "net": net.to_string(), "ended": ended }))
    }

    /// Every ban, those that end first at the front.
    pub fn bans(&self) -> Value {
        let bans = &self.residents.bans;
        let mut list = bans.list();
        list.sort_by_key(|(_, _, left)| *left);
        let list: Vec<Value> = list
            .into_iter()
            .map(|(key, entry, left)| {
                json!({
                    "net": key.net.to_string(),
                    "site": key.site,
                    "by": entry.by.as_str(),
                    "mode": key.mode.as_str(),
                    "since": entry.since,
                    "left_seconds": left.as_secs(),
                    "why": entry.why,
                })
            })
            .collect();
        json!({ "bans": list, "in_file": bans.in_file(), "given_way": bans.given_way() })
    }

    /// Numbers about bans.
    pub(super) fn ban_readings(&self, readings: &mut Vec<Reading>) {
        let bans = &self.residents.bans;
        for by in [By::Offences, By::Command] {
            readings.push(Reading::new(Metric::Bans, &[by.as_str()], bans.count(by) as f64));
        }
        readings.push(Reading::new(Metric::Bans, &["file"], bans.in_file() as f64));
        readings.push(Reading::new(Metric::BansGivenWay, &[], bans.given_way() as f64));
    }
}
