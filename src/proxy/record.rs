//! Step 10: a request's numbers and its access record, exactly once, when its context ends.

use http::{HeaderValue, Method, Version};

use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::base::policy::Marks;
use crate::proxy::context::{Connection, Context};
use crate::proxy::{Worker, enforce, observe};
use crate::telemetry::access::Record;
use crate::telemetry::hub::SeriesId;
use crate::telemetry::metric::Counter;
use crate::telemetry::shard::Ending;

/// Records a request.
pub fn record(context: &mut Context) {
    if context.upload.as_ref().is_some_and(|upload| upload.would_wait()) {
        enforce::would_wait(context);
    }
    let context = &*context;
    let worker = context.worker();
    let outcome = context.outcome();
    let (bytes_in, bytes_out) = context.bytes();
    let micros = context.elapsed();
    // Nothing was sent, because nobody was there to read it: the outcome's own status says that best.
    let status = if context.status == 0 { outcome.row().status } else { context.status };
    worker.shard.request(&Ending {
        series: context.series,
        method: &context.method,
        status,
        outcome,
        bytes_in,
        bytes_out,
        micros,
        upstream_micros: context.upstream_micros,
    });
    if context.endpoint.as_ref().is_some_and(|endpoint| endpoint.exposed) {
        worker.shard.add(Counter::UpstreamPlaintext, bytes_in + bytes_out);
    }
    observe::ended(context, outcome);
    if !worker.sink.enabled() {
        return;
    }
    let identity = context.connection.client_cert().map(|cert| &cert.identity);
    worker.sink.write(&Record {
        wall_ms: worker.wall_ms(context.started()),
        request_id: context.request_id.to_str().unwrap_or_default(),
        client: context.client,
        site: context.site().map_or("none", |site| &site.name),
        route: context.route().map_or("none", |route| &route.label),
        service: context.endpoint.as_ref().map_or("", |endpoint| &endpoint.service),
        method: context.method.as_str(),
        host: context.host_text(),
        path: context.uri.path(),
        query: context.uri.query(),
        version: context.version,
        tls: context.connection.tls_version(),
        client_cert: identity.map_or("", |identity| &identity.fingerprint),
        client_subject: identity.map_or("", |identity| &identity.subject),
        status,
        outcome,
        bytes_in,
        bytes_out,
        micros,
        upstream: context.endpoint.as_ref().map_or("", |endpoint| &endpoint.label),
        upstream_micros: context.upstream_micros,
        tries: context.tries,
        user_agent: context.user_agent.as_ref().map_or(b"", HeaderValue::as_bytes),
        referer: context.referer.as_ref().map_or(b"", HeaderValue::as_bytes),
        user: context.identity.as_deref().unwrap_or_default(),
        would_block: context.would_block,
        patch: context.patch.as_deref().unwrap_or_default(),
        generation: context.snapshot.generation,
    });
}

/// Records bytes that never became a request; gives the id that the answer carries.
pub fn unread(worker: &Worker, connection: &Connection, outcome: Outcome) -> String {
    let id = worker.next_request_id();
    let id = id.to_str().unwrap_or_default().to_owned();
    if !connection.trusted {
        enforce::note(worker, &worker.snapshot(), None, connection.client.ip(), outcome);
    }
    let status = outcome.row().status;
    // A method the client may have meant is not known: it counts as another one.
    let method = Method::from_bytes(b"-").unwrap_or_default();
    worker.shard.request(&Ending {
        series: SeriesId::NONE,
        method: &method,
        status,
        outcome,
        bytes_in: 0,
        bytes_out: 0,
        micros: 0,
        upstream_micros: None,
    });
    if worker.sink.enabled() {
        worker.sink.write(&Record {
            wall_ms: worker.wall_ms(clock::micros()),
            request_id: &id,
            client: connection.client.ip(),
            site: "none",
            route: "none",
            service: "",
            method: "-",
            host: "",
            path: "",
            query: None,
            version: Version::HTTP_11,
            tls: connection.tls_version(),
            client_cert: "",
            client_subject: "",
            status,
            outcome,
            bytes_in: 0,
            bytes_out: 0,
            micros: 0,
            upstream: "",
            upstream_micros: None,
            tries: 0,
            user_agent: b"",
            referer: b"",
            user: "",
            would_block: Marks::default(),
            patch: "",
            generation: worker.snapshot().generation,
        });
    }
    id
}
