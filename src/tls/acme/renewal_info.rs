//! When CAs want certificates renewed (RFC 9773): asked for any certificate whoever ordered it, and without an account.
//!
//! An answer only ever moves a renewal forward; no answer is never a reason not to renew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use instant_acme::CertificateIdentifier;
use rustls_pki_types::CertificateDer;
use serde::Deserialize;

use super::http::{self, Client};
use super::problem;
use crate::base::clock::{self, Millis};

/// How long a directory's answer is used.
const DIRECTORY_FRESH: Duration = Duration::from_secs(24 * 3600);
/// Most directories remembered; certificates of more are asked about with one more call.
const DIRECTORIES_MAX: usize = 32;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// First second of the window, since 1970.
    pub start: u64,
    /// Its last.
    pub end: u64,
    /// Where a person can read why.
    pub explanation: Option<String>,
    /// How long the CA wants to hear nothing; it says so, or should.
    pub ask_again: Option<Duration>,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// Whether it may be asked again soon (RFC 9773 section 4.3.3).
    pub temporary: bool,
    /// How long the CA wants to hear nothing, if it said so.
    pub retry_after: Option<Duration>,
    /// A sentence.
    pub message: String,
}

/// The part of a directory that matters here (RFC 9773 section 3).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    renewal_info: Option<String>,
}

/// Until when something is remembered, and where a CA gives renewal information, if it does.
type Place = (Millis, Option<Arc<str>>);

/// Asks, and remembers where.
pub struct RenewalInfo {
    client: Client,
    places: Mutex<HashMap<Arc<str>, Place>>,
}

impl RenewalInfo {
    /// Asks nothing yet.
    pub fn new(client: Client) -> RenewalInfo {
        RenewalInfo { client, places: Mutex::default() }
    }

    /// What the CA behind a directory suggests for a certificate; `Ok(None)`: it suggests nothing to anybody.
    pub async fn ask(
        &self,
        directory: &Arc<str>,
        leaf: &CertificateDer<'static>,
    ) -> Result<Option<Answer>, NoAnswer> {
        // RFC 9773 section 2: a certificate without a key identifier of its issuer cannot be asked about.
        let Ok(id) = CertificateIdentifier::try_from(leaf) else { return Ok(None) };
        let Some(place) = self.place(directory).await? else { return Ok(None) };
        // RFC 9773 section 4.1.
        let response = self.get(&format!("{}/{id}", place.trim_end_matches('/'))).await?;
        read(response.body(), http::retry_after(response.headers())).map(Some)
    }

    /// Where the CA behind a directory gives renewal information, if it does.
    pub async fn place(&self, directory: &Arc<str>) -> Result<Option<Arc<str>>, NoAnswer> {
        if let Some(known) = self.known(directory) {
            return Ok(known);
        }
        let response = self.get(directory).await?;
        let found = serde_json::from_slice::<Directory>(response.body())
            .map_err(|e| lasting(format!("The directory {directory} cannot be read: {e}.")))?;
        let place: Option<Arc<str>> = found.renewal_info.map(Arc::from);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= DIRECTORIES_MAX {
            places.clear();
        }
        places.insert(Arc::clone(directory), (clock::now().after(DIRECTORY_FRESH), place.clone()));
        Ok(place)
    }

    /// What is remembered of a directory; the outer `None`: nothing.
    pub fn known(&self, directory: &str) -> Option<Option<Arc<str>>> {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let (until, place) = places.get(directory)?;
        (clock::now() < *until).then(|| place.clone())
    }

    async fn get(&self, url: &str) -> Result<http::Answered, NoAnswer> {
        let response = self.client.get(url).await.map_err(|trouble| NoAnswer {
            // A name that does not resolve and a port that refuses are no better in a minute, a silent CA may be; they
            // are told apart by nothing here, and the few quick tries are harmless.
            temporary: true,
            retry_after: None,
            message: format!("{}.", trouble.message),
        })?;
        let status = response.status();
        match status.is_success() {
            true => Ok(response),
            false => Err(NoAnswer {
                temporary: status.is_server_error() || status.as_u16() == 429,
                retry_after: http::retry_after(response.headers()),
                message: format!("{url}: HTTP {status}."),
            }),
        }
    }
}

/// Reads an answer (RFC 9773 section 4.2).
fn read(body: &[u8], ask_again: Option<Duration>) -> Result<Answer, NoAnswer> {
    let found = serde_json::from_slice::<instant_acme::RenewalInfo>(body)
        .map_err(|e| lasting(format!("The renewal information cannot be read: {e}.")))?;
    let seconds = |at: i64| u64::try_from(at).unwrap_or(0);
    let window = found.suggested_window;
    let (start, end) = (seconds(window.start.unix_timestamp()), seconds(window.end.unix_timestamp()));
    // An end that is not after the start is no answer.
    if end <= start {
        return Err(lasting(format!("The suggested window ends ({end}) before it starts ({start}).")));
    }
    let explanation = found.explanation_url.as_deref().and_then(problem::address).map(str::to_owned);
    Ok(Answer { start, end, explanation, ask_again })
}

fn lasting(message: String) -> NoAnswer {
    NoAnswer { temporary: false, retry_after: None, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::pem;

    /// RFC 9773 appendix A.
    const EXAMPLE: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBQzCB66ADAgECAgUAh2VDITAKBggqhkjOPQQDAjAVMRMwEQYDVQQDEwpFeGFt\n\
        cGxlIENBMCIYDzAwMDEwMTAxMDAwMDAwWhgPMDAwMTAxMDEwMDAwMDBaMBYxFDAS\n\
        BgNVBAMTC2V4YW1wbGUuY29tMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEeBZu\n\
        7cbpAYNXZLbbh8rNIzuOoqOOtmxA1v7cRm//AwyMwWxyHz4zfwmBhcSrf47NUAFf\n\
        qzLQ2PPQxdTXREYEnKMjMCEwHwYDVR0jBBgwFoAUaYhba4dGQEHhs3uEe6CuLN4B\n\
        yNQwCgYIKoZIzj0EAwIDRwAwRAIge09+S5TZAlw5tgtiVvuERV6cT4mfutXIlwTb\n\
        +FYN/8oCIClDsqBklhB9KAelFiYt9+6FDj3z4KGVelYM5MdsO3pK\n\
        -----END CERTIFICATE-----\n";

    #[test]
    fn the_identifier_is_that_of_the_standards_example() {
        let leaf = pem::certificates(EXAMPLE.as_bytes(), "the example").unwrap().remove(0);
        let id = CertificateIdentifier::try_from(&leaf).unwrap();
        assert_eq!(id.to_string(), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
    }

    #[test]
    fn answers_are_taken_as_the_standard_says() {
        let body = |start: &str, end: &str, url: &str| {
            format!(r#"{{"suggestedWindow":{{"start":"{start}","end":"{end}"}},"explanationURL":{url}}}"#)
        };
        let said = |text: String| read(text.as_bytes(), Some(Duration::from_secs(7)));
        let good = body("2025-01-02T04:00:00Z", "2025-01-03T05:00:00+01:00", "\"https://ca.test/why\"");
        let answer = said(good).unwrap();
        assert_eq!((answer.start, answer.end), (1_735_790_400, 1_735_876_800));
        assert_eq!(answer.explanation.as_deref(), Some("https://ca.test/why"));
        assert_eq!(answer.ask_again, Some(Duration::from_secs(7)));
        // What would be no address for a person is left out, and harms nothing else.
        for url in ["null", "\"ftp://ca.test\"", "\"https://ca.test/\\u001b[2J\""] {
            let text = body("2025-01-02T04:00:00Z", "2025-01-03T04:00:00Z", url);
            assert_eq!(said(text).unwrap().explanation, None, "{url}");
        }
        for bad in [
            body("2025-01-02T04:00:00Z", "2025-01-02T04:00:00Z", "null"),
            body("2025-01-03T04:00:00Z", "2025-01-02T04:00:00Z", "null"),
            body("yesterday", "tomorrow", "null"),
            "{}".into(),
            "<html>".into(),
        ] {
            let none = said(bad.clone()).unwrap_err();
            assert!(!none.temporary && none.message.ends_with('.'), "{bad}: {none:?}");
        }
    }
}
