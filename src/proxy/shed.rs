//! What is turned away, counted always and told in the log now and then: a flood must not flood the log too.

use std::cell::Cell;
use std::fmt::Display;
use std::net::IpAddr;

use crate::base::address::truncated;
use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::base::record::Privacy;
use crate::proxy::Worker;
use crate::snapshot::Site;
use crate::telemetry::metric::Counter;

/// Why something is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Shed {
    /// `max_connections_per_client`
    ClientCap,
    /// `max_connections`
    TotalCap,
    /// `max_connections` of a site.
    SiteCap,
    /// Clients and backends have taken the descriptors they may.
    Descriptors,
    /// The system gave no descriptor.
    Accept,
    /// Too many handshakes wait for a turn.
    HandshakeQueue,
    /// A handshake gave way to a newer one.
    HandshakeOldest,
    /// No descriptor was left for a connection to a backend.
    Backend,
    /// Connections of the same client were closed for floods: this one waits.
    Flooded,
    /// A tenant has more than its share of connections.
    ShareConnections,
    /// A tenant has more than its share of connections to backends.
    ShareBackends,
    /// More than a tenant's share of handshakes wait for a turn.
    ShareHandshakes,
    /// The node is overloaded.
    Overload,
    /// The node is overloaded, and a client has more than its share of connections.
    OverloadClient,
    /// The client is banned.
    Banned,
    /// The client is banned from now on.
    Offender,
    /// `addresses` of the server
    Address,
    /// A trusted proxy sent no PROXY protocol header, or a bad one.
    ProxyHeader,
}

/// Reasons told apart: those above, then the outcomes of refused certificates.
const REASONS: usize = SHEDS + Outcome::ALL.len();
const SHEDS: usize = 18;
/// Seconds between two lines of one worker about one reason.
const TELL_EVERY: u64 = 10;

impl Shed {
    /// The cell that counts it.
    fn counter(self) -> Counter {
        match self {
            Shed::ClientCap => Counter::RefusedClientCap,
            Shed::TotalCap => Counter::RefusedTotalCap,
            Shed::SiteCap => Counter::RefusedSiteCap,
            Shed::Descriptors => Counter::RefusedReserve,
            Shed::Accept => Counter::RefusedDescriptors,
            Shed::HandshakeQueue => Counter::RefusedHandshakeQueue,
            Shed::HandshakeOldest => Counter::HandshakeOldest,
            Shed::Backend => Counter::UpstreamDescriptors,
            Shed::Flooded => Counter::FloodDelayed,
            Shed::ShareConnections => Counter::RefusedShare,
            Shed::ShareBackends => Counter::ShedBackends,
            Shed::ShareHandshakes => Counter::RefusedShareHandshakes,
            Shed::Overload => Counter::RefusedOverload,
            Shed::OverloadClient => Counter::RefusedOverloadClient,
            Shed::Banned => Counter::RefusedBanned,
            Shed::Offender => Counter::BansMade,
            Shed::Address => Counter::RefusedAddress,
            Shed::ProxyHeader => Counter::RefusedProxyHeader,
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Shed::ClientCap => {
                "a client has as many connections as `max_connections_per_client` in [server] allows; its new ones are closed"
            }
            Shed::TotalCap => {
                "there are as many connections as `max_connections` in [server] allows; new ones are closed"
            }
            Shed::SiteCap => {
                "the site has as many connections as its `max_connections` allows; new ones are closed"
            }
            Shed::Descriptors => {
                "connections have taken all file descriptors but the reserve; new ones are closed. Raise the limit of open files (LimitNOFILE=, `ulimit -n`)"
            }
            Shed::Accept => {
                "the system gives no more file descriptors; accepting rests. Raise the limit of open files (LimitNOFILE=, `ulimit -n`; fs.file-max)"
            }
            Shed::HandshakeQueue => {
                "as many TLS handshakes wait for the processor as `handshakes` in [server.limits] allows; new connections are closed"
            }
            Shed::HandshakeOldest => {
                "as many TLS handshakes wait for their clients as `handshakes` in [server.limits] allows; the oldest gave way"
            }
            Shed::Backend => {
                "connections have taken all file descriptors but the reserve, and none is left for a backend. Raise the limit of open files (LimitNOFILE=, `ulimit -n`)"
            }
            Shed::Flooded => {
                "connections of a client were closed for HTTP/2 floods; its new ones wait before their handshake (`flood_delay` in [server.limits])"
            }
            Shed::ShareConnections => {
                "connections run short and a tenant has more than its share of them; its new ones are closed"
            }
            Shed::ShareBackends => {
                "descriptors run short and a tenant has more than its share of them at its backends; requests of it that need a new one are refused"
            }
            Shed::Overload => "the node is overloaded; new connections of a tenant are closed",
            Shed::OverloadClient => {
                "the node is overloaded and a client has more than its share of connections; its new ones are closed"
            }
            Shed::ShareHandshakes => {
                "many TLS handshakes wait for the processor, most of them for one tenant; its new connections are closed"
            }
            Shed::Banned => "a client is banned; its connections are closed",
            Shed::Offender => "a client is banned for its offences; `tidegate bans` shows all",
            Shed::Address => "`addresses` in [server] lets a client not in; its connections are closed",
            Shed::ProxyHeader => {
                "a trusted proxy began a connection without a whole PROXY protocol header, so it is closed; have it send one, or say `proxy_protocol = false` in [server]"
            }
        }
    }
}

/// When each reason was last told, in seconds of process time plus one, and how often it came up since.
pub struct Told([Cell<(u64, u64)>; REASONS]);

impl Default for Told {
    fn default() -> Told {
        Told([const { Cell::new((0, 0)) }; REASONS])
    }
}

impl Told {
    /// Whether it is time to tell of a reason again, and what to add about the times that were not told.
    fn due(&self, reason: usize) -> Option<String> {
        let told = self.0.get(reason)?;
        let now = clock::now().0 / 1000 + 1;
        let (last, since) = told.get();
        if last != 0 && now < last + TELL_EVERY {
            told.set((last, since + 1));
            return None;
        }
        told.set((now, 0));
        Some(if since == 0 { String::new() } else { format!(" ({since} more since it was last told)") })
    }
}

impl Worker {
    /// Counts something that is turned away, and tells it if that was not done lately. `whom` is a site or a client,
    /// where there is one.
    pub fn shed(&self, why: Shed, whom: Option<&dyn Display>) {
        self.shard.add(why.counter(), 1);
        let Some(more) = self.told.due(why as usize) else { return };
        let (worker, whom) = (self.id, whom.map(ToString::to_string).unwrap_or_default());
        match why {
            Shed::ShareConnections | Shed::ShareBackends | Shed::ShareHandshakes | Shed::Overload => {
                tracing::warn!(worker, tenant = whom, "{}{more}", why.sentence());
            }
            Shed::SiteCap => tracing::warn!(worker, site = whom, "{}{more}", why.sentence()),
            Shed::ClientCap | Shed::OverloadClient | Shed::Flooded | Shed::Offender => {
                tracing::warn!(worker, client = whom, "{}{more}", why.sentence())
            }
            Shed::ProxyHeader => tracing::warn!(worker, proxy = whom, "{}{more}", why.sentence()),
            Shed::Banned | Shed::Address => {
                tracing::info!(worker, client = whom, "{}{more}", why.sentence())
            }
            _ => tracing::warn!(worker, "{}{more}", why.sentence()),
        }
    }

    /// Counts and tells something about a client. The process log is no place for more of it than the access log shows.
    pub fn shed_client(&self, why: Shed, client: IpAddr) {
        let shown = match self.snapshot().server.log.privacy {
            Privacy::Strict => truncated(client),
            Privacy::Full => client.to_canonical(),
        };
        self.shed(why, Some(&shown));
    }

    /// Counts the outcome of a client's certificate that a handshake refused, and tells it if that was not done lately.
    pub fn refuse_certificate(&self, site: &Site, outcome: Outcome) {
        self.shard.outcome_only(outcome);
        if let Some(more) = self.told.due(SHEDS + outcome.index()) {
            let (worker, site, code) = (self.id, &*site.name, outcome.code());
            tracing::info!(
                worker,
                site,
                code,
                "a client was refused in the handshake{more}: {}",
                outcome.row().sentence
            );
        }
    }

    /// Counts a reason, where it was not counted yet.
    pub fn count(&self, reason: Option<Counter>) {
        if let Some(reason) = reason {
            self.shard.add(reason, 1);
        }
    }
}
