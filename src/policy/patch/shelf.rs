//! Which packs are in force: those that are good, and of those that went bad the last good version.

use std::collections::BTreeMap;
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

/// Keeps what was good last; lives as long as the process.
#[derive(Debug, Default)]
pub struct Shelf {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    good: BTreeMap<PathBuf, Arc<Good>>,
    current: Option<Arc<InForce>>,
}

impl Shelf {
    /// Puts packs in force. `now` is in seconds since 1970. The same value comes back while nothing has changed.
    pub fn load(&self, settings: &model::Patches, files: Vec<File>, now: u64) -> Arc<InForce> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let trust = Trust::of(settings);
        let (mut good, mut problems) = (Vec::new(), Vec::new());
        for (name, text) in BUILT_IN_PACKS.iter().filter(|_| settings.builtin) {
            let path = PathBuf::from(format!("{BUILT_IN}: {name}"));
            let same = known.good.get(&path).filter(|good| good.under == trust).cloned();
            let found = match same {
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
            take(found, &path, now, known.good.get(&path), &mut good, &mut problems);
        }
        for file in files {
            let path = file.path.clone();
            let former = known.good.get(&path);
            let same =
                former.filter(|good| good.file.as_ref() == Some(&file) && good.under == trust).cloned();
            let found = same.map_or_else(|| check(file, &trust, now), Ok);
            take(found, &path, now, former, &mut good, &mut problems);
        }
        let made = Arc::new(self::assemble(&known, good, problems, settings.severity));
        let same = |old: &&Arc<InForce>| Arc::ptr_eq(&old.set, &made.set) && old.problems == made.problems;
        if let Some(old) = known.current.as_ref().filter(same) {
            return old.clone();
        }
        known.good = made.packs.iter().map(|good| (good.path.clone(), good.clone())).collect();
        known.current = Some(made.clone());
        made
    }
}

/// A pack that is good is taken; of one that is not, the last good version.
fn take(
    found: Result<Arc<Good>, String>,
    path: &Path,
    now: u64,
    former: Option<&Arc<Good>>,
    good: &mut Vec<Arc<Good>>,
    problems: &mut Vec<Problem>,
) {
    let mut tell =
        |message: String, refused: bool| problems.push(Problem { path: path.to_owned(), message, refused });
    match (found, former) {
        (Ok(pack), _) => {
            if pack.expiry < now {
                let day = &pack.pack.expires;
                tell(
                    format!("this pack expired on {day}; it stays in force until it is replaced or removed"),
                    false,
                );
            } else if pack.expiry - now < WARN_BEFORE {
                tell(
                    format!("this pack expires on {}: a newer one should take its place", pack.pack.expires),
                    false,
                );
            }
            good.push(pack);
        }
        (Err(why), Some(former)) => {
            let version = former.pack.version;
            tell(
                format!("this pack is refused: {why}. Its version {version}, which was good, stays in force"),
                true,
            );
            good.push(former.clone());
        }
        (Err(why), None) => {
            tell(format!("this pack is refused, and there is no earlier version: {why}"), true)
        }
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

    #[test]
    fn a_bad_pack_leaves_the_last_good_one_in_force() {
        let pair = KeyPair::generate_unencrypted_keypair().unwrap();
        let (shelf, settings) = (Shelf::default(), settings(&[&pair], false));
        let one = shelf.load(&settings, vec![file("a", pack("a", 1, "evil"), Some(&pair))], NOW);
        assert_eq!((one.set.rules.len(), one.problems.len()), (1, 0));
        let again = shelf.load(&settings, vec![one.packs[0].file.clone().unwrap()], NOW);
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
            let kept = shelf.load(&settings, vec![bad], NOW);
            assert!(Arc::ptr_eq(&one.set, &kept.set), "{said}");
            let [problem] = &kept.problems[..] else { panic!("{said}: {:?}", kept.problems) };
            assert!(problem.refused && problem.message.contains(said), "{}", problem.message);
            assert!(problem.message.contains("version 1, which was good, stays"), "{}", problem.message);
        }
        let two = shelf.load(&settings, vec![file("a", pack("a", 5, "worse"), Some(&pair))], NOW);
        assert!(two.problems.is_empty() && !Arc::ptr_eq(&one.set, &two.set));
        assert_eq!(shelf.load(&settings, Vec::new(), NOW).set.rules.len(), 0);
    }

    #[test]
    fn a_bad_pack_without_an_earlier_version_is_left_out() {
        let (shelf, settings) = (Shelf::default(), settings(&[], false));
        let none = shelf.load(&settings, vec![file("a", pack("a", 1, "evil"), None)], NOW);
        assert_eq!(none.set.rules.len(), 0);
        assert!(none.problems[0].message.contains("no earlier version: it is not signed"));
    }

    #[test]
    fn packs_that_do_not_go_together_are_told_apart() {
        let (shelf, settings) = (Shelf::default(), settings(&[], true));
        let files = || vec![file("a", pack("a", 1, "evil"), None), file("b", pack("a", 1, "other"), None)];
        let both = shelf.load(&settings, files(), NOW);
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
            let found = shelf.load(&settings, files(), now);
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
        let found = shelf.load(&settings, Vec::new(), NOW);
        assert!(found.problems.is_empty(), "{:?}", found.problems);
        assert!(found.set.rules.len() >= 30, "{}", found.set.rules.len());
    }
}
