//! `tidegate deploy`: other endpoints once they are healthy; what fails changes nothing and says why.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Answer, FakeDocker, Gate, Origin, Proxy, wait_for, wait_until};

const SITE: &str = "shop.test";
const DEPLOYED: &str =
    "backends = [\"deploy://shop\"]\nhealth = { path = \"/up\", interval = \"200ms\", timeout = \"300ms\" }";

/// Runs the command to its end, off this thread: the proxy and the origins go on meanwhile.
async fn deploy(proxy: &Proxy, args: &[&str]) -> (bool, String) {
    let mut all = vec!["deploy", "shop"];
    all.extend(args);
    let said = proxy.command_async(&all).await;
    let text = [said.stdout, said.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (said.status.success(), text)
}

/// Says `body` at once, and at `/slow` when the gate is open.
async fn slow_at(gate: &Gate, body: &'static str) -> Origin {
    let gate = gate.clone();
    Origin::scripted(move |mut exchange| {
        let gate = gate.clone();
        async move {
            if exchange.request.target() == "/slow" {
                gate.pass().await;
            }
            exchange.answer(Answer::ok(body)).await.ok()?;
            Some(exchange)
        }
    })
    .await
}

fn address(origin: &Origin) -> String {
    origin.address().to_string()
}

#[tokio::test]
async fn requests_move_when_the_new_endpoints_are_healthy_and_none_fails() {
    let (old, new) = (Origin::saying("old").await, Origin::saying("new").await);
    let mut proxy = Proxy::with_site(SITE, DEPLOYED).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 503, "nothing was deployed yet");
    let (done, said) = deploy(&proxy, &["--to", &address(&old)]).await;
    assert!(done && said.contains("1 endpoint in force, 0 endpoints replaced"), "{said}");
    assert!(said.contains("GET /up: "), "{said}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "old");
    let stop = Arc::new(AtomicBool::new(false));
    let steady = async {
        let mut client = proxy.h2(SITE).await;
        let mut answers = 0;
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(client.get("/").await.status, 200);
            answers += 1;
        }
        answers
    };
    let changes = async {
        // Often enough that the look at the file, twice a second, falls between two of them: it once brought back
        // what had just been replaced.
        for round in 0..12 {
            let to = if round % 2 == 0 { address(&new) } else { address(&old) };
            let (done, said) = deploy(&proxy, &["--to", &to]).await;
            assert!(done && said.contains("1 endpoint replaced, which finished in"), "{said}");
        }
        let (done, said) = deploy(&proxy, &["--to", &address(&new)]).await;
        assert!(done, "{said}");
        stop.store(true, Ordering::Relaxed);
    };
    let (answers, ()) = tokio::join!(steady, changes);
    assert!(answers > 20, "{answers}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "new");
    // It is known over a restart, and so is the way back.
    proxy.restart().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "new");
    let (done, said) = deploy(&proxy, &["--back"]).await;
    assert!(done, "{said}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "old");
}

#[tokio::test]
async fn what_is_not_healthy_changes_nothing_and_the_last_probe_is_told() {
    let old = Origin::saying("old").await;
    let proxy = Proxy::with_site(SITE, DEPLOYED).await;
    assert!(deploy(&proxy, &["--to", &address(&old)]).await.0);
    let broken = Origin::answering(|_| Answer::new(500).body("no database")).await;
    let gate = Gate::default();
    let silent = {
        let gate = gate.clone();
        Origin::scripted(move |exchange| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Some(exchange)
            }
        })
        .await
    };
    let nobody = Origin::saying("").await.kill().await;
    let well = Origin::saying("well").await;
    let cases: [(SocketAddr, &[&str]); 3] = [
        (broken.address(), &["answered 500", "no database"]),
        (silent.address(), &["no answer within 300ms"]),
        (nobody, &["connection refused: nothing listens on that port"]),
    ];
    for (bad, words) in cases {
        let bad = bad.to_string();
        let (done, said) = deploy(&proxy, &["--to", &address(&well), &bad, "--timeout", "1s"]).await;
        assert!(!done && said.contains("nothing changed"), "{said}");
        assert!(said.contains(&format!("{bad} is not healthy: GET /up: ")), "{said}");
        words.iter().for_each(|word| assert!(said.contains(word), "{word}: {said}"));
        assert_eq!(proxy.get(SITE, "/").await.text(), "old");
    }
    gate.open();
    assert!(proxy.stderr().contains("shop was not deployed, nothing changed"), "{}", proxy.stderr());
    let (done, said) = deploy(&proxy, &["--back"]).await;
    assert!(!done && said.contains("no way back"), "{said}");
}

#[tokio::test]
async fn a_port_that_the_container_does_not_expose_is_told() {
    let gone = Origin::saying("").await.kill().await;
    let origin = Origin::saying("elsewhere").await;
    let builder = Proxy::builder();
    let socket = builder.folder().join("docker.sock");
    let engine = FakeDocker::at(&socket);
    engine.start("shop2", origin.address(), &[]);
    engine.expose("shop2", origin.address().port());
    let builder = builder.set("docker.socket", &format!("\"unix://{}\"", socket.display()));
    let proxy = builder.site(SITE, DEPLOYED).start().await;
    let (done, said) = deploy(&proxy, &["--timeout", "100ms", "--to", &gone.to_string()]).await;
    let asked = gone.port();
    let exposed = origin.address().port();
    assert!(!done, "{said}");
    let told = format!(
        "connection refused: nothing listens on that port (the container shop2 exposes {exposed}/tcp, you asked {asked})"
    );
    assert!(said.contains(&told), "{said}");
}

#[tokio::test]
async fn what_is_in_flight_at_the_old_endpoints_is_waited_for() {
    let gate = Gate::default();
    let old = slow_at(&gate, "old").await;
    let new = Origin::saying("new").await;
    let proxy = Proxy::with_site(SITE, DEPLOYED).await;
    assert!(deploy(&proxy, &["--to", &address(&old)]).await.0);
    let slow = proxy.get(SITE, "/slow");
    let rest = async {
        let there = || old.requests().iter().any(|request| request.target() == "/slow");
        wait_until("the request at the old endpoint", there).await;
        let (done, said) = deploy(&proxy, &["--to", &address(&new), "--drain", "500ms"]).await;
        assert!(done && said.contains("1 request still there, left to finish"), "{said}");
        assert_eq!(proxy.get(SITE, "/").await.text(), "new");
        gate.open();
    };
    let (reply, ()) = tokio::join!(slow, rest);
    assert_eq!(reply.text(), "old", "it was not cut");
}

#[tokio::test]
async fn requests_are_held_until_the_old_endpoints_are_done_and_no_longer_than_allowed() {
    let gate = Gate::default();
    let old = slow_at(&gate, "old").await;
    let new = Origin::saying("new").await;
    let proxy = Proxy::with_site(SITE, DEPLOYED).await;
    assert!(deploy(&proxy, &["--to", &address(&old)]).await.0);
    let phase = async |wanted: &str| {
        wait_for(wanted, || async {
            let all = proxy.admin("GET", "/deployments").await;
            (all[0]["phase"] == wanted).then_some(())
        })
        .await;
    };
    let there = || old.requests().iter().any(|request| request.target() == "/slow");
    let (slow, switched, held, ()) = tokio::join!(
        proxy.get(SITE, "/slow"),
        async {
            wait_until("the request at the old endpoint", there).await;
            deploy(&proxy, &["--to", &address(&new), "--hold", "30s"]).await
        },
        async {
            phase("hold").await;
            proxy.get(SITE, "/held").await
        },
        async {
            phase("hold").await;
            wait_for("the request to wait", || async {
                let seen = old.requests().iter().chain(&new.requests()).any(|r| r.target() == "/held");
                assert!(!seen, "it was not held");
                (proxy.status().await["connections"].as_u64()? >= 2).then_some(())
            })
            .await;
            gate.open();
        }
    );
    assert_eq!((slow.text(), held.text()), ("old".into(), "new".into()));
    assert!(switched.0 && switched.1.contains("requests held for"), "{}", switched.1);
    // Somebody who never ends delays the switch for as long as was said.
    let stuck = Gate::default();
    let slow = slow_at(&stuck, "slow").await;
    assert!(deploy(&proxy, &["--to", &address(&slow)]).await.0);
    let there = || slow.requests().iter().any(|request| request.target() == "/slow");
    let (late, ()) = tokio::join!(proxy.get(SITE, "/slow"), async {
        wait_until("the request at the old endpoint", there).await;
        let args = ["--to", &address(&new), "--hold", "200ms", "--drain", "100ms"];
        let (done, said) = deploy(&proxy, &args).await;
        assert!(done && said.contains("1 request still there, left to finish"), "{said}");
        assert_eq!(proxy.get(SITE, "/").await.text(), "new");
        stuck.open();
    });
    assert_eq!(late.text(), "slow");
}

#[tokio::test]
async fn orders_that_make_no_sense_are_refused_and_change_nothing() {
    let origin = Origin::saying("x").await;
    let proxy = Proxy::builder()
        .site(SITE, DEPLOYED)
        .site("plain.test", &origin.backends())
        .site("two.test", "backends = [\"deploy://one\", \"deploy://two\"]")
        .start()
        .await;
    for (args, expected) in [
        (
            ["deploy", "nobody.test", "--to", "127.0.0.1:1"],
            "no site and no `deploy://` source is called `nobody.test`",
        ),
        (["deploy", "plain.test", "--to", "127.0.0.1:1"], "write backends = [\"deploy://NAME\"]"),
        (["deploy", "two.test", "--to", "127.0.0.1:1"], "name one of deploy://one, deploy://two"),
        (["deploy", SITE, "--to", "127.0.0.1"], "has no port"),
        (["deploy", SITE, "--to", "http://127.0.0.1:80"], "has a path"),
    ] {
        let said = proxy.command_async(&args).await;
        let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!said.status.success() && complaint.contains(expected), "{args:?}: {complaint}");
    }
    let said = proxy.command_async(&["deploy", SITE, "--to", "127.0.0.1:1", "--hold", "2m"]).await;
    let complaint = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && complaint.contains("`hold` is 2m: write at most 1m"), "{complaint}");
    assert!(proxy.admin("GET", "/deployments").await.as_array().unwrap().is_empty());
}
