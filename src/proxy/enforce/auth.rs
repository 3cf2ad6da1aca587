//! Authentication: who the client is, after the limits and before those that are kept for each user.
//!
//! The decision is made in `policy::auth`; what it cannot know is asked here, so that the worker goes on with others
//! meanwhile.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::{self, HeaderMap};
use http::request::Parts;

use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::base::policy::PolicyKind;
use crate::config::model::Mode;
use crate::policy::auth::basic::{Asking, Basic};
use crate::policy::auth::hashing::Job;
use crate::policy::auth::jwt::{Jwt, Read};
use crate::policy::auth::{Scheme, Verdict};
use crate::proxy::client_cert::ClientCert;
use crate::proxy::context::Context;
use crate::proxy::enforce::{forward_auth, settle};
use crate::snapshot::{Guard, Route, Site};
use crate::telemetry::metric::Counter;

/// Asks who the client is.
///
/// # Errors
/// What the request ends in, where the client may not come in.
pub(super) async fn check(
    context: &mut Context,
    site: &Site,
    route: &Route,
    parts: &Parts,
    path: &str,
) -> Result<(), Outcome> {
    let Some(guard) = &route.auth else { return Ok(()) };
    let auth = &guard.auth;
    // Whoever reads the other one would read another user.
    let ambiguous = parts.headers.get_all(header::AUTHORIZATION).iter().nth(1).is_some();
    let (mut refused, mut challenges) = (None, HeaderMap::new());
    for way in &auth.ways {
        let shown = match ambiguous {
            true => Err(Outcome::AuthWrong),
            false => ask(context, way, guard, parts, path).await,
        };
        context.worker().shard.add(counter(way, shown.as_ref().err().copied()), 1);
        match shown {
            Ok(user) => {
                context.identity = user;
                return Ok(());
            }
            Err(outcome) => {
                // What a service says that was asked is the last word.
                let weight = if context.refusal.is_some() { u8::MAX } else { weight(outcome) };
                refused = refused.max(Some((weight, outcome)));
                if let Some(value) = challenge(way, outcome) {
                    challenges.append(header::WWW_AUTHENTICATE, value.clone());
                }
            }
        }
    }
    let outcome = refused.map_or(Outcome::Internal, |(_, outcome)| outcome);
    if auth.mode == Mode::Shadow {
        context.refusal = None;
    } else {
        tell(context, outcome, challenges);
    }
    settle(context, site, PolicyKind::Auth, auth.mode, outcome)
}

/// Which of several ways that failed a client hears of: the one that another try may mend, then what was shown and is not
/// enough, what was wrong, and what was not shown.
fn weight(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::AuthBusy | Outcome::AuthUnavailable => 5,
        Outcome::AuthDenied => 4,
        Outcome::AuthWrong => 3,
        Outcome::AuthRequired => 2,
        Outcome::ClientCertMissing => 1,
        _ => 0,
    }
}

/// Adds to a refusal what would help (RFC 9110 section 11.6.1): of each way that could.
fn tell(context: &mut Context, outcome: Outcome, challenges: HeaderMap) {
    let status = match context.refusal.as_ref().and_then(|refusal| refusal.whole.as_ref()) {
        Some((status, _)) => status.as_u16(),
        None => outcome.row().status,
    };
    if status == 401 && !challenges.is_empty() {
        let refusal = context.refusal.get_or_insert_default();
        for challenge in challenges.get_all(header::WWW_AUTHENTICATE) {
            refusal.headers.append(header::WWW_AUTHENTICATE, challenge.clone());
        }
    }
}

/// Asks in one way.
async fn ask(
    context: &mut Context,
    way: &Scheme,
    guard: &Guard,
    parts: &Parts,
    path: &str,
) -> Result<Option<Arc<str>>, Outcome> {
    match way {
        Scheme::Basic(basic) => {
            let authorization = parts.headers.get(header::AUTHORIZATION);
            let asking = Asking { client: context.client_key(), now: context.worker().wheel.now() };
            match basic.check(authorization, asking) {
                // Boxed: a request whose user is known must not carry the room for a question.
                Verdict::Ask(job) => Box::pin(password(context, basic, &job)).await.map(Some),
                verdict => known(verdict).map(Some),
            }
        }
        Scheme::Forward(forward) => match &guard.service {
            Some(service) => Box::pin(forward_auth::ask(context, service, forward, parts, path)).await,
            None => Err(Outcome::Internal),
        },
        Scheme::Jwt(jwt) => match token(context, jwt, parts) {
            Err(Want::Keys(unknown)) => Box::pin(wait_for_keys(context, jwt, parts, unknown)).await.map(Some),
            Err(Want::Nothing(outcome)) => Err(outcome),
            Ok(user) => Ok(Some(user)),
        },
        Scheme::ClientCert(users) => {
            match users.check(context.connection.client_cert().map(ClientCert::shown)) {
                Verdict::User(user) => Ok(Some(user)),
                // No other try with the same connection helps: nobody is asked for anything (RFC 9110 section 15.5.4).
                Verdict::Missing => Err(Outcome::ClientCertMissing),
                _ => Err(Outcome::AuthDenied),
            }
        }
    }
}

/// What a verdict means that asks nothing.
fn known(verdict: Verdict) -> Result<Arc<str>, Outcome> {
    match verdict {
        Verdict::User(user) => Ok(user),
        Verdict::Missing => Err(Outcome::AuthRequired),
        Verdict::Wrong => Err(Outcome::AuthWrong),
        Verdict::Denied => Err(Outcome::AuthDenied),
        Verdict::Ask(_) => Err(Outcome::Internal),
    }
}

/// Has a hash computed on another thread.
async fn password(context: &Context, basic: &Basic, job: &Job) -> Result<Arc<str>, Outcome> {
    let answer = basic.shared().hashing.submit(job).map_err(|_| Outcome::AuthBusy)?;
    context.worker().shard.add(Counter::AuthHashes, 1);
    // It ends without an answer only where a thread died.
    let right = answer.await.map_err(|_| Outcome::AuthBusy)?;
    basic.settle(job, right, context.worker().wheel.now()).ok_or(Outcome::AuthWrong)
}

/// Why a token says nothing yet.
enum Want {
    /// Other keys: those there are do not have the one it names (`true`), or there are none.
    Keys(bool),
    Nothing(Outcome),
}

fn token(context: &Context, jwt: &Jwt, parts: &Parts) -> Result<Arc<str>, Want> {
    match jwt.check(&parts.headers, context.worker().wheel.now(), clock::wall().as_secs()) {
        Read::Verdict(verdict) => known(verdict).map_err(Want::Nothing),
        Read::UnknownKey => Err(Want::Keys(true)),
        Read::NoKeys => Err(Want::Keys(false)),
    }
}

/// How long a request waits for keys that are being fetched.
const KEYS_TIME: Duration = Duration::from_secs(3);

/// Leaves word that keys are wanted, and looks again when somebody has asked for them.
async fn wait_for_keys(
    context: &Context,
    jwt: &Jwt,
    parts: &Parts,
    unknown: bool,
) -> Result<Arc<str>, Outcome> {
    let none = if unknown { Outcome::AuthWrong } else { Outcome::AuthUnavailable };
    let Some(mut asked) = jwt.source().wish(context.worker().wheel.now()) else { return Err(none) };
    if tokio::time::timeout(KEYS_TIME, asked.changed()).await.is_err() {
        return Err(none);
    }
    token(context, jwt, parts).map_err(|want| match want {
        Want::Nothing(outcome) => outcome,
        Want::Keys(true) => Outcome::AuthWrong,
        Want::Keys(false) => Outcome::AuthUnavailable,
    })
}

/// What would help where a way failed.
fn challenge(way: &Scheme, outcome: Outcome) -> Option<&HeaderValue> {
    match way {
        Scheme::Basic(basic) if outcome.row().status == 401 => Some(&basic.challenge),
        // RFC 6750 section 3.1: who showed nothing is not told of an error.
        Scheme::Jwt(jwt) if outcome == Outcome::AuthRequired => Some(&jwt.challenge),
        Scheme::Jwt(jwt) if outcome == Outcome::AuthWrong => Some(&jwt.invalid),
        _ => None,
    }
}

fn counter(scheme: &Scheme, refused: Option<Outcome>) -> Counter {
    match (scheme, refused) {
        (Scheme::Basic(_), None) => Counter::AuthBasicAccepted,
        (Scheme::Basic(_), Some(Outcome::AuthRequired)) => Counter::AuthBasicMissing,
        (Scheme::Basic(_), Some(Outcome::AuthBusy)) => Counter::AuthBasicBusy,
        (Scheme::Basic(_), Some(_)) => Counter::AuthBasicWrong,
        (Scheme::Forward(_), None) => Counter::AuthForwardAccepted,
        (Scheme::Forward(_), Some(Outcome::AuthRequired)) => Counter::AuthForwardMissing,
        (Scheme::Forward(_), Some(Outcome::AuthDenied)) => Counter::AuthForwardDenied,
        (Scheme::Forward(_), Some(Outcome::AuthRedirected)) => Counter::AuthForwardRedirected,
        (Scheme::Forward(_), Some(Outcome::AuthBusy)) => Counter::AuthForwardBusy,
        (Scheme::Forward(_), Some(_)) => Counter::AuthForwardUnavailable,
        (Scheme::Jwt(_), None) => Counter::AuthJwtAccepted,
        (Scheme::Jwt(_), Some(Outcome::AuthRequired)) => Counter::AuthJwtMissing,
        (Scheme::Jwt(_), Some(Outcome::AuthUnavailable)) => Counter::AuthJwtUnavailable,
        (Scheme::Jwt(_), Some(Outcome::AuthDenied)) => Counter::AuthJwtDenied,
        (Scheme::Jwt(_), Some(_)) => Counter::AuthJwtWrong,
        (Scheme::ClientCert(_), None) => Counter::AuthCertAccepted,
        (Scheme::ClientCert(_), Some(Outcome::ClientCertMissing)) => Counter::AuthCertMissing,
        (Scheme::ClientCert(_), Some(_)) => Counter::AuthCertDenied,
    }
}
