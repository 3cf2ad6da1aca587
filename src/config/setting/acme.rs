//! The settings of `[acme]` and of what stands in it.

use super::Fallback::{Required, Value, Words};
use super::{Id, Kind, Section, row};

/// Certificate authorities asked one after the other.
pub const DIRECTORIES_MAX: usize = 4;
/// Names of one automatic certificate: what Let's Encrypt signs at once.
pub const ACME_NAMES_MAX: usize = 100;

/// Names and suffixes that one site allows on demand.
pub const ALLOW_MAX: usize = 10_000;

/// Keys that are accepted for reading, beside the one in force.
pub const FORMER_KEYS_MAX: usize = 8;

const DIRECTORY_SHORT: &str =
    "\"letsencrypt\", \"letsencrypt-staging\", \"zerossl\" or the https:// address of an ACME directory";

#[rustfmt::skip]
pub(super) static ACME: Section = Section {
    id: Id::Acme,
    title: "[acme]",
    doc: "Certificates that get and keep themselves. With this section, every site whose names a public authority would sign has one, unless it says `certificate` or `certificates`. By writing it you accept the terms of the authorities you name. How to begin: certificates.md.",
    settings: &[
        row("email", Kind::Text(320), Required, "Where the authority may write to about your account."),
        row("directory", Kind::ShortOrTables(DIRECTORY_SHORT, Id::Directory, DIRECTORIES_MAX, true), Value(r#""letsencrypt""#), "Who signs. With several, the next one is asked when one fails again and again."),
        row("challenges", Kind::Texts(8), Value(r#"["tls-alpn-01", "http-01"]"#), "How control over a name is proven, in order of preference: `\"tls-alpn-01\"` needs port 443, `\"http-01\"` port 80, as the public reaches them; `\"dns-01\"` needs `[acme.dns]`. Wildcards are always proven by `\"dns-01\"`, whatever stands here."),
        row("dns", Kind::Table(Id::Dns), Words("no `dns-01`, and so no wildcards"), "Who writes TXT records for the challenge `\"dns-01\"`."),
        row("ca_file", Kind::Path, Words("the system's roots alone"), "PEM file of one more root to trust when talking to the directory (an authority of your own), or to the API of `[acme.dns]`."),
        row("profile", Kind::Text(64), Words("the authority's default"), "Profile asked for where the authority offers it, such as `\"shortlived\"`."),
        row("orders", Kind::Count(1, 100_000), Value("300"), "Orders in three hours for each account: Let's Encrypt refuses more than 300."),
        row("concurrent", Kind::Count(1, 100), Value("4"), "Orders in flight at once."),
        row("engine", Kind::Word(&["auto", "simple", "managed"]), Value(r#""auto""#), "Which engine orders: `\"simple\"` is rustls-acme, for one authority and common names; `\"managed\"` is instant-acme and can do everything; `\"auto\"` takes the simple one where it can do all that is asked for. `tidegate certs` shows which."),
        row("staging", Kind::Text(2_048), Value(r#""auto""#), "Where a certificate that failed twice in a row is tried first; the real authority is asked again when it worked there. `\"auto\"`: Let's Encrypt's staging for Let's Encrypt. `\"off\"`, or the address of an ACME directory."),
        row("store_key", Kind::Table(Id::StoreKey), Words("none: records are stored as they are"), "Encrypts accounts, certificates and keys in the state folder. What is there already is encrypted when this is first said; taking it away again is refused while anything is encrypted. How to make, rotate and leave it: certificates.md."),
    ],
};

const KEY_FILE: &str = "File with the key: 32 random bytes as base64 or hexadecimal digits (`openssl rand -base64 32`), mode 0600.";
const KEY_ENV: &str = "Environment variable with the key, instead of a file.";

#[rustfmt::skip]
pub(super) static STORE_KEY: Section = Section {
    id: Id::StoreKey,
    title: "store_key = { file = \"…\" }",
    doc: "The key that the certificate store is encrypted with: a file or an environment variable, not both.",
    settings: &[
        row("file", Kind::Path, Words("none"), KEY_FILE),
        row("env", Kind::Text(256), Words("none"), KEY_ENV),
        row("previous", Kind::Tables(Id::FormerKey, FORMER_KEYS_MAX), Words("none"), "Former keys. They only read; what they encrypted is encrypted anew with the key in force."),
    ],
};

#[rustfmt::skip]
pub(super) static FORMER_KEY: Section = Section {
    id: Id::FormerKey,
    title: "previous = [{ file = \"…\" }]",
    doc: "A former key: a file or an environment variable.",
    settings: &[
        row("file", Kind::Path, Words("none"), "File with the key."),
        row("env", Kind::Text(256), Words("none"), "Environment variable with the key."),
    ],
};

#[rustfmt::skip]
pub(super) static DIRECTORY: Section = Section {
    id: Id::Directory,
    title: "{ url = \"…\", … }",
    doc: "One certificate authority, in the long form.",
    settings: &[
        row("url", Kind::Text(2_048), Required, "`\"letsencrypt\"`, `\"letsencrypt-staging\"`, `\"zerossl\"` or the address of an ACME directory."),
        row("eab_id", Kind::Text(1_024), Words("none"), "Key identifier of an external account binding, where the authority asks for one (ZeroSSL does)."),
        row("eab_key", Kind::Text(1_024), Words("none"), "Its MAC key as the authority shows it (base64url). `config show` does not print it."),
    ],
};

#[rustfmt::skip]
pub(super) static ON_DEMAND: Section = Section {
    id: Id::OnDemand,
    title: "on_demand = { … }",
    doc: "Names that no site has among its hosts, allowed by the list or by an answer: their certificate is ordered at their first handshake, which waits for it, and renewed as long as somebody asks for them. certificates.md says what keeps strangers from using this up.",
    settings: &[
        row("allow", Kind::Texts(ALLOW_MAX), Value("[]"), "Names allowed: `\"shop.de\"`; `\"*.customers.example\"` for one more label; `\".customers.example\"` for every name below it, at any depth. The longest suffix decides whose a name is."),
        row("ask", Kind::Text(2_048), Words("nobody"), "Asked about every name that no list has: GET with `?domain=NAME`; 200 is yes, 4xx is no, anything else is not now. `http://` only to an address of this machine or a private network. One site alone may have it."),
        row("orders", Kind::Text(64), Value(r#""60 per 1h""#), "First orders for new names of this site. Half of them may come at once."),
    ],
};
