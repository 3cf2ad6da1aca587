//! Files behind a site besides its own certificate: authorities and revocation lists of clients, authorities of backends,
//! the certificate shown to them. Read at each compile, so that a changed file is a changed site.

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::config::Diagnostic;
use crate::config::model::{self, InternalTrust, Located};
use crate::snapshot::resident::{Authority, Residents};
use crate::tls;
use crate::tls::client_auth::{CA_BYTES_MAX, CRL_BYTES_MAX};
use crate::tls::pem::{Identity, Which};
use crate::tls::policy::{Files, Policy};

/// How the site speaks TLS with clients; its files are read each time, so that a changed file is a changed site.
pub(super) fn policy(site: &model::Site, residents: &Residents) -> Result<Arc<Policy>, Box<Diagnostic>> {
    let read = |file: &Located<PathBuf>, max: usize, what: &str| {
        tls::file::read_bounded(&file.value, max).map(|bytes| bytes.to_vec()).map_err(|error| {
            let message = format!("the {what} {} cannot be read: {error}", file.value.display());
            Box::new(Diagnostic::error("bad-client-auth", &file.origin, message))
        })
    };
    let files = match &site.tls.client_auth {
        None => None,
        Some(auth) => {
            let ca = read(&auth.ca_file, CA_BYTES_MAX, "file of client authorities")?;
            let crl = auth.crl_file.as_ref();
            let crl = crl.map(|file| read(file, CRL_BYTES_MAX, "file of revocation lists")).transpose()?;
            Some(Files { ca, crl })
        }
    };
    residents.policy(&site.tls, files.as_ref()).map_err(|(origin, message, help)| {
        Box::new(Diagnostic::error("bad-client-auth", &origin, message).help(help))
    })
}

/// What a route's service needs to speak TLS with its backends, read from files.
#[derive(Default)]
pub(super) struct Toward {
    pub ca: Authority,
    pub identity: Option<Arc<Identity>>,
}

/// What the services of all routes of a site need.
pub(super) fn toward_all(site: &model::Site, residents: &Residents) -> Result<Vec<Toward>, Box<Diagnostic>> {
    site.routes.iter().map(|route| toward(route, residents)).collect()
}

pub(super) fn toward(route: &model::Route, residents: &Residents) -> Result<Toward, Box<Diagnostic>> {
    let model::Action::Proxy(service) = &route.action else { return Ok(Toward::default()) };
    let upstream = &service.upstream;
    let ca = match (upstream.internal_ca, &upstream.ca_file) {
        (InternalTrust::Off, file) => file.as_ref().map(authority).transpose()?,
        _ => {
            let hash = Sha256::digest(residents.ca.certificate()).into();
            Some((residents.ca.ca_path().to_path_buf(), hash))
        }
    };
    let identity = match (upstream.internal_ca, &upstream.identity) {
        (InternalTrust::Mutual, _) => {
            let refuse = |why| Box::new(Diagnostic::error("internal-ca", &route.origin, why));
            Some(residents.internal_client().map_err(refuse)?)
        }
        (_, None) => None,
        (_, Some((cert, key))) => {
            let found = residents.file_identity(cert.value.clone(), key.value.clone(), None);
            Some(found.map_err(|error| {
                let origin = if error.which == Which::Key { &key.origin } else { &cert.origin };
                Box::new(Diagnostic::error("bad-upstream", origin, error.message).help(error.help))
            })?)
        }
    };
    Ok(Toward { ca, identity })
}

/// A CA file with the hash of its content, so that a changed file is a changed site.
pub(super) fn authority(file: &Located<PathBuf>) -> Result<(PathBuf, [u8; 32]), Box<Diagnostic>> {
    let bytes = tls::file::read_bounded(&file.value, CA_BYTES_MAX).map_err(|error| {
        let path = file.value.display();
        let message = format!("the CA file {path} cannot be read: {error}");
        Box::new(Diagnostic::error("bad-ca-file", &file.origin, message))
    })?;
    Ok((file.value.clone(), Sha256::digest(&*bytes).into()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;
    use crate::config;
    use crate::snapshot::compile::{self, Input};
    use crate::snapshot::{Site, Snapshot};

    fn compiled(text: &str, folder: &Path, residents: &Residents) -> Snapshot {
        std::fs::write(folder.join("tidegate.toml"), text).unwrap();
        let loaded = config::load(&folder.join("tidegate.toml"));
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let server = loaded.server.unwrap();
        let site = |entry: &config::SiteEntry| -> Arc<Site> {
            let site = entry.site.as_ref().unwrap();
            let (text, server) = (&*entry.text, &server);
            let input = Input { site, text, current: None, kept: None, seen: None, server, generation: 1 };
            compile::site(&input, residents).unwrap()
        };
        let sites = loaded.sites.iter().map(site).collect();
        compile::assemble(1, Arc::new(server), sites, HashSet::new(), None, residents).unwrap()
    }

    #[test]
    fn a_certificate_is_read_again_when_its_file_is_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let residents = Residents::for_check().unwrap();
        let (cert, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        let write = |name: &str| {
            let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            std::fs::write(&cert, pair.cert.pem()).unwrap();
            std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
            // As if it had been done long ago; when the inode changed cannot be set.
            let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
            for file in [&cert, &key] {
                std::fs::File::options().write(true).open(file).unwrap().set_modified(long_ago).unwrap();
            }
        };
        let read = || residents.file_identity(cert.clone(), key.clone(), None);
        write("one.test");
        let one = read().unwrap();
        assert!(Arc::ptr_eq(&one, &read().unwrap()), "parsed once");
        residents.doubt_files();
        assert!(Arc::ptr_eq(&one, &read().unwrap()), "read again, and the same");
        write("two.test");
        let two = read().unwrap();
        assert_eq!(two.names, ["two.test"]);
        std::fs::remove_file(&key).unwrap();
        assert!(read().is_err(), "a key that is gone is told, however often its certificate was read");
    }

    #[test]
    fn former_snapshots_are_freed_by_a_sweep_and_not_while_they_are_used() {
        let folder = tempfile::tempdir().unwrap();
        let residents = Residents::for_check().unwrap();
        let snapshot = |generation| {
            let text = "[server]\ninclude = []\n[site.\"a.test\"]\nrespond = { status = 204 }\n";
            Snapshot { generation, ..compiled(text, folder.path(), &residents) }
        };
        let cell = Arc::new(crate::snapshot::Cell::new(snapshot(1)));
        let reader = crate::snapshot::cell::Reader::new(cell.clone());
        let held = reader.load();
        let first = Arc::downgrade(&*held);
        cell.swap(snapshot(2));
        cell.sweep();
        assert_eq!(held.generation, 1, "a request keeps what it began with");
        drop(held);
        assert_eq!(reader.load().generation, 2);
        assert!(first.upgrade().is_some(), "who lets go last does not free it");
        cell.sweep();
        assert!(first.upgrade().is_none());
    }

    #[test]
    fn sites_with_equal_policies_share_their_handshake_settings_however_many_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let ca = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem();
        std::fs::write(folder.path().join("one.pem"), &ca).unwrap();
        std::fs::write(folder.path().join("copy.pem"), &ca).unwrap();
        let auth = |file: &str| format!("tls = {{ client_auth = {{ ca_file = \"{file}.pem\" }} }}");
        let mut text = String::from("[server]\ninclude = []\n");
        let more = [String::new(), "tls = { profile = \"modern\" }".into(), auth("one"), auth("copy")];
        for number in 0..200 {
            let more = &more[number % more.len()];
            // One certificate for all: only the policies are looked at here.
            let site = format!("[site.\"s{number:03}.test\"]\nrespond = {{ status = 204 }}\n{more}\n");
            text.push_str(&site);
        }
        let residents = Residents::for_check().unwrap();
        let snapshot = compiled(&text, folder.path(), &residents);
        let distinct: HashSet<_> = snapshot.handshakes.iter().map(Arc::as_ptr).collect();
        // Copies of one file decide alike.
        assert_eq!((snapshot.handshakes.len(), distinct.len()), (200, 3));
        assert!(Arc::ptr_eq(&snapshot.tls, &snapshot.handshakes[0]));
        for (index, site) in snapshot.sites.iter().enumerate() {
            let asks = snapshot.handshakes[index].send_tls13_tickets == 0;
            assert_eq!(site.policy.auth.is_some(), asks, "{}", site.name);
        }
    }
}
