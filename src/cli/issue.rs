//! `tidegate certs issue`: a short-lived certificate of the internal CA for an endpoint inside.

use std::path::{Path, PathBuf};

use clap::Args;
use http::Method;
use serde_json::json;

use super::table::{number, text};
use super::{EXIT_OK, Format, Output, Target, client, print, print_json};
use crate::base::clock;
use crate::base::unit::parse_duration;
use crate::config::section::host;
use crate::tls::file;

#[derive(Debug, Args)]
pub(super) struct Issue {
    /// Host names and IP addresses it is for
    #[arg(required = true)]
    names: Vec<String>,
    /// How long it is valid, 90 days at most
    #[arg(long, value_name = "TIME", default_value = "24h")]
    valid: String,
    /// Folder that cert.pem, key.pem and ca.pem are written into
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn issue(asked: Issue) -> Result<u8, String> {
    let valid = parse_duration(&asked.valid).map_err(|why| format!("--valid: {why}"))?;
    for name in &asked.names {
        // Also keeps everything out that a query would have to encode.
        host::pattern(name).map_err(|(message, help)| format!("{message}: {help}"))?;
    }
    std::fs::create_dir_all(&asked.out)
        .map_err(|error| format!("the folder {} cannot be made: {error}", asked.out.display()))?;
    let path = format!("/certs/issue?names={}&valid={}", asked.names.join(","), valid.as_secs());
    let answer = client::ask(&asked.target.socket()?, Method::POST, &path, client::ANSWER_TIME_MAX)?;
    // The key first: who waits for the certificate then finds its key.
    write(&asked.out, "key.pem", text(&answer, "key"), 0o600)?;
    write(&asked.out, "ca.pem", text(&answer, "authority"), 0o644)?;
    write(&asked.out, "cert.pem", text(&answer, "certificate"), 0o644)?;
    let not_after = number(&answer, "not_after");
    match asked.output.format {
        Format::Json => print_json(&json!({
            "names": asked.names, "not_after": not_after, "folder": asked.out.display().to_string(),
        })),
        Format::Human => {
            let hours = not_after.saturating_sub(clock::wall().as_secs()) / 3600;
            let folder = asked.out.display();
            print(&format!(
                "{}: {folder}/cert.pem and key.pem, valid for {hours} h; clients trust {folder}/ca.pem\n",
                asked.names.join(", ")
            ));
        }
    }
    Ok(EXIT_OK)
}

fn write(folder: &Path, name: &str, text: &str, mode: u32) -> Result<(), String> {
    let path = folder.join(name);
    file::write_atomic(&path, text.as_bytes(), mode)
        .map_err(|error| format!("{} cannot be written: {error}", path.display()))
}
