//! Which version of each site serves: the new one, or the last good one where the new one is refused.
//!
//! Nobody loses a host that they serve because of what others write: a site that falls back keeps its hosts, and new
//! versions that claim one of them fall back too.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::base::{clock, gentle};
use crate::config::model::{self, Certificate, Claim, Origin, Server};
use crate::config::{self, Diagnostic, Loaded, SiteEntry, Watched};
use crate::control::last_good::{self, Store};
use crate::control::{Known, State, bans, client_auth, patches};
use crate::snapshot::compile::{self, Input};
use crate::snapshot::resident::Residents;
use crate::snapshot::{Site, amend};
use crate::tls::pem::{self, Identity};

/// Added to the age of a site that claims what another serves; far above any number of sites.
const INTRUDER: u64 = 1 << 32;

/// Certificate files are warned about when less than this is left, in seconds: 14 days.
pub(super) const WARN_BEFORE: u64 = 14 * 24 * 3600;

/// All sites after one load: those that serve, and those refused.
pub(super) struct Built {
    pub sites: BTreeMap<Arc<str>, Known>,
    /// With the reason.
    pub quarantined: BTreeMap<Arc<str>, String>,
    pub diagnostics: Vec<Diagnostic>,
    pub next_age: u64,
    /// Files of older versions that serve, beside those that the configuration names.
    pub beside: Watched,
}

/// Chooses the version of each site that is to serve.
pub(super) fn build(
    loaded: &mut Loaded,
    state: &State,
    server: &Server,
    generation: u64,
    residents: &Residents,
) -> Built {
    let usurped = refuse_usurpers(loaded, state);
    let beside = RefCell::default();
    let fallback = Fallback { state, server, seen: loaded.watched.clone(), beside, generation, residents };
    let intruders = fallback.intruders(loaded);
    let seniority = |name: &str| match state.age(name) {
        Some(age) if intruders.contains(name) => age.saturating_add(INTRUDER),
        age => age.unwrap_or(u64::MAX),
    };
    let lost: BTreeSet<Arc<str>> = loaded.settle_clashes(seniority).into_iter().collect();
    let mut built = Built {
        sites: BTreeMap::new(),
        quarantined: BTreeMap::new(),
        diagnostics: [loaded.diagnostics.clone(), usurped, bans::read_file(server, residents)].concat(),
        next_age: state.next_age,
        beside: Watched::default(),
    };
    built.diagnostics.extend(residents.lists.refresh(server));
    built.diagnostics.extend(patches::load(server.patches.as_ref(), residents));
    built.diagnostics.extend(patches::unknown(&loaded.sites, residents));
    let reasons = Reasons::new(&loaded.diagnostics);
    for entry in gentle::each(&loaded.sites) {
        let age = state.age(&entry.name).unwrap_or_else(|| {
            built.next_age += 1;
            built.next_age - 1
        });
        built.take(entry, age, lost.contains(&entry.name), &reasons, &fallback);
    }
    built.keep_broken(&loaded.broken_files, &reasons, &fallback);
    let origins =
        gentle::each(&loaded.sites).filter_map(|entry| Some((&*entry.name, &entry.site.as_ref()?.origin)));
    built.settle(&origins.collect(), &fallback);
    built.beside = fallback.beside.into_inner();
    built
}

/// While the file of a site is broken, nobody else becomes that site: neither another file nor a container's labels.
fn refuse_usurpers(loaded: &mut Loaded, state: &State) -> Vec<Diagnostic> {
    let broken: HashSet<Arc<Path>> = loaded.broken_files.iter().cloned().collect();
    if broken.is_empty() {
        return Vec::new();
    }
    let mut refused = Vec::new();
    loaded.sites.retain(|entry| {
        let home = state.file(&entry.name).filter(|home| *home != &*entry.file && broken.contains(*home));
        if let Some(home) = home {
            let at = entry.site.as_ref().map_or(Origin::Default, |site| site.origin.clone());
            let message =
                format!("the site `{}` is that of {}, which is broken just now", entry.name, home.display());
            let refusal = Diagnostic::error(config::DUPLICATE_SITE, &at, message);
            refused.push(refusal.help("mend that file; this one is ignored").for_site(&entry.name));
        }
        home.is_none()
    });
    refused
}

/// The first error of each site and of each file: thousands may be wrong at once.
struct Reasons<'a> {
    sites: HashMap<&'a str, &'a Diagnostic>,
    files: HashMap<&'a Path, &'a Diagnostic>,
}

impl<'a> Reasons<'a> {
    fn new(diagnostics: &'a [Diagnostic]) -> Reasons<'a> {
        let mut reasons = Reasons { sites: HashMap::new(), files: HashMap::new() };
        for diagnostic in diagnostics.iter().filter(|diagnostic| diagnostic.is_error()) {
            if let Some(site) = &diagnostic.site {
                reasons.sites.entry(site).or_insert(diagnostic);
            }
            if let Origin::File(place) = &diagnostic.origin {
                reasons.files.entry(place.path()).or_insert(diagnostic);
            }
        }
        reasons
    }
}

/// One line for `status`: where and what.
pub(super) fn told(diagnostic: &Diagnostic) -> String {
    match &diagnostic.origin {
        Origin::File(place) => {
            let path = place.path().display();
            format!("{path}:{}:{}: {}", place.line(), place.column(), diagnostic.message)
        }
        Origin::Default => diagnostic.message.clone(),
    }
}

/// Where an older version of a site comes from.
struct Fallback<'a> {
    state: &'a State,
    server: &'a Server,
    /// What the configuration's files looked like before they were read.
    seen: Arc<Watched>,
    /// The files of older versions, as they looked before they were read.
    beside: RefCell<Watched>,
    generation: u64,
    residents: &'a Residents,
}

impl Fallback<'_> {
    /// Sites that now claim a host which another site serves and does not give up: however old they are, it is not
    /// theirs.
    fn intruders(&self, loaded: &Loaded) -> BTreeSet<Arc<str>> {
        let owners = self.owners(loaded);
        let entries: HashMap<&str, &SiteEntry> =
            gentle::each(&loaded.sites).map(|entry| (&*entry.name, entry)).collect();
        let broken: HashSet<&Path> = loaded.broken_files.iter().map(|file| &**file).collect();
        let keeps = |owner: &str, claim: &Claim| match entries.get(owner).map(|entry| &entry.site) {
            Some(Some(site)) => site.claims().any(|(claimed, _)| claimed == *claim),
            // In error, or in a file that cannot be read: its last good version goes on serving.
            Some(None) => true,
            None => self.state.file(owner).is_some_and(|file| broken.contains(file)),
        };
        let intrudes = |entry: &&SiteEntry| {
            entry.site.iter().flat_map(|site| site.claims()).any(|(claim, _)| {
                owners.get(&claim).is_some_and(|owner| **owner != *entry.name && keeps(owner, &claim))
            })
        };
        gentle::each(&loaded.sites).filter(intrudes).map(|entry| entry.name.clone()).collect()
    }

    /// Who serves each host (or takes names on demand), or did so before the restart.
    fn owners(&self, loaded: &Loaded) -> HashMap<Claim, &str> {
        // Room for all at once: a table that grows is written anew as a whole.
        let mut owners: HashMap<Claim, &str> = HashMap::with_capacity(self.state.sites.len());
        for (name, known) in gentle::each(&self.state.sites) {
            owners.extend(known.site.claims.iter().map(|claim| (claim.clone(), &**name)));
        }
        // Stored texts are read again only where two sites clash: that is rare, and they may be thousands.
        if loaded.diagnostics.iter().any(|diagnostic| diagnostic.code == config::clash::CODE) {
            for (name, kept) in &self.state.dormant {
                let (site, _) = config::parse_site(name, &kept.file, &kept.text, self.server);
                for (claim, _) in site.iter().flat_map(|site| site.claims()) {
                    owners.entry(claim).or_insert(name);
                }
            }
        }
        owners
    }

    fn version(&self, name: &Arc<str>) -> Option<Known> {
        if let Some(known) = self.state.sites.get(name) {
            return Some(self.renewed(known));
        }
        let kept = self.state.dormant.get(name)?;
        let model = self.read(name, &kept.file, &kept.text)?;
        let store = Store::new(&self.server.state);
        let copy = || kept.certificate.as_deref().and_then(|print| store.identity(print));
        // Its files may have been renewed since they were copied.
        let make = |copy| compile::site(&self.input(&model, &kept.text, None, copy), self.residents);
        let site =
            make(None).or_else(|problems| copy().map_or(Err(problems), |copy| make(Some(copy)))).ok()?;
        let (text, file) = (kept.text.as_str().into(), kept.file.as_path().into());
        Some(Known { site, model: model.into(), text, file, age: kept.age })
    }

    /// What serves goes on to, with what its files hold by now: certificates end, and lists of revoked ones grow old,
    /// while a mistake waits to be mended. Where one of its files is what is wrong, with its certificates alone.
    fn renewed(&self, known: &Known) -> Known {
        let (name, text, current) = (&known.site.name, &known.text, Some(&known.site));
        if let Some(model) = self.read(name, &known.file, text)
            && let Ok(site) = compile::site(&self.input(&model, text, current, None), self.residents)
        {
            return Known { site, model: model.into(), ..known.clone() };
        }
        let input = self.input(&known.model, text, current, None);
        let renewed = amend::with_certificates(&known.site, &input, self.residents);
        Known { site: renewed.unwrap_or_else(|| known.site.clone()), ..known.clone() }
    }

    /// Reads an older text; the files that it names are watched, though no file of the configuration may name them now.
    fn read(&self, name: &str, file: &Path, text: &str) -> Option<model::Site> {
        let (site, files, _) = config::parse_site_and_files(name, file, text, self.server);
        self.beside.borrow_mut().add(files);
        site
    }

    fn input<'b>(
        &'b self,
        site: &'b model::Site,
        text: &'b str,
        current: Option<&'b Arc<Site>>,
        kept: Option<Arc<Identity>>,
    ) -> Input<'b> {
        let (server, generation) = (self.server, self.generation);
        Input { site, text, current, kept, seen: None, server, generation }
    }

    /// Names of the sites that last came from each file.
    fn by_file(&self) -> HashMap<&Path, Vec<Arc<str>>> {
        let known = self.state.sites.iter().map(|(name, known)| (&*known.file, name));
        let kept = self.state.dormant.iter().map(|(name, kept)| (kept.file.as_path(), name));
        let mut names: HashMap<&Path, Vec<Arc<str>>> = HashMap::new();
        for (file, name) in known.chain(kept) {
            names.entry(file).or_default().push(name.clone());
        }
        names
    }
}

impl Built {
    fn take(
        &mut self,
        entry: &SiteEntry,
        age: u64,
        lost: bool,
        reasons: &Reasons<'_>,
        fallback: &Fallback<'_>,
    ) {
        let name = &entry.name;
        let compiled = entry.site.as_ref().filter(|_| !lost).map(|site| {
            let input = Input {
                site,
                text: &entry.text,
                current: fallback.state.sites.get(name).map(|known| &known.site),
                kept: None,
                seen: Some(&fallback.seen.seen),
                server: fallback.server,
                generation: fallback.generation,
            };
            compile::site(&input, fallback.residents).map(|compiled| (site, compiled))
        });
        let mut reason = reasons.sites.get(&**name).map(|diagnostic| told(diagnostic));
        match compiled {
            Some(Ok((model, site))) => {
                self.diagnostics.extend(site.identity.iter().flat_map(|identity| worries(model, identity)));
                self.diagnostics.extend(client_auth::worries(model, &site));
                let (model, text, file) = (model.clone(), entry.text.clone(), entry.file.clone());
                let known = Known { site, model, text, file, age };
                self.sites.insert(name.clone(), known);
                return;
            }
            Some(Err(mut problems)) => {
                reason = reason.or_else(|| problems.first().map(told));
                self.diagnostics.append(&mut problems);
            }
            None => {}
        }
        self.quarantine(name, reason.unwrap_or_default(), fallback);
    }

    fn quarantine(&mut self, name: &Arc<str>, reason: String, fallback: &Fallback<'_>) {
        self.quarantined.insert(name.clone(), reason);
        match fallback.version(name) {
            Some(known) => self.sites.insert(name.clone(), known),
            None => self.sites.remove(name),
        };
    }

    /// A file that cannot be read at all takes no site away: what came from it stays.
    fn keep_broken(&mut self, files: &[Arc<Path>], reasons: &Reasons<'_>, fallback: &Fallback<'_>) {
        if files.is_empty() {
            return;
        }
        let by_file = fallback.by_file();
        for file in files {
            let reason = reasons.files.get(&**file).map(|diagnostic| told(diagnostic)).unwrap_or_default();
            for name in by_file.get(&**file).into_iter().flatten() {
                if !self.sites.contains_key(name) && !self.quarantined.contains_key(name) {
                    self.quarantine(name, reason.clone(), fallback);
                }
            }
        }
    }

    /// Sites that fell back keep their hosts. Who claims one of them in a new version falls back too, which may give
    /// it hosts that a third one claims, and so on; each site falls back once at most.
    fn settle(&mut self, origins: &HashMap<&str, &Origin>, fallback: &Fallback<'_>) {
        let mut fallen: BTreeSet<Arc<str>> = self.quarantined.keys().cloned().collect();
        if fallen.is_empty() {
            return;
        }
        let mut owners: HashMap<Claim, Arc<str>> = HashMap::new();
        for (name, known) in self.sites.iter().filter(|(name, _)| !fallen.contains(*name)) {
            owners.extend(known.site.claims.iter().map(|claim| (claim.clone(), name.clone())));
        }
        let mut queue: Vec<Arc<str>> = fallen.iter().rev().cloned().collect();
        while let Some(name) = queue.pop() {
            while let Some((claim, owner)) = self.contested(&name, &owners) {
                self.release(&owner, &mut owners);
                if fallen.contains(&owner) {
                    // Two old versions never served together: the older one does.
                    let age = |name: &str| self.sites.get(name).map(|known| known.age);
                    if age(&owner) < age(&name) {
                        let claims = self.sites.get(&owner).map(|known| known.site.claims.clone());
                        owners.extend(claims.into_iter().flatten().map(|claim| (claim, owner.clone())));
                        self.sites.remove(&name);
                    } else {
                        self.sites.remove(&owner);
                    }
                    continue;
                }
                let message = format!(
                    "the site `{name}` has errors and goes on serving {} as it did before",
                    config::section::host::claimed(&claim)
                );
                let origin = origins.get(&*owner).map_or(Origin::Default, |origin| (*origin).clone());
                let clash = Diagnostic::error(config::clash::CODE, &origin, message);
                let clash = clash.help(format!("mend `{name}` first, or remove it")).for_site(&owner);
                self.quarantine(&owner, told(&clash), fallback);
                self.diagnostics.push(clash);
                fallen.insert(owner.clone());
                queue.push(owner);
            }
            let claims = self.sites.get(&name).map(|known| known.site.claims.clone());
            owners.extend(claims.into_iter().flatten().map(|claim| (claim, name.clone())));
        }
    }

    /// A host of this site (or names on demand) that another one holds.
    fn contested(&self, name: &Arc<str>, owners: &HashMap<Claim, Arc<str>>) -> Option<(Claim, Arc<str>)> {
        let claims = &self.sites.get(name)?.site.claims;
        claims.iter().find_map(|claim| {
            let owner = owners.get(claim).filter(|owner| *owner != name)?;
            Some((claim.clone(), owner.clone()))
        })
    }

    fn release(&self, name: &Arc<str>, owners: &mut HashMap<Claim, Arc<str>>) {
        for claim in self.sites.get(name).into_iter().flat_map(|known| &known.site.claims) {
            if owners.get(claim) == Some(name) {
                owners.remove(claim);
            }
        }
    }

    /// What is to be stored for a site that is refused and has no version that works now: the next attempt may.
    pub fn dormant(&self, state: &State) -> BTreeMap<Arc<str>, last_good::Site> {
        let waits = |name: &Arc<str>| self.quarantined.contains_key(name) && !self.sites.contains_key(name);
        let kept = state.dormant.iter().filter(|(name, _)| waits(name));
        let mut dormant: BTreeMap<_, _> = kept.map(|(name, kept)| (name.clone(), kept.clone())).collect();
        let fell = gentle::each(&state.sites).filter(|(name, _)| waits(name));
        dormant.extend(fell.map(|(name, known)| (name.clone(), known.stored())));
        dormant
    }
}

/// What is not wrong with a certificate from files, and yet soon will be, or makes browsers refuse it.
fn worries(site: &model::Site, identity: &Identity) -> Vec<Diagnostic> {
    let Certificate::Files { cert, .. } = &site.certificate else { return Vec::new() };
    let mut found = Vec::new();
    let mut warn = |code, message: String, help: &str| {
        found.push(Diagnostic::warning(code, &cert.origin, message).help(help).for_site(&site.name));
    };
    if let Some(message) = expiry(identity.not_after) {
        warn("certificate-expires", message, "renew it; Tidegate takes the new file by itself");
    }
    let written = |host: &model::HostPattern| config::section::host::written(host);
    let uncovered = site.hosts.iter().map(|host| written(&host.value));
    let uncovered: Vec<_> = uncovered.filter(|host| !pem::names_cover(identity, host)).collect();
    if let Some(host) = uncovered.first() {
        let message = match uncovered.len() {
            1 => format!("the certificate is not valid for the host `{host}`"),
            more => format!("the certificate is not valid for the host `{host}` and {} more", more - 1),
        };
        warn("certificate-names", message, "clients will refuse it there: request one with all the names");
    }
    found
}

/// What to say about a certificate that has expired or soon will.
pub(super) fn expiry(not_after: u64) -> Option<String> {
    let now = clock::wall().as_secs();
    if not_after <= now {
        return Some("the certificate has expired".into());
    }
    let days = (not_after - now) / (24 * 3600);
    (not_after - now < WARN_BEFORE).then(|| match days {
        0 => "the certificate expires within a day".into(),
        1 => "the certificate expires in 1 day".into(),
        days => format!("the certificate expires in {days} days"),
    })
}
