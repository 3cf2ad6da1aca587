//! How we greet clients: TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, resumption by stateless tickets.
//!
//! No early data (0-RTT): a request could be replayed, and with tickets rustls refuses it anyway. Certificates are
//! chosen by [`CertificateIndex`].

use std::sync::{Arc, OnceLock};

use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::{CipherSuite, ServerConfig, crypto::aws_lc_rs};

use super::index::CertificateIndex;
use super::policy::Policy;

/// ALPN names in the order we prefer them.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Tickets sent after a full TLS 1.3 handshake. Clients use each once (RFC 8446 appendix C.4); browsers open two
/// connections at a time.
const TLS13_TICKETS: usize = 2;

/// The handshake settings of all sites with one policy. Build one per snapshot and policy, always with the same
/// `ticketer`, so that clients resume across reloads.
///
/// rustls checks that a ticket is used for the server name it was given for, and asks `index` before it resumes, so
/// that a removed site does not live on in tickets. It does not check that the policy is still the one under which the
/// ticket was given. So a policy that asks for certificates gives no tickets and opens none: each connection proves its
/// certificate, against the authorities and revocation lists of that moment.
///
/// # Errors
/// A sentence when rustls refuses the settings.
pub fn server_config(
    index: Arc<CertificateIndex>,
    ticketer: Arc<dyn ProducesTickets>,
    policy: &Policy,
) -> Result<Arc<ServerConfig>, String> {
    let builder = ServerConfig::builder_with_provider(super::provider())
        .with_protocol_versions(policy.versions())
        .map_err(|e| format!("The TLS library refused its own settings: {e}. This is a bug in Tidegate."))?;
    let builder = match &policy.auth {
        Some(auth) => builder.with_client_cert_verifier(auth.verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(index);
    config.alpn_protocols = ALPN.iter().map(|name| name.to_vec()).collect();
    if policy.auth.is_some() {
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = ticketer;
        config.send_tls13_tickets = TLS13_TICKETS;
    }
    config.max_early_data_size = 0;
    // The order of the provider; see `for_client`.
    config.ignore_client_order = true;
    // Only TLS 1.2 clients without tickets would use the store, at the price of a lock that all workers share.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// The settings for a client that offers `suites`: its own order of ciphers counts where it names ChaCha20 before AES, for that
/// is what devices do that have no instructions for AES. All others get [`super::provider`]'s order.
pub fn for_client(config: &Arc<ServerConfig>, suites: &[CipherSuite]) -> Arc<ServerConfig> {
    let ours = |suite: &&CipherSuite| {
        config.crypto_provider().cipher_suites.iter().any(|one| one.suite() == **suite)
    };
    match suites.iter().find(ours) {
        Some(
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ) => {
            let mut config = ServerConfig::clone(config);
            config.ignore_client_order = false;
            Arc::new(config)
        }
        _ => Arc::clone(config),
    }
}

/// The keys that seal session tickets: random, new every six hours, made once per process. The keys before the
/// current ones still open tickets.
///
/// Errors: the system gave no random numbers.
pub fn ticketer() -> Result<Arc<dyn ProducesTickets>, String> {
    static TICKETER: OnceLock<Arc<dyn ProducesTickets>> = OnceLock::new();
    if let Some(made) = TICKETER.get() {
        return Ok(Arc::clone(made));
    }
    let made = aws_lc_rs::Ticketer::new().map_err(|e| {
        format!("Keys for TLS session tickets could not be made: {e}. Does /dev/urandom exist?")
    })?;
    Ok(Arc::clone(TICKETER.get_or_init(|| made)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::TlsVersion;

    #[test]
    fn the_settings_are_what_the_documentation_promises() {
        let config =
            server_config(Arc::default(), ticketer().unwrap(), &Policy::plain(TlsVersion::V12)).unwrap();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(config.ticketer.enabled());
        assert_eq!((config.send_tls13_tickets, config.max_early_data_size), (2, 0));
        assert!(!config.session_storage.can_cache());
    }

    #[test]
    fn the_ticketer_is_one_per_process() {
        assert!(Arc::ptr_eq(&ticketer().unwrap(), &ticketer().unwrap()));
    }
}
