//! Ports for programs that must know each other's before they start, so that port zero will not do.

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// So many ports below those that the kernel gives away are ours to take.
const RANGE: u16 = 12_000;

/// A port that is free on the loopback, for TCP and UDP, and that nobody gets who binds port zero or connects: it lies below what the
/// kernel gives them. Each is given once.
pub fn fixed() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Whoever runs the tests twice at once begins elsewhere.
    let begin = (std::process::id() % 120) as u16 * 100;
    let lowest = lowest_given_away() - RANGE;
    for _ in 0..RANGE {
        let at = (begin + NEXT.fetch_add(1, Relaxed) % RANGE) % RANGE;
        let port = lowest + at;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free below those that the kernel gives away");
}

/// As the system says, where that leaves room below; otherwise as systems say.
fn lowest_given_away() -> u16 {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let lowest = text.split_whitespace().next().and_then(|text| text.parse().ok());
    lowest.filter(|port| *port > RANGE + 1_024).unwrap_or(32_768)
}

#[test]
fn a_fixed_port_is_given_once_and_to_nobody_who_asks_for_port_zero() {
    let ours: Vec<u16> = (0..200).map(|_| fixed()).collect();
    let mut once = ours.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), ours.len());
    let others: Vec<TcpListener> = (0..500).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let taken = others.iter().any(|socket| ours.contains(&socket.local_addr().unwrap().port()));
    assert!(!taken, "{ours:?}");
}
