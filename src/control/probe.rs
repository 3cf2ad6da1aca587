//! Asks endpoints how they are: `GET` the path of the service's `health`, in turn, with jitter.
//!
//! They are asked as requests ask: over HTTP/2 where the service says so or the endpoint chooses it, and behind a PROXY
//! protocol header in nobody's name where it wants one. Every answer below 400 is healthy. `rise` and `fall` answers in a
//! row change an endpoint's state; what it said last when it failed is kept for `status`. One task per endpoint, bounded by the endpoints of the snapshot; the tasks
//! follow the snapshot, not the other way round.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Uri, header};
use http_body_util::Empty;

use crate::config::model::{self, Http, ProxyHeader};
use crate::control::Control;
use crate::net::descriptors::Descriptor;
use crate::net::proxy_protocol;
use crate::net::timer::Wheel;
use crate::snapshot::{Action, Service, Snapshot};
use crate::upstream::connect::{self, Connection, Target};
use crate::upstream::multiplex::{Allowed, Multiplexed, Place};
use crate::upstream::{Endpoint, Health};

/// How often the tasks are compared with the snapshot.
const FOLLOW: Duration = Duration::from_millis(500);
/// Bytes of a probe's response head.
const HEAD_MAX: usize = 64 * 1024;
/// What probes call themselves.
const AGENT: &str = concat!("tidegate/", env!("CARGO_PKG_VERSION"));

/// One endpoint and how to ask it.
#[derive(Clone)]
struct Job {
    endpoint: Arc<Endpoint>,
    health: model::Health,
    host: String,
    http: Http,
    proxy_protocol: Option<ProxyHeader>,
    tls: Option<(Arc<rustls::ClientConfig>, rustls_pki_types::ServerName<'static>)>,
}

/// Follows the snapshot for ever.
pub async fn run(control: Arc<Control>, wheel: Wheel) {
    let mut running: HashMap<u64, (model::Health, tokio::task::JoinHandle<()>)> = HashMap::new();
    let mut generation = 0;
    loop {
        let snapshot = control.cell.load();
        if snapshot.generation != generation {
            generation = snapshot.generation;
            follow(&snapshot, &mut running, &wheel);
        }
        drop(snapshot);
        tokio::time::sleep(FOLLOW).await;
    }
}

fn follow(
    snapshot: &Snapshot,
    running: &mut HashMap<u64, (model::Health, tokio::task::JoinHandle<()>)>,
    wheel: &Wheel,
) {
    let mut wanted: HashMap<u64, Job> = jobs(snapshot).map(|job| (job.endpoint.id, job)).collect();
    running.retain(|id, (health, task)| {
        let same = wanted.get(id).is_some_and(|job| job.health == *health);
        if same {
            wanted.remove(id);
        } else {
            task.abort();
        }
        same
    });
    for (id, job) in wanted {
        let health = job.health.clone();
        running.insert(id, (health, tokio::task::spawn_local(watch(job, wheel.clone()))));
    }
}

fn jobs(snapshot: &Snapshot) -> impl Iterator<Item = Job> {
    let routes = snapshot.sites.iter().flat_map(|site| site.routes.iter().map(move |route| (site, route)));
    routes
        .filter_map(|(site, route)| match &route.action {
            Action::Proxy(service) => Some((site, service)),
            _ => None,
        })
        .flat_map(|(site, service)| service.all().map(move |service| (site, service)))
        .filter_map(|(site, service)| Some((site, service, service.core.health.as_ref()?)))
        .flat_map(|(site, service, health)| {
            service.core.endpoints.iter().enumerate().map(move |(index, weighted)| Job {
                endpoint: weighted.endpoint.clone(),
                health: health.clone(),
                host: site.name.to_string(),
                http: service.core.http,
                proxy_protocol: service.core.proxy_protocol,
                tls: tls(service, index),
            })
        })
}

fn tls(
    service: &Service,
    index: usize,
) -> Option<(Arc<rustls::ClientConfig>, rustls_pki_types::ServerName<'static>)> {
    let name = service.server_names.get(index)?.as_ref()?;
    Some((service.tls.as_ref()?.clone(), name.clone()))
}

/// Probes one endpoint for ever.
async fn watch(job: Job, wheel: Wheel) {
    let (mut good, mut bad) = (0u32, 0u32);
    let mut round = job.endpoint.id;
    loop {
        match probe(&job, &wheel).await {
            Ok(()) => {
                (good, bad) = (good.saturating_add(1), 0);
                // The first answer of a fresh endpoint counts at once: a start should not wait for `rise` probes.
                let unknown = job.endpoint.health() == Health::Unknown;
                if (unknown || good >= job.health.rise) && job.endpoint.health() != Health::Healthy {
                    job.endpoint.set_health(Health::Healthy);
                    tracing::info!(
                        service = &*job.endpoint.service,
                        endpoint = job.endpoint.label,
                        "backend is healthy"
                    );
                }
            }
            Err(why) => {
                (good, bad) = (0, bad.saturating_add(1));
                job.endpoint.note_failure(&format!("health check GET {}: {why}", job.health.path));
                if bad >= job.health.fall && job.endpoint.health() != Health::Unhealthy {
                    job.endpoint.set_health(Health::Unhealthy);
                    tracing::warn!(
                        service = &*job.endpoint.service,
                        endpoint = job.endpoint.label,
                        "backend is unhealthy: {why}"
                    );
                }
            }
        }
        round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(jittered(job.health.interval, round)).await;
    }
}

/// The interval give or take 10 %, so that a thousand endpoints are not asked in one moment.
fn jittered(interval: Duration, random: u64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * ((random >> 40) as f64 / (1u64 << 24) as f64))
}

async fn probe(job: &Job, wheel: &Wheel) -> Result<(), String> {
    let asked = tokio::time::timeout(job.health.timeout, ask(job, wheel)).await;
    let status = asked.map_err(|_| format!("no answer within {:?}", job.health.timeout))??;
    if status.as_u16() < 400 { Ok(()) } else { Err(format!("answered {status}")) }
}

async fn ask(job: &Job, wheel: &Wheel) -> Result<http::StatusCode, String> {
    let header = match job.proxy_protocol {
        None => &[],
        Some(ProxyHeader::V1) => proxy_protocol::V1_UNKNOWN,
        Some(ProxyHeader::V2) => proxy_protocol::V2_LOCAL,
    };
    let target = Target {
        address: &job.endpoint.address,
        tls: job.tls.as_ref().map(|(config, name)| (config, name)),
        timeout: job.health.timeout,
        head_max: HEAD_MAX,
        bound: None,
        header: header.to_vec(),
        wheel,
        descriptor: Descriptor::of_reserve(),
    };
    let shared = match job.http {
        Http::H1 => false,
        Http::H2 => true,
        Http::Auto => job.tls.is_some(),
    };
    if shared {
        return ask_shared(job, target).await;
    }
    let connection = connect::connect(target).await.map_err(|error| error.to_string())?;
    ask_alone(job, connection).await
}

async fn ask_alone(job: &Job, mut connection: Connection<Empty<Bytes>>) -> Result<http::StatusCode, String> {
    // Bytes that nobody asked for are no answer.
    connection.ask(&Method::GET, false);
    let request = Request::get(&job.health.path)
        .header(header::HOST, &job.host)
        .header(header::USER_AGENT, AGENT)
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = connection.sender.send_request(request).await.map_err(|error| error.to_string())?;
    Ok(answer.status())
}

async fn ask_shared(job: &Job, target: Target<'_>) -> Result<http::StatusCode, String> {
    // A connection of its own each time: it is connecting that is probed.
    let connections = Multiplexed::<Empty<Bytes>>::default();
    let alone = job.http == Http::Auto;
    let allowed = Allowed { connections: 1, ping_after: job.health.interval, alone };
    let placed = connections.place(&job.endpoint, target, || Some(Descriptor::of_reserve()), allowed).await;
    let stream = match placed.map_err(|error| error.to_string())? {
        Place::Shared(stream) => stream,
        Place::Alone(Some(connection)) => return ask_alone(job, *connection).await,
        // Nothing was chosen before on connections of its own.
        Place::Alone(None) => return Err("it was not connected".to_owned()),
    };
    let scheme = if job.tls.is_some() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(job.host.as_str()).path_and_query(&*job.health.path);
    let request = Request::get(uri.build().map_err(|error| error.to_string())?)
        .header(header::USER_AGENT, AGENT)
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let answer = stream.sender().send_request(request).await.map_err(|error| error.to_string())?;
    Ok(answer.status())
}
