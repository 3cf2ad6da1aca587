//! Files that are whole or absent: bounded reading, atomic writing.
//!
//! A write goes to a new file in the same folder, is brought to the disk, renamed over the old one, and the folder
//! is brought to the disk too. A crash at any instant leaves the old content or the new one, never a mixture.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Replaces `path` by `bytes`, atomically; `mode` is what the file ends with, whatever the umask says.
///
/// Errors are those of the file system; the old content is then untouched and the temporary file removed.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_atomic_by(path, mode, |file| file.write_all(bytes))
}

/// The same of what `write` writes, as it comes.
pub fn write_atomic_by(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let folder = folder_of(path);
    let temporary = temporary_beside(path)?;
    let result = write_new_by(&temporary, mode, write).and_then(|()| fs::rename(&temporary, path));
    if result.is_err() {
        // Best effort: the first error is the one worth telling.
        let _ = fs::remove_file(&temporary);
    }
    result?;
    sync_folder(folder)
}

/// Writes a file that must not exist yet, and brings its content to the disk. The entry in the folder is not yet
/// durable: see [`sync_folder`].
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_new_by(path, mode, |file| file.write_all(bytes))
}

fn write_new_by(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // The umask has cut the mode above; this says it again for modes such as 0644.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    write(&mut file)?;
    file.sync_all()
}

/// Brings the entries of a folder to the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Reads at most `limit` bytes of a regular file; the content is wiped from memory when dropped.
///
/// Errors: those of the file system, `IsADirectory`/`InvalidInput` for what is no regular file (a pipe would block
/// for ever), `FileTooLarge` past the limit.
pub fn read_bounded(path: &Path, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    // Asked before opening, because opening a named pipe waits for a writer.
    let kind = fs::metadata(path)?;
    if kind.is_dir() {
        return Err(io::Error::from(io::ErrorKind::IsADirectory));
    }
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // Room for everything at once: a growing vector would leave copies of a key behind.
    let expected = usize::try_from(kind.len()).unwrap_or(usize::MAX).min(limit);
    let mut bytes = Zeroizing::new(Vec::with_capacity(expected.saturating_add(1)));
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::from(io::ErrorKind::FileTooLarge));
    }
    Ok(bytes)
}

/// A name in the same folder that nobody else uses: hidden, with a random number. A process id would not do: in a
/// container it is the same after a crash, and what the crash left behind would be in the way for ever.
pub fn temporary_beside(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"));
    };
    // The seeds of a hash map are the random numbers the standard library has; unguessable is not needed here.
    let random = RandomState::new().build_hasher().finish();
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{random:016x}.tmp"));
    Ok(folder_of(path).join(hidden))
}

/// The folder of a path; `.` for a bare name.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_content_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        // A folder in the way makes the rename fail after the temporary file was written.
        let path = folder.path().join("taken");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        assert!(write_atomic(&path, b"new", 0o600).is_err());
        assert_eq!(entries(folder.path()), ["taken"]);
        assert!(write_atomic(&folder.path().join("absent/file"), b"new", 0o600).is_err());
        assert!(write_atomic(Path::new("/"), b"new", 0o600).is_err());
    }

    #[test]
    fn a_write_replaces_content_and_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for (content, mode) in [("first", 0o644), ("second, longer", 0o600), ("3", 0o640)] {
            write_atomic(&path, content.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(entries(folder.path()), ["file"]);
    }

    #[test]
    fn reading_stops_at_the_limit_and_refuses_what_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, [7; 11]).unwrap();
        assert_eq!(read_bounded(&path, 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_bounded(folder.path(), 10).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read_bounded(Path::new("/dev/zero"), 10).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(read_bounded(&folder.path().join("no"), 10).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(read_bounded(&path, 11).unwrap().len(), 11);
    }
}
