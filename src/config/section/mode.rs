//! `mode`: whether a policy refuses, or only says what it would have refused.

use crate::config::model::Mode;
use crate::config::parse::{Context, Table};

/// Reads `mode` of a policy's table; its section lists the setting `policy::MODE`.
pub fn read(context: &mut Context<'_>, table: &Table<'_>) -> Mode {
    of(context, table, "mode")
}

/// Reads the mode of a policy that has no table of its own.
pub fn of(context: &mut Context<'_>, table: &Table<'_>, name: &'static str) -> Mode {
    match context.word(table, name, None).value {
        "shadow" => Mode::Shadow,
        _ => Mode::Enforce,
    }
}
