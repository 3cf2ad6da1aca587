//! Networks with names and the database of countries, as last understood: files are read at a reload, those that did
//! not change are not parsed again, and one that cannot be understood leaves the version before it in force.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use crate::base::address::CidrSet;
use crate::config::Diagnostic;
use crate::config::model::{Located, NetworkList, Server};
use crate::policy::address;
use crate::policy::country::Database;
use crate::snapshot::Snapshot;
use crate::snapshot::resident::Residents;
use crate::tls::file::read_bounded;

/// Bytes of a file of networks.
const LIST_BYTES_MAX: usize = 64 << 20;
/// Bytes of a database of countries.
const DATABASE_BYTES_MAX: usize = 512 << 20;

/// The code of what is said about files that are not taken.
pub const CODE: &str = "bad-list";

type Print = [u8; 32];

/// What is in force.
#[derive(Default)]
pub struct Lists(Mutex<State>);

#[derive(Default)]
struct State {
    lists: HashMap<Arc<str>, (Print, Arc<CidrSet>)>,
    countries: Option<(Print, Arc<Database>)>,
}

impl Lists {
    /// Reads what a configuration names, and forgets what it does not. Gives what is wrong, as warnings: the versions
    /// before stay.
    pub fn refresh(&self, server: &Server) -> Vec<Diagnostic> {
        let mut problems = Vec::new();
        let mut lists = HashMap::new();
        for list in &server.networks {
            let former = self.lock().lists.get(&list.name).cloned();
            let kept = match read_list(list, former.as_ref()) {
                Ok(read) => Some(read),
                Err(problem) => {
                    problems.push(*problem);
                    former
                }
            };
            lists.extend(kept.map(|kept| (list.name.clone(), kept)));
        }
        let former = self.lock().countries.clone();
        let countries = server.country_database.as_ref().and_then(|file| {
            let read = read_database(file, former.as_ref());
            read.map_err(|problem| problems.push(*problem)).ok().or(former)
        });
        *self.lock() = State { lists, countries };
        problems
    }

    /// The networks of a list; `None` where it never had any.
    pub fn networks(&self, name: &str) -> Option<Arc<CidrSet>> {
        self.lock().lists.get(name).map(|(_, set)| set.clone())
    }

    /// The lists that are said to be of proxies.
    pub fn proxies(&self, server: &Server) -> Vec<(Arc<str>, Arc<CidrSet>)> {
        let said = server.networks.iter().filter(|list| list.proxy);
        said.filter_map(|list| Some((list.name.clone(), self.networks(&list.name)?))).collect()
    }

    /// The database of countries.
    pub fn countries(&self) -> Option<Arc<Database>> {
        self.lock().countries.as_ref().map(|(_, database)| database.clone())
    }

    /// What tells one version of a list from another.
    pub fn print(&self, name: &str) -> Print {
        self.lock().lists.get(name).map(|(print, _)| *print).unwrap_or_default()
    }

    /// What tells one version of the database from another.
    pub fn countries_print(&self) -> Print {
        self.lock().countries.as_ref().map(|(print, _)| *print).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the database of countries is another one than in this snapshot: fields that name a country are no part of what a
/// site is known by.
pub fn changed(old: &Snapshot, residents: &Residents) -> bool {
    let sets = |lists: &[(Arc<str>, Arc<CidrSet>)]| {
        lists.iter().map(|(_, set)| Arc::as_ptr(set)).collect::<Vec<_>>()
    };
    old.database.as_ref().map(Arc::as_ptr) != residents.lists.countries().as_ref().map(Arc::as_ptr)
        || sets(&old.proxies) != sets(&residents.lists.proxies(&old.server))
}

fn read_list(
    list: &NetworkList,
    former: Option<&(Print, Arc<CidrSet>)>,
) -> Result<(Print, Arc<CidrSet>), Box<Diagnostic>> {
    const WHAT: &str = "list of networks";
    let text = match &list.file {
        None => Vec::new(),
        Some(file) => {
            let text = read(file, LIST_BYTES_MAX, WHAT)?;
            // Most often a writer that has begun anew and not written yet: whom it kept out must not come in meanwhile.
            if text.is_empty() {
                return Err(refused(file, WHAT, "it is empty; one without networks has a comment at least"));
            }
            text
        }
    };
    let mut hash = Sha256::new();
    hash.update(format!("{:?}", list.networks));
    hash.update(&text);
    let print: Print = hash.finalize().into();
    if let Some(former) = former.filter(|(before, _)| *before == print) {
        return Ok(former.clone());
    }
    let parsed =
        std::str::from_utf8(&text).map_err(|_| "it is not UTF-8".to_owned()).and_then(address::parse);
    let more = parsed.map_err(|why| match &list.file {
        Some(file) => refused(file, WHAT, &why),
        None => Box::new(Diagnostic::error(CODE, &crate::config::model::Origin::Default, why)),
    })?;
    let networks = list.networks.iter().copied().chain(more);
    Ok((print, Arc::new(CidrSet::unwritten(networks))))
}

fn read_database(
    file: &Located<std::path::PathBuf>,
    former: Option<&(Print, Arc<Database>)>,
) -> Result<(Print, Arc<Database>), Box<Diagnostic>> {
    const WHAT: &str = "database of countries";
    let bytes = read(file, DATABASE_BYTES_MAX, WHAT)?;
    let print: Print = Sha256::digest(&bytes).into();
    if let Some(former) = former.filter(|(before, _)| *before == print) {
        return Ok(former.clone());
    }
    let database = Database::open(bytes).map_err(|why| refused(file, WHAT, &why))?;
    Ok((print, Arc::new(database)))
}

fn read(file: &Located<std::path::PathBuf>, max: usize, what: &str) -> Result<Vec<u8>, Box<Diagnostic>> {
    let path: &Path = &file.value;
    let bytes = read_bounded(path, max).map(|bytes| bytes.to_vec());
    bytes.map_err(|error| refused(file, what, &error.to_string()))
}

fn refused(file: &Located<std::path::PathBuf>, what: &str, why: &str) -> Box<Diagnostic> {
    let message = format!("the {what} {} is not taken: {why}", file.value.display());
    let help = "an earlier version, if there is one, stays in force; without one, what needs it is refused";
    Box::new(Diagnostic::warning(CODE, &file.origin, message).help(help))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_list_follows_its_file_and_keeps_what_it_had_when_the_file_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let (config, list) = (folder.path().join("tidegate.toml"), folder.path().join("list.txt"));
        let text = "[networks.\"bad\"]\nnetworks = [\"198.51.100.0/24\"]\nfile = \"list.txt\"\n";
        std::fs::write(&config, text).unwrap();
        let server = config::load(&config).server.unwrap();
        let lists = Lists::default();
        let has = |address: &str| lists.networks("bad").map(|set| set.contains(address.parse().unwrap()));

        assert_eq!(lists.refresh(&server).len(), 1, "there is no file yet");
        assert_eq!(has("198.51.100.1"), None, "and half a list is none");
        std::fs::write(&list, "192.0.2.0/24\n").unwrap();
        assert_eq!(lists.refresh(&server).len(), 0);
        assert_eq!(
            (has("192.0.2.1"), has("198.51.100.1"), has("203.0.113.1")),
            (Some(true), Some(true), Some(false))
        );
        let (print, set) = (lists.print("bad"), lists.networks("bad").unwrap());
        assert_eq!(lists.refresh(&server).len(), 0);
        assert!(Arc::ptr_eq(&set, &lists.networks("bad").unwrap()), "an unchanged file is not parsed again");

        std::fs::write(&list, "203.0.113.0/24\nnonsense\n").unwrap();
        let problems = lists.refresh(&server);
        assert!(problems[0].message.contains("line 2: `nonsense`"), "{}", problems[0].message);
        assert_eq!((has("192.0.2.1"), lists.print("bad") == print), (Some(true), true));
        // As a writer leaves it between two steps.
        std::fs::write(&list, "").unwrap();
        assert!(lists.refresh(&server)[0].message.contains("it is empty"));
        assert_eq!((has("192.0.2.1"), lists.print("bad") == print), (Some(true), true));
        std::fs::write(&list, "203.0.113.0/24\n").unwrap();
        assert_eq!(lists.refresh(&server).len(), 0);
        assert_eq!((has("192.0.2.1"), has("203.0.113.1")), (Some(false), Some(true)));
    }
}
