//! A small server for containers of the deploy tests, of the standard library alone: `app NAME PORT STOPFILE LINGER_MS`.
//!
//! `GET /` says its name, `GET /up` that it is well, `GET /big` sends 1 MiB over a second, `POST /up` counts a body, `GET /ws` becomes a tunnel that
//! echoes. Once STOPFILE is there it goes on listening for LINGER_MS, then takes no more connections, ends idle ones, and
//! finishes what it has begun; tunnels are cut when nothing else is left. One whose name ends in `-failing` answers 500 to
//! everything but `/up`, one whose name ends in `-sick` answers 503 there.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const BIG: usize = 1 << 20;
const PIECES: usize = 16;
const LOOK: Duration = Duration::from_millis(5);

struct App {
    name: String,
    stopping: AtomicBool,
    busy: AtomicUsize,
}

fn main() {
    let mut args = std::env::args().skip(1);
    let (name, port) = (args.next().unwrap(), args.next().unwrap());
    let (stop, linger) = (args.next().unwrap(), args.next().unwrap().parse().unwrap());
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).unwrap();
    listener.set_nonblocking(true).unwrap();
    let app = Arc::new(App { name, stopping: AtomicBool::new(false), busy: AtomicUsize::new(0) });
    let mut told: Option<Instant> = None;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                let app = app.clone();
                std::thread::Builder::new().stack_size(64 << 10).spawn(move || serve(&app, stream)).unwrap();
            }
            Err(_) => std::thread::sleep(LOOK),
        }
        if told.is_none() && Path::new(&stop).exists() {
            told = Some(Instant::now());
        }
        if told.is_some_and(|at| at.elapsed() >= Duration::from_millis(linger)) {
            break;
        }
    }
    drop(listener);
    app.stopping.store(true, Ordering::SeqCst);
    let end = Instant::now() + Duration::from_secs(8);
    while app.busy.load(Ordering::SeqCst) > 0 && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
}

fn serve(app: &App, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        // Idle: looks up from time to time.
        stream.set_read_timeout(Some(LOOK)).unwrap();
        match reader.fill_buf() {
            Ok([]) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if app.stopping.load(Ordering::SeqCst) {
                    let _ = stream.shutdown(Shutdown::Both);
                    return;
                }
                continue;
            }
            Err(_) => return,
        }
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        app.busy.fetch_add(1, Ordering::SeqCst);
        let more = answer(app, &mut reader, &stream);
        app.busy.fetch_sub(1, Ordering::SeqCst);
        if more.is_none() {
            return;
        }
    }
}

fn answer(app: &App, reader: &mut BufReader<TcpStream>, mut stream: &TcpStream) -> Option<()> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split_whitespace().nth(1)?.to_owned();
    let mut length = 0;
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        let field = field.trim().to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        if let Some(text) = field.strip_prefix("content-length:") {
            length = text.trim().parse().ok()?;
        }
    }
    let close = |app: &App| if app.stopping.load(Ordering::SeqCst) { "Connection: close\r\n" } else { "" };
    match path.as_str() {
        "/ws" => {
            let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            stream.write_all(head.as_bytes()).ok()?;
            // A tunnel keeps nobody from ending.
            app.busy.fetch_sub(1, Ordering::SeqCst);
            let mut bytes = [0; 4096];
            stream.set_read_timeout(None).ok();
            while let Ok(read @ 1..) = reader.read(&mut bytes) {
                if stream.write_all(&bytes[..read]).is_err() {
                    break;
                }
            }
            app.busy.fetch_add(1, Ordering::SeqCst);
            None
        }
        "/big" => {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n").ok()?;
            for _ in 0..PIECES {
                stream.write_all(&[b'x'; BIG / PIECES]).ok()?;
                std::thread::sleep(Duration::from_secs(1) / PIECES as u32);
            }
            Some(())
        }
        _ => {
            let mut left = length;
            let mut bytes = [0; 16 << 10];
            while left > 0 {
                let want = left.min(bytes.len());
                match reader.read(&mut bytes[..want]).ok()? {
                    0 => return None,
                    read => left -= read,
                }
            }
            let body = if path == "/up" { format!("{length}") } else { app.name.clone() };
            let status = match (path == "/up", app.name.rsplit('-').next()) {
                (false, Some("failing")) => "500 Internal Server Error",
                (true, Some("sick")) => "503 Service Unavailable",
                _ => "200 OK",
            };
            let close = close(app);
            let length = body.len();
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{close}\r\n{body}").ok()?;
            close.is_empty().then_some(())
        }
    }
}
