//! Units an operator writes and reads: durations (`10s`), sizes (`256KiB`), rates (`100 per 10s`).
//!
//! Every parser here is strict: a number and one unit, nothing guessed. Errors are sentences that say what is legal.

use std::time::Duration;

/// A count in a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least 1.
    pub count: u32,
    /// In how long; at least 1 ms.
    pub per: Duration,
}

const DURATION_UNITS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start())?.1;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// Parses `10s`, `250ms`, `5m`, `1h`, `2d`.
///
/// # Errors
/// A sentence that says what was found and what is legal.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    number_with_unit(text, DURATION_UNITS).map(Duration::from_millis).ok_or_else(|| {
        format!("`{text}` is not a duration: write a whole number and a unit, like \"250ms\", \"10s\", \"5m\", \"1h\" or \"2d\"")
    })
}

/// Parses `64KiB`, `10MB`, `0B`.
///
/// # Errors
/// A sentence that says what was found and what is legal.
pub fn parse_size(text: &str) -> Result<u64, String> {
    number_with_unit(text, SIZE_UNITS).ok_or_else(|| {
        format!("`{text}` is not a size: write a whole number and a unit, like \"512B\", \"64KiB\", \"10MiB\" or \"1GB\"")
    })
}

/// Parses `100 per 10s`.
///
/// # Errors
/// A sentence that says what was found and what is legal.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("`{text}` is not a rate: write it like \"100 per 10s\"");
    let (count, per) = text.split_once(" per ").ok_or_else(wrong)?;
    let count: u32 = count.trim().parse().map_err(|_| wrong())?;
    let per = parse_duration(per.trim())?;
    if count == 0 || per.is_zero() {
        return Err(format!("`{text}` allows nothing: both the count and the time must be above zero"));
    }
    Ok(Rate { count, per })
}

/// Parses `20%`.
///
/// # Errors
/// A sentence that says what was found and what is legal.
pub fn parse_percent(text: &str) -> Result<u8, String> {
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|digits| digits.parse().ok()).filter(|percent| *percent <= 100).ok_or_else(|| {
        format!("`{text}` is not a percentage: write a whole number from 0 to 100 and `%`, like \"20%\"")
    })
}

/// Prints a duration in the largest unit that keeps it whole: `90s`, `1h`, `250ms`.
pub fn print_duration(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    print_in(ms, DURATION_UNITS)
}

/// Prints a size in the largest binary unit that keeps it whole: `64KiB`, `1GiB`, `1500B`.
pub fn print_size(bytes: u64) -> String {
    print_in(bytes, SIZE_UNITS.get(..5).unwrap_or(SIZE_UNITS))
}

fn print_in(value: u64, units: &[(&str, u64)]) -> String {
    let best = units.iter().rev().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor));
    let (name, factor) = best.or(units.first()).copied().unwrap_or(("", 1));
    format!("{}{name}", value / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_sizes_and_rates_round_trip() {
        for text in ["250ms", "10s", "5m", "1h", "2d", "90s"] {
            assert_eq!(print_duration(parse_duration(text).unwrap()), text);
        }
        for text in ["0B", "1500B", "64KiB", "3MiB", "1GiB"] {
            assert_eq!(print_size(parse_size(text).unwrap()), text);
        }
        assert_eq!(parse_rate("100 per 10s").unwrap(), Rate { count: 100, per: Duration::from_secs(10) });
    }

    #[test]
    fn nonsense_is_refused_with_what_is_legal() {
        for text in
            ["", "10", "s", "-1s", "1.5s", "10 seconds", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(parse_duration(text).unwrap_err().contains("\"10s\""), "{text}");
        }
        for text in ["", "64", "64K", "kib", "-1KiB"] {
            assert!(parse_size(text).unwrap_err().contains("KiB"), "{text}");
        }
        for text in ["", "20", "%", "-1%", "+1%", "101%", "1.5%", "20 %", "300%"] {
            assert!(parse_percent(text).unwrap_err().contains("\"20%\""), "{text}");
        }
        assert_eq!([parse_percent("0%"), parse_percent("100%")], [Ok(0), Ok(100)]);
        for text in ["", "100", "100/10s", "0 per 1s", "1 per 0s", "x per 1s"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}
