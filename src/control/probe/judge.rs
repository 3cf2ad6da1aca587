//! Whether an answer to a health check is a good one, in words that say what came. No I/O.

use regex::bytes::{Regex, RegexBuilder};

use crate::config::model::{BodyCheck, Check, HttpCheck};
use crate::upstream::health::grpc::{self, Serving};

/// Bytes of a body in which `body` is looked for.
pub const BODY_MAX: usize = 64 * 1024;

/// Bytes of a body that are read for the operator.
pub const SHOWN_MAX: usize = 60;

/// What `body` looks for, compiled.
pub struct Pattern {
    regex: Regex,
    /// As it was written.
    words: String,
}

impl Pattern {
    /// `None` where any body will do.
    pub fn of(check: &Check) -> Option<Pattern> {
        let Check::Http(check) = check else { return None };
        let (text, words) = match check.body.as_ref()? {
            BodyCheck::Contains(text) => {
                (regex::escape(text), format!("does not contain \"{}\"", shown(text.as_bytes())))
            }
            BodyCheck::Matches(text) => {
                (text.clone(), format!("has nothing like ~{}", shown(text.as_bytes())))
            }
        };
        // The configuration compiled it to learn whether it can be; what finds nothing would be an alarm, not a silence.
        let regex = RegexBuilder::new(&text).build().or_else(|_| Regex::new("$^x"));
        Some(Pattern { regex: regex.ok()?, words })
    }
}

/// An HTTP answer. `body`: its beginning, or all of it.
///
/// # Errors
/// What is wrong with it.
pub fn http(
    check: &HttpCheck,
    pattern: Option<&Pattern>,
    status: u16,
    body: &[u8],
) -> Result<String, String> {
    if !check.status.contains(status) {
        return Err(format!("answered {status}, expected {}; {}", check.status, begins(body)));
    }
    match pattern {
        Some(pattern) if !pattern.regex.is_match(body) => {
            let bytes = body.len();
            Err(format!(
                "answered {status}, but the body ({bytes} bytes of it) {}; {}",
                pattern.words,
                begins(body)
            ))
        }
        _ => Ok(format!("answered {status}")),
    }
}

/// Whether something that came over HTTP/2 is gRPC at all.
///
/// # Errors
/// What it is instead.
pub fn is_grpc(status: u16, content_type: Option<&[u8]>) -> Result<(), String> {
    if status != 200 {
        return Err(format!("answered {status}: that is not gRPC"));
    }
    match content_type {
        Some(found) if found.starts_with(b"application/grpc") => Ok(()),
        Some(found) => Err(format!("answered with the content type \"{}\": that is not gRPC", shown(found))),
        None => Err("answered without a content type: that is not gRPC".to_owned()),
    }
}

/// A gRPC answer: its status and message, from header fields or trailers, and its body.
///
/// # Errors
/// What is wrong with it.
pub fn grpc(
    service: &str,
    status: Option<&[u8]>,
    message: Option<&[u8]>,
    body: &[u8],
) -> Result<String, String> {
    let Some(status) = status else {
        return Err("answered without a grpc-status: that is not gRPC".to_owned());
    };
    match status {
        b"0" => match grpc::answer(body) {
            Ok(Serving::Serving) => Ok("SERVING".to_owned()),
            Ok(Serving::Not(word)) => Err(format!("it says {word}")),
            Err(why) => Err(why.to_owned()),
        },
        b"5" => Err(format!("grpc-status 5: it knows no service \"{}\"", shown(service.as_bytes()))),
        b"12" => Err("grpc-status 12: it does not have grpc.health.v1.Health".to_owned()),
        other => {
            let message = message.filter(|message| !message.is_empty());
            let message = message.map(|message| format!(": {}", shown(message))).unwrap_or_default();
            Err(format!("grpc-status {}{message}", shown(other)))
        }
    }
}

fn begins(body: &[u8]) -> String {
    match body.is_empty() {
        true => "it has no body".to_owned(),
        false => format!("it begins with \"{}\"", shown(body)),
    }
}

/// The beginning of what a backend sent, harmless on a terminal.
fn shown(bytes: &[u8]) -> String {
    let beginning = bytes.get(..SHOWN_MAX).unwrap_or(bytes);
    let text = String::from_utf8_lossy(beginning);
    let more = if bytes.len() > SHOWN_MAX { "…" } else { "" };
    format!("{}{more}", text.trim_end_matches('\u{fffd}').escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Statuses;

    fn check(status: &[(u16, u16)], body: Option<BodyCheck>) -> HttpCheck {
        HttpCheck { head: false, path: "/up".into(), host: None, status: Statuses(status.to_vec()), body }
    }

    fn judged(check: &HttpCheck, status: u16, body: &str) -> String {
        let pattern = Pattern::of(&Check::Http(check.clone()));
        http(check, pattern.as_ref(), status, body.as_bytes()).unwrap_or_else(|why| format!("ILL {why}"))
    }

    #[test]
    fn a_status_is_expected_or_the_answer_says_what_came() {
        let usual = check(&[(200, 399)], None);
        assert_eq!(judged(&usual, 204, ""), "answered 204");
        assert_eq!(judged(&usual, 302, "moved"), "answered 302");
        assert_eq!(judged(&usual, 404, ""), "ILL answered 404, expected 200-399; it has no body");
        let strict = check(&[(200, 299), (304, 304)], None);
        assert_eq!(
            judged(&strict, 503, "Down for\nmaintenance"),
            "ILL answered 503, expected 200-299, 304; it begins with \"Down for\\nmaintenance\""
        );
    }

    #[test]
    fn a_body_contains_or_matches() {
        let contains = check(&[(200, 399)], Some(BodyCheck::Contains("o.k".into())));
        assert_eq!(judged(&contains, 200, "all o.k."), "answered 200");
        assert_eq!(
            judged(&contains, 200, "all ok"),
            "ILL answered 200, but the body (6 bytes of it) does not contain \"o.k\"; it begins with \"all ok\""
        );
        let matches = check(&[(200, 399)], Some(BodyCheck::Matches("(?i)^ready\\b".into())));
        assert_eq!(judged(&matches, 200, "READY to go"), "answered 200");
        assert_eq!(
            judged(&matches, 200, "not ready"),
            "ILL answered 200, but the body (9 bytes of it) has nothing like ~(?i)^ready\\\\b; it begins with \"not ready\""
        );
    }

    #[test]
    fn what_a_backend_sent_cannot_speak_to_a_terminal() {
        let told = judged(&check(&[(200, 200)], None), 500, "\u{1b}[31mred\u{202e}\r\n\"");
        assert!(told.is_ascii() && !told.contains('\u{1b}'), "{told}");
        let long = judged(&check(&[(200, 200)], None), 500, &"ä".repeat(100));
        assert!(long.ends_with(&format!("\"{}…\"", "ä".repeat(SHOWN_MAX / 2))), "{long}");
    }

    #[test]
    fn grpc_says_serving_or_what_it_says_instead() {
        let serving = [0, 0, 0, 0, 2, 8, 1];
        assert_eq!(grpc("", Some(b"0"), None, &serving), Ok("SERVING".to_owned()));
        let told = |status: Option<&[u8]>, message: Option<&[u8]>, body: &[u8]| {
            grpc("a.B", status, message, body).unwrap_err()
        };
        assert_eq!(told(Some(b"0"), None, &[0, 0, 0, 0, 2, 8, 2]), "it says NOT_SERVING");
        assert_eq!(told(Some(b"0"), None, b""), "it sent no message");
        assert_eq!(told(Some(b"5"), None, b""), "grpc-status 5: it knows no service \"a.B\"");
        assert_eq!(told(Some(b"12"), None, b""), "grpc-status 12: it does not have grpc.health.v1.Health");
        assert_eq!(told(Some(b"14"), Some(b"no db"), b""), "grpc-status 14: no db");
        assert_eq!(told(Some(b"14"), Some(b""), b""), "grpc-status 14");
        assert_eq!(told(None, None, &serving), "answered without a grpc-status: that is not gRPC");
        assert_eq!(is_grpc(200, Some(b"application/grpc+proto")), Ok(()));
        assert_eq!(is_grpc(404, None).unwrap_err(), "answered 404: that is not gRPC");
        assert_eq!(
            is_grpc(200, Some(b"text/html")).unwrap_err(),
            "answered with the content type \"text/html\": that is not gRPC"
        );
        assert!(is_grpc(200, None).is_err());
    }
}
