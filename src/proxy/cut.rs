//! Step 8, the end of a body that is not its end: hyper aborts the message, and what the other side hears says so.

use std::fmt;

use crate::base::outcome::Outcome;
use crate::proxy::reset;

/// Why a body was cut; hyper turns it into an aborted message, never into a clean end.
#[derive(Debug)]
pub struct Cut {
    outcome: Outcome,
    /// Under HTTP/2 hyper resets the stream with the code it finds here.
    reset: Option<h2::Error>,
}

impl Cut {
    /// Cut by us.
    pub fn new(outcome: Outcome) -> Cut {
        Cut { outcome, reset: None }
    }

    /// Given up by the other side without an error: hyper takes an HTTP/2 stream that was reset with `NO_ERROR` for a whole
    /// one, but RFC 9113 section 8.1 allows that reset only behind a whole message.
    pub fn given_up(outcome: Outcome) -> Cut {
        Cut { outcome, reset: Some(h2::Reason::CANCEL.into()) }
    }

    /// Cut by the other side: the code with which it reset its stream is passed on.
    pub fn by(outcome: Outcome, error: &hyper::Error) -> Cut {
        Cut { outcome, reset: reset::passed_on(error).map(h2::Error::from) }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.outcome.row().sentence)
    }
}

impl std::error::Error for Cut {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reset.as_ref().map(|error| error as &(dyn std::error::Error + 'static))
    }
}
