//! The main job: containers behind sites, one of them dying, traffic moved by editing a file.

use std::path::Path;

use crate::harness::wire::Framing;
use crate::harness::{Proxy, Wire, tool, wait_for, within, within_for};

const BIG: usize = 8 << 20;
const BUSYBOX: &str = "/bin/busybox";

/// Images and containers of one test, removed with it.
struct Engine {
    tag: String,
    containers: Vec<String>,
    images: Vec<String>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        for (verb, names) in [("rm", &self.containers), ("rmi", &self.images)] {
            let mut command = std::process::Command::new("docker");
            let _ = command.args([verb, "-f"]).args(names).output();
        }
    }
}

impl Engine {
    fn new() -> Engine {
        Engine {
            tag: format!("tidegate-test-{}", std::process::id()),
            containers: Vec::new(),
            images: Vec::new(),
        }
    }

    /// An image from nothing: a static busybox, a page that says its name, a large file.
    async fn build(&mut self, name: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let www = folder.path().join("www");
        std::fs::create_dir(&www).unwrap();
        std::fs::copy(BUSYBOX, folder.path().join("busybox")).expect("a static busybox");
        std::fs::write(www.join("index.html"), name).unwrap();
        std::fs::write(www.join("big"), vec![name.as_bytes()[0]; BIG]).unwrap();
        std::fs::write(
            folder.path().join("Dockerfile"),
            "FROM scratch\nCOPY busybox /busybox\nCOPY www /www\n\
             CMD [\"/busybox\", \"httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/www\"]\n",
        )
        .unwrap();
        let image = format!("{}-{name}", self.tag);
        docker(&crate::args!["build", "-q", "-t", image, folder.path().display()]).await;
        self.images.push(image.clone());
        image
    }

    /// Starts a container and returns where its port is published.
    async fn start(&mut self, image: &str) -> String {
        let name = format!("{image}-c");
        self.containers.push(name.clone());
        docker(&crate::args!["run", "-d", "--name", name, "-p", "127.0.0.1:0:80", image]).await;
        let ports = docker(&crate::args!["port", name, "80/tcp"]).await;
        ports.lines().next().expect("a published port").trim().to_string()
    }
}

async fn docker(args: &[String]) -> String {
    let output = within_for(crate::harness::DEADLINE * 4, "docker", tool::run("docker", args)).await;
    tool::stdout_of(&output)
}

fn possible() -> bool {
    if !Path::new(BUSYBOX).exists() {
        tool::skip("there is no /bin/busybox (Debian: busybox-static)");
        return false;
    }
    tool::requires("docker", &["info"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_serve_two_sites_through_death_and_change() {
    if !possible() {
        return;
    }
    let mut engine = Engine::new();
    let (mut images, mut ports) = (Vec::new(), Vec::new());
    for name in ["apple", "banana", "cherry"] {
        images.push(engine.build(name).await);
        ports.push(engine.start(images.last().unwrap()).await);
    }
    let fruit = |addresses: &[&String]| {
        let list: Vec<String> = addresses.iter().map(|a| format!("\"{a}\"")).collect();
        format!("backends = [{}]\nbalance = \"round_robin\"", list.join(", "))
    };
    let proxy = Proxy::builder()
        .site("a.test", &fruit(&[&ports[0], &ports[1]]))
        .site("c.test", &fruit(&[&ports[2]]))
        .start()
        .await;
    wait_for("the containers to serve", || async {
        let mut up = proxy.get("c.test", "/").await.status == 200;
        for _ in 0..2 {
            up &= proxy.get("a.test", "/").await.status == 200;
        }
        up.then_some(())
    })
    .await;

    each_site_gets_only_its_own(&proxy).await;
    a_killed_container_costs_no_request(&proxy, &format!("{}-c", images[0])).await;

    // Fifty downloads are on their way from banana; then the site moves to cherry.
    let mut downloads: Vec<Wire> = Vec::new();
    for _ in 0..50 {
        let mut wire = proxy.wire("a.test").await;
        wire.send("GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let reply = within("a download to begin", wire.reply_head()).await.unwrap();
        assert_eq!(reply.field("content-length"), Some(BIG.to_string().as_str()));
        downloads.push(wire);
    }
    proxy.write_site("a.test", &fruit(&[&ports[2]]));
    wait_for("traffic to move", || async {
        (proxy.get("a.test", "/").await.text() == "cherry").then_some(())
    })
    .await;
    for mut wire in downloads {
        let (body, _) = within("a download to end", wire.body(Framing::Length(BIG as u64))).await.unwrap();
        assert!(body.iter().all(|b| *b == b'b'), "a download changed hands");
    }
}

async fn each_site_gets_only_its_own(proxy: &Proxy) {
    for version in ["--http1.1", "--http2"] {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let output = proxy.curl("a.test", &[version], "/").await;
            seen.insert(tool::stdout_of(&output));
            let output = proxy.curl("c.test", &[version], "/").await;
            assert_eq!(tool::stdout_of(&output), "cherry");
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["apple", "banana"]);
    }
}

async fn a_killed_container_costs_no_request(proxy: &Proxy, victim: &str) {
    let kill = crate::args!["kill", victim];
    let killing = tokio::spawn(async move { docker(&kill).await });
    let mut h2 = proxy.h2("a.test").await;
    let mut h1 = proxy.wire("a.test").await;
    let mut asked = 0;
    while !killing.is_finished() || asked < 100 {
        assert_eq!(h1.get("a.test", "/").await.status, 200, "h1 request {asked}");
        assert_eq!(h2.get("/").await.status, 200, "h2 request {asked}");
        asked += 1;
    }
    killing.await.unwrap();
    for _ in 0..20 {
        assert_eq!(h1.get("a.test", "/").await.text(), "banana");
    }
}
