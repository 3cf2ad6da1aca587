//! Programs that tests borrow from the machine, and the machine's numbers about our processes.

use std::process::{Command, Output, Stdio};

/// Whether this run must not skip anything: in CI, or when asked.
pub fn strict() -> bool {
    std::env::var("CI").is_ok_and(|v| v == "true")
        || std::env::var("TIDEGATE_REQUIRE_ALL").is_ok_and(|v| v == "1")
}

/// Says that a test cannot run here; panics where a skip is a failure.
pub fn skip(why: &str) {
    assert!(!strict(), "{why}, and this run requires all tests (CI or TIDEGATE_REQUIRE_ALL is set)");
    report(&format!("skipped: {why}"));
}

/// Says something that the test runner must not swallow: its capture takes only what `println!` prints.
pub fn report(what: &str) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("test").to_string();
    let _ = writeln!(std::io::stderr(), "{test}: {what}");
}

/// Whether a program is on the path and works; otherwise the test is skipped.
#[must_use]
pub fn requires(program: &str, probe: &[&str]) -> bool {
    let found = Command::new(program).args(probe).stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        // wrk and friends exit with 1 after printing their version: it is enough that they start.
        Ok(status) if status.success() || probe == ["-v"] => true,
        _ => {
            skip(&format!("`{program} {}` does not work here", probe.join(" ")));
            false
        }
    }
}

/// Runs a program to its end off the runtime and returns what it printed.
pub async fn run(program: &str, args: &[String]) -> Output {
    let (program, args) = (program.to_string(), args.to_vec());
    tokio::task::spawn_blocking(move || {
        Command::new(&program)
            .args(&args)
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|e| panic!("cannot run {program}: {e}"))
    })
    .await
    .expect("the program's thread")
}

/// Standard output as text, asserting success.
#[track_caller]
pub fn stdout_of(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `args!["--x", y]` as owned strings.
#[macro_export]
macro_rules! args {
    ($($arg:expr),* $(,)?) => { [$($arg.to_string()),*] };
}

/// Resident memory of a process in KiB, from `/proc`.
pub fn rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("/proc of the proxy");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number of KiB")
}

/// Watches a process's resident memory while something runs; returns that and the highest growth seen, in KiB.
pub async fn watched<T>(pid: u32, work: impl Future<Output = T>) -> (T, u64) {
    let before = rss_kib(pid);
    let mut most = before;
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(50));
    tokio::pin!(work);
    loop {
        tokio::select! {
            value = &mut work => return (value, most.max(rss_kib(pid)) - before),
            _ = tick.tick() => most = most.max(rss_kib(pid)),
        }
    }
}

/// A process that is ended, by its id, when the test lets go of it: asked first, so that it ends its own children.
pub struct Helper(pub std::process::Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let asked = std::time::Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && asked.elapsed() < std::time::Duration::from_secs(3) {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Raises this process's soft limit of open files to its hard limit and returns it. Children inherit it.
pub fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum }).expect("setrlimit");
    now.maximum.unwrap_or(u64::MAX)
}
