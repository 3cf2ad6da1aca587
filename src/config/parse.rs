//! The primitives of the parser: a table of the file beside its section of the settings table.
//!
//! Every read goes through [`Context`], which knows the file, the site concerned and what was found wrong so far, and
//! (for `config show`) writes down each value in force. A wrong value is reported and replaced by its default, so
//! that one run finds everything.

mod optional;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::effective::Effective;
use super::model::{Located, Origin, Part};
use super::setting::{self, Fallback, Id, Kind, Section, Setting};
use super::source::{Source, join};
use crate::base::unit::{parse_duration, parse_percent, parse_size, print_duration, print_size};
pub use optional::print_duration_or;

/// Problems reported per site (and for the server part); further ones are counted only.
const REPORTED_MAX: usize = 50;
/// Characters of a value repeated in a message.
const QUOTED_MAX: usize = 80;

/// What one run over a file knows and finds.
pub struct Context<'a> {
    /// The file.
    pub source: &'a Source,
    /// The part of it that is read.
    pub part: Arc<Part>,
    /// The site concerned.
    pub site: Option<Arc<str>>,
    /// Everything found wrong.
    pub diagnostics: Vec<Diagnostic>,
    /// How many errors there were, those not reported included.
    pub errors: usize,
    /// Certificates, keys and authorities named.
    pub files: Vec<PathBuf>,
    /// Regular expressions compiled so far.
    pub regexes: usize,
    /// Values in force, when asked for.
    pub recorded: Option<Vec<Effective>>,
}

/// One table of the file.
pub struct Table<'t> {
    /// Its section of the settings table.
    pub section: &'static Section,
    /// Its key, like `site."shop.example".route[0]`; kept only while values are recorded.
    pub key: String,
    /// Its entries; `None`: the table is absent.
    pub entries: Option<&'t DeTable<'t>>,
    /// Where it begins.
    pub span: Range<usize>,
}

/// A value of the file.
pub type Value<'t> = Spanned<DeValue<'t>>;

impl<'a> Context<'a> {
    /// A fresh context.
    pub fn new(source: &'a Source, site: Option<Arc<str>>, record: bool) -> Context<'a> {
        let recorded = record.then(Vec::new);
        let (part, diagnostics, files) = (source.whole().clone(), Vec::new(), Vec::new());
        Context { source, part, site, diagnostics, errors: 0, files, regexes: 0, recorded }
    }

    /// The origin of a span.
    pub fn origin(&self, span: Range<usize>) -> Origin {
        self.source.origin_in(&self.part, span)
    }

    /// Notes a problem; the first 50 of a site are kept.
    pub fn report(&mut self, mut diagnostic: Diagnostic) {
        diagnostic.site = self.site.clone();
        self.errors += usize::from(diagnostic.is_error());
        match self.diagnostics.len() {
            shown if shown < REPORTED_MAX => self.diagnostics.push(diagnostic),
            REPORTED_MAX => {
                diagnostic.code = "too-many";
                diagnostic.message = "there are more problems from here on".into();
                diagnostic.label.clear();
                diagnostic.help = Some("correct those above first".into());
                self.diagnostics.push(diagnostic);
            }
            _ if diagnostic.is_error() => {
                // Nobody must believe that there were only warnings.
                let last = self.diagnostics.last_mut();
                last.into_iter().for_each(|last| last.severity = diagnostic.severity);
            }
            _ => {}
        }
    }

    /// Notes an error: what was found, and what is legal or to be done.
    pub fn error(
        &mut self,
        code: &'static str,
        span: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        let mut diagnostic = Diagnostic::error(code, &self.origin(span), message);
        let help = help.into();
        if !help.is_empty() {
            diagnostic = diagnostic.help(help);
        }
        self.report(diagnostic);
    }

    /// Notes that a value has the wrong type.
    pub fn wrong_type(&mut self, name: &str, expected: &str, value: &Value<'_>) {
        let found = value.get_ref().type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        let name = if name.contains(' ') { name.to_owned() } else { format!("`{name}`") };
        let message = format!("{name} has the wrong type: found {article} {found}");
        self.error("wrong-type", value.span(), message, format!("write {expected}"));
    }

    /// Opens a table: reports its unknown keys.
    pub fn open<'t>(
        &mut self,
        id: Id,
        key: String,
        entries: Option<&'t DeTable<'t>>,
        span: Range<usize>,
    ) -> Table<'t> {
        let section = setting::section(id);
        for (name, _) in entries.into_iter().flatten() {
            if section.setting(name.get_ref()).is_none() {
                self.unknown_key(section, name);
            }
        }
        Table { section, key, entries, span }
    }

    fn unknown_key(&mut self, section: &Section, key: &Spanned<std::borrow::Cow<'_, str>>) {
        let name = key.get_ref().as_ref();
        if let Some((_, _, message, help)) =
            setting::LATER.iter().find(|row| row.0 == section.id && row.1 == name)
        {
            return self.error("not-in-this-version", key.span(), *message, *help);
        }
        let message = format!("unknown key `{}` in {}", quoted(name), section.title);
        let names: Vec<&str> = section.settings.iter().map(|setting| setting.name).collect();
        let mut diagnostic = Diagnostic::error("unknown-key", &self.origin(key.span()), message)
            .help(format!("legal keys here: {}", names.join(", ")));
        if let Some(near) = nearest(name, &names) {
            diagnostic = diagnostic.label(format!("did you mean `{near}`?"));
        }
        self.report(diagnostic);
    }

    /// The key of a table inside another; empty unless values are recorded.
    pub fn below(&self, table: &Table<'_>, name: &str) -> String {
        if self.recorded.is_some() { format!("{}.{name}", table.key) } else { String::new() }
    }

    /// Writes down a value in force, if asked to.
    pub fn record(&mut self, table: &Table<'_>, name: &str, origin: &Origin, print: impl FnOnce() -> String) {
        if let Some(recorded) = &mut self.recorded {
            let key = if table.key.is_empty() { name.into() } else { format!("{}.{name}", table.key) };
            recorded.push(Effective { key, value: print(), origin: origin.clone() });
        }
    }

    /// Runs a part without writing values down: its caller writes down the whole.
    pub fn silent<T>(&mut self, part: impl FnOnce(&mut Self) -> T) -> T {
        let recorded = self.recorded.take();
        let result = part(self);
        self.recorded = recorded;
        result
    }

    /// Reads one setting: what is said, else what is inherited, else the default of the settings table.
    /// `read` reports what is wrong and gives `None`; the fallback then stands in.
    pub fn value<T: Clone>(
        &mut self,
        table: &Table<'_>,
        name: &str,
        fallback: &Located<T>,
        read: impl FnOnce(&mut Self, &'static Setting, &Value<'_>) -> Option<T>,
        print: impl FnOnce(&T) -> String,
    ) -> Located<T> {
        let said = table.get(name).and_then(|(setting, value)| {
            read(self, setting, value).map(|read| Located { value: read, origin: self.origin(value.span()) })
        });
        let given = said.unwrap_or_else(|| fallback.clone());
        self.record(table, name, &given.origin, || print(&given.value));
        given
    }

    /// A string, or an error.
    pub fn text<'v>(&mut self, setting: &Setting, value: &'v Value<'_>) -> Option<&'v str> {
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(setting.name, &setting.kind.expected(), value);
            return None;
        };
        if let Kind::Text(max) = setting.kind
            && text.len() > max
        {
            let message =
                format!("`{}` is too long: found {} bytes, legal are {max}", setting.name, text.len());
            self.error("out-of-range", value.span(), message, "");
            return None;
        }
        Some(text)
    }

    /// An array of at most the legal number of values, or an error.
    pub fn array<'v, 't>(&mut self, setting: &Setting, value: &'v Value<'t>) -> Option<&'v [Value<'t>]> {
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(setting.name, &setting.kind.expected(), value);
            return None;
        };
        let max = match setting.kind {
            Kind::Texts(max) | Kind::Addresses(max) | Kind::Networks(max) | Kind::Tables(_, max) => max,
            Kind::ShortOrTables(_, _, max, _) | Kind::Statuses(max, ..) | Kind::TextOrTexts(_, max) => max,
            _ => usize::MAX,
        };
        if array.len() > max {
            let message = format!("`{}` has {} entries, legal are {max}", setting.name, array.len());
            self.error("too-many", value.span(), message, "");
            return None;
        }
        Some(array)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, table: &Table<'_>, name: &str) -> bool {
        let fallback = Located { value: table.default_text(name) == "true", origin: Origin::Default };
        self.value(table, name, &fallback, Self::read_flag, bool::to_string).value
    }

    /// `true` or `false`, from a value at hand.
    pub fn read_flag(&mut self, setting: &Setting, value: &Value<'_>) -> Option<bool> {
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(setting.name, &setting.kind.expected(), value);
        }
        flag
    }

    /// A whole number within the legal range.
    pub fn count(&mut self, table: &Table<'_>, name: &str) -> u64 {
        let fallback =
            Located { value: table.default_text(name).parse().unwrap_or(0), origin: Origin::Default };
        self.value(table, name, &fallback, Self::read_count, u64::to_string).value
    }

    /// A whole number, or the word of the setting (`None`).
    pub fn count_or(&mut self, table: &Table<'_>, name: &str) -> Option<u64> {
        let fallback = Located { value: None, origin: Origin::Default };
        let Kind::CountOr(word, ..) = table.kind(name) else { return None };
        let read = |context: &mut Self, setting: &'static Setting, value: &Value<'_>| {
            if value.get_ref().as_str() == Some(word) {
                return Some(None);
            }
            context.read_count(setting, value).map(Some)
        };
        let print = |value: &Option<u64>| value.map_or_else(|| literal(word), |count| count.to_string());
        self.value(table, name, &fallback, read, print).value
    }

    /// Reads a whole number.
    pub fn read_count(&mut self, setting: &Setting, value: &Value<'_>) -> Option<u64> {
        let is_legal = |number: &u64| match setting.kind {
            Kind::Count(low, high) | Kind::CountOr(_, low, high) => (low..=high).contains(number),
            Kind::OneOf(numbers) => numbers.contains(number),
            _ => false,
        };
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(setting.name, &setting.kind.expected(), value);
            return None;
        };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let legal = number.filter(is_legal);
        if legal.is_none() {
            let message = format!("`{}` is out of range: found {}", setting.name, quoted(integer.as_str()));
            self.error("out-of-range", value.span(), message, format!("write {}", setting.kind.expected()));
        }
        legal
    }

    /// A duration within the legal range; `inherited` stands in for the default.
    pub fn duration(
        &mut self,
        table: &Table<'_>,
        name: &str,
        inherited: Option<&Located<Duration>>,
    ) -> Located<Duration> {
        let default = || Located {
            value: parse_duration(table.default_text(name)).unwrap_or_default(),
            origin: Origin::Default,
        };
        let fallback = inherited.cloned().unwrap_or_else(default);
        let read = |context: &mut Self, setting: &'static Setting, value: &Value<'_>| {
            let parsed = context.text(setting, value).map(parse_duration)?;
            let bounds = match setting.kind {
                Kind::Duration(low, high) => Duration::from_millis(low)..=Duration::from_millis(high),
                _ => Duration::ZERO..=Duration::MAX,
            };
            context.in_range(setting, value, parsed, |parsed| bounds.contains(parsed))
        };
        self.value(table, name, &fallback, read, |value| literal(&print_duration(*value)))
    }

    /// A size within the legal range.
    pub fn size(&mut self, table: &Table<'_>, name: &str) -> u64 {
        let value = parse_size(table.default_text(name)).unwrap_or_default();
        let fallback = Located { value, origin: Origin::Default };
        self.value(table, name, &fallback, Self::read_size, |value| literal(&print_size(*value))).value
    }

    /// A size, or the word of the setting (`None`); `inherited` stands in for the word.
    pub fn size_or(
        &mut self,
        table: &Table<'_>,
        name: &str,
        inherited: Option<&Located<Option<u64>>>,
    ) -> Located<Option<u64>> {
        let fallback = inherited.cloned().unwrap_or(Located { value: None, origin: Origin::Default });
        let word = if let Kind::SizeOr(word, ..) = table.kind(name) { word } else { "" };
        let read = |context: &mut Self, setting: &'static Setting, value: &Value<'_>| {
            if value.get_ref().as_str() == Some(word) {
                return Some(None);
            }
            context.read_size(setting, value).map(Some)
        };
        let print = |value: &Option<u64>| literal(&value.map_or_else(|| word.to_owned(), print_size));
        self.value(table, name, &fallback, read, print)
    }

    /// A percentage within the legal range.
    pub fn percent(&mut self, table: &Table<'_>, name: &str) -> u8 {
        let value = parse_percent(table.default_text(name)).unwrap_or_default();
        let fallback = Located { value, origin: Origin::Default };
        self.value(table, name, &fallback, Self::read_percent, |value| literal(&format!("{value}%"))).value
    }

    /// A percentage, or the word of the setting (`None`); `inherited` stands in for the default.
    pub fn percent_or(
        &mut self,
        table: &Table<'_>,
        name: &str,
        inherited: &Located<Option<u8>>,
    ) -> Located<Option<u8>> {
        let word = if let Kind::PercentOr(word, ..) = table.kind(name) { word } else { "" };
        let read = |context: &mut Self, setting: &'static Setting, value: &Value<'_>| {
            if value.get_ref().as_str() == Some(word) {
                return Some(None);
            }
            context.read_percent(setting, value).map(Some)
        };
        let print = |value: &Option<u8>| {
            literal(&value.map_or_else(|| word.to_owned(), |percent| format!("{percent}%")))
        };
        self.value(table, name, inherited, read, print)
    }

    fn read_percent(&mut self, setting: &'static Setting, value: &Value<'_>) -> Option<u8> {
        let (Kind::Percent(low, high) | Kind::PercentOr(_, low, high)) = setting.kind else { return None };
        let parsed = self.text(setting, value).map(parse_percent)?;
        self.in_range(setting, value, parsed, |parsed| (low..=high).contains(parsed))
    }

    fn read_size(&mut self, setting: &'static Setting, value: &Value<'_>) -> Option<u64> {
        let (Kind::Size(low, high) | Kind::SizeOr(_, low, high)) = setting.kind else { return None };
        let parsed = self.text(setting, value).map(parse_size)?;
        self.in_range(setting, value, parsed, |parsed| (low..=high).contains(parsed))
    }

    fn in_range<T>(
        &mut self,
        setting: &Setting,
        value: &Value<'_>,
        parsed: Result<T, String>,
        legal: impl FnOnce(&T) -> bool,
    ) -> Option<T> {
        let expected = format!("write {}", setting.kind.expected());
        match parsed {
            // The sentence of the unit names the text; its second half, what is legal, goes into the help.
            Err(sentence) => {
                let found = sentence.split(": write").next().unwrap_or_default();
                self.error(
                    "invalid-value",
                    value.span(),
                    format!("`{}`: {}", setting.name, quoted(found)),
                    expected,
                );
                None
            }
            Ok(parsed) if legal(&parsed) => Some(parsed),
            Ok(_) => {
                let found = quoted(value.get_ref().as_str().unwrap_or_default());
                self.error(
                    "out-of-range",
                    value.span(),
                    format!("`{}` is out of range: found {found}", setting.name),
                    expected,
                );
                None
            }
        }
    }

    /// One of the legal words; `inherited` stands in for the default.
    pub fn word(
        &mut self,
        table: &Table<'_>,
        name: &str,
        inherited: Option<&Located<&'static str>>,
    ) -> Located<&'static str> {
        let fallback = inherited.copied_or(table.default_text(name));
        self.value(table, name, &fallback, Self::read_word, |word| literal(word))
    }

    /// Reads one of the legal words.
    pub fn read_word(&mut self, setting: &'static Setting, value: &Value<'_>) -> Option<&'static str> {
        let Kind::Word(words) = setting.kind else { return None };
        let text = self.text(setting, value)?;
        let found = words.iter().find(|word| **word == text).copied();
        if found.is_none() {
            let message = format!("`{}` cannot be `{}`", setting.name, quoted(text));
            let mut diagnostic = Diagnostic::error("invalid-value", &self.origin(value.span()), message)
                .help(format!("write {}", setting.kind.expected()));
            if let Some(near) = nearest(text, words) {
                diagnostic = diagnostic.label(format!("did you mean \"{near}\"?"));
            }
            self.report(diagnostic);
        }
        found
    }

    /// Reads a path and makes it absolute.
    pub fn read_path(&mut self, setting: &Setting, value: &Value<'_>) -> Option<PathBuf> {
        let text = self.text(setting, value)?;
        if text.is_empty() || text.contains('\0') {
            let message = format!("`{}` is not a path", setting.name);
            self.error("invalid-value", value.span(), message, format!("write {}", setting.kind.expected()));
            return None;
        }
        Some(self.absolute(text))
    }

    /// A path as seen from the file that is read.
    pub fn absolute(&self, path: &str) -> PathBuf {
        join(self.source.folder(), path.as_ref())
    }

    /// A table inside a table; absent tables are opened empty, so that their defaults are read (and recorded).
    pub fn table<'t>(&mut self, table: &Table<'t>, name: &str, id: Id) -> Table<'t> {
        let key = if table.section.id == Id::File { name.to_owned() } else { self.below(table, name) };
        let Some((setting, value)) = table.get(name) else {
            return self.open(id, key, None, table.span.clone());
        };
        let entries = value.get_ref().as_table();
        if entries.is_none() {
            self.wrong_type(name, &setting.kind.expected(), value);
        }
        self.open(id, key, entries, value.span())
    }

    /// Reports that a required setting is absent.
    pub fn missing(&mut self, table: &Table<'_>, name: &str) {
        let doc = table.section.setting(name).map(|setting| setting.doc).unwrap_or_default();
        let message = format!("`{name}` is missing in {}", table.section.title);
        self.error(
            "missing",
            table.span.clone(),
            message,
            format!("add `{name}`: {}", lower_first(doc.trim_end_matches('.'))),
        );
    }
}

impl<'t> Table<'t> {
    /// A setting that is said here, with its row of the settings table.
    pub fn get(&self, name: &str) -> Option<(&'static Setting, &'t Value<'t>)> {
        let setting = self.section.setting(name);
        debug_assert!(setting.is_some(), "{name} is not in the settings table");
        Some((setting?, self.entries?.get(name)?))
    }

    /// Whether a setting is said here.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Where a setting's value stands, else where the table begins.
    pub fn span_of(&self, name: &str) -> Range<usize> {
        self.get(name).map_or_else(|| self.span.clone(), |(_, value)| value.span())
    }

    fn kind(&self, name: &str) -> Kind {
        self.section.setting(name).map_or(Kind::Flag, |setting| setting.kind)
    }

    /// The default as text, without quotes.
    pub fn default_text(&self, name: &str) -> &'static str {
        match self.section.setting(name).map(|setting| setting.default) {
            Some(Fallback::Value(text)) => text.trim_matches('"'),
            _ => "",
        }
    }
}

trait CopiedOr {
    fn copied_or(self, default: &'static str) -> Located<&'static str>;
}

impl CopiedOr for Option<&Located<&'static str>> {
    fn copied_or(self, default: &'static str) -> Located<&'static str> {
        self.cloned().unwrap_or(Located { value: default, origin: Origin::Default })
    }
}

/// A sentence as it goes on after a colon; what begins with two capitals is an abbreviation.
fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(first), second) if !second.is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(text.chars().skip(1)).collect()
        }
        _ => text.to_owned(),
    }
}

/// A text as TOML writes it on one line.
pub fn literal(text: &str) -> String {
    let mut literal = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => literal.extend(['\\', character]),
            '\n' => literal.push_str("\\n"),
            '\t' => literal.push_str("\\t"),
            other if other.is_control() => literal.push_str(&format!("\\u{:04x}", u32::from(other))),
            other => literal.push(other),
        }
    }
    literal + "\""
}

/// Texts as TOML writes them.
pub fn literals<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = texts.into_iter().map(|text| literal(text.as_ref())).collect();
    format!("[{}]", texts.join(", "))
}

/// A text cut to what a message can carry, without the name and password of a URL: messages go to logs.
pub fn quoted(text: &str) -> String {
    if let Some((scheme, rest)) = text.split_once("://")
        && let Some((user, rest)) = rest.split_once('@')
        && !user.contains(['/', '?', '#'])
    {
        return quoted(&format!("{scheme}://…{rest}"));
    }
    match text.char_indices().nth(QUOTED_MAX) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// The legal word that was probably meant: at most a third of it mistyped, or one begins with the other.
pub fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    // Longer texts are no typing errors, and the distance costs the product of both lengths.
    if text.len() > 64 {
        return None;
    }
    let lower = text.to_lowercase().replace('-', "_");
    let scored = words.iter().map(|word| (strsim::damerau_levenshtein(&lower, word), *word));
    let (distance, word) = scored.min_by_key(|(distance, _)| *distance)?;
    if distance <= word.len().max(3) / 3 {
        return Some(word);
    }
    let begins = |word: &&&str| lower.len() >= 3 && (word.starts_with(&lower) || lower.starts_with(**word));
    words.iter().find(begins).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised_and_other_words_are_not() {
        let words = ["backends", "balance", "health", "limit", "http", "https"];
        for (text, expected) in [
            ("backend", Some("backends")),
            ("Backends", Some("backends")),
            ("helth", Some("health")),
            ("limits", Some("limit")),
            ("htpp", Some("http")),
            ("colour", None),
            ("", None),
            (&"x".repeat(10_000), None),
        ] {
            assert_eq!(nearest(text, &words), expected, "{text}");
        }
    }
}
