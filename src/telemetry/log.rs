//! The process log: what Tidegate says about itself, on standard error.
//!
//! One line for each event that an operator should know of. Nothing is logged for each request: that is the access
//! log's work.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Environment variable with a filter, for example `tidegate=debug`.
pub const FILTER_VARIABLE: &str = "TIDEGATE_LOG";
/// Filter in force when nobody gave one.
pub const FILTER_DEFAULT: &str = "warn,tidegate=info";

/// Sends the log to standard error, with colour on a terminal. `filter` wins over `TIDEGATE_LOG`, which wins over
/// [`FILTER_DEFAULT`]. A second call changes nothing.
///
/// # Errors
/// A sentence, when the filter cannot be read.
pub fn init(filter: Option<&str>) -> Result<(), String> {
    let said = filter.map(str::to_owned).or_else(|| std::env::var(FILTER_VARIABLE).ok());
    let filter = parse(said.as_deref().unwrap_or_default())?;
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    // Fails only where a log is set up already, by a test or by an embedding program: theirs stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .try_init();
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let text = if filter.trim().is_empty() { FILTER_DEFAULT } else { filter };
    EnvFilter::builder().parse(text).map_err(|error| {
        format!(
            "{FILTER_VARIABLE}: `{text}` is not a log filter ({error}): write a level (error, warn, info, debug, \
             trace) or parts with one, like \"{FILTER_DEFAULT}\""
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read_and_nonsense_is_answered_with_what_is_legal() {
        for good in ["", "  ", "debug", "warn,tidegate=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        let error = parse("tidegate=loud").unwrap_err();
        assert!(error.contains("tidegate=loud") && error.contains("debug"), "{error}");
    }
}
