//! One more reader: durations that may be a word instead.

use std::time::Duration;

use super::{Context, Table, Value, literal};
use crate::base::unit::{parse_duration, print_duration};
use crate::config::model::{Located, Origin};
use crate::config::setting::{Kind, Setting};

impl Context<'_> {
    /// A duration within the legal range, or the word of the setting (`None`).
    pub fn duration_or(&mut self, table: &Table<'_>, name: &str) -> Option<Duration> {
        let value = parse_duration(table.default_text(name)).ok();
        let fallback = Located { value, origin: Origin::Default };
        let Kind::DurationOr(word, low, high) = table.kind(name) else { return None };
        let bounds = Duration::from_millis(low)..=Duration::from_millis(high);
        let read = |context: &mut Self, setting: &'static Setting, value: &Value<'_>| {
            let text = context.text(setting, value)?;
            if text == word {
                return Some(None);
            }
            context.in_range(setting, value, parse_duration(text), |parsed| bounds.contains(parsed)).map(Some)
        };
        self.value(table, name, &fallback, read, |value| literal(&print_duration_or(*value, word))).value
    }
}

/// A duration as it is written, or the word for none.
pub fn print_duration_or(value: Option<Duration>, word: &str) -> String {
    value.map_or_else(|| word.to_owned(), print_duration)
}
