//! Layer 2, craft `route`: from a request head to a route. Pure matching; no I/O, no async, no clock.
//!
//! [`HostIndex`] leads from a host name to a site, [`Table`] from a request to a route of that site. The order in which
//! a table tries routes does not depend on the order of the file, except where nothing else decides:
//!
//! 1. `"=/exact"` paths,
//! 2. `"~regex"` paths, in the order written,
//! 3. prefixes, the longest first; the catch-all `/` is the shortest and therefore last.
//!
//! Among routes of the same path those with more conditions come first (the list of methods is one condition, each
//! header field and each query parameter one more), then the order written decides. A route whose conditions fail is
//! passed over and the next one is tried, so that a narrower route never hides a wider one.
//!
//! Paths arrive normalised and hosts cleaned; nothing is decoded here except the query parameters that a condition
//! names.

mod condition;
mod host;
mod path;

#[cfg(test)]
mod tests;

pub use host::HostIndex;

use http::Method;
use http::header::{HeaderMap, HeaderName};

use crate::config::model::Route;
use condition::Conditions;
use path::PathIndex;

/// What matching reads of a request.
#[derive(Debug, Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The normalised path.
    pub path: &'a str,
    /// What follows `?`, as sent.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

/// Why a route did not take a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// Its path is another.
    Path,
    /// The method is not in its list.
    Method,
    /// The condition on this header field failed.
    Header(HeaderName),
    /// The condition on this query parameter failed.
    Query(Box<str>),
}

/// The compiled routes of one site.
#[derive(Debug, Clone)]
pub struct Table {
    paths: PathIndex,
    conditions: Box<[Conditions]>,
    /// Every route in the order of trial.
    order: Box<[usize]>,
}

impl Table {
    /// Compiles the routes of a site.
    ///
    /// # Errors
    /// The index of the first route that does not compile, and a sentence saying what is wrong with it.
    pub fn compile(routes: &[Route]) -> Result<Table, (usize, String)> {
        let order = path::order(routes, condition::count);
        let paths = PathIndex::build(routes, &order)?;
        let compiled = routes
            .iter()
            .enumerate()
            .map(|(at, route)| Conditions::compile(route).map_err(|sentence| (at, sentence)))
            .collect::<Result<_, _>>()?;
        Ok(Table { paths, conditions: compiled, order: order.into() })
    }

    /// The route that takes the request, as an index into the slice given to [`Table::compile`].
    pub fn find(&self, head: &RequestHead<'_>) -> Option<usize> {
        self.paths.find(head.path, |at| self.conditions.get(at).is_some_and(|route| route.hold(head)))
    }

    /// Every route that was passed over before the one that [`Table::find`] returns, in the order of trial, and why.
    pub fn trace(&self, head: &RequestHead<'_>) -> Vec<(usize, Miss)> {
        let mut on_path = Vec::new();
        self.paths.find(head.path, |at| {
            on_path.push(at);
            false
        });
        let mut misses = Vec::new();
        for &at in &self.order {
            if !on_path.contains(&at) {
                misses.push((at, Miss::Path));
                continue;
            }
            match self.conditions.get(at).and_then(|route| route.miss(head)) {
                Some(miss) => misses.push((at, miss)),
                None => break,
            }
        }
        misses
    }
}
