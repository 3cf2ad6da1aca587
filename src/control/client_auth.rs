//! What will soon be wrong with the revocation lists behind client certificates: told at each load, once a day in the
//! log, and in a gauge.

use crate::base::clock;
use crate::config::{Diagnostic, model};
use crate::control::Control;
use crate::snapshot::Site;
use crate::telemetry::hub::Reading;
use crate::telemetry::metric::Metric;
use crate::tls::client_auth::ClientAuth;

/// Warnings about a site's lists and authorities, at the files concerned.
pub(super) fn worries(said: &model::Site, site: &Site) -> Vec<Diagnostic> {
    let (Some(said_auth), Some(auth)) = (&said.tls.client_auth, &site.policy.auth) else { return Vec::new() };
    let Some(file) = &said_auth.crl_file else { return Vec::new() };
    let warn = |code, message: String, help: &str| {
        Diagnostic::warning(code, &file.origin, message).help(help.to_owned()).for_site(&said.name)
    };
    let old = dated(auth).map(|message| {
        warn("revocation-list-expires", message, "get the newest one; Tidegate takes the new file by itself")
    });
    let uncovered = auth.without_list.iter().map(|name| {
        let message =
            format!("there is no revocation list of the authority `{name}`: its clients are refused");
        warn("revocation-list-missing", message, "add its list to the file, or take it out of `ca_file`")
    });
    old.into_iter().chain(uncovered).collect()
}

/// What to say about the list whose date comes first.
fn dated(auth: &ClientAuth) -> Option<String> {
    let now = clock::wall().as_secs();
    let list = auth.lists.iter().filter(|list| list.warn_from.is_some_and(|from| from <= now));
    let list = list.min_by_key(|list| list.next_update)?;
    let past = list.next_update.is_some_and(|at| at <= now);
    let issuer = &list.issuer;
    Some(match (past, auth.accept_expired) {
        (true, false) => {
            format!("the revocation list of `{issuer}` is past its date: its clients are refused")
        }
        (true, true) => format!("the revocation list of `{issuer}` is past its date and goes on counting"),
        (false, _) => format!("the revocation list of `{issuer}` will soon be past its date"),
    })
}

impl Control {
    /// Says which revocation lists are past their date, or soon will be.
    pub(super) fn warn_of_lists(&self) {
        for site in &self.cell.load().sites {
            if let Some(message) = site.policy.auth.as_ref().and_then(dated) {
                tracing::warn!(site = &*site.name, "{message}");
            }
        }
    }

    /// Dates of revocation lists, connections of sites with a cap, descriptors: for each scrape.
    pub(super) fn front_readings(&self, sites: &[std::sync::Arc<Site>], readings: &mut Vec<Reading>) {
        for site in sites {
            if let Some(next) = site.policy.auth.as_ref().and_then(ClientAuth::next_update) {
                readings.push(Reading::new(Metric::ClientCrl, &[&site.name], next as f64));
            }
            if site.max_connections != 0 {
                let open = f64::from(site.places.open());
                readings.push(Reading::new(Metric::SiteConnections, &[&site.name], open));
            }
        }
        let budget = self.connections.descriptors();
        readings.push(Reading::new(Metric::Descriptors, &["used"], f64::from(budget.used())));
        readings.push(Reading::new(Metric::Descriptors, &["max"], f64::from(budget.max())));
    }
}
