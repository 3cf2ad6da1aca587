//! A program of the operator: `COMMAND present NAME VALUE`, afterwards `COMMAND cleanup NAME VALUE`.
//!
//! It gets the environment of this process and no input. Exit status 0 is success; otherwise the last line that it wrote
//! to standard error is shown. It runs in a process group of its own, which is ended with the deadline.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::{Calling, Provider, Ticket, Txt, trouble};
use crate::base::unit::print_duration;
use crate::config::model;
use crate::tls::acme::issuer::IssueError;

/// What is kept of standard error: its end.
const ERRORS_BYTES_MAX: usize = 4 << 10;
/// Characters of its last line that are shown.
const LINE_MAX: usize = 300;

const MEND: &str = "Run the command of [acme.dns] by hand to see what it says.";

/// The program.
pub(super) struct Exec {
    settings: model::Exec,
}

impl Exec {
    pub(super) fn new(settings: &model::Exec) -> Exec {
        Exec { settings: settings.clone() }
    }

    async fn call(&self, what: &'static str, record: &Txt) -> Result<(), IssueError> {
        let program = self.settings.command.display();
        let mut command = Command::new(&self.settings.command);
        command.args([what, &record.plain(), &record.value]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let started = command.spawn();
        let mut child = started.map_err(|error| {
            let text = format!("{program} cannot be started: {error}.");
            trouble(
                text,
                "Check `command` in [acme.dns]: the file must exist and be executable for this process.",
            )
        })?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let ended = tokio::time::timeout(self.settings.timeout, end(&mut child)).await;
        let Ok(ended) = ended else {
            drop(group);
            let text =
                format!("{program} {what} did not end within {}.", print_duration(self.settings.timeout));
            return Err(trouble(text, "Raise `timeout` in [acme.dns], or mend the command."));
        };
        // What a program that ended by itself has left running is its own affair.
        group.0 = None;
        let (status, errors) = ended
            .map_err(|error| trouble(format!("{program} {what} cannot be waited for: {error}."), MEND))?;
        if status.success() {
            return Ok(());
        }
        let line = last_line(&errors);
        let said = if line.is_empty() { "without a word".to_owned() } else { format!("and said: {line}") };
        Err(trouble(format!("{program} {what} ended with {} {said}.", ending(status)), MEND))
    }
}

impl Provider for Exec {
    fn present<'a>(&'a self, record: &'a Txt) -> Calling<'a, Option<Ticket>> {
        Box::pin(async move { self.call("present", record).await.map(|()| None) })
    }

    fn cleanup<'a>(&'a self, record: &'a Txt) -> Calling<'a, ()> {
        Box::pin(self.call("cleanup", record))
    }
}

/// Ends the program and what it started.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that nobody is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Waits for the program's end; reads its errors meanwhile, so that it never waits for us.
async fn end(child: &mut Child) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let errors = child.stderr.take();
    let reading = async {
        match errors {
            Some(errors) => tail(errors).await,
            None => Vec::new(),
        }
    };
    tokio::pin!(reading);
    let mut read = None;
    loop {
        tokio::select! {
            errors = &mut reading, if read.is_none() => read = Some(errors),
            status = child.wait() => {
                // What it left running may hold the pipe open: what has come until now is enough.
                let errors = match read {
                    Some(errors) => errors,
                    None => tokio::time::timeout(std::time::Duration::from_millis(100), reading)
                        .await
                        .unwrap_or_default(),
                };
                return Ok((status?, errors));
            }
        }
    }
}

/// Reads to the end and keeps the last bytes.
async fn tail(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        kept.extend_from_slice(buffer.get(..length).unwrap_or_default());
        let surplus = kept.len().saturating_sub(ERRORS_BYTES_MAX);
        kept.drain(..surplus);
    }
    kept
}

fn last_line(errors: &[u8]) -> String {
    let text = String::from_utf8_lossy(errors);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|character| !character.is_control()).take(LINE_MAX).collect()
}

fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "no exit status".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::net::dns as lookup;

    fn run(script: &str, timeout: Duration) -> (Result<(), IssueError>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let command = folder.path().join("hook");
        std::fs::write(&command, format!("#!/bin/sh\ncd {}\n{script}\n", folder.path().display())).unwrap();
        std::fs::set_permissions(&command, std::fs::Permissions::from_mode(0o755)).unwrap();
        let record = Txt { name: lookup::name("_acme-challenge.shop.de").unwrap(), value: Arc::from("v1") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let exec = Exec::new(&model::Exec { command, timeout });
        // Another test that forks just now may hold the file open for a moment.
        loop {
            let result = runtime.block_on(exec.call("present", &record));
            if !result.as_ref().is_err_and(|error| error.message.contains("Text file busy")) {
                return (result, folder);
            }
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn the_program_is_told_what_to_do_and_its_success_believed() {
        let (result, folder) = run("printf '%s\\n' \"$@\" > told", LONG);
        result.unwrap();
        let told = std::fs::read_to_string(folder.path().join("told")).unwrap();
        assert_eq!(told, "present\n_acme-challenge.shop.de\nv1\n");
    }

    #[test]
    fn a_failure_shows_the_exit_status_and_the_last_line() {
        let (result, _folder) = run("echo one >&2; echo 'no such zone' >&2; echo >&2; exit 3", LONG);
        let text = result.unwrap_err().to_string();
        assert!(text.contains("exit status 3") && text.contains("said: no such zone."), "{text}");
        let (result, _folder) = run("kill -9 $$", LONG);
        assert!(result.unwrap_err().to_string().contains("signal 9 without a word"));
    }

    #[test]
    fn one_that_does_not_end_is_ended_with_its_children() {
        let (result, folder) = run("sleep 600 & echo $! > child; wait", Duration::from_millis(500));
        assert!(result.unwrap_err().to_string().contains("did not end within"));
        let child = std::fs::read_to_string(folder.path().join("child")).unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        let gone = |stat: String| stat.is_empty() || stat.contains(") Z ");
        let start = std::time::SystemTime::now();
        while !gone(stat()) {
            assert!(start.elapsed().unwrap() < LONG, "{}", stat());
            std::thread::yield_now();
        }
    }

    #[test]
    fn one_that_writes_without_end_fills_no_memory_and_one_that_is_missing_is_told() {
        let (result, _folder) = run("head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1", LONG);
        assert!(result.unwrap_err().message.len() < 1_000);
        let exec = Exec::new(&model::Exec { command: "/nowhere/hook".into(), timeout: LONG });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let record = Txt { name: lookup::name("a.de").unwrap(), value: Arc::from("v") };
        let text = runtime.block_on(exec.call("cleanup", &record)).unwrap_err().to_string();
        assert!(text.contains("/nowhere/hook cannot be started"), "{text}");
    }
}
