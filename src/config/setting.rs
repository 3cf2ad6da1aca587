//! THE table of every setting: name, type, default, legal range, what it does.
//!
//! The parser takes known keys, defaults and ranges from here; the reference page and the JSON Schema are generated
//! from here. A setting that is not in this table does not exist; one that is in it is documented.

mod acme;
mod address;
mod answer;
mod auth;
mod ban;
mod discovery;
mod dns;
mod docker;
mod limits;
mod patch;
mod policy;
mod service;
mod share;
mod site;
mod tls;
mod traffic;

pub use acme::{ACME_NAMES_MAX, ALLOW_MAX, DIRECTORIES_MAX};
pub use policy::LIMIT_KEYS_MAX;
pub use service::BALANCE_WORDS;

use crate::base::unit::{print_duration, print_size};
use std::time::Duration;

/// Which table of the file a section describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Id {
    /// The top of `tidegate.toml`.
    File,
    /// `[server]`
    Server,
    /// `[server.timeouts]`
    Timeouts,
    /// `[server.limits]`
    Limits,
    /// `[server.shares]`
    Shares,
    /// `[server.overload]`
    Overload,
    /// `[tenant."…"]`
    Tenant,
    /// `[server.tls]`
    ServerTls,
    /// `[metrics]`
    Metrics,
    /// `[admin]`
    Admin,
    /// `[log]`
    Log,
    /// `[demo]`
    Demo,
    /// `[docker]`
    Docker,
    /// `[patches]`
    Patches,
    /// `patches` of a site, as a table.
    SitePatches,
    /// `[acme]`
    Acme,
    /// One of `[acme] directory`, long form.
    Directory,
    /// `[acme.dns]`
    Dns,
    /// `[dns]`
    Resolution,
    /// `on_demand = { … }`
    OnDemand,
    /// `[acme] store_key`
    StoreKey,
    /// One of `previous` in `store_key`.
    FormerKey,
    /// `[site."…"]`
    Site,
    /// `[[site."…".route]]`
    Route,
    /// `certificate = { … }`
    Certificate,
    /// `tls = { … }` of a site.
    Tls,
    /// `client_auth = { … }`
    ClientAuth,
    /// One of `backends`, long form.
    Backend,
    /// `balance`, long form.
    Balance,
    /// One of `split`.
    Split,
    /// `health`, long form.
    Health,
    /// `eject`, long form.
    Eject,
    /// `upstream = { … }`
    Upstream,
    /// `retry`, as a table.
    Retry,
    /// `capacity`, as a table.
    Capacity,
    /// `breaker`, as a table.
    Breaker,
    /// One of `[networks]`.
    Networks,
    /// `addresses = { … }`
    Addresses,
    /// `countries = { … }`
    Countries,
    /// One of `limit`, long form.
    Limit,
    /// `[bans]`
    Bans,
    /// `ban = { … }`
    Ban,
    /// `bandwidth = { … }`
    Bandwidth,
    /// `redirect = { … }`
    Redirect,
    /// `respond = { … }`
    Respond,
    /// `request_headers` and `response_headers`.
    Edits,
    /// `security_headers`, as a table.
    Security,
    /// `hsts`, as a table.
    Hsts,
    /// `cors`, as a table.
    Cors,
    /// `auth`, as a table.
    Auth,
    /// `basic = { … }` of `auth`.
    Basic,
    /// `forward = { … }` of `auth`.
    Forward,
    /// `jwt = { … }` of `auth`.
    Jwt,
    /// `client_cert = { … }` of `auth`.
    CertUser,
}

/// One table of the file.
#[derive(Debug)]
pub struct Section {
    /// Which.
    pub id: Id,
    /// How it is written; what messages call it.
    pub title: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// Its settings, in the order of the reference page.
    pub settings: &'static [Setting],
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// The key.
    pub name: &'static str,
    /// Type and legal values.
    pub kind: Kind,
    /// What applies when nobody says it.
    pub default: Fallback,
    /// Whether a change takes effect only in a new process.
    pub needs_restart: bool,
    /// One or two sentences.
    pub doc: &'static str,
}

/// What applies when nobody says a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This TOML text.
    Value(&'static str),
    /// What this says, in words.
    Words(&'static str),
    /// Nothing: it must be said.
    Required,
}

/// Type and legal values. Bounds are inclusive; durations are in milliseconds, sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`
    Flag,
    /// A whole number.
    Count(u64, u64),
    /// One of these whole numbers.
    OneOf(&'static [u64]),
    /// A word, or a whole number.
    CountOr(&'static str, u64, u64),
    /// `"10s"`
    Duration(u64, u64),
    /// A word, or a duration.
    DurationOr(&'static str, u64, u64),
    /// `"64KiB"`
    Size(u64, u64),
    /// A word, or a size.
    SizeOr(&'static str, u64, u64),
    /// `"20%"`, from so many to so many.
    Percent(u8, u8),
    /// A word, or a percentage.
    PercentOr(&'static str, u8, u8),
    /// At most so many statuses and ranges of them, from so many to so many.
    Statuses(usize, u16, u16),
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text of at most so many bytes.
    Text(usize),
    /// At most so many texts.
    Texts(usize),
    /// A text, described by the words, or an array of at most so many.
    TextOrTexts(&'static str, usize),
    /// An IP address and port, or the word.
    AddressOr(&'static str),
    /// At most so many IP addresses with port.
    Addresses(usize),
    /// At most so many networks.
    Networks(usize),
    /// A path, relative to the file it stands in.
    Path,
    /// One of these words, or a path.
    PathOr(&'static [&'static str]),
    /// A table.
    Table(Id),
    /// A table whose keys are names the operator chooses.
    Named(Id),
    /// At most so many tables.
    Tables(Id, usize),
    /// A text that stands for a table, described by the words, or the table.
    ShortOr(&'static str, Id),
    /// At most so many texts or tables; the flag: a single text may stand alone.
    ShortOrTables(&'static str, Id, usize, bool),
    /// Names with a text or `true`/`false`: header and query conditions.
    Conditions(usize),
    /// Names with a text.
    Pairs(usize),
}

impl Kind {
    /// What must be written, as messages and the reference page say it.
    pub fn expected(&self) -> String {
        let millis = |ms: u64| print_duration(Duration::from_millis(ms));
        match self {
            Kind::Flag => "`true` or `false`".into(),
            Kind::Count(low, high) => format!("a whole number, {low} to {high}"),
            Kind::OneOf(numbers) => {
                format!("one of {}", numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", "))
            }
            Kind::CountOr(word, low, high) => format!("\"{word}\" or a whole number, {low} to {high}"),
            Kind::Duration(low, high) => {
                format!("a duration like \"10s\", \"{}\" to \"{}\"", millis(*low), millis(*high))
            }
            Kind::DurationOr(word, low, high) => format!(
                "\"{word}\" or a duration like \"10s\", \"{}\" to \"{}\"",
                millis(*low),
                millis(*high)
            ),
            Kind::Size(low, high) => {
                format!("a size like \"64KiB\", \"{}\" to \"{}\"", print_size(*low), print_size(*high))
            }
            Kind::SizeOr(word, low, high) => format!(
                "\"{word}\" or a size like \"64KiB\", \"{}\" to \"{}\"",
                print_size(*low),
                print_size(*high)
            ),
            Kind::Percent(low, high) => format!("a percentage like \"20%\", \"{low}%\" to \"{high}%\""),
            Kind::PercentOr(word, low, high) => {
                format!("\"{word}\" or a percentage like \"20%\", \"{low}%\" to \"{high}%\"")
            }
            Kind::Statuses(max, low, high) => format!(
                "an array of at most {max} statuses and ranges of them like [304, \"{low}-{}\"], {low} to {high}",
                low.saturating_add(99)
            ),
            Kind::Word(words) => one_of(words),
            Kind::Text(max) => format!("a text of at most {max} bytes"),
            Kind::Texts(max) => format!("an array of at most {max} texts"),
            Kind::TextOrTexts(what, max) => format!("{what}, or an array of at most {max} of these"),
            Kind::AddressOr(word) => {
                format!("an IP address with a port like \"127.0.0.1:9180\", or \"{word}\"")
            }
            Kind::Addresses(max) => {
                format!(
                    "an array of at most {max} IP addresses with port, like [\"0.0.0.0:80\"], or [\"[::]:80\"] for IPv6 too"
                )
            }
            Kind::Networks(max) => {
                format!("an array of at most {max} networks, like [\"10.0.0.0/8\", \"2001:db8::/32\"]")
            }
            Kind::Path => "a path; a relative one starts at the folder of this file".into(),
            Kind::PathOr(words) => {
                format!("{} or a path; a relative one starts at the folder of this file", one_of(words))
            }
            Kind::Table(id) | Kind::Named(id) => format!("a table: {}", section(*id).title),
            Kind::Tables(id, max) => format!("at most {max} tables: {}", section(*id).title),
            Kind::ShortOr(short, id) => format!("{short}, or a table: {}", section(*id).title),
            Kind::ShortOrTables(short, id, max, true) => {
                format!("{short}, or an array of at most {max} of these or of tables: {}", section(*id).title)
            }
            Kind::ShortOrTables(short, id, max, false) => {
                format!("an array of at most {max} of: {short}, or a table: {}", section(*id).title)
            }
            Kind::Conditions(max) => format!(
                "a table of at most {max} names, each with \"value\", \"~regex\", true (present) or false (absent)"
            ),
            Kind::Pairs(max) => format!("a table of at most {max} names, each with a text"),
        }
    }
}

/// Keys of the reference that later versions will have: section, key, message, what to do.
pub const LATER: &[(Id, &str, &str, &str)] = &[];

fn one_of(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
}

impl Section {
    /// The setting with this name.
    pub fn setting(&self, name: &str) -> Option<&'static Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }
}

/// The section with this id.
pub fn section(id: Id) -> &'static Section {
    // Every id has a row (a test checks it); the first row stands in so that this cannot panic.
    TABLE.iter().copied().find(|section| section.id == id).unwrap_or(&FILE)
}

const fn row(name: &'static str, kind: Kind, default: Fallback, doc: &'static str) -> Setting {
    Setting { name, kind, default, needs_restart: false, doc }
}

const fn fixed(name: &'static str, kind: Kind, default: Fallback, doc: &'static str) -> Setting {
    Setting { name, kind, default, needs_restart: true, doc }
}

use self::Fallback::{Required, Value, Words};

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;
const DAY: u64 = 24 * HOUR;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// Routes of one site.
pub const ROUTES_MAX: usize = 1_000;
/// Backends of one service, hosts of one site.
pub const NAMES_MAX: usize = 1_000;
/// Limits of one site or route.
pub const LIMITS_MAX: usize = 16;
/// Protocols a site or route may list in `upgrade`.
pub const UPGRADES_MAX: usize = 16;
/// Sites of one configuration.
pub const SITES_MAX: usize = 100_000;

const HEALTH_SHORT: &str = "a path like \"/up\", or \"tcp\", or \"grpc\", or \"off\"";
const EJECT_SHORT: &str = "\"off\"";
const LIMIT_SHORT: &str = "a rate like \"100 per 10s by client-ip\"";
const BACKEND_SHORT: &str = "an address like \"10.0.0.1:8080\" or \"https://api.internal:8443\", or a source of addresses like \"dns://api.internal:8080\" or \"docker://web\"";
const REDIRECT_SHORT: &str = "a target like \"/new/\" or \"https://www.shop.example/\"";

// One row, one line, however long: this is a table.
#[rustfmt::skip]
static FILE: Section = Section {
    id: Id::File,
    title: "the top of tidegate.toml",
    doc: "Everything is optional: an empty file is valid. `[site.\"…\"]` tables may stand here or in the included files, and nothing else may stand in the included files.",
    settings: &[
        row("server", Kind::Table(Id::Server), Words("every default"), "What belongs to the server, not to one site."),
        row("metrics", Kind::Table(Id::Metrics), Words("every default"), "Where metrics are read."),
        row("admin", Kind::Table(Id::Admin), Words("every default"), "How `tidegate status` and `tidegate reload` reach the process."),
        row("log", Kind::Table(Id::Log), Words("every default"), "The access log."),
        row("demo", Kind::Table(Id::Demo), Words("none"), "Built-in backends to try things with."),
        row("docker", Kind::Table(Id::Docker), Words("no engine is asked"), "The container engine whose containers are found by their labels."),
        row("patches", Kind::Table(Id::Patches), Words("nothing is looked for"), "Virtual patches: requests that exploit known holes are recognised."),
        row("acme", Kind::Table(Id::Acme), Words("no automatic certificates"), "Certificates that get and keep themselves."),
        row("bans", Kind::Table(Id::Bans), Words("nobody is banned, unless by command"), "Clients that are turned away from all sites."),
        row("dns", Kind::Table(Id::Resolution), Words("every default"), "How names in `backends` are resolved."),
        row("networks", Kind::Named(Id::Networks), Words("none"), "Networks with names of yours."),
        row("tenant", Kind::Named(Id::Tenant), Words("every default"), "Who owns sites, by name, where more is to be said than the name."),
        row("site", Kind::Named(Id::Site), Words("none"), "The sites, by name."),
    ],
};

/// Every section, in the order of the reference page.
pub static TABLE: &[&Section] = &[
    &FILE,
    &SERVER,
    &TIMEOUTS,
    &limits::LIMITS,
    &share::SHARES,
    &share::OVERLOAD,
    &share::TENANT,
    &tls::SERVER_TLS,
    &METRICS,
    &ADMIN,
    &LOG,
    &DEMO,
    &docker::DOCKER,
    &patch::PATCHES,
    &acme::ACME,
    &acme::DIRECTORY,
    &dns::DNS,
    &discovery::RESOLUTION,
    &acme::STORE_KEY,
    &acme::FORMER_KEY,
    &site::SITE,
    &acme::ON_DEMAND,
    &site::ROUTE,
    &CERTIFICATE,
    &tls::TLS,
    &tls::CLIENT_AUTH,
    &service::BACKEND,
    &service::BALANCE,
    &service::SPLIT,
    &service::HEALTH,
    &service::EJECT,
    &service::UPSTREAM,
    &traffic::RETRY,
    &traffic::CAPACITY,
    &traffic::BREAKER,
    &address::NETWORKS,
    &address::ADDRESSES,
    &address::COUNTRIES,
    &patch::SITE_PATCHES,
    &policy::LIMIT,
    &ban::BANS,
    &ban::BAN,
    &policy::BANDWIDTH,
    &REDIRECT,
    &RESPOND,
    &EDITS,
    &answer::SECURITY,
    &answer::HSTS,
    &answer::CORS,
    &auth::AUTH,
    &auth::BASIC,
    &auth::FORWARD,
    &auth::JWT,
    &auth::CERT_USER,
];

#[rustfmt::skip]
static SERVER: Section = Section {
    id: Id::Server,
    title: "[server]",
    doc: "What belongs to the server. An error here refuses the whole configuration; the running one stays.",
    settings: &[
        fixed("http", Kind::Addresses(64), Value(r#"["0.0.0.0:80"]"#), "Plain HTTP listeners. They redirect to HTTPS, unless a site sets `plain_http = true`."),
        fixed("https", Kind::Addresses(64), Value(r#"["0.0.0.0:443"]"#), "HTTPS listeners."),
        row("public_https_port", Kind::CountOr("auto", 1, 65_535), Value(r#""auto""#), "The port that clients are redirected to from plain HTTP; `\"auto\"` is that of the first HTTPS listener. To be said where something forwards 443 to another port."),
        fixed("workers", Kind::CountOr("auto", 1, 1024), Value(r#""auto""#), "Worker threads; `\"auto\"` is one per core."),
        fixed("state", Kind::Path, Value(r#""/var/lib/tidegate""#), "Folder for certificates and the last good version of each site."),
        row("include", Kind::Texts(64), Value(r#"["sites/*.toml"]"#), "Files with sites. `*` may stand in the last part; files are taken in the order of their names, hidden ones are skipped, a missing folder is fine."),
        row("trusted_proxies", Kind::Networks(10_000), Value("[]"), "Networks whose forwarded headers (and PROXY protocol) are believed; also names: `\"cloudflare\"`, `\"fastly\"`, `\"google-lb\"`, `\"private\"`, `\"loopback\"`, or of `[networks]` without a `file`."),
        row("addresses", Kind::Table(Id::Addresses), Words("all are let in"), "Which client addresses are let in, whatever they want. The others are refused as soon as their address is known."),
        row("country_database", Kind::Path, Words("none"), "A database in MaxMind's format (`.mmdb`) that knows the countries of addresses. Read again when it changes."),
        row("client_ip_doctor", Kind::Word(&["on", "warn", "off"]), Value(r#""on""#), "Looks for signs that client addresses are not those of clients. `\"on\"`: warns, and limits by address refuse nobody at a proxy that is not trusted; `\"warn\"`: only warns."),
        row("proxy_protocol", Kind::Flag, Value("false"), "Connections from trusted proxies begin with a PROXY protocol header, v1 or v2."),
        row("via", Kind::Text(64), Value(r#""tidegate""#), "What this node calls itself in the `Via` field of requests to backends (RFC 9110 section 7.6.3); `\"off\"`: the field is not sent, and loops are not seen."),
        row("drain", Kind::Duration(0, HOUR), Value(r#""30s""#), "How long a graceful stop waits for what is in flight."),
        row("max_connections_per_client", Kind::Count(0, 10_000_000), Value("1024"), "Open connections per client address (IPv6: per /64); 0 = no cap."),
        row("max_requests_per_connection", Kind::Count(0, 1_000_000_000), Value("10000"), "Requests on one connection before it is closed gracefully; 0 = no cap."),
        row("max_connections", Kind::CountOr("auto", 1, 10_000_000), Value(r#""auto""#), "Open client connections of the whole process; `\"auto\"` follows the file-descriptor limit."),
        fixed("limit_entries", Kind::Count(1_024, 1_000_000_000), Value("1048576"), "Entries of the rate limiters' shared table, 16 bytes each."),
        row("default_certificate", Kind::Text(253), Words("none: such clients are refused"), "The site whose certificate answers clients that send no server name, or an unknown one."),
        row("tls", Kind::Table(Id::ServerTls), Words("every default"), "Versions of TLS for sites that say nothing else."),
        row("require_encrypted_backends", Kind::Flag, Value("false"), "Refuse every backend that is reached in plain text, unless its address is one of this machine (127.0.0.0/8, `[::1]`)."),
        row("timeouts", Kind::Table(Id::Timeouts), Words("every default"), "Deadlines."),
        row("limits", Kind::Table(Id::Limits), Words("every default"), "Sizes."),
        row("shares", Kind::Table(Id::Shares), Words("every default"), "What tenants may take of the node while others want it too."),
        row("overload", Kind::Table(Id::Overload), Words("every default"), "What is given up when the node has too much to do."),
    ],
};

#[rustfmt::skip]
static TIMEOUTS: Section = Section {
    id: Id::Timeouts,
    title: "[server.timeouts]",
    doc: "Deadlines of the data plane. Each is the longest time without progress of its kind.",
    settings: &[
        row("handshake", Kind::Duration(1, HOUR), Value(r#""10s""#), "From accept to the end of the TLS handshake."),
        row("head", Kind::Duration(1, HOUR), Value(r#""10s""#), "From the first byte of a request to the end of its head."),
        row("idle", Kind::Duration(1, DAY), Value(r#""75s""#), "A keep-alive connection without a request."),
        row("body", Kind::Duration(1, DAY), Value(r#""30s""#), "A request body without progress."),
        row("write", Kind::Duration(1, DAY), Value(r#""30s""#), "A client that takes no byte of the answer."),
        row("tunnel", Kind::Duration(1, 30 * DAY), Value(r#""1h""#), "An upgraded connection (WebSocket) without a byte either way."),
        row("connect", Kind::Duration(1, HOUR), Value(r#""2s""#), "Connecting to a backend. A site or route may set its own `connect_timeout`."),
        row("first_byte", Kind::Duration(1, DAY), Value(r#""60s""#), "From the request sent to the first byte of the backend's answer. A site or route may set its own `timeout`."),
        row("upstream_idle", Kind::Duration(1, DAY), Value(r#""60s""#), "An unused pooled connection to a backend."),
        row("age", Kind::Duration(0, 30 * DAY), Value(r#""1h""#), "The longest life of a client connection: the request begun after it is its last, and tunnels are left alone; `\"0s\"`: no end."),
        row("upstream_ping", Kind::Duration(SECOND, DAY), Value(r#""330s""#), "Silence on an HTTP/2 connection to a backend before it is asked by a ping whether it lives. gRPC servers take pings more often than every 5 minutes for abuse."),
    ],
};

#[rustfmt::skip]
static METRICS: Section = Section {
    id: Id::Metrics,
    title: "[metrics]",
    doc: "Metrics in the Prometheus text format, at `/metrics`.",
    settings: &[fixed("listen", Kind::AddressOr("off"), Value(r#""127.0.0.1:9180""#), "Where metrics are served; `\"off\"`: nowhere.")],
};

#[rustfmt::skip]
static ADMIN: Section = Section {
    id: Id::Admin,
    title: "[admin]",
    doc: "The socket that the commands talk to. Who can open it can control the process.",
    settings: &[fixed("socket", Kind::Path, Value(r#""/run/tidegate/admin.sock""#), "The Unix socket.")],
};

#[rustfmt::skip]
static LOG: Section = Section {
    id: Id::Log,
    title: "[log]",
    doc: "The access log: one record per request.",
    settings: &[
        row("access", Kind::PathOr(&["stdout", "off"]), Value(r#""stdout""#), "Where records go."),
        row("format", Kind::Word(&["json", "combined"]), Value(r#""json""#), "Shape of a record."),
        row("privacy", Kind::Word(&["strict", "full"]), Value(r#""strict""#), "`\"strict\"` cuts addresses and leaves out queries and cookies; `\"full\"` records them."),
    ],
};

#[rustfmt::skip]
static DEMO: Section = Section {
    id: Id::Demo,
    title: "[demo]",
    doc: "Built-in backends, to try Tidegate without any other program.",
    settings: &[fixed("listen", Kind::Addresses(16), Value("[]"), "Addresses on which demo backends answer.")],
};

#[rustfmt::skip]
static CERTIFICATE: Section = Section {
    id: Id::Certificate,
    title: "certificate = { cert = \"…\", key = \"…\" }",
    doc: "A certificate of the operator's own.",
    settings: &[
        row("cert", Kind::Path, Required, "PEM file: the certificate, then its intermediates."),
        row("key", Kind::Path, Required, "PEM file: the private key."),
    ],
};

#[rustfmt::skip]
static REDIRECT: Section = Section {
    id: Id::Redirect,
    title: "redirect = { to = \"…\", … }",
    doc: "Sends the client elsewhere. The query is kept.",
    settings: &[
        row("to", Kind::Text(2_048), Required, "A path or a whole URL; where it ends with `/`, what followed the route's prefix is added."),
        row("status", Kind::OneOf(&[301, 302, 303, 307, 308]), Value("308"), "Status of the answer: 301 and 308 are remembered by browsers; 307 and 308 keep the method."),
    ],
};

#[rustfmt::skip]
static RESPOND: Section = Section {
    id: Id::Respond,
    title: "respond = { status = …, … }",
    doc: "A fixed answer.",
    settings: &[
        row("status", Kind::Count(200, 599), Value("200"), "Status."),
        row("body", Kind::Text(65_536), Value(r#""""#), "Body."),
        row("content_type", Kind::Text(256), Value(r#""text/plain; charset=utf-8""#), "Content-Type of the body."),
    ],
};

#[rustfmt::skip]
static EDITS: Section = Section {
    id: Id::Edits,
    title: "request_headers = { … }",
    doc: "Edits of header fields, applied in the order remove, set, add. Fields that frame the message or belong to one connection cannot be edited.",
    settings: &[
        row("remove", Kind::Texts(64), Words("none"), "Names to remove."),
        row("set", Kind::Pairs(64), Words("none"), "Fields to replace."),
        row("add", Kind::Pairs(64), Words("none"), "Fields to add beside those that are there."),
    ],
};
