//! Packs of virtual patches: read from their folder, judged by the craft, put in force with the next snapshot.

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::base::{clock, gentle};
use crate::config::source::whole_file;
use crate::config::{Diagnostic, SiteEntry, model};
use crate::control::Control;
use crate::control::pack_copies::Copies;
use crate::policy::patch::case;
use crate::policy::patch::pack::{FILE_BYTES_MAX, Pack};
use crate::policy::patch::shelf::{self, File, Found, InForce, PACKS_MAX, Problem};
use crate::policy::patch::sign::SIGNATURE_BYTES_MAX;
use crate::snapshot::Snapshot;
use crate::snapshot::resident::Residents;
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;

/// Reads the packs and remembers which are in force; says what is wrong with them.
pub(super) fn load(settings: Option<&model::Patches>, residents: &Residents) -> Vec<Diagnostic> {
    let Some(settings) = settings else {
        residents.patches.in_force.store(None);
        return Vec::new();
    };
    let store = residents.patches.copies.get().map(|folder| Copies::new(folder, &settings.folder));
    let (mut found, mut problems) = folder(&settings.folder);
    found.copies = store.as_ref().map(Copies::read).unwrap_or_default();
    let before = found.copies.clone();
    let (in_force, gone) = residents.patches.shelf.load(settings, found, clock::wall().as_secs());
    if let Some(Err(why)) = store.map(|store| store.save(&before, &in_force, &gone)) {
        tracing::warn!("{why}; after a restart a pack that is bad or not there then has no earlier version");
    }
    problems.extend(in_force.problems.iter().cloned());
    residents.patches.in_force.store(Some(in_force));
    problems.iter().map(diagnostic).collect()
}

/// From now on packs that are good have a copy in the state folder.
pub(super) fn keep_in(state: &Path, residents: &Residents) {
    residents.patches.copies.get_or_init(|| state.join("patches"));
}

/// Names that sites turn off and that no pack in force has: a typing error, or a rule that went.
pub(super) fn unknown(sites: &[SiteEntry], residents: &Residents) -> Vec<Diagnostic> {
    let Some(in_force) = residents.patches.in_force.load_full() else { return Vec::new() };
    let mut known: HashSet<&str> = HashSet::new();
    for pack in in_force.packs.iter().map(|good| &good.pack) {
        known.insert(&pack.name);
        for rule in &pack.rules {
            known.insert(&rule.id);
            known.extend(rule.cve.iter().map(String::as_str));
        }
    }
    let mut told = Vec::new();
    for site in gentle::often(sites).filter_map(|entry| entry.site.as_ref()) {
        for name in site.patches.off.iter().filter(|name| !known.contains(&*name.value)) {
            let message =
                format!("no virtual patch in force is called `{}`: nothing is turned off", name.value);
            let help = "`tidegate patch list` shows the rules in force with their CVEs, and their packs";
            told.push(
                Diagnostic::warning("unknown-patch", &name.origin, message).help(help).for_site(&site.name),
            );
        }
    }
    told
}

fn diagnostic(problem: &Problem) -> Diagnostic {
    let origin = whole_file(&Arc::from(problem.path.as_path()));
    let (make, code) = match problem.refused {
        true => (Diagnostic::error as fn(_, &_, String) -> _, "bad-patches"),
        false => (Diagnostic::warning as fn(_, &_, String) -> _, "old-patches"),
    };
    make(code, &origin, problem.message.clone())
}

/// Whether other rules are in force now than in this snapshot.
pub(super) fn changed(old: &Snapshot, residents: &Residents) -> bool {
    let before = old.patches.as_ref().map(|guard| Arc::as_ptr(&guard.in_force.set));
    let now = residents.patches.in_force.load();
    before != now.as_ref().map(|in_force| Arc::as_ptr(&in_force.set))
}

/// The files of packs in a folder, in the order of their names; none where there is no folder.
pub fn list(folder: &Path) -> Vec<PathBuf> {
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "toml") && !hidden(path))
        .collect();
    paths.sort();
    paths
}

/// Checks a pack as a reload would; what it says and who vouches for it.
///
/// # Errors
/// A sentence that says why it would be refused.
pub fn verify(path: &Path, settings: &model::Patches) -> Result<String, String> {
    let good = shelf::check_one(file(path)?, settings, clock::wall().as_secs())?;
    let (pack, rules) = (&good.pack, good.pack.rules.len());
    Ok(format!(
        "{} version {}, {rules} rules, until {}, {}",
        pack.name, pack.version, pack.expires, good.vouched
    ))
}

/// Runs the cases of a pack, whoever signed it; how many there were.
///
/// # Errors
/// What is wrong with the pack, or every case that did not go as it says.
pub fn test(path: &Path, settings: &model::Patches) -> Result<String, String> {
    let pack = Pack::parse(&file(path)?.text)?;
    let (count, failures) = case::run(&pack, settings.body)?;
    if failures.is_empty() {
        return Ok(format!("{} rules, {count} cases", pack.rules.len()));
    }
    let told =
        |failure: &case::Failure| format!("rule `{}`, case {}: {}", failure.rule, failure.case, failure.why);
    Err(failures.iter().map(told).collect::<Vec<_>>().join("; "))
}

/// The packs of a folder, read.
fn folder(path: &Path) -> (Found, Vec<Problem>) {
    let (mut files, mut problems, mut partial) = (Vec::new(), Vec::new(), false);
    if let Err(error) = fs::read_dir(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        partial = true;
        let message = format!("this folder of packs cannot be read: {error}");
        problems.push(Problem { path: path.to_owned(), message, refused: true, kept: false });
    }
    let mut paths = list(path);
    if paths.len() > PACKS_MAX {
        let message = format!("more than {PACKS_MAX} packs are not read: the last ones are left out");
        problems.push(Problem { path: path.to_owned(), message, refused: true, kept: false });
        paths.truncate(PACKS_MAX);
    }
    for path in paths {
        match file(&path) {
            Ok(file) => files.push(file),
            // What cannot be read is refused like what is bad: the version that was good stays.
            Err(why) => files.push(File { path, text: Vec::new(), signature: None, unreadable: Some(why) }),
        }
    }
    (Found { files, partial, copies: Vec::new() }, problems)
}

/// A pack and its signature.
///
/// # Errors
/// A sentence when one of them cannot be read.
pub fn file(path: &Path) -> Result<File, String> {
    let text = bytes(path, FILE_BYTES_MAX)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".minisig");
    let signature = match bytes(Path::new(&name), SIGNATURE_BYTES_MAX) {
        Ok(signature) => Some(signature),
        Err(_) if !Path::new(&name).exists() => None,
        Err(why) => return Err(format!("its signature: {why}")),
    };
    Ok(File { path: path.to_owned(), text, signature, unreadable: None })
}

/// One byte more than is legal at most: what is longer is refused by whoever reads it.
fn bytes(path: &Path, max: usize) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("it cannot be read: {error}");
    if !fs::metadata(path).map_err(cannot)?.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut bytes = Vec::new();
    let most = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    fs::File::open(path).map_err(cannot)?.take(most).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

impl Control {
    /// The answer to `GET /patches`.
    pub fn patches(&self) -> Value {
        let snapshot = self.cell.load();
        let Some(guard) = &snapshot.patches else {
            return json!({ "packs": [], "rules": [], "problems": [] });
        };
        let latest = self.residents.patches.in_force.load_full();
        let latest: &InForce = latest.as_deref().unwrap_or(&guard.in_force);
        let counts = self.residents.patches.counts.all();
        let matches = |id: &str| -> u64 {
            counts.iter().filter(|(_, rule, ..)| **rule == *id).map(|(.., count)| count).sum()
        };
        let pack = |good: &Arc<crate::policy::patch::shelf::Good>| {
            json!({
                "name": good.pack.name, "version": good.pack.version, "expires": good.pack.expires,
                "rules": good.pack.rules.len(), "from": good.path, "vouched": good.vouched,
                "description": good.pack.description,
            })
        };
        let rule = |rule: &crate::policy::patch::compile::Compiled| {
            json!({
                "id": *rule.id, "cve": rule.cve, "title": rule.title, "severity": rule.severity.as_str(),
                "pack": *rule.pack, "matches": matches(&rule.id),
            })
        };
        let problem = |problem: &Problem| json!({ "file": problem.path, "message": problem.message, "refused": problem.refused, "kept": problem.kept });
        json!({
            "mode": snapshot.server.patches.as_ref().map_or("shadow", |patches| patches.mode.as_str()),
            "packs": guard.in_force.packs.iter().map(pack).collect::<Vec<_>>(),
            "rules": guard.in_force.set.rules.iter().map(rule).collect::<Vec<_>>(),
            "problems": latest.problems.iter().map(problem).collect::<Vec<_>>(),
        })
    }

    /// What is read about virtual patches at each scrape.
    pub(super) fn patch_readings(&self, snapshot: &Snapshot, readings: &mut Vec<Reading>) {
        if let Some(guard) = &snapshot.patches {
            // A pack that went bad while its former version is in force changes nothing that is in the snapshot.
            let latest = self.residents.patches.in_force.load_full();
            let problems = &latest.as_deref().unwrap_or(&guard.in_force).problems;
            let refused = problems.iter().filter(|problem| problem.refused).count();
            readings.push(Reading::new(Metric::PatchRules, &[], guard.in_force.set.rules.len() as f64));
            readings.push(Reading::new(Metric::PatchPacks, &["in-force"], guard.in_force.packs.len() as f64));
            readings.push(Reading::new(Metric::PatchPacks, &["refused"], refused as f64));
            let kept = problems.iter().filter(|problem| problem.kept).count();
            readings.push(Reading::new(Metric::PatchPacks, &["kept"], kept as f64));
        }
        for (site, rule, mode, count) in self.residents.patches.counts.all() {
            readings.push(Reading::new(Metric::PatchMatches, &[&site, &rule, mode], count as f64));
        }
    }
}
