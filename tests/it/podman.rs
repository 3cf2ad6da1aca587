//! Containers as Podman tells of them, by its compatible interface: a real one, with a store, a network and a socket of
//! its own, and nothing of the machine's.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::deploy::BUSYBOX;
use crate::harness::{DEADLINE, Proxy, tool, wait_for, within_for};

const SITE: &str = "shop.test";

/// Podman, its service, and one image from nothing.
struct Podman {
    folder: tempfile::TempDir,
    name: String,
    _service: tool::Helper,
}

impl Drop for Podman {
    fn drop(&mut self) {
        for args in [&["rm", "-fa", "-t", "0"][..], &["network", "rm", "-f", &self.name]] {
            let _ = Command::new("podman").args(options(self.folder.path())).args(args).output();
        }
    }
}

/// Everything it keeps is in this folder. Neither systemd nor a file system of layers is asked for.
fn options(folder: &Path) -> Vec<String> {
    let place = |name: &str| folder.join(name).display().to_string();
    let places =
        [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp"), ("--network-config-dir", "net")];
    let mut all: Vec<String> =
        places.into_iter().flat_map(|(option, name)| [option.to_owned(), place(name)]).collect();
    let fixed = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"];
    all.extend(fixed.map(str::to_owned));
    all
}

impl Podman {
    fn is_possible() -> bool {
        if !Path::new(BUSYBOX).exists() {
            tool::skip("there is no /bin/busybox (Debian: busybox-static)");
            return false;
        }
        if !rustix::process::geteuid().is_root() {
            // A network that others reach takes rights that a user's Podman does not have.
            tool::report("skipped: only root's Podman has containers with addresses of their own");
            return false;
        }
        tool::requires("podman", &["--version"])
    }

    async fn start() -> Podman {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("net")).unwrap();
        let socket = folder.path().join("podman.sock");
        let service = Command::new("podman")
            .args(options(folder.path()))
            .args(["system", "service", "--time", "0", &format!("unix://{}", socket.display())])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("spawn podman");
        let name = format!("tidegate-{}", std::process::id());
        let podman = Podman { folder, name, _service: tool::Helper(service) };
        wait_for("Podman's socket", || async { UnixStream::connect(&socket).ok() }).await;
        let image = podman.folder.path().join("image");
        std::fs::create_dir(&image).unwrap();
        std::fs::copy(BUSYBOX, image.join("busybox")).unwrap();
        let serve =
            "busybox mkdir -p /www && echo -n $NAME > /www/index.html && exec busybox httpd -f -p 80 -h /www";
        std::fs::write(image.join("run"), serve).unwrap();
        let recipe = "FROM scratch\nCOPY busybox /bin/busybox\nCOPY run /run.sh\nENV PATH=/bin\nEXPOSE 80\n\
                      ENTRYPOINT [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n";
        std::fs::write(image.join("Dockerfile"), recipe).unwrap();
        podman.podman(&["build", "-q", "-t", &podman.name, &image.display().to_string()]).await;
        podman.podman(&["network", "create", &podman.name]).await;
        podman
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("podman.sock")
    }

    async fn podman(&self, args: &[&str]) -> String {
        let mut all = options(self.folder.path());
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let output = within_for(DEADLINE * 4, "podman", tool::run("podman", &all)).await;
        tool::stdout_of(&output).trim().to_owned()
    }

    /// Starts a container that says its name.
    async fn run(&self, name: &str, labels: &[&str]) {
        let says = format!("NAME={name}");
        // Who may not raise limits must say some.
        let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
        let mut args = vec!["run", "-d", "--name", name, "--network", &self.name, "-e", &says];
        args.extend(limits);
        labels.iter().for_each(|label| args.extend(["--label", *label]));
        args.push(&self.name);
        self.podman(&args).await;
    }
}

async fn says(proxy: &Proxy, site: &str, text: &str) {
    wait_for(&format!("{site} to say {text}"), || async {
        (proxy.try_get(site, "/").await.ok()?.text() == text).then_some(())
    })
    .await;
}

async fn endpoints(proxy: &Proxy, count: usize) {
    wait_for(&format!("{count} endpoints"), || async {
        let status = proxy.status().await;
        (status["endpoints"].as_array().unwrap().len() == count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_podmans_containers_make_sites_that_follow_them() {
    if !Podman::is_possible() {
        return;
    }
    let podman = Podman::start().await;
    let site = format!("tidegate.site={SITE}");
    podman.run("one", &[&site]).await;
    let socket = format!("\"unix://{}\"", podman.socket().display());
    let proxy = Proxy::builder().set("docker.socket", &socket).start().await;
    says(&proxy, SITE, "one").await;
    // A second one joins, then the first ends: nobody's request fails on the way.
    let mut client = proxy.h2(SITE).await;
    podman.run("two", &[&site]).await;
    endpoints(&proxy, 2).await;
    let ending = podman.podman(&["kill", "one"]);
    tokio::pin!(ending);
    loop {
        tokio::select! {
            biased;
            _ = &mut ending => break,
            reply = client.get("/") => assert_eq!(reply.status, 200, "{}", reply.text()),
        }
    }
    endpoints(&proxy, 1).await;
    for _ in 0..10 {
        assert_eq!(client.get("/").await.text(), "two");
    }
    // Its bad labels cost a site its new version and nobody else anything.
    podman.run("bad", &["tidegate.site=bad.test", "tidegate.limit=many"]).await;
    wait_for("the bad label to be told", || async {
        proxy.stderr().contains("(label `tidegate.limit` of the container bad)").then_some(())
    })
    .await;
    assert_eq!(client.get("/").await.text(), "two");
    // Started again, it has another address.
    podman.podman(&["start", "one"]).await;
    endpoints(&proxy, 2).await;
    podman.podman(&["kill", "two"]).await;
    says(&proxy, SITE, "one").await;
}
