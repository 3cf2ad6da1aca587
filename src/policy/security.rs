//! Presets of fields that make browsers more careful. What the backend says itself stays, unless it is to be replaced.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::config::model::{SecurityHeaders, SecurityPreset};

type Field = (&'static str, &'static str);

const BASIC: &[Field] = &[
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "strict-origin-when-cross-origin"),
    ("x-frame-options", "SAMEORIGIN"),
];

const STRICT: &[Field] = &[
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("x-frame-options", "DENY"),
    ("content-security-policy", "frame-ancestors 'none'"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-permitted-cross-domain-policies", "none"),
];

/// Compiled fields.
#[derive(Debug, Clone)]
pub struct Security {
    fields: Box<[(HeaderName, HeaderValue)]>,
    replace: bool,
}

impl Security {
    /// Compiles them.
    pub fn compile(said: &SecurityHeaders) -> Security {
        let fields = match said.preset {
            SecurityPreset::Basic => BASIC,
            SecurityPreset::Strict => STRICT,
        };
        let field = |(name, value): &Field| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let fields = fields.iter().map(field);
        Security { fields: fields.collect(), replace: said.replace }
    }

    /// Adds what is not there.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.fields {
            if self.replace || !headers.contains_key(name) {
                let _ = headers.try_insert(name, value.clone()); // a map that is full takes no more
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header;

    use super::*;

    #[test]
    fn what_a_backend_says_stays_unless_it_is_to_be_replaced() {
        for (replace, expected) in [(false, "ALLOW-FROM x"), (true, "DENY")] {
            let said = SecurityHeaders { preset: SecurityPreset::Strict, replace };
            let mut headers = HeaderMap::new();
            headers.append(header::X_FRAME_OPTIONS, HeaderValue::from_static("ALLOW-FROM x"));
            Security::compile(&said).apply(&mut headers);
            assert_eq!(headers[header::X_FRAME_OPTIONS], expected);
            assert_eq!(headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
            assert_eq!(headers.len(), STRICT.len());
        }
    }
}
