//! Certificates of the internal CA for endpoints inside: short-lived, made on request, kept nowhere here.

use std::time::Duration;

use serde_json::{Value, json};

use crate::config::section::host;
use crate::control::Control;

/// Names in one certificate.
const NAMES_MAX: usize = 32;

impl Control {
    /// Issues a certificate for servers and clients. `names`: host names, wildcards and IP addresses, separated by commas;
    /// `valid`: for how long, at most 90 days.
    ///
    /// # Errors
    /// A sentence: what is wrong with the names.
    pub fn issue(&self, names: &str, valid: Duration) -> Result<Value, String> {
        let texts: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
        if texts.is_empty() || texts.len() > NAMES_MAX {
            return Err(format!("a certificate has 1 to {NAMES_MAX} names"));
        }
        let patterns = texts.iter().map(|text| host::pattern(text));
        let patterns = patterns.collect::<Result<Vec<_>, _>>();
        let patterns = patterns.map_err(|(message, help)| format!("{message}: {help}"))?;
        let ca = &self.residents.ca;
        let authority = std::fs::read_to_string(ca.ca_path())
            .map_err(|error| format!("{} cannot be read: {error}", ca.ca_path().display()))?;
        let issued = ca.issue_endpoint(&patterns, valid.as_secs())?;
        tracing::info!("the internal CA issued a certificate for {}", texts.join(", "));
        Ok(json!({
            "names": texts,
            "not_after": issued.not_after,
            "certificate": issued.certificate,
            "key": *issued.key,
            "authority": authority,
        }))
    }
}
