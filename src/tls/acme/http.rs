//! How we talk to a CA, and to the API of a DNS provider: HTTPS over HTTP/1.1, a deadline on every call, answers bounded.
//!
//! instant-acme drops what we need of an answer: `Retry-After` of a refusal, and `Date` for the clock guard. Both are
//! kept here, the first per order ([`Notes`]), the second per client. One connection per call: an order makes about
//! ten, hours apart from the next.

use std::error::Error as StdError;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, DATE, HOST, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::client::Resumption;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::base::clock;
use crate::tls::pem;

/// From connecting to the last byte of the answer.
const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Most bytes of an answer: a chain has a few kilobytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Stands for "no `Date` seen yet".
const SKEW_UNKNOWN: i64 = i64::MIN;
/// When a CA that offers renewal information does not say when to ask again: six hours, Let's Encrypt's value.
const ASK_AGAIN: &str = "21600";

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

/// Calls to one CA. Cloning shares it.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    tls: Arc<ClientConfig>,
    /// The CA's clock less ours, in seconds.
    skew: AtomicI64,
    calls: AtomicU64,
    failures: AtomicU64,
}

impl Client {
    /// `ca_file`: one more root beside the system's. Errors: no roots at all, or a bad file.
    pub fn new(ca_file: Option<&Path>) -> Result<Client, String> {
        let inner = Inner {
            tls: tls_config(ca_file)?,
            skew: AtomicI64::new(SKEW_UNKNOWN),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        };
        Ok(Client(Arc::new(inner)))
    }

    /// The CA's clock less ours in seconds, as of the last answer with a `Date`.
    pub fn skew(&self) -> Option<i64> {
        let skew = self.0.skew.load(Ordering::Relaxed);
        (skew != SKEW_UNKNOWN).then_some(skew)
    }

    /// Calls made, and those without an answer.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.calls.load(Ordering::Relaxed), self.0.failures.load(Ordering::Relaxed))
    }

    /// One call to somebody else than the CA, as it is answered: neither counted nor noted.
    ///
    /// # Errors
    /// A sentence that names the host: no whole answer came.
    pub async fn fetch(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, String> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let answered = tokio::time::timeout(CALL_DEADLINE, exchange(&self.0.tls, request)).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {CALL_DEADLINE:?}")));
        answered.map_err(|why| format!("{host}: {why}"))
    }

    async fn call(&self, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, Error> {
        let notes = NOTES.try_with(Arc::clone).ok();
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        let (method, host) = (request.method().clone(), request.uri().host().unwrap_or_default().to_owned());
        let answered = tokio::time::timeout(CALL_DEADLINE, exchange(&self.0.tls, request)).await;
        let answered = answered.unwrap_or_else(|_| Err(format!("no answer within {CALL_DEADLINE:?}")));
        let response = answered.map_err(|why| {
            self.0.failures.fetch_add(1, Ordering::Relaxed);
            Error::Other(format!("{host}: {why}").into())
        })?;
        self.note(&response, notes.as_deref());
        // instant-acme looks at the status of signed calls only; an error page is no directory.
        if method == Method::GET && response.status().as_u16() >= 400 {
            return Err(Error::Other(format!("{host}: the CA answered HTTP {}", response.status()).into()));
        }
        Ok(polished(response, &method))
    }

    fn note(&self, response: &Response<Bytes>, notes: Option<&Notes>) {
        let now = clock::wall().as_secs();
        if let Some(at) = response.headers().get(DATE).and_then(date) {
            self.0.skew.store(at.cast_signed().saturating_sub(now.cast_signed()), Ordering::Relaxed);
        }
        if let Some(notes) = notes.filter(|_| response.status().as_u16() >= 400) {
            let after = response.headers().get(RETRY_AFTER).and_then(|value| {
                // RFC 9110 section 10.2.3: seconds or a date.
                let seconds = value.to_str().ok()?.trim().parse().ok();
                seconds.or_else(|| date(value).map(|at| at.saturating_sub(now))).map(Duration::from_secs)
            });
            *notes.retry_after.lock().unwrap_or_else(PoisonError::into_inner) = after;
        }
    }
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

async fn exchange<B>(tls: &Arc<ClientConfig>, request: Request<B>) -> Result<Response<Bytes>, String>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
{
    let (mut parts, body) = request.into_parts();
    // RFC 8555 section 6.1: HTTPS, always.
    if parts.uri.scheme_str() != Some("https") {
        return Err(format!("{} is no https:// address", parts.uri));
    }
    let host = parts.uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone()).map_err(|_| format!("{host:?} is no host name"))?;
    let port = parts.uri.port_u16().unwrap_or(443);
    let tcp =
        TcpStream::connect((host.as_str(), port)).await.map_err(|e| format!("connecting failed: {e}"))?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, tcp)
        .await
        .map_err(|e| format!("TLS handshake failed: {e}"))?;
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

/// What instant-acme would misunderstand is said in its words: a refusal that is no problem document (a proxy's error
/// page), and renewal information without `Retry-After`.
fn polished(response: Response<Bytes>, method: &Method) -> Response<Full<Bytes>> {
    let (mut parts, mut body) = response.into_parts();
    let kind = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if parts.status.as_u16() >= 400 && serde_json::from_slice::<instant_acme::Problem>(&body).is_err() {
        let detail =
            format!("HTTP {} with {} bytes of {kind:?} that explain nothing", parts.status, body.len());
        let problem = serde_json::json!({ "detail": detail, "status": parts.status.as_u16() });
        body = Bytes::from(problem.to_string());
    }
    if method == Method::GET && !parts.headers.contains_key(RETRY_AFTER) {
        parts.headers.insert(RETRY_AFTER, HeaderValue::from_static(ASK_AGAIN));
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
