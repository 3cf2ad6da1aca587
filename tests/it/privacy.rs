//! `tidegate privacy` says what is kept about people with the values in force, with or without a running process.

use serde_json::Value;

use crate::harness::{Origin, Proxy};

const SITE: &str = "shop.test";

fn row<'a>(said: &'a Value, what: &str) -> &'a Value {
    let rows = said["table"].as_array().unwrap();
    rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("no {what} in {said:#}"))
}

#[tokio::test]
async fn the_table_is_that_of_the_running_process_or_of_the_file_that_is_named() {
    let origin = Origin::saying("ok").await;
    let mut proxy = Proxy::builder()
        .set("server.limit_entries", "4096")
        .site(SITE, &format!("{}\nlimit = \"10 per 1s by client-ip\"", origin.backends()))
        .site("plain.test", &origin.backends())
        .start()
        .await;
    // What is written now is not in force before a start.
    let file = proxy.path().join("tidegate.toml");
    let before = std::fs::read_to_string(&file).unwrap();
    let changed = before.replace("limit_entries = 4096", "limit_entries = 8192");
    assert_ne!(before, changed);
    let socket = proxy.socket().display().to_string();

    let ask = async |args: &[&str]| {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let run =
            move || crate::harness::proxy::run_to_end(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let running: Value =
        serde_json::from_slice(&ask(&["privacy", "--socket", &socket, "--json"]).await).unwrap();
    assert_eq!(running["of"], "the running process");
    let limits = row(&running, "rate limits and bandwidth");
    assert_eq!((&limits["used"], &limits["sites"]), (&"by sites".into(), &serde_json::json!([SITE])));
    assert_eq!(limits["settings"]["server.limit_entries"], "4096");
    assert_eq!(row(&running, "client certificates")["used"], "no");
    assert_eq!(row(&running, "access log")["settings"]["log.privacy"], "\"full\"");

    proxy.kill();
    std::fs::write(&file, changed).unwrap();
    let config = file.display().to_string();
    let text = String::from_utf8(ask(&["privacy", "--config", &config]).await).unwrap();
    assert!(text.contains("\nrate limits and bandwidth (in use by shop.test)\n"), "{text}");
    assert!(text.contains("  in force  server.limit_entries = 8192\n"), "{text}");

    std::fs::write(&file, "[server]\nlimit_entries = \"many\"\n").unwrap();
    let refused = crate::harness::proxy::run_to_end(&["privacy", "--config", &config]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("`tidegate check` shows them"), "{said}");
}
