//! The user by a client certificate. That it is good was decided in the handshake; here it is only read.

use std::collections::HashMap;
use std::sync::Arc;

use super::Verdict;
use crate::config::model::{self, CertField};

/// What the data plane knows of a certificate, as the handshake printed it.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The subject, as RFC 4514 prints it.
    pub subject: &'a str,
    /// `DNS:a.example, URI:spiffe://a/b, email:a@b.example`
    pub names: &'a str,
    /// SHA-256 in hexadecimal.
    pub fingerprint: &'a str,
}

/// Who may come in by a certificate, compiled.
pub struct CertUser {
    from: CertField,
    /// Empty: everybody.
    users: HashMap<String, Arc<str>>,
}

impl CertUser {
    /// Compiles it.
    pub fn compile(said: &model::CertUser) -> CertUser {
        let key = |key: &String| match said.from {
            // As people copy it from other programs.
            CertField::Fingerprint => key.replace(':', "").to_lowercase(),
            _ => key.clone(),
        };
        let users = said.users.iter().map(|(from, user)| (key(from), Arc::from(user.as_str())));
        CertUser { from: said.from, users: users.collect() }
    }

    /// Who the request comes from.
    pub fn check(&self, shown: Option<Shown<'_>>) -> Verdict {
        let Some(shown) = shown else { return Verdict::Missing };
        let text = match self.from {
            CertField::Subject => Some(shown.subject),
            CertField::Fingerprint => Some(shown.fingerprint),
            CertField::CommonName => common_name(shown.subject),
            CertField::Dns => alternative(shown.names, "DNS:"),
            CertField::Email => alternative(shown.names, "email:"),
            CertField::Uri => alternative(shown.names, "URI:"),
        };
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Verdict::Denied };
        let user = if self.users.is_empty() { super::user(text) } else { self.users.get(text).cloned() };
        user.map_or(Verdict::Denied, Verdict::User)
    }
}

/// The common name of a printed subject, as printed: what is special in it stays escaped, so that no other name reads
/// like it.
fn common_name(subject: &str) -> Option<&str> {
    parts(subject, b",+").find_map(|part| part.strip_prefix("CN="))
}

/// The first alternative name of a kind. They are separated by a comma and a blank; a comma inside one is escaped.
fn alternative<'a>(names: &'a str, kind: &str) -> Option<&'a str> {
    parts(names, b",").find_map(|part| part.trim_start().strip_prefix(kind))
}

/// The parts of a text between separators that no backslash stands before.
fn parts<'a>(text: &'a str, separators: &'static [u8]) -> impl Iterator<Item = &'a str> {
    let mut escaped = false;
    text.split(move |character: char| {
        let ends = !escaped && character.is_ascii() && separators.contains(&(character as u8));
        escaped = !escaped && character == '\\';
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: Shown<'static> = Shown {
        subject: "CN=ann\\, the first,OU=people+L=Bern,O=Shop",
        names: "DNS:ann.example, DNS:b.example, URI:spiffe://shop/ann, email:ann@shop.example",
        fingerprint: "c0ffee",
    };

    fn user(from: CertField, users: &[(&str, &str)], shown: Shown<'_>) -> Option<String> {
        let users = users.iter().map(|(key, user)| (key.to_string(), user.to_string())).collect();
        match CertUser::compile(&model::CertUser { from, users }).check(Some(shown)) {
            Verdict::User(user) => Some(user.to_string()),
            _ => None,
        }
    }

    #[test]
    fn each_part_of_a_certificate_can_name_the_user() {
        for (from, expected) in [
            (CertField::CommonName, "ann\\, the first"),
            (CertField::Subject, SHOWN.subject),
            (CertField::Dns, "ann.example"),
            (CertField::Uri, "spiffe://shop/ann"),
            (CertField::Email, "ann@shop.example"),
            (CertField::Fingerprint, "c0ffee"),
        ] {
            assert_eq!(user(from, &[], SHOWN).as_deref(), Some(expected));
        }
        let bare = Shown { subject: "O=Shop", names: "", ..SHOWN };
        for from in [CertField::CommonName, CertField::Dns, CertField::Email, CertField::Uri] {
            assert_eq!(user(from, &[], bare), None);
        }
        let forged = Shown { subject: "O=x\\,CN=root", names: "DNS:x\\, email:root@a", ..SHOWN };
        assert_eq!(user(CertField::CommonName, &[], forged), None);
        assert_eq!(user(CertField::Email, &[], forged), None);
    }

    #[test]
    fn only_those_listed_come_in_where_a_list_is_given() {
        let users = [("C0:FF:EE", "ann")];
        assert_eq!(user(CertField::Fingerprint, &users, SHOWN).as_deref(), Some("ann"));
        assert_eq!(user(CertField::Dns, &[("b.example", "bob")], SHOWN), None);
        let nobody = CertUser::compile(&model::CertUser { from: CertField::Dns, users: Vec::new() });
        assert!(matches!(nobody.check(None), Verdict::Missing));
        let long = "x".repeat(300);
        assert_eq!(user(CertField::Subject, &[], Shown { subject: &long, ..SHOWN }), None);
    }
}
