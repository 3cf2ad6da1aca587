//! How we talk to a CA, and to the API of a DNS provider: HTTPS over HTTP/1.1, a deadline on every call, answers bounded.
//!
//! instant-acme drops what we need of an answer: `Retry-After` of a refusal, and `Date` for the clock guard. Both are
//! kept here, the first per order ([`Notes`]), the second per client. One connection per call: an order makes about
//! ten, hours apart from the next. Cloning a [`Client`] shares all of it.

use std::error::Error as StdError;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT, AGE, CONTENT_TYPE, DATE, HOST, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::client::Resumption;
use rustls::version::{TLS12, TLS13};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::problem;
use crate::base::clock::{self, Millis};
use crate::base::clock_guard::Seen;
use crate::net::dial;
use crate::tls::pem;

/// From connecting to the last byte of the answer.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// A wait that no CA means longer than: a year.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Most bytes of an answer: a chain has a few kilobytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
tokio::task_local! {
    /// What the answers to one order said; set around an order by [`noted`].
    static NOTES: Arc<Notes>;
}

/// What the answers to one order said.
#[derive(Debug, Default)]
pub struct Notes {
    retry_after: Mutex<Option<Duration>>,
    ordered: AtomicBool,
}

impl Notes {
    /// The CA made an order.
    pub fn set_ordered(&self) {
        self.ordered.store(true, Ordering::Relaxed);
    }

    /// Whether it did.
    pub fn ordered(&self) -> bool {
        self.ordered.load(Ordering::Relaxed)
    }

    /// The `Retry-After` of the last refusal.
    pub fn retry_after(&self) -> Option<Duration> {
        *self.retry_after.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a future whose calls leave their notes in `notes`.
pub async fn noted<T>(notes: Arc<Notes>, future: impl Future<Output = T>) -> T {
    NOTES.scope(notes, future).await
}

/// What calls have told about the clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight {
    /// The CA's clock, as of the last answer.
    pub seen: Option<Seen>,
    /// When a CA's own certificate was last not valid at our time.
    pub doubted: Option<Millis>,
}

/// A whole answer.
pub type Answered = Response<Bytes>;

/// Why there is no answer.
#[derive(Debug)]
pub struct Trouble {
    /// A sentence without its full stop.
    pub message: String,
    /// Whether our clock may be the reason.
    pub clock: bool,
}

/// Calls to CAs.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    tls: Arc<ClientConfig>,
    sight: Mutex<Sight>,
}

impl Client {
    /// `ca_file`: one more root beside the system's. Errors: no roots at all, or a bad file.
    pub fn new(ca_file: Option<&Path>) -> Result<Client, String> {
        let inner = Inner { tls: tls_config(ca_file)?, sight: Mutex::default() };
        Ok(Client(Arc::new(inner)))
    }

    /// What calls have told about the clock.
    pub fn sight(&self) -> Sight {
        *self.lock()
    }

    /// The settings of the connections, for an engine that makes its own.
    pub fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.tls)
    }

    /// Asks for something public: the directory, renewal information.
    pub async fn get(&self, url: &str) -> Result<Answered, Trouble> {
        let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
        // RFC 8555 section 6.1: a client names itself.
        let request = Request::get(url).header(USER_AGENT, agent).header(ACCEPT, "application/json");
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|e| Trouble { message: format!("{url:?}: {e}"), clock: false })?;
        self.exchanged(request).await
    }

    /// One exchange with a CA within the deadline; what the answer says of the clock is kept.
    async fn exchanged<B>(&self, request: Request<B>) -> Result<Response<Bytes>, Trouble>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
    {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answered = tokio::time::timeout(CALL_DEADLINE, exchange(&self.0.tls, request)).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {CALL_DEADLINE:?}").into()));
        match answered {
            Ok(response) => {
                if let Some(theirs) = their_clock(response.headers()) {
                    self.lock().seen = Some(Seen { theirs, at: clock::now() });
                }
                Ok(response)
            }
            Err(trouble) => {
                if trouble.clock {
                    self.lock().doubted = Some(clock::now());
                }
                Err(Trouble { message: format!("{host}: {}", trouble.message), ..trouble })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sight> {
        self.0.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call to somebody else than the CA, as it is answered: neither counted nor noted.
    ///
    /// # Errors
    /// A sentence that names the host: no whole answer came.
    pub async fn fetch(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answered = tokio::time::timeout(CALL_DEADLINE, exchange(&self.0.tls, request)).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {CALL_DEADLINE:?}").into()));
        answered.map_err(|trouble| format!("{host}: {}", trouble.message))
    }

    async fn call(&self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, Error> {
        let notes = NOTES.try_with(Arc::clone).ok();
        let (method, host) = (request.method().clone(), request.uri().host().unwrap_or_default().to_owned());
        let response =
            self.exchanged(request).await.map_err(|trouble| Error::Other(trouble.message.into()))?;
        if let Some(notes) = notes.filter(|_| response.status().as_u16() >= 400) {
            *notes.retry_after.lock().unwrap_or_else(PoisonError::into_inner) =
                retry_after(response.headers());
        }
        // instant-acme looks at the status of signed calls only; an error page is no directory, and no nonce either.
        if matches!(method, Method::GET | Method::HEAD) && response.status().as_u16() >= 400 {
            return Err(Error::Other(format!("{host}: the CA answered HTTP {}", response.status()).into()));
        }
        let mut response = polished(response);
        // instant-acme adds the seconds to the time of day, and panics where that is more than can be told.
        if retry_after(response.headers()).is_some_and(|after| after > RETRY_AFTER_MAX) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_MAX.as_secs()));
        }
        Ok(response)
    }
}

/// How long the other side wants to hear nothing (RFC 9110 section 10.2.3: seconds or a date).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?;
    let seconds = value.to_str().ok()?.trim().parse().ok();
    let until = || {
        // A date is by the other side's clock.
        let theirs = headers.get(DATE).and_then(date).unwrap_or_else(|| clock::wall().as_secs());
        date(value).map(|at| at.saturating_sub(theirs))
    };
    seconds.or_else(until).map(Duration::from_secs)
}

/// What their clock shows now: `Date`, and how long ago that was if a cache kept the answer (RFC 9111 section 5.1).
fn their_clock(headers: &HeaderMap) -> Option<u64> {
    let age = headers.get(AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok()).unwrap_or(0);
    headers.get(DATE).and_then(date).map(|at| at.saturating_add(age))
}

impl HttpClient for Client {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let client = self.clone();
        Box::pin(async move { client.call(request).await.map(BytesResponse::from) })
    }
}

async fn exchange<B>(tls: &Arc<ClientConfig>, request: Request<B>) -> Result<Response<Bytes>, Trouble>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
{
    let (mut parts, body) = request.into_parts();
    // RFC 8555 section 6.1: HTTPS, always.
    if parts.uri.scheme_str() != Some("https") {
        return Err(format!("{} is no https:// address", parts.uri).into());
    }
    let host = parts.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| format!("{host:?} is no host name"))?;
    let port = parts.uri.port_u16().unwrap_or(443);
    let found = tokio::net::lookup_host((host.as_str(), port)).await;
    let addresses = found.map_err(|e| format!("the name is not found: {e}"))?;
    let tcp = dial::first(addresses).await.map_err(|e| format!("connecting failed: {e}"))?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, tcp)
        .await
        .map_err(|e| Trouble { message: format!("TLS handshake failed: {e}"), clock: is_about_time(&e) })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| format!("HTTP failed: {e}"))?;
    // Ends with the sender below, or with the deadline that drops it.
    let driver = tokio::spawn(connection);
    let authority = parts.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
    parts.headers.insert(HOST, HeaderValue::from_str(&authority).map_err(|e| e.to_string())?);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse::<Uri>();
    parts.uri = path.map_err(|e| e.to_string())?;
    let answer = sender.send_request(Request::from_parts(parts, body)).await;
    let (parts, body) = answer.map_err(|e| format!("the connection broke: {e}"))?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| format!("the answer broke off: {e}"))?.to_bytes();
    drop(sender);
    driver.abort();
    Ok(Response::from_parts(parts, body))
}

impl From<String> for Trouble {
    fn from(message: String) -> Trouble {
        Trouble { message, clock: false }
    }
}

/// Whether a handshake failed because their certificate is not valid at our time.
fn is_about_time(error: &std::io::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(
        inner,
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        ))
    )
}

/// What instant-acme would misunderstand or drop is said in its words: a refusal that is no problem document (a proxy's
/// error page), and where a person is to go.
fn polished(response: Response<Bytes>) -> Response<Full<Bytes>> {
    let (parts, mut body) = response.into_parts();
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if parts.status.as_u16() >= 400 && serde_json::from_slice::<instant_acme::Problem>(&body).is_err() {
        let detail =
            format!("HTTP {} with {} bytes of {kind:?} that explain nothing", parts.status, body.len());
        let problem = serde_json::json!({ "detail": detail, "status": parts.status.as_u16() });
        body = Bytes::from(problem.to_string());
    } else if parts.status.as_u16() >= 400
        && let Some(told) = problem::completed(&body, Some(parts.status.as_u16()))
    {
        body = Bytes::from(told);
    }
    Response::from_parts(parts, Full::new(body))
}

/// Seconds since 1970.
fn date(value: &HeaderValue) -> Option<u64> {
    let time = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

pub(super) fn tls_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let (mut added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let label = path.display().to_string();
        let text = pem::read_text(path)?;
        for der in pem::certificates(&text, &label).map_err(|(m, h)| format!("{m} {h}"))? {
            roots.add(der).map_err(|e| format!("A certificate in {label} cannot be trusted: {e}."))?;
            added += 1;
        }
    }
    if added == 0 {
        return Err(
            "This system has no CA certificates, so no ACME server can be trusted. Install the package \
                    `ca-certificates`, or name its root: [acme] ca_file = \"ca.pem\"."
                .into(),
        );
    }
    let mut config = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| format!("The TLS library refused its own settings: {e}. This is a bug in Tidegate."))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Calls are few. With resumption a server on rustls 0.23.46 refused the second one (alert `missing_extension`).
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server with a certificate of these days, and the root it stands under.
    async fn server(days: (i64, i64)) -> (String, tempfile::NamedTempFile) {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        use tokio::io::AsyncWriteExt;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let root = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(root.path(), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let now = i64::try_from(clock::wall().as_secs()).unwrap();
        let at = |days: i64| {
            let seconds = u64::try_from(now + days * 86_400).unwrap();
            rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds)
        };
        (params.not_before, params.not_after) = (at(days.0), at(days.1));
        let leaf = params.signed_by(&own, &issuer).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(own.serialize_der()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.into()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}/dir", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                let head = "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nage: 60\r\n\
                            content-length: 2\r\n\r\n{}";
                let _ = tls.write_all(head.as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        });
        (url, root)
    }

    fn run(future: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
    }

    #[test]
    fn a_certificate_out_of_its_time_is_a_doubt_about_our_clock() {
        run(async {
            for days in [(-9, -1), (1, 9)] {
                let (url, root) = server(days).await;
                let client = Client::new(Some(root.path())).unwrap();
                let trouble = client.get(&url).await.unwrap_err();
                assert!(trouble.clock && trouble.message.contains("127.0.0.1"), "{trouble:?}");
                let sight = client.sight();
                assert!(sight.doubted.is_some() && sight.seen.is_none(), "{sight:?}");
            }
        });
    }

    #[test]
    fn the_time_of_an_answer_is_kept_and_that_of_others_is_not() {
        run(async {
            let (url, root) = server((-1, 9)).await;
            let client = Client::new(Some(root.path())).unwrap();
            let other = Request::get(&url).body(Full::default()).unwrap();
            client.fetch(other).await.unwrap();
            assert!(client.sight().seen.is_none());
            client.get(&url).await.unwrap();
            // 2026-01-01, and a minute in a cache.
            assert_eq!(client.sight().seen.unwrap().theirs, 1_767_225_600 + 60);
            let trouble = client.get("https://127.0.0.1:1/dir").await.unwrap_err();
            assert!(!trouble.clock && client.sight().doubted.is_none());
        });
    }

    #[test]
    fn how_long_to_wait_is_read_as_seconds_or_as_a_date_by_their_clock() {
        let of = |headers: &[(&'static str, &str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().unwrap());
            }
            retry_after(&map).map(|wait| wait.as_secs())
        };
        assert_eq!(of(&[("retry-after", " 120 ")]), Some(120));
        let later = ("retry-after", "Thu, 01 Jan 2026 00:02:00 GMT");
        assert_eq!(of(&[later, ("date", "Thu, 01 Jan 2026 00:00:00 GMT")]), Some(120));
        assert_eq!(of(&[later, ("date", "Fri, 02 Jan 2026 00:00:00 GMT")]), Some(0));
        assert_eq!(of(&[("retry-after", "soon")]), None);
        assert_eq!(of(&[]), None);
    }
}
