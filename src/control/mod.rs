//! Layer 4, the control plane: slow things that may fail, never in a request's way.
//!
//! A file changes ([`watch`]), a signal or a command arrives → [`reload`]: read, compile each site on its own, swap,
//! report. Which version of each site serves is chosen in `choose`. Sites that are refused keep their last good version,
//! in memory and on disk ([`last_good`]). [`discover`] finds endpoints, [`deploy`] puts others in their place; [`probe`] asks them how they are, [`eject`] compares
//! how they answer requests; [`load`] looks at what tenants have and decides what is given up; [`observe`] has the workers watch
//! what limits would fit; [`doctor`] tells when addresses are not those of clients; [`renew`] gets certificates and keeps
//! them, [`clock_guard`] sees to it that this is not done by a wrong clock; [`status`] says how everything is.

pub mod bans;
pub mod behind;
mod choose;
mod client_auth;
pub mod clock_guard;
mod containers;
pub mod deploy;
pub mod discover;
pub mod doctor;
pub mod eject;
mod issue;
pub mod jwks;
pub mod last_good;
pub mod load;
pub mod observe;
mod pack_copies;
pub mod patches;
pub mod probe;
pub mod reload;
mod remembered;
pub mod renew;
pub mod status;
mod traffic;
pub mod watch;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::config::{Fragment, Watched, model};
use crate::discovery::docker;
use crate::policy::connection_limit::Connections;
use crate::snapshot::resident::Residents;
use crate::snapshot::{Cell, Site, Source};
use crate::telemetry::access;

/// What the control plane works with; shared by its tasks.
pub struct Control {
    /// Where the configuration is.
    pub path: PathBuf,
    /// Where snapshots become current.
    pub cell: Arc<Cell>,
    /// What outlives them.
    pub residents: Arc<Residents>,
    /// The caps on client connections.
    pub connections: Connections,
    /// The access log.
    pub access: access::Control,
    /// What listens where.
    pub listeners: Vec<Listener>,
    /// Number of workers.
    pub workers: usize,
    /// What health checks found, in numbers.
    pub probes: probe::Counts,
    /// How near the node is to its bounds.
    pub load: load::View,
    state: Mutex<State>,
    /// What the last reload left to tell; read by `status` while a reload runs.
    view: ArcSwap<View>,
    watched: Mutex<Arc<Watched>>,
    /// What the labels of containers say and is not in force yet.
    relabelled: Mutex<Option<Vec<Fragment>>>,
    deployments: Mutex<deploy::Deployments>,
    /// What is watched for `tidegate suggest`, and how often that was begun.
    observed: Mutex<Option<observe::Run>>,
    watches: AtomicU64,
    /// Held while an answer of a source is taken in: of two about one source, the newer counts.
    learning: Mutex<()>,
    /// Whether another process may have the state folder; held while something is written there.
    retired: Mutex<bool>,
}

/// A socket we listen on.
#[derive(Debug, Clone)]
pub struct Listener {
    /// `http`, `https`, `metrics`, `admin`, `demo`.
    pub kind: &'static str,
    /// Address or path.
    pub address: String,
}

/// What is known about the configuration in force. Only a reload changes it.
#[derive(Default)]
struct State {
    sites: BTreeMap<Arc<str>, Known>,
    /// Last good versions of refused sites that cannot serve now; before the first load, of all sites.
    dormant: BTreeMap<Arc<str>, last_good::Site>,
    next_age: u64,
    /// Whether all this is on disk.
    saved: bool,
    /// Fingerprints of the certificates that are copied there.
    copied: HashSet<String>,
    /// Sites that stand in no file: what labels of containers say.
    fragments: Arc<[Fragment]>,
}

impl State {
    /// How old a site is; `None` for one that is new.
    fn age(&self, name: &str) -> Option<u64> {
        let known = self.sites.get(name).map(|known| known.age);
        known.or_else(|| self.dormant.get(name).map(|kept| kept.age))
    }

    /// What labels of containers said in the last run, from the last good versions.
    fn stored_fragments(&self) -> Vec<Fragment> {
        let places = self.dormant.values().filter_map(|kept| Some((kept.file.to_str()?, &kept.text)));
        let labels = places.filter(|(place, _)| place.starts_with(docker::PLACE));
        labels
            .map(|(place, text)| Fragment { place: place.into(), text: text.clone(), lines: Vec::new() })
            .collect()
    }

    /// The file that a site was last taken from.
    fn file(&self, name: &str) -> Option<&Path> {
        let known = self.sites.get(name).map(|known| &*known.file);
        known.or_else(|| self.dormant.get(name).map(|kept| kept.file.as_path()))
    }
}

/// A site that serves, and what it was made from.
#[derive(Clone)]
struct Known {
    site: Arc<Site>,
    /// What the served version was compiled from.
    model: Arc<model::Site>,
    /// What that was read from.
    text: Arc<str>,
    file: Arc<Path>,
    /// The smaller, the older: decides clashes of hosts.
    age: u64,
}

impl Known {
    fn stored(&self) -> last_good::Site {
        let identity = self.site.identity.as_ref().filter(|_| self.site.source == Source::Files);
        last_good::Site {
            file: self.file.to_path_buf(),
            text: self.text.to_string(),
            age: self.age,
            certificate: identity.map(|identity| last_good::hex(&identity.fingerprint)),
        }
    }
}

/// What `status` tells beside the snapshot.
#[derive(Default)]
pub struct View {
    /// Sites whose newest version was refused, and why; with or without an older one that serves.
    pub quarantined: BTreeMap<Arc<str>, String>,
    /// What was read, for `config show`.
    pub loaded: Option<crate::config::Loaded>,
}

/// What a [`Control`] is made of; handed over by the assembler.
pub struct Parts {
    pub path: PathBuf,
    pub cell: Arc<Cell>,
    pub residents: Arc<Residents>,
    pub connections: Connections,
    pub access: access::Control,
    pub listeners: Vec<Listener>,
    pub workers: usize,
    pub first: reload::First,
}

impl Control {
    /// Takes over after the first load.
    pub fn new(parts: Parts) -> Arc<Control> {
        let reload::First { state, view, watched, .. } = parts.first;
        Arc::new(Control {
            path: parts.path,
            cell: parts.cell,
            residents: parts.residents,
            connections: parts.connections,
            access: parts.access,
            listeners: parts.listeners,
            workers: parts.workers,
            probes: probe::Counts::default(),
            load: load::View::default(),
            state: Mutex::new(state),
            view: ArcSwap::from_pointee(view),
            watched: Mutex::new(watched),
            relabelled: Mutex::default(),
            deployments: Mutex::default(),
            observed: Mutex::default(),
            watches: AtomicU64::new(0),
            learning: Mutex::default(),
            retired: Mutex::new(false),
        })
    }

    /// What is to be watched now, and what it looked like when it was read last.
    pub fn watched(&self) -> Arc<Watched> {
        lock(&self.watched).clone()
    }

    /// The server's settings in force.
    pub fn server(&self) -> Arc<model::Server> {
        self.cell.load().server.clone()
    }

    /// Stores what was not stored yet. From then on nothing is written into the state folder but certificates, which have locks
    /// of their own: another process may have it. Waits for what is being written; not for the thread of the signals.
    pub fn retire(&self) {
        self.keep_bans();
        *lock(&self.retired) = true;
    }

    /// Leave to write into the state folder, for as long as it is held; `None`: no more.
    fn keeping(&self) -> Option<MutexGuard<'_, bool>> {
        Some(lock(&self.retired)).filter(|retired| !**retired)
    }

    /// The address of the first listener of a kind.
    pub fn listener(&self, kind: &str) -> Option<SocketAddr> {
        self.listeners.iter().find(|listener| listener.kind == kind)?.address.parse().ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
