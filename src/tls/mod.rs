//! Layer folder `tls`: who are we, who are they.
//!
//! Certificates come from PEM files ([`pem`]) or from the built-in CA ([`internal_ca`]), are found by server name
//! ([`index`]) and serve clients ([`server`]) by the site's [`policy`], which may ask them for certificates of their own
//! ([`client_auth`], [`client_identity`]). [`client`] holds the settings towards backends. No file here opens a
//! socket, and none does cryptography of its own: everything is rustls with aws-lc-rs.

pub mod acme;
pub mod client;
pub mod client_auth;
pub mod client_identity;
pub mod file;
pub mod index;
pub mod internal_ca;
pub mod pem;
pub mod policy;
pub mod server;

use std::sync::{Arc, OnceLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};

/// The one set of algorithms, used by every configuration in this folder.
///
/// The order of the key exchange groups is written here instead of left to a feature flag of rustls: a dependency
/// that turns the default features off would otherwise silently move the post-quantum group to the end.
///
/// Of the ciphers (those of rustls, with forward secrecy all), AES with 128 bits stands first: certificates and key exchange
/// are not stronger, it takes fewer rounds, and its SHA-256 has instructions of its own on most processors, where SHA-384,
/// which goes with 256 bits, takes a sixth of the time of a handshake.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let make = || {
        let kx_groups =
            vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
        let cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        ];
        Arc::new(CryptoProvider { kx_groups, cipher_suites, ..default_provider() })
    };
    Arc::clone(PROVIDER.get_or_init(make))
}

/// Makes [`provider`] the default of the process. Call it first thing in `main`; later calls change nothing.
///
/// Our own configurations name the provider; the default is for libraries that ask rustls for one, and would panic
/// when two are compiled in and none was chosen.
pub fn install_provider() {
    // An error means that one is installed already, which is what was asked for.
    let _ = CryptoProvider::clone(&provider()).install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cipher_of_the_library_is_left_out_and_none_is_added() {
        let names = |suites: &[rustls::SupportedCipherSuite]| {
            let mut names: Vec<_> = suites.iter().map(|suite| format!("{:?}", suite.suite())).collect();
            names.sort();
            names
        };
        assert_eq!(names(&provider().cipher_suites), names(&default_provider().cipher_suites));
    }

    #[test]
    fn the_post_quantum_group_is_offered_first() {
        install_provider();
        install_provider();
        let installed = CryptoProvider::get_default().expect("installed above");
        let names: Vec<_> = installed.kx_groups.iter().map(|g| g.name()).collect();
        use rustls::NamedGroup::*;
        assert_eq!(names, [X25519MLKEM768, X25519, secp256r1, secp384r1]);
    }
}

#[cfg(test)]
mod handshake_tests;
