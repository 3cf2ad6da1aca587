//! Users and the hashes of their passwords, from lines `name:hash` as htpasswd writes them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::hash::Hash;

/// Bytes of a file of users, and users of one site or route.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Users of one site or route.
pub const USERS_MAX: usize = 10_000;

/// A user.
pub struct User {
    /// Its name.
    pub name: Arc<str>,
    /// The hash of its password.
    pub hash: Arc<Hash>,
}

/// The users of a site or route; at least one.
pub struct Users {
    known: HashMap<Arc<str>, usize>,
    all: Vec<User>,
    strangers: RandomState,
}

/// Gathers users, and complains of what is no user.
#[derive(Default)]
pub struct Builder {
    known: HashMap<Arc<str>, usize>,
    all: Vec<User>,
}

impl Builder {
    /// Reads a whole file.
    ///
    /// # Errors
    /// The line and what is wrong with it.
    pub fn file(&mut self, bytes: &[u8]) -> Result<(), String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())?;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                self.line(line).map_err(|why| format!("line {}: {why}", index + 1))?;
            }
        }
        Ok(())
    }

    /// Reads one line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn line(&mut self, line: &str) -> Result<(), String> {
        let Some((name, hash)) = line.split_once(':') else {
            return Err("there is no colon between a name and a hash".to_owned());
        };
        let name = super::user(name).ok_or("the name is empty, too long or has control characters")?;
        let hash = Hash::parse(hash.trim()).map_err(|why| format!("what stands behind `{name}` {why}"))?;
        if self.all.len() >= USERS_MAX {
            return Err(format!("there are more than {USERS_MAX} users"));
        }
        if self.known.insert(name.clone(), self.all.len()).is_some() {
            return Err(format!("the user `{name}` is there twice"));
        }
        self.all.push(User { name, hash: Arc::new(hash) });
        Ok(())
    }

    /// The users; `None` where there are none.
    pub fn build(self) -> Option<Users> {
        let Builder { known, all } = self;
        (!all.is_empty()).then(|| Users { known, all, strangers: RandomState::new() })
    }
}

impl Users {
    /// The user of this name.
    pub fn find(&self, name: &str) -> Option<&User> {
        self.all.get(*self.known.get(name)?)
    }

    /// A hash to be computed for a name that nobody has: it costs what that of some user costs, and always the same one,
    /// so that the time of an answer does not tell who is there.
    pub fn decoy(&self, name: &str) -> Option<&Arc<Hash>> {
        let count = u64::try_from(self.all.len()).unwrap_or(1).max(1);
        let at = usize::try_from(self.strangers.hash_one(name) % count).unwrap_or(0);
        self.all.get(at).map(|user| &user.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash;
    use super::*;

    #[test]
    fn a_file_is_read_line_by_line_and_the_line_that_is_wrong_is_named() {
        let good = hash::bcrypt(b"x", 4).unwrap();
        let mut builder = Builder::default();
        builder.file(format!("# people\n\nann:{good}\r\n  bob:{good}  \n").as_bytes()).unwrap();
        let users = builder.build().unwrap();
        assert!(users.find("ann").is_some() && users.find("bob").is_some() && users.find("eve").is_none());
        assert!(users.decoy("eve").is_some());
        assert!(Arc::ptr_eq(users.decoy("eve").unwrap(), users.decoy("eve").unwrap()));
        for (text, said) in [
            (format!("ann:{good}\nbob\n"), "line 2: there is no colon"),
            (format!(":{good}"), "line 1: the name is empty"),
            ("ann:secret".into(), "line 1: what stands behind `ann` is no hash"),
            ("ann:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".into(), "SHA-1"),
            (format!("ann:{good}\n\n#\nann:{good}"), "line 4: the user `ann` is there twice"),
        ] {
            let why = Builder::default().file(text.as_bytes()).unwrap_err();
            assert!(why.contains(said), "{why}");
        }
        assert!(Builder::default().file(b"\xff").unwrap_err().contains("UTF-8"));
        assert!(Builder::default().build().is_none());
    }
}
