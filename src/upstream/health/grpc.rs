//! `grpc.health.v1.Health/Check`: its question and its answer, by hand. A message of one field each needs no code
//! generator.
//!
//! ```text
//! message HealthCheckRequest  { string service = 1; }
//! message HealthCheckResponse { ServingStatus status = 1; }   // UNKNOWN 0, SERVING 1, NOT_SERVING 2, SERVICE_UNKNOWN 3
//! ```

use bytes::{BufMut, Bytes, BytesMut};

/// The path that is asked with POST.
pub const PATH: &str = "/grpc.health.v1.Health/Check";

/// Bytes of an answer that are read: the message has two, and what is longer is none.
pub const ANSWER_MAX: usize = 1024;

/// What a service says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// It serves.
    Serving,
    /// It does not; with the word of the protocol.
    Not(&'static str),
}

/// The question, as one message with its prefix (compressed flag and length, big endian).
pub fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a); // Field 1, length delimited.
        varint(&mut message, service.len());
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(&message);
    framed.freeze()
}

fn varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Reads the answer's message with its prefix.
///
/// # Errors
/// What is wrong with it, for a sentence.
pub fn answer(body: &[u8]) -> Result<Serving, &'static str> {
    let (prefix, message) = body.split_at_checked(5).ok_or("it sent no message")?;
    let [compressed, length @ ..] = prefix else { return Err("it sent no message") };
    if *compressed != 0 {
        return Err("its message is compressed, though nobody offered that");
    }
    let length = length.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
    let message = message.get(..length).ok_or("its message breaks off")?;
    match status(message).ok_or("its message cannot be read")? {
        1 => Ok(Serving::Serving),
        0 => Ok(Serving::Not("UNKNOWN")),
        2 => Ok(Serving::Not("NOT_SERVING")),
        3 => Ok(Serving::Not("SERVICE_UNKNOWN")),
        _ => Err("its message has a status that does not exist"),
    }
}

/// Field 1 of the message; zero where it is absent, as protobuf leaves out what is zero. Other fields are passed over.
fn status(mut rest: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !rest.is_empty() {
        let key = number(&mut rest)?;
        match (key >> 3, key & 7) {
            (1, 0) => status = number(&mut rest)?,
            (_, 0) => drop(number(&mut rest)?),
            (_, 1) => rest = rest.get(8..)?,
            (_, 2) => {
                let length = usize::try_from(number(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            (_, 5) => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

/// A number of at most ten bytes, seven bits each, the lowest first.
fn number(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_prefix_and_at_most_one_field() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = question(&"x".repeat(200));
        assert_eq!((&long[..8], long.len()), (&[0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01][..], 208));
    }

    #[test]
    fn answers_are_read_and_nonsense_is_refused() {
        let framed = |message: &[u8]| [&[0, 0, 0, 0, message.len() as u8], message].concat();
        assert_eq!(answer(&framed(&[8, 1])), Ok(Serving::Serving));
        assert_eq!(answer(&framed(&[])), Ok(Serving::Not("UNKNOWN")));
        assert_eq!(answer(&framed(&[8, 2])), Ok(Serving::Not("NOT_SERVING")));
        assert_eq!(answer(&framed(&[8, 3])), Ok(Serving::Not("SERVICE_UNKNOWN")));
        let others = [0x12, 1, b'x', 0x18, 5, 0x21, 0, 0, 0, 0, 0, 0, 0, 0, 0x2d, 0, 0, 0, 0, 8, 1];
        assert_eq!(answer(&framed(&others)), Ok(Serving::Serving), "fields of a later version");
        for bad in [
            &b""[..],
            &[0, 0, 0],
            &[1, 0, 0, 0, 2, 8, 1],
            &[0, 0, 0, 0, 9, 8, 1],
            &[0, 255, 255, 255, 255],
            &framed(&[8, 9]),
            &framed(&[8]),
            &framed(&[0x0b]),
            &framed(&[0x12, 200, 1]),
            &framed(&[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]),
            b"<html>",
        ] {
            assert!(answer(bad).is_err(), "{bad:?}");
        }
    }
}
