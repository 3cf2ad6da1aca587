//! The texts of a request that rules look at.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Bytes of one text that are looked at.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// Most texts of a field.
pub const TEXTS: usize = 2;

/// What is known about a request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path as sent.
    pub path: &'a str,
    /// Its path as the backend gets it, where that differs.
    pub seen: Option<&'a str>,
    /// Its query as sent, without `?`.
    pub query: Option<&'a str>,
    /// Its fields as sent.
    pub headers: &'a HeaderMap,
    /// Its body.
    pub body: Body<'a>,
}

/// A request's body, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// There is none, or nobody will look at it.
    None,
    /// There is one of this kind; it was not read yet.
    Ahead(Kind),
    /// Its beginning.
    Here(Kind, &'a [u8]),
}

/// What a body is, by its `Content-Type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `application/x-www-form-urlencoded`
    Form,
    /// `application/json` and `…+json`
    Json,
    /// `text/xml`, `application/xml` and `…+xml`
    Xml,
    /// `multipart/…`
    Multipart,
    /// `text/…`, and bodies that do not say what they are.
    Text,
    /// Everything else: images, archives, what is compressed.
    Other,
}

impl Kind {
    /// How many there are.
    pub const COUNT: usize = 6;
    const WORDS: [(&'static str, u8); 7] = [
        ("body", 0b1_1111),
        ("body:form", 1),
        ("body:json", 2),
        ("body:xml", 4),
        ("body:multipart", 8),
        ("body:text", 16),
        ("body:any", 0b11_1111),
    ];

    /// The kind of a body with these fields. Whether it is compressed is not asked: what only says so would pass unseen, and
    /// most backends read it as it is.
    pub fn of(headers: &HeaderMap) -> Kind {
        let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let begins = |word: &[u8]| kind.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word));
        let ends = |word: &[u8]| {
            let start = kind.len().checked_sub(word.len());
            start.and_then(|start| kind.get(start..)).is_some_and(|tail| tail.eq_ignore_ascii_case(word))
        };
        match kind {
            b"" => Kind::Text,
            _ if begins(b"application/x-www-form-urlencoded") => Kind::Form,
            _ if ends(b"/json") || ends(b"+json") => Kind::Json,
            _ if ends(b"/xml") || ends(b"+xml") => Kind::Xml,
            _ if begins(b"multipart/") => Kind::Multipart,
            _ if begins(b"text/") || ends(b"/graphql") || ends(b"javascript") => Kind::Text,
            _ => Kind::Other,
        }
    }

    /// Whether the fields name more than one type (RFC 9110 section 8.3 has one). Backends differ in which they believe: what
    /// is looked at as an image would reach one that reads a form.
    pub fn is_ambiguous(headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(header::CONTENT_TYPE).iter();
        let first = values.next().map(HeaderValue::as_bytes).unwrap_or_default();
        let kind = first.split(|byte| *byte == b';').next().unwrap_or_default();
        values.any(|other| other.as_bytes() != first) || kind.contains(&b',')
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Which text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Field {
    /// The method.
    Method,
    /// The path.
    Path,
    /// The query.
    Query,
    /// The values of all fields, cookies among them, one a line.
    Headers,
    /// The values of one field, one a line.
    Header(HeaderName),
    /// The values of `Cookie`.
    Cookies,
    /// The beginning of a body of one of these kinds.
    Body(u8),
}

impl Field {
    /// Reads the word of a rule.
    ///
    /// # Errors
    /// A sentence that names what is legal.
    pub fn parse(word: &str) -> Result<Field, String> {
        let wrong = || {
            format!(
                "`in` has `{}`: \"method\", \"path\", \"query\", \"headers\", \"header:NAME\", \"cookies\", \"body\", \
                 \"body:any\" and \"body:\" with form, json, xml, multipart or text are legal",
                super::pack::quoted(word)
            )
        };
        Ok(match word {
            "method" => Field::Method,
            "path" => Field::Path,
            "query" => Field::Query,
            "headers" => Field::Headers,
            "cookies" => Field::Cookies,
            _ => match word.strip_prefix("header:") {
                Some(name) => Field::Header(HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?),
                None => {
                    let kind = Kind::WORDS.iter().find(|(known, _)| *known == word);
                    Field::Body(kind.ok_or_else(wrong)?.1)
                }
            },
        })
    }

    /// Whether a body of this kind is one of its.
    pub fn takes(&self, kind: Kind) -> bool {
        matches!(self, Field::Body(kinds) if kinds & kind.bit() != 0)
    }

    /// Whether `+` stands for a space here.
    pub fn has_plus(&self, body: Body<'_>) -> bool {
        match self {
            Field::Query => true,
            Field::Body(_) => matches!(body, Body::Here(Kind::Form, _)),
            _ => false,
        }
    }

    /// Writes one of its [`TEXTS`] behind what is there; nothing where there is none. The second is another way to read the
    /// first: the path as the backend gets it, a body from UTF-16.
    pub fn write(&self, facts: &Facts<'_>, nth: usize, out: &mut Vec<u8>) {
        match (self, nth) {
            // Methods are compared by themselves.
            (Field::Method, _) => {}
            (Field::Path, 0) => push(out, facts.path.as_bytes()),
            (Field::Path, 1) => push(out, facts.seen.unwrap_or_default().as_bytes()),
            (Field::Query, 0) => push(out, facts.query.unwrap_or_default().as_bytes()),
            (Field::Headers, 0) => lines(out, facts.headers.values()),
            (Field::Header(name), 0) => lines(out, facts.headers.get_all(name)),
            (Field::Cookies, 0) => lines(out, facts.headers.get_all(header::COOKIE)),
            (Field::Body(_), _) => match facts.body {
                Body::Here(kind, bytes) if self.takes(kind) && nth == 0 => push(out, bytes),
                Body::Here(kind @ (Kind::Json | Kind::Xml), bytes) if self.takes(kind) => {
                    push(out, narrow(bytes).unwrap_or_default().as_bytes());
                }
                _ => {}
            },
            _ => {}
        }
    }
}

/// A text in UTF-16: parsers of XML and JSON know it by its first bytes, whatever was said.
fn narrow(text: &[u8]) -> Option<String> {
    let big = match text {
        [0xfe, 0xff, ..] => true,
        [0xff, 0xfe, ..] => false,
        [0, low, ..] if *low != 0 => true,
        [high, 0, ..] if *high != 0 => false,
        _ => return None,
    };
    let unit = |pair: &[u8; 2]| if big { u16::from_be_bytes(*pair) } else { u16::from_le_bytes(*pair) };
    let units = text.as_chunks().0.iter().map(unit);
    Some(char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

fn push(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(text.get(..TEXT_BYTES_MAX).unwrap_or(text));
}

fn lines<'a>(out: &mut Vec<u8>, values: impl IntoIterator<Item = &'a HeaderValue>) {
    let start = out.len();
    for (number, value) in values.into_iter().enumerate() {
        if number > 0 {
            out.push(b'\n');
        }
        out.extend_from_slice(value.as_bytes());
    }
    out.truncate(out.len().min(start + TEXT_BYTES_MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_what_its_type_says() {
        for (kind, expected) in [
            ("application/x-www-form-urlencoded; charset=utf-8", Kind::Form),
            ("Application/JSON", Kind::Json),
            ("application/ld+json;a=b", Kind::Json),
            ("image/svg+xml", Kind::Xml),
            ("multipart/form-data; boundary=x", Kind::Multipart),
            ("text/plain", Kind::Text),
            ("", Kind::Text),
            ("image/png", Kind::Other),
            ("application/grpc+proto", Kind::Other),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(Kind::of(&headers), expected, "{kind}");
        }
        assert_eq!(Kind::of(&HeaderMap::new()), Kind::Text);
        let packed = HeaderMap::from_iter([
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
        ]);
        assert_eq!(Kind::of(&packed), Kind::Json, "it may only say so");
    }

    #[test]
    fn two_types_are_ambiguous_on_two_lines_and_on_one() {
        let lines = |values: &[&'static str]| {
            let pairs = values.iter().map(|value| (header::CONTENT_TYPE, HeaderValue::from_static(value)));
            Kind::is_ambiguous(&HeaderMap::from_iter(pairs))
        };
        assert!(lines(&["image/png", "application/json"]) && lines(&["image/png, application/json"]));
        assert!(!lines(&["text/css", "text/css"]), "the same twice is one");
        assert!(!lines(&[]) && !lines(&["multipart/form-data; boundary=\"a,b\""]));
    }

    #[test]
    fn text_in_two_bytes_a_letter_is_read_like_any_other() {
        let wide = |text: &str, big: bool, mark: bool| -> Vec<u8> {
            let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
            units.flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        for (big, mark) in [(true, true), (true, false), (false, true), (false, false)] {
            let read = narrow(&wide("<!DOCTYPE \u{1f600}", big, mark)).unwrap();
            assert_eq!(read.trim_start_matches('\u{feff}'), "<!DOCTYPE \u{1f600}");
        }
        for same in [&b"<!DOCTYPE"[..], b"", b"\0", b"\0\0\0\0", b"\xff"] {
            assert_eq!(narrow(same), None);
        }
    }

    #[test]
    fn words_name_texts() {
        let kinds = [Kind::Form, Kind::Json, Kind::Xml, Kind::Multipart, Kind::Text, Kind::Other];
        let takes = |word: &str| kinds.map(|kind| Field::parse(word).unwrap().takes(kind));
        assert_eq!(takes("body"), [true, true, true, true, true, false]);
        assert_eq!(takes("body:any"), [true; 6]);
        assert_eq!(takes("body:json"), [false, true, false, false, false, false]);
        assert_eq!(takes("path"), [false; 6]);
        for bad in ["", "body:", "header:", "header:a b", "cookie", "body:png"] {
            assert!(Field::parse(bad).unwrap_err().contains("legal"), "{bad}");
        }
    }
}
