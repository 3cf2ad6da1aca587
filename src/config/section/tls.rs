//! TLS with clients: `[server.tls]`, and a site's `tls` with its `client_auth`. And what is said about the certificate
//! shown to backends, and about backends that are reached without TLS.

use std::path::PathBuf;

use super::service::located_path;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{
    Backend, ClientAuth, Discover, Forward, Located, Origin, Server, Tls, TlsDefaults, TlsVersion,
};
use crate::config::parse::{Context, Table, literal};
use crate::config::setting::Id;

/// Reads `[server.tls]`.
pub fn of_server(context: &mut Context<'_>, server: &Table<'_>) -> TlsDefaults {
    let table = context.table(server, "tls", Id::ServerTls);
    let profile = context.word(&table, "profile", None);
    let min_version = min_version(context, &table, &profile, None);
    TlsDefaults { profile: profile.value, min_version }
}

/// Reads `tls` of a site; `None` where its `client_auth` has errors.
pub fn of_site(context: &mut Context<'_>, site: &Table<'_>, server: &Server) -> Option<Tls> {
    let table = context.table(site, "tls", Id::Tls);
    let inherited = Located { value: server.tls.profile, origin: Origin::Default };
    let profile = context.word(&table, "profile", Some(&inherited));
    let min_version = min_version(context, &table, &profile, Some(&server.tls));
    let min = if min_version == "1.3" { TlsVersion::V13 } else { TlsVersion::V12 };
    let client_auth = match table.has("client_auth") {
        true => Some(client_auth(context, &table)?),
        false => None,
    };
    if client_auth.is_some() {
        check_encrypted(context, site, &table, server);
    }
    Some(Tls { min, client_auth })
}

/// What is said, else what follows from the profile that is said, else what is inherited.
fn min_version(
    context: &mut Context<'_>,
    table: &Table<'_>,
    profile: &Located<&'static str>,
    inherited: Option<&TlsDefaults>,
) -> &'static str {
    let of_profile = if profile.value == "modern" { "1.3" } else { "1.2" };
    let fallback = match inherited {
        Some(inherited) if !table.has("profile") => {
            Located { value: inherited.min_version, origin: Origin::Default }
        }
        _ => Located { value: of_profile, origin: profile.origin.clone() },
    };
    let version = context.word(table, "min_version", Some(&fallback)).value;
    if profile.value == "modern" && version == "1.2" {
        let message = "`min_version = \"1.2\"` contradicts the profile `modern`, which is TLS 1.3 alone";
        let help = "leave `min_version` out, or write profile = \"intermediate\"";
        context.error("conflict", table.span_of("min_version"), message, help);
    }
    version
}

fn client_auth(context: &mut Context<'_>, tls: &Table<'_>) -> Option<ClientAuth> {
    let (setting, value) = tls.get("client_auth")?;
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let key = context.below(tls, "client_auth");
    let table = context.open(Id::ClientAuth, key, Some(entries), value.span());
    let ca_file = file(context, &table, "ca_file");
    if !table.has("ca_file") {
        context.missing(&table, "ca_file");
    }
    let crl_file = file(context, &table, "crl_file");
    let required = context.word(&table, "mode", None).value == "require";
    let expired = context.word(&table, "expired_crl", None).value;
    if table.has("expired_crl") && !table.has("crl_file") {
        let help = "remove it, or name the file of revocation lists in `crl_file`";
        let message = "`expired_crl` has no meaning without `crl_file`";
        context.error("conflict", table.span_of("expired_crl"), message, help);
    }
    let forward = context.word(&table, "forward", None).value;
    let forward = Forward {
        identity: matches!(forward, "identity" | "all"),
        certificate: matches!(forward, "certificate" | "all"),
    };
    Some(ClientAuth {
        ca_file: ca_file?,
        crl_file,
        required,
        accept_expired_crl: expired == "accept",
        forward,
    })
}

/// Reads the path of a file, which is watched from then on.
pub(super) fn file(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Option<Located<PathBuf>> {
    let (setting, value) = table.get(name)?;
    let file = located_path(context, setting, value)?;
    context.record(table, name, &file.origin, || literal(&file.value.to_string_lossy()));
    Some(file)
}

/// Who asks clients for certificates means every request: there must be no way in beside TLS.
fn check_encrypted(context: &mut Context<'_>, site: &Table<'_>, tls: &Table<'_>, server: &Server) {
    let plain = site.get("plain_http").and_then(|(_, value)| value.get_ref().as_bool());
    if plain == Some(true) {
        let message = "`plain_http` and `client_auth` exclude each other: over plain HTTP no client shows a certificate";
        let help = "remove `plain_http`: plain HTTP is then redirected to HTTPS";
        context.error("conflict", site.span_of("plain_http"), message, help);
    }
    if server.https.is_empty() {
        let message = "`client_auth` needs an HTTPS listener, and `https` in [server] is empty";
        let help = "give [server] https an address, like [\"0.0.0.0:443\"]";
        context.error("conflict", tls.span_of("client_auth"), message, help);
    }
}

/// `cert` and `key` of `upstream`: both or neither.
pub fn upstream_identity(
    context: &mut Context<'_>,
    table: &Table<'_>,
) -> Option<(Located<PathBuf>, Located<PathBuf>)> {
    let mut file = |name: &str| match table.get(name) {
        Some((setting, value)) => located_path(context, setting, value),
        None => None,
    };
    let (cert, key) = (file("cert"), file("key"));
    for (said, missing) in [("cert", "key"), ("key", "cert")] {
        if table.has(said) && !table.has(missing) {
            let message = format!("`{said}` is there without `{missing}`");
            let help = format!("add `{missing}`: a certificate and its private key go together");
            context.error("missing", table.span_of(said), message, help);
        }
    }
    cert.zip(key)
}

/// Refuses backends whose bytes would leave the machine in plain text. Loopback is exempt by address alone: where a
/// name such as `localhost` leads is decided elsewhere.
pub fn refuse_plaintext(
    context: &mut Context<'_>,
    backends: &[Located<Backend>],
    sources: &[Located<Discover>],
) {
    for Located { value: found, origin } in sources.iter().filter(|found| !found.value.tls) {
        let message = format!(
            "what {} finds is reached in plain text, and `require_encrypted_backends` is on",
            found.source
        );
        let help = format!("write {{ address = \"{}\", tls = true }}", found.source);
        context.report(Diagnostic::error("plaintext-backend", origin, message).help(help));
    }
    for Located { value: backend, origin } in backends.iter().filter(|backend| !backend.value.tls) {
        if backend.address.is_loopback() {
            continue;
        }
        let message = format!(
            "the backend {} is reached in plain text, and `require_encrypted_backends` is on",
            backend.address
        );
        let help = "write it with `https://`; its certificate is checked, so name the authority in `upstream = { ca_file = \"ca.pem\" }` if it is your own. Only addresses of this machine (127.0.0.0/8, [::1]) may stay plain";
        context.report(Diagnostic::error("plaintext-backend", origin, message).help(help));
    }
}
