//! Connecting to a name that has several addresses, of which some may not answer at all.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::{AbortHandle, JoinSet};

/// How long an address is waited for before the next is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Most addresses of a name that are tried.
const ADDRESSES_MAX: usize = 64;

/// So many addresses are tried at once; the oldest try ends for one more. A caller has leave for about one socket.
const AT_ONCE: usize = 2;

/// A connection to the first of these addresses that takes one; the families take turns, beginning with the first's
/// (RFC 8305 section 4). There is no deadline: who calls has one, and ends all tries with it.
///
/// # Errors
/// Why the last one failed, if all did, with its address; `NotFound` if there is none.
pub async fn first(addresses: impl IntoIterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut left = by_turns(addresses).into_iter();
    let (mut tries, mut under_way) = (JoinSet::new(), VecDeque::new());
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    let mut due = true;
    loop {
        if let Some(address) = std::mem::replace(&mut due, true).then(|| left.next()).flatten() {
            under_way.push_back(tries.spawn(attempt(address)));
            if under_way.len() > AT_ONCE {
                under_way.pop_front().iter().for_each(AbortHandle::abort);
            }
        }
        let ended = match left.len() {
            0 => tries.join_next().await,
            // Nothing ended in time: the next one is tried beside it.
            _ => match tokio::time::timeout(ATTEMPT_DELAY, tries.join_next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            },
        };
        match ended {
            Some(Ok(Ok(connected))) => return Ok(connected),
            Some(Ok(Err(error))) => last = error,
            // One that was ended for another: that is no reason for a third.
            Some(Err(ended)) if ended.is_cancelled() => due = false,
            Some(Err(broken)) => last = io::Error::other(broken),
            None => return Err(last),
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let connected = TcpStream::connect(address).await;
    connected.map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))
}

fn by_turns(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let addresses: Vec<_> = addresses.into_iter().take(ADDRESSES_MAX).collect();
    let preferred = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (ours, others): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == preferred);
    let (mut ours, mut others) = (ours.into_iter(), others.into_iter());
    let mut turns = Vec::new();
    while ours.len() + others.len() > 0 {
        turns.extend(ours.next());
        turns.extend(others.next());
    }
    turns
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Socket, Type};

    use super::*;

    /// Longer than anything here takes, and shorter than a kernel's patience with a silent address.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// A listener whose queue is full: as silent to a new connection as a packet filter that drops.
    fn silent() -> (Socket, Vec<Socket>, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let fill = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address.into());
            socket
        };
        let filling = (0..4).map(|_| fill()).collect();
        (listener, filling, address)
    }

    #[tokio::test]
    async fn a_silent_address_does_not_keep_from_the_next() {
        let (_silent, _filling, nobody) = silent();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap();
        let connected = tokio::time::timeout(PATIENCE, first([nobody, nobody, nobody, there])).await;
        assert_eq!(connected.unwrap().unwrap().peer_addr().unwrap(), there);
        // It was silent indeed: alone it is waited for until the caller's deadline.
        assert!(tokio::time::timeout(ATTEMPT_DELAY, first([nobody])).await.is_err());
    }

    #[tokio::test]
    async fn when_all_fail_it_says_which_and_why() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = first([gone, gone]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&gone.to_string()), "{error}");
        let error = first([]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn families_take_turns_beginning_with_the_first() {
        let list = |text: &str| text.split(' ').map(|a| a.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let six = "[::1]:1 [::2]:1 [::3]:1 127.0.0.1:1";
        assert_eq!(by_turns(list(six)), list("[::1]:1 127.0.0.1:1 [::2]:1 [::3]:1"));
        let four = "127.0.0.1:1 127.0.0.2:1";
        assert_eq!(by_turns(list(four)), list(four));
    }
}
