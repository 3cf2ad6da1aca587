//! `[acme]`: who signs automatic certificates, and what is asked of them.

use std::sync::Arc;

use super::dns;
use super::server::texts;
use super::store_key;
use crate::config::model::{
    Acme, AcmeEngine, ChallengeKind, Directory, Eab, Located, Origin, Server, Staging,
};
use crate::config::parse::{Context, Table, Value, literal, literals, nearest, quoted};
use crate::config::setting::{Id, Setting};

/// Authorities known by a word: the word, the address of the directory, whether it wants an external account binding.
const KNOWN: &[(&str, &str, bool)] = &[
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory", false),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory", false),
    ("zerossl", "https://acme.zerossl.com/v2/DV90", true),
];

/// Challenges and their words.
const CHALLENGES: &[(&str, ChallengeKind)] = &[
    ("tls-alpn-01", ChallengeKind::TlsAlpn01),
    ("http-01", ChallengeKind::Http01),
    ("dns-01", ChallengeKind::Dns01),
];

/// Reads the section; `None` where it is absent.
pub fn read(context: &mut Context<'_>, file: &Table<'_>) -> Option<Acme> {
    // Absent, it has no values in force to show.
    if !file.has("acme") {
        return None;
    }
    let table = context.table(file, "acme", Id::Acme);
    let email = email(context, &table);
    let directories = directories(context, &table);
    let challenges = challenges(context, &table);
    let dns = dns::read(context, &table);
    let ca_file = ca_file(context, &table);
    let profile = profile(context, &table);
    let orders_per_3h = u32::try_from(context.count(&table, "orders")).unwrap_or(u32::MAX);
    let concurrent = usize::try_from(context.count(&table, "concurrent")).unwrap_or(1);
    let engine = engine(context, &table);
    let staging = staging(context, &table);
    let store_key = store_key::read(context, &table);
    let acme = Acme {
        directories,
        email,
        ca_file,
        challenges,
        orders_per_3h,
        concurrent,
        profile,
        engine,
        staging,
        dns,
        store_key,
    };
    if let (AcmeEngine::Simple, Some((setting, because))) = (engine, acme.needs_managed()) {
        let message = format!("the simple engine cannot do what `{setting}` asks for: {because}");
        let help = format!("remove `engine`: the managed one is then taken; or change `{setting}`");
        context.error("conflict", table.span_of("engine"), message, help);
    }
    Some(acme)
}

/// What the listeners must offer so that a challenge can be answered.
pub fn check(context: &mut Context<'_>, file: &Table<'_>, server: &Server) {
    let Some(acme) = &server.acme else { return };
    let possible = |kind: &ChallengeKind| match kind {
        ChallengeKind::TlsAlpn01 => !server.https.is_empty(),
        ChallengeKind::Http01 => !server.http.is_empty(),
        ChallengeKind::Dns01 => true,
    };
    if context.errors > 0 || acme.challenges.iter().any(possible) {
        return;
    }
    let table = context.silent(|context| context.table(file, "acme", Id::Acme));
    let message = "no challenge can be answered: there is no listener for any of `challenges`";
    let help =
        "give `https` an address for \"tls-alpn-01\", or `http` one for \"http-01\"; \"dns-01\" needs none";
    context.error("conflict", table.span_of("challenges"), message, help);
}

fn engine(context: &mut Context<'_>, table: &Table<'_>) -> AcmeEngine {
    match context.word(table, "engine", None).value {
        "simple" => AcmeEngine::Simple,
        "managed" => AcmeEngine::Managed,
        _ => AcmeEngine::Auto,
    }
}

fn staging(context: &mut Context<'_>, table: &Table<'_>) -> Staging {
    let fallback = Located { value: Staging::Auto, origin: Origin::Default };
    let print = |staging: &Staging| match staging {
        Staging::Auto => literal("auto"),
        Staging::Off => literal("off"),
        Staging::At(directory) => literal(&word_of(directory)),
    };
    context.value(table, "staging", &fallback, read_staging, print).value
}

fn read_staging(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Staging> {
    match context.text(setting, value)? {
        "auto" => Some(Staging::Auto),
        "off" => Some(Staging::Off),
        text => match named(text, None) {
            Some(directory) => Some(Staging::At(directory)),
            None => {
                let message = format!("`staging` cannot be `{}`", quoted(text));
                let help = "write \"auto\", \"off\", or the https:// address of an ACME directory";
                context.error("invalid-value", value.span(), message, help);
                None
            }
        },
    }
}

fn email(context: &mut Context<'_>, table: &Table<'_>) -> Option<String> {
    if !table.has("email") {
        context.missing(table, "email");
        return None;
    }
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let text = context.text(setting, value)?;
        // Not a grammar of addresses: what would not arrive, or would break the header it is put in.
        let parts = text.split_once('@');
        let whole = parts.is_some_and(|(name, host)| {
            !name.is_empty() && host.contains('.') && !host.contains('@') && !host.starts_with('.')
        });
        if !whole || text.contains(':') || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            let message = format!("`email`: `{}` is not an address", quoted(text));
            context.error("invalid-value", value.span(), message, "write one, like \"ops@shop.de\"");
            return None;
        }
        Some(Some(text.to_owned()))
    };
    let print = |email: &Option<String>| literal(email.as_deref().unwrap_or_default());
    context.value(table, "email", &fallback, read, print).value
}

fn directories(context: &mut Context<'_>, table: &Table<'_>) -> Vec<Directory> {
    let default = named(table.default_text("directory"), None).into_iter().collect();
    let fallback = Located { value: default, origin: Origin::Default };
    context.value(table, "directory", &fallback, read_directories, |list| print_directories(list)).value
}

fn read_directories(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Vec<Directory>> {
    let found: Vec<Directory> = if value.get_ref().is_array() {
        let entries = context.array(setting, value)?;
        entries.iter().filter_map(|entry| directory(context, setting, entry)).collect()
    } else {
        directory(context, setting, value).into_iter().collect()
    };
    if value.get_ref().as_array().is_some_and(|entries| entries.is_empty()) {
        let help = "name at least one, or remove `directory`: it then is \"letsencrypt\"";
        context.error("missing", value.span(), "`directory` is empty", help);
        return None;
    }
    let twice =
        found.iter().enumerate().find(|(at, one)| found.iter().take(*at).any(|two| two.url == one.url));
    if let Some((_, twice)) = twice {
        let message = format!("the directory `{}` is there twice", quoted(&twice.name));
        context.error("duplicate", value.span(), message, "keep one of them");
    }
    Some(found)
}

/// One directory: a text, or a table.
fn directory(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Directory> {
    if let Some(text) = value.get_ref().as_str() {
        return directory_of(context, value, text, None);
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    context.silent(|context| {
        let table = context.open(Id::Directory, String::new(), Some(entries), value.span());
        let Some((setting, url)) = table.get("url") else {
            context.missing(&table, "url");
            return None;
        };
        let text = context.text(setting, url)?;
        let id = table.get("eab_id").and_then(|(setting, value)| context.text(setting, value));
        let key = table.get("eab_key").and_then(|(setting, value)| context.text(setting, value));
        let eab = match (id, key) {
            (Some(id), Some(key)) => {
                if !is_base64url(key) {
                    let help = "write it as the authority shows it: letters, digits, `-` and `_`";
                    context.error(
                        "invalid-value",
                        table.span_of("eab_key"),
                        "`eab_key` is not base64url",
                        help,
                    );
                    return None;
                }
                Some(Eab { id: id.to_owned(), hmac: key.to_owned() })
            }
            (None, None) => None,
            (Some(_), None) => {
                context.missing(&table, "eab_key");
                return None;
            }
            (None, Some(_)) => {
                context.missing(&table, "eab_id");
                return None;
            }
        };
        directory_of(context, url, text, eab)
    })
}

fn is_base64url(text: &str) -> bool {
    let digits = text.trim_end_matches('=');
    !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn directory_of(
    context: &mut Context<'_>,
    value: &Value<'_>,
    text: &str,
    eab: Option<Eab>,
) -> Option<Directory> {
    let Some(directory) = named(text, eab) else {
        let message = format!("`{}` is not an ACME directory", quoted(text));
        let words: Vec<&str> = KNOWN.iter().map(|(word, ..)| *word).collect();
        let near = nearest(text, &words).map(|word| format!("did you mean \"{word}\"? ")).unwrap_or_default();
        let help = format!("{near}write \"{}\", or the https:// address of one", words.join("\", \""));
        context.error("invalid-value", value.span(), message, help);
        return None;
    };
    let wants_eab = KNOWN.iter().any(|(_, url, wants)| **url == *directory.url && *wants);
    if wants_eab && directory.eab.is_none() {
        let message = format!("`{}` needs an external account binding", directory.name);
        let help = format!(
            "make one on the authority's web site and write {{ url = \"{}\", eab_id = \"…\", eab_key = \"…\" }}",
            directory.name
        );
        context.error("missing", value.span(), message, help);
        return None;
    }
    Some(directory)
}

/// A directory by its word or address.
fn named(text: &str, eab: Option<Eab>) -> Option<Directory> {
    if let Some((word, url, _)) = KNOWN.iter().find(|(word, url, _)| *word == text || *url == text) {
        return Some(Directory { name: Arc::from(*word), url: Arc::from(*url), eab });
    }
    let url = http::Uri::try_from(text).ok()?;
    let host = url.authority().filter(|_| url.scheme_str() == Some("https"))?;
    // The account is kept by this name: two authorities on one host are told apart by their path.
    let name = if url.path() == "/" { host.to_string() } else { format!("{host}{}", url.path()) };
    Some(Directory { name: Arc::from(name), url: Arc::from(text), eab })
}

/// How a directory is written: by its word, if it has one.
fn word_of(directory: &Directory) -> String {
    let known = KNOWN.iter().any(|(word, ..)| **word == *directory.name);
    if known { directory.name.to_string() } else { directory.url.to_string() }
}

fn print_directories(directories: &[Directory]) -> String {
    let print = |directory: &Directory| match &directory.eab {
        None => literal(&word_of(directory)),
        // The key is a secret.
        Some(eab) => format!(
            "{{ url = {}, eab_id = {}, eab_key = \"…\" }}",
            literal(&word_of(directory)),
            literal(&eab.id)
        ),
    };
    format!("[{}]", directories.iter().map(print).collect::<Vec<_>>().join(", "))
}

fn challenges(context: &mut Context<'_>, table: &Table<'_>) -> Vec<ChallengeKind> {
    let fallback = vec![ChallengeKind::TlsAlpn01, ChallengeKind::Http01];
    let fallback = Located { value: fallback, origin: Origin::Default };
    let said =
        context.value(table, "challenges", &fallback, read_challenges, |list| print_challenges(list)).value;
    if said.contains(&ChallengeKind::Dns01) && !table.has("dns") {
        let message = "the challenge `dns-01` needs the section `[acme.dns]`";
        let help = "write [acme.dns] with provider = \"rfc2136\", \"cloudflare\", \"route53\" or \"exec\", or remove \"dns-01\"";
        context.error("missing", table.span_of("challenges"), message, help);
    }
    said
}

fn read_challenges(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Vec<ChallengeKind>> {
    let legal = "write \"tls-alpn-01\", \"http-01\" or \"dns-01\"";
    let mut seen: Vec<ChallengeKind> = Vec::new();
    texts(context, setting, value, |context, entry, text| {
        let found = CHALLENGES.iter().find(|(word, _)| *word == text).map(|(_, kind)| *kind);
        match found {
            Some(kind) if seen.contains(&kind) => {
                context.error(
                    "duplicate",
                    entry.span(),
                    format!("`{text}` is there twice"),
                    "keep one of them",
                );
            }
            Some(kind) => seen.push(kind),
            None => {
                let message = format!("`{}` is not a challenge", quoted(text));
                context.error("invalid-value", entry.span(), message, legal);
            }
        }
        Some(())
    })?;
    if value.get_ref().as_array().is_some_and(|entries| entries.is_empty()) {
        context.error("missing", value.span(), "`challenges` is empty", legal);
    }
    Some(seen)
}

fn print_challenges(kinds: &[ChallengeKind]) -> String {
    let words = CHALLENGES.iter();
    literals(kinds.iter().filter_map(|kind| words.clone().find(|(_, k)| k == kind).map(|(word, _)| *word)))
}

fn ca_file(context: &mut Context<'_>, table: &Table<'_>) -> Option<std::path::PathBuf> {
    let (setting, value) = table.get("ca_file")?;
    let path = context.read_path(setting, value)?;
    // Watched like every file that is named: a renewed root is taken over.
    context.files.push(path.clone());
    let origin = context.origin(value.span());
    context.record(table, "ca_file", &origin, || literal(&path.to_string_lossy()));
    Some(path)
}

fn profile(context: &mut Context<'_>, table: &Table<'_>) -> Option<String> {
    let (setting, value) = table.get("profile")?;
    let text = context.text(setting, value)?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.is_empty() || !text.bytes().all(legal) {
        let message = format!("`profile` cannot be `{}`", quoted(text));
        context.error(
            "invalid-value",
            value.span(),
            message,
            "write the word the authority documents, like \"shortlived\"",
        );
        return None;
    }
    let origin = context.origin(value.span());
    context.record(table, "profile", &origin, || literal(text));
    Some(text.to_owned())
}

/// Whether a directory belongs to an authority that signs public names only.
pub fn is_public(directory: &Directory) -> bool {
    KNOWN.iter().any(|(_, url, _)| **url == *directory.url)
}
