//! Signatures of packs, in the format of minisign: a file's name and `.minisig` behind it.

use minisign_verify::{Error, PublicKey, Signature};

use super::pack::quoted;

/// Bytes of a signature file.
pub const SIGNATURE_BYTES_MAX: usize = 4_096;

/// Reads a public key: the second line of `minisign.pub`.
///
/// # Errors
/// A sentence that says what a key looks like.
pub fn key(text: &str) -> Result<PublicKey, String> {
    PublicKey::from_base64(text.trim()).map_err(|_| {
        format!(
            "`{}` is no public key of minisign: take the second line of its .pub file, which begins with RW",
            quoted(text)
        )
    })
}

/// Checks a pack's signature against the keys that are trusted; gives the comment that was signed with it.
///
/// # Errors
/// A sentence that says why it does not count.
pub fn verify(pack: &[u8], signature: &[u8], keys: &[String]) -> Result<String, String> {
    if keys.is_empty() {
        return Err("it is signed, but nobody is trusted to sign: name a key in [patches] keys".into());
    }
    let unreadable = || "its signature cannot be read: sign it again with `minisign -S`".to_owned();
    let text = std::str::from_utf8(signature).map_err(|_| unreadable())?;
    let signature = Signature::decode(text).map_err(|_| unreadable())?;
    let mut known = false;
    for key in keys {
        // Signatures of the whole file instead of its hash are what minisign made before 2021.
        match self::key(key)?.verify(pack, &signature, false) {
            Ok(()) => return Ok(quoted(signature.trusted_comment())),
            Err(Error::UnexpectedAlgorithm) => {
                return Err(
                    "its signature is of the kind that minisign made before version 0.10: sign it again"
                        .into(),
                );
            }
            Err(Error::UnexpectedKeyId) => {}
            Err(_) => known = true,
        }
    }
    Err(if known {
        "its signature does not fit it: the file was changed after it was signed, or damaged".into()
    } else {
        "it is signed by a key that is not in [patches] keys".into()
    })
}

#[cfg(test)]
mod tests {
    use minisign::KeyPair;

    use super::*;

    fn signed(pair: &KeyPair, text: &[u8]) -> Vec<u8> {
        let made = minisign::sign(Some(&pair.pk), &pair.sk, text, Some("released today"), None).unwrap();
        made.into_string().into_bytes()
    }

    #[test]
    fn only_what_a_trusted_key_signed_counts() {
        let (own, other) = (
            KeyPair::generate_unencrypted_keypair().unwrap(),
            KeyPair::generate_unencrypted_keypair().unwrap(),
        );
        let keys = [other.pk.to_base64(), own.pk.to_base64()];
        let signature = signed(&own, b"the pack");
        assert_eq!(verify(b"the pack", &signature, &keys).unwrap(), "released today");
        for (pack, signature, keys, said) in [
            (&b"the pack!"[..], signature.clone(), &keys[..], "changed after it was signed"),
            (b"the pack", signature.clone(), &keys[..1], "not in [patches] keys"),
            (b"the pack", signature, &[], "nobody is trusted"),
            (b"the pack", b"untrusted comment: x\nAAAA\n".to_vec(), &keys[..], "cannot be read"),
            (b"the pack", vec![0xff], &keys[..], "cannot be read"),
        ] {
            assert!(verify(pack, &signature, keys).unwrap_err().contains(said), "{said}");
        }
        assert!(key("RWQ").unwrap_err().contains("second line"));
        assert!(key(&own.pk.to_base64()).is_ok());
    }
}
