//! What the files of a configuration looked like when they were read, so that whoever watches them knows whether what is
//! in force is what stands there now.
//!
//! A stamp is taken before its file is read: what changes in between then looks changed, at the price of one reload that
//! finds nothing new. The other way round it would be missed until the next change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use foldhash::fast::RandomState;
use rustix::fs::{Mode, OFlags, RawDir};

use super::source;
use crate::base::{clock, gentle};

/// Files and folders that a configuration depends on.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Watched {
    /// Every file read, and every certificate, key, list and authority named; in any order.
    pub files: Vec<PathBuf>,
    /// Folders of the files, and those of `include` and of patches even while they are missing.
    pub folders: Vec<PathBuf>,
    /// Patterns of `include`: files that they mean may come at any time.
    pub patterns: Vec<PathBuf>,
    /// What they looked like before they were read.
    pub seen: Look,
}

/// What a look at files saw; two equal looks mean that nothing changed.
#[derive(Debug, Default, Clone)]
pub struct Look {
    /// When it began, in seconds since 1970.
    began: i64,
    files: HashMap<OsString, Option<Stamp>, RandomState>,
    /// Folders of which it saw all that may be taken, and what that is. Each site may have a folder of its own.
    folders: HashMap<PathBuf, Vec<PathBuf>, RandomState>,
}

/// How a file looked. Two equal ones mean that nobody changed it, as far as may be told from outside.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    regular: bool,
    /// This is what a link leads to.
    link: bool,
}

/// File systems tell times as coarsely as this, in seconds.
const COARSE: i64 = 2;

impl Stamp {
    /// Links are followed: what matters is what would be read. Asks the system once of what is no link.
    fn of(path: &Path) -> Option<Stamp> {
        let own = fs::symlink_metadata(path).ok()?;
        let link = own.is_symlink();
        let metadata: Metadata = if link { fs::metadata(path).ok()? } else { own };
        Some(Stamp {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            regular: metadata.is_file(),
            link,
        })
    }

    /// Whether the bytes are the same, whoever would hide it: times of changes can be set, that of the inode cannot.
    pub fn same_bytes(&self, other: &Stamp) -> bool {
        self == other && self.changed == other.changed
    }

    /// Whether there was no change for so long that another one would bear another time.
    fn at_rest(&self, now: i64) -> bool {
        let settled = now.saturating_sub(COARSE);
        self.regular && self.modified.0 < settled && self.changed.0 < settled
    }
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Stamp) -> bool {
        (self.file, self.size, self.modified) == (other.file, other.size, other.modified)
            && (self.regular, self.link) == (other.regular, other.link)
    }
}

impl Eq for Stamp {}

/// How a file looks now; see [`Look::at_rest`].
pub fn at_rest(path: &Path) -> Option<Stamp> {
    let mut look = Look::begin(1);
    look.add(path, None);
    look.at_rest(path)
}

impl Watched {
    /// Looks at them again.
    pub fn look(&self) -> Look {
        let mut look = Look::begin(self.seen.files.len());
        self.folders.iter().for_each(|folder| look.add_folder(folder, &self.patterns, None));
        self.files.iter().for_each(|file| look.add(file, None));
        look
    }

    /// Whether those that `former` does not name look as they did.
    pub fn new_ones_stay(&self, former: &Watched) -> bool {
        gentle::often(&self.seen.files)
            .filter(|(file, _)| !former.seen.files.contains_key(*file))
            .all(|(file, seen)| Stamp::of(Path::new(file)) == *seen)
    }

    /// Whether all files are where those of `former` were, new ones beside them: nothing became a link, or leads elsewhere.
    pub fn lies_where(&self, former: &Watched) -> bool {
        let place = |stamp: &Option<Stamp>| stamp.map(|stamp| (stamp.file, stamp.link));
        (&self.folders, &self.patterns) == (&former.folders, &former.patterns)
            && gentle::often(&self.seen.files).all(|(file, seen)| match former.seen.files.get(file) {
                Some(former) => place(former) == place(seen),
                None => seen.is_some_and(|seen| !seen.link),
            })
    }

    /// Names, without folders, of files that `former` does not name.
    pub fn new_names(&self, former: &Watched) -> impl Iterator<Item = OsString> {
        let new = gentle::often(&self.files).filter(|file| !former.seen.files.contains_key(file.as_os_str()));
        new.filter_map(|file| file.file_name().map(OsStr::to_os_string))
    }

    /// Watches these files too, which are read after this.
    pub fn add(&mut self, files: Vec<PathBuf>) {
        for file in files {
            if !self.seen.knows(&file) {
                self.seen.add(&file, None);
                let folder = file.parent().unwrap_or(Path::new("/"));
                if !self.seen.folders.contains_key(folder) {
                    self.seen.add_folder(folder, &self.patterns, None);
                    self.folders.push(folder.to_path_buf());
                }
                self.files.push(file);
            }
        }
    }

    /// Watches what the other one watches too; of files in both this one's look counts.
    pub fn join(&mut self, other: Watched) {
        let Watched { files, folders, mut seen, .. } = other;
        self.files.extend(files.into_iter().filter(|file| !self.seen.knows(file)));
        let known: HashSet<PathBuf> = self.folders.iter().cloned().collect();
        self.folders.extend(folders.into_iter().filter(|folder| !known.contains(folder)));
        for (file, stamp) in seen.files.drain() {
            self.seen.files.entry(file).or_insert(stamp);
        }
    }

    /// Drops the lists, not in one go.
    pub fn discard(self) {
        gentle::drop_each(self.files);
    }

    /// Where the files are, behind all links. Asks the system once for each folder, and of those files only that are links.
    pub fn resolved(&self) -> Vec<PathBuf> {
        let mut folders: HashMap<&OsStr, Option<PathBuf>> = HashMap::new();
        let resolved = gentle::often(&self.files).filter_map(|file| {
            let seen = self.seen.files.get(file.as_os_str()).copied().flatten();
            // Of one that is missing, or leads nowhere, nothing is known.
            if seen.is_none_or(|seen| seen.link) {
                return file.canonicalize().ok();
            }
            let (folder, name) = (file.parent()?, file.file_name()?);
            let folder = folders.entry(folder.as_os_str()).or_insert_with(|| folder.canonicalize().ok());
            folder.as_ref().map(|folder| folder.join(name))
        });
        resolved.collect()
    }

    /// What may change what a look sees; `resolved` is what the files are links to.
    pub fn concerns(&self, resolved: &[PathBuf]) -> Concerns {
        // Room for all at once: a table that grows is written anew as a whole.
        let mut names = HashSet::with_capacity(self.files.len());
        for file in gentle::often(self.files.iter().chain(resolved)) {
            if let Some(name) = file.file_name().filter(|name| !names.contains(*name)) {
                names.insert(name.to_os_string());
            }
        }
        Concerns { names, patterns: self.patterns.clone() }
    }
}

/// Which files' new bytes can change what a look sees. An access log may lie beside the configuration, and is written to
/// all the time.
#[derive(Debug, Default)]
pub struct Concerns {
    /// Names of files, without their folders.
    pub names: HashSet<OsString>,
    patterns: Vec<PathBuf>,
}

impl Concerns {
    /// Whether a file of one of the folders is among them.
    pub fn has(&self, file: &Path) -> bool {
        let known = |name| self.names.contains(name) || may_be_taken(name, &self.patterns);
        file.file_name().is_none_or(known)
    }
}

impl PartialEq for Look {
    fn eq(&self, other: &Look) -> bool {
        self.files.len() == other.files.len()
            && gentle::often(&self.files).all(|(file, seen)| other.files.get(file) == Some(seen))
    }
}

impl Eq for Look {}

impl Drop for Look {
    fn drop(&mut self) {
        // Freeing what was seen of tens of thousands of files takes a millisecond or two.
        gentle::drop_each(std::mem::take(&mut self.files));
        gentle::drop_each(std::mem::take(&mut self.folders));
    }
}

impl Look {
    /// Of so many files.
    fn begin(files: usize) -> Look {
        let began = i64::try_from(clock::wall().as_secs()).unwrap_or(i64::MAX);
        let files = HashMap::with_capacity_and_hasher(files, RandomState::default());
        Look { began, files, folders: HashMap::default() }
    }

    /// Looks at a file that was not looked at yet, neither by this look nor by the one before it.
    fn add(&mut self, file: &Path, before: Option<&Look>) {
        gentle::breathe();
        // By bytes: comparing paths by their parts takes longer than asking the system.
        if !self.files.contains_key(file.as_os_str()) {
            let seen = before.and_then(|before| before.files.get(file.as_os_str()).copied());
            self.files.insert(file.into(), seen.unwrap_or_else(|| Stamp::of(file)));
        }
    }

    /// Whether it looked at this file, be it there or not.
    pub fn knows(&self, file: &Path) -> bool {
        self.files.contains_key(file.as_os_str())
    }

    /// How a file looked, to be compared with how it looked before it was read once. `None` where that tells nothing: there
    /// is no such regular file, or it had changed so lately that another change may bear the same time.
    pub fn at_rest(&self, file: &Path) -> Option<Stamp> {
        self.files.get(file.as_os_str()).copied().flatten().filter(|stamp| stamp.at_rest(self.began))
    }

    /// Looks at what may be taken from a folder.
    fn add_folder(&mut self, folder: &Path, patterns: &[PathBuf], before: Option<&Look>) {
        // What came since the look before is not missed: it is in the folder at the next one, and was not at that one.
        let known = before.and_then(|before| before.folders.get(folder).cloned());
        let inside = known.unwrap_or_else(|| list(folder, patterns));
        inside.iter().for_each(|path| self.add(path, before));
        self.folders.insert(folder.to_path_buf(), inside);
    }
}

/// Names of a folder that are asked for at once, in bytes: certificates may lie there by the thousand, and the system gives
/// what there is room for in one go.
const NAMES_BYTES: usize = 2 << 10;

/// What may be taken from a folder.
fn list(folder: &Path, patterns: &[PathBuf]) -> Vec<PathBuf> {
    let patterns: Vec<_> = patterns.iter().filter(|pattern| pattern.parent() == Some(folder)).collect();
    let (mut room, mut inside) = ([MaybeUninit::<u8>::uninit(); NAMES_BYTES], Vec::new());
    // Nothing else is opened: a named pipe would wait for a writer.
    let only_folders = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(open) = rustix::fs::open(folder, only_folders, Mode::empty()) else { return inside };
    let mut names = RawDir::new(open, &mut room);
    while let Some(Ok(entry)) = names.next() {
        gentle::breathe();
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if may_be_taken(name, patterns.iter().copied()) {
            inside.push(folder.join(name));
        }
    }
    inside
}

/// Whether a file in a folder may become part of a configuration without being named; `patterns` are the folder's.
fn may_be_taken<'a>(name: &OsStr, patterns: impl IntoIterator<Item = &'a PathBuf>) -> bool {
    let kind = Path::new(name).extension();
    kind.is_some_and(|kind| kind == "toml" || kind == "minisig")
        || patterns.into_iter().any(|pattern| source::takes(pattern, name))
}

/// Gathers what is to be watched while it is read.
#[derive(Debug)]
pub(super) struct Gathered<'a> {
    /// A look that began before anything was read: what it saw is not looked at again.
    before: Option<&'a Look>,
    files: HashSet<OsString, RandomState>,
    folders: BTreeSet<PathBuf>,
    patterns: Vec<PathBuf>,
    seen: Look,
}

impl<'a> Gathered<'a> {
    pub fn new(before: Option<&'a Look>) -> Gathered<'a> {
        let mut seen = Look::begin(before.map_or(0, |before| before.files.len()));
        seen.began = before.map_or(seen.began, |before| before.began);
        let files = HashSet::with_capacity_and_hasher(seen.files.capacity(), RandomState::default());
        Gathered { before, files, folders: BTreeSet::new(), patterns: Vec::new(), seen }
    }

    /// A file that is read after this.
    pub fn file(&mut self, file: PathBuf) {
        self.seen.add(&file, self.before);
        self.files.insert(file.into());
    }

    /// A folder that is listed after this. Of two looks the first counts: what appeared since may have been missed.
    pub fn folder(&mut self, folder: &Path) {
        if self.folders.insert(folder.to_path_buf()) {
            self.seen.add_folder(folder, &self.patterns, self.before);
        }
    }

    /// An absolute pattern of `include` whose folder is listed after this, be it there or not. All come before any folder.
    pub fn pattern(&mut self, pattern: PathBuf) {
        self.patterns.push(pattern);
    }

    pub fn finish(mut self) -> Watched {
        let files = std::mem::take(&mut self.files);
        let files: Vec<PathBuf> = gentle::each(files).map(PathBuf::from).collect();
        let parents: HashSet<&OsStr> =
            gentle::each(&files).filter_map(|file| file.parent().map(Path::as_os_str)).collect();
        parents.into_iter().for_each(|folder| self.folder(Path::new(folder)));
        let Gathered { folders, patterns, seen, .. } = self;
        Watched { files, folders: folders.into_iter().collect(), patterns, seen }
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
            let mut gathered = Gathered::new(None);
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

    #[test]
    fn a_folder_is_listed_whole_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        // More names than are asked for at once.
        for number in 0..200 {
            std::fs::write(folder.path().join(format!("{number}-{}.toml", "x".repeat(40))), "").unwrap();
            std::fs::write(folder.path().join(format!("{number}.pem")), "").unwrap();
        }
        assert_eq!(list(folder.path(), &[]).len(), 200);
        assert!(list(&folder.path().join("1.pem"), &[]).is_empty());
        assert!(list(&folder.path().join("missing"), &[]).is_empty());
        let pipe = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::RUSR).unwrap();
        assert!(list(&pipe, &[]).is_empty(), "it waits for nobody");
    }

    #[test]
    fn what_a_look_saw_before_is_not_looked_at_again_and_still_looks_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("a.pem"), "1").unwrap();
        std::os::unix::fs::symlink(path("a.pem"), path("link.pem")).unwrap();
        let read = |before: Option<&Look>| {
            let mut gathered = Gathered::new(before);
            ["a.pem", "link.pem", "missing.pem"].into_iter().for_each(|name| gathered.file(path(name)));
            gathered.finish()
        };
        let first = read(None);
        let real = folder.path().canonicalize().unwrap();
        assert_eq!(first.resolved().len(), 2);
        assert!(first.resolved().iter().all(|resolved| *resolved == real.join("a.pem")));
        std::fs::write(path("a.pem"), "12").unwrap();
        let second = read(Some(&first.seen));
        assert_eq!(second.seen, first.seen, "as it was before it changed");
        assert_ne!(second.look(), second.seen);
        assert!(second.new_ones_stay(&first), "what is not new is not looked at");
        assert!(!second.new_ones_stay(&Watched::default()));
        // A copy in the place of a file, a link in the place of a file: both are changes.
        let third = read(Some(&first.look()));
        std::fs::rename(path("a.pem"), path("b.pem")).unwrap();
        std::os::unix::fs::symlink(path("b.pem"), path("a.pem")).unwrap();
        assert_ne!(third.look(), third.seen);
    }

    #[test]
    fn a_stamp_tells_one_content_from_the_next_once_the_file_has_come_to_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let later = |path: &Path| {
            let mut look = Look::begin(0);
            look.began += 60;
            look.add(path, None);
            look.at_rest(path)
        };
        std::fs::write(&path, "one").unwrap();
        assert!(at_rest(&path).is_none(), "it may change once more in this instant");
        let one = later(&path).unwrap();
        assert!(later(&path).unwrap().same_bytes(&one));
        // As long, and with the times of the old one: the inode tells.
        std::fs::write(folder.path().join("new"), "two").unwrap();
        let times =
            std::fs::FileTimes::new().set_modified(std::fs::metadata(&path).unwrap().modified().unwrap());
        std::fs::File::options()
            .write(true)
            .open(folder.path().join("new"))
            .unwrap()
            .set_times(times)
            .unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        let two = later(&path).unwrap();
        assert!(two != one && !two.same_bytes(&one));
        // Written in place, as long, and with the same time: only when the inode changed tells, and that cannot be set.
        std::fs::write(&path, "six").unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        let six = later(&path).unwrap();
        assert!(six == two && !six.same_bytes(&two));
        assert!(later(folder.path()).is_none(), "a folder");
        assert!(later(&folder.path().join("absent")).is_none());
    }
}
