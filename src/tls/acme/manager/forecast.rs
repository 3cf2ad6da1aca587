//! The plan with what it would fail of.

use super::Manager;
use crate::net::dns::Resolver;
use crate::tls::acme::predict::{self, Question};

/// Certificates looked at, in the order of the queue: more than have room in one answer.
const QUESTIONS_MAX: usize = 64;

impl Manager {
    /// [`Manager::plan`], and what is to be expected of DNS for the first certificates of the queue. Takes some seconds at
    /// most.
    pub async fn forecast(&self) -> serde_json::Value {
        let mut plan = self.plan();
        let (client, resolver, directory, questions) = {
            let inner = self.lock();
            let resolvers = inner.settings.dns.as_ref().map(|dns| dns.resolvers.as_slice());
            let queue = inner.queue.plan(super::now());
            let sites = queue.into_iter().take(QUESTIONS_MAX);
            let questions: Vec<Question> = sites
                .filter_map(|(site, _)| inner.job(&site, 0))
                .map(|job| Question { site: job.site, names: job.names, challenges: job.challenges })
                .collect();
            let directory = inner.settings.directories.first().map(|directory| directory.url.clone());
            (inner.engines.client.clone(), Resolver::new(resolvers.unwrap_or_default()), directory, questions)
        };
        let found = predict::predict(&resolver, &client, &directory.unwrap_or_default(), questions).await;
        if let (Some(plan), Ok(serde_json::Value::Object(found))) =
            (plan.as_object_mut(), serde_json::to_value(found))
        {
            plan.extend(found);
        }
        plan
    }
}
