//! Decoding a text before it is looked at: what attackers wrap around what they send.
//!
//! The steps of a chain always go in the same order: plus, percent (so many times), unicode escapes, HTML entities,
//! path, white space. Each reads a text once and writes no more than it reads, so a chain is linear in the text and
//! its result never longer. Bytes in, bytes out: nothing has to be UTF-8, nothing fails.

/// How often percent-encoding is taken off where a rule says `percent` alone.
const PERCENT_TIMES: u8 = 3;
/// How often it may be taken off.
const PERCENT_TIMES_MAX: u8 = 5;

/// Steps of decoding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Chain {
    /// How often `%41` is `A`.
    pub percent: u8,
    /// `+` is a space; only in queries and forms.
    pub plus: bool,
    /// `&lt;`, `&#60;`, `&#x3c;` are `<`.
    pub html: bool,
    /// `\u003c`, `\u{3c}`, `%u003c`, `\x3c` are `<`, and what JSON writes with a backslash is what it stands for.
    pub unicode: bool,
    /// `\` is `/`, `//` and `/./` are `/`, `/a/../` is `/`, `;x` of a segment is nothing.
    pub path: bool,
    /// White space, NUL and `/* */` are one space; of `/*! */` only the ends are.
    pub space: bool,
}

/// Which steps may have something to do in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Triggers(u8);

const PERCENT: u8 = 1;
const PLUS: u8 = 2;
const HTML: u8 = 4;
const BACKSLASH: u8 = 8;
const PATH: u8 = 16;
const SPACE: u8 = 32;

/// What each byte may set off.
#[allow(clippy::indexing_slicing, reason = "evaluated when compiled, where a wrong index is an error")]
static TABLE: [u8; 256] = {
    let mut table = [0; 256];
    table[b'%' as usize] = PERCENT;
    table[b'+' as usize] = PLUS;
    table[b'&' as usize] = HTML;
    table[b'\\' as usize] = BACKSLASH | PATH;
    table[b'/' as usize] = PATH | SPACE;
    table[b';' as usize] = PATH;
    table[b' ' as usize] = SPACE;
    table[0] = SPACE;
    let mut control = 9;
    while control <= 13 {
        table[control] = SPACE;
        control += 1;
    }
    table
};

impl Triggers {
    /// Looks at every byte once.
    pub fn of(text: &[u8]) -> Triggers {
        let seen = |byte: &u8| TABLE.get(usize::from(*byte)).copied().unwrap_or(0);
        Triggers(text.iter().fold(0, |all, byte| all | seen(byte)))
    }
}

impl Chain {
    /// Reads the words of a rule; `lower` is not a step but a way to compare, and is told apart.
    ///
    /// # Errors
    /// A sentence that names what is legal.
    pub fn parse(words: &[String]) -> Result<(Chain, bool), String> {
        let (mut chain, mut lower) = (Chain::default(), false);
        for word in words {
            match word.as_str() {
                "percent" => chain.percent = PERCENT_TIMES,
                "plus" => chain.plus = true,
                "html" => chain.html = true,
                "unicode" => chain.unicode = true,
                "lower" => lower = true,
                "path" => chain.path = true,
                "space" => chain.space = true,
                other => {
                    let times = other.strip_prefix("percent:").and_then(|times| times.parse().ok());
                    chain.percent = times.filter(|times| (1..=PERCENT_TIMES_MAX).contains(times)).ok_or_else(|| {
                        format!(
                            "`decode` has `{}`: \"percent\" (or \"percent:N\", N at most {PERCENT_TIMES_MAX}), \"plus\", \
                             \"html\", \"unicode\", \"path\", \"space\" and \"lower\" are legal",
                            super::pack::quoted(other)
                        )
                    })?;
                }
            }
        }
        Ok((chain, lower))
    }

    /// Whether it may have something to do; what it does not trigger it would leave as it is.
    pub fn concerns(self, triggers: Triggers) -> bool {
        let wanted = [
            (self.percent > 0, PERCENT),
            (self.plus, PLUS),
            (self.html, HTML),
            (self.unicode, BACKSLASH | PERCENT),
            (self.path, PATH),
            (self.space, SPACE),
        ];
        wanted.iter().any(|(on, bits)| *on && triggers.0 & bits != 0)
    }

    /// Decodes a text into `out`, by way of `spare`, both overwritten. Whether anything is different now, and whether something
    /// is gone that a backend may go by: segments before `..`, what stood in comments. The `second` reading keeps these.
    pub fn run(self, text: &[u8], out: &mut Vec<u8>, spare: &mut Vec<u8>, second: bool) -> (bool, bool) {
        out.clear();
        out.extend_from_slice(text);
        if self.plus {
            for byte in out.iter_mut().filter(|byte| **byte == b'+') {
                *byte = b' ';
            }
        }
        for _ in 0..self.percent {
            if !step(out, spare, percent) {
                break;
            }
        }
        if self.unicode {
            step(out, spare, unicode);
        }
        if self.html {
            step(out, spare, html);
        }
        let mut gone = self.path && !second && step(out, spare, path);
        if self.space {
            gone |= !second && memchr::memmem::find(out, b"/*").is_some();
            step(out, spare, if second { space_alone } else { space });
        }
        (out != text, gone)
    }
}

/// Runs one step; whether it changed anything.
fn step(text: &mut Vec<u8>, spare: &mut Vec<u8>, run: fn(&[u8], &mut Vec<u8>)) -> bool {
    spare.clear();
    run(text, spare);
    let changed = text != spare;
    std::mem::swap(text, spare);
    changed
}

fn hex(byte: u8) -> Option<u32> {
    char::from(byte).to_digit(16)
}

/// So many hexadecimal digits at the start of a text, as a number.
fn hex_number(text: &[u8], digits: usize) -> Option<u32> {
    text.get(..digits)?.iter().try_fold(0, |number, byte| Some(number << 4 | hex(*byte)?))
}

/// Splits a text at the first byte for which `stop` holds.
fn until(text: &[u8], stop: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|byte| stop(*byte)).unwrap_or(text.len()))
}

fn percent(mut text: &[u8], out: &mut Vec<u8>) {
    while !text.is_empty() {
        let (plain, rest) = until(text, |byte| byte == b'%');
        out.extend_from_slice(plain);
        text = match rest {
            [_, escape @ ..] => match hex_number(escape, 2).and_then(|number| u8::try_from(number).ok()) {
                Some(byte) => {
                    out.push(byte);
                    escape.get(2..).unwrap_or_default()
                }
                None => {
                    out.push(b'%');
                    escape
                }
            },
            [] => rest,
        };
    }
}

/// A code point; what is no character is left out. The wide forms of ASCII are ASCII: servers fit them so.
fn push(out: &mut Vec<u8>, code: u32) {
    let code = if (0xff01..=0xff5e).contains(&code) { code - 0xfee0 } else { code };
    let Some(character) = char::from_u32(code) else { return };
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
}

fn unicode(mut text: &[u8], out: &mut Vec<u8>) {
    while !text.is_empty() {
        let (plain, rest) = until(text, |byte| matches!(byte, b'\\' | b'%'));
        out.extend_from_slice(plain);
        let Some((lead, after)) = rest.split_first() else { return };
        text = match escape(*lead, after) {
            Some((code, rest)) => {
                push(out, code);
                rest
            }
            None => {
                out.push(*lead);
                after
            }
        };
    }
}

/// What stands behind a backslash or a percent sign: its code point, and what follows it.
fn escape(lead: u8, after: &[u8]) -> Option<(u32, &[u8])> {
    let (kind, rest) = after.split_first()?;
    let fixed = |digits: usize| Some((hex_number(rest, digits)?, rest.get(digits..)?));
    match (lead, kind) {
        (_, b'u' | b'U') if hex_number(rest, 4).is_some() => fixed(4),
        (b'\\', b'u' | b'U') => {
            let inner = rest.strip_prefix(b"{")?;
            let (digits, end) = until(inner.get(..8).unwrap_or(inner), |byte| byte == b'}');
            let number =
                hex_number(digits, digits.len()).filter(|_| !digits.is_empty() && !end.is_empty())?;
            Some((number, inner.get(digits.len() + 1..)?))
        }
        (b'\\', b'x' | b'X') => fixed(2),
        (b'\\', b'n') => Some((10, rest)),
        (b'\\', b't') => Some((9, rest)),
        (b'\\', b'r') => Some((13, rest)),
        (b'\\', b'/' | b'"' | b'\'' | b'\\') => Some((u32::from(*kind), rest)),
        _ => None,
    }
}

/// Entities that attackers hide something behind.
const ENTITIES: [(&[u8], u8); 25] = [
    (b"lt;", b'<'),
    (b"gt;", b'>'),
    (b"amp;", b'&'),
    (b"quot;", b'"'),
    (b"apos;", b'\''),
    (b"nbsp;", b' '),
    (b"colon;", b':'),
    (b"semi;", b';'),
    (b"sol;", b'/'),
    (b"bsol;", b'\\'),
    (b"lpar;", b'('),
    (b"rpar;", b')'),
    (b"lbrace;", b'{'),
    (b"rbrace;", b'}'),
    (b"lcub;", b'{'),
    (b"rcub;", b'}'),
    (b"dollar;", b'$'),
    (b"period;", b'.'),
    (b"comma;", b','),
    (b"num;", b'#'),
    (b"percnt;", b'%'),
    (b"equals;", b'='),
    (b"commat;", b'@'),
    (b"Tab;", b'\t'),
    (b"NewLine;", b'\n'),
];

fn html(mut text: &[u8], out: &mut Vec<u8>) {
    while !text.is_empty() {
        let (plain, rest) = until(text, |byte| byte == b'&');
        out.extend_from_slice(plain);
        let Some((_, after)) = rest.split_first() else { return };
        if let Some((code, rest)) = number_entity(after) {
            push(out, code);
            text = rest;
        } else if let Some((name, byte)) = ENTITIES.iter().find(|(name, _)| after.starts_with(name)) {
            out.push(*byte);
            text = after.get(name.len()..).unwrap_or_default();
        } else {
            out.push(b'&');
            text = after;
        }
    }
}

/// `#60;` and `#x3c;`; the semicolon may be missing.
fn number_entity(text: &[u8]) -> Option<(u32, &[u8])> {
    let text = text.strip_prefix(b"#")?;
    let (radix, digits) = match text.split_first()? {
        (b'x' | b'X', digits) => (16, digits),
        _ => (10, text),
    };
    let (number, _) = until(digits, |byte| !char::from(byte).is_digit(radix));
    // Leading zeros may be many; a code point has at most seven digits.
    let zeros = number.iter().take_while(|byte| **byte == b'0').count();
    if number.is_empty() || number.len() - zeros > 7 {
        return None;
    }
    let add = |code: u32, byte: &u8| Some(code * radix + char::from(*byte).to_digit(radix)?);
    let code = number.iter().try_fold(0, add)?;
    let rest = digits.get(number.len()..)?;
    Some((code, rest.strip_prefix(b";").unwrap_or(rest)))
}

fn path(text: &[u8], out: &mut Vec<u8>) {
    // One name, which is no path yet, and need not be looked at: `..` stays what it is.
    if !text.iter().any(|byte| matches!(byte, b'/' | b'\\' | b';')) {
        out.extend_from_slice(text);
        return;
    }
    let (path, rest) = until(text, |byte| matches!(byte, b'?' | b'#'));
    let mut first = true;
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        let (name, _) = until(segment, |byte| byte == b';');
        match name {
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                out.truncate(parent);
            }
            b"." => {}
            b"" if !first => {}
            _ => {
                if !first {
                    out.push(b'/');
                }
                out.extend_from_slice(name);
            }
        }
        first = false;
    }
    // A final `/` is where a folder differs from a file.
    if path.last().is_some_and(|byte| matches!(byte, b'/' | b'\\'))
        && out.last() != Some(&b'/')
        && path.len() > out.len()
    {
        out.push(b'/');
    }
    out.extend_from_slice(rest);
}

fn space(text: &[u8], out: &mut Vec<u8>) {
    // Where the last comment ends: looked for once, because many may begin that never end.
    let last = memchr::memmem::rfind(text, b"*/").map(|at| text.len() - at);
    spaced(text, out, |text| {
        let ends = last.is_some_and(|last| text.len() > last + 1);
        let inner = text.strip_prefix(b"/*").filter(|_| ends);
        executed(text).or_else(|| {
            let inner = inner?;
            inner.get(memchr::memmem::find(inner, b"*/")? + 2..)
        })
    });
}

/// The same, and of comments only their ends go.
fn space_alone(text: &[u8], out: &mut Vec<u8>) {
    spaced(text, out, |text| executed(text).or_else(|| text.strip_prefix(b"/*")));
}

/// White space, stray ends of comments and what `comment` finds at the beginning of a text (it gives the rest) are one space.
fn spaced<'t>(mut text: &'t [u8], out: &mut Vec<u8>, comment: impl Fn(&'t [u8]) -> Option<&'t [u8]>) {
    while let Some((first, rest)) = text.split_first() {
        let white = matches!(first, b' ' | 0 | 9..=13).then_some(rest);
        match white.or_else(|| comment(text)).or_else(|| text.strip_prefix(b"*/")) {
            Some(after) => {
                if out.last() != Some(&b' ') {
                    out.push(b' ');
                }
                text = after;
            }
            None => {
                out.push(*first);
                text = rest;
            }
        }
    }
}

/// What MySQL and MariaDB execute although it looks like a comment: behind its beginning.
fn executed(text: &[u8]) -> Option<&[u8]> {
    let inner = text.strip_prefix(b"/*!").or_else(|| text.strip_prefix(b"/*M!"))?;
    inner.get(inner.iter().take_while(|byte| byte.is_ascii_digit()).count()..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(words: &[&str], text: &str) -> String {
        let words: Vec<String> = words.iter().map(ToString::to_string).collect();
        let (chain, _) = Chain::parse(&words).unwrap();
        let (mut out, mut spare) = (Vec::new(), Vec::new());
        let (changed, _) = chain.run(text.as_bytes(), &mut out, &mut spare, false);
        assert_eq!(changed, out != text.as_bytes());
        assert!(!changed || chain.concerns(Triggers::of(text.as_bytes())), "{text}");
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn each_step_takes_off_what_it_is_for() {
        for (words, text, expected) in [
            (&["percent"][..], "%2e%252e%2F", "../"),
            (&["percent:1"], "%252e", "%2e"),
            (&["percent"], "100%", "100%"),
            (&["percent"], "%zz%4", "%zz%4"),
            (&["plus", "percent"], "a+b%2Bc", "a b+c"),
            (&["html"], "&lt;&#60;&#x3C;&#0000060x&amp;lt;&unknown;&", "<<<<x&lt;&unknown;&"),
            (&["html"], "&#99999999;&#;", "&#99999999;&#;"),
            (&["unicode"], r"\u003c\u{3c}%u003c\x3C\n\/\\", "<<<<\n/\\"),
            (&["unicode"], r"\u{}\u{123456789}\u12\", r"\u{}\u{123456789}\u12\"),
            (&["unicode"], "%uff0e\\uFF0F", "./"),
            (&["path"], "/a//b/./c/../d", "/a/b/d"),
            // A fuzzer found these changed though nothing in them told that there was something to do.
            (&["path"], ".", "."),
            (&["path"], "..?x", "..?x"),
            (&["percent", "path"], "%2e%2E", ".."),
            (&["path"], "/a/..;/b\\..\\c;x=1/", "/c/"),
            (&["path"], "/../../etc/passwd?a=//", "/etc/passwd?a=//"),
            (&["path"], "/", "/"),
            (&["path"], "/a/..", ""),
            (&["space"], "un/**/ion \t\0 select/*", "un ion select/*"),
            (&["space"], "a=/*&id=1 union", "a=/*&id=1 union"),
            (&["space"], "a/*x*/b/*c", "a b/*c"),
            (&["space"], "1/*!50000union*/ select", "1 union select"),
            (&["space"], "1/*M!union*/ select", "1 union select"),
            (&["plus", "percent", "unicode", "html"], "%26lt%3b+%255cu003c", "< <"),
        ] {
            assert_eq!(decoded(words, text), expected, "{words:?} {text}");
        }
    }

    #[test]
    fn the_second_reading_keeps_what_the_first_takes_away() {
        let chain = Chain { percent: 1, path: true, space: true, ..Chain::default() };
        let read = |text: &str, second| {
            let (mut out, mut spare) = (Vec::new(), Vec::new());
            let (_, gone) = chain.run(text.as_bytes(), &mut out, &mut spare, second);
            (String::from_utf8(out).unwrap(), gone)
        };
        for (text, first, second) in [
            ("a=/*&id=1 union&b=*/", "a= ", "a= &id=1 union&b= "),
            ("/run.php/%2e%2e/x", "/x", "/run.php/../x"),
        ] {
            assert_eq!((read(text, false), read(text, true)), ((first.into(), true), (second.into(), false)));
        }
        assert_eq!(read("/plain/x y", false), ("/plain/x y".into(), false));
    }

    #[test]
    fn words_that_are_none_are_named() {
        for bad in ["percent:0", "percent:6", "percent:x", "base64", ""] {
            assert!(Chain::parse(&[bad.to_owned()]).unwrap_err().contains("legal"), "{bad}");
        }
        assert!(Chain::parse(&["lower".to_owned()]).unwrap().1);
    }

    /// Texts of the bytes that mean something to some step, and others.
    fn texts() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            4 => prop::sample::select(b"%25uU\\x{}&#;/.*+ 0aAfF<\t\0?".to_vec()).prop_map(|byte| vec![byte]),
            1 => any::<u8>().prop_map(|byte| vec![byte]),
            1 => prop::sample::select(vec!["&lt;", "&#x3c;", "%252e", "\\u003c", "/../", "/*", "*/"])
                .prop_map(|text| text.as_bytes().to_vec()),
        ];
        prop::collection::vec(piece, 0..400).prop_map(|pieces| pieces.concat())
    }

    fn chains() -> impl Strategy<Value = Chain> {
        (0..=PERCENT_TIMES_MAX, any::<[bool; 5]>()).prop_map(
            |(percent, [plus, html, unicode, path, space])| Chain {
                percent,
                plus,
                html,
                unicode,
                path,
                space,
            },
        )
    }

    proptest! {
        #[test]
        fn decoding_never_fails_never_grows_and_is_left_out_only_where_it_does_nothing(
            text in texts(), chain in chains(),
        ) {
            let (mut out, mut spare) = (Vec::new(), Vec::new());
            let (changed, _) = chain.run(&text, &mut out, &mut spare, false);
            prop_assert!(out.len() <= text.len());
            prop_assert_eq!(changed, out != text);
            prop_assert!(!changed || chain.concerns(Triggers::of(&text)));
        }
    }

    /// Work is counted in bytes handed to steps: each reads what the one before it wrote, which never grows. What could
    /// still be quadratic is a step that goes back: none of these takes longer for twice the text than twice as long,
    /// and a text of a megabyte is done at once.
    #[test]
    fn long_hostile_texts_are_no_trouble() {
        let all = Chain { percent: 5, plus: true, html: true, unicode: true, path: true, space: true };
        for piece in ["%25", "&#", "&#0", "\\u{", "/..", "/*", "/a/../", "%u", "\\\\", " ", "../"] {
            let text = piece.repeat((1 << 20) / piece.len());
            let (mut out, mut spare) = (Vec::new(), Vec::new());
            all.run(text.as_bytes(), &mut out, &mut spare, false);
            assert!(out.len() <= text.len(), "{piece}");
        }
    }
}
