//! Which packs are in force: those that are good, and of those that went bad the last good version.
//!
//! That version is remembered while the process lives; after a restart it comes from a copy, which must be good itself, but
//! for its last day. A pack that is removed while the process lives goes; one that is not there at the start stays, as its
//! copy: a folder that was not mounted must not open what patches closed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::case;
use super::compile::{Set, compile};
use super::pack::{Pack, Severity};
use super::sign;
use crate::config::model;

/// Packs in a folder.
pub const PACKS_MAX: usize = 64;
/// Where packs that came with the program are said to come from.
const BUILT_IN: &str = "built in";
/// Bytes of bodies that cases are run with where none are looked at.
const BODY_OF_CASES: usize = 8_192;
/// Days before its end from which a pack is warned about, in seconds.
const WARN_BEFORE: u64 = 14 * 86_400;

/// The packs that came with the program.
const BUILT_IN_PACKS: [(&str, &str); 2] = [
    ("starter.toml", include_str!("../../../config/patches/starter.toml")),
    ("exposure.toml", include_str!("../../../config/patches/exposure.toml")),
];

/// A pack's file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Where it stands.
    pub path: PathBuf,
    /// Its bytes.
    pub text: Vec<u8>,
    /// The bytes of its signature, if it has one.
    pub signature: Option<Vec<u8>>,
    /// Why it could not be read, if so.
    pub unreadable: Option<String>,
}

/// What there is to choose from.
#[derive(Debug, Default)]
pub struct Found {
    /// The packs of the folder, in their order.
    pub files: Vec<File>,
    /// The folder could not be read: there may be others.
    pub partial: bool,
    /// Copies of packs that were good last; each says where the pack itself is.
    pub copies: Vec<File>,
}

/// A pack that was found good.
#[derive(Debug)]
pub struct Good {
    /// Where it came from.
    pub path: PathBuf,
    /// What it says.
    pub pack: Pack,
    /// Who vouches for it: the signed comment, or why there is none.
    pub vouched: String,
    /// The last second of its last day, in seconds since 1970.
    pub expiry: u64,
    file: Option<File>,
    /// The settings it was found good under.
    under: Trust,
}

/// Settings that decide whether a pack counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trust {
    keys: Vec<String>,
    unsigned: bool,
    body: usize,
}

impl Trust {
    fn of(settings: &model::Patches) -> Trust {
        Trust {
            keys: settings.keys.iter().map(|key| key.value.clone()).collect(),
            unsigned: settings.allow_unsigned,
            body: settings.body,
        }
    }
}

/// What is wrong with a pack, or soon will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which file.
    pub path: PathBuf,
    /// What and, where something else serves, what.
    pub message: String,
    /// Whether it was refused.
    pub refused: bool,
    /// Whether a version that was good earlier is in force in its place.
    pub kept: bool,
}

/// The rules in force, and where they come from.
#[derive(Debug)]
pub struct InForce {
    /// The rules.
    pub set: Arc<Set>,
    /// The packs, in the order in which they are asked.
    pub packs: Vec<Arc<Good>>,
    /// What was refused, and what ends soon.
    pub problems: Vec<Problem>,
    from: Severity,
}

impl Good {
    /// What it was read from; `None` for those that came with the program.
    pub fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }
}

/// Keeps what was good last; lives as long as the process.
#[derive(Debug, Default)]
pub struct Shelf {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    good: BTreeMap<PathBuf, Arc<Good>>,
    /// Packs in force that are not in their folder, and were not when they were first looked for.
    missing: BTreeSet<PathBuf>,
    current: Option<Arc<InForce>>,
}

impl Shelf {
    /// Puts packs in force. `now` is in seconds since 1970. The same value comes back while nothing has changed. Gives the
    /// packs that were removed, too: their copies are to go.
    pub fn load(&self, settings: &model::Patches, found: Found, now: u64) -> (Arc<InForce>, Vec<PathBuf>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let trust = Trust::of(settings);
        let (mut good, mut problems) = (Vec::new(), Vec::new());
        for (name, text) in BUILT_IN_PACKS.iter().filter(|_| settings.builtin) {
            let path = PathBuf::from(format!("{BUILT_IN}: {name}"));
            let same = known.good.get(&path).filter(|good| good.under == trust).cloned();
            let read = match same {
                Some(same) => Ok(same),
                None => read(text.as_bytes(), trust.body).map(|(pack, expiry)| {
                    let vouched = "came with the program".to_owned();
                    Arc::new(Good {
                        path: path.clone(),
                        pack,
                        vouched,
                        expiry,
                        file: None,
                        under: trust.clone(),
                    })
                }),
            };
            take(read, &path, now, || known.good.get(&path).cloned(), &mut good, &mut problems);
        }
        let built_in = good.len();
        for file in &found.files {
            let path = file.path.clone();
            let former = known.good.get(&path).cloned();
            let same = former.clone().filter(|good| good.file.as_ref() == Some(file) && good.under == trust);
            let checked = same.map_or_else(|| check(file.clone(), &trust, now), Ok);
            let former = || former.or_else(|| found.revived(&path, &trust));
            take(checked, &path, now, former, &mut good, &mut problems);
        }
        let (missing, gone) = known.absent(&found, &trust, &mut good, &mut problems);
        known.missing = missing;
        good.get_mut(built_in..).unwrap_or_default().sort_by(|a, b| a.path.cmp(&b.path));
        let made = Arc::new(self::assemble(&known, good, problems, settings.severity));
        let same = |old: &&Arc<InForce>| Arc::ptr_eq(&old.set, &made.set) && old.problems == made.problems;
        if let Some(old) = known.current.as_ref().filter(same) {
            return (old.clone(), gone);
        }
        known.good = made.packs.iter().map(|good| (good.path.clone(), good.clone())).collect();
        known.current = Some(made.clone());
        (made, gone)
    }
}

impl Found {
    fn copy(&self, path: &Path) -> Option<&File> {
        self.copies.iter().find(|copy| copy.path == path)
    }

    /// The copy of a pack, if it is good: it was on its last day, and stays in force until somebody decides otherwise.
    fn revived(&self, path: &Path, trust: &Trust) -> Option<Arc<Good>> {
        check(self.copy(path)?.clone(), trust, 0).ok()
    }
}

impl Known {
    /// Packs that are not in their folder: which of them stay all the same, and which were removed.
    fn absent(
        &self,
        found: &Found,
        trust: &Trust,
        good: &mut Vec<Arc<Good>>,
        problems: &mut Vec<Problem>,
    ) -> (BTreeSet<PathBuf>, Vec<PathBuf>) {
        let (mut missing, mut gone) = (BTreeSet::new(), Vec::new());
        let here: BTreeSet<&PathBuf> = found.files.iter().map(|file| &file.path).collect();
        let of_files = self.good.iter().filter(|(_, good)| good.file.is_some()).map(|(path, _)| path);
        let all: BTreeSet<&PathBuf> = of_files.chain(found.copies.iter().map(|copy| &copy.path)).collect();
        for path in all.difference(&here).copied() {
            let former = self.good.get(path).cloned();
            let was_there = former.is_some() && !self.missing.contains(path);
            if !found.partial && (was_there || found.copy(path).is_none()) {
                gone.push(path.clone());
            } else if let Some(former) = former.or_else(|| found.revived(path, trust)) {
                problems.push(lost(path, &former, found.partial));
                good.push(former);
                if !was_there {
                    missing.insert(path.clone());
                }
            }
        }
        (missing, gone)
    }
}

/// What is told of a pack that is not there, and in force all the same.
fn lost(path: &Path, former: &Good, partial: bool) -> Problem {
    let version = former.pack.version;
    let message = if partial {
        format!(
            "the folder of this pack cannot be read; its version {version}, which was good, stays in force"
        )
    } else {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!(
            "this pack is not there any more; its version {version}, which was good, stays in force. If it is to go, \
             remove its copy too: patches/{name} in the state folder"
        )
    };
    Problem { path: path.to_owned(), message, refused: false, kept: true }
}

/// A pack that is good is taken; of one that is not, the last good version.
fn take(
    found: Result<Arc<Good>, String>,
    path: &Path,
    now: u64,
    former: impl FnOnce() -> Option<Arc<Good>>,
    good: &mut Vec<Arc<Good>>,
    problems: &mut Vec<Problem>,
) {
    let mut tell = |message: String, refused: bool, kept: bool| {
        problems.push(Problem { path: path.to_owned(), message, refused, kept });
    };
    match found {
        Ok(pack) => {
            if pack.expiry < now {
                let day = &pack.pack.expires;
                tell(
                    format!("this pack expired on {day}; it stays in force until it is replaced or removed"),
                    false,
                    false,
                );
            } else if pack.expiry - now < WARN_BEFORE {
                tell(
                    format!("this pack expires on {}: a newer one should take its place", pack.pack.expires),
                    false,
                    false,
                );
            }
            good.push(pack);
        }
        Err(why) => match former() {
            Some(former) => {
                let version = former.pack.version;
                let message = format!(
                    "this pack is refused: {why}. Its version {version}, which was good, stays in force"
                );
                tell(message, true, true);
                good.push(former);
            }
            None => {
                tell(format!("this pack is refused, and there is no earlier version: {why}"), true, false)
            }
        },
    }
}

/// Compiles what is good; a pack that does not go together with those before it is left out.
fn assemble(known: &Known, mut good: Vec<Arc<Good>>, mut problems: Vec<Problem>, from: Severity) -> InForce {
    let unchanged = known.current.as_ref().filter(|old| {
        let same = |(a, b): (&Arc<Good>, &Arc<Good>)| Arc::ptr_eq(a, b);
        old.from == from && old.packs.len() == good.len() && old.packs.iter().zip(&good).all(same)
    });
    if let Some(old) = unchanged {
        return InForce { set: old.set.clone(), packs: good, problems, from };
    }
    let all = compile(good.iter().map(|good| &good.pack), from);
    let set = all.or_else(|_| {
        let mut kept: Vec<Arc<Good>> = Vec::new();
        for next in good.drain(..) {
            match compile(kept.iter().chain([&next]).map(|good| &good.pack), from) {
                Ok(_) => kept.push(next),
                Err(why) => problems.push(Problem {
                    path: next.path.clone(),
                    message: format!("this pack is refused beside the others: {why}"),
                    refused: true,
                    kept: false,
                }),
            }
        }
        good = kept;
        compile(good.iter().map(|good| &good.pack), from)
    });
    // No rules at all always go together.
    let set = set.or_else(|_| compile([], from)).map(Arc::new);
    let set = set.unwrap_or_else(|_| Arc::default());
    InForce { set, packs: good, problems, from }
}

/// Checks one pack alone, as if there were no other.
///
/// # Errors
/// A sentence that says why it is refused.
pub fn check_one(file: File, settings: &model::Patches, now: u64) -> Result<Arc<Good>, String> {
    check(file, &Trust::of(settings), now)
}

/// Checks a file: its signature, what it says, its cases, its end.
fn check(file: File, trust: &Trust, now: u64) -> Result<Arc<Good>, String> {
    if let Some(why) = &file.unreadable {
        return Err(why.clone());
    }
    let vouched = match &file.signature {
        Some(signature) => {
            sign::verify(&file.text, signature, &trust.keys).map(|comment| format!("signed: {comment}"))?
        }
        None if trust.unsigned => "unsigned".to_owned(),
        None => {
            return Err(format!(
                "it is not signed: there is no {}.minisig beside it. Sign it with `minisign -S -m FILE`, or say \
                 allow_unsigned = true in [patches]",
                file.path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default()
            ));
        }
    };
    let (pack, expiry) = read(&file.text, trust.body)?;
    if expiry < now {
        return Err(format!("it expired on {}", pack.expires));
    }
    Ok(Arc::new(Good {
        path: file.path.clone(),
        pack,
        vouched,
        expiry,
        file: Some(file),
        under: trust.clone(),
    }))
}

/// Reads a pack and runs its cases.
fn read(text: &[u8], body: usize) -> Result<(Pack, u64), String> {
    let pack = Pack::parse(text)?;
    // Without a look at bodies, half of the cases could not hold.
    let (_, failures) = case::run(&pack, if body == 0 { BODY_OF_CASES } else { body })?;
    if let Some(failure) = failures.first() {
        let more =
            if failures.len() > 1 { format!(" (and {} more)", failures.len() - 1) } else { String::new() };
        return Err(format!("rule `{}`, case {}: {}{more}", failure.rule, failure.case, failure.why));
    }
    let expiry = pack.expiry()?;
    Ok((pack, expiry))
}

#[cfg(test)]
mod tests {
    use minisign::KeyPair;

    use super::*;
    use crate::config::model::{Located, Mode, Origin};

    fn pack(name: &str, version: u32, needle: &str) -> Vec<u8> {
        format!(
            "name = \"{name}\"\nversion = {version}\nexpires = \"2030-01-01\"\n[[rule]]\nid = \"{name}-1\"\n\
             title = \"T\"\nseverity = \"high\"\nmatches = {{ in = [\"path\"], contains = [\"{needle}\"] }}\n\
             [[rule.case]]\nhit = true\ntarget = \"/{needle}\"\n[[rule.case]]\nhit = false\n"
        )
        .into_bytes()
    }

    fn settings(keys: &[&KeyPair], unsigned: bool) -> model::Patches {
        let key = |pair: &&KeyPair| Located { value: pair.pk.to_base64(), origin: Origin::Default };
        model::Patches {
            folder: PathBuf::from("/patches"),
            builtin: false,
            keys: keys.iter().map(key).collect(),
            allow_unsigned: unsigned,
            mode: Mode::Shadow,
            severity: Severity::Medium,
            body: 8192,
            origin: Origin::Default,
        }
    }

    fn file(name: &str, text: Vec<u8>, pair: Option<&KeyPair>) -> File {
        let signature = pair.map(|pair| {
            let made = minisign::sign(Some(&pair.pk), &pair.sk, &text[..], None, None).unwrap();
            made.into_string().into_bytes()
        });
        File { path: name.into(), text, signature, unreadable: None }
    }

    const NOW: u64 = 1_800_000_000;

    fn load(shelf: &Shelf, settings: &model::Patches, files: Vec<File>) -> Arc<InForce> {
        shelf.load(settings, Found { files, ..Found::default() }, NOW).0
    }

    #[test]
    fn after_a_restart_a_copy_stands_in_for_a_pack_that_is_bad_or_not_there() {
        let pair = KeyPair::generate_unencrypted_keypair().unwrap();
        let trusting = settings(&[&pair], false);
        let good = file("a", pack("a", 1, "evil"), Some(&pair));
        let late = 1_893_542_399 + 1;
        let copies = || vec![good.clone()];
        // Broken, or expired: whatever would have stayed in force without the restart does.
        for bad in [file("a", b"name = 1".to_vec(), Some(&pair)), good.clone()] {
            let found = Found { files: vec![bad], copies: copies(), ..Found::default() };
            let (kept, gone) = Shelf::default().load(&trusting, found, late);
            assert_eq!((kept.set.rules.len(), gone.len()), (1, 0));
            let [problem] = &kept.problems[..] else { panic!("{:?}", kept.problems) };
            assert!(problem.kept && problem.refused, "{}", problem.message);
        }
        // Not there: until its copy goes, or it comes back.
        let shelf = Shelf::default();
        let load = |files: Vec<File>, copies: Vec<File>| {
            let (in_force, gone) = shelf.load(&trusting, Found { files, copies, partial: false }, NOW);
            (in_force.set.rules.len(), in_force.problems.iter().filter(|one| one.kept).count(), gone.len())
        };
        assert_eq!(load(vec![], copies()), (1, 1, 0));
        assert_eq!(load(vec![], copies()), (1, 1, 0));
        assert_eq!(load(copies(), copies()), (1, 0, 0));
        assert_eq!(load(vec![], copies()), (0, 0, 1), "somebody removed it");
        assert_eq!(load(vec![], vec![]), (0, 0, 0));
        let shelf = Shelf::default();
        let lost = || Found { copies: copies(), ..Found::default() };
        assert_eq!(shelf.load(&trusting, lost(), NOW).0.set.rules.len(), 1);
        assert_eq!(shelf.load(&trusting, Found::default(), NOW).0.set.rules.len(), 0, "its copy went");
        // Nobody vouches for it any more.
        let other = KeyPair::generate_unencrypted_keypair().unwrap();
        let strict = settings(&[&other], false);
        assert_eq!(Shelf::default().load(&strict, lost(), NOW).0.set.rules.len(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_read_takes_nothing_out_of_force() {
        let (shelf, settings) = (Shelf::default(), settings(&[], true));
        load(&shelf, &settings, vec![file("a", pack("a", 1, "evil"), None)]);
        let (kept, gone) = shelf.load(&settings, Found { partial: true, ..Found::default() }, NOW);
        assert_eq!((kept.set.rules.len(), gone.len(), kept.problems.len()), (1, 0, 1));
        assert_eq!(load(&shelf, &settings, Vec::new()).set.rules.len(), 0);
    }

    #[test]
    fn a_bad_pack_leaves_the_last_good_one_in_force() {
        let pair = KeyPair::generate_unencrypted_keypair().unwrap();
        let (shelf, settings) = (Shelf::default(), settings(&[&pair], false));
        let one = load(&shelf, &settings, vec![file("a", pack("a", 1, "evil"), Some(&pair))]);
        assert_eq!((one.set.rules.len(), one.problems.len()), (1, 0));
        let again = load(&shelf, &settings, vec![one.packs[0].file.clone().unwrap()]);
        assert!(Arc::ptr_eq(&one.set, &again.set));
        // Changed without a new signature, unsigned, expired, broken, failing its own cases.
        let mut changed = file("a", pack("a", 2, "evil"), Some(&pair));
        changed.text.push(b'\n');
        let old = String::from_utf8(pack("a", 3, "evil")).unwrap().replace("2030", "2020");
        let lost = String::from_utf8(pack("a", 4, "evil")).unwrap().replace("\"/evil\"", "\"/good\"");
        for (bad, said) in [
            (changed, "changed after it was signed"),
            (file("a", pack("a", 2, "evil"), None), "not signed"),
            (file("a", old.into_bytes(), Some(&pair)), "expired on 2020-01-01"),
            (file("a", b"name = 1".to_vec(), Some(&pair)), "line 1"),
            (file("a", lost.into_bytes(), Some(&pair)), "case 1: it is not matched"),
        ] {
            let kept = load(&shelf, &settings, vec![bad]);
            assert!(Arc::ptr_eq(&one.set, &kept.set), "{said}");
            let [problem] = &kept.problems[..] else { panic!("{said}: {:?}", kept.problems) };
            assert!(problem.refused && problem.message.contains(said), "{}", problem.message);
            assert!(problem.message.contains("version 1, which was good, stays"), "{}", problem.message);
        }
        let two = load(&shelf, &settings, vec![file("a", pack("a", 5, "worse"), Some(&pair))]);
        assert!(two.problems.is_empty() && !Arc::ptr_eq(&one.set, &two.set));
        assert_eq!(load(&shelf, &settings, Vec::new()).set.rules.len(), 0);
    }

    #[test]
    fn a_bad_pack_without_an_earlier_version_is_left_out() {
        let (shelf, settings) = (Shelf::default(), settings(&[], false));
        let none = load(&shelf, &settings, vec![file("a", pack("a", 1, "evil"), None)]);
        assert_eq!(none.set.rules.len(), 0);
        assert!(none.problems[0].message.contains("no earlier version: it is not signed"));
    }

    #[test]
    fn packs_that_do_not_go_together_are_told_apart() {
        let (shelf, settings) = (Shelf::default(), settings(&[], true));
        let files = || vec![file("a", pack("a", 1, "evil"), None), file("b", pack("a", 1, "other"), None)];
        let both = load(&shelf, &settings, files());
        assert_eq!(both.packs.len(), 1);
        assert!(both.problems[0].message.contains("has a rule of this name too"), "{:?}", both.problems);
        assert_eq!(both.problems[0].path, PathBuf::from("b"));
    }

    #[test]
    fn what_ends_soon_is_told() {
        let (shelf, settings) = (Shelf::default(), settings(&[], true));
        let files = || vec![file("a", pack("a", 1, "evil"), None)];
        let end = 1_893_542_399;
        for (now, said) in [(end - 86_400, "expires on 2030-01-01"), (end + 1, "stays in force until")] {
            let found = shelf.load(&settings, Found { files: files(), ..Found::default() }, now).0;
            assert!(found.problems[0].message.contains(said) && !found.problems[0].refused);
            assert_eq!(found.set.rules.len(), 1);
        }
    }

    #[test]
    fn what_came_with_the_program_is_good() {
        for (name, text) in BUILT_IN_PACKS {
            let pack = Pack::parse(text.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}"));
            let (count, failures) = case::run(&pack, 8_192).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert!(failures.is_empty(), "{name}, {} of {count}: {failures:#?}", failures.len());
        }
        let shelf = Shelf::default();
        let settings = model::Patches { builtin: true, severity: Severity::Low, ..settings(&[], false) };
        let found = load(&shelf, &settings, Vec::new());
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        assert!(found.set.rules.len() >= 30, "{}", found.set.rules.len());
    }
}
