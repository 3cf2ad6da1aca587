//! The settings of who may come in.

use super::Fallback::{Required, Value, Words};
use super::policy::MODE;
use super::{DAY, HOUR, Id, Kind, SECOND, Section, row};

/// What `auth` may be in the short form.
pub(super) const AUTH_SHORT: &str = "\"off\"";
/// What of a certificate may name the user.
const CERT_FIELDS: &[&str] = &["cn", "subject", "dns", "email", "uri", "fingerprint"];
/// Users that stand in the configuration itself.
const USERS_MAX: usize = 1_000;

#[rustfmt::skip]
pub(super) static AUTH: Section = Section {
    id: Id::Auth,
    title: "auth = { … }",
    doc: "Who may come in. One way to show it is said, or several with `any`. A route replaces its site's `auth` as a whole; `auth = \"off\"` opens it. See docs/identity.md.",
    settings: &[
        row("basic", Kind::Table(Id::Basic), Words("none"), "By a name and a password."),
        row("forward", Kind::Table(Id::Forward), Words("none"), "By the answer of another service (forward auth)."),
        row("jwt", Kind::Table(Id::Jwt), Words("none"), "By a signed token."),
        row("client_cert", Kind::Table(Id::CertUser), Words("none"), "By the certificate that the client proved to hold; needs `tls.client_auth`."),
        row("any", Kind::Flag, Value("false"), "Several ways are said, and any of them will do: they are asked in the order client_cert, jwt, basic, forward, and the first that succeeds counts."),
        MODE,
        row("identity_header", Kind::Text(128), Words("none"), "Field in which the backend hears who it is. What a client sends under this name, or one that looks like it, never reaches a backend of the tenant."),
        row("pass_authorization", Kind::Flag, Words("`false` with `basic`, else `true`"), "Whether the backend gets `Authorization`."),
    ],
};

#[rustfmt::skip]
pub(super) static BASIC: Section = Section {
    id: Id::Basic,
    title: "basic = { … }",
    doc: "Names and passwords (RFC 7617). Hashes are bcrypt (`$2y$`, `$2b$`, `$2a$`) or argon2 (`$argon2id$`); `tidegate hash-password` makes such lines. They are computed on threads of their own, never on a worker.",
    settings: &[
        row("file", Kind::Path, Words("none"), "File of lines `name:hash`, as `htpasswd -B` writes it; read again when it changes."),
        row("users", Kind::Texts(USERS_MAX), Words("none"), "The same lines, in the configuration itself."),
        row("realm", Kind::Text(128), Words("the site's name"), "What browsers show beside the question for the password."),
        row("remember", Kind::Duration(0, DAY), Value(r#""5m""#), "How long a password that was right is not checked again; `\"0s\"`: it always is. A changed hash ends it at once."),
    ],
};

#[rustfmt::skip]
pub(super) static CERT_USER: Section = Section {
    id: Id::CertUser,
    title: "client_cert = { … }",
    doc: "The user by a client certificate that `tls.client_auth` has found good.",
    settings: &[
        row("from", Kind::Word(CERT_FIELDS), Required, "What names the user: the common name, the whole subject (RFC 4514), the first alternative name of a kind, or the SHA-256 of the certificate in hexadecimal."),
        row("users", Kind::Pairs(USERS_MAX), Words("everybody with a good certificate"), "Only these may come in: what the certificate says, and the user that it stands for."),
    ],
};

#[rustfmt::skip]
pub(super) static JWT: Section = Section {
    id: Id::Jwt,
    title: "jwt = { … }",
    doc: "Signed tokens (RFC 7519) in `Authorization: Bearer` or in a cookie. A token must have `exp`, an issuer and an audience that are listed, and a signature by a key that fits one of the `algorithms`.",
    settings: &[
        row("jwks_url", Kind::Text(2_048), Words("one of three must be said"), "Where the issuer publishes its keys: an `https://` address, fetched by the control plane, again when a token names a key that is not known, but once in 30 s at most."),
        row("jwks_file", Kind::Path, Words("one of three must be said"), "File with a JWK set (RFC 7517)."),
        row("key_file", Kind::Path, Words("one of three must be said"), "PEM file with one public key."),
        row("ca_file", Kind::Path, Words("the system's authorities"), "jwks_url: PEM file with one more authority."),
        row("refresh", Kind::Duration(10 * SECOND, 7 * DAY), Value(r#""10m""#), "jwks_url: time between two questions. Keys that were fetched stay until others are."),
        row("algorithms", Kind::Texts(9), Words("`[\"RS256\", \"ES256\", \"EdDSA\"]`"), "Signatures taken: RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA. There are no others: none without a signature, none with a shared secret."),
        row("issuer", Kind::Texts(16), Required, "Who may have issued it (`iss`)."),
        row("audience", Kind::Texts(16), Required, "Whom it must be for (`aud`), one of these; `[]`: anybody."),
        row("leeway", Kind::Duration(0, HOUR), Value(r#""30s""#), "How far the clocks of issuer and Tidegate may be apart."),
        row("user", Kind::Text(128), Value(r#""sub""#), "The claim that names the user."),
        row("require", Kind::Pairs(16), Words("nothing more"), "Claims, and what each must say: be this text, or have it in its list or among its words (403)."),
        row("cookie", Kind::Text(128), Words("none"), "Cookie that may hold the token, where `Authorization` has none."),
        row("realm", Kind::Text(128), Words("the site's name"), "What the challenge names."),
    ],
};

#[rustfmt::skip]
pub(super) static FORWARD: Section = Section {
    id: Id::Forward,
    title: "forward = { … }",
    doc: "Another service says who a client is. It is asked with `GET`, the fields of the request without its body, and `X-Forwarded-Method`, `-Uri`, `-Host`, `-Proto` and `-For`. 2xx: come in; 401, 403 and redirects: its answer is the client's; anything else, and nothing in time: 503.",
    settings: &[
        row("url", Kind::Text(2_048), Required, "Who is asked, like `\"http://127.0.0.1:9091/api/verify\"`."),
        row("ca_file", Kind::Path, Words("the system's authorities"), "PEM file of the authority that signed it."),
        row("user", Kind::Text(128), Words("the user has no name here"), "Field of its answer that names the user; an answer without it lets nobody in."),
        row("copy", Kind::Texts(16), Words("none"), "Fields of its answer that the backend gets. What clients send under these names never reaches a backend."),
        row("timeout", Kind::Duration(10, HOUR), Value(r#""2s""#), "From connecting to the end of its answer."),
        row("in_flight", Kind::Count(1, 100_000), Value("256"), "Questions at once; more requests are answered with 503."),
        row("cache", Kind::Duration(0, HOUR), Value(r#""0s""#), "How long a 2xx answer is used again for requests that agree in everything of `cache_by`; refusals never are. Whoever signs out stays in for so long."),
        row("cache_by", Kind::Texts(16), Words(r#"`["authorization", "cookie", "client-ip", "method", "path"]`"#), "What an answer depends on, beside the host: names of fields, `client-ip`, `method`, `path` (with the query). Leave out only what the service does not look at."),
        row("set_cookies", Kind::Texts(16), Words("none"), "Cookies of a 2xx answer that the client gets, by their names; `\"session_*\"`: all that begin so."),
    ],
};
