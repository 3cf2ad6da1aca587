//! The key under which `sticky` cookies name endpoints: 32 random bytes in the state folder, made once. A new one would
//! end every session, so a damaged one is told and not replaced.

use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::tls::file;
use crate::upstream::balance::sticky::{KEY_BYTES, Secret};

/// Reads the key from `<state>/sticky.key`; makes it where there is none. The folder exists.
///
/// # Errors
/// A sentence that says what to do.
pub fn open(state: &Path) -> Result<Secret, String> {
    let path = state.join("sticky.key");
    let failed = |error: io::Error| {
        format!(
            "The key for `sticky` cookies, {}, cannot be used: {error}. The user Tidegate runs as must be able to read and \
             write it; without the file a new key is made, and clients are spread anew.",
            path.display()
        )
    };
    let bytes = match file::read_bounded(&path, KEY_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(&path).map_err(failed)?;
            file::read_bounded(&path, KEY_BYTES)
        }
        read => read,
    };
    let bytes = bytes.map_err(failed)?;
    let bytes: &[u8; KEY_BYTES] =
        bytes.as_slice().try_into().map_err(|_| failed(io::Error::other("it does not have 32 bytes")))?;
    Ok(Secret::new(bytes))
}

/// Whole or absent; of two processes that start together, the one that is quicker makes the key of both.
fn create(path: &Path) -> io::Result<()> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(&mut *bytes).map_err(|_| io::Error::other("the system gives no random bytes"))?;
    let temporary: PathBuf = file::temporary_beside(path)?;
    let written =
        file::write_new(&temporary, &*bytes, 0o600).and_then(|()| std::fs::hard_link(&temporary, path));
    let _ = std::fs::remove_file(&temporary);
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => file::sync_folder(path.parent().unwrap_or(Path::new("."))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sticky.key");
        open(folder.path()).unwrap();
        let first = std::fs::read(&path).unwrap();
        assert_eq!((first.len(), path.metadata().unwrap().permissions().mode() & 0o777), (KEY_BYTES, 0o600));
        open(folder.path()).unwrap();
        create(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_damaged_key_is_told_and_left() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [&b"short"[..], &[7; 33]] {
            std::fs::write(folder.path().join("sticky.key"), bytes).unwrap();
            let why = open(folder.path()).unwrap_err();
            assert!(why.contains("sticky.key") && why.contains("a new key is made"), "{why}");
            assert_eq!(std::fs::read(folder.path().join("sticky.key")).unwrap(), bytes);
        }
    }
}
