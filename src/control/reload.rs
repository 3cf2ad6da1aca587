//! Read → compile each site on its own → swap → keep → report.
//!
//! A site is a blast radius: whatever is wrong with one leaves every other site alone, and the site itself keeps its
//! last good version. Only a bad server part refuses a reload whole.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::base::{clock, gentle};
use crate::config::look::Look;
use crate::config::model::{Bans, Certificate, Origin, Server};
use crate::config::{self, Diagnostic, Former, Loaded, Watched};
use crate::control::choose::{self, Built, build, told};
use crate::control::last_good::{self, Store};
use crate::control::{Control, Known, State, View, bans, lock, patches, remembered, renew};
use crate::net::descriptors::Budget;
use crate::snapshot::compile::Input;
use crate::snapshot::lists;
use crate::snapshot::resident::Residents;
use crate::snapshot::{Site, Snapshot, Source, amend, compile};
use crate::telemetry::hub::ReloadResult;

/// What the first load yields; the rest of the process is built around it.
pub struct First {
    /// The first snapshot.
    pub snapshot: Option<Snapshot>,
    /// What was found on the way, as text for a terminal; empty when all is well.
    pub problems: String,
    pub(super) state: State,
    pub(super) view: View,
    pub(super) watched: Arc<Watched>,
}

/// What a reload did.
#[derive(Debug, Default)]
pub struct Report {
    /// The generation in force.
    pub generation: u64,
    /// Whether anything new is in force.
    pub changed: bool,
    /// Sites with a new version, new ones among them.
    pub updated: Vec<Arc<str>>,
    /// Sites that are gone.
    pub removed: Vec<Arc<str>>,
    /// Sites refused.
    pub quarantined: Vec<Arc<str>>,
    /// Settings that changed in the file but wait for a restart.
    pub restart_needed: Vec<&'static str>,
    /// Everything found.
    pub diagnostics: Vec<Diagnostic>,
    /// The server part is bad, or all of it cannot be put together: nothing changed.
    pub refused: bool,
}

impl Report {
    /// For the admin socket.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "generation": self.generation,
            "changed": self.changed,
            "refused": self.refused,
            "updated": self.updated,
            "removed": self.removed,
            "quarantined": self.quarantined,
            "restart_needed": self.restart_needed,
            "diagnostics": config::to_json(&self.diagnostics),
        })
    }

    fn result(&self) -> ReloadResult {
        match (self.refused, self.changed, self.quarantined.is_empty()) {
            (true, ..) => ReloadResult::Refused,
            (false, _, false) => ReloadResult::Partial,
            (false, true, true) => ReloadResult::Applied,
            (false, false, true) => ReloadResult::Unchanged,
        }
    }
}

/// The first load of a process, from a configuration whose server part is good. `path` is where it was loaded from.
///
/// # Errors
/// A sentence when no snapshot can be made at all.
pub fn first(
    path: &Path,
    mut loaded: Loaded,
    server: Server,
    https_port: Option<u16>,
    residents: &Residents,
) -> Result<First, String> {
    let stored = Store::new(&server.state).load();
    let next_age = stored.sites.values().map(|site| site.age.saturating_add(1)).max().unwrap_or(0);
    let dormant = stored.sites.into_iter().map(|(name, site)| (Arc::from(name), site)).collect();
    let mut state = State { dormant, next_age, ..State::default() };
    // Until the engine answers, the sites of its labels are those of the last run.
    state.fragments = state.stored_fragments().into();
    let labels = server.docker.is_some() && !state.fragments.is_empty();
    if labels || loaded.diagnostics.iter().any(|diagnostic| diagnostic.code == config::DUPLICATE_SITE) {
        // Read again, now that is known what there is beside the files, and in which file each site lived before.
        let again = load(path, &state, Former::default());
        loaded = if again.server.is_some() { again } else { loaded };
    }
    if server.docker.is_some() {
        remembered::load(&server.state, &residents.sets);
    }
    bans::load(&server.state, residents);
    patches::keep_in(&server.state, residents);
    let server = Arc::new(server);
    renew::configure(residents, &server);
    residents.tenants.configure(&server.shares.weights);
    let mut built = build(&mut loaded, &state, &server, 1, residents);
    let watched = built.watched(&loaded);
    let problems = config::render_human(&built.diagnostics, &loaded.sources, false);
    for (name, reason) in &built.quarantined {
        tracing::error!("the site `{name}` is in quarantine: {reason}");
    }
    let finished = built.finish(loaded, &state, &server, 1, https_port, residents)?;
    let (snapshot, view);
    (snapshot, state, view) = finished;
    renew::want(residents, &snapshot);
    residents.endpoints.settle();
    residents.save_hsts();
    keep(&server, &mut state);
    residents.hub.set_generation(1);
    Ok(First { snapshot: Some(snapshot), problems, state, view, watched })
}

/// Reads the configuration; of two sites with one name, the one in the file that it was last taken from counts. What
/// the load before read is not read again where it says the same.
fn load(path: &Path, state: &State, former: Former<'_>) -> Loaded {
    config::load_with(path, &|name, file| state.file(name) == Some(file), &state.fragments, former)
}

/// What a start with this configuration would find, without a state folder, sockets or a running process.
///
/// # Errors
/// A sentence when the means to check are missing.
pub fn check(path: &Path) -> Result<(Loaded, Vec<Diagnostic>), String> {
    let mut loaded = config::load(path);
    let Some(server) = loaded.server.clone() else {
        let diagnostics = loaded.diagnostics.clone();
        return Ok((loaded, diagnostics));
    };
    let residents = Residents::for_check()?;
    let built = build(&mut loaded, &State::default(), &server, 1, &residents);
    Ok((loaded, built.diagnostics))
}

impl Control {
    /// Reloads. Blocks: reading and compiling thousands of sites takes a while, so this is for [`behind`](super::behind::behind).
    /// What `look` saw of the files need not be asked again.
    pub fn reload(&self, reason: &str, look: Option<&Look>) -> Report {
        let mut state = lock(&self.state);
        if self.keeping().is_none() {
            return Report { generation: self.cell.load().generation, ..Report::default() };
        }
        let started = clock::now();
        let before = self.view.load();
        let mut loaded = load(&self.path, &state, Former { loaded: before.loaded.as_ref(), look });
        drop(before);
        let old = self.cell.load();
        let Some(server) = loaded.server.clone() else {
            let former = self.watched();
            let report = Report {
                generation: self.renew_certificates(&mut state, &old, &loaded, &former),
                refused: true,
                diagnostics: std::mem::take(&mut loaded.diagnostics),
                ..Report::default()
            };
            self.residents.hub.reloaded(report.result());
            log(&report, reason);
            return report;
        };
        let (server, restart_needed) = fixed(server, &old.server);
        let generation = old.generation + 1;
        let server = Arc::new(server);
        renew::configure(&self.residents, &server);
        self.residents.tenants.configure(&server.shares.weights);
        let mut built = build(&mut loaded, &state, &server, generation, &self.residents);
        *lock(&self.watched) = built.watched(&loaded);
        let outside = patches::changed(&old, &self.residents) || lists::changed(&old, &self.residents);
        let mut report = built.compare(&state, &old, &server, outside);
        report.restart_needed = restart_needed;
        report.generation = if report.changed { generation } else { old.generation };
        self.apply(&mut state, built, loaded, &old, &server, &mut report);
        if !report.refused {
            report.diagnostics.extend(self.direct_log(&server));
        }
        self.residents.hub.reloaded(report.result());
        log(&report, reason);
        tracing::debug!("reload took {} ms", clock::now().0 - started.0);
        report
    }

    /// What is told of a reload that panicked.
    pub fn broken_reload(&self) -> Report {
        let text = "the reload broke off, which is a bug in Tidegate; its log has the place";
        let diagnostics = vec![Diagnostic::error("bug", &Origin::Default, text)];
        Report { generation: self.cell.load().generation, refused: true, diagnostics, ..Report::default() }
    }

    /// The server's part is wrong, so that nothing counts that the configuration says. But certificates end and lists of
    /// revoked ones grow old while it waits to be mended: those are taken, by what is in force. Gives the generation that
    /// is then.
    fn renew_certificates(
        &self,
        state: &mut State,
        old: &Snapshot,
        loaded: &Loaded,
        former: &Watched,
    ) -> u64 {
        // A main file that is no TOML names no file.
        let mut watched = (*loaded.watched).clone();
        watched.add(former.files.clone());
        *lock(&self.watched) = Arc::new(watched);
        let generation = old.generation + 1;
        let (mut sites, mut renewed) = (old.sites.clone(), Vec::new());
        for place in gentle::each(&mut sites) {
            let Some(known) = state.sites.get(&place.name) else { continue };
            let (site, text, current) = (&*known.model, &*known.text, Some(&known.site));
            let input =
                Input { site, text, current, kept: None, seen: None, server: &old.server, generation };
            if let Some(site) = amend::with_certificates(&known.site, &input, &self.residents) {
                renewed.push(site.clone());
                *place = site;
            }
        }
        if renewed.is_empty() {
            return old.generation;
        }
        let (server, down) = (old.server.clone(), (*old.unavailable).clone());
        match compile::assemble(generation, server, sites, down, old.https_port, &self.residents) {
            Ok(snapshot) => self.swap(snapshot, &old.server),
            Err(why) => {
                tracing::error!("renewed certificates are not in force: {why}");
                return old.generation;
            }
        }
        tracing::info!(generation, sites = renewed.len(), "renewed certificates are in force all the same");
        for site in renewed {
            if let Some(known) = state.sites.get_mut(&site.name) {
                known.site = site;
            }
        }
        self.settle();
        generation
    }

    fn apply(
        &self,
        state: &mut State,
        built: Built,
        loaded: Loaded,
        old: &Snapshot,
        server: &Arc<Server>,
        report: &mut Report,
    ) {
        report.diagnostics.clone_from(&built.diagnostics);
        // A site that moved to another file serves as before, but a restart must know where it lives now.
        let same_place = |(name, known): (&Arc<str>, &Known)| {
            state.sites.get(name).is_some_and(|before| before.file == known.file && before.text == known.text)
        };
        let to_store = report.changed || !state.saved || !gentle::each(&built.sites).all(same_place);
        let finished =
            built.finish(loaded, state, server, report.generation, old.https_port, &self.residents);
        let (snapshot, new, view) = match finished {
            Ok(finished) => finished,
            Err(why) => {
                report.diagnostics.push(Diagnostic::error("refused", &Origin::Default, why));
                report.refused = true;
                report.changed = false;
                report.generation = old.generation;
                return;
            }
        };
        let copied = std::mem::take(&mut state.copied);
        let former = std::mem::replace(state, State { copied, ..new });
        // Also where nothing changed: the manager may have been opened only now.
        renew::want(&self.residents, &snapshot);
        if report.changed {
            self.swap(snapshot, server);
        }
        self.settle();
        // After the swap: a slow or full disk keeps no site from its new version.
        if to_store && let Some(_leave) = self.keeping() {
            keep(server, state);
        }
        let seen = self.view.swap(Arc::new(view));
        gentle::drop_each(former.sites);
        gentle::drop_each(
            Arc::into_inner(seen).and_then(|view| view.loaded).into_iter().flat_map(|loaded| loaded.sites),
        );
        self.residents.sweep();
    }

    fn swap(&self, snapshot: Snapshot, server: &Server) {
        let generation = snapshot.generation;
        self.cell.swap(snapshot);
        let cap = connection_cap(server, self.connections.descriptors());
        self.connections.set_limits(cap, server.max_connections_per_client);
        self.access.set_style(server.log.format, server.log.privacy);
        self.residents.hub.set_generation(generation);
    }

    /// Leads the access log where the configuration says; also where that did not change: what could not be opened before
    /// may be now.
    fn direct_log(&self, server: &Server) -> Option<Diagnostic> {
        let error = self.access.retarget(&server.log.access).err()?;
        let text = format!("the access log stays where it was: {error}");
        Some(Diagnostic::error("access-log", &Origin::Default, text))
    }

    /// Puts certificates got on demand in force (or takes dropped ones out), without a look at any file: handshakes
    /// wait for this.
    pub fn rename(&self) {
        let _state = lock(&self.state);
        let started = clock::micros();
        let old = self.cell.load();
        let generation = old.generation + 1;
        match compile::named(&old, generation, &self.residents) {
            Ok(snapshot) => {
                let names = snapshot.names.len();
                self.cell.swap(snapshot);
                self.residents.hub.set_generation(generation);
                let micros = clock::micros() - started;
                tracing::debug!(generation, names, micros, "names on demand in force");
            }
            Err(why) => tracing::error!("certificates got on demand are not in force: {why}"),
        }
    }

    /// Lets handshakes go on that waited for what is in force now.
    pub fn settle(&self) {
        let snapshot = self.cell.load();
        if let Some(demand) = &snapshot.demand {
            demand.settle(|id| snapshot.serves(id));
        }
    }

    /// Why a reload is due although nobody changed anything, if one is: a certificate of the internal CA grows old, or
    /// the last good sites could not be stored.
    pub fn upkeep(&self) -> Option<&'static str> {
        let snapshot = self.cell.load();
        let ours = |site: &Arc<Site>| site.identity.clone().filter(|_| site.source.is_internal());
        let old = |site: &Arc<Site>| ours(site).is_some_and(|identity| self.residents.due(&identity));
        if snapshot.sites.iter().any(old) || self.residents.internal_client_due() {
            return Some("certificates of the internal CA grow old");
        }
        (!lock(&self.state).saved).then_some("the last good sites are not stored yet")
    }

    /// Says which certificates end soon and are not ours to renew.
    pub fn warn_of_expiry(&self) {
        self.warn_of_lists();
        // Automatic ones have their own warnings, from whoever renews them.
        let snapshot = self.cell.load();
        let files = snapshot.sites.iter().filter(|site| site.source == Source::Files);
        let ending = |site: &Arc<Site>| {
            let expiry = site.identity.as_ref().and_then(|identity| choose::expiry(identity.not_after));
            Some((site.name.clone(), expiry?))
        };
        let (ending, more) = some(files.filter_map(ending));
        for (site, message) in ending {
            tracing::warn!(site = &*site, "{message}");
        }
        if more > 0 {
            tracing::warn!("the certificates of {more} more sites end soon: `tidegate certs` lists them");
        }
        let ca = &self.residents.ca;
        if choose::expiry(ca.not_after()).is_some() {
            tracing::warn!(
                "the internal CA {} ends soon: remove its folder and restart to have a new one, then let clients \
                 trust that",
                ca.ca_path().display()
            );
        }
    }
}

/// Open connections allowed: what was configured, or what the descriptors allow. A quarter stays for connections to
/// backends: idle clients need none.
pub fn connection_cap(server: &Server, budget: &Budget) -> u32 {
    let possible = (budget.max() / 4 * 3).max(1);
    server.max_connections.map_or(possible, |wanted| wanted.min(possible))
}

impl Built {
    /// What is to be watched after this load.
    fn watched(&mut self, loaded: &Loaded) -> Arc<Watched> {
        let beside = std::mem::take(&mut self.beside);
        if beside.files.is_empty() {
            return loaded.watched.clone();
        }
        let mut all = (*loaded.watched).clone();
        all.join(beside);
        Arc::new(all)
    }

    /// What differs from what is in force. `outside`: something that is no site's changed.
    fn compare(&self, state: &State, old: &Snapshot, new: &Server, outside: bool) -> Report {
        let differs = |known: &Known| {
            state.sites.get(&known.site.name).is_none_or(|before| !Arc::ptr_eq(&before.site, &known.site))
        };
        let updated: Vec<_> = gentle::each(self.sites.values())
            .filter(|known| differs(known))
            .map(|known| known.site.name.clone())
            .collect();
        let removed: Vec<_> = gentle::each(state.sites.keys())
            .filter(|name| !self.sites.contains_key(*name))
            .cloned()
            .collect();
        let server_changed = !old.server.says_the_same(new);
        // Sites without any version are answered otherwise than unknown ones, so they are a change too.
        let down_changed = self.down() != *old.unavailable;
        Report {
            changed: server_changed || outside || down_changed || !updated.is_empty() || !removed.is_empty(),
            updated,
            removed,
            quarantined: self.quarantined.keys().cloned().collect(),
            ..Report::default()
        }
    }

    fn down(&self) -> HashSet<Arc<str>> {
        self.quarantined.keys().filter(|name| !self.sites.contains_key(*name)).cloned().collect()
    }

    fn finish(
        self,
        loaded: Loaded,
        state: &State,
        server: &Arc<Server>,
        generation: u64,
        https_port: Option<u16>,
        residents: &Residents,
    ) -> Result<(Snapshot, State, View), String> {
        let sites: Vec<Arc<Site>> =
            gentle::each(self.sites.values()).map(|known| known.site.clone()).collect();
        let (down, dormant) = (self.down(), self.dormant(state));
        let snapshot = compile::assemble(generation, server.clone(), sites, down, https_port, residents)?;
        let view = View { quarantined: self.quarantined, loaded: Some(loaded) };
        Ok((
            snapshot,
            State {
                sites: self.sites,
                dormant,
                next_age: self.next_age,
                saved: state.saved,
                copied: HashSet::new(),
                fragments: state.fragments.clone(),
            },
            view,
        ))
    }
}

/// Settings that are bound to sockets and threads stay as they are until a restart; gives the names of those that
/// differ in the file.
fn fixed(new: Server, old: &Server) -> (Server, Vec<&'static str>) {
    let waiting = config::restart_needed(&new, old);
    let server = Server {
        http: old.http.clone(),
        https: old.https.clone(),
        workers: old.workers,
        state: old.state.clone(),
        limit_entries: old.limit_entries,
        metrics: old.metrics,
        admin_socket: old.admin_socket.clone(),
        demo: old.demo.clone(),
        bans: Bans { entries: old.bans.entries, ..new.bans },
        ..new
    };
    (server, waiting)
}

/// Writes what serves now to disk, for a start with a bad file; what failed is tried again by the upkeep.
fn keep(server: &Server, state: &mut State) {
    let mut pairs: BTreeMap<String, (PathBuf, PathBuf)> = BTreeMap::new();
    for known in gentle::each(state.sites.values()) {
        // Only what came from files is copied: the internal CA issues anew, automatic ones have a store of their own.
        let identity = known.site.identity.as_ref().filter(|_| known.site.source == Source::Files);
        if let (Some(identity), Certificate::Files { cert, key }) = (identity, &known.model.certificate) {
            let print = last_good::hex(&identity.fingerprint);
            pairs.insert(print, (cert.value.clone(), key.value.clone()));
        }
    }
    let serving = state.sites.iter().map(|(name, known)| (name.to_string(), known.stored()));
    let waiting = state.dormant.iter().map(|(name, kept)| (name.to_string(), kept.clone()));
    let mut sites = BTreeMap::new();
    for (name, site) in gentle::each(waiting.chain(serving)) {
        sites.insert(name, site);
    }
    let saved = Store::new(&server.state).save(sites, &pairs, &mut state.copied);
    if let Err(why) = &saved {
        tracing::error!("{why}; a site with errors would have no earlier version after a restart");
    }
    state.saved = saved.is_ok();
}

/// Lines of one kind that one event writes into the log: one cause can concern thousands of sites.
const LINES_MAX: usize = 50;

/// What is told, and how many more there are.
fn some<T>(mut all: impl Iterator<Item = T>) -> (Vec<T>, usize) {
    (all.by_ref().take(LINES_MAX).collect(), all.count())
}

fn log(report: &Report, reason: &str) {
    let (errors, more) = some(report.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()));
    for diagnostic in errors {
        tracing::error!("{}{}", told(diagnostic), help(diagnostic));
    }
    if more > 0 {
        tracing::error!("… and {more} more errors: `tidegate check` shows all");
    }
    // What stays as it was although a file says otherwise: nobody would know but from here.
    let kept = report.diagnostics.iter().filter(|diagnostic| diagnostic.code == lists::CODE);
    for diagnostic in kept.take(LINES_MAX) {
        tracing::warn!("{}{}", told(diagnostic), help(diagnostic));
    }
    for setting in &report.restart_needed {
        tracing::warn!("`{setting}` changed but needs a restart; the old value stays in force");
    }
    if report.refused {
        tracing::error!("reload refused ({reason}): nothing changed");
    } else if report.changed || !report.quarantined.is_empty() {
        tracing::info!(
            generation = report.generation,
            updated = report.updated.len(),
            removed = report.removed.len(),
            quarantined = report.quarantined.len(),
            "reloaded ({reason})"
        );
    } else {
        tracing::debug!("reload ({reason}): nothing changed");
    }
}

fn help(diagnostic: &Diagnostic) -> String {
    diagnostic.help.as_ref().map(|help| format!("; {help}")).unwrap_or_default()
}
