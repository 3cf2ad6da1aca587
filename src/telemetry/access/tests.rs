//! Records on real files and pipes.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use super::*;
use crate::base::outcome::Outcome;
use crate::base::policy::{Marks, PolicyKind};

fn record() -> Record<'static> {
    Record {
        wall_ms: 951_782_400_042,
        request_id: "00000000000000000000000000000abc",
        client: "192.0.2.77".parse().unwrap(),
        site: "shop.example",
        route: "/api/",
        service: "shop.example//api/#canary",
        method: "GET",
        host: "shop.example",
        path: "/api/cart",
        query: Some("token=secret"),
        version: http::Version::HTTP_2,
        tls: "1.3",
        client_cert: "c0ffee",
        client_subject: "CN=ann",
        status: 200,
        outcome: Outcome::Served,
        bytes_in: 3,
        bytes_out: 1234,
        micros: 1500,
        upstream: "10.0.0.1:8080",
        upstream_micros: Some(900),
        tries: 1,
        user_agent: b"curl/8",
        referer: b"https://other.example/",
        user: "ann \"a\"",
        would_block: {
            let mut marks = Marks::default();
            marks.set(PolicyKind::Auth);
            marks.set(PolicyKind::RateLimit);
            marks
        },
        patch: "log4shell",
        generation: 7,
    }
}

/// What one record looks like in a file.
fn written(record: &Record<'_>, format: AccessFormat, privacy: Privacy) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let (sinks, control) = start(&AccessTarget::File(path.clone()), format, privacy, 1).unwrap();
    sinks[0].write(record);
    drop(sinks);
    control.close();
    std::fs::read_to_string(path).unwrap()
}

fn lines(path: &std::path::Path) -> usize {
    std::fs::read_to_string(path).unwrap().lines().count()
}

#[test]
fn json_says_everything_the_table_of_fields_says_and_nothing_else() {
    let line = written(&record(), AccessFormat::Json, Privacy::Full);
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&line).unwrap();
    let mut names: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    let mut found: Vec<_> = object.keys().map(String::as_str).collect();
    found.sort_unstable();
    assert_eq!(found, names);
    assert_eq!(object["time"], "2000-02-29T00:00:00.042Z");
    assert_eq!(object["id"], "00000000000000000000000000000abc");
    assert_eq!(object["client"], "192.0.2.77");
    assert_eq!(object["query"], "token=secret");
    assert_eq!(object["protocol"], "h2");
    assert_eq!((&object["client_cert"], &object["client_subject"]), (&"c0ffee".into(), &"CN=ann".into()));
    assert_eq!((&object["outcome"], &object["blame"]), (&"OK".into(), &"none".into()));
    assert_eq!(object["bytes_out"], 1234);
    assert_eq!(object["user"], "ann \"a\"");
    assert_eq!(object["would_block"], serde_json::json!(["rate-limit", "auth"]));
    assert_eq!(object["patch"], "log4shell");
    assert_eq!(object["generation"], 7);
}

#[test]
fn strict_privacy_keeps_people_out_of_both_shapes() {
    for format in [AccessFormat::Json, AccessFormat::Combined] {
        let line = written(&record(), format, Privacy::Strict);
        assert!(line.contains("192.0.2.0"), "{line}");
        for private in ["192.0.2.77", "secret", "token", "curl", "other.example"] {
            assert!(!line.contains(private), "{private} in {line}");
        }
    }
}

#[test]
fn combined_is_the_line_every_tool_knows() {
    let line = written(&record(), AccessFormat::Combined, Privacy::Full);
    assert_eq!(
        line,
        "192.0.2.77 - ann_\\\"a\\\" [29/Feb/2000:00:00:00 +0000] \"GET /api/cart?token=secret HTTP/2.0\" 200 1234 \
         \"https://other.example/\" \"curl/8\"\n"
    );
}

#[test]
fn hostile_bytes_stay_inside_their_field() {
    let mut hostile = record();
    hostile.path = "/a\"b\\c\n\u{1b}[31m\u{9b}d";
    hostile.user_agent = b"x\xff\"y\r\nHTTP 200";
    let line = written(&hostile, AccessFormat::Json, Privacy::Full);
    assert_eq!(line.matches('\n').count(), 1, "one record, one line");
    assert!(!line.trim_end().chars().any(char::is_control));
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(object["path"], hostile.path);
    assert_eq!(object["user_agent"], "x\u{fffd}\"y\r\nHTTP 200");

    let line = written(&hostile, AccessFormat::Combined, Privacy::Full);
    assert_eq!(line.matches('\n').count(), 1);
    assert!(line.contains(r#"/a\"b\\c\x0a\x1b[31m\xc2\x9bd?token"#), "{line}");
    assert!(line.ends_with("\"x\\xff\\\"y\\x0d\\x0aHTTP 200\"\n"), "{line}");
}

#[test]
fn long_fields_are_cut() {
    let mut long = record();
    let agent = "é".repeat(FIELD_BYTES_MAX);
    long.user_agent = agent.as_bytes();
    let line = written(&long, AccessFormat::Json, Privacy::Full);
    let object: serde_json::Value = serde_json::from_str(&line).unwrap();
    let agent = object["user_agent"].as_str().unwrap();
    assert!(agent.ends_with("é…") && agent.len() <= FIELD_BYTES_MAX + 3);
}

#[test]
fn several_workers_write_whole_lines_into_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let target = AccessTarget::File(path.clone());
    let (sinks, control) = start(&target, AccessFormat::Json, Privacy::Strict, 2).unwrap();
    let threads: Vec<_> = sinks
        .into_iter()
        .map(|sink| std::thread::spawn(move || (0..1000).for_each(|_| sink.write(&record()))))
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    control.close();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    assert_eq!(text.lines().count() as u64 + control.dropped(), 2000);
    assert_eq!(control.dropped(), 0, "two thousand records fit into the queue");
}

fn pipe(folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path
}

#[test]
fn a_stuck_reader_costs_records_and_never_a_worker() {
    let dir = tempfile::tempdir().unwrap();
    let path = pipe(dir.path());
    // A reader that exists and does not read: the pipe takes 64 KiB and then blocks the writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut reader = File::options().read(true).custom_flags(nonblocking).open(&path).unwrap();
    let (sinks, control) = start(&AccessTarget::File(path), AccessFormat::Json, Privacy::Strict, 1).unwrap();
    // Twice what queue, pipe and buffer can hold.
    let mut line = Vec::new();
    format::json(&mut line, &record(), 0, Privacy::Strict, &mut format::Stamp::default());
    let total = 2 * (BUFFERS_PER_WORKER + 4) * BUFFER_BYTES / line.len();
    (0..total).for_each(|_| sinks[0].write(&record()));
    assert!(control.dropped() > 0, "the queue is bounded");
    drop(sinks);

    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::empty()).unwrap();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    control.close();
    let text = reading.join().unwrap();
    assert!(text.ends_with('\n'));
    assert_eq!(
        text.lines().count() as u64 + control.dropped(),
        total as u64,
        "every record is accounted for"
    );
}

#[test]
fn a_pipe_that_nobody_reads_is_an_error_and_not_a_wait_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = pipe(dir.path());
    let target = AccessTarget::File(path.clone());
    let error = start(&target, AccessFormat::Json, Privacy::Strict, 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("start the program that reads this pipe first"), "{error}");
    let (_sinks, control) = start(&AccessTarget::Off, AccessFormat::Json, Privacy::Strict, 1).unwrap();
    assert!(control.retarget(&target).is_err());
    // Once somebody reads it, it is taken, though the setting is the same as before.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let _reader = File::options().read(true).custom_flags(nonblocking).open(&path).unwrap();
    control.retarget(&target).unwrap();
}

#[test]
fn reopening_after_a_rename_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let (sinks, control) =
        start(&AccessTarget::File(path.clone()), AccessFormat::Json, Privacy::Strict, 1).unwrap();
    sinks[0].write(&record());
    sinks[0].flush();
    std::fs::rename(&path, &old).unwrap_or_default();
    control.reopen().unwrap();
    sinks[0].write(&record());
    drop(sinks);
    control.close();
    assert!(path.exists(), "the new file is there at once");
    assert_eq!(lines(&path) + lines(&old), 2);
}

#[test]
fn the_target_can_change_to_another_file_and_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.log"), dir.path().join("2.log"));
    let (sinks, control) =
        start(&AccessTarget::File(first.clone()), AccessFormat::Json, Privacy::Strict, 1).unwrap();
    control.retarget(&AccessTarget::Off).unwrap();
    assert!(!sinks[0].enabled());
    sinks[0].write(&record());
    control.retarget(&AccessTarget::File(second.clone())).unwrap();
    control.set_style(AccessFormat::Combined, Privacy::Strict);
    sinks[0].write(&record());
    drop(sinks);
    control.close();
    assert_eq!((lines(&first), lines(&second)), (0, 1));
    assert!(std::fs::read_to_string(&second).unwrap().starts_with("192.0.2.0 - - ["));
    assert_eq!(control.dropped(), 0, "records nobody wants are not lost");
}

#[test]
fn a_target_that_cannot_be_written_is_refused_with_what_to_do_and_the_old_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let missing = AccessTarget::File(dir.path().join("no/such/folder/access.log"));
    let error = start(&missing, AccessFormat::Json, Privacy::Strict, 1).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("create its folder"), "{error}");

    let path = dir.path().join("access.log");
    let (sinks, control) =
        start(&AccessTarget::File(path.clone()), AccessFormat::Json, Privacy::Strict, 1).unwrap();
    let folder = AccessTarget::File(dir.path().to_owned());
    let error = control.retarget(&folder).unwrap_err();
    assert!(error.to_string().contains("name a file inside the folder"), "{error}");
    sinks[0].write(&record());
    drop(sinks);
    control.close();
    assert_eq!(lines(&path), 1);
}

#[test]
fn records_after_the_end_and_on_a_full_disk_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("access.log");
    let (sinks, control) = start(&AccessTarget::File(path), AccessFormat::Json, Privacy::Strict, 1).unwrap();
    control.close();
    sinks[0].write(&record());
    drop(sinks);
    assert_eq!(control.dropped(), 1);

    let full = AccessTarget::File("/dev/full".into());
    let (sinks, control) = start(&full, AccessFormat::Json, Privacy::Strict, 1).unwrap();
    sinks[0].write(&record());
    drop(sinks);
    control.close();
    assert_eq!(control.dropped(), 1);
}
