//! Fixed answers from the configuration, built at reload.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, StatusCode};

/// A compiled answer. Cloning its parts copies no body.
#[derive(Debug, Clone)]
pub struct Respond {
    /// The status.
    pub status: StatusCode,
    /// `Content-Type`; none where there is no body.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Respond {
    /// Compiles an answer.
    ///
    /// # Errors
    /// A sentence when the status is not one of an answer, must not have a body but has, or the content type is illegal.
    pub fn compile(status: u16, body: &str, content_type: &str) -> Result<Respond, String> {
        let status = StatusCode::from_u16(status)
            .ok()
            // RFC 9110 section 15.2: an informational answer is never the last one.
            .filter(|status| (200..600).contains(&status.as_u16()))
            .ok_or_else(|| format!("`{status}` is not the status of an answer: 200 to 599 are"))?;
        // RFC 9110 sections 15.3.5 and 15.4.5.
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::NOT_MODIFIED].contains(&status);
        if bodiless && !body.is_empty() {
            return Err(format!(
                "an answer with the status {} can not have a body: remove it",
                status.as_u16()
            ));
        }
        let mut headers = HeaderMap::new();
        if !body.is_empty() {
            let value = HeaderValue::from_str(content_type).map_err(|_| {
                format!("`{content_type}` is not a content type: write it like \"text/plain; charset=utf-8\"")
            })?;
            headers.insert(CONTENT_TYPE, value);
        }
        Ok(Respond { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_status_type_and_body() {
        let respond = Respond::compile(503, "back soon", "text/plain").unwrap();
        assert_eq!((respond.status.as_u16(), &respond.body[..]), (503, &b"back soon"[..]));
        assert_eq!(respond.headers.get(CONTENT_TYPE).unwrap(), "text/plain");
        assert!(Respond::compile(204, "", "text/plain").unwrap().headers.is_empty());
    }

    #[test]
    fn illegal_answers_are_refused() {
        for (status, body, content_type, word) in [
            (0, "", "", "`0`"),
            (101, "", "", "`101`"),
            (600, "", "", "`600`"),
            (204, "x", "text/plain", "204"),
            (304, "x", "text/plain", "304"),
            (200, "x", "text/\nplain", "content type"),
        ] {
            assert!(Respond::compile(status, body, content_type).unwrap_err().contains(word), "{status}");
        }
    }
}
