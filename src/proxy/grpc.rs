//! Step 9 for gRPC: a client that speaks gRPC reads `grpc-status`, not the HTTP status.
//!
//! What Tidegate answers itself then comes as HTTP 200 with the status in the head and no body ("trailers-only", gRPC over
//! HTTP/2, section Responses). Answers of backends pass as they are.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version};

use crate::base::outcome::{Blame, Outcome};

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is gRPC. Asked of every request, so the cheap questions come first.
pub fn is_request<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && request.method() == Method::POST
        && request.headers().get(header::CONTENT_TYPE).is_some_and(is_type)
}

/// `application/grpc`, alone or with `+proto`, `+json` or parameters behind it.
fn is_type(value: &HeaderValue) -> bool {
    let rest = value.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// Status codes of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    Cancelled = 1,
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// The status for an outcome, and for the code with which a backend reset the stream (gRPC over HTTP/2, section Errors).
///
/// `UNAVAILABLE` invites clients to send again, so it is said only where that does no harm.
pub fn status(outcome: Outcome, reset: Option<h2::Reason>) -> Status {
    if let Some(reason) = reset.filter(|_| outcome == Outcome::UpstreamReset) {
        return match reason {
            h2::Reason::REFUSED_STREAM => Status::Unavailable,
            h2::Reason::CANCEL => Status::Cancelled,
            h2::Reason::ENHANCE_YOUR_CALM => Status::ResourceExhausted,
            h2::Reason::INADEQUATE_SECURITY => Status::PermissionDenied,
            _ => Status::Internal,
        };
    }
    match outcome {
        Outcome::RateLimited
        | Outcome::ClientBusy
        | Outcome::BodyTooLarge
        | Outcome::HeadTooLarge
        | Outcome::UriTooLong => Status::ResourceExhausted,
        Outcome::UpstreamTimeout
        | Outcome::TotalTimeout
        | Outcome::UpstreamStalled
        | Outcome::BodyTimeout => Status::DeadlineExceeded,
        Outcome::UnknownHost | Outcome::NoRoute | Outcome::MethodRefused | Outcome::TunnelRefused => {
            Status::Unimplemented
        }
        Outcome::UpstreamInvalid | Outcome::UpstreamTruncated | Outcome::Internal => Status::Internal,
        // As clients read the HTTP statuses (gRPC, "HTTP to gRPC Status Code Mapping").
        other => match (other.row().status, other.row().blame) {
            (401, _) => Status::Unauthenticated,
            (403, _) => Status::PermissionDenied,
            (404, _) => Status::Unimplemented,
            (400, _) => Status::Internal,
            (421 | 429 | 502..=504, _) | (_, Blame::Upstream) => Status::Unavailable,
            _ => Status::Unknown,
        },
    }
}

/// Puts an outcome into the head of an answer.
pub fn write(headers: &mut HeaderMap, outcome: Outcome, reset: Option<h2::Reason>) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status(outcome, reset) as u8)));
    // Percent-encoded by the rules of gRPC; the table's sentences are plain ASCII without `%`.
    headers.insert(GRPC_MESSAGE, HeaderValue::from_static(outcome.row().sentence));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, method: Method, kind: &'static str) -> bool {
        let request =
            Request::builder().version(version).method(method).header("content-type", kind).body(());
        is_request(&request.unwrap())
    }

    #[test]
    fn only_what_grpc_sends_is_taken_for_grpc() {
        for kind in ["application/grpc", "application/grpc+proto", "application/grpc;x=y"] {
            assert!(request(Version::HTTP_2, Method::POST, kind), "{kind}");
        }
        assert!(!request(Version::HTTP_2, Method::POST, "application/grpc-web"), "gRPC-Web reads HTTP");
        assert!(!request(Version::HTTP_2, Method::POST, "application/json"));
        assert!(!request(Version::HTTP_2, Method::GET, "application/grpc"));
        assert!(!request(Version::HTTP_11, Method::POST, "application/grpc"));
    }

    #[test]
    fn every_outcome_has_a_status_that_invites_no_harmful_repetition() {
        for &outcome in Outcome::ALL {
            let mut headers = HeaderMap::new();
            write(&mut headers, outcome, None);
            let message = headers[GRPC_MESSAGE].to_str().unwrap();
            assert!(message.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'%'), "{message}");
            if status(outcome, None) == Status::Unavailable {
                let row = outcome.row();
                assert!(row.retryable || row.blame != Blame::Client, "{}", row.code);
            }
        }
        assert_eq!(status(Outcome::UpstreamTimeout, None), Status::DeadlineExceeded, "it may have been done");
        assert_eq!(status(Outcome::ConnectTimeout, None), Status::Unavailable, "it was never sent");
    }

    #[test]
    fn codes_of_a_reset_are_those_of_the_specification() {
        let of = |reason| status(Outcome::UpstreamReset, Some(reason));
        assert_eq!(of(h2::Reason::CANCEL), Status::Cancelled);
        assert_eq!(of(h2::Reason::ENHANCE_YOUR_CALM), Status::ResourceExhausted);
        assert_eq!(of(h2::Reason::INADEQUATE_SECURITY), Status::PermissionDenied);
        assert_eq!(of(h2::Reason::REFUSED_STREAM), Status::Unavailable);
        assert_eq!(of(h2::Reason::PROTOCOL_ERROR), Status::Internal);
    }
}
