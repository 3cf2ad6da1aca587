//! What an operator sees: the commands, the socket behind them, and what is said when something is wrong.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::Value;

use crate::harness::proxy::run_to_end;
use crate::harness::{Origin, Proxy, tool};

const SITE: &str = "shop.test";

fn json(output: &Output) -> Value {
    let text = tool::stdout_of(output);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A refusal: exit code 1, a sentence with these words on stderr, no backtrace.
#[track_caller]
fn says(output: &Output, words: &[&str]) {
    let text = tool::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    assert!(!text.contains("panicked") && !text.contains("Os {"), "{text}");
}

#[tokio::test]
async fn status_tells_what_is_running() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut open = proxy.wire(SITE).await;
    assert_eq!(open.get(SITE, "/").await.status, 200);
    let status = json(&proxy.command(&["status", "--format", "json"]));
    assert_eq!(status["pid"], proxy.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    let kinds: Vec<&str> =
        status["listeners"].as_array().unwrap().iter().filter_map(|l| l["kind"].as_str()).collect();
    for kind in ["http", "https", "metrics", "admin"] {
        assert!(kinds.contains(&kind), "{kind} is not in {kinds:?}");
    }
    assert_eq!(status["workers"].as_array().unwrap().len(), 1);
    assert!(status["connections"].as_u64().unwrap() >= 1);
    let site = &status["sites"][0];
    assert_eq!(
        (&site["name"], &site["state"], &site["hosts"][0]),
        (&SITE.into(), &"active".into(), &SITE.into())
    );
    assert_eq!(site["certificate"]["source"], "internal");
    let endpoint = &status["endpoints"][0];
    assert_eq!(
        (&endpoint["address"], &endpoint["state"]),
        (&origin.address().to_string().into(), &"up".into())
    );

    let table = tool::stdout_of(&proxy.command(&["status", "--format", "human"]));
    for word in [SITE, "active", &origin.address().to_string(), &proxy.https().to_string()] {
        assert!(table.contains(word), "`{word}` is not in\n{table}");
    }
}

#[tokio::test]
async fn reload_says_what_changed_and_fails_when_a_site_is_quarantined() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let report = json(&proxy.command(&["reload", "--format", "json"]));
    assert_eq!(
        (&report["changed"], report["quarantined"].as_array().map(Vec::len)),
        (&false.into(), Some(0))
    );
    proxy.write_site(SITE, "bakends = [\"127.0.0.1:1\"]");
    let output = proxy.command(&["reload"]);
    let text = tool::text(&output.stdout) + &tool::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in [SITE, "bakends", "backends", "shop.test.toml"] {
        assert!(text.contains(word), "`{word}` is not in\n{text}");
    }
}

#[tokio::test]
async fn config_show_tells_every_value_and_where_it_came_from() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let values = proxy.admin("GET", "/config").await;
    let value = |key: &str| {
        let all = values.as_array().unwrap();
        all.iter().find(|v| v["key"] == key).unwrap_or_else(|| panic!("{key} is not in {values}")).clone()
    };
    assert_eq!(value("server.drain")["value"], "\"2s\"", "as TOML writes it");
    assert!(value("server.drain")["origin"].as_str().unwrap().contains("tidegate.toml:"));
    assert_eq!(value("server.timeouts.idle")["origin"], "default");
    let text = tool::stdout_of(&proxy.command(&["config", "show", "--effective", "--origin"]));
    assert!(text.contains("server.drain") && text.contains("2s") && text.contains("default"), "{text}");
    json(&proxy.command(&["config", "show", "--effective", "--origin", "--format", "json"]));
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only_and_goes_with_the_process() {
    let mut proxy = Proxy::builder().start().await;
    let mode = std::fs::metadata(proxy.socket()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    proxy.signal(rustix::process::Signal::TERM);
    assert!(proxy.ended().await.success());
    says(&proxy.command(&["status"]), &["admin.sock", "tidegate run"]);
}

#[tokio::test]
async fn an_unknown_admin_path_and_method_are_answers_too() {
    let proxy = Proxy::builder().start().await;
    for (method, target, status) in
        [("GET", "/nothing", 404), ("GET", "/reload", 405), ("DELETE", "/status", 405)]
    {
        let mut wire = crate::harness::Wire::unix(&proxy.socket()).await.unwrap();
        assert_eq!(
            wire.ask(method, target, "tidegate", "Connection: close\r\n").await.status,
            status,
            "{method} {target}"
        );
    }
}

#[tokio::test]
async fn a_socket_left_by_a_killed_process_does_not_stop_the_next() {
    let mut proxy = Proxy::builder().start().await;
    proxy.restart().await;
    assert_eq!(proxy.status().await["pid"], proxy.pid());
}

// ---- starting

#[tokio::test]
async fn the_banner_says_what_listens_where_and_gives_a_working_curl_line() {
    let origin = Origin::saying("hello").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let banner = proxy.stdout();
    for word in [
        proxy.https().to_string(),
        proxy.http().to_string(),
        proxy.ca_file().display().to_string(),
        "curl".into(),
    ] {
        assert!(banner.contains(&word), "`{word}` is not in\n{banner}");
    }
    assert!(banner.trim_end().lines().last().unwrap().starts_with("ready"), "{banner}");
    if tool::requires("curl", &["--version"]) {
        let line = banner.lines().map(str::trim_start).find(|l| l.starts_with("curl ")).expect("a curl line");
        let output = tool::run("sh", &crate::args!["-c", line]).await;
        assert!(tool::stdout_of(&output).contains("hello"), "{line}");
    }
}

#[tokio::test]
async fn an_empty_config_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("tidegate.toml");
    std::fs::write(&config, "").unwrap();
    let output = run_to_end(&["check", "--config", config.to_str().unwrap()]);
    assert!(output.status.success(), "{}", tool::text(&output.stderr));
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_mend() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for setting in ["server.https", "server.http", "metrics.listen"] {
        let value =
            if setting == "metrics.listen" { format!("\"{address}\"") } else { format!("[\"{address}\"]") };
        let output = Proxy::builder().set(setting, &value).fails();
        says(&output, &[&address.to_string(), "in use"]);
    }
}

#[tokio::test]
async fn a_second_process_does_not_share_the_ports_of_the_first() {
    // SO_REUSEPORT would let it: half of the requests would then go to a process nobody meant to start.
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let output = Proxy::builder().set("server.https", &format!("[\"{}\"]", proxy.https())).fails();
    says(&output, &[&proxy.https().port().to_string(), "in use"]);
}

#[tokio::test]
async fn a_config_that_is_missing_unreadable_or_wrong_is_a_sentence() {
    says(&run_to_end(&["run", "--config", "/nonexistent/tidegate.toml"]), &["/nonexistent/tidegate.toml"]);
    says(&Proxy::builder().set("server.drain", "\"soon\"").fails(), &["tidegate.toml", "soon", "10s"]);
    says(&Proxy::builder().set("server.drian", "\"2s\"").fails(), &["drian", "drain"]);
    says(&Proxy::builder().set("server.state", "\"/proc/nothing\"").fails(), &["/proc/nothing"]);
    let folder = tempfile::tempdir().unwrap();
    says(
        &run_to_end(&["run", "--config", folder.path().to_str().unwrap()]),
        &[folder.path().to_str().unwrap()],
    );
}

#[tokio::test]
async fn check_shows_all_problems_at_once_and_where_they_are() {
    let builder = Proxy::builder()
        .set("server.drain", "\"soon\"")
        .site("a.test", "bakends = [\"127.0.0.1:1\"]")
        .site("b.test", "backends = [\"127.0.0.1:1\"]\nlimit = \"many per 10s by client-ip\"");
    let config = builder.write();
    let config = config.to_str().unwrap();
    let output = run_to_end(&["check", "--config", config]);
    let text = tool::text(&output.stdout) + &tool::text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    for word in ["soon", "bakends", "backends", "many per 10s", "a.test.toml:2:1", "^"] {
        assert!(text.contains(word), "`{word}` is not in\n{text}");
    }
    let output = run_to_end(&["check", "--config", config, "--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    let list = value.as_array().or_else(|| value["diagnostics"].as_array()).expect("a list of diagnostics");
    let of_site =
        |site: &str| list.iter().find(|d| d["site"] == site).unwrap_or_else(|| panic!("{site}: {value}"));
    assert_eq!((&of_site("a.test")["severity"], &of_site("a.test")["line"]), (&"error".into(), &2.into()));
    assert!(of_site("b.test")["message"].as_str().unwrap().contains("many per 10s"));
}
