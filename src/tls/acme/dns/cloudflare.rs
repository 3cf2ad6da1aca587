//! Cloudflare's API, version 4: one record for each value, found again by its content.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Calling, Provider, TTL, Ticket, Txt, secret, trouble};
use crate::config::model;
use crate::tls::acme::http::Client;
use crate::tls::acme::issuer::IssueError;

/// Zones remembered; then all are asked for again.
const ZONES_MAX: usize = 1_000;
/// Records of one name that are looked at.
const RECORDS_MAX: usize = 100;
/// "An identical record already exists", in its two numbers.
const IDENTICAL: [u64; 2] = [81_057, 81_058];

const SCOPE: &str = "The API token needs the permissions Zone/Zone/Read and Zone/DNS/Edit for that zone. See docs/certificates.md.";

/// The API.
pub(super) struct Cloudflare {
    settings: model::Cloudflare,
    client: Client,
    /// Identifiers of zones by the names of records in them.
    zones: Mutex<HashMap<String, Arc<str>>>,
}

/// What the API answered.
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Value,
}

impl Cloudflare {
    pub(super) fn new(settings: &model::Cloudflare, client: Client) -> Cloudflare {
        Cloudflare { settings: settings.clone(), client, zones: Mutex::default() }
    }

    async fn add(&self, record: &Txt) -> Result<(), IssueError> {
        let zone = self.zone(record).await?;
        let body = json!({
            // RFC 1035 section 5.1: a text in quotes; what the API itself makes of one without.
            "type": "TXT", "name": record.plain(), "content": quoted(record), "ttl": TTL,
            "comment": "ACME challenge, written by Tidegate",
        });
        let answer = self.call(Method::POST, &format!("/zones/{zone}/dns_records"), Some(&body)).await?;
        if answer.codes().any(|code| IDENTICAL.contains(&code)) {
            return Ok(());
        }
        self.checked(answer, record).map(drop)
    }

    async fn remove(&self, record: &Txt) -> Result<(), IssueError> {
        let zone = self.zone(record).await?;
        let path = format!("/zones/{zone}/dns_records");
        let asked = format!("{path}?type=TXT&name={}&per_page={RECORDS_MAX}", record.plain());
        let found = self.checked(self.call(Method::GET, &asked, None).await?, record)?;
        for one in found.as_array().into_iter().flatten() {
            let content = one.get("content").and_then(Value::as_str).unwrap_or_default();
            let Some(id) = one.get("id").and_then(Value::as_str).filter(|id| is_id(id)) else { continue };
            if content.trim_matches('"') == &*record.value {
                let answer = self.call(Method::DELETE, &format!("{path}/{id}"), None).await?;
                // Somebody else was faster.
                if answer.status != StatusCode::NOT_FOUND {
                    self.checked(answer, record)?;
                }
            }
        }
        Ok(())
    }

    /// The identifier of the zone with the longest name that fits and that the token may see.
    async fn zone(&self, record: &Txt) -> Result<Arc<str>, IssueError> {
        let name = record.plain();
        if let Some(known) = self.zones.lock().unwrap_or_else(PoisonError::into_inner).get(&name) {
            return Ok(Arc::clone(known));
        }
        let mut at = name.as_str();
        let mut candidates = vec![at];
        while let Some((_, above)) = at.split_once('.') {
            candidates.push(above);
            at = above;
        }
        // The last is a top-level domain, which is nobody's zone here.
        candidates.pop();
        for candidate in candidates {
            let answer = self.call(Method::GET, &format!("/zones?name={candidate}"), None).await?;
            let found = self.checked(answer, record)?;
            let id = found.get(0).and_then(|zone| zone.get("id")).and_then(Value::as_str);
            if let Some(id) = id.filter(|id| is_id(id)) {
                let id: Arc<str> = Arc::from(id);
                let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
                if zones.len() >= ZONES_MAX {
                    zones.clear();
                }
                zones.insert(name, Arc::clone(&id));
                return Ok(id);
            }
        }
        Err(trouble(format!("Cloudflare shows this API token no zone for {name}."), SCOPE))
    }

    /// What came out, or what Cloudflare says is wrong.
    fn checked(&self, answer: Answer, record: &Txt) -> Result<Value, IssueError> {
        if answer.status.is_success() && answer.body.get("success") == Some(&Value::Bool(true)) {
            return Ok(answer.body.get("result").cloned().unwrap_or_default());
        }
        // Identifiers may have changed hands; they are asked for again.
        self.zones.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut said: Vec<String> = Vec::new();
        for error in answer.errors() {
            said.push(told(error));
            let chain = error.get("error_chain").and_then(Value::as_array);
            said.extend(chain.into_iter().flatten().map(told));
        }
        let said = if said.is_empty() { "nothing about it".to_owned() } else { said.join("; ") };
        let text =
            format!("Cloudflare refuses {} (HTTP {}): {said}.", record.plain(), answer.status.as_u16());
        let mend = match answer.status {
            // 9109, 10000 and 6003 come with these.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST => SCOPE,
            StatusCode::TOO_MANY_REQUESTS => {
                "Nothing needs to be done: it is tried again when Cloudflare allows it."
            }
            status if status.is_server_error() => "Cloudflare is out of order; it is tried again.",
            _ => "Cloudflare's documentation lists its error codes.",
        };
        Err(IssueError { retry_after: answer.retry_after, ..trouble(text, mend) })
    }

    async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, IssueError> {
        let token = secret(&self.settings.token, "token_file").await?;
        let bearer = Zeroizing::new(format!("Bearer {}", token.reveal()));
        let mut bearer = HeaderValue::from_str(&bearer).map_err(|_| {
            trouble("The API token for Cloudflare has characters that no token has.", "Copy it again.")
        })?;
        bearer.set_sensitive(true);
        let url = format!("{}{path}", self.settings.api_url);
        let bytes = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(AUTHORIZATION, bearer)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(bytes))
            .map_err(|e| trouble(format!("The request to Cloudflare cannot be written: {e}."), SCOPE))?;
        let answer = self.client.fetch(request).await.map_err(|why| {
            trouble(
                format!("Cloudflare cannot be asked: {why}."),
                "Can this machine reach it? It is tried again.",
            )
        })?;
        let retry_after =
            answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Answer {
            status: answer.status(),
            retry_after: retry_after.map(Duration::from_secs),
            body: serde_json::from_slice(answer.body()).unwrap_or_default(),
        })
    }
}

impl Answer {
    fn errors(&self) -> impl Iterator<Item = &Value> {
        self.body.get("errors").and_then(Value::as_array).into_iter().flatten()
    }

    fn codes(&self) -> impl Iterator<Item = u64> {
        self.errors().filter_map(|error| error.get("code").and_then(Value::as_u64))
    }
}

impl Provider for Cloudflare {
    fn present<'a>(&'a self, record: &'a Txt) -> Calling<'a, Option<Ticket>> {
        Box::pin(async move { self.add(record).await.map(|()| None) })
    }

    fn cleanup<'a>(&'a self, record: &'a Txt) -> Calling<'a, ()> {
        Box::pin(self.remove(record))
    }
}

fn quoted(record: &Txt) -> String {
    format!("\"{}\"", record.value)
}

/// An identifier goes into a path as it stands.
fn is_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn told(error: &Value) -> String {
    let code = error.get("code").and_then(Value::as_u64).unwrap_or(0);
    let message = error.get("message").and_then(Value::as_str).unwrap_or("no message");
    let message: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
    format!("{code} {}", message.trim_end_matches('.'))
}
