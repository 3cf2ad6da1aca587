//! Step 7, before each try: an endpoint and a slot at it, from the queue of the service if need be; after each, whether
//! there is another.
//!
//! A request that waits holds its head and nothing else: no byte of a body is asked of its client. It goes on with the
//! newest version of its service, so that endpoints which came meanwhile count.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::{Request, StatusCode};

use crate::base::clock::Millis;
use crate::base::outcome::{Blame, Outcome};
use crate::config::model::{Capacity, Cause};
use crate::proxy::Worker;
use crate::proxy::body::RequestBody;
use crate::proxy::context::Context;
use crate::proxy::exchange::Failure;
use crate::snapshot::{Action, Service, Site};
use crate::telemetry::metric::Counter;
use crate::upstream::balance::{Affinity, Ask, Tried};
use crate::upstream::breaker::{Change, Pass};
use crate::upstream::capacity::{Slot, Taken, Ticket, Turn};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::{Ledger, Weighted, retry};

/// The queue of a service that has none of its own, while a deployment holds its requests.
const HELD: Capacity = Capacity {
    per_endpoint: None,
    service: None,
    queue: 1_000,
    queue_time: Duration::from_secs(60),
    adaptive: None,
};

/// Where a request goes, try by try.
pub struct Way<'a> {
    worker: &'a Rc<Worker>,
    first: &'a Service,
    /// A newer version of the site, and the position of the route in it.
    newer: Option<(Arc<Site>, usize)>,
    /// Where it belongs.
    affinity: Affinity,
    tried: Tried,
    tries: u32,
    /// When the head of an answer must have come.
    until: Option<Millis>,
    /// When it has waited long enough, over all its waits.
    patience: Option<Millis>,
    /// What the breaker said.
    pass: Pass,
    /// Why there is another try, until it begins.
    retried: Option<Counter>,
    /// Another try is paid for already.
    paid: Cell<bool>,
    /// That there was no answer says nothing about the service.
    excused: Cell<bool>,
}

/// An endpoint for one try.
pub struct Chosen {
    pub(super) index: usize,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) slot: Slot,
}

impl<'a> Way<'a> {
    /// The way of a new request. `whole`: it has no body, so that the time for all its tries can be told.
    ///
    /// # Errors
    /// [`Outcome::CircuitOpen`]: it is not to be sent at all.
    pub fn begin(
        context: &mut Context,
        worker: &'a Rc<Worker>,
        service: &'a Service,
        whole: bool,
    ) -> Result<Way<'a>, Outcome> {
        let (core, now) = (&service.core, worker.wheel.now());
        let pass = core.breaker.as_ref().map_or(Pass::Closed, |rule| core.ledger.breaker.ask(rule, now));
        if let Pass::Open(left) = pass {
            context.retry_after = Some(left.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1));
            return Err(Outcome::CircuitOpen);
        }
        core.ledger.budget.earn(&core.retry, now);
        Ok(Way {
            worker,
            first: service,
            newer: None,
            affinity: context.affinity,
            tried: Tried::default(),
            tries: 0,
            until: core.retry.total.filter(|_| whole).map(|total| now.after(total)),
            patience: None,
            pass,
            retried: None,
            paid: Cell::new(false),
            excused: Cell::new(false),
        })
    }

    /// The worker it is on.
    pub fn worker(&self) -> &'a Rc<Worker> {
        self.worker
    }

    /// The service, in the newest version it knows.
    pub fn service(&self) -> &Service {
        let newer =
            self.newer.as_ref().and_then(|(site, route)| service_of(site, *route, &self.first.core.name));
        newer.unwrap_or(self.first)
    }

    /// Its end says nothing about the service: the client kept it waiting.
    pub fn excuse(&self) {
        self.excused.set(true);
    }

    /// When the head of an answer must have come.
    pub fn until(&self) -> Option<Millis> {
        self.until
    }

    /// An endpoint for the next try, and a slot at it. `None`: there is none.
    ///
    /// # Errors
    /// What became of it in the queue.
    pub async fn next(&mut self, context: &mut Context) -> Result<Option<Chosen>, Outcome> {
        match self.take(false) {
            Taken::Slot(index, slot) => Ok(Some(self.chosen(context, index, slot))),
            Taken::None => Ok(None),
            // Boxed: a request that finds room must not carry the room for a wait.
            Taken::Full => Box::pin(self.wait(context)).await,
        }
    }

    fn take(&self, in_line: bool) -> Taken {
        let (now, random) = (self.worker.wheel.now(), self.worker.random());
        let ask = Ask { now, random, affinity: self.affinity, tried: &self.tried };
        self.service().core.take(&ask, in_line)
    }

    fn chosen(&mut self, context: &mut Context, index: usize, slot: Slot) -> Chosen {
        let endpoint = slot.endpoint().clone();
        self.tries += 1;
        context.tries = self.tries;
        context.endpoint = Some(endpoint.clone());
        self.worker.count(self.retried.take());
        Chosen { index, endpoint, slot }
    }

    /// Whether the endpoint was tried; from now on it was.
    pub fn mark(&mut self, index: usize) -> bool {
        let before = self.tried.contains(index);
        self.tried.insert(index);
        before
    }

    /// Whether another try is left and another endpoint lives for it, and the budget pays for it.
    pub fn may_leave(&self, now: Millis) -> bool {
        let core = &self.service().core;
        let lives = |(at, one): (usize, &Weighted)| !self.tried.contains(at) && one.endpoint.is_up(now);
        let may = self.tries < core.retry.tries
            && core.endpoints.iter().enumerate().any(lives)
            && core.ledger.budget.pay(&core.retry, now);
        self.paid.set(may);
        may
    }

    /// Whether an answer with this status is let go for another endpoint's.
    pub fn leaves(&mut self, status: StatusCode) -> bool {
        let rule = &self.service().core.retry;
        let leaves = rule.statuses
            && rule.follows(Cause::Status(status.as_u16()))
            && self.until.is_none_or(|until| self.worker.wheel.now() < until)
            && self.may_leave(self.worker.wheel.now());
        if leaves {
            self.paid.set(false);
            self.retried = Some(Counter::RetriesStatus);
        }
        leaves
    }

    /// The request for another try after one that failed. `saved` makes it again, where it may be repeated.
    ///
    /// # Errors
    /// What the request ended in: there is no other try.
    pub(super) fn again(
        &mut self,
        failure: Failure,
        saved: impl FnOnce() -> Option<Box<Request<RequestBody>>>,
    ) -> Result<Box<Request<RequestBody>>, Outcome> {
        let (paid, outcome) = (self.paid.take(), failure.outcome);
        let cause = retry::cause(outcome).ok_or(outcome)?;
        let (core, now) = (&self.service().core, self.worker.wheel.now());
        if self.tries >= core.retry.tries || !core.retry.follows(cause) {
            return Err(outcome);
        }
        let saved = || if failure.answered { None } else { saved() };
        let request = failure.unsent.or_else(saved).ok_or(outcome)?;
        if self.until.is_some_and(|until| until <= now) {
            return Err(Outcome::TotalTimeout);
        }
        if !paid && !core.ledger.budget.pay(&core.retry, now) {
            self.worker.shard.add(Counter::RetryBudget, 1);
            return Err(outcome);
        }
        self.retried = Some(match cause {
            Cause::Connect => Counter::RetriesConnect,
            Cause::Reset => Counter::RetriesReset,
            Cause::Timeout => Counter::RetriesTimeout,
            Cause::Status(_) => Counter::RetriesStatus,
        });
        Ok(request)
    }

    /// Tells the breaker how it ended: with this status of a backend's, or without an answer.
    pub fn report(&self, ended: Result<u16, Outcome>) {
        let core = &self.service().core;
        let Some(rule) = &core.breaker else { return };
        let failed = match ended {
            Ok(status) => matches!(status, 502..=504),
            // There was no room, which says nothing of those inside; or the client was at fault.
            Err(Outcome::QueueFull | Outcome::QueueTimeout) => return,
            Err(outcome) if self.excused.get() || outcome.row().blame != Blame::Upstream => return,
            Err(_) => true,
        };
        let service = &*core.name;
        match core.ledger.breaker.report(rule, self.worker.wheel.now(), self.pass, failed) {
            Change::None => {}
            Change::Opened => tracing::warn!(
                service,
                "the breaker opens: {}% or more of the last requests failed; for {:?} all are refused, then one is let through",
                rule.failures,
                rule.open
            ),
            Change::Closed => tracing::warn!(service, "the breaker closes: a request was answered"),
        }
    }

    async fn wait(&mut self, context: &mut Context) -> Result<Option<Chosen>, Outcome> {
        let core = &self.service().core;
        let rule = core.capacity.as_ref().unwrap_or(&HELD);
        let (now, ledger) = (self.worker.wheel.now(), core.ledger.clone());
        let Some((ticket, tell)) = ledger.gate.line_up(rule, now) else {
            self.worker.shard.add(Counter::QueueFull, 1);
            return Err(self.refused(context, &ledger, Outcome::QueueFull));
        };
        if tell && ledger.gate.is_held(now) {
            tracing::info!(service = &*core.name, "requests wait: a deployment holds them");
        } else if tell {
            let (service, limit) = (&*core.name, core.limit());
            tracing::warn!(
                service,
                "requests wait: all backends have as many as `capacity` allows ({limit_text}); a queue of {} for {:?} at most",
                rule.queue,
                rule.queue_time,
                limit_text =
                    if limit == u32::MAX { "each its own".to_owned() } else { format!("{limit} in all") },
            );
        }
        self.worker.line(&core.name, &ledger);
        let patience = self.patience.unwrap_or(now.after(rule.queue_time));
        self.patience = Some(patience);
        let timer = self.worker.wheel.timer();
        let ends = self.until.map_or(patience, |until| until.min(patience));
        timer.set(Duration::from_millis(ends.0.saturating_sub(now.0)));
        let mut stay = Stay { worker: self.worker, ended: Counter::QueueGone };
        let mut turn = ticket.is_next();
        loop {
            if turn {
                self.renew(context);
                match self.take(true) {
                    Taken::Slot(index, slot) => {
                        ticket.served();
                        stay.ended = Counter::QueueServed;
                        return Ok(Some(self.chosen(context, index, slot)));
                    }
                    Taken::Full => {}
                    Taken::None => {
                        stay.ended = Counter::QueueServed;
                        return Ok(None);
                    }
                }
            }
            turn = match rung(&ticket, &timer).await {
                Some(Turn::Try) => true,
                Some(Turn::GaveWay) => {
                    stay.ended = Counter::QueueFull;
                    return Err(self.refused(context, &ledger, Outcome::QueueFull));
                }
                None => {
                    stay.ended = Counter::QueueTimeout;
                    return Err(self.refused(context, &ledger, Outcome::QueueTimeout));
                }
            };
        }
    }

    fn refused(&self, context: &mut Context, ledger: &Ledger, outcome: Outcome) -> Outcome {
        context.retry_after = Some(ledger.gate.retry_after(self.worker.wheel.now()));
        outcome
    }

    /// Goes over to the newest version of the service, if it was reloaded while the request waited.
    fn renew(&mut self, context: &Context) {
        let (Some(site), Some(route)) = (context.site(), context.route()) else { return };
        let held = self.newer.as_ref().map_or(site, |(site, _)| site);
        let snapshot = self.worker.snapshot();
        let same_name = |other: &&Arc<Site>| other.name == site.name;
        let at_same_place = context.site.and_then(|at| snapshot.sites.get(at)).filter(same_name);
        let Some(found) = at_same_place.or_else(|| snapshot.sites.iter().find(same_name)) else { return };
        if Arc::ptr_eq(found, held) {
            return;
        }
        let Some(at) = found.routes.iter().position(|other| other.label == route.label) else { return };
        let Some(service) = service_of(found, at, &self.first.core.name) else { return };
        // The body was prepared for the protocol that was spoken then.
        if service.core.http != self.first.core.http {
            return;
        }
        let mut tried = Tried::default();
        for (to, new) in service.core.endpoints.iter().enumerate().filter(|_| self.tries > 0) {
            let known = self.service().core.endpoints.iter().enumerate();
            if known
                .into_iter()
                .any(|(at, old)| self.tried.contains(at) && Arc::ptr_eq(&old.endpoint, &new.endpoint))
            {
                tried.insert(to);
            }
        }
        if let Affinity::Endpoint(at) = self.affinity {
            let old = self.service().core.endpoints.get(at);
            let same = |new: &Weighted| old.is_some_and(|old| Arc::ptr_eq(&old.endpoint, &new.endpoint));
            let found = service.core.endpoints.iter().position(same);
            self.affinity = found.map_or(Affinity::None, Affinity::Endpoint);
        }
        self.tried = tried;
        self.newer = Some((found.clone(), at));
    }
}

/// The service of this name that a route leads to, which may be one part of a split.
fn service_of<'s>(site: &'s Site, route: usize, name: &str) -> Option<&'s Service> {
    match &site.routes.get(route)?.action {
        Action::Proxy(service) => service.all().find(|one| *one.core.name == *name),
        _ => None,
    }
}

/// What comes first: a ring, or the end of its time (`None`).
async fn rung(ticket: &Ticket, timer: &crate::net::timer::Timer) -> Option<Turn> {
    poll_fn(|cx| match ticket.poll(cx) {
        Poll::Ready(turn) => Poll::Ready(Some(turn)),
        Poll::Pending => timer.poll_expired(cx).map(|()| None),
    })
    .await
}

/// A stay in the queue; counted by how it ended, also when the client goes away.
struct Stay<'a> {
    worker: &'a Worker,
    ended: Counter,
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.worker.shard.add(self.ended, 1);
    }
}

impl Worker {
    /// Somebody on this worker waits at a service: it is looked at every tick.
    fn line(&self, service: &Arc<str>, ledger: &Arc<Ledger>) {
        let mut lines = self.lines.borrow_mut();
        if !lines.iter().any(|(_, known)| Arc::ptr_eq(known, ledger)) {
            lines.push((service.clone(), ledger.clone()));
        }
    }

    /// Looks after the queues in which somebody on this worker waits, or did lately.
    pub(super) fn look_at_lines(&self) {
        let now = self.wheel.now();
        self.lines.borrow_mut().retain(|(service, ledger)| {
            let waiting = ledger.gate.waiting() > 0;
            if ledger.gate.look(now) {
                tracing::warn!(service = &**service, "no request waits any more");
            }
            waiting
        });
    }
}
