//! Edits of header fields: remove, then set, then add. Names and values are built at reload.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::config::model;

/// Compiled edits.
#[derive(Debug, Clone, Default)]
pub struct HeaderEdits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl HeaderEdits {
    /// Compiles edits.
    ///
    /// # Errors
    /// A sentence naming the field whose name or value is not legal (RFC 9110 section 5).
    pub fn compile(edits: &model::HeaderEdits) -> Result<HeaderEdits, String> {
        let pair = |(name, value): &(String, String)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| {
                format!("the value of the header field `{name}` holds a control character: remove it")
            })?;
            Ok::<_, String>((field_name(name)?, value))
        };
        Ok(HeaderEdits {
            remove: edits.remove.iter().map(|name| field_name(name)).collect::<Result<_, _>>()?,
            set: edits.set.iter().map(pair).collect::<Result<_, _>>()?,
            add: edits.add.iter().map(pair).collect::<Result<_, _>>()?,
        })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Makes the edits.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        // A map is full at 32,768 fields, far above what a head may carry; a field beyond that is left out.
        for (name, value) in &self.set {
            let _ = headers.try_insert(name, value.clone());
        }
        for (name, value) in &self.add {
            let _ = headers.try_append(name, value.clone());
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
        edits.apply(&mut headers);
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
