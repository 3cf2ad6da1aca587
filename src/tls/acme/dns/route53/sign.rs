//! AWS Signature Version 4: a request signed with a key that belongs to one day, region and service.
//!
//! The steps are those of AWS's "Create a signed AWS API request"; the test vectors are AWS's own. HMAC and SHA-256 are
//! AWS-LC's.

use std::fmt::Write as _;

use aws_lc_rs::{digest, hmac};
use zeroize::Zeroizing;

use crate::base::clock;
use crate::base::secret::Secret;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Who signs.
pub(super) struct Credentials {
    pub(super) id: String,
    pub(super) secret: Secret,
    /// Of temporary keys.
    pub(super) session: Option<Secret>,
}

/// What the signature is good for.
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
    /// Seconds since 1970.
    pub(super) now: u64,
}

/// What is signed.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// As it goes over the wire: percent-encoded.
    pub(super) path: &'a str,
    /// Names and values, not encoded.
    pub(super) query: &'a [(&'a str, &'a str)],
    /// Header fields, names in lower case, in the order of their names.
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
}

/// The value of `Authorization`.
pub(super) fn authorization(request: &Signed<'_>, who: &Credentials, scope: &Scope<'_>) -> Zeroizing<String> {
    let (day, time) = (day(scope.now), time(scope.now));
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, query_string(request.query));
    for (name, value) in request.headers {
        let _ = writeln!(canonical, "{name}:{}", value.trim());
    }
    let _ = write!(canonical, "\n{names}\n{}", hash(request.body));
    let place = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let text = format!("{ALGORITHM}\n{time}\n{place}\n{}", hash(canonical.as_bytes()));

    let first = Zeroizing::new(format!("AWS4{}", who.secret.reveal()));
    let mut key = mac(first.as_bytes(), day.as_bytes());
    for part in [scope.region, scope.service, "aws4_request"] {
        key = mac(&key, part.as_bytes());
    }
    let signature = hex(&mac(&key, text.as_bytes()));
    let id = &who.id;
    Zeroizing::new(format!(
        "{ALGORITHM} Credential={id}/{place}, SignedHeaders={names}, Signature={signature}"
    ))
}

/// The query as it is signed and sent: encoded, in the order of the encoded names.
pub(super) fn query_string(query: &[(&str, &str)]) -> String {
    let mut parts: Vec<String> =
        query.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
    parts.sort();
    parts.join("&")
}

/// `20150830T123600Z`
pub(super) fn time(now: u64) -> String {
    format!("{}T{:02}{:02}{:02}Z", day(now), now / 3_600 % 24, now / 60 % 60, now % 60)
}

fn day(now: u64) -> String {
    let (year, month, day) = clock::civil(now / 86_400);
    format!("{year:04}{month:02}{day:02}")
}

/// Everything but the unreserved characters of RFC 3986 section 2.3.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

fn mac(key: &[u8], text: &[u8]) -> Zeroizing<Vec<u8>> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    Zeroizing::new(hmac::sign(&key, text).as_ref().to_vec())
}

/// SHA-256 in hexadecimal.
pub(super) fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2015-08-30 12:36:00, the moment of AWS's test suite.
    const NOW: u64 = 1_440_938_160;

    fn signature(request: &Signed<'_>, service: &str) -> String {
        let who = Credentials {
            id: "AKIDEXAMPLE".into(),
            secret: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
            session: None,
        };
        let scope = Scope { region: "us-east-1", service, now: NOW };
        let header = authorization(request, &who, &scope);
        assert!(header.starts_with(&format!(
            "{ALGORITHM} Credential=AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request, "
        )));
        header.rsplit("Signature=").next().unwrap().to_owned()
    }

    /// `get-vanilla`, `get-vanilla-query-order-key-case` and `post-vanilla` of the published aws-sig-v4-test-suite.
    #[test]
    fn signatures_are_those_of_the_published_test_suite() {
        let headers = [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
        let plain = Signed { method: "GET", path: "/", query: &[], headers: &headers, body: b"" };
        assert_eq!(
            signature(&plain, "service"),
            "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        let query = Signed { query: &[("Param2", "value2"), ("Param1", "value1")], ..plain };
        assert_eq!(
            signature(&query, "service"),
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"
        );
        let post = Signed { method: "POST", query: &[], ..query };
        assert_eq!(
            signature(&post, "service"),
            "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
    }

    /// The example of AWS's general reference: `ListUsers` of IAM.
    #[test]
    fn the_signature_is_that_of_the_documented_example() {
        let request = Signed {
            method: "GET",
            path: "/",
            query: &[("Action", "ListUsers"), ("Version", "2010-05-08")],
            headers: &[
                ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
                ("host", "iam.amazonaws.com"),
                ("x-amz-date", "20150830T123600Z"),
            ],
            body: b"",
        };
        assert_eq!(
            signature(&request, "iam"),
            "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
        );
        assert_eq!(time(NOW), "20150830T123600Z");
    }

    #[test]
    fn queries_are_encoded_and_ordered() {
        assert_eq!(query_string(&[("name", "_a.b"), ("a b", "*/ü~")]), "a%20b=%2A%2F%C3%BC~&name=_a.b");
        assert_eq!(query_string(&[]), "");
    }
}
