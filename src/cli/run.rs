//! `tidegate run`: the process log first, then everything else; on standard output what a newcomer needs to know.

use std::fmt::Write;
use std::path::Path;

use super::{EXIT_OK, wire};
use crate::server::Started;

pub(super) fn run(config: &Path) -> Result<u8, String> {
    let _flush = crate::telemetry::log::init(None)?;
    wire::serve(config, |started| {
        // Standard output may be closed already; that is no reason not to serve.
        if !started.problems.is_empty() {
            let _ = write_all(&mut std::io::stderr(), &format!("{}\n\n", started.problems.trim_end()));
        }
        let _ = write_all(&mut std::io::stdout(), &banner(config, started));
    })?;
    Ok(EXIT_OK)
}

fn write_all(to: &mut impl std::io::Write, text: &str) -> std::io::Result<()> {
    to.write_all(text.as_bytes())
}

/// What listens where, where the CA is, a line to try; the last line begins with `ready`.
fn banner(config: &Path, started: &Started) -> String {
    let mut text = format!("tidegate {}, configuration {}\n", env!("CARGO_PKG_VERSION"), config.display());
    for listener in &started.listeners {
        let (scheme, path) = match listener.kind {
            "https" => ("https://", ""),
            "metrics" => ("http://", "/metrics"),
            "admin" => ("", ""),
            _ => ("http://", ""),
        };
        let _ = writeln!(text, "  {:<8} {scheme}{}{path}", listener.kind, listener.address);
    }
    if let Some(ca) = &started.ca {
        let _ = writeln!(text, "  {:<8} {}", "ca", ca.display());
    }
    if let Some(line) = example(started) {
        let _ = writeln!(text, "\ntry it:\n  {line}\n");
    }
    text.push_str("ready\n");
    text
}

/// A `curl` line that works as printed.
fn example(started: &Started) -> Option<String> {
    let (host, ca) = (started.example.as_ref()?, started.ca.as_ref()?);
    let https = started.listeners.iter().find(|listener| listener.kind == "https")?;
    let address: std::net::SocketAddr = https.address.parse().ok()?;
    let port = address.port();
    // A listener on all addresses answers on loopback too.
    let ip = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let resolve = if host == "localhost" && ip == "127.0.0.1" {
        String::new()
    } else {
        format!(" --resolve {host}:{port}:{ip}")
    };
    Some(format!("curl --cacert {}{resolve} https://{host}:{port}/", ca.display()))
}
