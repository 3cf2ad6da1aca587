//! The peer Pingora: a reverse proxy in one file, with what the others have switched on. Pingora is a library, so the
//! routing, the limit and the log are written here, as plainly as somebody would who builds on it.
//!
//!     peer-pingora FOLDER WORKERS
//!
//! FOLDER has pingora.conf (`name value` lines: plain, tls, backend, sink, closing, on), pingora-sites (one host a line),
//! cert.pem and key.pem.

use async_trait::async_trait;
use pingora_core::listeners::tls::TlsSettings;
use pingora_core::prelude::*;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

struct Edge {
    sites: HashSet<String>,
    backend: SocketAddr,
    sink: SocketAddr,
    closing: SocketAddr,
    /// The routes of the site routes.test; what none of them takes goes to the backend too.
    routes: Vec<(String, SocketAddr)>,
    /// Limit, log and metrics, where they are on.
    policies: Option<Policies>,
    begin: Instant,
}

struct Policies {
    /// Requests of each client in the ten seconds that run.
    seen: Mutex<HashMap<IpAddr, (u64, u64)>>,
    log: Mutex<BufWriter<File>>,
    requests: AtomicU64,
    failures: AtomicU64,
}

const LIMIT: u64 = 100_000_000;

fn client(session: &Session) -> Option<IpAddr> {
    session.client_addr()?.as_inet().map(SocketAddr::ip)
}

fn host(session: &Session) -> &str {
    let head = session.req_header();
    let field = head.headers.get("host").and_then(|value| value.to_str().ok());
    let host = field.or_else(|| head.uri.host()).unwrap_or("");
    host.split(':').next().unwrap_or("")
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = ();
    fn new_ctx(&self) {}

    async fn request_filter(&self, session: &mut Session, _: &mut ()) -> Result<bool> {
        if !self.sites.contains(host(session)) {
            session.respond_error(404).await?;
            return Ok(true);
        }
        if let (Some(policies), Some(client)) = (&self.policies, client(session)) {
            let window = self.begin.elapsed().as_secs() / 10;
            let over = policies.seen.lock().is_ok_and(|mut seen| {
                let (last, count) = seen.entry(client).or_insert((window, 0));
                if *last != window {
                    (*last, *count) = (window, 0);
                }
                *count += 1;
                *count > LIMIT
            });
            if over {
                session.respond_error(429).await?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn upstream_peer(&self, session: &mut Session, _: &mut ()) -> Result<Box<HttpPeer>> {
        let path = session.req_header().uri.path();
        let of_site = if host(session) == "routes.test" { self.routes.as_slice() } else { &[] };
        let address = match path {
            path if !of_site.is_empty() => of_site
                .iter()
                .find(|(prefix, _)| path.starts_with(prefix))
                .map_or(self.backend, |(_, to)| *to),
            path if path.starts_with("/sink/") => self.sink,
            path if path.starts_with("/closing/") => self.closing,
            _ => self.backend,
        };
        Ok(Box::new(HttpPeer::new(address, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut pingora_http::RequestHeader,
        _: &mut (),
    ) -> Result<()> {
        if let Some(client) = client(session) {
            request.insert_header("X-Forwarded-For", client.to_string())?;
        }
        let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        request.insert_header("X-Forwarded-Proto", if tls { "https" } else { "http" })?;
        let number = self.begin.elapsed().as_nanos();
        request.insert_header("X-Request-Id", format!("{number:032x}"))
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, _: &mut ()) {
        let Some(policies) = &self.policies else { return };
        policies.requests.fetch_add(1, Ordering::Relaxed);
        let status = session.response_written().map_or(0, |answer| answer.status.as_u16());
        if error.is_some() || status >= 500 {
            policies.failures.fetch_add(1, Ordering::Relaxed);
        }
        let head = session.req_header();
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        if let Ok(mut log) = policies.log.lock() {
            let _ = writeln!(
                log,
                "{time} {:?} {} {} {} {status} {}",
                client(session),
                host(session),
                head.method,
                head.uri.path(),
                session.body_bytes_sent()
            );
        }
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().ok_or("FOLDER is missing")?;
    let workers = words.next().ok_or("WORKERS is missing")?.parse()?;
    let text = std::fs::read_to_string(format!("{folder}/pingora.conf"))?;
    let settings: HashMap<&str, &str> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    let setting = |name: &str| settings.get(name).copied().ok_or_else(|| format!("{name} is missing"));
    let policies = match setting("on")? {
        "1" => Some(Policies {
            seen: Mutex::default(),
            log: Mutex::new(BufWriter::with_capacity(
                32768,
                File::create(format!("{folder}/pingora-access.log"))?,
            )),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }),
        _ => None,
    };
    let backend = setting("backend")?.parse()?;
    let edge = Edge {
        sites: std::fs::read_to_string(format!("{folder}/pingora-sites"))?
            .lines()
            .map(String::from)
            .collect(),
        backend,
        routes: (0..100).map(|number| (format!("/r{number}/"), backend)).collect(),
        sink: setting("sink")?.parse()?,
        closing: setting("closing")?.parse()?,
        policies,
        begin: Instant::now(),
    };
    let conf = ServerConf {
        threads: workers,
        upstream_keepalive_pool_size: 1024,
        work_stealing: false,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, edge);
    service.add_tcp(setting("plain")?);
    let mut tls = TlsSettings::intermediate(&format!("{folder}/cert.pem"), &format!("{folder}/key.pem"))?;
    tls.enable_h2();
    service.add_tls_with_settings(setting("tls")?, None, tls);
    server.add_service(service);
    server.run_forever();
}
