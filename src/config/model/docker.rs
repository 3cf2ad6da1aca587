//! The container engine that is asked for containers.

use std::path::PathBuf;
use std::sync::Arc;

/// `[docker]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    /// Where the engine listens.
    pub socket: DockerSocket,
    /// The network by which containers are reached; `None`: the only one each has.
    pub network: Option<Arc<str>>,
    /// Containers are reached by the ports they publish on this machine.
    pub published: bool,
}

/// Where a container engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerSocket {
    /// A Unix socket, by its path.
    Unix(PathBuf),
    /// A TCP port in plain text: host and port. For a socket proxy that lets only harmless questions through.
    Tcp(Arc<str>),
}

impl std::fmt::Display for DockerSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DockerSocket::Unix(path) => write!(f, "unix://{}", path.display()),
            DockerSocket::Tcp(at) => write!(f, "tcp://{at}"),
        }
    }
}
