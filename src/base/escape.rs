//! Percent-encoding in the one form that paths are compared in (RFC 3986 section 6.2.2).

use std::borrow::Cow;

/// A path with its escapes in normal form: those of unreserved characters are these characters, all others have capital
/// digits, and bytes above ASCII are escaped. `None`: an escape is broken or one of a control character, or a character
/// stands there that no target may have (section 2), or a backslash, which backends read in two ways.
pub fn normal(raw: &str) -> Option<String> {
    let mut out = String::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (bytes.next().and_then(hex)?, bytes.next().and_then(hex)?);
                let value = high << 4 | low;
                match value {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        out.push(char::from(value));
                    }
                    0..=0x1f | 0x7f => return None,
                    _ => push(&mut out, value),
                }
            }
            0..=0x20 | 0x7f | b'\\' => return None,
            0x80.. => push(&mut out, byte),
            _ => out.push(char::from(byte)),
        }
    }
    Some(out)
}

/// Whether some backend finds dot segments in a path in normal form: behind an escaped slash or backslash, or before what it
/// takes for parameters (`/a/..;/b`).
pub fn climbs(path: &str) -> bool {
    separated(path).split('/').any(|segment| matches!(named(segment), "." | ".."))
}

/// Whether a path in normal form has segments that some backend leaves out or resolves: those that [`climbs`] finds, and
/// empty ones before the last. It then gets to serve another path than was judged.
pub fn is_odd(path: &str) -> bool {
    let separated = separated(path);
    let segments = separated.strip_prefix('/').unwrap_or(&separated).rsplit('/');
    climbs(path) || segments.skip(1).any(|segment| named(segment).is_empty())
}

/// A path with its escaped separators undone.
fn separated(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    Cow::Owned(path.replace("%5C", "/").replace("%2F", "/"))
}

/// A segment without its parameters.
fn named(segment: &str) -> &str {
    segment.split(';').next().unwrap_or_default()
}

/// Adds a byte as an escape.
pub fn push(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    for nibble in [byte >> 4, byte & 15] {
        out.push(HEX.get(usize::from(nibble)).map_or('0', |&b| char::from(b)));
    }
}

/// The value of a digit.
pub fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_segments_are_found_however_they_are_hidden() {
        for path in ["/a/../b", "/..%2Fb", "/a%2F..%2Fb", "/a/..;/b", "/a/.;x=1/b", "/a%5C..%5Cb", "/a/.."] {
            assert!(climbs(path), "{path}");
        }
        for path in ["/", "/a..b/...", "/a;x=../b", "/a/%252e%252e/b", "/.well-known/x", "/a%2Fb/", "/a;x"] {
            assert!(!climbs(path) && !is_odd(path), "{path}");
        }
        for path in ["//admin", "/%2Fadmin", "/a//b", "/;/admin", "/a%2F%2Fb", "/public/..;/admin"] {
            assert!(is_odd(path), "{path}");
        }
    }

    #[test]
    fn one_form_for_each_path_and_none_for_what_is_no_path() {
        for (raw, expected) in [
            ("/%7Eadmin/%41", Some("/~admin/A")),
            ("/caf%c3%a9", Some("/caf%C3%A9")),
            ("/caf\u{e9}", Some("/caf%C3%A9")),
            ("/a%2fb", Some("/a%2Fb")),
            ("/100%", None),
            ("/%4", None),
            ("/%zz", None),
            ("/%00", None),
            ("/a b", None),
            ("/a\\b", None),
        ] {
            assert_eq!(normal(raw).as_deref(), expected, "{raw}");
        }
    }
}
