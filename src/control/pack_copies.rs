//! Copies of the packs of virtual patches that were good last, in the state folder: what is in force after a restart where a
//! pack itself is bad or not there.
//!
//! Each copy is a pack and its signature, named like the pack, and checked like it when it is used: whoever can write here can
//! do no more than where the packs are. `from` says which folder they are copies of.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::control::patches;
use crate::policy::patch::shelf::{File, InForce, PACKS_MAX};
use crate::tls::file::write_atomic;

/// The copies of the packs of one folder.
pub(super) struct Copies<'a> {
    folder: &'a Path,
    of: &'a Path,
}

/// The file that names the folder of the packs.
const FROM: &str = "from";

impl<'a> Copies<'a> {
    /// Copies in `folder` of the packs in `of`; nothing is read or made yet.
    pub(super) fn new(folder: &'a Path, of: &'a Path) -> Copies<'a> {
        Copies { folder, of }
    }

    /// The copies, each with the path of the pack itself. What cannot be read is no copy.
    pub(super) fn read(&self) -> Vec<File> {
        let from = fs::read(self.folder.join(FROM)).unwrap_or_default();
        if from != self.of.as_os_str().as_bytes() {
            return Vec::new();
        }
        let copies = patches::list(self.folder).into_iter().take(PACKS_MAX);
        copies
            .filter_map(|path| Some(File { path: self.itself(&path)?, ..patches::file(&path).ok()? }))
            .collect()
    }

    /// The pack that this is a copy of.
    fn itself(&self, copy: &Path) -> Option<PathBuf> {
        Some(self.of.join(copy.file_name()?))
    }

    /// Brings the copies up to date. `before` is what was read.
    ///
    /// # Errors
    /// A sentence that names the folder.
    pub(super) fn save(&self, before: &[File], in_force: &InForce, gone: &[PathBuf]) -> Result<(), String> {
        let wrong = |error: std::io::Error| {
            format!("copies of patches cannot be kept in {}: {error}", self.folder.display())
        };
        for path in gone {
            self.remove(path).map_err(wrong)?;
        }
        let files = in_force.packs.iter().filter_map(|good| good.file());
        let new: Vec<&File> = files.filter(|file| !before.contains(file)).collect();
        if new.is_empty() {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder).map_err(wrong)?;
        if before.is_empty() {
            // Also those of another folder.
            for copy in patches::list(self.folder) {
                self.remove(&copy).map_err(wrong)?;
            }
            write_atomic(&self.folder.join(FROM), self.of.as_os_str().as_bytes(), 0o600).map_err(wrong)?;
        }
        new.into_iter().try_for_each(|file| self.write(file)).map_err(wrong)
    }

    fn places(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        let name = path.file_name()?;
        let mut signature = name.to_owned();
        signature.push(".minisig");
        Some((self.folder.join(name), self.folder.join(signature)))
    }

    fn write(&self, file: &File) -> std::io::Result<()> {
        let Some((copy, signature)) = self.places(&file.path) else { return Ok(()) };
        // A crash between the two leaves a copy that its signature does not fit: it is refused, never believed.
        match &file.signature {
            Some(bytes) => write_atomic(&signature, bytes, 0o600)?,
            None => remove(&signature)?,
        }
        write_atomic(&copy, &file.text, 0o600)
    }

    fn remove(&self, path: &Path) -> std::io::Result<()> {
        let Some((copy, signature)) = self.places(path) else { return Ok(()) };
        remove(&copy)?;
        remove(&signature)
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model;
    use crate::policy::patch::shelf::{Found, Shelf};

    const PACK: &str = "name = \"p\"\nversion = 1\nexpires = \"2030-01-01\"\n[[rule]]\nid = \"x\"\ntitle = \"T\"\n\
        severity = \"high\"\nmatches = { in = [\"path\"], contains = [\"/evil\"] }\n\
        case = [{ hit = true, target = \"/evil\" }, { hit = false }]\n";

    #[test]
    fn copies_follow_what_is_good_and_belong_to_one_folder() {
        let place = tempfile::tempdir().unwrap();
        let (state, packs) = (place.path().join("state"), place.path().join("packs"));
        fs::create_dir(&packs).unwrap();
        fs::write(packs.join("p.toml"), PACK).unwrap();
        let settings = model::Patches { allow_unsigned: true, builtin: false, ..model::Patches::default() };
        let copies = Copies::new(&state, &packs);
        let shelf = Shelf::default();
        let files = vec![patches::file(&packs.join("p.toml")).unwrap()];
        let (in_force, _) = shelf.load(&settings, Found { files: files.clone(), ..Found::default() }, 0);
        assert!(copies.read().is_empty());
        copies.save(&[], &in_force, &[]).unwrap();
        assert_eq!(copies.read(), files);
        assert!(Copies::new(&state, place.path()).read().is_empty(), "copies of another folder's");
        copies.save(&files, &in_force, &[]).unwrap();
        assert_eq!(copies.read(), files);
        let (nothing, gone) = shelf.load(&settings, Found::default(), 0);
        copies.save(&files, &nothing, &gone).unwrap();
        assert!(copies.read().is_empty());
    }
}
