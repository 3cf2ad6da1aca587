//! Step 9: the only place where an outcome becomes an answer.
//!
//! Answers that we make ourselves carry `Proxy-Status` (RFC 9209) and the request id, and say nothing about the
//! inside. They come as HTML, JSON (RFC 9457) or text, by `Accept`.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, Version};

use crate::base::outcome::Outcome;
use crate::policy::cors::Cors;
use crate::policy::redirect::Redirect;
use crate::policy::respond::Respond;
use crate::proxy::answer;
use crate::proxy::body::ResponseBody;
use crate::proxy::context::Context;
use crate::proxy::fields::X_REQUEST_ID;
use crate::proxy::request::Answer;
use crate::proxy::{doctor, enforce, grpc};
use crate::telemetry::metric::Counter;

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// An answer of our own on its way out.
pub struct Local {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    outcome: Outcome,
}

impl Local {
    /// The answer; its context is recorded when it is sent.
    pub fn into_response(self, mut context: Box<Context>) -> Response<ResponseBody> {
        context.expect(self.outcome);
        context.status = self.status.as_u16();
        enforce::answered(&mut context, self.status.as_u16());
        // Nobody will read the rest of the body, so nobody can find the next request behind it: say so (RFC 9112
        // section 9.6).
        context.close |= context.unread();
        let mut headers = self.headers;
        answer::dress(&mut headers, &context);
        headers.insert(X_REQUEST_ID, context.request_id.clone());
        finish(&mut headers, &context);
        // RFC 9110 section 9.3.2: no body in answer to HEAD; its length would be a lie.
        let body = if context.method == Method::HEAD { Bytes::new() } else { self.body };
        let mut response = Response::new(ResponseBody::piece(body, context));
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

/// What every answer gets, whoever made it: cookies of whoever said who the client is, the limit's state, and the news that
/// the connection ends.
pub fn finish(headers: &mut HeaderMap, context: &Context) {
    for cookie in &context.cookies {
        let _ = headers.try_append(header::SET_COOKIE, cookie.clone()); // a map that is full takes no more
    }
    if let (Some((index, verdict)), Some(site), Some(route)) =
        (&context.limits.told, context.site(), context.route())
        && let Some(rule) = site.limits.iter().chain(&route.limits).nth(*index)
    {
        rule.limiter.write_headers(verdict, headers);
    }
    if context.close && context.version < Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The answer to a request that failed.
pub fn failure(mut context: Box<Context>, outcome: Outcome) -> Response<ResponseBody> {
    let row = outcome.row();
    let site = context.site().map(|site| &**site);
    if !doctor::doubts(&context) {
        enforce::note(context.worker(), &context.snapshot, site, context.client, outcome);
    }
    // Framing that was not understood: what follows on this connection is anyone's guess (RFC 9112 section 9.6).
    if row.status == 400 || matches!(outcome, Outcome::BodyTooLarge | Outcome::HeadTooLarge) {
        context.close = true;
    }
    // A client that opens a tunnel may be talking through it already.
    context.close |= context.method == Method::CONNECT;
    let status = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::new();
    headers.insert(PROXY_STATUS, proxy_status(outcome));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(refusal) = context.refusal.take() {
        if refusal.headers.contains_key(header::CACHE_CONTROL) {
            headers.remove(header::CACHE_CONTROL);
        }
        for (name, value) in &refusal.headers {
            let _ = headers.try_append(name, value.clone()); // a map that is full has enough to say
        }
        if let Some((status, body)) = refusal.whole {
            return Local { status, headers, body, outcome }.into_response(context);
        }
    }
    if outcome == Outcome::MethodRefused {
        headers
            .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(context.retry_after.unwrap_or(1)));
    }
    if let (Outcome::Banned | Outcome::ClientBusy, Some(seconds)) = (outcome, context.retry_after) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if context.accept == Accept::Grpc {
        // Limits by status go by what it is, and not by the 200 that carries it.
        enforce::answered(&mut context, row.status);
        grpc::write(&mut headers, outcome, context.reset);
        return Local { status: StatusCode::OK, headers, body: Bytes::new(), outcome }.into_response(context);
    }
    let id = context.request_id.to_str().unwrap_or_default();
    let (kind, body) = page(context.accept, status, outcome, id);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Local { status, headers, body, outcome }.into_response(context)
}

/// What a refusal tells besides its outcome.
#[derive(Debug, Default)]
pub struct Refusal {
    /// Fields.
    pub headers: HeaderMap,
    /// Status and body, where they are not ours to make.
    pub whole: Option<(StatusCode, Bytes)>,
}

/// Which shape of error a client reads best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accept {
    /// A person with a browser.
    Html,
    /// A program.
    Json,
    /// A person with a terminal, or who knows.
    Text,
    /// gRPC, which reads no HTTP status.
    Grpc,
}

impl Accept {
    /// By the first type in `Accept` that we have; `*/*` is text.
    pub fn of(headers: &HeaderMap) -> Accept {
        let Some(accept) = headers.get(header::ACCEPT) else { return Accept::Text };
        for range in accept.as_bytes().split(|&b| b == b',') {
            let kind = range.split(|&b| b == b';').next().unwrap_or_default().trim_ascii();
            if kind.eq_ignore_ascii_case(b"text/html") || kind.eq_ignore_ascii_case(b"application/xhtml+xml")
            {
                return Accept::Html;
            }
            if kind.eq_ignore_ascii_case(b"application/json")
                || kind.eq_ignore_ascii_case(b"application/problem+json")
            {
                return Accept::Json;
            }
        }
        Accept::Text
    }
}

fn page(accept: Accept, status: StatusCode, outcome: Outcome, id: &str) -> (&'static str, Bytes) {
    let row = outcome.row();
    let (number, name) = (status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    let (code, sentence) = (row.code, row.sentence);
    match accept {
        Accept::Html => (
            "text/html; charset=utf-8",
            format!(
                "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
                 content=\"width=device-width\"><title>{number} {name}</title><style>body{{font:16px/1.5 \
                 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;color:#222;\
                 background:#fff}}small{{color:#666}}</style><h1>{number} {name}</h1><p>{sentence}</p>\
                 <p><small>{code} &middot; request {id}</small></p></html>\n"
            )
            .into(),
        ),
        Accept::Json => (
            "application/problem+json",
            format!(
                "{{\"type\":\"about:blank\",\"title\":\"{name}\",\"status\":{number},\"detail\":\"{sentence}\",\
                 \"code\":\"{code}\",\"retryable\":{},\"request_id\":\"{id}\"}}\n",
                row.retryable
            )
            .into(),
        ),
        Accept::Text | Accept::Grpc => (
            "text/plain; charset=utf-8",
            format!("{number} {name}: {sentence}\n{code}, request {id}\n").into(),
        ),
    }
}

fn proxy_status(outcome: Outcome) -> HeaderValue {
    let row = outcome.row();
    let error =
        if row.proxy_status.is_empty() { String::new() } else { format!("; error={}", row.proxy_status) };
    HeaderValue::from_str(&format!("tidegate{error}; details=\"{}\"", row.code))
        .unwrap_or(HeaderValue::from_static("tidegate"))
}

/// A whole HTTP/1.1 answer as bytes, for a connection on which hyper does not speak (any more).
pub fn raw(outcome: Outcome, id: &str) -> Vec<u8> {
    let status = StatusCode::from_u16(outcome.row().status).unwrap_or(StatusCode::BAD_REQUEST);
    let body = format!("{} {}\n{}, request {id}\n", status.as_u16(), outcome.row().sentence, outcome.code());
    format!(
        "HTTP/1.1 {} {}\r\nproxy-status: {}\r\nx-request-id: {id}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error"),
        proxy_status(outcome).to_str().unwrap_or("tidegate"),
        body.len(),
    )
    .into_bytes()
}

fn local(status: StatusCode, outcome: Outcome) -> Local {
    Local { status, headers: HeaderMap::new(), body: Bytes::new(), outcome }
}

/// Sends a client of a plain HTTP listener to HTTPS, path and query kept.
///
/// # Errors
/// [`Outcome::BadHost`] when the host makes no legal URL.
pub fn to_https(context: &Context, parts: &Parts, path: &str) -> Result<Answer, Outcome> {
    let host = super::normalize::host(&parts.uri, &parts.headers, parts.version)?;
    let snapshot = &context.snapshot;
    let port = match snapshot.server.public_https_port.or(snapshot.https_port) {
        None | Some(443) => String::new(),
        Some(port) => format!(":{port}"),
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.into_owned() };
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let location = format!("https://{host}{port}{path}{query}");
    let mut answer = local(StatusCode::PERMANENT_REDIRECT, Outcome::HttpsRedirect);
    answer.headers.insert(header::LOCATION, HeaderValue::from_str(&location).map_err(|_| Outcome::BadHost)?);
    Ok(Answer::Local(Box::new(answer)))
}

/// A redirect from the configuration.
pub fn redirect(redirect: &Redirect, parts: &Parts, path: Option<&str>) -> Answer {
    let path = path.unwrap_or_else(|| parts.uri.path());
    let mut answer = local(redirect.status(), Outcome::Redirected);
    answer.headers.insert(header::LOCATION, redirect.location(path, parts.uri.query()));
    Answer::Local(Box::new(answer))
}

/// The answer to a preflight question about another origin, where the route says whose pages may use it.
pub fn preflight(context: &Context, parts: &Parts) -> Option<Answer> {
    let cors = context.route()?.cors.as_ref()?;
    if !Cors::is_preflight(&parts.method, &parts.headers) {
        return None;
    }
    let (status, headers) = cors.preflight(&parts.headers);
    let mut answer = local(status, Outcome::Responded);
    answer.headers = headers;
    Some(Answer::Local(Box::new(answer)))
}

/// A fixed answer from the configuration.
pub fn fixed(fixed: &Respond) -> Answer {
    let mut answer = local(fixed.status, Outcome::Responded);
    answer.headers = fixed.headers.clone();
    answer.body = fixed.body.clone();
    Answer::Local(Box::new(answer))
}

/// Where an ACME authority looks for the answer to an HTTP-01 challenge (RFC 8555 section 8.3).
const CHALLENGE_PATH: &str = "/.well-known/acme-challenge/";

/// The answer to an HTTP-01 challenge of ours, whatever site or listener is asked: before redirects, routes and
/// limits, or a site's own rules could keep it from its certificate. A token that we did not make is routed as usual,
/// because a backend may have a client of its own.
pub fn challenge(context: &Context, parts: &Parts) -> Option<Answer> {
    let token = parts.uri.path().strip_prefix(CHALLENGE_PATH)?;
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return None;
    }
    let worker = context.worker();
    let mut answer = local(StatusCode::OK, Outcome::Responded);
    answer.body = worker.challenges.http01(token)?;
    // What RFC 8555 shows in its example; authorities do not insist on any type.
    answer.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    answer.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    worker.shard.add(Counter::ChallengeHttp01, 1);
    Some(Answer::Local(Box::new(answer)))
}

/// `OPTIONS *` asks about the server, not about a site (RFC 9110 section 9.3.7).
pub fn options() -> Answer {
    let mut answer = local(StatusCode::NO_CONTENT, Outcome::Responded);
    let methods = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    answer.headers.insert(header::ALLOW, methods);
    Answer::Local(Box::new(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_picks_the_first_shape_we_have() {
        let of = |text: &'static str| {
            Accept::of(&HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(text))]))
        };
        assert_eq!(of("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), Accept::Html);
        assert_eq!(of("application/json, text/html"), Accept::Json);
        assert_eq!(of("Application/Problem+JSON"), Accept::Json);
        assert_eq!(of("*/*"), Accept::Text);
        assert_eq!(of(";;,,"), Accept::Text);
        assert_eq!(Accept::of(&HeaderMap::new()), Accept::Text);
    }

    #[test]
    fn every_outcome_makes_a_legal_answer_in_every_shape() {
        for &outcome in Outcome::ALL {
            assert!(proxy_status(outcome).to_str().unwrap().contains(outcome.code()));
            let (_, json) = page(Accept::Json, StatusCode::BAD_GATEWAY, outcome, "ab");
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            assert_eq!(value["code"], outcome.code());
            assert!(String::from_utf8(raw(outcome, "ab")).unwrap().contains("\r\n\r\n"));
        }
    }
}
