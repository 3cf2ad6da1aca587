//! From cells to text: sums the shards at a scrape and writes the Prometheus text format.
//!
//! The sums are handed to the `prometheus` crate through one [`Collector`]. None of its own counters is used: its
//! `MetricVec` finds children by a hash of the label values joined without a separator, so that ("GET", "200") and
//! ("GET2", "00") would be one series. Here label values are only ever printed, never looked up.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use prometheus::TextEncoder;
use prometheus::core::{Collector, Desc};
use prometheus::proto;

use super::histogram::{BOUNDS, Totals};
use super::hub::{Hub, Reading, lock};
use super::metric::{Counter, Gauge, Kind, METHODS, Metric, STATUSES};
use super::shard::RouteCells;
use crate::base::outcome::Outcome;

/// Every metric as text. One family is built, written and dropped at a time, so that the text is the largest thing
/// in memory.
pub(super) fn render(hub: &Hub) -> String {
    let mut known = lock(&hub.scrape);
    let sums = Sums::of(hub, &mut known);
    let mut text = String::new();
    for metric in Metric::ALL {
        let family = sums.family(*metric);
        if family.get_metric().is_empty() {
            continue;
        }
        if let Err(error) = TextEncoder::new().encode_utf8(&[family], &mut text) {
            tracing::warn!(metric = metric.row().name, %error, "a metric could not be written and is left out");
        }
    }
    text
}

/// The hub as a [`Collector`], for programs that embed Tidegate beside other metrics.
#[derive(Debug)]
pub struct HubCollector {
    hub: Arc<Hub>,
    descriptions: Vec<Desc>,
}

impl HubCollector {
    /// A collector over a hub.
    pub fn new(hub: Arc<Hub>) -> HubCollector {
        let describe = |metric: &Metric| {
            let row = metric.row();
            let labels = row.labels.iter().map(ToString::to_string).collect();
            Desc::new(row.name.to_owned(), row.help.to_owned(), labels, HashMap::new()).ok()
        };
        HubCollector { hub, descriptions: Metric::ALL.iter().filter_map(describe).collect() }
    }
}

impl Collector for HubCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut known = lock(&self.hub.scrape);
        let sums = Sums::of(&self.hub, &mut known);
        let families = Metric::ALL.iter().map(|metric| sums.family(*metric));
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

/// One route, summed over the shards.
#[derive(Default)]
struct RouteSums {
    requests: [[u64; STATUSES.len()]; METHODS.len()],
    bytes_in: u64,
    bytes_out: u64,
    allowed: u64,
    limited: u64,
    duration: Totals,
    upstream: Totals,
}

impl RouteSums {
    fn add(&mut self, cells: &RouteCells) {
        for (row, cells) in self.requests.iter_mut().zip(&cells.requests) {
            for (sum, cell) in row.iter_mut().zip(cells) {
                *sum = sum.wrapping_add(cell.load(Relaxed));
            }
        }
        let pairs = [
            (&mut self.bytes_in, &cells.bytes_in),
            (&mut self.bytes_out, &cells.bytes_out),
            (&mut self.allowed, &cells.allowed),
            (&mut self.limited, &cells.limited),
        ];
        for (sum, cell) in pairs {
            *sum = sum.wrapping_add(cell.load(Relaxed));
        }
        self.duration.add(&cells.duration);
        self.upstream.add(&cells.upstream);
    }
}

/// Everything of one scrape.
struct Sums {
    names: Vec<(Arc<str>, Arc<str>)>,
    routes: Vec<Option<Box<RouteSums>>>,
    counters: [u64; Counter::ALL.len()],
    gauges: [i64; Gauge::ALL.len()],
    outcomes: [u64; Outcome::ALL.len()],
    /// By metric and labels: a repeated reading replaces the earlier one, since the format forbids both.
    readings: BTreeMap<(Metric, Vec<String>), f64>,
}

impl Sums {
    fn of(hub: &Hub, known: &mut Vec<Vec<Arc<RouteCells>>>) -> Sums {
        let mut sums = Sums {
            names: Vec::new(),
            routes: Vec::new(),
            counters: [0; Counter::ALL.len()],
            gauges: [0; Gauge::ALL.len()],
            outcomes: [0; Outcome::ALL.len()],
            readings: BTreeMap::new(),
        };
        let shards = hub.shards();
        known.resize(shards.len(), Vec::new());
        for (shard, known) in shards.iter().zip(known) {
            for (sum, cell) in sums.counters.iter_mut().zip(&shard.counters) {
                *sum = sum.wrapping_add(cell.load(Relaxed));
            }
            for (sum, cell) in sums.gauges.iter_mut().zip(&shard.gauges) {
                *sum = sum.wrapping_add(cell.load(Relaxed));
            }
            for (sum, cell) in sums.outcomes.iter_mut().zip(&shard.outcomes) {
                *sum = sum.wrapping_add(cell.load(Relaxed));
            }
            // A worker takes this lock at the first request of a route: hold it for what is new only.
            known.extend(lock(&shard.routes).iter().skip(known.len()).cloned());
            known.iter().for_each(|cells| sums.add_route(cells));
        }
        // Read after the routes: every id in a shard was given out before it could be counted.
        sums.names = hub.names();
        for Reading { metric, labels, value } in hub.readings() {
            sums.readings.insert((metric, labels), value);
        }
        sums
    }

    fn add_route(&mut self, cells: &RouteCells) {
        let index = cells.series.index();
        if self.routes.len() <= index {
            self.routes.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.routes.get_mut(index) {
            slot.get_or_insert_default().add(cells);
        }
    }

    fn routes(&self) -> impl Iterator<Item = (&str, &str, &RouteSums)> {
        let named = self.names.iter().zip(&self.routes);
        named.filter_map(|((site, route), sums)| Some((&**site, &**route, &**sums.as_ref()?)))
    }

    fn family(&self, metric: Metric) -> proto::MetricFamily {
        let mut family = Family { metric, samples: Vec::new() };
        match metric {
            Metric::Requests => self.requests(&mut family),
            Metric::RequestDuration => {
                self.routes()
                    .for_each(|(site, route, sums)| family.histogram(&[site, route], &sums.duration));
            }
            Metric::RequestBytes => {
                self.routes().for_each(|(site, route, sums)| family.count(&[site, route], sums.bytes_in));
            }
            Metric::ResponseBytes => {
                self.routes().for_each(|(site, route, sums)| family.count(&[site, route], sums.bytes_out));
            }
            Metric::UpstreamFirstByte => self.upstream(&mut family),
            Metric::LimitVerdicts => {
                for (site, route, sums) in self.routes().filter(|(.., sums)| sums.allowed + sums.limited > 0)
                {
                    family.count(&[site, route, "allowed"], sums.allowed);
                    family.count(&[site, route, "limited"], sums.limited);
                }
            }
            Metric::Outcomes => {
                for (outcome, count) in Outcome::ALL.iter().zip(&self.outcomes) {
                    family.count(&[outcome.code(), outcome.row().blame.as_str()], *count);
                }
            }
            _ => self.cells(&mut family),
        }
        family.finish()
    }

    fn requests(&self, family: &mut Family) {
        for (site, route, sums) in self.routes() {
            for (method, row) in METHODS.iter().zip(&sums.requests) {
                for (status, count) in STATUSES.iter().zip(row).filter(|(_, count)| **count > 0) {
                    family.count(&[site, route, method, status], *count);
                }
            }
        }
    }

    fn upstream(&self, family: &mut Family) {
        let mut sites: BTreeMap<&str, Totals> = BTreeMap::new();
        for (site, _, sums) in self.routes() {
            sites.entry(site).or_default().merge(&sums.upstream);
        }
        sites.iter().for_each(|(site, totals)| family.histogram(&[site], totals));
    }

    fn cells(&self, family: &mut Family) {
        for (counter, count) in Counter::ALL.iter().zip(&self.counters) {
            let (metric, labels) = counter.cell();
            if metric == family.metric {
                family.count(labels, *count);
            }
        }
        for (gauge, value) in Gauge::ALL.iter().zip(&self.gauges) {
            let (metric, labels) = gauge.cell();
            if metric == family.metric {
                family.value(labels, *value as f64);
            }
        }
        // Keys sort by metric first, so this metric's readings stand together.
        let wanted = family.metric;
        let from = self.readings.range((wanted, Vec::new())..);
        for ((_, labels), value) in from.take_while(|((metric, _), _)| *metric == wanted) {
            family.value(labels, *value);
        }
    }
}

/// One metric with its samples, on the way to the crate's types.
struct Family {
    metric: Metric,
    samples: Vec<proto::Metric>,
}

impl Family {
    fn count(&mut self, labels: &[&str], count: u64) {
        self.value(labels, count as f64);
    }

    fn value<L: AsRef<str>>(&mut self, labels: &[L], value: f64) {
        let mut sample = self.sample(labels);
        match self.metric.row().kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                sample.set_counter(counter);
            }
            Kind::Gauge | Kind::Histogram => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                sample.set_gauge(gauge);
            }
        }
        self.samples.push(sample);
    }

    fn histogram(&mut self, labels: &[&str], totals: &Totals) {
        if totals.count() == 0 {
            return;
        }
        let mut cumulative = 0u64;
        let buckets = BOUNDS.iter().zip(&totals.counts).map(|(bound, count)| {
            cumulative = cumulative.wrapping_add(*count);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound as f64 / 1e6);
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(totals.count());
        histogram.set_sample_sum(totals.sum as f64 / 1e6);
        let mut sample = self.sample(labels);
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }

    fn sample<L: AsRef<str>>(&self, labels: &[L]) -> proto::Metric {
        let pair = |(name, value): (&&str, &L)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.as_ref().to_owned());
            pair
        };
        proto::Metric::from_label(self.metric.row().labels.iter().zip(labels).map(pair).collect())
    }

    fn finish(self) -> proto::MetricFamily {
        let row = self.metric.row();
        let mut family = proto::MetricFamily::default();
        family.set_name(row.name.to_owned());
        family.set_help(row.help.to_owned());
        family.set_field_type(match row.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(self.samples);
        family
    }
}

#[cfg(test)]
mod tests;
