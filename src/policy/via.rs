//! `Via`: which gateways a request has passed (RFC 9110 section 7.6.3), and whether it goes round in a circle.
//!
//! Only requests carry it. To an answer a gateway may add it; that would tell clients about the inside.

use http::header::{HeaderMap, HeaderValue, VIA};
use http::{HeaderName, Version};

/// How often a request may have passed gateways of our name. Several nodes of one name may stand in a row on purpose; no
/// real row is that long, and each further round would cost a connection more.
pub const ROUNDS_MAX: usize = 8;

/// What we add, made at reload.
#[derive(Debug, Clone)]
pub struct Via {
    name: Box<str>,
    old: HeaderValue,
    usual: HeaderValue,
    new: HeaderValue,
}

/// The request passed here [`ROUNDS_MAX`] times already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circle;

impl Via {
    /// Compiles the name of this gateway; one that is no token (RFC 9110 section 5.6.2) is not sent.
    pub fn compile(name: &str) -> Option<Via> {
        HeaderName::from_bytes(name.as_bytes()).ok()?;
        let entry = |version: &str| HeaderValue::from_str(&format!("{version} {name}")).ok();
        Some(Via { name: name.into(), old: entry("1.0")?, usual: entry("1.1")?, new: entry("2")? })
    }

    /// Adds this gateway behind those that the request has passed. `version` is what it was received in.
    ///
    /// # Errors
    /// [`Circle`], and nothing is added.
    pub fn add(&self, headers: &mut HeaderMap, version: Version) -> Result<(), Circle> {
        if self.rounds(headers) >= ROUNDS_MAX {
            return Err(Circle);
        }
        let entry = match version {
            Version::HTTP_09 | Version::HTTP_10 => &self.old,
            Version::HTTP_11 => &self.usual,
            _ => &self.new,
        };
        headers.append(VIA, entry.clone());
        Ok(())
    }

    /// How often our name stands in it: `protocol SP name [ SP comment ]`, separated by commas.
    fn rounds(&self, headers: &HeaderMap) -> usize {
        let lines = headers.get_all(VIA).iter().map(HeaderValue::as_bytes);
        let entries = lines.flat_map(|line| line.split(|&byte| byte == b','));
        let names = entries.filter_map(|entry| {
            entry.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty()).nth(1)
        });
        names.filter(|name| name.eq_ignore_ascii_case(self.name.as_bytes())).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(headers: &HeaderMap) -> Vec<&str> {
        headers.get_all(VIA).iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn it_is_added_behind_what_stands_there_with_the_version_of_the_request() {
        let via = Via::compile("edge").unwrap();
        let mut headers = HeaderMap::from_iter([(VIA, HeaderValue::from_static("1.0 fred, 1.1 p.example"))]);
        via.add(&mut headers, Version::HTTP_11).unwrap();
        via.add(&mut headers, Version::HTTP_2).unwrap();
        via.add(&mut headers, Version::HTTP_10).unwrap();
        assert_eq!(lines(&headers), ["1.0 fred, 1.1 p.example", "1.1 edge", "2 edge", "1.0 edge"]);
    }

    #[test]
    fn a_name_that_is_no_token_is_not_sent() {
        for name in ["", "a b", "a,b", "\u{e4}", "a\r\nb", "(a)"] {
            assert!(Via::compile(name).is_none(), "{name:?}");
        }
    }

    #[test]
    fn a_circle_is_seen_however_the_rounds_are_written_and_a_row_is_none() {
        let via = Via::compile("edge").unwrap();
        let mut headers = HeaderMap::new();
        headers.append(VIA, HeaderValue::from_static("1.1 EDGE (first), 2  edge ,1.1\tedge"));
        headers
            .append(VIA, HeaderValue::from_static(",, 1.1 other, 1.1, edge, 1.1 edgeways, 1.1 other edge"));
        for _ in 3..ROUNDS_MAX {
            assert_eq!(via.add(&mut headers, Version::HTTP_11), Ok(()));
        }
        let before = lines(&headers).len();
        assert_eq!(via.add(&mut headers, Version::HTTP_11), Err(Circle));
        assert_eq!(lines(&headers).len(), before);
        assert_eq!(Via::compile("other-node").unwrap().add(&mut headers, Version::HTTP_11), Ok(()));
    }
}
