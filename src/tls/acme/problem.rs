//! What a CA says when it refuses (RFC 8555 section 6.7), and what kind of failure that is. Shared by both engines.

use serde_json::Value;

use super::issuer::Reason;

/// What every type of the registry begins with.
const PREFIX: &str = "urn:ietf:params:acme:error:";
/// Longest address shown to a person.
const ADDRESS_BYTES_MAX: usize = 512;

/// The word of a type; `None` for one of no registry.
pub fn word(kind: Option<&str>) -> Option<&str> {
    kind?.strip_prefix(PREFIX)
}

/// What kind of failure a type (or, where that says nothing, a status) is.
pub fn reason(kind: Option<&str>, status: Option<u16>) -> Reason {
    match word(kind) {
        // Let's Encrypt's way to say that it is busy: nobody's limit, and soon over.
        Some("rateLimited") if status == Some(503) => Reason::Network,
        Some("rateLimited") => Reason::RateLimited,
        Some("dns" | "caa") => Reason::Dns,
        Some("connection" | "unauthorized" | "incorrectResponse" | "tls") => Reason::Validation,
        Some("rejectedIdentifier" | "unsupportedIdentifier" | "invalidProfile" | "badCSR") => {
            Reason::Rejected
        }
        Some("accountDoesNotExist" | "externalAccountRequired" | "userActionRequired" | "invalidContact") => {
            Reason::Account
        }
        // RFC 8555 section 6.5: a refused nonce is nobody's fault and has no effect.
        Some("serverInternal" | "badNonce") => Reason::Network,
        _ if status == Some(429) => Reason::RateLimited,
        _ if status.is_some_and(|status| status >= 500) => Reason::Network,
        _ => Reason::Other,
    }
}

/// A problem document with its `instance` added to `detail`: where a person is to go when the CA waits for one (RFC 8555
/// section 7.3.3); and with the answer's status where it says none (RFC 9457 section 3.1.2: it need not). `None`: nothing
/// to add.
pub fn completed(body: &[u8], status: Option<u16>) -> Option<Vec<u8>> {
    let mut problem = serde_json::from_slice::<Value>(body).ok()?;
    let instance = with_instance(&problem);
    let fields = problem.as_object_mut()?;
    let status = status.filter(|_| fields.get("status").is_none_or(Value::is_null));
    if instance.is_none() && status.is_none() {
        return None;
    }
    fields.extend(instance.map(|told| ("detail".to_owned(), told.into())));
    fields.extend(status.map(|status| ("status".to_owned(), status.into())));
    serde_json::to_vec(&problem).ok()
}

fn with_instance(problem: &Value) -> Option<String> {
    let address = address(problem.get("instance")?.as_str()?)?;
    let detail = problem.get("detail").and_then(Value::as_str).unwrap_or_default();
    (!detail.contains(address)).then(|| format!("{detail} See {address}").trim_start().to_owned())
}

/// An address that may be shown to a person as it is.
pub fn address(text: &str) -> Option<&str> {
    let web = text.starts_with("https://") || text.starts_with("http://");
    (web && text.len() <= ADDRESS_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic()))
        .then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_is_told_where_to_go() {
        let said = |body: &str| completed(body.as_bytes(), None).map(|told| String::from_utf8(told).unwrap());
        let told =
            said(r#"{"type":"x","detail":"New terms.","instance":"https://ca.test/terms?a=1"}"#).unwrap();
        assert!(told.contains("New terms. See https://ca.test/terms?a=1"), "{told}");
        let told = said(r#"{"type":"x","instance":"https://ca.test/"}"#).unwrap();
        assert!(told.contains("\"See https://ca.test/\""), "{told}");
        for body in [
            r#"{"detail":"See https://ca.test/","instance":"https://ca.test/"}"#,
            r#"{"detail":"x","instance":"javascript:alert(1)"}"#,
            "{\"detail\":\"x\",\"instance\":\"https://ca.test/\\u001b[31m\"}",
            r#"{"detail":"x"}"#,
            "[]",
            "no JSON",
        ] {
            assert_eq!(said(body), None, "{body}");
        }
    }

    #[test]
    fn the_status_of_an_answer_is_told_where_the_document_does_not() {
        let said = |body: &str| completed(body.as_bytes(), Some(503)).map(|t| String::from_utf8(t).unwrap());
        assert!(said(r#"{"type":"x","detail":"busy"}"#).unwrap().contains("\"status\":503"));
        assert_eq!(said(r#"{"type":"x","status":429}"#), None);
        assert_eq!(said("[]"), None);
    }

    #[test]
    fn types_speak_louder_than_statuses() {
        let of = |word: &str, status| reason(Some(&format!("{PREFIX}{word}")), status);
        assert_eq!(of("rateLimited", None), Reason::RateLimited);
        assert_eq!(of("rateLimited", Some(429)), Reason::RateLimited);
        assert_eq!(of("rateLimited", Some(503)), Reason::Network, "it is busy");
        assert_eq!(of("caa", Some(403)), Reason::Dns);
        assert_eq!(of("badNonce", Some(400)), Reason::Network);
        assert_eq!(of("userActionRequired", Some(403)), Reason::Account);
        assert_eq!(of("malformed", Some(400)), Reason::Other);
        assert_eq!(reason(None, Some(429)), Reason::RateLimited);
        assert_eq!(reason(Some("about:blank"), Some(503)), Reason::Network);
        assert_eq!(reason(None, None), Reason::Other);
    }
}
