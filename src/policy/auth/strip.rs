//! Fields that tell a backend who somebody is come from us alone: what clients send under these names, or under names
//! that some backends take for the same, goes. Also on routes that let everybody in, because the backend behind them is
//! most often the same.

use http::HeaderMap;
use http::header::HeaderName;

/// The names that clients may not write.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Strip {
    names: Box<[HeaderName]>,
}

impl Strip {
    /// From all names that a tenant's sites have.
    pub fn new(names: impl IntoIterator<Item = HeaderName>) -> Strip {
        let mut names: Vec<HeaderName> = names.into_iter().collect();
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        Strip { names: names.into() }
    }

    /// Whether there is nothing to take away.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether a field has one of the names. Whatever is neither letter nor digit counts as `-`: CGI, WSGI and PHP make
    /// one character of them all.
    pub fn takes(&self, name: &str) -> bool {
        let folded = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
        self.names.iter().any(|own| {
            let own = own.as_str();
            own.len() == name.len() && own.bytes().eq(name.bytes().map(folded))
        })
    }

    /// Takes them away.
    pub fn apply(&self, headers: &mut HeaderMap) {
        if self.is_empty() {
            return;
        }
        let found: Vec<HeaderName> =
            headers.keys().filter(|name| self.takes(name.as_str())).cloned().collect();
        for name in found {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn every_spelling_of_the_names_goes_and_nothing_else() {
        let strip = Strip::new(["x-auth-user", "remote-user", "x-auth-user"].map(HeaderName::from_static));
        let mut headers = HeaderMap::new();
        for name in [
            "x-auth-user",
            "x_auth_user",
            "x-auth_user",
            "x.auth.user",
            "remote_user",
            "x-auth-users",
            "x-user",
            "auth",
        ] {
            headers.append(name, HeaderValue::from_static("root"));
            headers.append(name, HeaderValue::from_static("again"));
        }
        strip.apply(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["auth", "x-auth-users", "x-user"]);
        assert!(Strip::default().is_empty() && !Strip::default().takes("x-auth-user"));
    }
}
