//! The texts of a request that rules look at.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Bytes of one text that are looked at.
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// What is known about a request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its method.
    pub method: &'a str,
    /// Its path as sent.
    pub path: &'a str,
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

    /// Writes the text behind what is there.
    pub fn write(&self, facts: &Facts<'_>, out: &mut Vec<u8>) {
        match self {
            // Methods are compared by themselves.
            Field::Method => {}
            Field::Path => push(out, facts.path.as_bytes()),
            Field::Query => push(out, facts.query.unwrap_or_default().as_bytes()),
            Field::Headers => lines(out, facts.headers.values()),
            Field::Header(name) => lines(out, facts.headers.get_all(name)),
            Field::Cookies => lines(out, facts.headers.get_all(header::COOKIE)),
            Field::Body(_) => match facts.body {
                Body::Here(kind, bytes) if self.takes(kind) => push(out, bytes),
                _ => {}
            },
        }
    }
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
