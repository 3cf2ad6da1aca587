//! An authority in front of Pebble: adds what Debian's version lacks, renewal information (RFC 9773) and profiles, fails
//! in the ways authorities fail, and remembers everything it was asked.
//!
//! Pebble builds its addresses from the `Host` it is asked under and holds the `url` of a signature against the same, so
//! requests pass untouched and no signature breaks. `replaces` and `profile` of an order Pebble ignores, as Go's JSON
//! does with what it does not know; they are read here, and added to the answers as RFC 9773 section 5 asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use super::origin::{Exchange, Origin, Received};
use super::tls::{client_config, connect};
use super::wire::Reply;
use super::{Gate, Pebble};

/// Where this authority tells when it wants certificates renewed.
const RENEWAL_INFO: &str = "/renewal-info";
/// The profiles it offers.
pub const PROFILES: [&str; 2] = ["default", "shortlived"];

/// How an exchange goes wrong.
#[derive(Clone)]
pub enum Fault {
    /// A problem document with this status, type and `Retry-After`; Pebble is not asked.
    Refuse(u16, &'static str, Option<&'static str>),
    /// An error page of something between, with this status and `Retry-After`.
    Page(u16, Option<&'static str>),
    /// The connection is closed, and Pebble is not asked.
    Drop,
    /// Pebble is asked, and the connection closed without its answer.
    Lose,
    /// Half of Pebble's answer.
    Truncate,
    /// Held until the gate opens, then passed on.
    Hold(Gate),
    /// Pebble's answer without this member.
    Forget(&'static str),
    /// Pebble's answer with a `Date` so many seconds off.
    Date(i64),
}

struct Planned {
    path: &'static str,
    times: usize,
    fault: Fault,
}

/// An order as it was asked for and made.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// Its number among all events.
    pub at: usize,
    pub names: Vec<String>,
    pub replaces: Option<String>,
    pub profile: Option<String>,
    /// Last part of its address.
    id: String,
}

/// A certificate that was fetched.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its number among all events.
    pub at: usize,
    pub names: Vec<String>,
    /// Its identifier in RFC 9773.
    pub id: String,
    pub serial: String,
    pub not_before: u64,
    pub not_after: u64,
    /// Last part of its order's address.
    order: String,
}

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub target: String,
    pub when: Instant,
}

#[derive(Default)]
struct Memory {
    faults: Vec<Planned>,
    asked: Vec<Asked>,
    events: usize,
    orders: Vec<Order>,
    /// Addresses of certificates, with the order of each.
    places: BTreeMap<String, String>,
    fetched: Vec<Fetched>,
    replaced: BTreeSet<String>,
    windows: BTreeMap<String, (u64, u64)>,
    ask_again: u64,
    /// Addresses of accounts that were made.
    accounts: BTreeSet<String>,
    /// Tokens of challenges by kind and name.
    tokens: Vec<(String, String, String)>,
}

/// The authority. It outlives the Pebble behind it.
pub struct Front {
    origin: Origin,
    memory: Arc<Mutex<Memory>>,
}

impl Front {
    /// Stands before a Pebble, with a certificate of the same CA.
    pub async fn of(pebble: &Pebble) -> Front {
        let memory = Arc::new(Mutex::new(Memory { ask_again: 3600, ..Memory::default() }));
        let behind =
            Behind { address: pebble.address(), ca: std::fs::read_to_string(pebble.listener_ca()).unwrap() };
        let behind = Arc::new(behind);
        let kept = memory.clone();
        let origin = Origin::scripted_tls(pebble.listener_pair().server_config(), move |exchange| {
            handle(exchange, kept.clone(), behind.clone())
        });
        Front { origin: origin.await, memory }
    }

    /// The address of the ACME directory.
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.origin.address())
    }

    /// Lets the next `times` exchanges whose path begins so go wrong.
    pub fn plan(&self, path: &'static str, times: usize, fault: Fault) {
        self.memory().faults.push(Planned { path, times, fault });
    }

    /// Everything goes well from now on.
    pub fn mend(&self) {
        self.memory().faults.clear();
    }

    /// Requests whose path begins so.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.memory().asked.iter().filter(|asked| asked.target.starts_with(path)).cloned().collect()
    }

    pub fn orders(&self) -> Vec<Order> {
        self.memory().orders.clone()
    }

    pub fn orders_of(&self, name: &str) -> Vec<Order> {
        self.orders().into_iter().filter(|order| order.names.iter().any(|n| n == name)).collect()
    }

    pub fn fetched(&self) -> Vec<Fetched> {
        self.memory().fetched.clone()
    }

    pub fn fetched_of(&self, name: &str) -> Vec<Fetched> {
        self.fetched().into_iter().filter(|fetched| fetched.names.iter().any(|n| n == name)).collect()
    }

    /// Accounts made; asking for one that exists makes none.
    pub fn accounts(&self) -> usize {
        self.memory().accounts.len()
    }

    /// Tokens of challenges of a kind for a name, the latest last.
    pub fn tokens(&self, kind: &str, name: &str) -> Vec<String> {
        let memory = self.memory();
        let of = memory.tokens.iter().filter(|(k, n, _)| k == kind && n == name);
        of.map(|(_, _, token)| token.clone()).collect()
    }

    /// When a certificate is to be renewed, by its identifier; seconds since 1970.
    pub fn set_window(&self, id: &str, start: u64, end: u64) {
        self.memory().windows.insert(id.to_owned(), (start, end));
    }

    /// When whoever asks for a window is to ask again; seconds.
    pub fn set_ask_again(&self, seconds: u64) {
        self.memory().ask_again = seconds;
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap()
    }
}

struct Behind {
    address: SocketAddr,
    ca: String,
}

async fn handle(mut exchange: Exchange, memory: Arc<Mutex<Memory>>, behind: Arc<Behind>) -> Option<Exchange> {
    exchange.close();
    exchange.read_body().await.ok()?;
    let (method, target) = (exchange.request.method().to_owned(), exchange.request.target().to_owned());
    let fault = {
        let mut memory = memory.lock().unwrap();
        memory.asked.push(Asked { method: method.clone(), target: target.clone(), when: Instant::now() });
        memory.fault(&target)
    };
    let own = match &fault {
        Some(Fault::Refuse(status, kind, after)) => {
            let detail = match *kind {
                // Let's Encrypt's words for the limit of an account.
                "rateLimited" => "too many new orders (300) from this account in the last 3h0m0s",
                _ => "the test has something against it",
            };
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            let problem = json!({ "type": kind, "detail": detail, "status": status });
            Some(made(*status, "application/problem+json", *after, &problem.to_string()))
        }
        Some(Fault::Page(status, after)) => {
            Some(made(*status, "text/html", *after, "<html>out of order</html>"))
        }
        Some(Fault::Drop) => return None,
        Some(Fault::Hold(gate)) => {
            gate.pass().await;
            None
        }
        _ => None,
    };
    let payload = payload(&exchange.request.body);
    let own = own.or_else(|| memory.lock().unwrap().own_answer(&method, &target, &payload));
    let mut reply = match own {
        Some(reply) => reply,
        None => {
            let mut reply = pass_on(&exchange.request, &behind).await?;
            memory.lock().unwrap().take_note(&exchange.request, &mut reply, &payload);
            reply
        }
    };
    let mut bytes = written(&reply, &method);
    match fault {
        Some(Fault::Lose) => return None,
        Some(Fault::Truncate) => bytes.truncate(bytes.len() - reply.body.len().div_ceil(2)),
        Some(Fault::Forget(member)) => {
            let mut body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            body.as_object_mut().map(|members| members.remove(member));
            reply.body = body.to_string().into_bytes();
            bytes = written(&reply, &method);
        }
        Some(Fault::Date(off)) => {
            let now = UNIX_EPOCH + Duration::from_secs(now().saturating_add_signed(off));
            reply.head.fields.retain(|(name, _)| !name.eq_ignore_ascii_case("date"));
            reply.head.fields.push(("Date".into(), httpdate::fmt_http_date(now)));
            bytes = written(&reply, &method);
        }
        _ => {}
    }
    exchange.write(bytes).await.ok()?;
    exchange.wire.finish().await;
    Some(exchange)
}

/// The payload of a signed request; null where there is none.
fn payload(body: &[u8]) -> Value {
    let signed: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = signed["payload"].as_str().unwrap_or_default();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

async fn pass_on(request: &Received, behind: &Behind) -> Option<Reply> {
    let config = client_config(&behind.ca, &["http/1.1"], &[&TLS13, &TLS12]);
    let mut wire = connect(config, behind.address, "127.0.0.1").await.ok()?;
    wire.try_send(&request.head.raw).await.ok()?;
    wire.try_send(&request.body).await.ok()?;
    // A Pebble that is killed meanwhile says nothing, and so does this.
    wire.try_reply_to(request.method()).await.ok()
}

fn made(status: u16, kind: &str, after: Option<&str>, body: &str) -> Reply {
    let mut reply = Reply { status, body: body.as_bytes().to_vec(), ..Reply::default() };
    reply.head.fields.push(("Content-Type".into(), kind.into()));
    reply.head.fields.push(("Date".into(), httpdate::fmt_http_date(SystemTime::now())));
    reply.head.fields.extend(after.map(|after| ("Retry-After".to_owned(), after.to_owned())));
    reply
}

fn written(reply: &Reply, method: &str) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {} Passed\r\n", reply.status).into_bytes();
    let framing = ["content-length", "transfer-encoding", "connection"];
    for (name, value) in &reply.head.fields {
        if !framing.contains(&name.to_ascii_lowercase().as_str()) {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
    }
    out.extend_from_slice(
        format!("Connection: close\r\nContent-Length: {}\r\n\r\n", reply.body.len()).as_bytes(),
    );
    if method != "HEAD" {
        out.extend_from_slice(&reply.body);
    }
    out
}

impl Memory {
    fn fault(&mut self, target: &str) -> Option<Fault> {
        let planned =
            self.faults.iter_mut().find(|planned| planned.times > 0 && target.starts_with(planned.path))?;
        planned.times -= 1;
        Some(planned.fault.clone())
    }

    /// What this authority answers by itself.
    fn own_answer(&self, method: &str, target: &str, payload: &Value) -> Option<Reply> {
        if let Some(id) = target.strip_prefix(RENEWAL_INFO) {
            return Some(self.renewal_info(id.trim_start_matches('/')));
        }
        let replaces = payload["replaces"].as_str().filter(|_| method == "POST" && target == "/order-plz")?;
        let problem = |status: u16, kind: &str, detail: &str| {
            let kind = format!("urn:ietf:params:acme:error:{kind}");
            let problem = json!({ "type": kind, "detail": detail, "status": status });
            Some(made(status, "application/problem+json", None, &problem.to_string()))
        };
        // RFC 9773 section 5: one of ours, with a name in common, and not replaced yet.
        let Some(old) = self.fetched.iter().find(|fetched| fetched.id == replaces) else {
            return problem(404, "malformed", "no such certificate to replace");
        };
        if !names(payload).iter().any(|name| old.names.contains(name)) {
            return problem(400, "malformed", "the certificate to replace has none of these names");
        }
        if self.replaced.contains(replaces) {
            return problem(409, "alreadyReplaced", "another order has replaced this certificate");
        }
        None
    }

    /// RFC 9773 section 4.2.
    fn renewal_info(&self, id: &str) -> Reply {
        let Some(fetched) = self.fetched.iter().find(|fetched| fetched.id == id) else {
            let problem =
                json!({ "type": "urn:ietf:params:acme:error:malformed", "detail": "no such certificate" });
            return made(404, "application/problem+json", None, &problem.to_string());
        };
        let lifetime = fetched.not_after - fetched.not_before;
        let usual = (fetched.not_before + lifetime * 2 / 3, fetched.not_before + lifetime * 5 / 6);
        let (start, end) = self.windows.get(id).copied().unwrap_or(usual);
        let info = json!({
            "suggestedWindow": { "start": rfc3339(start), "end": rfc3339(end) },
            "explanationURL": "https://authority.test/why",
        });
        made(200, "application/json", Some(&self.ask_again.to_string()), &info.to_string())
    }

    /// Remembers what Pebble answered, and adds what it does not know.
    fn take_note(&mut self, request: &Received, reply: &mut Reply, payload: &Value) {
        let (target, method) = (request.target(), request.method());
        let id = target.rsplit('/').next().unwrap_or_default().to_owned();
        self.events += 1;
        let location = reply.field("location").unwrap_or_default().to_owned();
        let mut body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        match target.split('/').nth(1).unwrap_or_default() {
            "dir" => {
                let host = request.field("host").unwrap_or_default();
                body["renewalInfo"] = format!("https://{host}{RENEWAL_INFO}").into();
                body["meta"]["profiles"] =
                    PROFILES.iter().map(|p| (p.to_string(), json!("a profile"))).collect();
            }
            "sign-me-up" if reply.status == 201 => drop(self.accounts.insert(location)),
            "order-plz" if reply.status == 201 => {
                let text = |name: &str| payload[name].as_str().map(str::to_owned);
                let id = location.rsplit('/').next().unwrap_or_default().to_owned();
                let (replaces, profile) = (text("replaces"), text("profile"));
                self.orders.push(Order {
                    at: self.events,
                    names: names(payload),
                    replaces,
                    profile,
                    id: id.clone(),
                });
                self.complete(&id, &mut body);
            }
            "my-order" | "finalize-order" if reply.status == 200 => self.complete(&id, &mut body),
            "authZ" if method == "POST" && reply.status == 200 => {
                let name = body["identifier"]["value"].as_str().unwrap_or_default();
                for challenge in body["challenges"].as_array().into_iter().flatten() {
                    let text = |name: &str| challenge[name].as_str().unwrap_or_default().to_owned();
                    self.tokens.push((text("type"), name.to_owned(), text("token")));
                }
            }
            "certZ" if reply.status == 200 => self.fetch(target, &reply.body),
            _ => {}
        }
        if body.is_object() {
            reply.body = body.to_string().into_bytes();
        }
    }

    /// "The server MUST reflect that field in the response and in subsequent requests for the order" (RFC 9773
    /// section 5).
    fn complete(&mut self, id: &str, body: &mut Value) {
        let Some(order) = self.orders.iter().find(|order| order.id == id) else { return };
        if let Some(replaces) = &order.replaces {
            body["replaces"] = replaces.clone().into();
        }
        if let Some(profile) = &order.profile {
            body["profile"] = profile.clone().into();
        }
        if let Some(place) = body["certificate"].as_str() {
            let path = place.splitn(4, '/').nth(3).unwrap_or_default();
            self.places.insert(format!("/{path}"), id.to_owned());
            // Finalised, so what it replaces is replaced.
            self.replaced.extend(order.replaces.clone());
        }
    }

    fn fetch(&mut self, place: &str, chain: &[u8]) {
        let leaf = CertificateDer::from_pem_slice(chain).expect("a certificate from Pebble");
        let (_, parsed) = X509Certificate::from_der(&leaf).expect("a certificate from Pebble");
        let san = parsed.subject_alternative_name().expect("legal extensions").expect("names");
        let names = san.value.general_names.iter().filter_map(|name| match name {
            x509_parser::extensions::GeneralName::DNSName(name) => Some(name.to_string()),
            _ => None,
        });
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap();
        self.fetched.push(Fetched {
            at: self.events,
            names: names.collect(),
            id: identifier(&parsed),
            serial: parsed.raw_serial_as_string(),
            not_before: seconds(parsed.validity().not_before),
            not_after: seconds(parsed.validity().not_after),
            order: self.places.get(place).cloned().unwrap_or_default(),
        });
    }
}

fn names(payload: &Value) -> Vec<String> {
    let all = payload["identifiers"].as_array().into_iter().flatten();
    all.filter_map(|one| one["value"].as_str().map(str::to_owned)).collect()
}

/// The identifier of a certificate: the key identifier of its authority and its serial number, both in base64url, with
/// a point between (RFC 9773 section 4.1).
pub fn identifier(certificate: &X509Certificate<'_>) -> String {
    let key = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(found) => found.key_identifier.as_ref(),
        _ => None,
    });
    let key = key.expect("the authority's key identifier").0;
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}", encode(key), encode(certificate.raw_serial()))
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn rfc3339(seconds: u64) -> String {
    let at = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", at.hour(), at.minute(), at.second())
}

/// The first of these sites that serves no certificate, by the rows of `GET /certs`.
pub fn unserved(rows: &[Value], sites: &[String]) -> Option<String> {
    let has = |site: &String| rows.iter().any(|row| row["site"] == **site && row["not_after"].is_u64());
    sites.iter().find(|site| !has(site)).cloned()
}
