//! The settings of a site and of its routes.

use super::Fallback::{Value, Words};
use super::answer::{CORS_SHORT, HSTS_SHORT, SECURITY_SHORT};
use super::auth::AUTH_SHORT;
use super::{
    BACKEND_SHORT, DAY, EJECT_SHORT, HEALTH_SHORT, HOUR, Id, Kind, LIMIT_SHORT, LIMITS_MAX, NAMES_MAX,
    REDIRECT_SHORT, ROUTES_MAX, Section, TIB, UPGRADES_MAX, row, service,
};

#[rustfmt::skip]
pub(super) static SITE: Section = Section {
    id: Id::Site,
    title: "[site.\"…\"]",
    doc: "One site. An error here concerns this site only: it keeps its last good version. The site's own `backends`, `redirect` or `respond` answer whatever no route takes, and are the default of its routes.",
    settings: &[
        row("hosts", Kind::Texts(NAMES_MAX), Words("the site's name"), "Names served. `*.shop.example` takes exactly one more label. May be empty where `on_demand` is said."),
        row("tenant", Kind::Text(128), Words("the site's name"), "Who owns the site; a label in logs and metrics, and who has a share of the node ([`[tenant]`](#tenant))."),
        row("priority", Kind::Word(&["low", "normal", "high"]), Value(r#""normal""#), "In which order requests are given up in an overload; `\"high\"`: never."),
        row("certificate", Kind::Table(Id::Certificate), Words("see `certificates`"), "PEM files of the site's own certificate."),
        row("certificates", Kind::Word(&["acme", "internal"]), Words("`\"internal\"` where no public authority would sign (`localhost`, `.test`, `.example`, `.internal`, `.local`, IP addresses …); else `\"acme\"`, which needs `[acme]`"), "`\"acme\"`: got from the authority of `[acme]` and renewed. `\"internal\"`: signed by the built-in local authority, for development and inner networks."),
        row("until_issued", Kind::Word(&["wait", "refuse", "internal"]), Value(r#""wait""#), "What serves before the first automatic certificate is there. `\"wait\"`: handshakes wait up to 10 s for an order whose turn is now, and are refused otherwise; `\"refuse\"`: they are refused at once; `\"internal\"`: a certificate of the built-in authority, which browsers warn about."),
        row("on_demand", Kind::Table(Id::OnDemand), Words("no"), "Names whose certificate is got at their first handshake: the custom domains of your customers."),
        row("tls", Kind::Table(Id::Tls), Words("the server's"), "Versions of TLS, and certificates of clients."),
        row("max_connections", Kind::Count(0, 10_000_000), Value("0"), "Open connections whose TLS handshake named this site; the newest is refused; 0 = no cap."),
        row("backends", BACKENDS, Words("none"), "Where requests go."),
        row("split", SPLIT, Words("none"), "Shares of the requests that go to other backends: a new version is tried on few."),
        row("split_by", Kind::Text(256), Value(r#""request""#), "What keeps a client on its side of `split`: `\"client-ip\"`, `\"header:X-User\"`, `\"cookie:session\"`; `\"request\"`: nothing, each request is drawn anew."),
        row("balance", BALANCE, Value(r#""p2c""#), "How a backend is chosen."),
        row("slow_start", Kind::Duration(0, HOUR), Value(r#""0s""#), "Time in which a backend that is new or back gets to its whole share, from 10 % of it; `\"0s\"`: none."),
        row("health", Kind::ShortOr(HEALTH_SHORT, Id::Health), Value(r#""off""#), "Active health check of each backend."),
        row("eject", Kind::ShortOr(EJECT_SHORT, Id::Eject), Words("after 5 failures in a row"), "What takes a backend out that fails requests."),
        row("panic", Kind::PercentOr("off", 1, 100), Value(r#""50%""#), "When fewer of the backends that can be reached are in good standing, health checks and `eject` are not believed and all of them get requests."),
        row("addresses", Kind::Table(Id::Addresses), Words("all are let in"), "Which client addresses are let in (403)."),
        row("countries", Kind::Table(Id::Countries), Words("all are let in"), "From which countries clients are let in (403); needs `country_database`."),
        row("limit", LIMIT_KIND, Words("none"), "Rate limits over all routes of the site."),
        row("patches", PATCHES, Words("as `[patches]` says"), "Virtual patches: `\"off\"`, or what is different here."),
        row("ban", Kind::Table(Id::Ban), Words("none"), "Turn clients away from this site that offended too often."),
        row("bandwidth", Kind::Table(Id::Bandwidth), Words("any"), "Bytes in a second over all routes of the site."),
        row("max_body", Kind::SizeOr("unlimited", 0, TIB), Value(r#""unlimited""#), "Largest request body (413)."),
        row("timeout", Kind::Duration(1, DAY), Words("`server.timeouts.first_byte`"), "From the request sent to the first byte of the backend's answer (504)."),
        row("connect_timeout", Kind::Duration(1, HOUR), Words("`server.timeouts.connect`"), "Connecting to a backend."),
        row("upstream", Kind::Table(Id::Upstream), Words("every default"), "How to speak to the backends: TLS, HTTP/2, PROXY protocol."),
        row("retry", RETRY, Words("every default"), "What is sent to another backend when one fails, and how much of it."),
        row("capacity", CAPACITY, Value(r#""off""#), "Requests in flight at the backends; what is more waits in a queue."),
        row("breaker", BREAKER, Value(r#""off""#), "When most requests fail, answer 503 at once and try again now and then."),
        row("require_encrypted_backends", Kind::Flag, Words("the server's"), "Refuse backends that are reached in plain text, those on this machine excepted. Where the server says `true`, a site cannot say `false`."),
        row("upgrade", Kind::Texts(UPGRADES_MAX), Value(r#"["websocket"]"#), "Protocols a client may change to (`Upgrade`, or extended CONNECT over HTTP/2); anything else is ignored or refused."),
        row("plain_http", Kind::Flag, Value("false"), "Serve plain HTTP instead of redirecting it to HTTPS."),
        row("redirect", Kind::ShortOr(REDIRECT_SHORT, Id::Redirect), Words("none"), "Send every request elsewhere."),
        row("respond", Kind::Table(Id::Respond), Words("none"), "Answer every request with a fixed text."),
        row("request_headers", Kind::Table(Id::Edits), Words("no edits"), "Edits of the request's fields, for all routes that have none of their own."),
        row("response_headers", Kind::Table(Id::Edits), Words("no edits"), "Edits of the answer's fields, for all routes that have none of their own."),
        row("security_headers", SECURITY_KIND, Value(r#""off""#), "Fields that make browsers more careful, for all routes that say nothing else."),
        row("hsts", Kind::ShortOr(HSTS_SHORT, Id::Hsts), Value(r#""off""#), "Tell browsers to keep to HTTPS, step by step. What a backend says about it stays."),
        row("cors", CORS_KIND, Value(r#""off""#), "Whose pages may use the site from another origin."),
        row("auth", AUTH_KIND, Value(r#""off""#), "Who may come in, for all routes that say nothing else."),
        row("route", Kind::Tables(Id::Route, ROUTES_MAX), Words("none"), "Parts of the site that go elsewhere or obey other rules."),
    ],
};

pub(super) const BACKENDS: Kind = Kind::ShortOrTables(BACKEND_SHORT, Id::Backend, NAMES_MAX, false);
const BALANCE: Kind = Kind::ShortOr(service::BALANCE_SHORT, Id::Balance);
const SPLIT: Kind = Kind::Tables(Id::Split, service::BRANCHES_MAX);
const RETRY: Kind = Kind::ShortOr("\"off\"", Id::Retry);
const CAPACITY: Kind = Kind::ShortOr("\"off\"", Id::Capacity);
const BREAKER: Kind = Kind::ShortOr("\"off\"", Id::Breaker);
const SECURITY_KIND: Kind = Kind::ShortOr(SECURITY_SHORT, Id::Security);
const CORS_KIND: Kind = Kind::ShortOr(CORS_SHORT, Id::Cors);
const AUTH_KIND: Kind = Kind::ShortOr(AUTH_SHORT, Id::Auth);
const PATCHES: Kind = Kind::ShortOr("\"off\"", Id::SitePatches);
const LIMIT_KIND: Kind = Kind::ShortOrTables(LIMIT_SHORT, Id::Limit, LIMITS_MAX, true);

#[rustfmt::skip]
pub(super) static ROUTE: Section = Section {
    id: Id::Route,
    title: "[[site.\"…\".route]]",
    doc: "A part of a site. What a route does not say, the site says for it.",
    settings: &[
        row("path", Kind::Text(2_048), Value(r#""/""#), "`\"/api/\"`: this path and everything below it; `\"=/exact\"`: only this path; `\"~^/v[0-9]+/\"`: a regular expression."),
        row("methods", Kind::Texts(32), Words("all"), "Methods, in capitals."),
        row("headers", Kind::Conditions(32), Words("none"), "Conditions on header fields; all must hold."),
        row("query", Kind::Conditions(32), Words("none"), "Conditions on query parameters; all must hold."),
        row("backends", BACKENDS, Words("the site's"), "Where requests go."),
        row("split", SPLIT, Words("the site's, where the route has no `backends` of its own"), "Shares of the requests that go to other backends."),
        row("split_by", Kind::Text(256), Value(r#""request""#), "What keeps a client on its side of `split`."),
        row("balance", BALANCE, Words("the site's, as a whole"), "How a backend is chosen."),
        row("slow_start", Kind::Duration(0, HOUR), Words("the site's"), "Time in which a backend that is new or back gets to its whole share."),
        row("health", Kind::ShortOr(HEALTH_SHORT, Id::Health), Words("the site's"), "Active health check of each backend."),
        row("eject", Kind::ShortOr(EJECT_SHORT, Id::Eject), Words("the site's, as a whole"), "What takes a backend out that fails requests."),
        row("panic", Kind::PercentOr("off", 1, 100), Words("the site's"), "Share of backends in good standing below which all are used."),
        row("addresses", Kind::Table(Id::Addresses), Words("all that the site lets in"), "Which client addresses are let in, of those that the site lets in."),
        row("countries", Kind::Table(Id::Countries), Words("all that the site lets in"), "From which countries clients are let in, of those that the site lets in."),
        row("limit", LIMIT_KIND, Words("none"), "Rate limits of this route, besides the site's."),
        row("bandwidth", Kind::Table(Id::Bandwidth), Words("any"), "Bytes in a second of this route, besides the site's."),
        row("max_body", Kind::SizeOr("unlimited", 0, TIB), Words("the site's"), "Largest request body (413)."),
        row("timeout", Kind::Duration(1, DAY), Words("the site's"), "From the request sent to the first byte of the backend's answer (504)."),
        row("connect_timeout", Kind::Duration(1, HOUR), Words("the site's"), "Connecting to a backend."),
        row("upstream", Kind::Table(Id::Upstream), Words("the site's, as a whole"), "How to speak to the backends: TLS, HTTP/2, PROXY protocol."),
        row("retry", RETRY, Words("the site's, as a whole"), "What is sent to another backend when one fails, and how much of it."),
        row("capacity", CAPACITY, Words("the site's, as a whole"), "Requests in flight at the backends of this route; what is more waits in a queue of its own."),
        row("breaker", BREAKER, Words("the site's, as a whole"), "When most requests fail, answer 503 at once and try again now and then."),
        row("redirect", Kind::ShortOr(REDIRECT_SHORT, Id::Redirect), Words("the site's"), "Send the client elsewhere."),
        row("respond", Kind::Table(Id::Respond), Words("the site's"), "Answer with a fixed text."),
        row("upgrade", Kind::Texts(UPGRADES_MAX), Words("the site's"), "Protocols a client may change to; `[]` is none."),
        row("strip", Kind::Flag, Value("false"), "Remove the route's prefix from the path before it is sent on."),
        row("rewrite", Kind::Text(2_048), Words("none"), "Replaces the route's prefix (or exact path) before it is sent on; with a regular expression, the whole path, and `$1` is its first group."),
        row("request_headers", Kind::Table(Id::Edits), Words("the site's, as a whole"), "Edits of the request's fields."),
        row("response_headers", Kind::Table(Id::Edits), Words("the site's, as a whole"), "Edits of the answer's fields."),
        row("security_headers", SECURITY_KIND, Words("the site's, as a whole"), "Fields that make browsers more careful."),
        row("cors", CORS_KIND, Words("the site's, as a whole"), "Whose pages may use the route from another origin; with `methods`, name `OPTIONS` among them."),
        row("auth", AUTH_KIND, Words("the site's, as a whole"), "Who may come in; `\"off\"`: everybody."),
    ],
};
