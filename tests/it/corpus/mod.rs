//! The corpus: raw bytes of attacks and of honest oddities, sent to a real Tidegate before an origin that reads by the
//! letter. Every check is double: the client saw a safe outcome, and the origin saw nothing it should not.
//!
//! The cases are text, in `tests/corpus`, where a README tells the format. Each names its reason.

mod answers;
mod case;
mod h1;
mod h2;
mod property;
mod recorder;

use crate::harness::Proxy;
use recorder::Recorder;

const SITE: &str = "shop.test";

/// Two tenants before one origin, a closed route, and plain HTTP served as it comes.
async fn house(recorder: &Recorder) -> Proxy {
    let backends = format!("backends = [\"{}\"]\nplain_http = true", recorder.address());
    let closed =
        "[[site.\"shop.test\".route]]\npath = \"/admin/\"\nrespond = { status = 403, body = \"no\" }";
    Proxy::builder().site(SITE, &format!("{backends}\n{closed}")).site("other.test", &backends).start().await
}

/// Fails with all findings at once.
#[track_caller]
fn report(cases: usize, findings: Vec<String>) {
    assert!(
        findings.is_empty(),
        "\n{} findings in {cases} cases:\n{}\n",
        findings.len(),
        findings.join("\n")
    );
}
