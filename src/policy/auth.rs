//! Who a client is, and whether it may come in: decided once the route is known, after everything that is cheaper.
//!
//! A decision that needs more than memory is a question ([`Verdict::Ask`]): the data plane asks it and goes on with the
//! answer, and a worker never waits. What was found right is remembered for a while ([`remembered`]), under a keyed hash
//! of what the client showed, so that most requests cost one look into a table.

pub mod basic;
pub mod cert_user;
pub mod forward;
pub mod hash;
pub mod hashing;
pub mod jwt;
pub mod remembered;
pub mod strip;
pub mod users;

use std::sync::Arc;

use http::HeaderName;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use crate::config::model::{self, Mode};
use basic::Basic;
use cert_user::CertUser;
use forward::{Forward, Granted};
use hashing::{Hashing, Job};
use jwt::Jwt;
use jwt::source::Sources;
use remembered::Remembered;

/// Bytes of what says who a client is: it goes into fields, log lines and keys of limits.
pub const USER_BYTES_MAX: usize = 256;

/// What all sites share, for the life of the process.
pub struct Shared {
    /// What was found right lately.
    pub remembered: Remembered,
    /// Whom other services let in lately.
    pub granted: Remembered<Arc<Granted>>,
    /// Computes hashes of passwords.
    pub hashing: Hashing,
    /// Where keys for tokens come from.
    pub sources: Sources,
}

impl Shared {
    /// Nothing remembered, no thread started.
    ///
    /// # Errors
    /// A sentence when the system gives no random numbers.
    pub fn new() -> Result<Shared, String> {
        Ok(Shared {
            remembered: Remembered::new(remembered::ENTRIES_MAX)?,
            granted: Remembered::new(forward::ANSWERS_MAX)?,
            hashing: Hashing::new(hashing::threads()),
            sources: Sources::default(),
        })
    }
}

/// Who may come in, compiled.
pub struct Auth {
    /// Whether those who may not are refused.
    pub mode: Mode,
    /// How they show it: any of these will do, in the order in which they are asked.
    pub ways: Box<[Scheme]>,
    /// Field in which the backend hears who it is.
    pub identity_header: Option<HeaderName>,
    /// `Authorization` goes on to the backend.
    pub pass_authorization: bool,
}

/// How clients show who they are.
pub enum Scheme {
    /// By a name and a password.
    Basic(Basic),
    /// By the answer of another service.
    Forward(Box<Forward>),
    /// By a token.
    Jwt(Box<Jwt>),
    /// By a certificate.
    ClientCert(CertUser),
}

/// What a scheme says of a request.
pub enum Verdict {
    /// It comes from this user.
    User(Arc<str>),
    /// It was not shown who it comes from.
    Missing,
    /// What was shown is wrong.
    Wrong,
    /// What was shown is good and not enough.
    Denied,
    /// Only a hash can tell.
    Ask(Box<Job>),
}

/// What files say that a scheme is compiled from.
#[derive(Default)]
pub struct Files {
    /// Users and hashes.
    pub users: Option<Vec<u8>>,
    /// Keys that tokens are checked with.
    pub keys: Option<Vec<u8>>,
    /// Who signed the service that is asked.
    pub ca: Option<Vec<u8>>,
}

impl Auth {
    /// Compiles it.
    ///
    /// # Errors
    /// Where the blame lies, what is wrong, what to do.
    pub fn compile(
        said: &model::Auth,
        site: &Arc<str>,
        files: &Files,
        shared: &Arc<Shared>,
    ) -> Result<Auth, Wrong> {
        let compile = |way: &model::Scheme| {
            Ok(match way {
                model::Scheme::Basic(basic) => Scheme::Basic(Basic::compile(basic, site, files, shared)?),
                model::Scheme::Forward(forward) => {
                    Scheme::Forward(Box::new(Forward::compile(forward, site, shared)?))
                }
                model::Scheme::Jwt(jwt) => Scheme::Jwt(Box::new(Jwt::compile(jwt, files, shared)?)),
                model::Scheme::ClientCert(cert) => Scheme::ClientCert(CertUser::compile(cert)),
            })
        };
        let ways = said.ways.iter().map(compile).collect::<Result<_, Wrong>>()?;
        let header = said.identity_header.as_deref();
        Ok(Auth {
            mode: said.mode,
            ways,
            identity_header: header.and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()),
            pass_authorization: said.pass_authorization,
        })
    }

    /// Fields that only we may write.
    pub fn own_fields(&self) -> impl Iterator<Item = &HeaderName> {
        let told = self.ways.iter().filter_map(|way| match way {
            Scheme::Forward(forward) => Some(forward.own_fields()),
            _ => None,
        });
        self.identity_header.iter().chain(told.flatten())
    }

    /// Tells a backend who it is, and takes away what it is not to see. In shadow nothing is taken away: the backend may
    /// be the one who asks until now.
    pub fn tell(&self, user: Option<&str>, headers: &mut HeaderMap) {
        if !self.pass_authorization && self.mode == Mode::Enforce {
            headers.remove(AUTHORIZATION);
        }
        if let (Some(name), Some(user)) = (&self.identity_header, user)
            && let Ok(value) = HeaderValue::from_bytes(user.as_bytes())
        {
            headers.insert(name, value);
        }
    }
}

/// Where the blame lies, what is wrong, what to do.
pub type Wrong = (model::Origin, String, String);

/// A text that may name a user: short, and without control characters.
pub fn user(text: &str) -> Option<Arc<str>> {
    let legal = !text.is_empty() && text.len() <= USER_BYTES_MAX && !text.chars().any(char::is_control);
    legal.then(|| Arc::from(text))
}
