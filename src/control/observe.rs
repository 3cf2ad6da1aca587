//! `tidegate suggest`: has the workers watch for a bounded time, adds up what they saw, and says which limits would fit.
//! One at a time. Nothing of it is kept once it was told, or when nobody asks for it within a minute of its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};

use crate::base::address::truncated;
use crate::base::clock::{self, Millis};
use crate::base::policy::PolicyKind;
use crate::base::record::Privacy;
use crate::base::unit::{print_duration, print_size};
use crate::config::model::HostPattern;
use crate::config::section::host;
use crate::control::{Control, lock};
use crate::policy::observe::{Limit, Merged, Plan, Report, SiteReport, Spread, WINDOW, site_cap};
use crate::snapshot::{Site, Snapshot};

/// The longest that is watched.
pub const TIME_MAX: Duration = Duration::from_secs(3_600);
/// How long what was seen waits for somebody to ask for it.
const KEPT: Duration = Duration::from_secs(60);
/// Time between two looks at what the workers left.
const LOOK: Duration = Duration::from_secs(1);
/// How long the last tallies are waited for: workers look ten times a second.
const LAST_MAX: Duration = Duration::from_secs(2);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// What is watched now.
pub(super) struct Run {
    plan: Arc<Plan>,
    merged: Merged,
    seconds: u64,
    /// Most connections open at once, by site.
    peaks: HashMap<Arc<str>, u32>,
    /// What policies in shadow would have refused before it began, by site.
    before: HashMap<Arc<str>, Vec<(PolicyKind, u64)>>,
    /// Connections that each client had when it began.
    held: Spread,
    ended: Option<Millis>,
}

impl Control {
    /// Begins to watch one site, by its name or a host, or all of them.
    ///
    /// # Errors
    /// A sentence: why not.
    pub fn observe(self: &Arc<Self>, site: Option<&str>, time: Duration) -> Result<Value, String> {
        if time < Duration::from_secs(1) || time > TIME_MAX {
            return Err("the time must be from 1s to 1h".into());
        }
        let snapshot = self.cell.load();
        let sites = chosen(&snapshot, site)?;
        let mut state = lock(&self.observed);
        if let Some(run) = state.as_ref() {
            return Err(busy(run, clock::now()));
        }
        let id = self.watches.fetch_add(1, Ordering::Relaxed) + 1;
        let names: Vec<Arc<str>> = sites.iter().map(|site| site.name.clone()).collect();
        let plan = Arc::new(Plan::new(id, names, self.workers, clock::now(), time));
        let mut held = Spread::default();
        // Those that are open already took their places one after the other.
        for count in self.connections.held() {
            (1..=count).for_each(|nth| held.add(u64::from(nth), 1));
        }
        *state = Some(Run {
            merged: Merged::new(plan.clone()),
            seconds: time.as_secs(),
            peaks: HashMap::new(),
            before: sites.iter().map(|site| (site.name.clone(), site.would_block.all().collect())).collect(),
            held,
            ended: None,
            plan: plan.clone(),
        });
        self.residents.watch.set(Some(plan));
        drop(state);
        tracing::info!("watching {} for {} to suggest limits", told(site), print_duration(time));
        let control = self.clone();
        tokio::task::spawn_local(async move {
            while control.look(id) {
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(json!({ "id": id, "seconds": time.as_secs(), "sites": sites.len() }))
    }

    /// How it goes.
    pub fn observation(&self) -> Value {
        let mut state = lock(&self.observed);
        self.collect(&mut state);
        let Some(run) = state.as_ref() else { return json!({ "running": false }) };
        json!({
            "running": true,
            "id": run.plan.id,
            "seconds": run.seconds,
            "elapsed_seconds": elapsed(run, clock::now()),
            "over": run.ended.is_some(),
            "requests": run.merged.requests(),
        })
    }

    /// Ends it, where it still runs, and says what was seen. Nothing of it is left then.
    ///
    /// # Errors
    /// A sentence: nothing is watched.
    pub async fn end_observation(self: &Arc<Self>) -> Result<Value, String> {
        let id = lock(&self.observed).as_ref().map(|run| run.plan.id).ok_or("nothing is being watched")?;
        self.residents.watch.set(None);
        let limit = clock::now().after(LAST_MAX);
        while clock::now() < limit && !self.has_ended(id) {
            tokio::time::sleep(LAST_LOOK).await;
        }
        let run = lock(&self.observed).take().filter(|run| run.plan.id == id);
        let run = run.ok_or("somebody else has ended it, or it was over for a minute and forgotten")?;
        let control = self.clone();
        // Many clients take some time to sort.
        let report = tokio::task::spawn_blocking(move || control.report(run)).await;
        report.map_err(|error| error.to_string())
    }

    fn has_ended(&self, id: u64) -> bool {
        let mut state = lock(&self.observed);
        self.collect(&mut state);
        state.as_ref().is_none_or(|run| run.plan.id != id || run.merged.ended())
    }

    /// One look a second; whether there is to be another one.
    fn look(&self, id: u64) -> bool {
        let now = clock::now();
        let mut state = lock(&self.observed);
        self.collect(&mut state);
        let Some(run) = state.as_mut().filter(|run| run.plan.id == id) else { return false };
        if run.ended.is_none() {
            for site in &self.cell.load().sites {
                if run.before.contains_key(&site.name) {
                    let peak = run.peaks.entry(site.name.clone()).or_default();
                    *peak = site.places.open().max(*peak);
                }
            }
            if run.merged.ended() || now >= run.plan.until.after(LAST_MAX) {
                run.ended = Some(now);
                self.residents.watch.set(None);
            }
        }
        let forgotten = run.ended.is_some_and(|ended| now >= ended.after(KEPT));
        if forgotten {
            *state = None;
        }
        !forgotten
    }

    fn collect(&self, state: &mut Option<Run>) {
        let tallies = self.residents.watch.collect();
        if let Some(run) = state {
            tallies.into_iter().for_each(|tally| run.merged.add(tally));
        }
    }

    fn report(&self, run: Run) -> Value {
        let seconds = elapsed(&run, clock::now());
        let (sites, mut connections) = run.merged.finish();
        connections.merge(&run.held);
        let report = Report::new(&run.plan.sites, (sites, connections), seconds);
        let snapshot = self.cell.load();
        let site = |one: &SiteReport| {
            let site = snapshot.sites.iter().find(|site| site.name == one.name);
            let before = run.before.get(&one.name).map(Vec::as_slice).unwrap_or_default();
            let blocked = site.map(|site| blocked(site, before)).unwrap_or_default();
            let peak = run.peaks.get(&one.name).copied().unwrap_or(0);
            site_report(one, u64::from(peak), &blocked, snapshot.server.log.privacy)
        };
        json!({
            "seconds": seconds,
            "early": seconds < run.seconds,
            "window_seconds": WINDOW.as_secs(),
            "sites": report.sites.iter().map(site).collect::<Vec<_>>(),
            "silent_sites": report.silent,
            "connections_per_client": quantiles(&report.connections),
            "max_connections_per_client": report.cap.map(|cap| json!({
                "in_force": snapshot.server.max_connections_per_client,
                "value": cap.max,
                "refused": cap.refused,
                "toml": format!("max_connections_per_client = {}", cap.max),
            })),
        })
    }
}

fn told(site: Option<&str>) -> &str {
    site.unwrap_or("all sites")
}

fn busy(run: &Run, now: Millis) -> String {
    let since = elapsed(run, now);
    match run.ended {
        None => format!(
            "somebody watches already, for {since} of {} s: wait, or end it with `tidegate suggest --end`",
            run.seconds
        ),
        Some(_) => {
            "what was watched last was not asked for yet: take it with `tidegate suggest --end`, or wait a \
                    minute"
                .into()
        }
    }
}

fn elapsed(run: &Run, now: Millis) -> u64 {
    let end = run.ended.unwrap_or(now).min(run.plan.until);
    // Workers end with a tick, so that the last second is not always full.
    (end.0.saturating_sub(run.plan.begun.0) + 500) / 1000
}

/// The sites that are asked for.
fn chosen(snapshot: &Snapshot, wanted: Option<&str>) -> Result<Vec<Arc<Site>>, String> {
    let Some(wanted) = wanted else { return Ok(snapshot.sites.clone()) };
    let has = |host: &HostPattern| host::written(host) == wanted;
    let named = snapshot.sites.iter().find(|site| *site.name == *wanted);
    let found = named.or_else(|| snapshot.sites.iter().find(|site| site.hosts.iter().any(has)));
    let found = found.or_else(|| snapshot.sites.get(snapshot.find(wanted)?));
    found.map(|site| vec![site.clone()]).ok_or_else(|| format!("no site has the name or host `{wanted}`"))
}

/// What the policies in shadow would have refused since it began.
fn blocked(site: &Site, before: &[(PolicyKind, u64)]) -> Vec<(PolicyKind, u64)> {
    let then = |kind: PolicyKind| before.iter().find(|(of, _)| *of == kind).map_or(0, |(_, count)| *count);
    let since = site.would_block.all().map(|(kind, count)| (kind, count.saturating_sub(then(kind))));
    since.filter(|(_, count)| *count > 0).collect()
}

fn quantiles(spread: &Spread) -> Value {
    json!({
        "count": spread.count(),
        "p50": spread.quantile(500),
        "p90": spread.quantile(900),
        "p99": spread.quantile(990),
        "p99.9": spread.quantile(999),
        "max": spread.max(),
    })
}

fn site_report(one: &SiteReport, peak: u64, blocked: &[(PolicyKind, u64)], privacy: Privacy) -> Value {
    let Limit { count, refused, clients } = one.limit;
    let toml = format!(
        "limit = {{ rate = \"{count} per {}\", burst = {count}, mode = \"shadow\" }}",
        print_duration(WINDOW)
    );
    let top = one.top.map(|(key, permille)| {
        let address = key.address();
        let shown = if privacy == Privacy::Strict { truncated(address) } else { address };
        json!({ "client": shown.to_string(), "percent": permille as f64 / 10.0 })
    });
    let blocked: serde_json::Map<String, Value> =
        blocked.iter().map(|(kind, count)| (kind.as_str().to_owned(), json!(count))).collect();
    json!({
        "site": one.name,
        "requests": one.seen.requests,
        "clients": one.clients,
        "one_client_in": one.seen.one_in,
        "requests_per_client_and_window": quantiles(&one.seen.windows),
        "bodies": quantiles(&one.seen.bodies),
        "bodies_too_large": one.seen.too_large,
        "connections_peak": peak,
        "top_client": top,
        "would_block": blocked,
        "limit": {
            "count": count,
            "refused": refused,
            "refused_percent": refused as f64 * 100.0 / one.seen.requests.max(1) as f64,
            "refused_clients": clients,
            "toml": toml,
        },
        "max_body": { "bytes": one.body.max, "toml": format!("max_body = \"{}\"", print_size(one.body.max)) },
        "max_connections": (peak > 0).then(|| {
            let cap = site_cap(peak);
            json!({ "value": cap, "toml": format!("max_connections = {cap}") })
        }),
        "warnings": one.warnings,
    })
}
