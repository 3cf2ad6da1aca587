//! The admin socket: made so that it is never, not even for a moment, open to other users, and never taken away
//! from a Tidegate that still answers on it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

/// Binds the socket, mode 0600; a missing folder is made with mode 0700; a stale socket file is replaced.
///
/// # Errors
/// A sentence: another Tidegate answers on the socket, the path is taken by something else, too long, or not ours
/// to write.
pub fn bind(path: &Path) -> Result<UnixListener, String> {
    let (Some(folder), Some(_)) = (path.parent(), path.file_name()) else {
        return Err(sentence(
            path,
            "it is not a file inside a folder",
            "name one, like /run/tidegate/admin.sock",
        ));
    };
    let failed = |error: io::Error| io_sentence(path, folder, &error);
    // The kernel keeps socket paths in 108 bytes: a longer one could be made by renaming and never connected to.
    SockAddr::unix(path).map_err(failed)?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    // Two processes that start at once look and bind one after the other. The lock ends with the descriptor.
    let lock = File::open(folder).map_err(failed)?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).map_err(|e| failed(e.into()))?;
    refuse_taken(path)?;

    // A socket file takes its mode from the umask at bind and can be opened until chmod: hence a private folder
    // first, then a rename, which also replaces a stale file without a moment in which there is none.
    let private = folder.join(format!(".{}", std::process::id()));
    let _ = fs::remove_dir_all(&private); // left over by a process that had this id before us
    DirBuilder::new().mode(0o700).create(&private).map_err(failed)?;
    let bound = bind_private(&private.join("s"), path);
    let _ = fs::remove_dir_all(&private);
    bound.map_err(failed)
}

fn bind_private(private: &Path, path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(private)?;
    fs::set_permissions(private, fs::Permissions::from_mode(0o600))?;
    fs::rename(private, path)?;
    Ok(listener)
}

fn refuse_taken(path: &Path) -> Result<(), String> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(_) => return Ok(()),
    };
    if !kind.is_socket() {
        let mend = "move it away or set [admin] socket to another path";
        return Err(sentence(path, "something that is not a socket stands there", mend));
    }
    if answers(path) {
        let mend = "stop it first, or give this one its own [admin] socket and [server] state";
        return Err(sentence(path, "another tidegate runs with this state and answers on it", mend));
    }
    Ok(())
}

/// Whether somebody listens. Asked without waiting: a full queue means that somebody does.
fn answers(path: &Path) -> bool {
    let ask = || -> io::Result<()> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    };
    match ask() {
        Ok(()) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
    }
}

fn io_sentence(path: &Path, folder: &Path, error: &io::Error) -> String {
    let mend = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("let the user that runs Tidegate write to {}", folder.display())
        }
        io::ErrorKind::InvalidInput => {
            "the path of a socket may have about 100 bytes: choose a shorter one".into()
        }
        io::ErrorKind::ReadOnlyFilesystem => "choose a path that can be written, like one below /run".into(),
        _ => "check the folder, or set [admin] socket to another path".into(),
    };
    sentence(path, &error.to_string(), &mend)
}

fn sentence(path: &Path, found: &str, mend: &str) -> String {
    format!("the admin socket {} cannot be opened: {found}: {mend}", path.display())
}
