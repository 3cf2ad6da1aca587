//! Looks a few times a second at what tenants have of the node, so that their shares follow, and at how near the node is
//! to its bounds, so that something is given up in time. For `status` and `/metrics` too.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::{clock, gentle};
use crate::control::Control;
use crate::net::timer::TICK;
use crate::policy::connection_limit::Connections;
use crate::policy::overload::{Cause, Controller, Stage, client_share, percent};
use crate::policy::share::usage::OVER;
use crate::policy::share::{Levels, Tenant, Thing};
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;
use crate::telemetry::process;

/// How often.
const LOOK: Duration = Duration::from_millis(250);
/// Tenants that `status` shows, and that have metrics of their own: those that use most.
const SHOWN_MAX: usize = 20;
const MEASURED_MAX: usize = 200;

/// Memory that is the process's where nothing else is said, in tenths of what there is.
const MEMORY_TENTHS: u64 = 9;

/// Percent of the memory there is for us below which what a tenant's bodies hold of it does not matter, whatever part it is
/// of what all bodies hold.
const HOARD_PERCENT: u64 = 1;
/// Pressure on memory at which requests of all sites are given up, though some tenant holds more than its share.
const FULL_ANYHOW: u32 = 105;

/// How near the node is to each bound, in percent; and what decides about it.
#[derive(Default)]
pub struct View {
    pressures: [AtomicU32; Cause::ALL.len()],
    /// Which of them is greatest.
    cause: AtomicUsize,
    /// Memory that there is for us, in bytes; 0: not known.
    memory: AtomicU64,
}

/// Looks for ever.
pub async fn run(control: Arc<Control>) {
    let mut controller = Controller::default();
    control.load.memory.store(memory_there_is().unwrap_or(0), Relaxed);
    loop {
        let looking = control.clone();
        let look = move || {
            look(&looking, &mut controller);
            looking.cell.sweep();
            controller
        };
        // There may be ten thousand tenants: not on the thread that answers the admin socket, nor in one go.
        let looked = tokio::task::spawn_blocking(|| gentle::work(look));
        controller = looked.await.unwrap_or_default();
        tokio::time::sleep(LOOK).await;
    }
}

fn look(control: &Control, controller: &mut Controller) {
    let (snapshot, now) = (control.cell.load(), clock::now());
    let server = &snapshot.server;
    let tenants = control.residents.tenants.survey();
    let levels = &control.residents.tenants.levels;
    let (in_flight, late) = levels.load.pulse(now, TICK);
    let (connections, budget) = (&control.connections, control.connections.descriptors());
    let in_flight_max = server.shares.in_flight.unwrap_or_else(|| connections.max());
    let memory_max = server.overload.memory.unwrap_or_else(|| control.load.memory.load(Relaxed));
    let millis = u64::try_from(server.overload.lag.as_millis()).unwrap_or(u64::MAX);
    let of = |cause| match cause {
        Cause::Lag => percent(late, millis),
        Cause::Memory if memory_max == 0 => 0,
        Cause::Memory => percent(process::resident().unwrap_or(0), memory_max),
        Cause::Connections => percent(connections.open().into(), connections.max().into()),
        Cause::Descriptors => percent(budget.used().into(), budget.max().into()),
        Cause::InFlight => percent(in_flight, in_flight_max.into()),
    };
    let pressures = Cause::ALL.map(of);
    for (cell, pressure) in control.load.pressures.iter().zip(pressures) {
        cell.store(pressure, Relaxed);
    }
    let (at, pressure) = pressures.iter().enumerate().max_by_key(|(_, p)| **p).unwrap_or((0, &0));
    control.load.cause.store(at, Relaxed);
    let bounds = Bounds {
        connections,
        in_flight,
        in_flight_max: in_flight_max.into(),
        memory_max,
        pressures,
        enough: server.shares.lend.min(Stage::NoKeepAlive.enter()),
    };
    let (over, hoards) = bounds.mark(&tenants, levels);
    let client_max = bounds.client_max();
    levels.load.set_client_max(client_max);
    let before = controller.stage();
    if let Some(stage) = controller.look(*pressure, server.overload.hold, now) {
        tell(before, stage, Cause::ALL.get(at).copied().unwrap_or(Cause::Lag), *pressure, over);
    }
    // A connection costs more processor than a request: where that is what runs short, ending them would make it worse.
    let by_count =
        matches!(Cause::ALL.get(at), Some(Cause::Memory | Cause::Connections | Cause::Descriptors));
    // Whoever holds the memory is refused alone for as long as that may be enough.
    let full_at = if hoards { FULL_ANYHOW } else { 100 };
    let full = pressures.get(Cause::Memory as usize).is_some_and(|memory| *memory >= full_at);
    // Only while it is needed: the stage outlasts that for a while.
    let nobody = over == 0 && client_max.is_none_or(|max| !connections.exceeded(max));
    let everybody = nobody && by_count && *pressure >= Stage::NoKeepAlive.enter();
    levels.load.set(controller.stage(), everybody, full);
}

/// What a look sees.
struct Bounds<'a> {
    connections: &'a Connections,
    in_flight: u64,
    in_flight_max: u64,
    memory_max: u64,
    pressures: [u32; Cause::ALL.len()],
    /// Percent from which something runs short: what is more than lent, or makes something be given up.
    enough: u32,
}

impl Bounds<'_> {
    fn scarce(&self, cause: Cause) -> bool {
        self.pressures.get(cause as usize).is_some_and(|pressure| *pressure >= self.enough)
    }

    /// Notes which tenants have more than their share of what runs short. Gives how many, and whether memory does and any
    /// of them holds more than its share of what bodies have of it.
    fn mark(&self, tenants: &[Arc<Tenant>], levels: &Levels) -> (usize, bool) {
        let buffered = gentle::each(tenants).map(|tenant| tenant.buffered.load(Relaxed)).sum();
        let least = self.memory_max / 100 * HOARD_PERCENT;
        let hoards = |tenant: &Tenant| {
            self.scarce(Cause::Memory)
                && tenant.buffered.load(Relaxed) >= least.max(1)
                && tenant.exceeds(Thing::Buffered, buffered, levels)
        };
        let hoarded = gentle::each(tenants).any(|tenant| hoards(tenant));
        let counted = [
            (Cause::Connections, Thing::Connections, self.connections.max().into()),
            (Cause::Descriptors, Thing::Upstream, self.connections.descriptors().max().into()),
            (Cause::InFlight, Thing::InFlight, self.in_flight_max),
            // Where it is not the bodies that fill the memory, it is what requests and connections need.
            (Cause::Memory, Thing::InFlight, self.in_flight),
            (Cause::Memory, Thing::Connections, self.connections.open().into()),
        ];
        let mut over = 0;
        for tenant in gentle::each(tenants) {
            let has_more = |(cause, thing, whole)| {
                self.scarce(cause)
                    && !(cause == Cause::Memory && hoarded)
                    && tenant.exceeds(thing, whole, levels)
            };
            let is_over = u64::from(tenant.percent.load(Relaxed)) > OVER
                || hoards(tenant)
                || counted.into_iter().any(has_more);
            tenant.over.store(is_over, Relaxed);
            over += usize::from(is_over);
        }
        (over, hoarded)
    }

    /// How many connections a client may have before it is over its share, if they run short.
    fn client_max(&self) -> Option<u32> {
        let (connections, clients) = (self.connections, self.connections.clients());
        let whole = if self.scarce(Cause::Connections) {
            connections.max()
        } else if self.scarce(Cause::Descriptors) || self.scarce(Cause::Memory) {
            connections.open()
        } else {
            return None;
        };
        Some(client_share(whole, clients))
    }
}

fn tell(before: Stage, stage: Stage, cause: Cause, pressure: u32, over: usize) {
    let (cause, stage_number, what) = (cause.as_str(), stage as u8, stage.as_str());
    if stage > before {
        tracing::warn!(
            stage = stage_number,
            cause,
            tenants_over_their_share = over,
            "overload: {what} ({cause} is at {pressure} % of its bound)"
        );
    } else {
        tracing::info!(stage = stage_number, cause, "overload: {what} (all is below its bound by far)");
    }
}

/// What our control group may have, else what the machine has.
fn memory_there_is() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
    });
    // Version 2 of control groups; `max` is no number, and no bound.
    let group = std::fs::read_to_string("/proc/self/cgroup").ok();
    let path = group.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("0::/")));
    let files = [
        path.map(|path| format!("/sys/fs/cgroup/{path}/memory.max")),
        Some("/sys/fs/cgroup/memory.max".to_owned()),
    ];
    let bounds = files
        .into_iter()
        .flatten()
        .filter_map(|file| std::fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
    let least = bounds.chain(machine).min()?;
    Some(least / 10 * MEMORY_TENTHS)
}

/// Tenants that have anything, or had something refused; those that used most of their share first.
fn busiest(control: &Control) -> Vec<Arc<Tenant>> {
    let told = |tenant: &&Arc<Tenant>| {
        let counts = [&*tenant.connections, &*tenant.upstream, &tenant.in_flight, &tenant.percent];
        counts.iter().any(|count| count.load(Relaxed) > 0)
            || tenant.buffered.load(Relaxed) > 0
            || tenant.shed.load(Relaxed) > 0
    };
    let mut tenants: Vec<_> = control.residents.tenants.all().iter().filter(told).cloned().collect();
    let rank = |tenant: &Arc<Tenant>| {
        let used =
            [&tenant.percent, &tenant.in_flight, &*tenant.connections].map(|count| count.load(Relaxed));
        Reverse((used, tenant.shed.load(Relaxed)))
    };
    tenants.sort_by_cached_key(rank);
    tenants
}

/// The part of `GET /status` about overload.
pub(super) fn overload(control: &Control) -> Value {
    let stage = control.residents.tenants.levels.load.stage();
    let cause = Cause::ALL.get(control.load.cause.load(Relaxed)).copied().unwrap_or(Cause::Lag);
    let pressures = Cause::ALL.iter().zip(&control.load.pressures);
    json!({
        "stage": stage as u8,
        "what": stage.as_str(),
        "cause": cause.as_str(),
        "connections_per_client_max": control.residents.tenants.levels.load.client_max(),
        "pressure_percent": pressures.map(|(cause, p)| (cause.as_str(), p.load(Relaxed))).collect::<BTreeMap<_, _>>(),
    })
}

/// The part of `GET /status` about tenants.
pub(super) fn status(control: &Control) -> Value {
    let row = |tenant: &Arc<Tenant>| {
        json!({
            "name": tenant.name,
            "weight": tenant.weight(),
            "share_percent": tenant.percent.load(Relaxed),
            "over": tenant.over.load(Relaxed),
            "connections": tenant.connections.load(Relaxed),
            "in_flight": tenant.in_flight.load(Relaxed),
            "upstream": tenant.upstream.load(Relaxed),
            "buffered_bytes": tenant.buffered.load(Relaxed),
            "shed": tenant.shed.load(Relaxed),
        })
    };
    busiest(control).iter().take(SHOWN_MAX).map(row).collect()
}

/// What is read at each scrape.
pub(super) fn readings(control: &Control, readings: &mut Vec<Reading>) {
    let stage = control.residents.tenants.levels.load.stage();
    readings.push(Reading::new(Metric::OverloadStage, &[], f64::from(stage as u8)));
    for (cause, pressure) in Cause::ALL.iter().zip(&control.load.pressures) {
        let value = f64::from(pressure.load(Relaxed)) / 100.0;
        readings.push(Reading::new(Metric::Pressure, &[cause.as_str()], value));
    }
    for tenant in busiest(control).iter().take(MEASURED_MAX) {
        let name = [&*tenant.name];
        let mut read = |metric, value: f64| readings.push(Reading::new(metric, &name, value));
        read(Metric::TenantShare, f64::from(tenant.percent.load(Relaxed)) / 100.0);
        read(Metric::TenantConnections, f64::from(tenant.connections.load(Relaxed)));
        read(Metric::TenantUpstream, f64::from(tenant.upstream.load(Relaxed)));
        read(Metric::TenantInFlight, f64::from(tenant.in_flight.load(Relaxed)));
        read(Metric::TenantBuffered, tenant.buffered.load(Relaxed) as f64);
        read(Metric::TenantCpu, tenant.micros.load(Relaxed) as f64 / 1e6);
        read(Metric::TenantShed, tenant.shed.load(Relaxed) as f64);
    }
}
