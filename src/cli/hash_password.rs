//! `tidegate hash-password`: a line for a file of users. The password is read without being shown, or from a pipe; never
//! from the command line, which every other user of the machine can read.

use std::io::{BufRead, IsTerminal, Write};

use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::{EXIT_OK, print};
use crate::policy::auth;
use crate::policy::auth::hash::{self, BCRYPT_COST};

/// Bytes of a password; more is a file piped in by mistake.
const PASSWORD_BYTES_MAX: u64 = 1_024;

#[derive(Debug, Args)]
pub(super) struct HashPassword {
    /// Print a whole line for a file of users, with this name
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Make a bcrypt hash, which other programs read too, instead of argon2id
    #[arg(long)]
    bcrypt: bool,
    /// How costly the bcrypt hash is: each step doubles the time
    #[arg(long, value_name = "COST", default_value_t = BCRYPT_COST, requires = "bcrypt",
          value_parser = clap::value_parser!(u32).range(8..=15))]
    cost: u32,
}

pub(super) fn hash_password(asked: &HashPassword) -> Result<u8, String> {
    if let Some(name) = &asked.user
        && (auth::user(name).is_none() || name.contains(':') || name.starts_with('#'))
    {
        return Err(format!(
            "--user: `{name}` cannot stand in such a file: a name has no colon and no control character"
        ));
    }
    let password = if std::io::stdin().is_terminal() { typed()? } else { piped()? };
    if password.is_empty() {
        return Err("the password is empty".to_owned());
    }
    if password.chars().any(char::is_control) {
        // RFC 7617 section 2: no client could send it.
        return Err("the password has a control character".to_owned());
    }
    let made = match asked.bcrypt {
        true => hash::bcrypt(password.as_bytes(), asked.cost)?,
        false => hash::argon2id(password.as_bytes())?,
    };
    match &asked.user {
        Some(name) => print(&format!("{name}:{made}\n")),
        None => print(&format!("{made}\n")),
    }
    Ok(EXIT_OK)
}

fn piped() -> Result<Zeroizing<String>, String> {
    line(std::io::stdin().lock())
}

fn typed() -> Result<Zeroizing<String>, String> {
    let silence = Silence::begin()?;
    let ask = |question: &str| {
        // Standard output is for the answer alone.
        let _ = write!(std::io::stderr(), "{question}: ");
        let read = line(std::io::stdin().lock());
        let _ = writeln!(std::io::stderr());
        read
    };
    let (first, second) = (ask("Password")?, ask("Again")?);
    drop(silence);
    if first == second { Ok(first) } else { Err("the two are not the same".to_owned()) }
}

/// One line without its end.
fn line(input: impl BufRead) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::new());
    let mut input = input.take(PASSWORD_BYTES_MAX + 2);
    let read = input.read_line(&mut text);
    read.map_err(|error| format!("the password cannot be read: {error}"))?;
    let length = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(length);
    if length as u64 > PASSWORD_BYTES_MAX {
        return Err(format!("the password has more than {PASSWORD_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silence(Termios);

impl Silence {
    fn begin() -> Result<Silence, String> {
        let refuse = |error| format!("the terminal cannot be kept from showing the password: {error}");
        let before = tcgetattr(std::io::stdin()).map_err(refuse)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &silent).map_err(refuse)?;
        Ok(Silence(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0); // the terminal has gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_read_without_its_end_and_a_long_one_is_refused() {
        for text in ["open sesame", "open sesame\n", "open sesame\r\n", "open sesame\nmore\n"] {
            assert_eq!(*line(text.as_bytes()).unwrap(), "open sesame");
        }
        assert!(line("x".repeat(5_000).as_bytes()).is_err());
        assert!(line(&b"\xff\n"[..]).is_err());
    }
}
