//! Hashes of passwords: bcrypt and argon2. Others are refused by name, because they no longer protect anything.

use argon2::{Argon2, ParamsBuilder, PasswordHash, PasswordHasher, PasswordVerifier};
use aws_lc_rs::rand;
use sha2::{Digest, Sha256};

/// The costliest bcrypt hash that is taken: each step doubles the time, and this one takes about two seconds.
const BCRYPT_COST_MAX: u32 = 15;
/// The costliest argon2 hash: 256 MiB, and so many passes over it.
const ARGON2_KIB_MAX: u32 = 256 * 1024;
const ARGON2_PASSES_MAX: u32 = 16;
/// Bytes of a hash as text.
const TEXT_BYTES_MAX: usize = 512;

/// What OWASP recommends for argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// What bcrypt is made with here.
pub const BCRYPT_COST: u32 = 12;

/// A hash of a password.
pub struct Hash {
    text: String,
    kind: Kind,
    /// Names it where it is remembered: another hash is another one.
    pub print: [u8; 32],
}

enum Kind {
    Bcrypt,
    Argon2(Box<PasswordHash>),
}

impl Hash {
    /// Reads a hash.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it.
    pub fn parse(text: &str) -> Result<Hash, String> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("has more than {TEXT_BYTES_MAX} bytes"));
        }
        let kind = match text.split('$').nth(1).unwrap_or_default() {
            "2y" | "2b" | "2a" => bcrypt_kind(text)?,
            "argon2id" | "argon2i" | "argon2d" => argon2_kind(text)?,
            other => return Err(refused(text, other).to_owned()),
        };
        Ok(Hash { text: text.to_owned(), kind, print: Sha256::digest(text.as_bytes()).into() })
    }

    /// Whether it is the hash of this password. Takes long: not for a worker's thread.
    pub fn verify(&self, password: &[u8]) -> bool {
        match &self.kind {
            Kind::Bcrypt => bcrypt::verify(password, &self.text).unwrap_or(false),
            Kind::Argon2(hash) => Argon2::default().verify_password(password, &**hash).is_ok(),
        }
    }
}

fn bcrypt_kind(text: &str) -> Result<Kind, String> {
    let cost = text.get(4..6).and_then(|cost| cost.parse::<u32>().ok()).unwrap_or(0);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'$');
    if text.len() != 60 || cost < 4 || !text.bytes().all(legal) || text.get(6..7) != Some("$") {
        return Err("is not a whole bcrypt hash, which has 60 characters".to_owned());
    }
    if cost > BCRYPT_COST_MAX {
        return Err(format!(
            "has the bcrypt cost {cost}: more than {BCRYPT_COST_MAX} is too slow for a question at each login"
        ));
    }
    Ok(Kind::Bcrypt)
}

fn argon2_kind(text: &str) -> Result<Kind, String> {
    let hash = PasswordHash::new(text).map_err(|_| "is not a whole argon2 hash".to_owned())?;
    let params =
        argon2::Params::try_from(&hash).map_err(|_| "has argon2 parameters that cannot be".to_owned())?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err("is not a whole argon2 hash".to_owned());
    }
    if params.m_cost() > ARGON2_KIB_MAX || params.t_cost() > ARGON2_PASSES_MAX {
        return Err(format!(
            "takes {} KiB and {} passes: at most {ARGON2_KIB_MAX} KiB and {ARGON2_PASSES_MAX} passes are taken",
            params.m_cost(),
            params.t_cost()
        ));
    }
    Ok(Kind::Argon2(Box::new(hash)))
}

/// What else stands in such files.
fn refused(text: &str, word: &str) -> &'static str {
    match word {
        "apr1" | "1" => "is an MD5 hash, which is tried out in seconds",
        "5" | "6" => "is a SHA-crypt hash, which is not taken here",
        "y" | "7" | "gy" => "is a scrypt or yescrypt hash, which is not taken here",
        _ if text.starts_with("{SHA}") => "is a SHA-1 hash without salt, which is tried out in seconds",
        _ if text.len() == 13 => "is a DES crypt hash, or a password in plain text",
        _ => "is no hash that is known here, or a password in plain text",
    }
}

/// Makes an argon2id hash.
///
/// # Errors
/// A sentence when there are no random numbers, or the password cannot be hashed.
pub fn argon2id(password: &[u8]) -> Result<String, String> {
    let salt = salt()?;
    let params = ParamsBuilder::new().m_cost(MEMORY_KIB).t_cost(PASSES).p_cost(1).build();
    let params = params.map_err(|error| error.to_string())?;
    let hash = Argon2::from(params).hash_password_with_salt(password, &salt);
    hash.map(|hash| hash.to_string()).map_err(|error| format!("the password cannot be hashed: {error}"))
}

/// Makes a bcrypt hash, for a file that other programs read too.
///
/// # Errors
/// A sentence when there are no random numbers, or the password is longer than bcrypt reads.
pub fn bcrypt(password: &[u8], cost: u32) -> Result<String, String> {
    if password.len() > 72 || password.contains(&0) {
        return Err(
            "bcrypt reads 72 bytes of a password, up to the first NUL: take a shorter one, or argon2"
                .to_owned(),
        );
    }
    let made = bcrypt::hash_with_salt(password, cost, salt()?).map_err(|error| error.to_string())?;
    Ok(made.format_for_version(bcrypt::Version::TwoY))
}

fn salt() -> Result<[u8; 16], String> {
    let mut salt = [0; 16];
    rand::fill(&mut salt).map_err(|_| "the system gives no random numbers".to_owned())?;
    Ok(salt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_back_and_tells_passwords_apart() {
        for text in [argon2id(b"open sesame").unwrap(), bcrypt(b"open sesame", 4).unwrap()] {
            let hash = Hash::parse(&text).unwrap();
            assert!(hash.verify(b"open sesame"), "{text}");
            assert!(!hash.verify(b"open sesame ") && !hash.verify(b""), "{text}");
        }
        assert_ne!(argon2id(b"a").unwrap(), argon2id(b"a").unwrap(), "each has a salt of its own");
    }

    #[test]
    fn hashes_of_other_programs_are_read() {
        // `htpasswd -nbB ann secret` of Apache 2.4, and the argon2 command line program.
        let apache = "$2y$05$abcdefghijklmnopqrstuuMNz3ZoDq/kK0yf8QE4SQmHf3nv6xK0e";
        assert!(Hash::parse(apache).is_ok());
        let argon2 = "$argon2i$v=19$m=65536,t=2,p=4$c29tZXNhbHQ$RdescudvJCsgt3ub+b+dWRWJTmaaJObG";
        assert!(Hash::parse(argon2).is_ok_and(|hash| hash.verify(b"password")));
    }

    #[test]
    fn what_protects_nothing_or_costs_too_much_is_refused_by_name() {
        for (text, said) in [
            ("$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/", "MD5"),
            ("$1$abcdefgh$0123456789012345678901", "MD5"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
            ("rqXexS6ZhobKA", "DES"),
            ("$6$abc$def", "SHA-crypt"),
            ("$y$j9T$abc$def", "yescrypt"),
            ("secret", "plain text"),
            ("", "plain text"),
            ("$2y$05$tooshort", "60 characters"),
            ("$2y$31$abcdefghijklmnopqrstuuMNz3ZoDq/kK0yf8QE4SQmHf3nv6xK0e", "cost 31"),
            ("$argon2id$v=19$m=9999999,t=2,p=1$c29tZXNhbHQ$RdescudvJCsgt3ub+b+dWRWJTmaaJObG", "KiB"),
            ("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ", "whole argon2"),
            ("$argon2id$", "whole argon2"),
        ] {
            let why = Hash::parse(text).err().unwrap_or_default();
            assert!(why.contains(said), "{text}: {why}");
        }
    }
}
