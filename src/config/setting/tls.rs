//! The settings of TLS with clients: `[server.tls]`, and a site's `tls` with its `client_auth`.

use super::Fallback::{Required, Value, Words};
use super::{Id, Kind, Section, row};

const PROFILES: Kind = Kind::Word(&["modern", "intermediate"]);
const VERSIONS: Kind = Kind::Word(&["1.2", "1.3"]);

#[rustfmt::skip]
pub(super) static SERVER_TLS: Section = Section {
    id: Id::ServerTls,
    title: "[server.tls]",
    doc: "Versions of TLS for sites that say nothing else. Whatever is said, there is no TLS 1.1, no renegotiation, no compression and no cipher without forward secrecy.",
    settings: &[
        row("profile", PROFILES, Value(r#""intermediate""#), "`\"modern\"`: TLS 1.3 alone; `\"intermediate\"`: TLS 1.2 too, with AEAD ciphers."),
        row("min_version", VERSIONS, Words("the profile's"), "The lowest version spoken."),
    ],
};

#[rustfmt::skip]
pub(super) static TLS: Section = Section {
    id: Id::Tls,
    title: "tls = { … }",
    doc: "How a site speaks TLS with its clients. A connection may carry requests for several sites only where both have the same certificate and the same `tls` (else 421).",
    settings: &[
        row("profile", PROFILES, Words("the server's"), "`\"modern\"`: TLS 1.3 alone; `\"intermediate\"`: TLS 1.2 too, with AEAD ciphers."),
        row("min_version", VERSIONS, Words("the profile's; without one, the server's"), "The lowest version spoken."),
        row("client_auth", Kind::Table(Id::ClientAuth), Words("none: clients are not asked for a certificate"), "Clients show a certificate. Such a site is never served over plain HTTP."),
    ],
};

#[rustfmt::skip]
pub(super) static CLIENT_AUTH: Section = Section {
    id: Id::ClientAuth,
    title: "client_auth = { … }",
    doc: "Certificates of clients: who signs them, which are revoked, what the backend hears about them. Both files are watched.",
    settings: &[
        row("ca_file", Kind::Path, Required, "PEM file of the authorities that sign clients."),
        row("crl_file", Kind::Path, Words("none: nothing is revoked"), "File of revocation lists, PEM or DER. Each authority in a client's chain needs one there, or the client is refused."),
        row("mode", Kind::Word(&["require", "optional"]), Value(r#""require""#), "`\"optional\"` serves clients without a certificate too; one that does not verify is refused in both modes."),
        row("expired_crl", Kind::Word(&["refuse", "accept"]), Value(r#""refuse""#), "What happens when a revocation list is past its date: its authority's clients are refused, or the old list goes on counting."),
        row("forward", Kind::Word(&["identity", "certificate", "all", "none"]), Value(r#""identity""#), "What the backend is told: `X-Client-Cert-Subject`, `-Issuer`, `-Serial`, `-Fingerprint` and `-SAN`; or the certificate itself in `Client-Cert` and `Client-Cert-Chain` (RFC 9440). Clients' own fields of these names are always removed."),
    ],
};
