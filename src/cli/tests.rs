//! The command line, and talks with a real admin socket.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;

use clap::CommandFactory;
use http::Method;
use serde_json::json;

use super::*;
use crate::admin;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
    for good in [
        "tidegate run",
        "tidegate run --config a.toml",
        "tidegate",
        "tidegate check --format json",
        "tidegate reload --socket a.sock",
        "tidegate status --site a.example",
        "tidegate certs export backup.tdg --key-file backup.key --force",
        "tidegate certs export - --config a.toml",
        "tidegate certs import - --dry-run --format json",
        "tidegate suggest shop.example --for 5m --json",
        "tidegate privacy --config a.toml --json",
        "tidegate privacy --socket a.sock --format json",
        "tidegate suggest --end --format json",
        "tidegate config show --effective --origin",
        "tidegate hash-password --user ann --bcrypt --cost 10",
    ] {
        assert!(parse(good).is_ok(), "{good}");
    }
}

#[test]
fn wrong_lines_exit_with_2_and_help_with_0() {
    for bad in [
        "tidegate suggest a --end",
        "tidegate suggest --json --format json",
        "tidegate fly",
        "tidegate status --format xml",
        "tidegate status --config a --socket b",
    ] {
        let error = parse(bad).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(EXIT_USAGE), "{bad}");
    }
    assert_eq!(parse("tidegate --help").map(|_| ()).unwrap_err().exit_code(), i32::from(EXIT_OK));
}

#[test]
fn options_before_a_command_of_certs_are_not_silently_those_of_another() {
    for line in ["tidegate certs --config a.toml renew x", "tidegate certs --format json plan"] {
        assert_eq!(parse(line).map(|_| ()).unwrap_err().exit_code(), i32::from(EXIT_USAGE), "{line}");
    }
    assert!(parse("tidegate certs --events --config a.toml").is_ok());
}

struct Fake;

impl admin::Backend for Fake {
    fn ban(&self, net: String, time: std::time::Duration, why: String) -> admin::Told {
        Box::pin(async move { Ok(json!({ "net": net, "for_seconds": time.as_secs(), "why": why })) })
    }

    fn unban(&self, net: String) -> admin::Told {
        Box::pin(async move { Ok(json!({ "net": net, "ended": 1 })) })
    }

    fn bans(&self) -> Value {
        json!({ "bans": [], "in_file": 0, "given_way": 0 })
    }

    fn status(&self) -> Value {
        json!({ "version": "0.1.0", "sites": [] })
    }

    fn reload(&self) -> Pin<Box<dyn Future<Output = Value>>> {
        Box::pin(async { json!({ "generation": 2, "changed": true, "quarantined": ["b.example"] }) })
    }

    fn config(&self) -> Value {
        json!([])
    }

    fn certificates(&self) -> Value {
        json!({ "certificates": [{ "site": "b.example", "state": "failed", "last_error": "no A record" }] })
    }

    fn patches(&self) -> Value {
        json!({})
    }

    fn certificate_events(&self) -> Value {
        json!({ "events": [{ "at": 1, "event": "failed", "site": "b.example", "message": "no A record" }] })
    }

    fn certificate_plan(&self) -> Pin<Box<dyn Future<Output = Value>>> {
        Box::pin(async { Value::Null })
    }

    fn renew(&self, site: &str) -> Result<(), String> {
        if site == "b.example" { Ok(()) } else { Err(format!("there is no site `{site}`")) }
    }

    fn deploy(&self, order: admin::Deploy) -> Pin<Box<dyn Future<Output = Result<u64, String>>>> {
        let known = order.what == "a.example";
        let why = format!("no site is called `{}`", order.what);
        Box::pin(async move { if known { Ok(7) } else { Err(why) } })
    }

    fn deployments(&self) -> Value {
        json!([{ "id": 7, "source": "a", "over": true, "phase": "done", "endpoints": [], "replaced": [] }])
    }

    fn observe(&self, site: Option<&str>, time: std::time::Duration) -> Result<Value, String> {
        if site == Some("b.example") {
            return Err("somebody watches already".into());
        }
        Ok(json!({ "id": 1, "seconds": time.as_secs(), "sites": 1 }))
    }

    fn observation(&self) -> Value {
        json!({ "running": true, "id": 1, "seconds": 1, "elapsed_seconds": 1, "over": true, "requests": 7 })
    }

    fn end_observation(&self) -> Pin<Box<dyn Future<Output = Result<Value, String>>>> {
        Box::pin(async { Ok(json!({ "seconds": 1, "sites": [], "silent_sites": 1 })) })
    }

    fn issue(&self, names: &str, valid: std::time::Duration) -> Result<Value, String> {
        Ok(json!({ "names": names, "valid": valid.as_secs() }))
    }

    fn reread(&self) -> Pin<Box<dyn Future<Output = Value>>> {
        Box::pin(async { json!({ "open": true, "taken": ["a.example"], "refused": [] }) })
    }
}

/// Serves a fake backend on the socket for as long as the test runs.
fn serve(socket: &Path) {
    let listener = admin::bind(socket).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, admin::serve(listener, Rc::new(Fake))).unwrap();
    });
}

#[test]
fn commands_talk_to_the_admin_socket_and_their_exit_code_says_how_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    serve(&socket);
    assert_eq!(status::status(&socket, Format::Json, None), Ok(EXIT_OK));
    assert_eq!(config_show::show(&socket, Format::Human, true, true), Ok(EXIT_OK));
    assert_eq!(reload::reload(&socket, Format::Human), Ok(EXIT_PROBLEM), "a site was quarantined");
    assert_eq!(certs::list_all(&socket, Format::Human), Ok(EXIT_PROBLEM), "a certificate failed");
    assert_eq!(certs::plan(&socket, Format::Human), Ok(EXIT_OK));
    assert_eq!(certs::renew(&socket, Format::Human, "b.example"), Ok(EXIT_OK));
    let refused = certs::renew(&socket, Format::Human, "c.example").unwrap_err();
    assert!(refused.contains("no site `c.example`"), "{refused}");
    let refused = client::ask(&socket, Method::GET, "/nothing", client::ANSWER_TIME_MAX).unwrap_err();
    assert!(refused.contains("404") && refused.contains("GET /status"), "{refused}");
}

#[test]
fn nobody_there_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let ask = || client::ask(&socket, Method::GET, "/status", client::ANSWER_TIME_MAX).unwrap_err();
    let missing = ask();
    assert!(missing.contains("no Tidegate is running") && missing.contains("--socket"), "{missing}");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(ask().contains("no Tidegate is running"), "a stale socket file reads the same");
}

#[test]
fn one_that_never_answers_and_one_that_talks_nonsense_end_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let silent = dir.path().join("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let error =
        client::ask(&silent, Method::GET, "/status", std::time::Duration::from_millis(20)).unwrap_err();
    assert!(error.contains("did not answer") && error.contains("20ms"), "{error}");

    let rude = dir.path().join("rude.sock");
    let listener = std::os::unix::net::UnixListener::bind(&rude).unwrap();
    let talker = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut stream, b"SSH-2.0-hello\r\n\r\n").unwrap();
    });
    let error = client::ask(&rude, Method::GET, "/status", client::ANSWER_TIME_MAX).unwrap_err();
    assert!(error.contains("broke off"), "{error}");
    talker.join().unwrap();
}
