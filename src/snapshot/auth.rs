//! Who may come in to a site: files are read at each compile, so that a changed file is a changed site; what each route
//! asks is compiled once for all routes that inherit it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use http::HeaderName;
use sha2::{Digest, Sha256};

use crate::base::gentle;
use crate::config::Diagnostic;
use crate::config::model::{self, Http, JwtKeys, Located, Origin, Scheme, Upstream};
use crate::policy::auth::jwt::keys;
use crate::policy::auth::strip::Strip;
use crate::policy::auth::{Auth, Files, users};
use crate::snapshot::files::authority;
use crate::snapshot::resident::Residents;
use crate::snapshot::{AuthService, Guard, Site};
use crate::tls;
use crate::tls::client_auth::CA_BYTES_MAX;

/// What the files of a site's routes hold.
pub(super) struct Read(Vec<(Arc<model::Auth>, Files)>);

/// Reads the files.
pub(super) fn read(site: &model::Site) -> Result<Read, Box<Diagnostic>> {
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for auth in site.routes.iter().filter_map(|route| route.auth.as_ref()) {
        if seen.insert(Arc::as_ptr(auth)) {
            found.push((auth.clone(), files(auth)?));
        }
    }
    Ok(Read(found))
}

fn files(auth: &model::Auth) -> Result<Files, Box<Diagnostic>> {
    let mut files = Files::default();
    for way in &auth.ways {
        match way {
            Scheme::Basic(basic) => {
                let read = |file| bytes(file, users::FILE_BYTES_MAX, "file of users");
                files.users = basic.file.as_ref().map(read).transpose()?;
            }
            Scheme::Forward(forward) => {
                let read = |file| bytes(file, CA_BYTES_MAX, "CA file");
                files.ca = forward.ca_file.as_ref().map(read).transpose()?;
            }
            Scheme::Jwt(jwt) => {
                if let JwtKeys::Pem(file) | JwtKeys::Set(file) = &jwt.keys {
                    files.keys = Some(bytes(file, keys::BYTES_MAX, "file of keys")?);
                }
            }
            Scheme::ClientCert(_) => {}
        }
    }
    Ok(files)
}

fn bytes(file: &Located<PathBuf>, max: usize, what: &str) -> Result<Vec<u8>, Box<Diagnostic>> {
    tls::file::read_bounded(&file.value, max).map(|bytes| bytes.to_vec()).map_err(|error| {
        let message = format!("the {what} {} cannot be read: {error}", file.value.display());
        Box::new(Diagnostic::error("bad-auth", &file.origin, message))
    })
}

impl Read {
    /// A site's fingerprint, with what the files hold.
    pub(super) fn mixed_into(&self, fingerprint: [u8; 32]) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(fingerprint);
        for (_, files) in &self.0 {
            for bytes in [&files.users, &files.keys, &files.ca].into_iter().flatten() {
                hash.update(Sha256::digest(bytes));
            }
        }
        hash.finalize().into()
    }

    /// What each route asks, in their order.
    pub(super) fn compile(
        &self,
        site: &model::Site,
        residents: &Residents,
    ) -> Result<Vec<Option<Arc<Guard>>>, Box<Diagnostic>> {
        let mut made: HashMap<*const model::Auth, Arc<Guard>> = HashMap::new();
        for (said, files) in &self.0 {
            let compiled = Auth::compile(said, &site.name, files, &residents.auth);
            let compiled = compiled.map_err(|(origin, message, help)| {
                Box::new(Diagnostic::error("bad-auth", &origin, message).help(help))
            })?;
            let service = service(said, site, residents)?;
            made.insert(Arc::as_ptr(said), Arc::new(Guard { auth: compiled, service }));
        }
        let of_route = |route: &model::Route| made.get(&Arc::as_ptr(route.auth.as_ref()?)).cloned();
        Ok(site.routes.iter().map(of_route).collect())
    }
}

/// How the service is reached that is asked; pooled like a backend, and shown among them.
fn service(
    auth: &model::Auth,
    site: &model::Site,
    residents: &Residents,
) -> Result<Option<AuthService>, Box<Diagnostic>> {
    let forward = auth.ways.iter().find_map(|way| match way {
        Scheme::Forward(said) => Some(said),
        _ => None,
    });
    let Some(said) = forward else { return Ok(None) };
    let refuse = |(at, why): (Origin, String)| {
        let origin = if at == Origin::Default { &said.origin } else { &at };
        Box::new(Diagnostic::error("bad-auth", origin, why))
    };
    let url = &said.url;
    let name: Arc<str> = format!("{}#auth", site.name).into();
    let endpoint = residents.endpoints.obtain(&name, &url.address, url.tls);
    let upstream = Upstream { ca_file: said.ca_file.clone(), http: Http::H1, ..Upstream::default() };
    let name = url.tls.then(|| tls::client::server_name(&upstream, &url.address.host()));
    let authority = said.ca_file.as_ref().map(authority).transpose()?;
    let config = url.tls.then(|| residents.client_config(&upstream, authority, None));
    Ok(Some(AuthService {
        endpoint,
        name: name.transpose().map_err(refuse)?,
        config: config.transpose().map_err(refuse)?,
    }))
}

/// What clients may not write, for each site. A tenant's backends may serve several of its sites, one of them open to
/// everybody; what another tenant calls its fields is no concern of theirs.
pub(super) fn strips(sites: &[Arc<Site>]) -> Arc<[Arc<Strip>]> {
    let mut names: HashMap<&str, Vec<HeaderName>> = HashMap::new();
    for site in gentle::each(sites) {
        let auths = site.routes.iter().filter_map(|route| route.auth.as_ref());
        let own = auths.flat_map(|guard| guard.auth.own_fields()).cloned();
        let set = site.routes.iter().flat_map(|route| route.request_headers.of_users()).cloned();
        names.entry(&site.tenant).or_default().extend(own.chain(set));
    }
    let strips: HashMap<&str, Arc<Strip>> =
        gentle::each(names).map(|(tenant, names)| (tenant, Arc::new(Strip::new(names)))).collect();
    gentle::each(sites).map(|site| strips.get(&*site.tenant).cloned().unwrap_or_default()).collect()
}
