//! Calls of instant-acme that are made again while the CA refuses nonces.

use instant_acme::Error;

use super::problem;

/// Each call is made so often; instant-acme tries three times each.
pub(super) const ROUNDS: u32 = 6;

/// Makes a call again while the CA refuses nonces (RFC 8555 section 6.5: a refused nonce has no effect).
macro_rules! persist {
    ($call:expr) => {{
        let mut round = 1;
        loop {
            match $call.await {
                Err(error)
                    if round < $crate::tls::acme::nonce::ROUNDS
                        && $crate::tls::acme::nonce::is(&error, "badNonce") =>
                {
                    round += 1;
                }
                other => break other,
            }
        }
    }};
}

pub(super) use persist;

/// Whether the CA refused with this type.
pub(super) fn is(error: &Error, kind: &str) -> bool {
    let Error::Api(problem) = error else { return false };
    problem::word(problem.r#type.as_deref()) == Some(kind)
}
