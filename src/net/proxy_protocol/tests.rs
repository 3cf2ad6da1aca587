//! Headers, bad ones first; then that cutting and arbitrary bytes change nothing.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A version 2 header from its parts.
fn v2(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [V2_SIGNATURE, &[version_command, family], &length, body].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// Addresses of `192.0.2.1:1000 -> 198.51.100.2:443`.
const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x03, 0xe8, 0x01, 0xbb];

/// `v2` over IPv4 with the given TLVs and a checksum at their end, changed by `flip`.
fn with_checksum(tlvs: &[u8], flip: u32) -> Vec<u8> {
    let mut header = v2(0x21, 0x11, &[&V4, tlvs, &tlv(TLV_CRC32C, &[0; 4])].concat());
    let hole = header.len() - 4;
    let crc = crc32c_without(&header, hole) ^ flip;
    header[hole..].copy_from_slice(&crc.to_be_bytes());
    header
}

fn bad() -> Vec<(Vec<u8>, Error)> {
    let lines: &[(&str, Error)] = &[
        ("G", Error::NotProxy),
        ("GET / HTTP/1.1\r\n\r\n", Error::NotProxy),
        ("proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Error::NotProxy),
        ("PROXY\tTCP4", Error::NotProxy),
        ("\r\n\r\nGET /", Error::NotProxy),
        ("\u{16}\u{3}\u{1}", Error::NotProxy),
        ("PROXY \r\n", Error::V1Line),
        ("PROXY TCP4\r\n", Error::V1Line),
        ("PROXY UNKNOWNX\r\n", Error::V1Line),
        ("PROXY UNKNOWN a\rb\r\n", Error::V1Line),
        ("PROXY UNKNOWN\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", Error::V1Line),
        ("PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", Error::V1Line),
        ("PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n", Error::V1Line),
        ("PROXY TCP4 ::1 ::2 1 2\r\n", Error::V1Line),
        ("PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", Error::V1Line),
        ("PROXY TCP6 fe80::1%eth0 ::2 1 2\r\n", Error::V1Line),
        ("PROXY TCP6 [::1] ::2 1 2\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 65536 2\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n", Error::V1Line),
        ("PROXY TCP4 1.2.3.4 5.6.7.8  2\r\n", Error::V1Line),
        ("PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", Error::V1Line),
        ("PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n", Error::V1Line),
    ];
    let mut cases: Vec<_> = lines.iter().map(|(line, error)| (line.as_bytes().to_vec(), *error)).collect();
    cases.extend([
        (b"PROXY UNKNOWN \xff\r\n".to_vec(), Error::V1Line),
        ([&b"PROXY UNKNOWN "[..], &[b'x'; 93]].concat(), Error::V1TooLong),
        // 108 bytes with the line end.
        ([&b"PROXY UNKNOWN "[..], &[b'x'; 92], b"\r\n"].concat(), Error::V1TooLong),
        (v2(0x11, 0x11, &V4), Error::Version),
        (v2(0x01, 0x11, &V4), Error::Version),
        (v2(0x30, 0x11, &V4), Error::Version),
        (v2(0x22, 0x11, &V4), Error::Command),
        (v2(0x21, 0x12, &V4), Error::Family),
        (v2(0x21, 0x10, &V4), Error::Family),
        (v2(0x21, 0x22, &[0; 36]), Error::Family),
        (v2(0x21, 0x41, &V4), Error::Family),
        (v2(0x21, 0x01, &V4), Error::Family),
        (v2(0x21, 0x11, &V4[..11]), Error::V2TooShort),
        (v2(0x21, 0x11, &[]), Error::V2TooShort),
        (v2(0x21, 0x21, &[0; 35]), Error::V2TooShort),
        (v2(0x21, 0x31, &[0; 215]), Error::V2TooShort),
        (v2(0x21, 0x11, &[0; 4081]), Error::V2TooLong),
        (v2(0x20, 0x00, &[0; 4081]), Error::V2TooLong),
        (v2(0x21, 0x11, &[&V4[..], &[1]].concat()), Error::Tlv),
        (v2(0x21, 0x11, &[&V4[..], &[1, 0, 1]].concat()), Error::Tlv),
        (v2(0x21, 0x11, &[&V4[..], &tlv(1, b"h2"), &[4, 255, 255, 0]].concat()), Error::Tlv),
        (v2(0x21, 0x11, &[&V4[..], &tlv(TLV_CRC32C, &[0; 3])].concat()), Error::Tlv),
        (with_checksum(b"", 1), Error::Checksum),
        (with_checksum(&tlv(2, b"a.test"), 0x8000_0000), Error::Checksum),
    ]);
    cases
}

/// Source and destination, as text.
type Ends = Option<(&'static str, &'static str)>;

fn good() -> Vec<(Vec<u8>, Ends)> {
    let v4 = Some(("192.0.2.1:1000", "198.51.100.2:443"));
    let six: Vec<u8> =
        [&[0x20, 1, 0x0d, 0xb8][..], &[0; 11], &[1], &[0; 15], &[2], &[255, 255, 0, 0]].concat();
    let longest = "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
    vec![
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (longest.as_bytes().to_vec(), None),
        // 107 bytes with the line end.
        ([&b"PROXY UNKNOWN "[..], &[b'x'; 91], b"\r\n"].concat(), None),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 1000 443\r\n".to_vec(), v4),
        (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".to_vec(), Some(("0.0.0.0:0", "0.0.0.0:0"))),
        (
            b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_vec(),
            Some(("255.255.255.255:65535", "255.255.255.255:65535")),
        ),
        (b"PROXY TCP6 :: :: 0 0\r\n".to_vec(), Some(("[::]:0", "[::]:0"))),
        (b"PROXY TCP6 2001:DB8::1 ::2 65535 0\r\n".to_vec(), Some(("[2001:db8::1]:65535", "[::2]:0"))),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x20, 0x11, &V4), None),
        (v2(0x20, 0xff, b"ignored, whatever it is"), None),
        (v2(0x21, 0x00, &[]), None),
        (v2(0x21, 0x00, &[9; 100]), None),
        (v2(0x21, 0x31, &[b'/'; 216]), None),
        (v2(0x21, 0x11, &V4), v4),
        (v2(0x21, 0x21, &six), Some(("[2001:db8::1]:65535", "[::2]:0"))),
        (v2(0x21, 0x11, &[&V4[..], &tlv(1, b"h2"), &tlv(4, b""), &tlv(0xee, &[0; 300])].concat()), v4),
        (v2(0x21, 0x11, &[&V4[..], &tlv(4, &[0; 4065])].concat()), v4),
        (with_checksum(b"", 0), v4),
        (with_checksum(&tlv(2, b"a.test"), 0), v4),
    ]
}

fn expected(header: &[u8], pair: Option<(&str, &str)>) -> Header {
    Header { consumed: header.len(), source: pair.map(|p| at(p.0)), destination: pair.map(|p| at(p.1)) }
}

#[test]
fn bad_headers_are_refused_and_stay_refused_when_more_follows() {
    for (bytes, error) in bad() {
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(parse(&bytes), Err(error), "{shown:?}");
        assert_eq!(parse(&[&bytes[..], b"\r\nmore\r\n"].concat()), Err(error), "{shown:?}");
        for cut in 0..bytes.len() {
            let early = parse(&bytes[..cut]);
            assert!(
                early == Ok(Parsed::Incomplete) || early == Err(error),
                "{shown:?} cut at {cut}: {early:?}"
            );
        }
    }
}

#[test]
fn good_headers_are_read_to_their_end_and_not_beyond() {
    for (bytes, pair) in good() {
        let want = Ok(Parsed::Complete(expected(&bytes, pair)));
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        assert_eq!(parse(&bytes), want, "{shown:?}");
        assert_eq!(parse(&[&bytes[..], b"PROXY \r\n\0\n"].concat()), want, "{shown:?}");
        for cut in 0..bytes.len() {
            let head = &bytes[..cut];
            assert_eq!(parse(head), Ok(Parsed::Incomplete), "{shown:?} cut at {cut}");
            assert!((1..=bytes.len() - cut).contains(&missing(head)), "{shown:?} cut at {cut}");
        }
    }
}

#[test]
fn a_second_checksum_is_refused() {
    let mut header = with_checksum(b"", 0);
    // The length now counts another checksum, so the first is made anew; the second is never looked at.
    header.extend(tlv(TLV_CRC32C, &[0; 4]));
    let length = u16::try_from(header.len() - V2_FIXED).unwrap().to_be_bytes();
    header[14..16].copy_from_slice(&length);
    let hole = V2_FIXED + V4.len() + 3;
    let crc = crc32c_without(&header, hole).to_be_bytes();
    header[hole..hole + 4].copy_from_slice(&crc);
    assert_eq!(parse(&header), Err(Error::Tlv));
}

#[test]
fn the_checksum_is_crc_32c() {
    // The check value of the Castagnoli polynomial, and RFC 3720 appendix B.4.
    assert_eq!(crc32c_without(b"123456789", 9), 0xe306_9283);
    assert_eq!(crc32c_without(&[0; 32], 99), 0x8a91_36aa);
    assert_eq!(crc32c_without(&[0xff; 32], 99), 0x62a8_ab43);
    assert_eq!(crc32c_without(b"1234\xff\xff\xff\xff9", 4), crc32c_without(b"1234\0\0\0\09", 99));
}

#[test]
fn what_is_written_is_read_back() {
    for (from, to) in [("1.2.3.4:5", "6.7.8.9:443"), ("[2001:db8::1]:65535", "[::1]:0")] {
        let bytes = write_v2(at(from), at(to));
        assert_eq!(parse(&bytes), Ok(Parsed::Complete(expected(&bytes, Some((from, to))))));
    }
    let mixed = write_v2(at("1.2.3.4:5"), at("[::1]:443"));
    assert_eq!(
        parse(&mixed),
        Ok(Parsed::Complete(expected(&mixed, Some(("[::ffff:1.2.3.4]:5", "[::1]:443")))))
    );
}

#[tokio::test]
async fn reading_leaves_the_clients_bytes_whatever_the_pieces() {
    for (bytes, pair) in good() {
        // Everything at once, then byte by byte: a pipe of one byte hands over no more at a time.
        for room in [8192, 1] {
            let (mut near, mut far) = tokio::io::duplex(room);
            let whole = [&bytes[..], b"\n\r\nclient"].concat();
            let send = async {
                near.write_all(&whole).await.unwrap();
                drop(near);
            };
            let receive = async {
                let header = read(&mut far).await.unwrap();
                let mut rest = Vec::new();
                far.read_to_end(&mut rest).await.unwrap();
                (header, rest)
            };
            let ((), (header, rest)) = tokio::join!(send, receive);
            assert_eq!(header, expected(&bytes, pair));
            assert_eq!(rest, b"\n\r\nclient");
        }
    }
}

#[tokio::test]
async fn reading_says_why_it_failed() {
    for (bytes, error) in bad() {
        let mut stream = &[&bytes[..], b"\r\n"].concat()[..];
        let failure = read(&mut stream).await.unwrap_err();
        // A bad header may be shorter than any good one; then the stream ends first.
        if failure.kind() == io::ErrorKind::InvalidData {
            assert_eq!(failure.to_string(), error.to_string());
        } else {
            panic!("{bytes:?}: {failure}");
        }
    }
    for cut in ["", "PROXY TCP4 1.2", "\r\n\r\n\0\r\nQUIT\n\u{21}\u{11}"] {
        let failure = read(&mut cut.as_bytes()).await.unwrap_err();
        assert_eq!(failure.kind(), io::ErrorKind::UnexpectedEof, "{cut:?}");
    }
}

/// Bytes that come near a header: arbitrary ones, real ones with a few bytes changed, real ones followed by others.
fn near_headers() -> impl Strategy<Value = Vec<u8>> {
    let real: Vec<Vec<u8>> = bad().into_iter().map(|c| c.0).chain(good().into_iter().map(|c| c.0)).collect();
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let changed = (prop::sample::select(real), changes, prop::collection::vec(any::<u8>(), 0..40)).prop_map(
        |(mut bytes, changes, tail)| {
            for (index, byte) in changes {
                let index = index.index(bytes.len());
                bytes[index] = byte;
            }
            bytes.extend(tail);
            bytes
        },
    );
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), changed]
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_answer(bytes in near_headers()) {
        let whole = parse(&bytes);
        for cut in 0..bytes.len() {
            let head = &bytes[..cut];
            let early = parse(head);
            prop_assert!(early == Ok(Parsed::Incomplete) || early == whole, "cut at {}: {:?} {:?}", cut, early, whole);
            if let Ok(Parsed::Complete(header)) = early {
                prop_assert!(header.consumed <= cut);
            }
            if let (Ok(Parsed::Incomplete), Ok(Parsed::Complete(header))) = (early, whole) {
                prop_assert!(cut + missing(head) <= header.consumed, "reads beyond the header at {}", cut);
            }
        }
    }
}
