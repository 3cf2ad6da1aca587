//! The format of the corpus: sections of `key: value` lines, and bytes written with escapes.

use std::path::Path;

/// One `[name]` section: its lines in order.
pub struct Section {
    /// `file.txt: name`.
    pub name: String,
    pub lines: Vec<(String, String)>,
}

impl Section {
    /// The first value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// Reads every file of a folder below `tests/corpus`.
pub fn sections(folder: &str) -> Vec<Section> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(folder);
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the corpus").flatten().map(|e| e.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    files.sort();
    let mut all: Vec<Section> = Vec::new();
    for path in files {
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        for line in std::fs::read_to_string(&path).expect("a file of the corpus").lines() {
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                let name = format!("{file}: {name}");
                assert!(all.iter().all(|s| s.name != name), "{name} stands twice");
                all.push(Section { name, lines: Vec::new() });
            } else if !line.is_empty() && !line.starts_with('#') {
                let section = all.last_mut().unwrap_or_else(|| panic!("{file}: {line} before any case"));
                let (key, value) = match line.strip_prefix("> ") {
                    Some(bytes) => (">", bytes),
                    None => {
                        let pair = line.split_once(':').unwrap_or_else(|| panic!("{file}: {line}"));
                        (pair.0, pair.1.strip_prefix(' ').unwrap_or(pair.1))
                    }
                };
                section.lines.push((key.to_string(), value.to_string()));
            }
        }
    }
    for section in &all {
        assert!(section.get("why").is_some_and(|why| !why.is_empty()), "{} gives no reason", section.name);
    }
    all
}

/// Text with `\r \n \t \0 \\ \" \xHH` and `\{300*text}`; `{host}` and other words are the caller's.
pub fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.extend_from_slice(&rest.as_bytes()[..at]);
        rest = &rest[at + 1..];
        let mut taken = 1;
        match rest.as_bytes().first() {
            Some(b'r') => out.push(b'\r'),
            Some(b'n') => out.push(b'\n'),
            Some(b't') => out.push(b'\t'),
            Some(b'0') => out.push(0),
            Some(b'"') => out.push(b'"'),
            Some(b'\\') => out.push(b'\\'),
            Some(b'x') => {
                out.push(u8::from_str_radix(&rest[1..3], 16).unwrap_or_else(|_| panic!("{text}")));
                taken = 3;
            }
            Some(b'{') => {
                taken = rest.find('}').unwrap_or_else(|| panic!("{text}")) + 1;
                let (count, piece) = rest[1..taken - 1].split_once('*').unwrap_or_else(|| panic!("{text}"));
                out.extend(bytes(piece).repeat(count.parse().unwrap_or_else(|_| panic!("{text}"))));
            }
            _ => panic!("an unknown escape in {text}"),
        }
        rest = &rest[taken..];
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// What must arrive at the origin for one request.
pub struct Arrival {
    /// Only its beginning may arrive: the request was cut.
    pub part: bool,
    /// It need not arrive.
    pub maybe: bool,
    pub method: String,
    pub target: String,
    pub body: Vec<u8>,
    pub has: Vec<(String, String)>,
    pub lacks: Vec<String>,
    pub trailers: Vec<(String, String)>,
}

/// The `origin:` lines of a case, with the conditions that follow each.
pub fn arrivals(section: &Section) -> Vec<Arrival> {
    let mut all: Vec<Arrival> = Vec::new();
    for (key, value) in &section.lines {
        match (key.as_str(), all.last_mut()) {
            ("origin", _) => all.push(arrival(value)),
            ("has", Some(last)) => last.has.push(pair(value)),
            ("trailer", Some(last)) => last.trailers.push(pair(value)),
            ("lacks", Some(last)) => last.lacks.push(value.clone()),
            _ => {}
        }
    }
    all
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once(": ").unwrap_or_else(|| panic!("{text}"));
    (name.to_string(), String::from_utf8_lossy(&bytes(value)).into_owned())
}

fn arrival(text: &str) -> Arrival {
    let (text, body) = text.split_once(" \"").unwrap_or((text, "\""));
    let mut words: Vec<&str> = text.split(' ').collect();
    let mut word = |wanted: &str| words.first() == Some(&wanted) && !words.remove(0).is_empty();
    let (part, maybe) = (word("part"), word("maybe"));
    let [method, target] = words[..] else { panic!("origin: {text}") };
    Arrival {
        part,
        maybe,
        method: method.to_string(),
        target: String::from_utf8(bytes(target)).expect("a target of ASCII"),
        body: bytes(body.strip_suffix('"').unwrap_or_else(|| panic!("{text}: no closing quote"))),
        has: Vec::new(),
        lacks: Vec::new(),
        trailers: Vec::new(),
    }
}
