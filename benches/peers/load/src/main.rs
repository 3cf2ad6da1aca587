//! The load that wrk and h2load do not make: a steady rate whose latency counts from when a request was due, handshakes
//! that forget or remember, idle connections, WebSocket messages; and the backend that takes uploads and echoes messages.
//!
//!     peer-load rate       url=https://localhost:8443/small rate=20000 seconds=3 connections=64
//!     peer-load connect    url=https://localhost:8443/small seconds=3 connections=16 [resume=1] [names=10000]
//!     peer-load ask        url=https://localhost:8443/sink/up seconds=3 connections=16 [body=1048576]
//!     peer-load idle       url=https://localhost:8443/small connections=10000
//!     peer-load websocket  url=http://localhost:8080/echo seconds=3 connections=64
//!     peer-load backend    port=9001
//!     peer-load certs      folder=certs names=10000
//!
//! All of it runs on one thread and writes one line of JSON. `names=N` asks for the sites s0.bench.test to s(N-1) by turns.

mod backend;
mod client;
mod rate;

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What stands behind the subcommand, as `name=value`.
pub struct Options(HashMap<String, String>);

impl Options {
    fn text(&self, name: &str) -> Outcome<&str> {
        self.0.get(name).map(String::as_str).ok_or_else(|| format!("{name}=… is missing").into())
    }

    fn number(&self, name: &str, default: usize) -> Outcome<usize> {
        self.0.get(name).map_or(Ok(default), |text| Ok(text.parse()?))
    }

    fn seconds(&self) -> Outcome<Duration> {
        Ok(Duration::from_secs_f64(self.text("seconds")?.parse()?))
    }
}

fn main() -> Outcome<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let pairs = words.filter_map(|word| word.split_once('=').map(|(n, v)| (n.to_string(), v.to_string())));
    let options = Options(pairs.collect());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        match command.as_str() {
            "rate" => rate::run(&options).await,
            "connect" => connect(&options).await,
            "ask" => ask(&options).await,
            "idle" => idle(&options).await,
            "websocket" => websocket(&options).await,
            "backend" => backend::serve(options.number("port", 0)?.try_into()?).await,
            "certs" => certificates(options.text("folder")?, options.number("names", 10_000)?),
            other => {
                Err(format!("unknown: {other:?}; rate, connect, ask, idle, websocket, backend, certs").into())
            }
        }
    }))
}

/// One line for the script: how many were answered well, how many not, and how long they took in microseconds.
pub fn report(mut micros: Vec<u32>, failed: usize, lasted: Duration) {
    micros.sort_unstable();
    let at = |share: f64| {
        micros.get((micros.len() as f64 * share) as usize).or(micros.last()).copied().unwrap_or(0)
    };
    println!(
        "{{\"done\":{},\"failed\":{failed},\"seconds\":{:.3},\"p50\":{},\"p99\":{},\"p999\":{},\"max\":{}}}",
        micros.len(),
        lasted.as_secs_f64(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
}

/// A new connection for every request, from so many clients at once.
async fn connect(options: &Options) -> Outcome<()> {
    let target = Rc::new(client::Target::new(options, options.number("resume", 0)? > 0)?);
    let (begin, lasts) = (Instant::now(), options.seconds()?);
    let clients: Vec<_> = (0..options.number("connections", 16)?)
        .map(|number| {
            let target = target.clone();
            tokio::task::spawn_local(async move {
                let (mut micros, mut failed, mut turn) = (Vec::new(), 0, number * 7919);
                while begin.elapsed() < lasts {
                    let since = Instant::now();
                    match target.once(turn).await {
                        Ok(()) => micros.push(since.elapsed().as_micros() as u32),
                        Err(_) => failed += 1,
                    }
                    turn += 1;
                }
                (micros, failed)
            })
        })
        .collect();
    let (mut micros, mut failed) = (Vec::new(), 0);
    for client in clients {
        let (more, bad) = client.await?;
        micros.extend(more);
        failed += bad;
    }
    report(micros, failed, begin.elapsed());
    Ok(())
}

/// Request after request on each of so many connections, with a body where one is wanted. A body is written as rustls takes it,
/// 64 KiB at a time: wrk makes a system call for each record of 16 KiB.
async fn ask(options: &Options) -> Outcome<()> {
    let target = client::Target::new(options, false)?;
    let lasts = options.seconds()?;
    let mut open = Vec::new();
    for turn in 0..options.number("connections", 16)? {
        open.push((target.connect(turn).await?, target.request(turn, true)));
    }
    let begin = Instant::now();
    let clients: Vec<_> = open
        .into_iter()
        .map(|(mut connection, request)| {
            tokio::task::spawn_local(async move {
                let mut micros = Vec::new();
                while begin.elapsed() < lasts {
                    let since = Instant::now();
                    connection.ask(&request).await.ok()?;
                    micros.push(since.elapsed().as_micros() as u32);
                }
                Some(micros)
            })
        })
        .collect();
    gather(clients, begin).await
}

/// The report of clients that each end with the times of their answers, or with nothing when something failed.
async fn gather(clients: Vec<tokio::task::JoinHandle<Option<Vec<u32>>>>, begin: Instant) -> Outcome<()> {
    let (mut micros, mut failed) = (Vec::new(), 0);
    for client in clients {
        client.await?.map_or_else(|| failed += 1, |more| micros.extend(more));
    }
    report(micros, failed, begin.elapsed());
    Ok(())
}

/// Opens so many connections, asks once on each, says so, and holds them until its input ends.
async fn idle(options: &Options) -> Outcome<()> {
    let target = client::Target::new(options, false)?;
    let (begin, mut held, mut failed) = (Instant::now(), Vec::new(), 0);
    for turn in 0..options.number("connections", 10_000)? {
        let opened = async {
            let mut connection = target.connect(turn).await?;
            connection.ask(&target.request(turn, true)).await?;
            Ok::<_, std::io::Error>(connection)
        };
        match opened.await {
            Ok(connection) => held.push(connection),
            Err(_) => failed += 1,
        }
    }
    println!(
        "{{\"done\":{},\"failed\":{failed},\"seconds\":{:.3}}}",
        held.len(),
        begin.elapsed().as_secs_f64()
    );
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Messages of 128 bytes, each sent when the echo of the one before is there.
async fn websocket(options: &Options) -> Outcome<()> {
    let target = Rc::new(client::Target::new(options, false)?);
    let lasts = options.seconds()?;
    let mut open = Vec::new();
    for turn in 0..options.number("connections", 64)? {
        open.push(target.upgrade(turn).await?);
    }
    let begin = Instant::now();
    let clients: Vec<_> = open
        .into_iter()
        .map(|mut stream| {
            tokio::task::spawn_local(async move {
                let (mut micros, mut echo) = (Vec::new(), [0; 4 + 128]);
                // FIN and text, masked (RFC 6455 section 5.2), 128 bytes; the mask is zero, so the text stands as it is.
                let mut message = vec![0x81, 0xfe, 0, 128, 0, 0, 0, 0];
                message.extend([b'm'; 128]);
                while begin.elapsed() < lasts {
                    let since = Instant::now();
                    stream.write_all(&message).await.ok()?;
                    stream.flush().await.ok()?;
                    stream.read_exact(&mut echo).await.ok()?;
                    micros.push(since.elapsed().as_micros() as u32);
                }
                Some(micros)
            })
        })
        .collect();
    gather(clients, begin).await
}

/// A certificate of its own for every site: ECDSA P-256, as nearly everybody's are. HAProxy wants both parts in one file.
fn certificates(folder: &str, names: usize) -> Outcome<()> {
    let together = format!("{folder}-haproxy");
    std::fs::create_dir_all(folder)?;
    std::fs::create_dir_all(&together)?;
    for number in 0..names {
        let name = client::name(number);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let certificate = rcgen::CertificateParams::new(vec![name.clone()])?.self_signed(&key)?;
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        std::fs::write(format!("{folder}/{name}.crt"), &certificate)?;
        std::fs::write(format!("{folder}/{name}.key"), &key)?;
        std::fs::write(format!("{together}/{name}.pem"), certificate + &key)?;
    }
    println!("{{\"done\":{names},\"failed\":0}}");
    Ok(())
}
