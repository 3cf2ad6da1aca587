//! Layer 1: text in, typed settings out. Reads files, never the network.
//!
//! [`load`] reads `tidegate.toml` and the files it includes and gives everything at once: the server's settings, each
//! site on its own, every problem found, and what to watch. Each site is a blast radius: what is wrong with one leaves
//! the others alone. Which version of a site is then used is decided in `control`, not here.
//!
//! Read in this order: [`setting`] (the table of every setting), [`parse`] (how one value is read), `section/` (one file
//! per group of tables), then this file.

pub mod clash;
pub mod diagnostic;
mod document;
pub mod effective;
mod former;
mod fragment;
pub mod look;
pub mod model;
pub mod parse;
pub mod reference;
pub mod restart;
pub mod section;
pub mod setting;
pub mod source;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

pub use clash::clashes;
pub use diagnostic::{Diagnostic, Severity, render_human, to_json};
pub use effective::{Effective, effective_site};
pub use former::{Former, Said};
pub use fragment::Fragment;
pub use look::Watched;
pub use reference::schema;
pub use restart::restart_needed;
pub use source::{Source, Sources};

use crate::base::gentle;
use document::Piece;
use look::Gathered;
use model::{Origin, Part, Server, Site};
use parse::{Context, Value, quoted};
use setting::{Id, Kind, SITES_MAX};
use source::{Reader, expand, join, whole_file};

/// Everything one run over the configuration found.
#[derive(Debug)]
pub struct Loaded {
    /// The server's settings; `None` when its part has errors: nothing of this configuration is to be used then.
    pub server: Option<Server>,
    /// Every site found, by name.
    pub sites: Vec<SiteEntry>,
    /// Files that could not be read as a whole. Sites that formerly came from one of them and are not in `sites` now
    /// are not gone: they are to be kept.
    pub broken_files: Vec<Arc<Path>>,
    /// All problems, by file and place.
    pub diagnostics: Vec<Diagnostic>,
    /// Every file and folder that all this depends on.
    pub watched: Arc<Watched>,
    /// The texts, for rendering diagnostics.
    pub sources: Sources,
    /// Files in the order in which they were read.
    order: Vec<Arc<Path>>,
}

/// One site as found.
#[derive(Debug, Clone)]
pub struct SiteEntry {
    /// Its name, lower case.
    pub name: Arc<str>,
    /// The file it stands in, absolute.
    pub file: Arc<Path>,
    /// This site alone as TOML, in one canonical form and with absolute paths: equal texts mean equal settings, and
    /// [`parse_site`] reads it from anywhere.
    pub text: Arc<str>,
    /// `None`: it has errors.
    pub site: Option<Arc<Site>>,
    /// Certificates, keys and authorities that it names.
    files: Arc<[PathBuf]>,
    /// Where it may be taken over from; `None`: it is to be read again.
    said: Option<Said>,
}

/// Where the configuration is looked for when nobody says it; `None`: at none of the places.
pub fn default_path() -> Option<PathBuf> {
    let places = ["config/tidegate.toml", "tidegate.toml", "/etc/tidegate/tidegate.toml"];
    places.into_iter().map(PathBuf::from).find(|path| path.is_file())
}

/// Reads a configuration. Never fails: what is wrong is in [`Loaded::diagnostics`].
///
/// Of two sites with one name, the one read first is taken. Clashes of hosts are reported with the order of reading as
/// age, but both sites stay in [`Loaded::sites`]; who knows better ages calls [`Loaded::settle_clashes`].
pub fn load(path: &Path) -> Loaded {
    load_with(path, &|_, _| false, &[], Former::default())
}

/// Like [`load`], but of two sites with one name the one is taken for which `home(name, file)` holds: a file that is
/// read earlier takes no site away from the file it lives in. `fragments` are sites that stand in no file; they count
/// where the configuration has `[docker]`. Sites that an earlier load found said as they are said now are taken
/// over from it.
pub fn load_with(path: &Path, home: Home<'_>, fragments: &[Fragment], former: Former<'_>) -> Loaded {
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let path: Arc<Path> = join(&here, path).into();
    let mut run = Run::new(&here, home, fragments, former);
    let Some(main) = run.read(&path, None) else { return run.finish(None) };
    let server = run.main(&main);
    run.finish(server)
}

/// Reads one site from its canonical text, against the settings of a server. `file` is what origins name.
pub fn parse_site(name: &str, file: &Path, text: &str, server: &Server) -> (Option<Site>, Vec<Diagnostic>) {
    let (site, _, diagnostics) = parse_site_and_files(name, file, text, server);
    (site, diagnostics)
}

/// Like [`parse_site`], with the files that the site names.
pub fn parse_site_and_files(
    name: &str,
    file: &Path,
    text: &str,
    server: &Server,
) -> (Option<Site>, Vec<PathBuf>, Vec<Diagnostic>) {
    let source = Source::new(file.into(), text.to_owned());
    let root = match document::parse(&source) {
        Ok(root) => root,
        Err(errors) => return (None, Vec::new(), errors),
    };
    let mut found = None;
    each_site(&root, |each, key, value| {
        if *each == *name {
            let mut context = Context::new(&source, Some(each.clone()), false);
            let site = section::site::read(&mut context, &each, key, value, server);
            found = Some((site, context.files, context.diagnostics));
        }
    });
    found.unwrap_or_else(|| {
        let message = format!("the site `{}` is not in this text", quoted(name));
        (None, Vec::new(), vec![Diagnostic::error("missing", &whole_file(source.path()), message)])
    })
}

/// Calls back for each entry of `[site]`, in the order of the file: its name in lower case, where the name stands, its
/// value.
fn each_site<'t>(root: &'t DeTable<'t>, mut each: impl FnMut(Arc<str>, Range<usize>, &'t Value<'t>)) {
    let Some(sites) = root.get("site").and_then(|value| value.get_ref().as_table()) else { return };
    // The reader sorts keys by name; age and precedence follow the order in which they were written.
    let mut sites: Vec<_> = sites.iter().collect();
    sites.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in gentle::each(sites) {
        each(Arc::from(key.get_ref().to_ascii_lowercase()), key.span(), value);
    }
}

impl Loaded {
    /// Whether anything is refused.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(Diagnostic::is_error)
    }

    /// Decides clashes of hosts again with the ages given (the smaller number is the older site) and replaces the
    /// diagnostics about them. Gives the names of the sites that lost.
    pub fn settle_clashes(&mut self, age: impl Fn(&str) -> u64) -> Vec<Arc<str>> {
        self.diagnostics.retain(|diagnostic| diagnostic.code != clash::CODE);
        let good =
            gentle::each(&self.sites).filter_map(|entry| Some((entry.name.clone(), &**entry.site.as_ref()?)));
        let aged: Vec<_> = good.map(|(name, site)| (name.clone(), site, age(&name))).collect();
        let lost = clashes(&aged);
        let names = lost.iter().filter_map(|diagnostic| diagnostic.site.clone()).collect();
        self.diagnostics.extend(lost);
        self.sort();
        names
    }

    fn sort(&mut self) {
        let rank: HashMap<&Arc<Path>, usize> =
            self.order.iter().enumerate().map(|(at, path)| (path, at)).collect();
        self.diagnostics.sort_by_cached_key(|diagnostic| match &diagnostic.origin {
            Origin::Default => (usize::MAX, None, 0, 0),
            Origin::File(place) => {
                let (path, range) = (place.path(), place.range());
                (rank.get(path).copied().unwrap_or(usize::MAX), Some(path.clone()), range.start, range.end)
            }
        });
    }
}

/// One site of a text.
enum Found<'t> {
    /// It says what it said before.
    Known(SiteEntry),
    /// It is to be read; `piece`: where it stands by itself.
    Read { name: Arc<str>, key: Range<usize>, value: &'t Value<'t>, piece: Option<&'t Piece<'t>> },
}

impl Found<'_> {
    /// Its name in lower case, and where that stands.
    fn named(&self) -> (Arc<str>, Range<usize>) {
        match self {
            Found::Known(entry) => (entry.name.clone(), entry.key()),
            Found::Read { name, key, .. } => (name.clone(), key.clone()),
        }
    }

    /// Reads it if need be; the context is this site's own.
    fn entry(self, context: &mut Context<'_>, server: &Server) -> SiteEntry {
        let (name, key, value, piece) = match self {
            Found::Known(entry) => return entry,
            Found::Read { name, key, value, piece } => (name, key, value, piece),
        };
        let site = section::site::read(context, &name, key, value, server).map(Arc::new);
        let clean = site.is_some() && context.diagnostics.is_empty();
        SiteEntry {
            file: context.source.path().clone(),
            text: canonical(&name, value.get_ref(), context.source.folder()).into(),
            files: std::mem::take(&mut context.files).into(),
            said: piece
                .filter(|_| clean)
                .map(|piece| Said { range: piece.range.clone(), part: context.part.clone() }),
            name,
            site,
        }
    }
}

/// Whether a site (by name) lived in a file until now.
type Home<'a> = &'a dyn Fn(&str, &Path) -> bool;

/// The state of one [`load`].
struct Run<'a> {
    home: Home<'a>,
    fragments: &'a [Fragment],
    former: Former<'a>,
    reader: Reader,
    loaded: Loaded,
    sites: BTreeMap<Arc<str>, (SiteEntry, Origin, u64)>,
    gathered: Gathered<'a>,
}

impl<'a> Run<'a> {
    fn new(here: &Path, home: Home<'a>, fragments: &'a [Fragment], former: Former<'a>) -> Run<'a> {
        let mut sources = Sources::default();
        sources.show_relative_to(here);
        let loaded = Loaded {
            server: None,
            sites: Vec::new(),
            broken_files: Vec::new(),
            diagnostics: Vec::new(),
            watched: Arc::default(),
            sources,
            order: Vec::new(),
        };
        let (reader, sites, gathered) = (Reader::default(), BTreeMap::new(), Gathered::new(former.look));
        Run { home, fragments, former, reader, loaded, sites, gathered }
    }

    /// Reads a file into the sources; reports what is wrong with it at the place that named it.
    fn read(&mut self, path: &Arc<Path>, named: Option<&Origin>) -> Option<Arc<Source>> {
        self.gathered.file(path.to_path_buf());
        self.loaded.order.push(path.clone());
        match self.reader.read(path) {
            Ok(text) => {
                let source = Arc::new(Source::new(path.clone(), text));
                self.loaded.sources.insert(source.clone());
                Some(source)
            }
            Err((code, message)) => {
                let whole = whole_file(path);
                let diagnostic = match named {
                    Some(origin) => {
                        let message = format!("{}: {message}", self.loaded.sources.show(path));
                        Diagnostic::error(code, origin, message)
                    }
                    None => Diagnostic::error(code, &whole, message),
                };
                self.refuse(path, vec![diagnostic]);
                None
            }
        }
    }

    fn refuse(&mut self, path: &Arc<Path>, errors: Vec<Diagnostic>) {
        self.loaded.diagnostics.extend(errors);
        self.loaded.broken_files.push(path.clone());
    }

    /// The main file, and all that it includes. Gives the server and whether its part is good.
    fn main(&mut self, main: &Arc<Source>) -> Option<(Server, bool)> {
        let (mut root, mut pieces) = self.parse(main)?;
        let mut context = Context::new(main, None, false);
        let said = section::server::read(&mut context, &root);
        self.former = self.former.of_server(&said.server);
        if pieces.iter().any(|piece| piece.known) && self.former.loaded.is_none() {
            // What sites inherit is not what it was.
            (root, pieces) = self.parse(main)?;
        }
        self.take_sites(&mut context, main, &root, &pieces, &said.server);
        document::discard(root);
        let mut good = context.errors == 0;
        context.files.drain(..).for_each(|file| self.gathered.file(file));
        self.loaded.diagnostics.append(&mut context.diagnostics);
        let mut seen = BTreeSet::from([main.path().to_path_buf()]);
        let patterns = || said.include.iter().map(|include| join(main.folder(), include.value.as_ref()));
        patterns().for_each(|pattern| self.gathered.pattern(pattern));
        for (include, pattern) in said.include.iter().zip(patterns()) {
            // Watched even while it is missing.
            self.gathered.folder(pattern.parent().unwrap_or(Path::new("/")));
            let files = match expand(&pattern) {
                Ok(files) => files,
                Err(message) => {
                    let message = format!("`{}`: {message}", quoted(&include.value));
                    self.loaded.diagnostics.push(Diagnostic::error(
                        "invalid-value",
                        &include.origin,
                        message,
                    ));
                    good = false;
                    continue;
                }
            };
            for file in files {
                if seen.insert(file.clone()) {
                    self.included(&file.into(), &include.value, &include.origin, &said.server);
                }
            }
        }
        said.server.patches.iter().for_each(|patches| self.gathered.folder(&patches.folder));
        if said.server.docker.is_some() {
            self.fragments.iter().for_each(|fragment| self.fragment(fragment, &said.server));
        }
        self.check_default_certificate(&said.server);
        Some((said.server, good))
    }

    /// What is to be read of a text, and its sites; `None`: it is no TOML.
    fn parse<'s>(&mut self, source: &'s Source) -> Option<(DeTable<'s>, Vec<Piece<'s>>)> {
        let parsed = document::parse_unknown(source, &self.former.knows(source.path()));
        parsed.map_err(|errors| self.refuse(source.path(), errors)).ok()
    }

    /// One included file: sites and nothing else.
    fn included(&mut self, path: &Arc<Path>, pattern: &str, named: &Origin, server: &Server) {
        let named = (!pattern.contains('*')).then_some(named);
        let Some(source) = self.read(path, named) else { return };
        let Some((root, pieces)) = self.parse(&source) else { return };
        let mut context = Context::new(&source, None, false);
        for (key, _) in root.iter().filter(|(key, _)| key.get_ref() != "site") {
            let name = key.get_ref().as_ref();
            let message = format!("unknown key `{}` in an included file", quoted(name));
            let known = setting::section(Id::File).setting(name).is_some();
            let help = if known {
                format!("`{}` belongs in tidegate.toml; included files hold sites only", quoted(name))
            } else {
                "included files hold sites only: [site.\"shop.example\"]".into()
            };
            context.error("unknown-key", key.span(), message, help);
        }
        self.take_sites(&mut context, &source, &root, &pieces, server);
        document::discard(root);
        if context.errors > 0 {
            // Something of this file was meant for a site, but nobody can say which.
            self.loaded.broken_files.push(path.clone());
        }
        self.loaded.diagnostics.append(&mut context.diagnostics);
    }

    /// Takes the sites of a text: those of the table, and those of the pieces that are known.
    fn take_sites(
        &mut self,
        context: &mut Context<'_>,
        source: &Arc<Source>,
        root: &DeTable<'_>,
        pieces: &[Piece<'_>],
        server: &Server,
    ) {
        if let Some(value) = root.get("site").filter(|value| !value.get_ref().is_table()) {
            let expected = Kind::Named(Id::Site).expected();
            context.wrong_type("site", &expected, value);
        }
        let known = |piece: &Piece<'_>| {
            let text = source.text().get(piece.range.clone()).filter(|_| piece.known)?;
            let entry = self.former.site(source.path(), piece.name, text)?;
            Some(Found::Known(entry.moved(piece, source.lines_before(piece.range.start))))
        };
        let mut found: Vec<(usize, Found<'_>)> = Vec::with_capacity(pieces.len());
        found.extend(gentle::each(pieces).filter_map(|piece| Some((piece.range.start, known(piece)?))));
        each_site(root, |name, key, value| {
            let at = pieces.partition_point(|piece| piece.range.end <= key.start);
            let piece = pieces.get(at).filter(|piece| piece.range.contains(&key.start));
            found.push((key.start, Found::Read { name, key, value, piece }));
        });
        // Age and precedence follow the order in which sites were written.
        found.sort_by_key(|(start, _)| *start);
        for (_, found) in gentle::each(found) {
            self.take_site(context, source, found, server);
        }
    }

    fn take_site(
        &mut self,
        context: &mut Context<'_>,
        source: &Arc<Source>,
        found: Found<'_>,
        server: &Server,
    ) {
        let (name, key) = found.named();
        if self.sites.len() >= SITES_MAX && !self.sites.contains_key(&name) {
            context.error("too-many", key, format!("more than {SITES_MAX} sites are not read"), "");
            return;
        }
        let mut inner = Context::new(source, Some(name.clone()), false);
        if let Found::Read { piece: Some(piece), .. } = &found {
            let start = piece.range.start;
            inner.part = Arc::new(Part::new(source.path().clone(), start, source.lines_before(start)));
        }
        let origin = inner.origin(key);
        if let Some((entry, former, _)) = self.sites.get(&name) {
            let (there, here) = (entry.file.clone(), source.path());
            let from_file = here.is_absolute();
            let moves = from_file && (self.home)(&name, here) && !(self.home)(&name, &there);
            if there == *here || !moves {
                inner.report(twice(&name, former, &origin, &self.loaded.sources));
                self.loaded.diagnostics.append(&mut inner.diagnostics);
                return;
            }
            let intruder = twice(&name, &origin, former, &self.loaded.sources).for_site(&name);
            // What else is wrong there does not concern the site any more.
            let about = |d: &Diagnostic| d.site.as_ref() == Some(&name) && d.is_in(&there);
            self.loaded.diagnostics.retain(|diagnostic| !about(diagnostic));
            self.loaded.diagnostics.push(intruder);
        }
        let entry = found.entry(&mut inner, server);
        self.loaded.diagnostics.append(&mut inner.diagnostics);
        entry.files.iter().for_each(|file| self.gathered.file(file.clone()));
        let age = u64::try_from(self.sites.len()).unwrap_or(u64::MAX);
        self.sites.insert(name, (entry, origin, age));
    }

    /// Sites come and go, those of containers by themselves: that one of them is missing stops no other.
    fn check_default_certificate(&mut self, server: &Server) {
        let Some(wanted) = &server.default_certificate else { return };
        if self.sites.contains_key(&wanted.value) {
            return;
        }
        let message =
            format!("`default_certificate` names the site `{}`, which does not exist", quoted(&wanted.value));
        let help = "until it does, clients that name no site, or none of these, are shown no certificate; write the name \
                    of a site, as in [site.\"shop.example\"]";
        self.loaded.diagnostics.push(Diagnostic::warning("missing", &wanted.origin, message).help(help));
    }

    fn finish(self, server: Option<(Server, bool)>) -> Loaded {
        let Run { mut loaded, sites, gathered, .. } = self;
        loaded.server = server.filter(|(_, good)| *good).map(|(server, _)| server);
        let ages: HashMap<Arc<str>, u64> =
            gentle::each(&sites).map(|(name, (_, _, age))| (name.clone(), *age)).collect();
        loaded.sites = gentle::each(sites.into_values()).map(|(entry, _, _)| entry).collect();
        loaded.watched = Arc::new(gathered.finish());
        loaded.settle_clashes(|name| ages.get(name).copied().unwrap_or(u64::MAX));
        loaded
    }
}

/// The code of the diagnostic about a second site of one name.
pub const DUPLICATE_SITE: &str = "duplicate-site";

fn twice(name: &str, former: &Origin, origin: &Origin, sources: &Sources) -> Diagnostic {
    let place = match former {
        Origin::File(place) => format!("{}, line {}", sources.show(place.path()), place.line()),
        Origin::Default => String::new(),
    };
    Diagnostic::error(DUPLICATE_SITE, origin, format!("the site `{name}` is already defined in {place}"))
        .help("that one is used and this one ignored: merge both, or give one another name")
}

/// Every entry of `backends` of a site and of its routes, and of those in their `split`.
fn entries(site: &mut toml::Value) -> Vec<&mut toml::Value> {
    let mut found = Vec::new();
    for (key, value) in site.as_table_mut().into_iter().flatten() {
        match (key.as_str(), value.as_array_mut()) {
            ("backends", Some(backends)) => found.extend(backends),
            ("route" | "split", Some(parts)) => found.extend(parts.iter_mut().flat_map(entries)),
            _ => {}
        }
    }
    found
}

/// Levels of a site's table that are kept; legal ones have at most six.
const DEPTH_MAX: usize = 32;

/// One site alone, with sorted keys and absolute paths.
fn canonical(name: &str, value: &DeValue<'_>, folder: &Path) -> String {
    let mut site = owned(value, DEPTH_MAX);
    let absolute = |value: Option<&mut toml::Value>| {
        if let Some(toml::Value::String(path)) = value {
            *path = join(folder, path.as_ref()).to_string_lossy().into_owned();
        }
    };
    for name in ["cert", "key"] {
        absolute(site.get_mut("certificate").and_then(|table| table.get_mut(name)));
    }
    for name in ["ca_file", "crl_file"] {
        let client_auth = site.get_mut("tls").and_then(|table| table.get_mut("client_auth"));
        absolute(client_auth.and_then(|table| table.get_mut(name)));
    }
    for entry in entries(&mut site) {
        let text = match entry {
            toml::Value::Table(table) => table.get_mut("address"),
            text => Some(text),
        };
        if let Some(toml::Value::String(text)) = text
            && let Some(path) = section::service::source_file(text)
        {
            *text = format!("file:{}", join(folder, path.as_ref()).display());
        }
    }
    for (policy, name) in section::auth::FILES {
        let path = |table: &mut toml::Value| {
            absolute(table.get_mut("auth").and_then(|auth| auth.get_mut(policy)?.get_mut(name)));
        };
        path(&mut site);
        if let Some(toml::Value::Array(routes)) = site.get_mut("route") {
            routes.iter_mut().for_each(path);
        }
    }
    for name in ["ca_file", "cert", "key"] {
        absolute(site.get_mut("upstream").and_then(|table| table.get_mut(name)));
        if let Some(toml::Value::Array(routes)) = site.get_mut("route") {
            for route in routes {
                absolute(route.get_mut("upstream").and_then(|table| table.get_mut(name)));
            }
        }
    }
    let sites = toml::Table::from_iter([(name.to_owned(), site)]);
    let root = toml::Table::from_iter([("site".to_owned(), toml::Value::Table(sites))]);
    toml::to_string(&root).unwrap_or_default()
}

fn owned(value: &DeValue<'_>, depth: usize) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(number) => {
            toml::Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX))
        }
        DeValue::Float(number) => toml::Value::Float(number.as_str().parse().unwrap_or(0.0)),
        DeValue::Boolean(flag) => toml::Value::Boolean(*flag),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        _ if depth == 0 => toml::Value::String(String::new()),
        DeValue::Array(entries) => {
            toml::Value::Array(entries.iter().map(|entry| owned(entry.get_ref(), depth - 1)).collect())
        }
        DeValue::Table(entries) => toml::Value::Table(
            entries
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), owned(value.get_ref(), depth - 1)))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests;
