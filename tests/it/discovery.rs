//! Endpoints that are found: they come and go while requests are answered, and a source that fails takes none away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Origin, Proxy, wait_for};

const SITE: &str = "shop.test";

/// Replaces the list of a source in one step, as tools do.
fn list(proxy: &Proxy, text: &str) {
    std::fs::write(proxy.path().join("new"), text).unwrap();
    std::fs::rename(proxy.path().join("new"), proxy.path().join("web.backends")).unwrap();
}

async fn serves(proxy: &Proxy, text: &str) {
    wait_for(&format!("the site to say {text}"), || async {
        (proxy.try_get(SITE, "/").await.ok()?.text() == text).then_some(())
    })
    .await;
}

#[tokio::test]
async fn endpoints_follow_a_file_and_nothing_fails_meanwhile() {
    let (one, two) = (Origin::saying("one").await, Origin::saying("two").await);
    let site = "backends = [\"file:../web.backends\"]";
    let builder = Proxy::builder().site(SITE, site);
    std::fs::write(builder.folder().join("web.backends"), format!("{} # first\n", one.address())).unwrap();
    let proxy = builder.start().await;
    // The first answer was waited for: nobody saw a 503.
    assert_eq!(proxy.get(SITE, "/").await.text(), "one");
    let before = proxy.status().await;
    let stop = Arc::new(AtomicBool::new(false));
    let steady = async {
        let mut client = proxy.h2(SITE).await;
        let mut answers = 0;
        while !stop.load(Ordering::Relaxed) {
            let reply = client.get("/").await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            answers += 1;
        }
        answers
    };
    let changes = async {
        for _ in 0..5 {
            list(&proxy, &format!("{}\n", two.address()));
            serves(&proxy, "two").await;
            list(&proxy, &format!("{} weight 3\n", one.address()));
            serves(&proxy, "one").await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (answers, ()) = tokio::join!(steady, changes);
    assert!(answers > 20, "{answers}");
    let after = proxy.status().await;
    assert!(after["generation"].as_u64() > before["generation"].as_u64(), "{after}");
    assert_eq!(after["sources"][0]["endpoints"], 1, "{after}");
    assert!(proxy.stderr().contains("1 endpoint now (+"), "{}", proxy.stderr());
}

#[tokio::test]
async fn a_source_that_fails_keeps_its_last_endpoints_and_says_why() {
    let origin = Origin::saying("here").await;
    let proxy = Proxy::with_site(SITE, "backends = [\"file:../web.backends\"]").await;
    let reply = proxy.get(SITE, "/").await;
    assert_eq!(reply.status, 503, "nothing was found yet");
    list(&proxy, &format!("{}\n", origin.address()));
    serves(&proxy, "here").await;
    list(&proxy, &format!("{}\n127.0.0.1\n", origin.address()));
    let trouble = wait_for("the trouble to be known", || async {
        proxy.status().await["sources"][0]["trouble"].as_str().map(str::to_owned)
    })
    .await;
    assert!(trouble.contains("web.backends:2: `127.0.0.1` has no port"), "{trouble}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    let told = proxy.command(&["status"]);
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("failing, its last endpoints stay") && told.contains("has no port"), "{told}");
    let source = format!("file:{}", proxy.path().join("web.backends").display());
    let failing =
        || async { proxy.metrics().await.sum("tidegate_discovery_failing", &[("source", &source)]) };
    assert_eq!(failing().await, 1.0);
    // A reload meanwhile changes nothing about that.
    proxy.write_site("other.test", &origin.backends());
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    list(&proxy, &format!("{}\n", origin.address()));
    wait_for("the source to answer again", || async { (failing().await == 0.0).then_some(()) }).await;
    assert!(proxy.stderr().contains("answers again"), "{}", proxy.stderr());
}

#[tokio::test]
async fn a_source_outlives_reloads_and_goes_with_the_last_site_that_names_it() {
    let origin = Origin::saying("here").await;
    let builder = Proxy::builder().site(SITE, "backends = [\"file:../web.backends\"]");
    std::fs::write(builder.folder().join("web.backends"), format!("{}\n", origin.address())).unwrap();
    let proxy = builder.start().await;
    for number in 0..10 {
        proxy.write_site("other.test", &format!("respond = {{ status = 200, body = \"{number}\" }}"));
        proxy.reload().await;
        assert_eq!(proxy.get(SITE, "/").await.text(), "here");
    }
    proxy.write_site(SITE, &origin.backends());
    proxy.reload().await;
    wait_for("nobody to follow the file", || async {
        proxy.status().await["sources"].as_array().is_some_and(Vec::is_empty).then_some(())
    })
    .await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "here");
}
