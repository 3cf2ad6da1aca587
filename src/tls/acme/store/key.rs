//! Keys of people: 32 random bytes in a file or an environment variable, as base64 or hexadecimal digits.
//!
//! From each, one key for records and one for backups are derived (HKDF, RFC 5869), so that neither can be taken for
//! the other, and an id that says which key is needed without giving anything of it away.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::hex;
use crate::config::model::KeySource;
use crate::tls::file;

/// Bytes of a key.
const KEY_BYTES: usize = 32;
/// Most bytes of a key file.
const FILE_BYTES_MAX: usize = 4096;
/// Distinct bytes that 32 random ones have at the very least; less was typed, not drawn.
const DISTINCT_MIN: usize = 12;
/// Bytes of a key's id.
const ID_BYTES: usize = 8;
/// Bytes of a nonce and of a tag.
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;

/// What a key is derived for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Records of a store.
    Records,
    /// Whole backups.
    Backups,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Purpose::Records => b"tidegate store records 1",
            Purpose::Backups => b"tidegate store backups 1",
        }
    }
}

/// A key ready for use. Not printable but for its id.
pub struct SealKey {
    id: String,
    aead: RandomizedNonceKey,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.id)
    }
}

/// The content was made with another key, or changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

impl SealKey {
    /// Reads a key. The error is a sentence that names where it was looked for and what to do.
    pub fn read(source: &KeySource, purpose: Purpose) -> Result<SealKey, String> {
        let text = match source {
            KeySource::File(path) => read_file(path)?,
            KeySource::Env(name) => std::env::var(name).map(|text| Zeroizing::new(text.into_bytes())).map_err(|_| {
                format!("The environment variable {name}, which is to hold a key, is not set (or not text). Set it, \
                         or name a file")
            })?,
        };
        let bytes = decode(&text).map_err(|found| {
            format!(
                "{source} holds no key: {found}. A key is 32 random bytes as base64 or hexadecimal digits: make one \
                 with `openssl rand -base64 32`"
            )
        })?;
        SealKey::new(&bytes, purpose).map_err(|Refused| format!("The key of {source} could not be prepared"))
    }

    fn new(bytes: &[u8; KEY_BYTES], purpose: Purpose) -> Result<SealKey, Refused> {
        let master = Salt::new(HKDF_SHA256, &[]).extract(bytes);
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        derive(&master, purpose.label(), key.as_mut_slice())?;
        let mut id = [0; ID_BYTES];
        derive(&master, b"tidegate store key id 1", &mut id)?;
        let aead = RandomizedNonceKey::new(&AES_256_GCM, key.as_slice()).map_err(|_| Refused)?;
        Ok(SealKey { id: hex(&id), aead })
    }

    /// Which key it is: 16 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Encrypts: a random nonce of the library, then what is sealed, then the tag. `context` must be the same when
    /// opened.
    pub fn seal(&self, plain: &[u8], context: &[u8]) -> Result<Vec<u8>, Refused> {
        // With room for the tag from the start: a growing vector would leave a copy of the plain text behind.
        let mut work = Zeroizing::new(Vec::with_capacity(plain.len() + TAG_BYTES));
        work.extend_from_slice(plain);
        let nonce =
            self.aead.seal_in_place_append_tag(Aad::from(context), &mut *work).map_err(|_| Refused)?;
        let mut sealed = Vec::with_capacity(NONCE_BYTES + work.len());
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&work);
        Ok(sealed)
    }

    /// Decrypts what [`SealKey::seal`] made.
    pub fn open(&self, sealed: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, Refused> {
        let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES).ok_or(Refused)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Refused)?;
        let mut work = Zeroizing::new(sealed.to_vec());
        let length =
            self.aead.open_in_place(nonce, Aad::from(context), &mut work).map_err(|_| Refused)?.len();
        work.truncate(length);
        Ok(work)
    }
}

/// So many bytes.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive(master: &Prk, label: &[u8], into: &mut [u8]) -> Result<(), Refused> {
    let label = [label];
    let okm = master.expand(&label, Length(into.len())).map_err(|_| Refused)?;
    okm.fill(into).map_err(|_| Refused)
}

fn read_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| {
        format!("The key file {shown} cannot be read: {error}. Check the path and its owner")
    })?;
    let mode = metadata.permissions().mode() & 0o777;
    // A group may read: that is how secrets reach containers.
    if mode & 0o027 != 0 {
        return Err(format!(
            "The key file {shown} has mode {mode:04o}: others could read or change it. Say `chmod 600 {shown}`; if \
             others may have read it, make a new key and name this one in `previous`"
        ));
    }
    file::read_bounded(path, FILE_BYTES_MAX).map_err(|error| {
        format!("The key file {shown} cannot be read: {error}. Check the path and its owner")
    })
}

/// The error is what was found.
fn decode(text: &[u8]) -> Result<Zeroizing<[u8; KEY_BYTES]>, String> {
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err("it is empty".into());
    }
    let bytes = match text.len() == KEY_BYTES * 2 && text.iter().all(u8::is_ascii_hexdigit) {
        true => from_hex(text),
        false => from_base64(text),
    };
    let bytes = bytes.ok_or_else(|| "it is neither base64 nor hexadecimal digits".to_owned())?;
    let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice());
    let key = Zeroizing::new(key.map_err(|_| format!("it decodes to {} bytes", bytes.len()))?);
    let mut distinct = *key;
    distinct.sort_unstable();
    let distinct = 1 + distinct.windows(2).filter(|pair| pair.first() != pair.last()).count();
    match distinct < DISTINCT_MIN {
        true => Err("its bytes repeat so often that they cannot be random".into()),
        false => Ok(key),
    }
}

fn from_hex(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len() / 2));
    for pair in text.chunks_exact(2) {
        let [high, low] = pair else { return None };
        bytes.push(digit(*high)? << 4 | digit(*low)?);
    }
    Some(bytes)
}

fn from_base64(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let lenient = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let either = [STANDARD, URL_SAFE].map(|alphabet| GeneralPurpose::new(&alphabet, lenient));
    either.iter().find_map(|engine| engine.decode(text).ok()).map(Zeroizing::new)
}

#[cfg(test)]
impl SealKey {
    /// A key that is the same for the same number.
    pub(crate) fn numbered(number: u8, purpose: Purpose) -> SealKey {
        SealKey::new(&std::array::from_fn(|at| number.wrapping_add(u8::try_from(at).unwrap())), purpose)
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, mode: u32) -> (tempfile::TempDir, Result<SealKey, String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let found = SealKey::read(&KeySource::File(path), Purpose::Records);
        (folder, found)
    }

    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn what_is_no_key_is_refused_with_the_place_and_the_mend() {
        let short = "AAECAwQFBgcICQoLDA0ODw==";
        for (text, said) in [
            ("", "is empty"),
            ("\n \n", "is empty"),
            ("correct horse battery staple", "neither base64"),
            (short, "decodes to 16 bytes"),
            (&HEX[1..], "neither base64"),
            (&"0".repeat(64), "cannot be random"),
            (&"k".repeat(5_000), "larger"),
        ] {
            let (folder, found) = written(text, 0o600);
            let found = found.unwrap_err();
            let named = found.contains(folder.path().to_str().unwrap());
            // The file system words the last one.
            assert!(named && (found.contains(said) || text.len() > 4_096), "{text}: {found}");
        }
        for mode in [0o644, 0o604, 0o620, 0o666] {
            let (_folder, found) = written(HEX, mode);
            let found = found.unwrap_err();
            assert!(found.contains("chmod 600"), "{mode:o}: {found}");
        }
        let absent = SealKey::read(&KeySource::File("/nowhere/key".into()), Purpose::Records).unwrap_err();
        assert!(absent.contains("/nowhere/key"), "{absent}");
        let unset = SealKey::read(&KeySource::Env("TIDEGATE_NOBODY_SETS_THIS".into()), Purpose::Records);
        assert!(unset.unwrap_err().contains("TIDEGATE_NOBODY_SETS_THIS"));
    }

    #[test]
    fn one_key_may_be_written_in_four_ways() {
        let base64 = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        let ways =
            [HEX.to_owned(), HEX.to_uppercase(), format!(" {base64}\n"), base64.trim_end_matches('=').into()];
        for mode in [0o600, 0o400, 0o440, 0o640] {
            for way in &ways {
                let (_folder, found) = written(way, mode);
                assert_eq!(
                    found.unwrap().id(),
                    SealKey::numbered(0, Purpose::Records).id(),
                    "{way} {mode:o}"
                );
            }
        }
    }

    #[test]
    fn only_the_same_key_purpose_and_context_open_what_was_sealed() {
        let ours = SealKey::numbered(1, Purpose::Records);
        let sealed = ours.seal(b"a secret", b"place").unwrap();
        assert_eq!(ours.open(&sealed, b"place").unwrap().as_slice(), b"a secret");
        assert_ne!(sealed, ours.seal(b"a secret", b"place").unwrap(), "each time another nonce");
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert!(ours.open(&sealed, b"other").is_err());
        assert!(SealKey::numbered(2, Purpose::Records).open(&sealed, b"place").is_err());
        assert!(SealKey::numbered(1, Purpose::Backups).open(&sealed, b"place").is_err());
        assert_eq!(SealKey::numbered(1, Purpose::Backups).id(), ours.id(), "one key of a person, one id");
        for length in 0..sealed.len() {
            assert!(ours.open(&sealed[..length], b"place").is_err(), "{length}");
        }
        for position in 0..sealed.len() {
            let mut bent = sealed.clone();
            bent[position] ^= 1;
            assert!(ours.open(&bent, b"place").is_err(), "{position}");
        }
        assert_eq!(format!("{ours:?}"), format!("SealKey({})", ours.id()));
    }
}
