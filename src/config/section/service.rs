//! Where requests go: backends, balancing, health checks, TLS to backends, redirects and fixed answers.
//!
//! A site and a route say these with the same keys. [`Shared`] is what one of them says, with what it inherits filled
//! in: a route from its site, a site from the server.

mod backend;
mod balance;
mod breaker;
mod capacity;
mod eject;
mod health;
mod retry;
mod split;
mod target;
mod upstream;

use std::sync::Arc;
use std::time::Duration;

use super::{answer, auth, header, protocol, tls};
use crate::config::model::{
    Action, Auth, Backend, Balance, Branch, Breaker, Capacity, Cors, Discover, Eject, HeaderEdits, Health,
    Located, Origin, PANIC_DEFAULT, Retry, SecurityHeaders, Server, Service, Split, Upstream,
};
use crate::config::parse::{Context, Table};
use crate::config::setting::Id;
pub use backend::{containers, source_file};
pub(super) use balance::name;
pub use balance::warn_of_shared_cookies;
pub(super) use eject::{print_statuses, statuses};
pub use target::Target;
pub use upstream::located_path;

/// What a site or a route says about where requests go.
#[derive(Debug, Clone)]
pub struct Shared {
    /// `backends`, `redirect` or `respond`.
    pub target: Option<Located<Target>>,
    /// Whether plaintext backends are refused.
    encrypted: bool,
    toward: Toward,
    /// `split`, of the same table as the backends.
    split: Option<Arc<split::Said>>,
    /// `max_body`
    pub max_body: Located<Option<u64>>,
    /// `response_headers`
    pub response_headers: Located<HeaderEdits>,
    /// `security_headers`
    pub security: Located<Option<SecurityHeaders>>,
    /// `cors`
    pub cors: Located<Option<Cors>>,
    /// `auth`
    pub auth: Located<Option<Arc<Auth>>>,
}

/// What has a meaning only where requests go to backends.
#[derive(Debug, Clone)]
struct Toward {
    balance: Located<Balance>,
    slow_start: Located<Duration>,
    health: Located<Option<Health>>,
    eject: Located<Option<Eject>>,
    panic: Located<Option<u8>>,
    connect_timeout: Located<Duration>,
    timeout: Located<Duration>,
    upstream: Located<Upstream>,
    retry: Located<Retry>,
    capacity: Located<Option<Capacity>>,
    breaker: Located<Option<Breaker>>,
    upgrade: Located<Vec<String>>,
    request_headers: Located<HeaderEdits>,
}

/// What a site inherits. `encrypted`: its plaintext backends are refused.
pub fn of_server(server: &Server, encrypted: bool) -> Shared {
    fn default<T>(value: T) -> Located<T> {
        Located { value, origin: Origin::Default }
    }
    let toward = Toward {
        balance: default(Balance::P2c),
        slow_start: default(Duration::ZERO),
        health: default(None),
        eject: default(Some(Eject::default())),
        panic: default(Some(PANIC_DEFAULT)),
        connect_timeout: default(server.timeouts.connect),
        timeout: default(server.timeouts.first_byte),
        upstream: default(Upstream::default()),
        retry: default(Retry::default()),
        capacity: default(None),
        breaker: default(None),
        upgrade: default(vec!["websocket".into()]),
        request_headers: default(HeaderEdits::default()),
    };
    Shared {
        target: None,
        encrypted,
        toward,
        split: None,
        max_body: default(None),
        response_headers: default(HeaderEdits::default()),
        security: default(None),
        cors: default(None),
        auth: default(None),
    }
}

/// Reads what a site or route says.
pub fn read(context: &mut Context<'_>, table: &Table<'_>, inherited: &Shared) -> Shared {
    let target = target::read(context, table).or_else(|| inherited.target.clone());
    let proxied = target.as_ref().is_none_or(|target| matches!(target.value, Target::Backends { .. }));
    // The site's own values are defaults of its routes, and in force whatever the site itself does.
    let toward = if proxied || table.section.id == Id::Site {
        toward(context, table, &inherited.toward)
    } else {
        context.silent(|context| toward(context, table, &inherited.toward))
    };
    let shared = Shared {
        target,
        encrypted: inherited.encrypted,
        toward,
        split: split::read(context, table, inherited.split.as_ref()),
        max_body: context.size_or(table, "max_body", Some(&inherited.max_body)),
        response_headers: header::edits(
            context,
            table,
            "response_headers",
            Some(&inherited.response_headers),
        ),
        security: answer::security(context, table, &inherited.security),
        cors: answer::cors(context, table, &inherited.cors),
        auth: auth::read(context, table, &inherited.auth),
    };
    upstream::warn_of_unused(context, table, &shared);
    if shared.target.is_some() && proxied {
        health::check_protocol(context, table, &shared.toward.health.value, &shared.toward.upstream.value);
    }
    if let Some(Target::Backends { written, sources }) = shared.target.as_ref().map(|target| &target.value)
        && shared.encrypted
        && table.has("backends")
    {
        tls::refuse_plaintext(context, written, sources);
        for branch in shared.branches() {
            tls::refuse_plaintext(context, &branch.written, &branch.sources);
        }
    }
    shared
}

fn toward(context: &mut Context<'_>, table: &Table<'_>, inherited: &Toward) -> Toward {
    Toward {
        balance: balance::read(context, table, &inherited.balance),
        slow_start: context.duration(table, "slow_start", Some(&inherited.slow_start)),
        health: health::read(context, table, &inherited.health),
        eject: eject::read(context, table, &inherited.eject),
        panic: eject::read_panic(context, table, &inherited.panic),
        connect_timeout: context.duration(table, "connect_timeout", Some(&inherited.connect_timeout)),
        timeout: context.duration(table, "timeout", Some(&inherited.timeout)),
        upstream: upstream::read(context, table, &inherited.upstream),
        retry: retry::read(context, table, &inherited.retry),
        capacity: capacity::read(context, table, &inherited.capacity),
        breaker: breaker::read(context, table, &inherited.breaker),
        upgrade: protocol::upgrade(context, table, &inherited.upgrade),
        request_headers: header::edits(context, table, "request_headers", Some(&inherited.request_headers)),
    }
}

impl Shared {
    /// Edits of the request's fields; none where nothing is sent to a backend.
    pub fn request_headers(&self) -> HeaderEdits {
        match self.target.as_ref().map(|target| &target.value) {
            Some(Target::Backends { .. }) => self.toward.request_headers.value.clone(),
            _ => HeaderEdits::default(),
        }
    }

    /// The action for a route; `None` where nothing says where to go.
    pub fn action(&self, service: impl FnOnce() -> Arc<str>) -> Option<Action> {
        Some(match &self.target.as_ref()?.value {
            Target::Redirect { to, status } => Action::Redirect { to: to.clone(), status: *status },
            Target::Respond { status, body, content_type } => {
                Action::Respond { status: *status, body: body.clone(), content_type: content_type.clone() }
            }
            Target::Backends { written, sources } => {
                let name = service();
                let mut main = self.service(name.clone(), written, sources);
                main.split = self.split.as_ref().map(|said| {
                    let branch = |branch: &split::Branch| Branch {
                        name: branch.name.clone(),
                        percent: branch.percent,
                        header: branch.header.clone(),
                        cookie: branch.cookie.clone(),
                        service: self.service(
                            format!("{name}#{}", branch.name).into(),
                            &branch.written,
                            &branch.sources,
                        ),
                    };
                    let branches = said.branches.iter().map(branch).collect();
                    Box::new(Split { by: said.by.clone(), branches })
                });
                Action::Proxy(Box::new(main))
            }
        })
    }

    fn branches(&self) -> impl Iterator<Item = &split::Branch> {
        self.split.iter().flat_map(|said| &said.branches)
    }

    fn service(
        &self,
        name: Arc<str>,
        written: &[Located<Backend>],
        sources: &[Located<Discover>],
    ) -> Service {
        let toward = &self.toward;
        Service {
            name,
            backends: written.to_vec(),
            sources: sources.to_vec(),
            balance: toward.balance.value.clone(),
            slow_start: Some(toward.slow_start.value).filter(|length| !length.is_zero()),
            split: None,
            health: toward.health.value.clone(),
            eject: toward.eject.value.clone(),
            panic: toward.panic.value,
            connect_timeout: toward.connect_timeout.value,
            timeout: toward.timeout.value,
            upstream: toward.upstream.value.clone(),
            retry: toward.retry.value.clone(),
            capacity: toward.capacity.value.clone(),
            breaker: toward.breaker.value.clone(),
            upgrade: toward.upgrade.value.clone(),
        }
    }
}
