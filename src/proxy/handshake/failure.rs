//! Why a handshake failed: errors of the TLS library and of the socket, as reasons that can be counted.

use std::io::{self, ErrorKind};

use rustls::{Error, InvalidMessage, PeerIncompatible};

use crate::proxy::client_cert;
use crate::telemetry::metric::Counter;
use crate::tls::client_auth::Refusal;

/// The reason to count. `named`: the client said a server name.
pub fn reason(error: &io::Error, named: bool) -> Counter {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return match error.kind() {
            // The client closed in the middle: it did not like our certificate, or it was no client.
            ErrorKind::UnexpectedEof => Counter::HandshakeAbandoned,
            _ => Counter::HandshakeIo,
        };
    };
    if let Some(refusal) = certificate(error) {
        return client_cert::refused(refusal).1;
    }
    match error {
        Error::General(text) if text.contains("no server certificate chain resolved") => {
            if named {
                Counter::HandshakeUnknownName
            } else {
                Counter::HandshakeNoSni
            }
        }
        Error::NoApplicationProtocol => Counter::HandshakeAlpn,
        Error::AlertReceived(_) => Counter::HandshakeAlert,
        Error::InvalidMessage(InvalidMessage::InvalidServerName) => Counter::HandshakeBadSni,
        Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge | InvalidMessage::MessageTooLarge) => {
            Counter::HandshakeTooLarge
        }
        Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => Counter::HandshakeVersion,
        Error::InvalidMessage(_) => Counter::HandshakeMalformed,
        Error::PeerIncompatible(why) => incompatible(why),
        _ => Counter::HandshakeProtocol,
    }
}

/// What an error says about the client's certificate, where it says anything.
pub fn certificate(error: &Error) -> Option<Refusal> {
    match error {
        Error::InvalidCertificate(error) => Some(Refusal::of(error)),
        Error::NoCertificatesPresented => Some(Refusal::Missing),
        Error::InvalidMessage(InvalidMessage::CertificatePayloadTooLarge) => Some(Refusal::Invalid),
        _ => None,
    }
}

fn incompatible(why: &PeerIncompatible) -> Counter {
    use PeerIncompatible as P;
    match why {
        // No client before TLS 1.2 names algorithms of signatures, and that is noticed before its version.
        P::SignatureAlgorithmsExtensionRequired
        | P::Tls12NotOffered
        | P::Tls12NotOfferedOrEnabled
        | P::SupportedVersionsExtensionRequired
        | P::ServerDoesNotSupportTls12Or13
        | P::ServerTlsVersionIsDisabledByOurConfig => Counter::HandshakeVersion,
        P::NoCipherSuitesInCommon
        | P::NoKxGroupsInCommon
        | P::NoSignatureSchemesInCommon
        | P::NoCertificateRequestSignatureSchemesInCommon
        | P::NoEcPointFormatsInCommon
        | P::NamedGroupsExtensionRequired
        | P::EcPointsExtensionRequired
        | P::KeyShareExtensionRequired
        | P::UncompressedEcPointsRequired
        | P::ExtendedMasterSecretExtensionRequired => Counter::HandshakeNoCipher,
        _ => Counter::HandshakeProtocol,
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError};

    use super::*;

    #[test]
    fn each_error_has_its_reason() {
        let tls = |error: Error| reason(&io::Error::new(ErrorKind::InvalidData, error), true);
        assert_eq!(tls(Error::NoCertificatesPresented), Counter::ClientCertMissing);
        assert_eq!(tls(CertificateError::Revoked.into()), Counter::ClientCertRevoked);
        assert_eq!(tls(CertificateError::UnknownIssuer.into()), Counter::ClientCertUntrusted);
        assert_eq!(tls(CertificateError::NotValidYet.into()), Counter::ClientCertExpired);
        assert_eq!(tls(CertificateError::UnknownRevocationStatus.into()), Counter::ClientCertUnchecked);
        assert_eq!(tls(CertificateError::BadSignature.into()), Counter::ClientCertInvalid);
        assert_eq!(tls(PeerIncompatible::Tls12NotOffered.into()), Counter::HandshakeVersion);
        assert_eq!(tls(PeerIncompatible::NoCipherSuitesInCommon.into()), Counter::HandshakeNoCipher);
        assert_eq!(tls(PeerIncompatible::Tls13RequiredForQuic.into()), Counter::HandshakeProtocol);
        assert_eq!(tls(InvalidMessage::InvalidServerName.into()), Counter::HandshakeBadSni);
        assert_eq!(tls(InvalidMessage::InvalidContentType.into()), Counter::HandshakeMalformed);
        assert_eq!(tls(Error::AlertReceived(AlertDescription::UnknownCA)), Counter::HandshakeAlert);
        let none = || Error::General("no server certificate chain resolved".into());
        assert_eq!(tls(none()), Counter::HandshakeUnknownName);
        assert_eq!(reason(&io::Error::new(ErrorKind::InvalidData, none()), false), Counter::HandshakeNoSni);
        assert_eq!(reason(&ErrorKind::UnexpectedEof.into(), true), Counter::HandshakeAbandoned);
        assert_eq!(reason(&ErrorKind::ConnectionReset.into(), true), Counter::HandshakeIo);
    }
}
