//! The admin API: which request gets which answer.

use std::future::Future;
use std::io;
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use serde_json::{Value, json};

use super::connection::{Answer, accept, answer, with_allow};
use super::{Backend, Deploy};

/// Serves the admin API for ever. Must run inside a `LocalSet`.
///
/// # Errors
/// When the runtime refuses the listener; never after that.
pub async fn serve(listener: UnixListener, backend: Rc<dyn Backend>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    accept(
        async move || listener.accept().await.map(|(stream, _)| stream),
        move |request| route(request, backend.clone()),
    )
    .await;
    Ok(())
}

async fn route<B>(request: Request<B>, backend: Rc<dyn Backend>) -> Answer {
    let allowed = match request.uri().path() {
        "/observe" if request.method() == Method::POST => Method::POST,
        "/status" | "/config" | "/patches" | "/deployments" | "/certs" | "/certs/plan" | "/certs/events"
        | "/observe" | "/bans" => Method::GET,
        "/observe/end" | "/reload" | "/deploy" | "/certs/renew" | "/certs/issue" | "/certs/reread"
        | "/ban" | "/unban" => Method::POST,
        path => return not_found(path),
    };
    // RFC 9110 section 9.3.2: HEAD is answered like GET, without the body.
    let asked = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    if *asked != allowed {
        return with_allow(wrong_method(request.uri().path(), &allowed), &allowed);
    }
    match request.uri().path() {
        "/status" => json(StatusCode::OK, &backend.status()),
        "/config" => json(StatusCode::OK, &backend.config()),
        "/patches" => json(StatusCode::OK, &backend.patches()),
        "/certs" => json(StatusCode::OK, &backend.certificates()),
        "/certs/plan" => json(StatusCode::OK, &backend.certificate_plan().await),
        "/certs/events" => json(StatusCode::OK, &backend.certificate_events()),
        "/certs/renew" => renew(request.uri().query(), &*backend),
        "/certs/issue" => issue(request.uri().query(), &*backend),
        "/deploy" => deploy(request.uri().query(), &*backend).await,
        "/observe" if allowed == Method::POST => observe(request.uri().query(), &*backend),
        "/observe" => json(StatusCode::OK, &backend.observation()),
        "/observe/end" => said(backend.end_observation().await),
        "/deployments" => json(StatusCode::OK, &backend.deployments()),
        "/bans" => json(StatusCode::OK, &backend.bans()),
        "/ban" => ban(request.uri().query(), &*backend).await,
        "/unban" => unban(request.uri().query(), &*backend).await,
        "/certs/reread" => finish(backend.reread()).await,
        _ => finish(backend.reload()).await,
    }
}

/// In a task of its own: a reload that has begun is finished, also when the client hangs up.
async fn finish(work: Pin<Box<dyn Future<Output = Value>>>) -> Answer {
    match tokio::task::spawn_local(work).await {
        Ok(report) => json(StatusCode::OK, &report),
        Err(_) => {
            json(StatusCode::INTERNAL_SERVER_ERROR, &problem("the reload broke off; see the process log"))
        }
    }
}

/// A site's name has no character that a query would have to encode.
fn renew(query: Option<&str>, backend: &dyn Backend) -> Answer {
    let Some(site) = query.and_then(|query| query.strip_prefix("site=")).filter(|site| !site.is_empty())
    else {
        return json(StatusCode::BAD_REQUEST, &problem("name the site: POST /certs/renew?site=NAME"));
    };
    match backend.renew(site) {
        Ok(()) => json(StatusCode::OK, &json!({ "site": site, "queued": true })),
        Err(why) => json(StatusCode::CONFLICT, &problem(&why)),
    }
}

/// Names have no character that a query would have to encode.
fn issue(query: Option<&str>, backend: &dyn Backend) -> Answer {
    let asked = query.and_then(|query| query.strip_prefix("names=")?.split_once("&valid="));
    let asked = asked.and_then(|(names, valid)| Some((names, valid.parse().ok()?)));
    let Some((names, valid)) = asked else {
        let text = "name what it is for: POST /certs/issue?names=NAME,NAME&valid=SECONDS";
        return json(StatusCode::BAD_REQUEST, &problem(text));
    };
    match backend.issue(names, Duration::from_secs(valid)) {
        Ok(issued) => json(StatusCode::OK, &issued),
        Err(why) => json(StatusCode::CONFLICT, &problem(&why)),
    }
}

/// Names and addresses have no character that a query would have to encode.
async fn deploy(query: Option<&str>, backend: &dyn Backend) -> Answer {
    let fields: Vec<(&str, &str)> =
        query.unwrap_or_default().split('&').filter_map(|field| field.split_once('=')).collect();
    let field = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let time = |name: &str| field(name)?.parse().ok().map(Duration::from_millis);
    let order = || {
        Some(Deploy {
            what: field("what")?.to_owned(),
            to: field("to").into_iter().flat_map(|to| to.split(',')).map(str::to_owned).collect(),
            back: field("back").is_some(),
            timeout: time("timeout_ms")?,
            hold: time("hold_ms"),
            drain: time("drain_ms")?,
        })
    };
    let Some(order) = order() else {
        let text =
            "POST /deploy?what=NAME&to=ADDRESS,ADDRESS&timeout_ms=MS&drain_ms=MS, or back=1 in place of `to`";
        return json(StatusCode::BAD_REQUEST, &problem(text));
    };
    match backend.deploy(order).await {
        Ok(id) => json(StatusCode::OK, &json!({ "id": id })),
        Err(why) => json(StatusCode::CONFLICT, &problem(&why)),
    }
}

/// Names have no character that a query would have to encode.
fn observe(query: Option<&str>, backend: &dyn Backend) -> Answer {
    let query = query.unwrap_or_default();
    let (seconds, site) = match query.split_once("&site=") {
        Some((seconds, site)) => (seconds, Some(site)),
        None => (query, None),
    };
    let Some(seconds) = seconds.strip_prefix("seconds=").and_then(|seconds| seconds.parse().ok()) else {
        let text = "say for how long, and perhaps of which site: POST /observe?seconds=N&site=NAME";
        return json(StatusCode::BAD_REQUEST, &problem(text));
    };
    said(backend.observe(site, Duration::from_secs(seconds)))
}

fn said(answered: Result<Value, String>) -> Answer {
    match answered {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(why) => json(StatusCode::CONFLICT, &problem(&why)),
    }
}

async fn ban(query: Option<&str>, backend: &dyn Backend) -> Answer {
    let fields = || query.unwrap_or_default().split('&').filter_map(|field| field.split_once('='));
    let field = |name: &str| fields().find(|(key, _)| *key == name).and_then(|(_, value)| decoded(value));
    let order = || Some((field("net")?, field("seconds")?.parse().ok()?, field("why").unwrap_or_default()));
    let Some((net, seconds, why)) = order() else {
        let text = "name whom, and for how long: POST /ban?net=NET&seconds=N&why=TEXT";
        return json(StatusCode::BAD_REQUEST, &problem(text));
    };
    match backend.ban(net, Duration::from_secs(seconds), why).await {
        Ok(banned) => json(StatusCode::OK, &banned),
        Err(why) => json(StatusCode::CONFLICT, &problem(&why)),
    }
}

async fn unban(query: Option<&str>, backend: &dyn Backend) -> Answer {
    let Some(net) = query.and_then(|query| query.strip_prefix("net=")).and_then(decoded) else {
        return json(StatusCode::BAD_REQUEST, &problem("name whom: POST /unban?net=NET"));
    };
    match backend.unban(net).await {
        Ok(ended) => json(StatusCode::OK, &ended),
        Err(why) => json(StatusCode::CONFLICT, &problem(&why)),
    }
}

/// A value of a query, percent-encoded (RFC 3986 section 2.1); `None` where that is broken, or the result no text.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = after.get(2..)?;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

fn not_found(path: &str) -> Answer {
    let text = format!(
        "there is no {path}: the admin API has GET /status, GET /config, GET /patches, GET /certs, GET /certs/plan, GET /certs/events, GET /deployments, GET /observe, GET /bans, POST /ban?net=NET&seconds=N&why=TEXT, POST /unban?net=NET, \
         POST /reload, POST /deploy?what=NAME&to=ADDRESSES&timeout_ms=MS&drain_ms=MS, POST /certs/renew?site=NAME, POST /certs/issue?names=NAMES&valid=SECONDS, POST /observe?seconds=N&site=NAME, POST /observe/end and POST /certs/reread"
    );
    json(StatusCode::NOT_FOUND, &problem(&text))
}

fn wrong_method(path: &str, allowed: &Method) -> Answer {
    json(StatusCode::METHOD_NOT_ALLOWED, &problem(&format!("{path} is asked for with {allowed}")))
}

fn problem(text: &str) -> Value {
    json!({ "error": text })
}

fn json(status: StatusCode, value: &Value) -> Answer {
    let mut body = value.to_string();
    body.push('\n');
    answer(status, "application/json", body)
}
