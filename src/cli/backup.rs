//! `tidegate certs export` and `certs import`: a whole certificate store in one encrypted file.
//!
//! Both work on the state folder itself, with the process running or stopped. An import tells a running process to take
//! over what came.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::table::{Ink, Paint, Table, count};
use super::{ConfigFile, EXIT_OK, EXIT_PROBLEM, Format, Output, client, colour, print, print_json, wire};
use crate::base::clock;
use crate::config::model::KeySource;
use crate::tls::acme::backup::{self, Backup, Line, Outcome};
use crate::tls::acme::store::key::{Purpose, SealKey};
use crate::tls::acme::store::seal::{Ring, Sealed};
use crate::tls::acme::store::{FolderStore, Kind};
use crate::tls::file;

/// Where the key of a backup is, when no file is named.
const KEY_VARIABLE: &str = "TIDEGATE_BACKUP_KEY";
/// Rows shown; the JSON has all.
const ROWS_MAX: usize = 50;

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The file to write; `-` is standard output
    file: PathBuf,
    /// File with the key of the backup: 32 random bytes as base64 or hex [default: the variable TIDEGATE_BACKUP_KEY]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The file to read; `-` is standard input
    file: PathBuf,
    /// File with the key of the backup: 32 random bytes as base64 or hex [default: the variable TIDEGATE_BACKUP_KEY]
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Replace also what is newer here, and other accounts
    #[arg(long)]
    force: bool,
    /// Say what would happen, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

/// Exits with 1 when a record could not be read: the backup is then good, but not whole.
pub(super) fn export(asked: Export) -> Result<u8, String> {
    let key = key(asked.key_file)?;
    let standard = asked.file == Path::new("-");
    if standard && std::io::stdout().is_terminal() {
        return Err("a backup is no text: send standard output into a file or a program".into());
    }
    if !standard && !asked.force && asked.file.symlink_metadata().is_ok() {
        return Err(format!("{} is there already: name another file, or say --force", asked.file.display()));
    }
    let place = wire::store_place(&asked.config.path()?)?;
    let absent = || format!("there is no certificate store in {}", place.state.display());
    let folder = FolderStore::existing(&place.state).map_err(|e| e.to_string())?.ok_or_else(absent)?;
    let store = Sealed::new(Arc::new(folder), Ring::read(place.key.as_ref())?);
    let (records, unreadable) = backup::gather(&store).map_err(|e| e.to_string())?;
    if records.is_empty() && unreadable.is_empty() {
        return Err(format!("the certificate store in {} is empty", place.state.display()));
    }
    let bytes = backup::pack(&records, &key, clock::wall().as_secs())?;
    let shown = if standard { "standard output".to_owned() } else { asked.file.display().to_string() };
    let written = match standard {
        true => std::io::stdout().lock().write_all(&bytes).and_then(|()| std::io::stdout().flush()),
        false => file::write_atomic(&asked.file, &bytes, 0o600),
    };
    written.map_err(|error| format!("{shown} cannot be written: {error}"))?;
    let of = |kind: Kind| records.iter().filter(|record| record.key.kind == kind).count();
    let report = match asked.output.format {
        Format::Json => {
            let kinds = Kind::ALL.map(|kind| (kind.word().to_owned(), Value::from(of(kind))));
            let records = Value::Object(kinds.into_iter().collect());
            let report =
                json!({ "file": shown, "key": key.id(), "records": records, "unreadable": unreadable });
            format!("{report:#}\n")
        }
        Format::Human => {
            let parts = Kind::ALL.map(|kind| count(of(kind), kind.word()));
            let mut text =
                format!("{} written to {shown}, encrypted with the key {}\n", parts.join(", "), key.id());
            unreadable.iter().for_each(|why| text += &format!("  left out: {why}\n"));
            text
        }
    };
    // Standard output is the backup then.
    match standard {
        true => drop(std::io::stderr().lock().write_all(report.as_bytes())),
        false => print(&report),
    }
    Ok(if unreadable.is_empty() { EXIT_OK } else { EXIT_PROBLEM })
}

/// Exits with 1 when something was left that a person should look at, or was not taken over by the running process.
pub(super) fn import(asked: Import) -> Result<u8, String> {
    let key = key(asked.key_file)?;
    let bytes = read(&asked.file)?;
    let found = backup::unpack(&bytes, &key)?;
    let place = wire::store_place(&asked.config.path()?)?;
    let ring = Ring::read(place.key.as_ref())?;
    let folder = match asked.dry_run {
        true => FolderStore::existing(&place.state),
        false => {
            own(&place.state)?;
            FolderStore::open(&place.state).map(Some)
        }
    };
    let folder = folder.map_err(|error| error.to_string())?;
    let mut stopped = None;
    let lines = match folder {
        None => backup::all_new(&found),
        Some(folder) => {
            let store = Sealed::new(Arc::new(folder), ring);
            store.check_keys(&Kind::ALL).map_err(|error| error.to_string())?;
            match backup::import(&store, &found, asked.force, asked.dry_run) {
                Ok(lines) => lines,
                Err((lines, error)) => {
                    stopped = Some(error.to_string());
                    lines
                }
            }
        }
    };
    let taken = lines.iter().any(|line| line.outcome.is_taken());
    let process = match taken && !asked.dry_run && client::is_there(&place.socket) {
        true => Some(client::ask(&place.socket, Method::POST, "/certs/reread", client::RELOAD_TIME_MAX)),
        false => None,
    };
    let result = Imported { found, lines, stopped, process, dry: asked.dry_run };
    match asked.output.format {
        Format::Json => print_json(&result.to_json()),
        Format::Human => print(&result.render(Paint(colour()))),
    }
    Ok(if result.is_well() { EXIT_OK } else { EXIT_PROBLEM })
}

/// What an import did.
struct Imported {
    found: Backup,
    lines: Vec<Line>,
    /// Why it ended early.
    stopped: Option<String>,
    /// What the running process said; `None`: there is none, or it was not asked.
    process: Option<Result<Value, String>>,
    dry: bool,
}

impl Imported {
    fn refused(&self) -> Vec<String> {
        match &self.process {
            Some(Ok(answer)) => {
                let refused = answer.get("refused").and_then(Value::as_array);
                refused.into_iter().flatten().filter_map(|why| why.as_str().map(str::to_owned)).collect()
            }
            Some(Err(why)) => vec![why.clone()],
            None => Vec::new(),
        }
    }

    fn is_well(&self) -> bool {
        self.stopped.is_none()
            && self.refused().is_empty()
            && !self.lines.iter().any(|l| l.outcome.is_trouble())
    }

    fn to_json(&self) -> Value {
        json!({
            "created": self.found.created,
            "dry_run": self.dry,
            "complete": self.stopped.is_none(),
            "stopped": self.stopped,
            "records": self.lines,
            "process": self.process.as_ref().map(|answer| match answer {
                Ok(answer) => answer.clone(),
                Err(why) => json!({ "error": why }),
            }),
        })
    }

    fn render(&self, paint: Paint) -> String {
        let mut lines: Vec<&Line> = self.lines.iter().collect();
        lines.sort_by_key(|line| (!line.outcome.is_trouble(), line.outcome.is_taken()));
        let mut table = Table::new(&["RECORD", "NAME", "WHAT", "WHY"]);
        for line in lines.iter().take(ROWS_MAX) {
            let ink = match line.outcome {
                outcome if outcome.is_trouble() => Ink::Red,
                outcome if outcome.is_taken() => Ink::Green,
                _ => Ink::Dim,
            };
            table.row([
                (Ink::Plain, line.kind.to_owned()),
                (Ink::Plain, line.name.clone()),
                (ink, word(line.outcome, self.dry).to_owned()),
                (Ink::Plain, line.why.clone()),
            ]);
        }
        if lines.len() > ROWS_MAX {
            table.text(Ink::Dim, &format!("… and {} more (--format json shows all)", lines.len() - ROWS_MAX));
        }
        let taken = self.lines.iter().filter(|line| line.outcome.is_taken()).count();
        let would = if self.dry { "would be taken" } else { "taken" };
        let title = format!("{} in the backup, {taken} {would}", count(self.found.records.len(), "record"));
        let mut text = format!("{}\n{}", paint.paint(Ink::Bold, &title), table.render(paint));
        if let Some(why) = &self.stopped {
            text += &format!("stopped: {why}\nWhat stands above is done; mend that and import again.\n");
        }
        match &self.process {
            Some(Ok(answer)) => {
                let sites = answer.get("taken").and_then(Value::as_array).map_or(0, Vec::len);
                text += &format!("the running process took over {}\n", count(sites, "certificate"));
                if answer.get("open").and_then(Value::as_bool) == Some(false) {
                    text += "automatic certificates are off there: the process log says why\n";
                }
            }
            None if !self.dry && taken > 0 => {
                text += "no process is running here: the next start takes them over\n";
            }
            _ => {}
        }
        for why in self.refused() {
            text += &format!("not taken over: {why}\n");
        }
        text
    }
}

fn word(outcome: Outcome, dry: bool) -> &'static str {
    match (outcome, dry) {
        (Outcome::Added, false) => "added",
        (Outcome::Added, true) => "would be added",
        (Outcome::Replaced, false) => "replaced",
        (Outcome::Replaced, true) => "would be replaced",
        (Outcome::Same, _) => "the same",
        (Outcome::NewerHere, _) => "newer here",
        (Outcome::KeptHere, _) => "kept",
        (Outcome::OtherAccount, _) => "other account",
        (Outcome::Busy, _) => "busy",
    }
}

fn key(path: Option<PathBuf>) -> Result<SealKey, String> {
    let source = match path {
        Some(path) => KeySource::File(path),
        None if std::env::var_os(KEY_VARIABLE).is_some() => KeySource::Env(KEY_VARIABLE.to_owned()),
        None => {
            return Err(format!(
                "a backup is always encrypted: name a key with --key-file FILE, or set {KEY_VARIABLE}. To make one: \
                 (umask 077; openssl rand -base64 32 > backup.key); keep it apart from the backups"
            ));
        }
    };
    SealKey::read(&source, Purpose::Backups)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    if path != Path::new("-") {
        return file::read_bounded(path, backup::BYTES_MAX)
            .map_err(|error| format!("the backup {shown} cannot be read: {error}"));
    }
    let most = u64::try_from(backup::BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Zeroizing::new(Vec::new());
    let read = std::io::stdin().lock().take(most).read_to_end(&mut bytes);
    match read {
        Ok(length) if length > backup::BYTES_MAX => Err("standard input has more than any backup".into()),
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("standard input cannot be read: {error}")),
    }
}

/// What we write must be readable for the process, which runs as the owner of the state folder.
fn own(state: &Path) -> Result<(), String> {
    let Ok(metadata) = state.metadata() else { return Ok(()) };
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(format!(
        "the state folder {} belongs to the user with the number {}: what another user writes there, that one could not \
         read. Run the import as that user: `sudo -u '#{}' tidegate certs import …`",
        state.display(),
        metadata.uid(),
        metadata.uid()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imported(
        outcomes: &[Outcome],
        stopped: Option<&str>,
        process: Option<Result<Value, String>>,
    ) -> Imported {
        let line = |(number, outcome): (usize, &Outcome)| Line {
            kind: "certificate",
            name: format!("s{number}.test"),
            outcome: *outcome,
            why: "because".into(),
        };
        let lines = outcomes.iter().enumerate().map(line).collect();
        let found = Backup { created: 1, records: Vec::new() };
        Imported { found, lines, stopped: stopped.map(str::to_owned), process, dry: false }
    }

    #[test]
    fn what_needs_a_person_stands_first_and_is_an_exit_code() {
        use Outcome::{Added, Busy, NewerHere, OtherAccount, Same};
        for (outcomes, well) in [
            (&[Added, Same, NewerHere][..], true),
            (&[], true),
            (&[Added, OtherAccount], false),
            (&[Busy], false),
        ] {
            assert_eq!(imported(outcomes, None, None).is_well(), well, "{outcomes:?}");
        }
        assert!(!imported(&[Added], Some("disk full"), None).is_well());
        let refusing = json!({ "open": true, "taken": [], "refused": ["it is expired"] });
        assert!(!imported(&[Added], None, Some(Ok(refusing))).is_well());
        assert!(!imported(&[Added], None, Some(Err("it hangs".into()))).is_well());
        let page = imported(&[Added, OtherAccount], Some("disk full"), None).render(Paint(false));
        let at = |needle: &str| page.find(needle).unwrap_or_else(|| panic!("no {needle} in\n{page}"));
        assert!(at("other account") < at("added") && at("added") < at("stopped: disk full"), "{page}");
        assert!(page.contains("the next start takes them over"), "{page}");
    }
}
