//! Policies whose parts do not stand in the configuration: lists read from files, the database of countries.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::config::Diagnostic;
use crate::config::model::{Addresses, Countries, Mode, Networks, Route, Server, Site};
use crate::policy::address::AddressList;
use crate::policy::country::CountryList;
use crate::snapshot::resident::Residents;

/// The server's own list of addresses.
pub(super) fn of_server(
    server: &Server,
    residents: &Residents,
) -> Result<Option<Arc<AddressList>>, Box<Diagnostic>> {
    server.addresses.as_ref().map(|said| compiled(said, residents)).transpose()
}

/// The lists that every request for a site must pass: the server's, then its own.
pub(super) fn of_site(
    site: &Site,
    server: &Server,
    residents: &Residents,
) -> Result<Vec<Arc<AddressList>>, Box<Diagnostic>> {
    let own = site.addresses.as_ref().map(|said| compiled(said, residents)).transpose()?;
    Ok(of_server(server, residents)?.into_iter().chain(own).collect())
}

/// The list of a route.
pub(super) fn of_route(
    route: &Route,
    residents: &Residents,
) -> Result<Option<Arc<AddressList>>, Box<Diagnostic>> {
    route.addresses.as_ref().map(|said| compiled(said, residents)).transpose()
}

/// A list of countries. Without any database it would let everybody in, whatever it says.
pub(super) fn countries(
    said: Option<&Countries>,
    residents: &Residents,
) -> Result<Option<CountryList>, Box<Diagnostic>> {
    let blind = |said: &&Countries| said.mode == Mode::Enforce && residents.lists.countries().is_none();
    if let Some(said) = said.filter(blind) {
        let message = "`countries` cannot tell who is to be let in: the database was never read";
        let help = "mend the file that `country_database` in [server] names, or move one to its place";
        return Err(Box::new(Diagnostic::error("bad-list", &said.origin, message).help(help)));
    }
    Ok(said.map(CountryList::compile))
}

fn compiled(said: &Addresses, residents: &Residents) -> Result<Arc<AddressList>, Box<Diagnostic>> {
    AddressList::compile(said, |name| residents.lists.networks(name))
        .map(Arc::new)
        .map_err(|why| Box::new(Diagnostic::error("bad-list", &said.origin, why)))
}

/// What a site takes from beside its own text: a change there is a change of the site.
pub(super) fn print(site: &Site, server: &Server, residents: &Residents, hash: &mut Sha256) {
    // Where it stands is no part of what it says.
    let said = |said: &Addresses| format!("{:?} {:?} {:?}", said.allow, said.deny, said.mode);
    hash.update(server.addresses.as_ref().map(said).unwrap_or_default());
    let own = site.routes.iter().filter_map(|route| route.addresses.as_ref());
    let all = server.addresses.iter().chain(&site.addresses).chain(own);
    for entry in all.flat_map(|said| said.allow.iter().flatten().chain(&said.deny)) {
        if let Networks::Named(name) = entry {
            hash.update(residents.lists.print(name));
        }
    }
    let countries = site.countries.is_some() || site.routes.iter().any(|route| route.countries.is_some());
    if countries {
        hash.update(residents.lists.countries_print());
    }
}
