//! Names and passwords in `Authorization: Basic` (RFC 7617).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderValue;
use zeroize::Zeroizing;

use super::hashing::Job;
use super::users::{Builder, Users};
use super::{Files, Shared, Verdict, Wrong};
use crate::base::address::ClientKey;
use crate::base::clock::Millis;
use crate::base::secret::Secret;
use crate::config::model::{self, Origin};

/// Bytes of name and password together.
const CREDENTIALS_BYTES_MAX: usize = 1_024;

/// Names and passwords, compiled.
pub struct Basic {
    site: Arc<str>,
    users: Users,
    remember: Duration,
    shared: Arc<Shared>,
    /// What a client is asked with.
    pub challenge: HeaderValue,
}

/// Who asks, and when.
#[derive(Clone, Copy)]
pub struct Asking {
    /// The client.
    pub client: ClientKey,
    /// Now.
    pub now: Millis,
}

impl Basic {
    /// Compiles it.
    ///
    /// # Errors
    /// What is wrong with the users.
    pub fn compile(
        said: &model::Basic,
        site: &Arc<str>,
        files: &Files,
        shared: &Arc<Shared>,
    ) -> Result<Basic, Wrong> {
        let mut users = Builder::default();
        let help = "lines look like \"ann:$2y$12$…\"; `tidegate hash-password --user ann` makes one, and so does `htpasswd -nB ann`";
        for line in &said.users {
            let read = users.line(line.value.reveal());
            read.map_err(|why| (line.origin.clone(), format!("`users`: {why}"), help.to_owned()))?;
        }
        let mut origin = said.users.first().map_or(Origin::Default, |line| line.origin.clone());
        if let (Some(file), Some(bytes)) = (&said.file, &files.users) {
            let wrong = |why| {
                (
                    file.origin.clone(),
                    format!("the file of users {}: {why}", file.value.display()),
                    help.to_owned(),
                )
            };
            users.file(bytes).map_err(wrong)?;
            origin = file.origin.clone();
        }
        let nobody = || (origin, "there is no user: nobody could come in".to_owned(), help.to_owned());
        let users = users.build().ok_or_else(nobody)?;
        let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", said.realm);
        Ok(Basic {
            site: site.clone(),
            users,
            remember: said.remember,
            shared: shared.clone(),
            challenge: HeaderValue::from_str(&challenge).unwrap_or(HeaderValue::from_static("Basic")),
        })
    }

    /// Who the request comes from.
    pub fn check(&self, authorization: Option<&HeaderValue>, asking: Asking) -> Verdict {
        let Some(encoded) = authorization.and_then(|value| scheme(value.as_bytes())) else {
            return Verdict::Missing;
        };
        let Some(shown) = Shown::read(encoded) else { return Verdict::Wrong };
        let user = self.users.find(shown.name());
        let Some(hash) = user.map(|user| &user.hash).or_else(|| self.users.decoy(shown.name())) else {
            return Verdict::Wrong;
        };
        let (name, password) = (shown.name().as_bytes(), shown.password().as_bytes());
        let known = [u8::from(user.is_some())];
        let key = self.shared.remembered.key(&[b"basic", &known, &hash.print, name, password]);
        if let Some(user) = self.shared.remembered.find(&key, asking.now) {
            return Verdict::User(user);
        }
        Verdict::Ask(Box::new(Job {
            site: self.site.clone(),
            client: asking.client,
            key,
            hash: hash.clone(),
            password: Secret::new(shown.password()),
            user: user.map(|user| user.name.clone()),
            remember: self.remember,
        }))
    }

    /// The answer to a question has come.
    pub fn settle(&self, job: &Job, right: bool, now: Millis) -> Option<Arc<str>> {
        let user = job.user.clone().filter(|_| right)?;
        self.shared.remembered.note(job.key, &user, now, job.remember);
        Some(user)
    }

    /// Who computes hashes.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

/// What follows `Basic`; schemes are the same in capitals (RFC 9110 section 11.1).
fn scheme(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(5)?;
    let rest = rest.strip_prefix(b" ")?;
    scheme.eq_ignore_ascii_case(b"basic").then(|| rest.trim_ascii())
}

/// A name and a password as sent; wiped when it is let go.
struct Shown(Zeroizing<String>, usize);

impl Shown {
    fn read(encoded: &[u8]) -> Option<Shown> {
        if encoded.len() > CREDENTIALS_BYTES_MAX * 4 / 3 {
            return None;
        }
        let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?);
        let text = Zeroizing::new(decoded.ok()?);
        // RFC 7617 section 2: a name has no colon, and neither has a control character.
        let colon = text.find(':')?;
        (!text.chars().any(char::is_control)).then_some(Shown(text, colon))
    }

    fn name(&self) -> &str {
        self.0.get(..self.1).unwrap_or_default()
    }

    fn password(&self) -> &str {
        self.0.get(self.1 + 1..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::hash;
    use super::*;
    use crate::config::model::Located;

    fn compiled(lines: &[String]) -> Result<Basic, Wrong> {
        let users = lines
            .iter()
            .map(|line| Located { value: Secret::new(line.as_str()), origin: Origin::Default })
            .collect();
        let remember = Duration::from_secs(300);
        let said = model::Basic { realm: "shop".into(), users, file: None, remember };
        Basic::compile(&said, &"shop".into(), &Files::default(), &Arc::new(Shared::new().unwrap()))
    }

    fn field(text: &str) -> HeaderValue {
        HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(text))).unwrap()
    }

    const ASKING: Asking = Asking { client: ClientKey(1), now: Millis(0) };

    fn word(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::User(_) => "user",
            Verdict::Missing => "missing",
            Verdict::Wrong => "wrong",
            Verdict::Denied => "denied",
            Verdict::Ask(_) => "ask",
        }
    }

    #[test]
    fn a_password_is_asked_about_once_and_then_remembered() {
        let basic = compiled(&[format!("ann:{}", hash::bcrypt(b"a:b", 4).unwrap())]).unwrap();
        let shown = field("ann:a:b");
        let Verdict::Ask(job) = basic.check(Some(&shown), ASKING) else { panic!("not asked") };
        assert!(job.hash.verify(job.password.reveal().as_bytes()));
        assert_eq!(basic.settle(&job, false, Millis(0)), None);
        assert_eq!(word(&basic.check(Some(&shown), ASKING)), "ask", "what is wrong is not remembered");
        assert_eq!(basic.settle(&job, true, Millis(0)).as_deref(), Some("ann"));
        assert_eq!(word(&basic.check(Some(&shown), ASKING)), "user");
        let later = Asking { now: Millis(300_000), ..ASKING };
        assert_eq!(word(&basic.check(Some(&shown), later)), "ask");
        assert_eq!(word(&basic.check(Some(&field("ann:a:c")), ASKING)), "ask");
    }

    #[test]
    fn strangers_are_asked_about_like_users_and_never_come_in() {
        let basic = compiled(&[format!("ann:{}", hash::bcrypt(b"x", 4).unwrap())]).unwrap();
        let Verdict::Ask(job) = basic.check(Some(&field("eve:x")), ASKING) else { panic!("not asked") };
        assert!(job.hash.verify(b"x"), "the decoy is a real hash");
        assert_eq!(basic.settle(&job, true, Millis(0)), None);
        assert_eq!(word(&basic.check(Some(&field("eve:x")), ASKING)), "ask");
    }

    #[test]
    fn what_is_no_name_and_password_is_told_apart_from_nothing() {
        let basic = compiled(&[format!("ann:{}", hash::bcrypt(b"x", 4).unwrap())]).unwrap();
        let check = |text: &str| word(&basic.check(Some(&HeaderValue::from_str(text).unwrap()), ASKING));
        assert_eq!(word(&basic.check(None, ASKING)), "missing");
        assert_eq!(check("Bearer abc"), "missing");
        assert_eq!(check("Basically abc"), "missing");
        assert_eq!(check("basic YW5uOng="), "ask");
        for wrong in ["Basic", "Basic ", "Basic !!!", "Basic YW5u", "Basic //8=", "Basic YW5uOgA="] {
            assert!(["wrong", "missing"].contains(&check(wrong)), "{wrong}");
        }
        assert_eq!(word(&basic.check(Some(&field(&"a".repeat(4_000))), ASKING)), "wrong");
        assert_eq!(basic.challenge, "Basic realm=\"shop\", charset=\"UTF-8\"");
    }
}
