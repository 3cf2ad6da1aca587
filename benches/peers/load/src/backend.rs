//! The backend for what nginx can not do: it reads an upload to its end before it answers, and echoes WebSocket messages.

use crate::Outcome;
use crate::client::field;
use base64::Engine;
use std::io::{ErrorKind, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub async fn serve(port: u16) -> Outcome<()> {
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::task::spawn_local(connection(stream));
    }
}

async fn connection(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(1 << 18);
    loop {
        let head = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&buffer[..at]).into_owned();
                buffer.drain(..at + 4);
                break head;
            }
            more(&mut stream, &mut buffer).await?;
        };
        let small = head.to_ascii_lowercase();
        if field(&small, "upgrade").is_some() {
            // Keys are in mixed case: from the head as it came.
            let key = head.lines().find(|line| line.to_ascii_lowercase().starts_with("sec-websocket-key:"));
            return echo(stream, key.and_then(|line| line.split_once(':')).map_or("", |(_, key)| key.trim()))
                .await;
        }
        upload(&mut stream, &mut buffer, &small).await?;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await?;
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.reserve(1 << 16);
    match stream.read_buf(buffer).await? {
        0 => Err(ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Reads a body and forgets it. Bodies are made of one letter, so the end of a chunked one can not stand inside it.
async fn upload(stream: &mut TcpStream, buffer: &mut Vec<u8>, head: &str) -> Result<()> {
    if field(head, "transfer-encoding").is_some() {
        while !buffer.ends_with(b"0\r\n\r\n") {
            more(stream, buffer).await?;
        }
        buffer.clear();
        return Ok(());
    }
    let mut missing: usize = field(head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    loop {
        let taken = missing.min(buffer.len());
        buffer.drain(..taken);
        missing -= taken;
        if missing == 0 {
            return Ok(());
        }
        more(stream, buffer).await?;
    }
}

/// RFC 6455: the handshake, then every message back as it came, without its mask.
async fn echo(mut stream: TcpStream, key: &str) -> Result<()> {
    let sum = ring::digest::digest(
        &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
    );
    let accept = base64::engine::general_purpose::STANDARD.encode(sum);
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    stream.write_all(answer.as_bytes()).await?;
    let mut message = [0; 8 + 128];
    loop {
        stream.read_exact(&mut message).await?;
        let mask = [message[4], message[5], message[6], message[7]];
        // Two bytes of head, two of length, four of mask; what goes back has no mask.
        message[1] &= 0x7f;
        message.copy_within(8.., 4);
        for (byte, mask) in message[4..].iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        stream.write_all(&message[..4 + 128]).await?;
    }
}
