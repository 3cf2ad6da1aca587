//! The codes of HTTP/2: what a reset stream or a GOAWAY says about a request, and what is passed on of it.

use std::error::Error;

use h2::Reason;

/// What an error of an HTTP/2 backend means for the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The connection is going away and this stream was not taken: certainly not processed (RFC 9113 section 6.8).
    GoneAway,
    /// `REFUSED_STREAM`: certainly not processed (RFC 9113 section 8.7).
    Refused,
    /// Reset by the backend, with its code.
    Reset(Reason),
    /// What came was no HTTP/2.
    Invalid,
    /// The connection broke.
    Broken,
}

/// Reads an error that came before an answer.
pub fn ending(error: &hyper::Error) -> Ending {
    let Some(inner) = find(error) else { return Ending::Broken };
    match inner.reason() {
        _ if inner.is_go_away() && inner.is_remote() => Ending::GoneAway,
        Some(Reason::REFUSED_STREAM) if inner.is_remote() => Ending::Refused,
        Some(reason) if inner.is_reset() && inner.is_remote() => Ending::Reset(reason),
        Some(_) if inner.is_library() => Ending::Invalid,
        _ => Ending::Broken,
    }
}

/// The code with which a body that was cut on one side is reset on the other. `REFUSED_STREAM` would be a lie behind the
/// beginning of a message, `NO_ERROR` would make it look whole.
pub fn passed_on(error: &hyper::Error) -> Option<Reason> {
    let inner = find(error)?;
    match inner.reason()? {
        _ if !inner.is_remote() => None,
        Reason::NO_ERROR => Some(Reason::CANCEL),
        reason @ (Reason::CANCEL | Reason::ENHANCE_YOUR_CALM | Reason::INADEQUATE_SECURITY) => Some(reason),
        Reason::HTTP_1_1_REQUIRED => Some(Reason::HTTP_1_1_REQUIRED),
        _ => Some(Reason::INTERNAL_ERROR),
    }
}

/// Whether h2 closed a connection of its own accord because the client wanted too much of it.
pub fn is_calmed(error: &hyper::Error) -> bool {
    find(error).is_some_and(|inner| inner.is_library() && inner.reason() == Some(Reason::ENHANCE_YOUR_CALM))
}

fn find(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<h2::Error>() {
            return Some(found);
        }
        source = inner.source();
    }
    None
}
