//! Layer 2, craft `discovery`: where endpoints are, asked of the world outside.
//!
//! A [`Source`] is a question as the configuration says it. Whoever answers is a [`Watch`]:
//! a stream of [`Update`]s, made of addresses and texts, never of runtime types. The last answer to each question is
//! kept in [`Sets`], beside the snapshot: a source that falls silent takes no endpoint away.
//!
//! [`mod@file`] reads a list from a file, [`dns`] asks name servers, [`deployed`] knows what was deployed; [`docker`] follows the
//! containers of an engine, which answers many questions at once and also brings whole sites, made from labels.

pub mod deployed;
pub mod dns;
pub mod docker;
pub mod file;
mod sets;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use crate::base::address::EndpointAddress;
use crate::config::model::{Resolution, Source};
pub use sets::{Engine, Set, Sets};

/// Endpoints that one source may name; more are cut off and told.
pub const MEMBERS_MAX: usize = 1_000;

/// One endpoint that a source found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Where it is.
    pub address: EndpointAddress,
    /// Its share, where the source says one.
    pub weight: Option<u32>,
    /// What the source calls it, such as the name of a container; empty where it has no name for it.
    pub name: Arc<str>,
}

impl Member {
    /// An endpoint of which nothing but the address is known.
    pub fn at(address: EndpointAddress) -> Member {
        Member { address, weight: None, name: Arc::from("") }
    }
}

/// What a source found out.
#[derive(Debug, Clone)]
pub enum Update {
    /// Its endpoints are these now, in any order. None at all is a legal answer.
    Members(Source, Vec<Member>),
    /// Its endpoints are these now, some of them because they were before: not all could be found out. A sentence for the
    /// operator.
    Partly(Source, Vec<Member>, String),
    /// Nothing could be found out: the last endpoints stay. A sentence for the operator.
    Trouble(Source, String),
    /// What the container engine says about any number of questions.
    Engine(Box<docker::News>),
    /// The container engine cannot be asked: all that it said stays. A sentence for the operator.
    EngineLost(String),
}

impl Update {
    /// Which question this answers; `None`: any number of them.
    pub fn source(&self) -> Option<&Source> {
        match self {
            Update::Members(source, _) | Update::Partly(source, ..) | Update::Trouble(source, _) => {
                Some(source)
            }
            Update::Engine(_) | Update::EngineLost(_) => None,
        }
    }
}

/// Answers a question again and again.
#[async_trait]
pub trait Watch: Send {
    /// Waits for the next thing worth telling. The first call answers as soon as it can; `None` is the end of it.
    async fn next(&mut self) -> Option<Update>;
}

/// Who answers a question; `None`: the container engine does. `state`: the state folder; `known`: the last answer.
pub fn watch(
    source: &Source,
    resolution: &Resolution,
    state: &Path,
    known: &[Member],
) -> Option<Box<dyn Watch>> {
    Some(match source {
        Source::Deployed(name) => Box::new(deployed::watch(name, state)),
        Source::Dns(..) | Source::Srv(_) => Box::new(dns::DnsWatch::new(source, resolution, known)),
        Source::File(path) => Box::new(file::FileWatch::new(Path::new(&**path))),
        Source::Docker { .. } | Source::Labels { .. } => return None,
    })
}
