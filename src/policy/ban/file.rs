//! The file of banned networks: one a line, an address or a network, perhaps with the day on which it ends, and what
//! follows `#` is for people.
//!
//! ```text
//! 192.0.2.7
//! 198.51.100.0/24  until 2027-01-31   # credential stuffing
//! 2001:db8:bad::/48
//! ```

use std::net::IpAddr;

use ipnet::IpNet;

use super::net_of;

/// Lines with a network; further ones are left out, and that is told.
pub const LINES_MAX: usize = 100_000;
/// Problems told one by one.
const TOLD_MAX: usize = 10;

/// One line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    /// Which addresses.
    pub net: IpNet,
    /// When it ends, in seconds since 1970: at the end of the day named, by UTC.
    pub until: Option<u64>,
}

/// Reads a file. A line that cannot be understood is left out; why stands in the second list, with the number of the line.
pub fn parse(text: &str) -> (Vec<Line>, Vec<String>) {
    let (mut lines, mut wrong, mut untold) = (Vec::new(), Vec::new(), 0usize);
    for (number, line) in text.lines().enumerate() {
        let said = line.split('#').next().unwrap_or_default().trim();
        if said.is_empty() {
            continue;
        }
        match one(said) {
            Ok(_) if lines.len() >= LINES_MAX => {
                wrong.push(format!(
                    "line {}: more than {LINES_MAX} networks; the rest is left out",
                    number + 1
                ));
                break;
            }
            Ok(line) => lines.push(line),
            Err(why) if wrong.len() < TOLD_MAX => wrong.push(format!("line {}: {why}", number + 1)),
            Err(_) => untold += 1,
        }
    }
    if untold > 0 {
        wrong.push(format!("{untold} more lines cannot be understood"));
    }
    (lines, wrong)
}

fn one(said: &str) -> Result<Line, String> {
    let mut words = said.split_ascii_whitespace();
    let net = net(words.next().unwrap_or_default())?;
    let until = match (words.next(), words.next(), words.next()) {
        (None, ..) => None,
        (Some("until"), Some(day), None) => Some(
            day_end(day).ok_or_else(|| format!("`{}` is not a day: write it like 2027-01-31", clean(day)))?,
        ),
        (Some(word), ..) => {
            return Err(format!(
                "`{}` is not understood: after the network may stand `until 2027-01-31`",
                clean(word)
            ));
        }
    };
    Ok(Line { net, until })
}

/// An address or a network. A single IPv6 address stands for its /64: one client usually owns all of it.
///
/// # Errors
/// A sentence.
pub fn net(text: &str) -> Result<IpNet, String> {
    let wrong =
        || format!("`{}` is neither an address nor a network, like 192.0.2.7 or 2001:db8::/32", clean(text));
    if let Ok(address) = text.parse::<IpAddr>() {
        let address = address.to_canonical();
        return Ok(if address.is_loopback() { IpNet::from(address) } else { net_of(address) });
    }
    let net: IpNet = text.parse().map_err(|_| wrong())?;
    // A mapped network would never meet a client: their addresses are flattened.
    if let IpNet::V6(v6) = net
        && v6.network().to_ipv4_mapped().is_some()
        && v6.prefix_len() >= 96
    {
        return Err(format!("`{}` is an IPv4 network written as IPv6: write it as IPv4", clean(text)));
    }
    Ok(net.trunc())
}

/// The end of a day of the Gregorian calendar, in seconds since 1970.
fn day_end(text: &str) -> Option<u64> {
    let mut parts = text.split('-');
    let mut next = |digits: usize| {
        let part =
            parts.next().filter(|part| part.len() == digits && part.bytes().all(|b| b.is_ascii_digit()));
        part?.parse::<u64>().ok()
    };
    let (year, month, day) = (next(4)?, next(2)?, next(2)?);
    if parts.next().is_some() || year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Counted from March, so that the leap day is the last of its year.
    let (shifted, month_of_march) = (if month > 2 { year } else { year - 1 }, (month + 9) % 12);
    let days =
        365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + (153 * month_of_march + 2) / 5 + day
            - 1;
    let days = days.checked_sub(719_468)?;
    // The 30th of February comes out as another day.
    (crate::base::clock::civil(days) == (year, month, day)).then_some((days + 1) * 86_400)
}

/// A word of the file as a message may repeat it.
fn clean(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_networks_days_and_remarks_are_read() {
        let (lines, wrong) = parse(
            "# a list\n\n192.0.2.7\n198.51.100.77/24 until 1970-01-01 # why\r\n 2001:db8:bad::1\n2001:db8::/32#x\n::ffff:192.0.2.8\n::1\n",
        );
        assert_eq!(wrong, Vec::<String>::new());
        let read: Vec<String> = lines.iter().map(|line| line.net.to_string()).collect();
        assert_eq!(
            read,
            [
                "192.0.2.7/32",
                "198.51.100.0/24",
                "2001:db8:bad::/64",
                "2001:db8::/32",
                "192.0.2.8/32",
                "::1/128"
            ]
        );
        assert_eq!(lines[1].until, Some(86_400));
        assert!(lines.iter().filter(|line| line.until.is_some()).count() == 1);
    }

    #[test]
    fn what_cannot_be_understood_is_left_out_and_told_with_its_line() {
        let (lines, wrong) = parse(
            "192.0.2.0/33\nplanet\n192.0.2.1 for 1h\n192.0.2.1 until\n192.0.2.1 until 2027-02-30\n192.0.2.1 until 2027-1-1\n::ffff:192.0.2.0/120\n192.0.2.9\n\x1b[31m\n",
        );
        assert_eq!(lines.len(), 1);
        assert_eq!(wrong.len(), 8);
        assert!(wrong[0].starts_with("line 1: ") && wrong[7].starts_with("line 9: "), "{wrong:?}");
        assert!(!wrong[7].contains('\x1b'));
        let (_, wrong) = parse(&"x\n".repeat(50));
        assert_eq!((wrong.len(), wrong[10].as_str()), (11, "40 more lines cannot be understood"));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(day_end("1970-01-01"), Some(86_400));
        assert_eq!(day_end("2000-02-29"), Some(951_868_800));
        assert_eq!(day_end("2026-11-26"), Some(1_795_737_600));
        for text in [
            "1900-02-29",
            "2027-02-29",
            "2027-13-01",
            "2027-00-01",
            "2027-01-00",
            "1969-12-31",
            "",
            "2027-01-01-1",
        ] {
            assert_eq!(day_end(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_is_too_long_is_read_as_far_as_it_may_be() {
        let text: String =
            (0..LINES_MAX + 5).map(|n| format!("10.{}.{}.{}\n", n >> 16, n >> 8 & 255, n & 255)).collect();
        let (lines, wrong) = parse(&text);
        assert_eq!((lines.len(), wrong.len()), (LINES_MAX, 1));
    }
}
