//! Listening sockets: their options, their errors as sentences, and the limit of open files behind them.
//!
//! Each worker listens on its own socket of the same address (`SO_REUSEPORT`), so that the kernel spreads connections
//! without a shared accept queue. That option would also let a second Tidegate of the same user take half of the
//! connections unnoticed; [`bind_group`] looks for that first.

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections the kernel completes and keeps until a worker accepts them, per socket. The kernel cuts it to
/// `net.core.somaxconn`, 4096 by default.
pub const BACKLOG: i32 = 4096;

/// Bytes that the kernel takes of us for a peer before they can be sent (`TCP_NOTSENT_LOWAT`).
///
/// What is on its way to a fast peer is not bounded by it. Without it, a peer that shuts its window after a fast start
/// has the kernel keep as much as `net.ipv4.tcp_wmem` allows, 4 MiB by default, and a thousand of them take the memory
/// that TCP has for everybody.
const UNSENT: u32 = 256 * 1024;

/// Ports below need a privilege by default (`net.ipv4.ip_unprivileged_port_start`).
const UNPRIVILEGED_PORT_MIN: u16 = 1024;

/// Why an address could not be listened on. `Display` is a sentence with its mend.
#[derive(Debug)]
pub struct BindError {
    /// The address asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BindError { address, source } = self;
        write!(f, "Cannot listen on {address}: ")?;
        match source.kind() {
            ErrorKind::AddrInUse => {
                let port = address.port();
                write!(
                    f,
                    "the port is in use. `ss -ltnp 'sport = :{port}'` shows by whom; stop that program (it may be \
                     another Tidegate) or choose another port."
                )?;
                if is_any_v6(*address) {
                    write!(f, " [::]:{port} takes IPv4 too: do not list 0.0.0.0:{port} beside it.")?;
                }
                Ok(())
            }
            ErrorKind::PermissionDenied if address.port() < UNPRIVILEGED_PORT_MIN => write!(
                f,
                "ports below {UNPRIVILEGED_PORT_MIN} need a privilege. Give it to the program with `setcap \
                 cap_net_bind_service=+ep tidegate`, start it as root, or choose a higher port."
            ),
            ErrorKind::AddrNotAvailable => write!(
                f,
                "this machine does not have the address {}. `ip address` lists those it has; 0.0.0.0 or [::] stand \
                 for all.",
                address.ip()
            ),
            _ if source.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()) => {
                write!(f, "this machine has IPv6 switched off. Use an IPv4 address such as 0.0.0.0.")
            }
            _ if source.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                write!(f, "the process has too many open files. Raise the limit (`ulimit -n`, LimitNOFILE=).")
            }
            _ => write!(f, "{source}."),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Listens on an address; the socket does not block and is closed on exec. `[::]` takes IPv4 connections too,
/// whatever the system's default says. Port 0 lets the kernel choose.
pub fn bind_tcp(address: SocketAddr, reuse_port: bool, backlog: i32) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = bound(address, reuse_port)?;
        // Accepted connections inherit both. Small writes leave at once, because an answer is written as a whole. Best effort: a
        // connection without them still works.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_notsent_lowat(UNSENT);
        socket.listen(backlog)?;
        Ok(TcpListener::from(socket))
    };
    listen().map_err(|source| BindError { address, source })
}

/// Listens `count` times (at least once) on the same address, one socket for each worker. With port 0 all get the
/// port the kernel chose for the first.
///
/// An address somebody else listens on is refused, even if it is a Tidegate of the same user: a socket without
/// `SO_REUSEPORT` tries first, and is closed again. Two processes that start in the same microseconds can both pass
/// that test and then share the port; the kernel offers nothing better.
pub fn bind_group(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, BindError> {
    let failed = |source| BindError { address, source };
    if address.port() != 0 {
        drop(bound(address, false).map_err(failed)?);
    }
    let first = bind_tcp(address, true, BACKLOG)?;
    let same = first.local_addr().map_err(failed)?;
    let mut group = vec![first];
    while group.len() < count {
        group.push(bind_tcp(same, true, BACKLOG)?);
    }
    Ok(group)
}

/// How many files and sockets this process may have open; `u64::MAX` when unlimited.
pub fn fd_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the limit of open files to what the system allows this process, and returns the limit then in force. Not
/// being allowed to is no error: the limit simply stays.
pub fn raise_fd_limit() -> u64 {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // Refused only by sandboxes; the limit in force is asked for below in either case.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    fd_limit()
}

/// A bound socket that does not listen yet.
fn bound(address: SocketAddr, reuse_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Lets a restart bind while connections of the old process are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if is_any_v6(address) {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn is_any_v6(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_second_tidegate_on_the_same_port_is_told_so() {
        let first = bind_group(at("127.0.0.1:0"), 2).unwrap();
        let address = first[0].local_addr().unwrap();
        let error = bind_group(address, 2).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::AddrInUse);
        let said = error.to_string();
        assert!(said.starts_with(&format!("Cannot listen on {address}: the port is in use.")), "{said}");
        drop(first);
        bind_group(address, 2).unwrap();
    }

    #[test]
    fn an_address_of_another_machine_is_told_so() {
        // TEST-NET-1 (RFC 5737) is nobody's.
        let said = bind_tcp(at("192.0.2.1:0"), false, 1).unwrap_err().to_string();
        assert!(said.contains("does not have the address 192.0.2.1"), "{said}");
    }

    #[test]
    fn each_error_is_a_sentence_with_a_mend() {
        let say = |address: &str, source: io::Error| BindError { address: at(address), source }.to_string();
        let low = say("0.0.0.0:443", ErrorKind::PermissionDenied.into());
        assert!(low.contains("setcap") && low.contains("root") && low.contains("higher port"), "{low}");
        assert!(!say("0.0.0.0:8443", ErrorKind::PermissionDenied.into()).contains("setcap"));
        assert!(say("[::]:80", ErrorKind::AddrInUse.into()).contains("0.0.0.0:80"));
        assert!(!say("[::1]:80", ErrorKind::AddrInUse.into()).contains("0.0.0.0"));
        let raw = |errno: rustix::io::Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        assert!(say("[::]:80", raw(rustix::io::Errno::AFNOSUPPORT)).contains("IPv6 switched off"));
        assert!(say("[::]:80", raw(rustix::io::Errno::MFILE)).contains("too many open files"));
        assert!(say("[::]:80", raw(rustix::io::Errno::NOMEM)).ends_with('.'));
    }

    #[test]
    fn a_group_shares_one_port_and_every_connection_is_taken_by_one_of_them() {
        let group = bind_group(at("127.0.0.1:0"), 3).unwrap();
        assert_eq!(group.len(), 3);
        let address = group[0].local_addr().unwrap();
        assert!(group.iter().all(|l| l.local_addr().unwrap() == address));
        assert_eq!(bind_group(at("127.0.0.1:0"), 0).unwrap().len(), 1);
        for listener in &group {
            let error = listener.accept().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "listeners must not block");
        }
        // The handshake is over when connect returns, so exactly one of the queues holds the connection.
        let mut client = TcpStream::connect(address).unwrap();
        let taken: Vec<_> = group.iter().filter_map(|l| l.accept().ok()).collect();
        assert_eq!(taken.len(), 1);
        drop(taken);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn the_v6_any_address_takes_v4_too() {
        let listener = match bind_tcp(at("[::]:0"), false, 16) {
            Ok(listener) => listener,
            // A machine without IPv6 has nothing to test.
            Err(error) if error.to_string().contains("IPv6 switched off") => return,
            Err(error) => unreachable!("{error}"),
        };
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer.port(), client.local_addr().unwrap().port());
    }

    #[test]
    fn the_file_limit_ends_at_what_is_allowed() {
        let before = fd_limit();
        let after = raise_fd_limit();
        assert!(after >= before && after == fd_limit());
        assert_eq!(Some(after), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
    }

    #[tokio::test]
    async fn accepted_connections_send_without_delay_and_without_a_long_queue() {
        let listener = bind_tcp(at("127.0.0.1:0"), false, BACKLOG).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap());
        let (_client, accepted) = tokio::join!(client, listener.accept());
        let (stream, _) = accepted.unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(socket2::SockRef::from(&stream).tcp_notsent_lowat().unwrap(), UNSENT);
    }
}
