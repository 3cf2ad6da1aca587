//! Notices that the configuration changed: events of the file system, and a slow look that does not depend on them.
//!
//! Events name folders, not files: inotify follows inodes, and editors, deployment tools and ConfigMaps replace files.
//! Network file systems and bind mounts give no events at all, which is why every [`POLL`] the files are looked at.
//! An event only says "look": whether anything changed is decided by content, in the reload.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::ModifyKind;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::base::gentle;
use crate::config::Watched;
use crate::config::look::{Concerns, Look};
use crate::control::Control;
use crate::control::behind::behind;

/// How often files are looked at without an event.
pub const POLL: Duration = Duration::from_secs(10);
/// Events must be silent this long before a reload: writers write in several steps.
const QUIET: Duration = Duration::from_millis(200);
/// And are waited for no longer than this, or a busy folder would put a reload off for ever.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// Names of files that are gone may be remembered up to as many as there are files, and these.
const NAMES_SPARE: usize = 1000;

/// Watches for ever; calls a reload when something may have changed.
pub async fn run(control: Arc<Control>, reload: impl AsyncFn(&'static str, Look)) {
    compare(|| control.watched(), reload).await;
}

/// Compares what stands there with what it looked like when it was read last, whoever read it: what changed before the
/// first look here, or during a reload, is seen by the look after it.
async fn compare(watched: impl Fn() -> Arc<Watched>, reload: impl AsyncFn(&'static str, Look)) {
    let changed = Arc::new(Notify::new());
    let mut folders = Folders::new(changed.clone());
    let mut reason = "files changed during the start";
    loop {
        let read = watched();
        let look;
        (folders, look) = follow_and_look(folders, read.clone()).await;
        if let Some(look) = look {
            reload(reason, look).await;
            let now = watched();
            // Not at once where nothing was read: that would be tried without an end.
            if !Arc::ptr_eq(&read, &now) {
                let all_stay;
                (folders, all_stay) = follow_new(folders, now, read).await;
                if !all_stay {
                    changed.notify_one();
                }
            }
        }
        reason = tokio::select! {
            () = changed.notified() => {
                settle(&changed).await;
                "files changed"
            }
            () = tokio::time::sleep(POLL) => "files changed, seen by the regular look",
        };
    }
}

/// Followed first, so that what changes after the look gives an event. Gives what was seen, if anything looks otherwise than
/// when it was read.
async fn follow_and_look(mut folders: Folders, watched: Arc<Watched>) -> (Folders, Option<Look>) {
    aside(move || {
        folders.follow(&watched);
        let look = Some(watched.look()).filter(|look| *look != watched.seen);
        (folders, look)
    })
    .await
}

/// Follows what was read just now, after `former`. The files of that have given events all the time: only new ones are
/// looked at. Whether nothing is known to look otherwise than when it was read.
async fn follow_new(mut folders: Folders, watched: Arc<Watched>, former: Arc<Watched>) -> (Folders, bool) {
    aside(move || {
        let followed = folders.follow(&watched);
        let all_stay = followed && watched.new_ones_stay(&former);
        Arc::into_inner(former).into_iter().for_each(Watched::discard);
        (folders, all_stay)
    })
    .await
}

/// Ten thousand sites name thirty thousand files: they are not looked at on the thread that answers the admin socket.
async fn aside<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> T {
    match behind(look).await {
        Ok(looked) => looked,
        // Ends with the process only.
        Err(_) => std::future::pending().await,
    }
}

/// Waits until events stop.
async fn settle(changed: &Notify) {
    let _ = tokio::time::timeout(QUIET_MAX, async {
        while tokio::time::timeout(QUIET, changed.notified()).await.is_ok() {}
    })
    .await;
}

/// The folders that events are wanted from.
struct Folders {
    watcher: Option<RecommendedWatcher>,
    /// What is followed: its folders, as named and as they resolve.
    of: Option<(Arc<Watched>, HashSet<PathBuf>)>,
    /// With device, inode and birth: a folder that was removed and made again is another one, whatever its name, and
    /// often has the inode of the old one.
    followed: HashMap<PathBuf, (u64, u64, Option<Duration>)>,
    /// Whose new bytes are a reason to look.
    concerns: Arc<Mutex<Concerns>>,
}

impl Folders {
    fn new(changed: Arc<Notify>) -> Folders {
        let concerns = Arc::<Mutex<Concerns>>::default();
        let known = concerns.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // An error (queue overflow, say) is a reason to look.
            if event.map_or(true, |event| is_reason(&event, &known)) {
                changed.notify_one();
            }
        });
        let watcher = watcher.map_err(|error| {
            tracing::warn!(
                "no file events ({error}): changes are noticed within {POLL:?}; raise fs.inotify.max_user_instances \
                 to have them at once"
            );
        });
        Folders { watcher: watcher.ok(), of: None, followed: HashMap::new(), concerns }
    }

    /// Wants events of the files from now on. Whether all of them were wanted before, and are given.
    fn follow(&mut self, watched: &Arc<Watched>) -> bool {
        if self.watcher.is_none() {
            return false;
        }
        let wanted = self.wanted(watched);
        let all_before = self.follow_folders(&wanted);
        self.of = Some((watched.clone(), wanted));
        all_before
    }

    /// The folders to follow. Links are resolved only where something may lead elsewhere than before.
    fn wanted(&mut self, watched: &Arc<Watched>) -> HashSet<PathBuf> {
        if let Some((of, wanted)) = self.of.take() {
            if Arc::ptr_eq(&of, watched) {
                return wanted;
            }
            let crowded =
                lock(&self.concerns).names.len() > watched.files.len().saturating_mul(2) + NAMES_SPARE;
            let same = !crowded && watched.lies_where(&of);
            if same {
                // Names that are gone stay until there are too many: at worst one look too many.
                let new: Vec<OsString> = watched.new_names(&of).collect();
                lock(&self.concerns).names.extend(new);
            }
            Arc::into_inner(of).into_iter().for_each(Watched::discard);
            if same {
                return wanted;
            }
        }
        let resolved = watched.resolved();
        let former = std::mem::replace(&mut *lock(&self.concerns), watched.concerns(&resolved));
        let wanted = folders(watched, &resolved);
        gentle::drop_each(resolved);
        gentle::drop_each(former.names);
        wanted
    }

    fn follow_folders(&mut self, wanted: &HashSet<PathBuf>) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let identity = |folder: &PathBuf| {
            let metadata = folder.metadata().ok()?;
            let born = metadata.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            Some((folder.clone(), (metadata.dev(), metadata.ino(), born)))
        };
        // A folder that does not exist (yet) cannot be watched: the regular look sees it appear.
        let wanted: HashMap<_, _> = wanted.iter().filter_map(identity).collect();
        for (gone, _) in self.followed.iter().filter(|(folder, id)| wanted.get(*folder) != Some(*id)) {
            let _ = watcher.unwatch(gone);
        }
        let before = std::mem::take(&mut self.followed);
        let all_before = wanted.iter().all(|(folder, id)| before.get(folder) == Some(id));
        self.followed = wanted
            .into_iter()
            .filter(|(folder, id)| {
                before.get(folder) == Some(id) || watcher.watch(folder, RecursiveMode::NonRecursive).is_ok()
            })
            .collect();
        all_before
    }
}

/// Whether an event may be the news of a change. Reading is none, nor are new bytes in a file of no concern.
fn is_reason(event: &notify::Event, concerns: &Mutex<Concerns>) -> bool {
    match event.kind {
        EventKind::Access(_) => false,
        EventKind::Modify(ModifyKind::Data(_)) => {
            let concerns = lock(concerns);
            event.paths.iter().any(|path| concerns.has(path))
        }
        _ => true,
    }
}

fn lock(concerns: &Mutex<Concerns>) -> MutexGuard<'_, Concerns> {
    concerns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Folders of the files, as named and as they resolve: a symbolic link may be replaced at either end.
fn folders(watched: &Watched, resolved: &[PathBuf]) -> HashSet<PathBuf> {
    let parents = gentle::each(resolved).filter_map(|file| file.parent().map(Path::as_os_str));
    let parents: HashSet<&OsStr> = parents.collect();
    watched.folders.iter().cloned().chain(parents.into_iter().map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use notify::event::{AccessKind, CreateKind, DataChange, RemoveKind};

    use super::*;

    #[tokio::test]
    async fn a_folder_that_was_removed_and_made_again_gives_events_again() {
        let place = tempfile::tempdir().unwrap();
        let sites = place.path().join("sites");
        let watched = Arc::new(Watched { folders: vec![sites.clone()], ..Watched::default() });
        let changed = Arc::new(Notify::new());
        let mut folders = Folders::new(changed.clone());
        for _ in 0..3 {
            std::fs::create_dir(&sites).unwrap();
            folders.follow(&watched);
            // Whatever the folder's own coming and going said is heard first.
            settle(&changed).await;
            std::fs::write(sites.join("a.toml"), "").unwrap();
            tokio::time::timeout(Duration::from_secs(20), changed.notified()).await.unwrap();
            std::fs::remove_dir_all(&sites).unwrap();
            settle(&changed).await;
        }
    }

    #[tokio::test]
    async fn what_a_new_load_names_gives_events_too() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for folder in ["one", "two", "three"] {
            std::fs::create_dir(path(folder)).unwrap();
            std::fs::write(path(folder).join("list.txt"), "192.0.2.0/24\n").unwrap();
        }
        let link_to = |folder: &str| {
            std::os::unix::fs::symlink(path(folder).join("list.txt"), path("new")).unwrap();
            std::fs::rename(path("new"), path("link.txt")).unwrap();
        };
        let load = |lists: &[&str]| {
            let each =
                |list: &&str| format!("[networks.{}]\nfile = \"{list}\"\n", list.replace(['/', '.'], "_"));
            let text: String = lists.iter().map(each).collect();
            std::fs::write(path("tidegate.toml"), text).unwrap();
            crate::config::load(&path("tidegate.toml")).watched
        };
        let changed = Arc::new(Notify::new());
        let mut folders = Folders::new(changed.clone());
        let mut write = async |name: &str, watched: Arc<Watched>| {
            folders.follow(&watched);
            settle(&changed).await;
            std::fs::OpenOptions::new().append(true).open(path(name)).unwrap().set_len(0).unwrap();
            tokio::time::timeout(Duration::from_secs(20), changed.notified()).await.expect(name);
        };
        link_to("one");
        write("one/list.txt", load(&["link.txt"])).await;
        // It leads elsewhere.
        link_to("two");
        write("two/list.txt", load(&["link.txt"])).await;
        // A file in a folder that was followed, and one in a folder that was not.
        std::fs::write(path("more.txt"), "192.0.2.0/24\n").unwrap();
        write("more.txt", load(&["link.txt", "more.txt"])).await;
        write("three/list.txt", load(&["link.txt", "three/list.txt"])).await;
    }

    #[test]
    fn names_of_files_that_are_gone_are_forgotten_in_time() {
        let place = tempfile::tempdir().unwrap();
        let main = place.path().join("tidegate.toml");
        let mut folders = Folders::new(Arc::default());
        for number in 0..2 * NAMES_SPARE {
            // Each names another list, in the same folder.
            let list = format!("{number}.txt");
            std::fs::write(place.path().join(&list), "192.0.2.0/24\n").unwrap();
            std::fs::write(&main, format!("[networks.a]\nfile = \"{list}\"\n")).unwrap();
            folders.follow(&crate::config::load(&main).watched);
            let names = &lock(&folders.concerns).names;
            assert!(
                names.contains(&OsString::from(list)) && names.len() <= NAMES_SPARE + 6,
                "{}",
                names.len()
            );
        }
    }

    #[test]
    fn what_is_written_to_an_access_log_beside_the_configuration_is_no_reason_to_look() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        std::fs::write(path("list.txt"), "").unwrap();
        std::os::unix::fs::symlink(path("list.txt"), path("link")).unwrap();
        let watched =
            Watched { files: vec![path("link")], patterns: vec![path("*.site")], ..Watched::default() };
        let concerns = Mutex::new(watched.concerns(&watched.resolved()));
        let is_reason =
            |kind, name: &str| is_reason(&notify::Event::new(kind).add_path(path(name)), &concerns);
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        assert!(!is_reason(written, "access.log"));
        for name in ["link", "list.txt", "new.toml", "new.minisig", "new.site"] {
            assert!(is_reason(written, name), "{name}");
            assert!(!is_reason(EventKind::Access(AccessKind::Read), name), "{name}");
        }
        // Whatever stands there next may be of concern.
        for kind in [EventKind::Create(CreateKind::File), EventKind::Remove(RemoveKind::File), EventKind::Any]
        {
            assert!(is_reason(kind, "access.log"), "{kind:?}");
        }
    }

    /// Watches a configuration that changed as `change` says after it was read, until it is read again.
    async fn read_again(change: impl FnOnce(&Path)) {
        let place = tempfile::tempdir().unwrap();
        let main = place.path().join("tidegate.toml");
        std::fs::create_dir(place.path().join("sites")).unwrap();
        std::fs::write(place.path().join("list.txt"), "192.0.2.0/24\n").unwrap();
        let text =
            "[server]\ninclude = [\"sites/*.toml\", \"sites/*.conf\"]\n[networks.a]\nfile = \"list.txt\"\n";
        std::fs::write(&main, text).unwrap();
        let read = Mutex::new(crate::config::load(&main).watched);
        change(place.path());
        let again = Notify::new();
        let watching = compare(
            || read.lock().unwrap().clone(),
            async |_, _| {
                *read.lock().unwrap() = crate::config::load(&main).watched;
                again.notify_one();
            },
        );
        let waiting = tokio::time::timeout(Duration::from_secs(20), again.notified());
        tokio::select! {
            () = watching => unreachable!(),
            waited = waiting => waited.expect("it is read again"),
        }
    }

    #[tokio::test]
    async fn regression_what_changes_between_the_first_load_and_the_first_look_is_seen() {
        read_again(|place| std::fs::write(place.join("tidegate.toml"), "include = [\"*.d\"]\n").unwrap())
            .await;
        read_again(|place| {
            std::fs::write(place.join("list.txt"), "192.0.2.0/25\n198.51.100.0/24\n").unwrap()
        })
        .await;
        read_again(|place| std::fs::remove_file(place.join("list.txt")).unwrap()).await;
        read_again(|place| std::fs::write(place.join("sites/a.toml"), "").unwrap()).await;
    }

    #[tokio::test]
    async fn regression_a_new_file_is_seen_whatever_ending_the_includes_ask_for() {
        read_again(|place| std::fs::write(place.join("sites/a.conf"), "").unwrap()).await;
    }
}
