//! A second opinion: HTTP/1.1 read by the letter of RFC 9112, and nothing forgiven.
//!
//! It shares no line with the product, so that both would have to be wrong in the same way. It wants a whole message in
//! memory and takes its time; the fuzz targets use it too, so it needs nothing but the standard library.

/// A message as it stood on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The request line or the status line.
    pub line: String,
    /// Fields in order, names in lower case.
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, Vec<u8>)>,
    /// Sizes of chunks; empty where the body was not chunked.
    pub chunked: bool,
}

/// What bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// A message and how many bytes it took.
    Whole(Message, usize),
    /// The beginning of one.
    Part,
    /// No message, and why.
    Bad(String),
}

impl Message {
    /// Values of a field.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_slice())
    }

    /// The value of a field that stands once; as text.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut all = self.all(name);
        let first = all.next().map(|v| String::from_utf8_lossy(v).into_owned());
        assert!(all.next().is_none(), "{name} stands twice");
        first
    }

    /// Whether its length has more digits than anybody's body.
    pub fn field_is_padded(&self) -> bool {
        self.all("content-length").any(|value| value.len() > 18)
    }

    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    /// The target of a request, the status of an answer.
    pub fn second(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    pub fn version(&self) -> &str {
        self.line.rsplit(' ').next().unwrap_or_default()
    }
}

fn bad<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Bad(why.into()))
}

enum Stop {
    Part,
    Bad(String),
}

fn finish(read: Result<(Message, usize), Stop>) -> Read {
    match read {
        Ok((message, end)) => Read::Whole(message, end),
        Err(Stop::Part) => Read::Part,
        Err(Stop::Bad(why)) => Read::Bad(why),
    }
}

/// Reads one request.
pub fn request(bytes: &[u8]) -> Read {
    finish(read_request(bytes))
}

fn read_request(bytes: &[u8]) -> Result<(Message, usize), Stop> {
    let (mut message, at) = head(bytes)?;
    let words: Vec<&str> = message.line.split(' ').collect();
    let [method, target, version] = words[..] else { return bad("request line is not three words") };
    if !token(method.as_bytes()) {
        return bad(format!("method {method:?}"));
    }
    // RFC 3986 section 2: what a URI is made of; and no fragment (RFC 9112 section 3.2).
    if target.is_empty() || target.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'#') {
        return bad(format!("target {target:?}"));
    }
    let old = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return bad(format!("version {version:?}")),
    };
    let hosts = message.all("host").count();
    if hosts > 1 || (hosts == 0 && !old) {
        return bad(format!("{hosts} Host fields"));
    }
    let end = match framing(&message, old)? {
        Framing::Chunked => chunks(bytes, at, &mut message)?,
        Framing::Length(length) => counted(bytes, at, length, &mut message)?,
        // RFC 9112 section 6.3 rule 7: a request without either has no body.
        Framing::None => at,
    };
    Ok((message, end))
}

/// Reads one answer to a request with this method; `ended` tells that nothing will follow.
pub fn answer(bytes: &[u8], method: &str, ended: bool) -> Read {
    finish(read_answer(bytes, method, ended))
}

fn read_answer(bytes: &[u8], method: &str, ended: bool) -> Result<(Message, usize), Stop> {
    let (mut message, at) = head(bytes)?;
    let mut words = message.line.splitn(3, ' ');
    let (version, status, reason) = (words.next(), words.next(), words.next());
    // RFC 9112 section 4: the space before the reason is owed even where there is none.
    let (Some(version), Some(status), Some(_)) = (version, status, reason) else {
        return bad(format!("status line {:?}", message.line));
    };
    let old = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return bad(format!("version {version:?}")),
    };
    if status.len() != 3 || !status.bytes().all(|b| b.is_ascii_digit()) || !("100".."600").contains(&status) {
        return bad(format!("status {status:?}"));
    }
    let framing = framing(&message, old)?;
    let bodiless = status.starts_with('1') || status == "204";
    // RFC 9110 section 8.6, RFC 9112 section 6.1.
    if bodiless && framing != Framing::None {
        return bad(format!("{status} with a body's framing"));
    }
    if bodiless || status == "304" || method == "HEAD" {
        return Ok((message, at));
    }
    let end = match framing {
        Framing::Chunked => chunks(bytes, at, &mut message)?,
        Framing::Length(length) => counted(bytes, at, length, &mut message)?,
        // RFC 9112 section 6.3 rule 8: until the connection ends.
        Framing::None if !ended => return Err(Stop::Part),
        Framing::None => counted(bytes, at, bytes.len() - at, &mut message)?,
    };
    Ok((message, end))
}

#[derive(PartialEq, Eq)]
enum Framing {
    None,
    Length(usize),
    Chunked,
}

fn framing(message: &Message, old: bool) -> Result<Framing, Stop> {
    let lengths: Vec<&[u8]> = message.all("content-length").collect();
    let codings: Vec<&[u8]> = message.all("transfer-encoding").collect();
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Framing::None),
        ([length], []) => {
            let text = String::from_utf8_lossy(length);
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                return bad(format!("content-length {text:?}"));
            }
            match text.parse() {
                Ok(length) => Ok(Framing::Length(length)),
                Err(_) => bad(format!("content-length {text:?}")),
            }
        }
        ([], [coding]) if !old && coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        _ => bad(format!("framing by {} lengths and the codings {codings:?}", lengths.len())),
    }
}

fn head(bytes: &[u8]) -> Result<(Message, usize), Stop> {
    let (first, mut at) = line(bytes, 0)?;
    let mut message = Message { line: latin1(first), ..Message::default() };
    loop {
        let (next, after) = line(bytes, at)?;
        at = after;
        if next.is_empty() {
            return Ok((message, at));
        }
        message.fields.push(field(next)?);
    }
}

/// A line without its end; every line ends in CR LF and holds no other control character than a tab.
fn line(bytes: &[u8], from: usize) -> Result<(&[u8], usize), Stop> {
    for (at, &byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b'\r' => {
                return match bytes.get(at + 1) {
                    Some(b'\n') => Ok((&bytes[from..at], at + 2)),
                    Some(_) => bad("CR without LF"),
                    None => Err(Stop::Part),
                };
            }
            b'\n' => return bad("LF without CR"),
            0..=8 | 11..=31 | 127 => return bad(format!("control character {byte}")),
            _ => {}
        }
    }
    Err(Stop::Part)
}

fn field(line: &[u8]) -> Result<(String, Vec<u8>), Stop> {
    let Some(colon) = line.iter().position(|&b| b == b':') else { return bad("field without a colon") };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if !token(name) {
        return bad(format!("field name {:?}", latin1(name)));
    }
    let blank = |b: &u8| *b == b' ' || *b == b'\t';
    let from = value.iter().position(|b| !blank(b)).unwrap_or(value.len());
    let to = value.iter().rposition(|b| !blank(b)).map_or(from, |last| last + 1);
    Ok((latin1(name).to_ascii_lowercase(), value[from..to].to_vec()))
}

/// RFC 9110 section 5.6.2.
fn token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|&b| char::from(b)).collect()
}

fn counted(bytes: &[u8], at: usize, length: usize, message: &mut Message) -> Result<usize, Stop> {
    let end = at.checked_add(length).ok_or(Stop::Bad("a length beyond memory".into()))?;
    let body = bytes.get(at..end).ok_or(Stop::Part)?;
    message.body = body.to_vec();
    Ok(end)
}

/// RFC 9112 section 7.1.
fn chunks(bytes: &[u8], mut at: usize, message: &mut Message) -> Result<usize, Stop> {
    message.chunked = true;
    loop {
        let (size, after) = line(bytes, at)?;
        let digits = size.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        if !extensions(&size[digits..]) {
            return bad(format!("chunk line {:?}", latin1(size)));
        }
        let Ok(size) = usize::from_str_radix(&latin1(&size[..digits]), 16) else {
            return bad(format!("chunk size {:?}", latin1(size)));
        };
        at = after;
        if size == 0 {
            break;
        }
        let end = at.checked_add(size).ok_or(Stop::Bad("a chunk beyond memory".into()))?;
        message.body.extend_from_slice(bytes.get(at..end).ok_or(Stop::Part)?);
        match bytes.get(end..end + 2) {
            Some(b"\r\n") => at = end + 2,
            Some(_) => return bad("chunk data without its end"),
            None if matches!(bytes.get(end), None | Some(b'\r')) => return Err(Stop::Part),
            None => return bad("chunk data without its end"),
        }
    }
    loop {
        let (next, after) = line(bytes, at)?;
        at = after;
        if next.is_empty() {
            return Ok(at);
        }
        message.trailers.push(field(next)?);
    }
}

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )` (RFC 9112 section 7.1.1).
fn extensions(text: &[u8]) -> bool {
    let mut rest = text;
    let skip = |rest: &[u8]| rest.iter().take_while(|b| **b == b' ' || **b == b'\t').count();
    while !rest.is_empty() {
        rest = &rest[skip(rest)..];
        let [b';', after @ ..] = rest else { return false };
        rest = &after[skip(after)..];
        let name = rest.iter().take_while(|b| token(&[**b])).count();
        if name == 0 {
            return false;
        }
        rest = &rest[name..];
        let behind = &rest[skip(rest)..];
        let [b'=', value @ ..] = behind else { continue };
        let value = &value[skip(value)..];
        let length = match value {
            [b'"', quoted @ ..] => match quoted_end(quoted) {
                Some(end) => end + 1,
                None => return false,
            },
            _ => value.iter().take_while(|b| token(&[**b])).count(),
        };
        if length == 0 {
            return false;
        }
        rest = &value[length..];
    }
    true
}

/// Bytes up to and with the closing quote.
fn quoted_end(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Fields that end at a proxy (RFC 9110 section 7.6.1), beyond those it writes itself.
const HOP: &[&str] =
    &["keep-alive", "proxy-connection", "proxy-authorization", "http2-settings", "te", "upgrade"];

/// Names that say who a client is or how a message is framed; none may reach a backend under another spelling.
const OURS: &[&str] = &[
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-request-id",
    "x-real-ip",
    "x-client-ip",
    "true-client-ip",
    "cf-connecting-ip",
    "forwarded",
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
];

/// What is wrong with a request that a proxy forwarded, beyond its grammar.
pub fn forwarded(message: &Message) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |ok: bool, what: String| {
        if !ok {
            wrong.push(what);
        }
    };
    let target = message.second();
    check(target.starts_with('/'), format!("target {target:?} is not in origin form"));
    check(target.bytes().all(|b| (0x21..=0x7e).contains(&b)), format!("target {target:?} has raw bytes"));
    let path = target.split('?').next().unwrap_or_default();
    let dots = path.split('/').any(|s| s == "." || s == "..");
    check(!dots, format!("target {target:?} has dot segments"));
    check(message.version() == "HTTP/1.1", format!("version {}", message.version()));
    let upgrade = message.all("connection").any(|v| v.eq_ignore_ascii_case(b"upgrade"));
    for (name, value) in &message.fields {
        let value = latin1(value);
        let legal = match name.as_str() {
            "connection" => ["upgrade", "te"].contains(&value.to_ascii_lowercase().as_str()),
            "te" => value == "trailers",
            "upgrade" => {
                let mut names = value.split(',').map(|p| p.trim().split('/').next().unwrap_or_default());
                upgrade && names.all(|name| token(name.as_bytes()) && !name.eq_ignore_ascii_case("h2c"))
            }
            "expect" => value.eq_ignore_ascii_case("100-continue"),
            other => !HOP.contains(&other),
        };
        check(legal, format!("{name}: {value} belongs to another hop"));
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        check(plain == *name || !OURS.contains(&plain.as_str()), format!("{name} looks like {plain} to CGI"));
    }
    for once in OURS.iter().filter(|n| **n != "forwarded") {
        check(message.all(once).count() <= 1, format!("{once} stands more than once"));
    }
    for (name, _) in &message.trailers {
        let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let known = OURS.contains(&plain.as_str()) || HOP.contains(&plain.as_str());
        let fixed = ["authorization", "cookie", "content-type", "trailer"].contains(&plain.as_str());
        check(!known && !fixed, format!("trailer {name}"));
    }
    wrong
}
