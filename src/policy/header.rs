//! Edits of header fields: remove, then set, then add. Names and values are built at reload; values with variables are
//! taken apart there, and put together for each request.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::base::template::{self, Piece, Variable};
use crate::config::model;
use crate::policy::auth::strip::Strip;

/// Bytes of a value that was put together; a longer one is left out.
const VALUE_BYTES_MAX: usize = 8 * 1024;

/// What variables stand for.
pub trait Facts {
    /// Writes the text of one.
    fn write(&self, variable: Variable, out: &mut Vec<u8>);
}

/// A value.
#[derive(Debug, Clone)]
enum Text {
    Fixed(HeaderValue),
    Made(Box<[Piece]>),
}

impl Text {
    fn compile(name: &str, text: &str) -> Result<Text, String> {
        let control =
            || format!("the value of the header field `{name}` holds a control character: remove it");
        let fixed = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| control())?;
        let pieces = template::parse(text);
        let pieces =
            pieces.map_err(|word| format!("the header field `{name}`: `{{{word}}}` is no variable"))?;
        Ok(match pieces.as_slice() {
            [Piece::Text(plain)] if plain == text => Text::Fixed(fixed),
            _ => Text::Made(pieces.into()),
        })
    }

    /// The value for a request. No client can begin another field with what it says: a value that is not legal in one
    /// line (RFC 9110 section 5.5) is none.
    fn value(&self, facts: &impl Facts) -> Option<HeaderValue> {
        let pieces = match self {
            Text::Fixed(value) => return Some(value.clone()),
            Text::Made(pieces) => pieces,
        };
        let mut bytes = Vec::with_capacity(64);
        for piece in pieces {
            match piece {
                Piece::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                Piece::Variable(variable) => facts.write(*variable, &mut bytes),
            }
        }
        let fits = bytes.len() <= VALUE_BYTES_MAX;
        HeaderValue::from_bytes(bytes.trim_ascii()).ok().filter(|_| fits)
    }
}

/// Compiled edits.
#[derive(Debug, Clone, Default)]
pub struct HeaderEdits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, Text)]>,
    add: Box<[(HeaderName, Text)]>,
    /// In a request: what is removed or set, in any spelling that some backends take for it.
    spellings: Strip,
}

impl HeaderEdits {
    /// Compiles edits.
    ///
    /// # Errors
    /// A sentence naming the field whose name or value is not legal (RFC 9110 section 5).
    pub fn compile(edits: &model::HeaderEdits) -> Result<HeaderEdits, String> {
        let pair = |(name, value): &(String, String)| {
            Ok::<_, String>((field_name(name)?, Text::compile(name, value)?))
        };
        Ok(HeaderEdits {
            remove: edits.remove.iter().map(|name| field_name(name)).collect::<Result<_, _>>()?,
            set: edits.set.iter().map(pair).collect::<Result<_, _>>()?,
            add: edits.add.iter().map(pair).collect::<Result<_, _>>()?,
            spellings: Strip::default(),
        })
    }

    /// The same for requests: a client that writes `X_User` must not have it taken for the `X-User` that is set or removed.
    pub fn of_requests(self) -> HeaderEdits {
        let names = self.remove.iter().chain(self.set.iter().map(|(name, _)| name)).cloned();
        HeaderEdits { spellings: Strip::new(names), ..self }
    }

    /// Fields that say who a client is: on no route may clients write them themselves.
    pub fn of_users(&self) -> impl Iterator<Item = &HeaderName> {
        let user = |text: &Text| match text {
            Text::Fixed(_) => false,
            Text::Made(pieces) => pieces.iter().any(|p| matches!(p, Piece::Variable(Variable::User))),
        };
        self.set.iter().filter(move |(_, text)| user(text)).map(|(name, _)| name)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Makes the edits.
    pub fn apply(&self, headers: &mut HeaderMap, facts: &impl Facts) {
        self.spellings.apply(headers);
        for name in &self.remove {
            headers.remove(name);
        }
        // A map is full at 32,768 fields, far above what a head may carry; a field beyond that is left out.
        for (name, text) in &self.set {
            // What a client sent under the name is gone either way.
            match text.value(facts) {
                Some(value) => {
                    let _ = headers.try_insert(name, value);
                }
                None => {
                    headers.remove(name);
                }
            }
        }
        for (name, text) in &self.add {
            if let Some(value) = text.value(facts) {
                let _ = headers.try_append(name, value);
            }
        }
    }
}

fn field_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
        format!("`{name}` is not the name of a header field: letters, digits and `-` are legal, like \"x-frame-options\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    #[test]
    fn no_spelling_of_what_is_set_or_removed_passes_in_a_request() {
        let said = || model::HeaderEdits {
            remove: vec!["X-Debug".into()],
            set: pairs(&[("X-User", "{user}"), ("X-Site", "shop")]),
            add: pairs(&[("X-Tag", "a")]),
        };
        let sent = || {
            let names = ["x-debug", "x_debug", "x_user", "x.user", "x_site", "x_tag", "x-other"];
            HeaderMap::from_iter(
                names.map(|name| (HeaderName::from_static(name), HeaderValue::from_static("c"))),
            )
        };
        let left = |edits: HeaderEdits| {
            let mut headers = sent();
            edits.apply(&mut headers, &Said("ann"));
            let mut names: Vec<String> = headers.keys().map(ToString::to_string).collect();
            names.sort_unstable();
            names.join(" ")
        };
        let edits = HeaderEdits::compile(&said()).unwrap();
        assert_eq!(edits.of_users().collect::<Vec<_>>(), ["x-user"]);
        assert_eq!(left(edits.clone().of_requests()), "x-other x-site x-tag x-user x_tag");
        assert_eq!(
            left(edits),
            "x-other x-site x-tag x-user x.user x_debug x_site x_tag x_user",
            "of answers"
        );
    }

    /// Every variable says this.
    struct Said(&'static str);

    impl Facts for Said {
        fn write(&self, _: Variable, out: &mut Vec<u8>) {
            out.extend_from_slice(self.0.as_bytes());
        }
    }

    #[test]
    fn variables_are_filled_in_and_nothing_they_say_becomes_another_field() {
        let set = pairs(&[("x-a", "<{client_ip}> {{host}} {user}"), ("x-b", "{user}"), ("x-c", "{\"a\":1}")]);
        let edits = HeaderEdits::compile(&model::HeaderEdits { set, ..Default::default() }).unwrap();
        let mut headers = HeaderMap::new();
        edits.apply(&mut headers, &Said("ann"));
        assert_eq!(headers["x-a"], "<ann> {host} ann");
        assert_eq!(
            (&headers["x-b"], &headers["x-c"]),
            (&"ann".parse().unwrap(), &"{\"a\":1}".parse().unwrap())
        );
        edits.apply(&mut headers, &Said("ann\r\nx-d: 1"));
        assert!(!headers.contains_key("x-a") && !headers.contains_key("x-b") && headers.len() == 1);
        edits.apply(&mut headers, &Said(""));
        assert_eq!(headers["x-b"], "");
        let unknown = model::HeaderEdits { add: pairs(&[("x-a", "{hots}")]), ..Default::default() };
        assert!(HeaderEdits::compile(&unknown).unwrap_err().contains("{hots}"));
    }

    #[test]
    fn edits_remove_then_set_then_add() {
        let edits = HeaderEdits::compile(&model::HeaderEdits {
            remove: vec!["server".into(), "x-a".into()],
            set: pairs(&[("X-A", "1"), ("x-b", "2")]),
            add: pairs(&[("x-a", "3"), ("x-c", "ü")]),
        })
        .unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in [("server", "s"), ("x-a", "0"), ("x-b", "0"), ("x-b", "00"), ("x-d", "4")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        edits.apply(&mut headers, &Said("x"));
        let values = |name: &str| headers.get_all(name).iter().map(|v| v.as_bytes()).collect::<Vec<_>>();
        assert_eq!(values("server"), Vec::<&[u8]>::new());
        assert_eq!(values("x-a"), [b"1", b"3"]);
        assert_eq!(values("x-b"), [b"2"]);
        assert_eq!(values("x-c"), ["ü".as_bytes()]);
        assert_eq!(values("x-d"), [b"4"]);
        assert!(!edits.is_empty() && HeaderEdits::default().is_empty());
    }

    #[test]
    fn illegal_names_and_values_are_named() {
        let bad_name = model::HeaderEdits { remove: vec!["x y".into()], ..Default::default() };
        assert!(HeaderEdits::compile(&bad_name).unwrap_err().contains("`x y`"));
        let bad_value = model::HeaderEdits { set: pairs(&[("x-a", "1\r\nx-b: 2")]), ..Default::default() };
        assert!(HeaderEdits::compile(&bad_value).unwrap_err().contains("`x-a`"));
    }
}
