//! Fetches the keys that tokens are checked with (JWK sets), for sites that name an address: at once when it is new, then
//! by the clock, and when a worker met a key that is not among them. What cannot be fetched leaves the last keys in force.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::Full;

use crate::base::clock;
use crate::control::Control;
use crate::policy::auth::jwt::keys::{BYTES_MAX, Keys};
use crate::policy::auth::jwt::source::Source;
use crate::tls::acme::http::Client;

/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_millis(100);
/// From connecting to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);

/// Runs for ever.
pub async fn run(control: Arc<Control>) {
    let shared = control.residents.auth.clone();
    // The system's authorities are read once; with a file of its own a client is made for each question, which is
    // rare, and so a changed file counts.
    let mut clients: HashMap<Option<PathBuf>, Client> = HashMap::new();
    loop {
        for source in shared.sources.list() {
            if source.begin(clock::now()) {
                let Some(from) = source.from.clone() else { continue };
                let file = from.ca_file.clone();
                let client = match clients.get(&file) {
                    Some(client) => Ok(client.clone()),
                    None => Client::new(file.as_deref()),
                };
                if let (Ok(client), None) = (&client, &file) {
                    clients.insert(None, client.clone());
                }
                tokio::task::spawn_local(ask(source, client, from.url.clone()));
            }
        }
        tokio::select! {
            () = shared.sources.changed.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn ask(source: Arc<Source>, client: Result<Client, String>, url: Arc<str>) {
    let asked = async { fetch(&client?, &url).await };
    let found = tokio::time::timeout(DEADLINE, asked).await;
    let found = found.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")));
    let before = source.state();
    match &found {
        Ok(keys) if before.failures > 0 || source.current().is_none() => {
            tracing::info!("the keys for tokens at {url} are there: {}", keys.len());
        }
        Err(why) if before.failures == 0 => {
            let stay =
                if source.current().is_some() { "the last ones stay in force" } else { "there are none yet" };
            tracing::warn!("the keys for tokens at {url} cannot be fetched: {why}; {stay}");
        }
        _ => {}
    }
    source.answered(found, clock::now());
}

async fn fetch(client: &Client, url: &str) -> Result<Keys, String> {
    let agent = concat!("tidegate/", env!("CARGO_PKG_VERSION"));
    let request = Request::get(url).header(USER_AGENT, agent).header(ACCEPT, "application/json");
    let request = request.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    let answer = client.fetch(request).await?;
    if answer.status() != StatusCode::OK {
        return Err(format!("it answered {}", answer.status()));
    }
    if answer.body().len() > BYTES_MAX {
        return Err(format!("it answered with more than {BYTES_MAX} bytes"));
    }
    Keys::set(answer.body())
}
