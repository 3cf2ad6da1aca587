//! What the files of a configuration looked like when they were read, so that whoever watches them knows whether what is
//! in force is what stands there now.
//!
//! A stamp is taken before its file is read: what changes in between then looks changed, at the price of one reload that
//! finds nothing new. The other way round it would be missed until the next change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use foldhash::fast::RandomState;

use crate::base::gentle;

/// Files and folders that a configuration depends on.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Every file read, and every certificate, key, list and authority named; in any order.
    pub files: Vec<PathBuf>,
    /// Folders of the files, and those of `include` and of patches even while they are missing.
    pub folders: Vec<PathBuf>,
    /// What they looked like before they were read.
    pub seen: Look,
}

/// What a look at files saw; two equal looks mean that nothing changed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Look(HashMap<OsString, Option<Stamp>, RandomState>);

/// Inode, size, and time of the last change of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, i64, i64);

impl Watched {
    /// Looks at them again.
    pub fn look(&self) -> Look {
        let mut look = Look(HashMap::with_capacity_and_hasher(self.seen.0.len(), RandomState::default()));
        self.folders.iter().for_each(|folder| look.add_folder(folder));
        self.files.iter().for_each(|file| look.add(file));
        look
    }

    /// Where the files are, behind all links. Asks the system once for each folder, and once for each file that is no
    /// link.
    pub fn resolved(&self) -> Vec<PathBuf> {
        let mut folders: HashMap<&OsStr, Option<PathBuf>> = HashMap::new();
        let resolved = gentle::each(&self.files).filter_map(|file| {
            if file.is_symlink() {
                return file.canonicalize().ok();
            }
            let (folder, name) = (file.parent()?, file.file_name()?);
            let folder = folders.entry(folder.as_os_str()).or_insert_with(|| folder.canonicalize().ok());
            folder.as_ref().map(|folder| folder.join(name))
        });
        resolved.collect()
    }

    /// Names, without folders, of the files and of what they are links to.
    pub fn names(&self, resolved: &[PathBuf]) -> HashSet<OsString> {
        let all = gentle::each(self.files.iter().chain(resolved));
        all.filter_map(|file| file.file_name().map(OsStr::to_os_string)).collect()
    }

    /// Whether new bytes in a file of one of the folders can change what a look sees. An access log may lie beside the
    /// configuration, and is written to all the time.
    pub fn concerns(names: &HashSet<OsString>, file: &Path) -> bool {
        may_be_taken(file) || file.file_name().is_none_or(|name| names.contains(name))
    }
}

impl Look {
    /// Looks at a file that was not looked at yet. Links are followed: what matters is what would be read.
    pub fn add(&mut self, file: &Path) {
        gentle::breathe();
        // By bytes: comparing paths by their parts takes longer than asking the system.
        if self.0.contains_key(file.as_os_str()) {
            return;
        }
        let stamp = file.metadata().map(|m| Stamp(m.ino(), m.size(), m.mtime(), m.mtime_nsec()));
        self.0.insert(file.into(), stamp.ok());
    }

    /// Whether two looks saw the same.
    pub fn same(&self, other: &Look) -> bool {
        self.0.len() == other.0.len()
            && gentle::each(&self.0).all(|(file, seen)| other.0.get(file) == Some(seen))
    }

    /// Looks at what may be taken from a folder.
    fn add_folder(&mut self, folder: &Path) {
        // Certificates may lie there by the thousand.
        let entries = gentle::each(folder.read_dir().into_iter().flatten().flatten());
        let inside = entries.map(|entry| entry.path());
        inside.filter(|path| may_be_taken(path)).for_each(|path| self.add(&path));
    }
}

/// Whether a file in a folder may become part of a configuration without being named.
fn may_be_taken(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "toml" || kind == "minisig")
}

/// Gathers what is to be watched while it is read.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    files: HashSet<OsString>,
    folders: BTreeSet<PathBuf>,
    seen: Look,
}

impl Gathered {
    /// A file that is read after this.
    pub fn file(&mut self, file: PathBuf) {
        self.seen.add(&file);
        self.files.insert(file.into());
    }

    /// A folder that is listed after this. Of two looks the first counts: what appeared since may have been missed.
    pub fn folder(&mut self, folder: &Path) {
        if self.folders.insert(folder.to_path_buf()) {
            self.seen.add_folder(folder);
        }
    }

    pub fn finish(mut self) -> Watched {
        let files = std::mem::take(&mut self.files);
        let files: Vec<PathBuf> = gentle::each(files).map(PathBuf::from).collect();
        let parents: HashSet<&OsStr> =
            gentle::each(&files).filter_map(|file| file.parent().map(Path::as_os_str)).collect();
        parents.into_iter().for_each(|folder| self.folder(Path::new(folder)));
        let Gathered { folders, seen, .. } = self;
        Watched { files, folders: folders.into_iter().collect(), seen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_after_the_first_look_looks_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.pem"), "1").unwrap();
        let gathered = || {
            let mut gathered = Gathered::default();
            gathered.folder(folder.path());
            gathered.file(path("a.pem"));
            gathered.file(path("missing.pem"));
            gathered
        };
        let watched = gathered().finish();
        assert_eq!(watched.look(), watched.seen, "nothing changed");
        for (name, text) in [("a.pem", "12"), ("missing.pem", ""), ("new.toml", "")] {
            let before = gathered();
            std::fs::write(path(name), text).unwrap();
            let watched = before.finish();
            assert_ne!(watched.look(), watched.seen, "{name}");
        }
        let before = gathered();
        std::fs::remove_file(path("new.toml")).unwrap();
        let watched = before.finish();
        assert_ne!(watched.look(), watched.seen);
        std::fs::write(path("of-no-concern.txt"), "").unwrap();
        let watched = gathered().finish();
        assert_eq!(watched.look(), watched.seen);
    }
}
