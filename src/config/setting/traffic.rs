//! The settings of how much goes to the backends: retries, capacity, breaker.

use super::Fallback::Value;
use super::{DAY, HOUR, Id, Kind, SECOND, Section, row};

/// Requests that a queue may hold.
pub const QUEUE_MAX: u64 = 100_000;
/// Tries for one request.
pub const TRIES_MAX: u64 = 10;
/// Entries of `retry.on`.
pub const CAUSES_MAX: usize = 6;

#[rustfmt::skip]
pub(super) static RETRY: Section = Section {
    id: Id::Retry,
    title: "retry = { tries = …, … }",
    doc: "What is sent to another backend when one fails: a request that was never sent, or one that may be repeated (an idempotent method, no body) and got no answer. Nothing else is ever sent twice.",
    settings: &[
        row("tries", Kind::Count(1, TRIES_MAX), Value("3"), "Tries for one request, the first included; 1 is no retry."),
        row("budget", Kind::Percent(0, 100), Value(r#""20%""#), "Retries of the service, as a share of its requests in the last 10 s."),
        row("floor", Kind::Count(0, 100_000), Value("10"), "Retries in a second besides the budget, so that a service with few requests has some."),
        row("per_try", Kind::DurationOr("off", 10, DAY), Value(r#""off""#), "How long a try may wait for the head of an answer before another backend is asked; where there is no other, or no budget, `timeout` counts. Needs \"timeout\" in `on`."),
        row("total", Kind::DurationOr("off", 10, DAY), Value(r#""off""#), "How long all tries of one request may take together, until the head of an answer (504); a request with a body is bound by `timeout` alone."),
        row("on", Kind::Texts(CAUSES_MAX), Value(r#"["connect", "reset", "timeout"]"#), "After what another backend is tried: no connection, a connection that ended before an answer began, `per_try`; also \"502\", \"503\", \"504\": that status from the backend."),
    ],
};

#[rustfmt::skip]
pub(super) static CAPACITY: Section = Section {
    id: Id::Capacity,
    title: "capacity = { per_endpoint = …, … }",
    doc: "Requests in flight at the backends, over all workers. What is more waits its turn, and is answered with 503 and `Retry-After` when the queue is full or its time is over. At least one of `per_endpoint`, `service` and `adaptive` is to be said.",
    settings: &[
        row("per_endpoint", Kind::CountOr("off", 1, 1_000_000), Value(r#""off""#), "Requests in flight at each backend; also bounds connections in use and being made."),
        row("service", Kind::CountOr("off", 1, 1_000_000), Value(r#""off""#), "Requests in flight at all backends together."),
        row("queue", Kind::Count(0, QUEUE_MAX), Value("1000"), "Requests that wait at most; 0: none waits."),
        row("queue_time", Kind::Duration(10, HOUR), Value(r#""5s""#), "How long a request waits at most. A queue that was never empty for so long serves the newest first."),
        row("adaptive", Kind::Flag, Value("false"), "Find the limit of the whole service by the latency: as much in flight as does not make requests wait inside the backends."),
        row("adaptive_min", Kind::Count(1, 1_000_000), Value("4"), "The adaptive limit never falls below."),
        row("adaptive_max", Kind::Count(1, 1_000_000), Value("1000"), "The adaptive limit never rises above."),
    ],
};

#[rustfmt::skip]
pub(super) static BREAKER: Section = Section {
    id: Id::Breaker,
    title: "breaker = { failures = \"…\", … }",
    doc: "Stops asking a service that fails as a whole: requests are answered with 503 and `Retry-After` at once, and one at a time is let through to see whether it is back. A failure is a request that ended without an answer after all its tries, or with 502, 503 or 504.",
    settings: &[
        row("failures", Kind::Percent(1, 100), Value(r#""50%""#), "Share of failed requests at which it opens."),
        row("requests", Kind::Count(1, 1_000_000), Value("20"), "Requests in the window below which it does not open."),
        row("window", Kind::Duration(SECOND, HOUR), Value(r#""10s""#), "The time looked back upon."),
        row("open", Kind::Duration(100, HOUR), Value(r#""5s""#), "How long it stays open before each trial."),
    ],
};
