//! Load for `scripts/bench-neighbours`: neighbours that ask at a steady rate, one site's attackers, and backends. Only the
//! standard library and a thread for each connection, so that `rustc -O` alone makes it and it costs little itself.
//!
//! * `backend PORT WORK_MS`: answers 200 with 1 KiB after so many milliseconds; a path with `/slow` after five seconds.
//! * `neighbours PORT SITES EACH RATE SECONDS`: sites 1 to SITES, EACH connections to each, RATE requests a second on every
//!   one. A request has a time at which it is due, whether the one before is answered or not, and its latency counts from
//!   then: who is kept waiting does not ask less. Prints one line of JSON.
//! * `requests|hold|upload PORT COUNT SECONDS`: so many connections of site 0 that ask as fast as they are answered, ask for
//!   `/slow`, or upload 100 MiB each.
//! * `handshakes PORT COUNT SECONDS`: so many threads that begin TLS handshakes for site 0 with a hello that cost nothing to
//!   make, read the answer and go.
//! * `slow PORT COUNT SECONDS`: so many connections that send a request of site 0 byte by byte.
//!
//! Site N is called `sN.test`.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (port, count, seconds) = (number(1) as u16, number(2), number(3));
    match args.first().map(String::as_str) {
        Some("backend") => backend(port, Duration::from_millis(number(2))),
        Some("neighbours") => neighbours(port, number(2), number(3), number(4), number(5)),
        Some("requests") => attack(count, seconds, move |end| requests(port, "/", end)),
        Some("hold") => attack(count, seconds, move |end| requests(port, "/slow", end)),
        Some("upload") => attack(count, seconds, move |end| upload(port, end)),
        Some("handshakes") => attack(count, seconds, move |end| handshakes(port, end)),
        Some("slow") => slow(port, count, seconds),
        _ => eprintln!("see the first lines of this file"),
    }
}

/// A thread with a small stack: there are thousands.
fn thread(body: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
    std::thread::Builder::new().stack_size(128 * 1024).spawn(body).expect("a thread")
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

// ---- backends

fn backend(port: u16, work: Duration) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a port");
    for stream in listener.incoming().flatten() {
        thread(move || {
            let _ = serve(stream, work);
        });
    }
}

fn serve(mut stream: TcpStream, work: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let body = "x".repeat(1024);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (mut buffer, mut held) = (vec![0u8; 64 * 1024], Vec::new());
    loop {
        let end = loop {
            if let Some(at) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => held.extend_from_slice(&buffer[..n]),
            }
        };
        let head = String::from_utf8_lossy(&held[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let mut left = length.saturating_sub(held.len() - end);
        held.drain(..(end + length).min(held.len()));
        while left > 0 {
            match stream.read(&mut buffer)? {
                0 => return Ok(()),
                n => left = left.saturating_sub(n),
            }
        }
        let slow = head.lines().next().is_some_and(|line| line.contains("/slow"));
        std::thread::sleep(if slow { Duration::from_secs(5) } else { work });
        stream.write_all(answer.as_bytes())?;
    }
}

/// Reads one answer; gives its status.
fn answer(stream: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<u16> {
    let mut held = 0;
    let cut = || std::io::Error::from(ErrorKind::UnexpectedEof);
    loop {
        let n = stream.read(&mut buffer[held..])?;
        held += n;
        if n == 0 || held == buffer.len() {
            return Err(cut());
        }
        let Some(end) = buffer[..held].windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&buffer[..end]).map_err(|_| cut())?;
        let status = head.get(9..12).and_then(|text| text.parse().ok()).ok_or_else(cut)?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
        });
        let close = head.lines().any(|line| line.eq_ignore_ascii_case("connection: close"));
        let mut left = length.unwrap_or(0).saturating_sub(held - end - 4);
        while left > 0 {
            let room = buffer.len().min(left);
            match stream.read(&mut buffer[..room])? {
                0 => return Err(cut()),
                n => left -= n,
            }
        }
        if close || length.is_none() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        return Ok(status);
    }
}

// ---- neighbours

fn neighbours(port: u16, sites: u64, each: u64, rate: u64, seconds: u64) {
    let every = Duration::from_nanos(1_000_000_000 / rate.max(1));
    let begin = Instant::now() + Duration::from_millis(500);
    let all = sites * each;
    let clients = (0..all).map(|n| {
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            // Spread over the time between two requests, in no order of sites.
            let first = begin + every.mul_f64((n * 7919 % all) as f64 / all as f64);
            neighbour(port, 1 + n % sites, first, every, Duration::from_secs(seconds))
        })
    });
    let clients: Vec<_> = clients.flatten().collect();
    let (mut times, mut failed) = (Vec::new(), 0u64);
    for client in clients {
        let (mut own, bad) = client.join().unwrap_or_default();
        times.append(&mut own);
        failed += bad;
    }
    times.sort_unstable();
    let at = |part: f64| times.get(((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1)));
    let at = |part| at(part).copied().unwrap_or(0);
    println!(
        "{{\"served\": {}, \"failed\": {failed}, \"per_second\": {:.1}, \"p50_us\": {}, \"p90_us\": {}, \"p99_us\": {}, \"p999_us\": {}}}",
        times.len(),
        times.len() as f64 / seconds as f64,
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
    );
}

/// Latencies in microseconds of what was answered with 200, and how many were not.
fn neighbour(port: u16, site: u64, first: Instant, every: Duration, time: Duration) -> (Vec<u64>, u64) {
    let request = format!("GET /page HTTP/1.1\r\nHost: s{site}.test\r\n\r\n");
    let (mut times, mut failed, mut buffer) = (Vec::new(), 0, vec![0u8; 16 * 1024]);
    let mut stream = connect(port).ok();
    let (mut due, end) = (first, first + time);
    while due < end {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        // A connection may have been closed since; who finds that out asks on another one, late as he is.
        let mut status = None;
        for _ in 0..2 {
            let asked = stream.as_mut().ok_or(ErrorKind::NotConnected.into()).and_then(|stream| {
                stream.write_all(request.as_bytes())?;
                answer(stream, &mut buffer)
            });
            status = asked.ok();
            if status.is_some() {
                break;
            }
            stream = connect(port).ok();
        }
        match status {
            Some(200) => times.push(due.elapsed().as_micros() as u64),
            _ => failed += 1,
        }
        due += every;
        // Answers that took longer than all this are no answers.
        if end + Duration::from_secs(10) < Instant::now() {
            let late = end.saturating_duration_since(due).as_nanos() / every.as_nanos();
            return (times, failed + late as u64);
        }
    }
    (times, failed)
}

// ---- attackers of site 0

static DONE: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

fn attack(count: u64, seconds: u64, one: impl Fn(Instant) + Send + Sync + 'static) {
    let (one, end) = (Arc::new(one), Instant::now() + Duration::from_secs(seconds));
    for _ in 0..count {
        let one = one.clone();
        thread(move || one(end));
    }
    std::thread::sleep(Duration::from_secs(seconds));
    told(seconds);
}

fn told(seconds: u64) {
    let per_second = |count: &AtomicU64| count.load(Relaxed) as f64 / seconds.max(1) as f64;
    println!("{{\"done\": {:.1}, \"refused\": {:.1}}}", per_second(&DONE), per_second(&REFUSED));
    std::process::exit(0);
}

fn requests(port: u16, path: &str, end: Instant) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: s0.test\r\n\r\n");
    let mut buffer = vec![0u8; 16 * 1024];
    while Instant::now() < end {
        let Ok(mut stream) = connect(port) else {
            REFUSED.fetch_add(1, Relaxed);
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        while Instant::now() < end {
            if stream.write_all(request.as_bytes()).is_err() {
                break;
            }
            match answer(&mut stream, &mut buffer) {
                Ok(200) => DONE.fetch_add(1, Relaxed),
                Ok(_) => REFUSED.fetch_add(1, Relaxed),
                Err(_) => break,
            };
        }
    }
}

fn upload(port: u16, end: Instant) {
    const SIZE: usize = 100 * 1024 * 1024;
    let piece = vec![b'u'; 64 * 1024];
    let head = format!("POST /up HTTP/1.1\r\nHost: s0.test\r\nContent-Length: {SIZE}\r\n\r\n");
    let mut buffer = vec![0u8; 16 * 1024];
    while Instant::now() < end {
        let Ok(mut stream) = connect(port) else {
            REFUSED.fetch_add(1, Relaxed);
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let mut sent = 0;
        let whole = stream.write_all(head.as_bytes()).is_ok()
            && (0..SIZE / piece.len()).all(|_| {
                let well = Instant::now() < end && stream.write_all(&piece).is_ok();
                sent += u64::from(well);
                well
            });
        // In mebibytes.
        DONE.fetch_add(sent / 16, Relaxed);
        if !whole || answer(&mut stream, &mut buffer).is_err() {
            REFUSED.fetch_add(1, Relaxed);
        }
    }
}

/// RFC 8446 section 4.1.2. Any 32 bytes are a public key of X25519.
fn hello() -> Vec<u8> {
    let name = b"s0.test";
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, data: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend((data.len() as u16).to_be_bytes());
        extensions.extend(data);
    };
    let length = name.len() as u8;
    extension(0, &[&[0, length + 3, 0, 0, length], &name[..]].concat());
    extension(10, &[0, 2, 0, 29]);
    extension(13, &[0, 8, 4, 3, 8, 4, 5, 3, 4, 1]);
    extension(43, &[2, 3, 4]);
    extension(51, &[&[0, 36, 0, 29, 0, 32][..], &[9; 32]].concat());
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 6, 0x13, 1, 0x13, 2, 0x13, 3, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(&extensions);
    let mut record = vec![22, 3, 1];
    record.extend(((body.len() + 4) as u16).to_be_bytes());
    record.extend([1, 0]);
    record.extend((body.len() as u16).to_be_bytes());
    record.extend(&body);
    record
}

fn handshakes(port: u16, end: Instant) {
    let (hello, mut buffer) = (hello(), vec![0u8; 8 * 1024]);
    while Instant::now() < end {
        let asked = connect(port).and_then(|mut stream| {
            stream.write_all(&hello)?;
            // ServerHello and what follows it.
            let mut got = 0;
            while got < 500 {
                match stream.read(&mut buffer)? {
                    0 => return Err(ErrorKind::UnexpectedEof.into()),
                    n => got += n,
                }
            }
            Ok(())
        });
        match asked {
            Ok(()) => DONE.fetch_add(1, Relaxed),
            Err(_) => {
                std::thread::sleep(Duration::from_millis(1));
                REFUSED.fetch_add(1, Relaxed)
            }
        };
    }
}

fn slow(port: u16, count: u64, seconds: u64) {
    let request = "GET / HTTP/1.1\r\nHost: s0.test\r\nX-Slow: ".to_owned() + &"x".repeat(4000);
    let (end, mut at) = (Instant::now() + Duration::from_secs(seconds), 0);
    let mut streams: Vec<Option<TcpStream>> = (0..count).map(|_| None).collect();
    while Instant::now() < end {
        let round = Instant::now();
        for place in &mut streams {
            let sent = place.as_mut().is_some_and(|stream| {
                // Enough for the host at once: it is known whose the connection is.
                let from = if at == 0 { 0 } else { 40 + at };
                let byte = request.as_bytes().get(from..from + 1).unwrap_or(b"x");
                stream.write_all(byte).is_ok() && !matches!(stream.read(&mut [0u8; 64]), Ok(_))
            });
            if !sent {
                if place.is_some() {
                    REFUSED.fetch_add(1, Relaxed);
                }
                *place = connect(port).ok().filter(|stream| {
                    DONE.fetch_add(1, Relaxed);
                    (&*stream).write_all(&request.as_bytes()[..40]).is_ok() && stream.set_nonblocking(true).is_ok()
                });
            }
        }
        at += 1;
        std::thread::sleep(Duration::from_secs(1).saturating_sub(round.elapsed()));
    }
    told(seconds);
}
