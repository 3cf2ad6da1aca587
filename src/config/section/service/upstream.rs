//! `upstream`: how to speak to the backends.

use std::path::PathBuf;

use super::{Shared, Target, split};
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{InternalTrust, Located, Upstream};
use crate::config::parse::{Context, Table, Value, literal};
use crate::config::section::{host, protocol, tls};
use crate::config::setting::{Id, Setting};

/// Reads `upstream`.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Upstream>,
) -> Located<Upstream> {
    let print = |upstream: &Upstream| {
        let mut parts = Vec::new();
        if let Some(file) = &upstream.ca_file {
            parts.push(format!("ca_file = {}, ", literal(&file.value.to_string_lossy())));
        }
        if let Some(name) = &upstream.server_name {
            parts.push(format!("server_name = {}, ", literal(&name.value)));
        }
        if let Some((cert, key)) = &upstream.identity {
            let (cert, key) = (cert.value.to_string_lossy(), key.value.to_string_lossy());
            parts.push(format!("cert = {}, key = {}, ", literal(&cert), literal(&key)));
        }
        match upstream.internal_ca {
            InternalTrust::Off => {}
            InternalTrust::Trust => parts.push("internal_ca = \"trust\", ".into()),
            InternalTrust::Mutual => parts.push("internal_ca = \"mutual\", ".into()),
        }
        let protocols = protocol::print(upstream.http, upstream.proxy_protocol);
        format!("{{ {}{protocols} }}", parts.concat())
    };
    context.value(
        table,
        "upstream",
        inherited,
        |context, setting, value| context.silent(|context| read_upstream(context, setting, value)),
        print,
    )
}

fn read_upstream(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Upstream> {
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Upstream, String::new(), Some(entries), value.span());
    let (http, proxy_protocol) = protocol::of_upstream(context, &table);
    let ca_file = table.get("ca_file").and_then(|(setting, value)| located_path(context, setting, value));
    let server_name = table.get("server_name").and_then(|(setting, value)| {
        let text = context.text(setting, value)?;
        match host::pattern(text) {
            Ok(crate::config::model::HostPattern::Exact(name)) => {
                Some(Located { value: name.to_string(), origin: context.origin(value.span()) })
            }
            Ok(_) => {
                context.error("invalid-host", value.span(), "`server_name` has a `*`", "write one full name");
                None
            }
            Err((message, help)) => {
                context.error("invalid-host", value.span(), format!("`server_name`: {message}"), help);
                None
            }
        }
    });
    let identity = tls::upstream_identity(context, &table);
    let internal_ca = match context.word(&table, "internal_ca", None).value {
        "trust" => InternalTrust::Trust,
        "mutual" => InternalTrust::Mutual,
        _ => InternalTrust::Off,
    };
    let mut exclude = |said: &str, excluded: bool, help: &str| {
        if excluded && table.has(said) {
            let message = format!("`{said}` and `internal_ca` exclude each other");
            context.error("conflict", table.span_of(said), message, help);
        }
    };
    let trusts = internal_ca != InternalTrust::Off;
    exclude("ca_file", trusts, "one authority signs the backends: keep one of them");
    exclude("cert", internal_ca == InternalTrust::Mutual, "say \"trust\" to show a certificate of your own");
    Some(Upstream { ca_file, server_name, identity, internal_ca, http, proxy_protocol })
}

/// Reads a path to a file that is watched from now on.
pub fn located_path(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Located<PathBuf>> {
    let path = context.read_path(setting, value)?;
    context.files.push(path.clone());
    Some(Located { value: path, origin: context.origin(value.span()) })
}

/// TLS settings beside backends that are all plain do nothing: somebody believes in an encryption that is not there.
pub(super) fn warn_of_unused(context: &mut Context<'_>, table: &Table<'_>, shared: &Shared) {
    let Some(Target::Backends { written, sources }) = shared.target.as_ref().map(|target| &target.value)
    else {
        return;
    };
    let upstream = &shared.toward.upstream.value;
    let said = upstream.ca_file.is_some()
        || upstream.server_name.is_some()
        || upstream.identity.is_some()
        || upstream.internal_ca != InternalTrust::Off;
    if said
        && table.has("upstream")
        && table.has("backends")
        && !written.iter().any(|backend| backend.value.tls)
        && !sources.iter().any(|found| found.value.tls)
        && !shared.branches().any(split::Branch::speaks_tls)
    {
        let origin = context.origin(table.span_of("upstream"));
        let warning = Diagnostic::warning(
            "unused",
            &origin,
            "`upstream` says how to speak TLS, but no backend here is reached by TLS",
        )
        .help("write the backends with `https://` to encrypt, or remove the TLS settings");
        context.report(warning);
    }
}
