//! Long bodies are read two packets at a time: what the kernel's `SO_RCVLOWAT` does, with a deadline and without its calls.
//!
//! A worker that is faster than a client is woken by each piece that comes, 16 KiB under TLS, and what a read costs besides
//! its bytes (the call, the parser, the task that waits for the body) is paid for each of them. Where a body with a known
//! length comes quickly, its bytes are left to the kernel until there are enough of them. Nothing is slowed down: the client
//! goes on sending into the kernel's buffer, the end of a body is not waited for, and where the rest doesn't come in time,
//! what is there is read, and this connection is read as it comes from then on.

use std::io;
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::base::clock::Millis;
use crate::net::ahead;
use crate::net::timer::{TICK, Timer};

/// Bytes that are worth to be woken for: two reads under TLS.
const ENOUGH: u64 = 2 * ahead::SIZE as u64;
/// Fewer are not waited for.
const WORTH: u64 = 16 * 1024;
/// Bytes that may have been read of what is to come: the part of a TLS record (RFC 8446 section 5.2) whose end is still to
/// come, with what it has besides its plaintext.
const BEGUN: u64 = 17 * 1024;
/// Bodies with less to come than this are read as they come.
pub const LEAST: u64 = WORTH + BEGUN;
/// No more is waited for than this part of the socket's buffer, so that the client can always send it: what the kernel needs
/// besides the bytes counts there too.
const PART: u64 = 4;

/// Whether much comes in little time.
pub struct Quick {
    /// The tick in which something came last, and the bytes that came in it.
    tick: Millis,
    brought: u64,
    /// Bytes within a tick that are much.
    much: u64,
    quick: bool,
}

impl Quick {
    /// Nothing came yet. `much` bytes within a [`TICK`] are quick.
    pub fn new(now: Millis, much: u64) -> Quick {
        Quick { tick: now, brought: 0, much, quick: false }
    }

    /// So many bytes came.
    pub fn note(&mut self, now: Millis, size: u64) {
        if now != self.tick {
            let next = now.0.saturating_sub(self.tick.0) < 2 * TICK.as_millis() as u64;
            self.quick = next && self.brought >= self.much;
            (self.tick, self.brought) = (now, 0);
        }
        self.brought = self.brought.saturating_add(size);
        self.quick |= self.brought >= self.much;
    }

    /// Whether the last bytes came quickly.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// It was waited for in vain.
    pub fn forget(&mut self) {
        (self.quick, self.brought) = (false, 0);
    }
}

/// When the socket of one connection is read.
pub struct LowWater {
    quick: Quick,
    /// Goes off when it was waited long enough.
    late: Timer,
    waits: bool,
    /// It was waited in vain.
    given_up: bool,
    /// The most that is waited for, as far as the socket has room.
    room: u64,
}

impl LowWater {
    /// For a connection of which nothing is known; it may use this timer.
    pub fn new(late: Timer) -> LowWater {
        let quick = Quick::new(late.now(), ENOUGH);
        LowWater { quick, late, waits: false, given_up: false, room: 0 }
    }

    /// So many bytes of a body were read.
    pub fn read(&mut self, size: usize) {
        self.quick.note(self.late.now(), size as u64);
    }

    /// Ready when the socket is to be read; until then the runtime may have forgotten what is there, so that it is
    /// [`Unheard`](crate::net::unheard::Unheard). `due` bytes are certain to come, but for what was read of them and is not told
    /// yet, at most a part of a TLS record.
    pub fn poll(&mut self, cx: &mut Context<'_>, tcp: &TcpStream, due: u64) -> Poll<()> {
        let least = self.least(tcp, due);
        if least > 0 && self.poll_least(cx, tcp, least).is_pending() && !self.is_late(cx) {
            return Poll::Pending;
        }
        if std::mem::take(&mut self.waits) {
            self.late.clear();
        }
        Poll::Ready(())
    }

    /// How many bytes are waited for; 0: none.
    fn least(&mut self, tcp: &TcpStream, due: u64) -> u64 {
        if self.given_up || !self.quick.is_quick() {
            return 0;
        }
        if self.room < ENOUGH {
            // The kernel makes it larger where much comes.
            let size = socket2::SockRef::from(tcp).recv_buffer_size().unwrap_or_default();
            self.room = size as u64 / PART;
        }
        let least = due.saturating_sub(BEGUN).min(self.room).min(ENOUGH);
        if least < WORTH { 0 } else { least }
    }

    /// Ready when so much can be read, or nothing more will come.
    fn poll_least(&self, cx: &mut Context<'_>, tcp: &TcpStream, least: u64) -> Poll<()> {
        let mut before = None;
        // Errors are for whoever reads.
        while let Poll::Ready(Ok(())) = tcp.poll_read_ready(cx) {
            let there = rustix::io::ioctl_fionread(tcp).unwrap_or(least);
            // Ready again with nothing new: the other side has ended.
            if there >= least || before == Some(there) {
                return Poll::Ready(());
            }
            before = Some(there);
            // What is there is known: the next news is what is waited for.
            let _ = tcp.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
        tcp.poll_read_ready(cx).map(drop)
    }

    /// Whether it was waited long enough. Wakes the task when it was.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.waits {
            self.waits = true;
            self.late.set(TICK);
        }
        let late = self.late.poll_expired(cx).is_ready();
        self.given_up |= late;
        late
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::timer::Wheel;
    use crate::net::unheard::Unheard;

    const MUCH: u64 = 1 << 20;
    const KIB: usize = 1024;
    /// Waits that end by themselves, or the test has failed.
    const PATIENCE: Duration = Duration::from_secs(20);

    struct Bench {
        wheel: Wheel,
        water: LowWater,
        ours: TcpStream,
        theirs: TcpStream,
    }

    impl Bench {
        /// A connection on which much came, with as much room as is asked for.
        async fn quick(room: usize) -> Bench {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            socket2::SockRef::from(&listener).set_recv_buffer_size(room).unwrap();
            let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let ours = listener.accept().await.unwrap().0;
            let wheel = Wheel::new(Millis(0));
            let mut water = LowWater::new(wheel.timer());
            water.read(ENOUGH as usize);
            Bench { wheel, water, ours, theirs }
        }

        /// More comes, and lies in the kernel; `whole` bytes with what was there.
        async fn comes(&mut self, size: usize, whole: usize) {
            self.theirs.write_all(&vec![7; size]).await.unwrap();
            let there = async {
                while rustix::io::ioctl_fionread(&self.ours).unwrap() < whole as u64 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, there).await.expect("it arrives");
        }

        fn poll(&mut self, due: u64) -> Poll<()> {
            self.water.poll(&mut Context::from_waker(std::task::Waker::noop()), &self.ours, due)
        }

        /// The runtime has heard of what came; whether it is read.
        async fn is_ready(&mut self, due: u64) -> bool {
            // Its driver runs when everything else waits.
            tokio::task::yield_now().await;
            self.poll(due).is_ready()
        }

        async fn ready(&mut self, due: u64) {
            let ready = poll_fn(|cx| self.water.poll(cx, &self.ours, due));
            tokio::time::timeout(PATIENCE, ready).await.expect("it is to be read");
        }
    }

    #[tokio::test]
    async fn a_body_that_comes_quickly_is_read_when_two_packets_of_it_are_there() {
        let mut bench = Bench::quick(MUCH as usize).await;
        bench.comes(10 * KIB, 10 * KIB).await;
        assert!(!bench.is_ready(MUCH).await);
        bench.comes(10 * KIB, 20 * KIB).await;
        assert!(!bench.is_ready(MUCH).await);
        // A system may bound the buffer.
        let enough = bench.water.least(&bench.ours, MUCH) as usize;
        assert!((64 * KIB..=128 * KIB).contains(&enough), "{enough}");
        bench.comes(enough - 21 * KIB, enough - KIB).await;
        assert!(!bench.is_ready(MUCH).await);
        bench.comes(KIB, enough).await;
        bench.ready(MUCH).await;
        bench.ours.read_exact(&mut vec![0; enough]).await.unwrap();
        assert!(!bench.is_ready(MUCH).await, "again");
    }

    #[tokio::test]
    async fn the_end_of_a_body_is_not_waited_for_and_neither_is_what_comes_slowly() {
        let mut bench = Bench::quick(MUCH as usize).await;
        assert!(bench.poll(LEAST - 1).is_ready());
        assert!(bench.poll(LEAST).is_pending());
        // As much as is certain to come, if a record's beginning was read before: no more.
        bench.comes(23 * KIB, 23 * KIB).await;
        assert!(!bench.is_ready(41 * KIB as u64).await);
        bench.comes(KIB, 24 * KIB).await;
        bench.ready(41 * KIB as u64).await;
        bench.wheel.advance(Millis(300));
        bench.water.read(1);
        assert!(bench.poll(MUCH).is_ready());
    }

    #[tokio::test]
    async fn whoever_stops_is_read_after_two_ticks_and_never_waited_for_again() {
        let mut bench = Bench::quick(MUCH as usize).await;
        bench.comes(KIB, KIB).await;
        assert!(!bench.is_ready(MUCH).await);
        bench.wheel.advance(Millis(2 * TICK.as_millis() as u64));
        assert!(bench.poll(MUCH).is_ready());
        // The runtime has forgotten it.
        let (mut unheard, mut room) = (Unheard::default(), [0; 2 * KIB]);
        unheard.set();
        let mut buf = ReadBuf::new(&mut room);
        let read = poll_fn(|cx| unheard.poll_read(&mut bench.ours, cx, &mut buf));
        tokio::time::timeout(PATIENCE, read).await.expect("it is read").unwrap();
        assert_eq!(buf.filled().len(), KIB);
        bench.water.read(ENOUGH as usize);
        assert!(bench.poll(MUCH).is_ready());
    }

    #[tokio::test]
    async fn an_end_or_a_reset_within_a_body_is_not_waited_for() {
        let mut bench = Bench::quick(MUCH as usize).await;
        bench.comes(KIB, KIB).await;
        assert!(!bench.is_ready(MUCH).await);
        bench.theirs.shutdown().await.unwrap();
        bench.ready(MUCH).await;
        let mut bench = Bench::quick(MUCH as usize).await;
        assert!(bench.poll(MUCH).is_pending());
        crate::net::stream::reset_on_close(&bench.theirs);
        let Bench { mut water, ours, theirs, .. } = bench;
        drop(theirs);
        let ready = poll_fn(|cx| water.poll(cx, &ours, MUCH));
        tokio::time::timeout(PATIENCE, ready).await.expect("it is to be read");
    }

    #[tokio::test]
    async fn no_more_is_waited_for_than_a_small_buffer_lets_come() {
        // The kernel doubles it: a quarter of that is 20 KiB.
        let mut bench = Bench::quick(40 * KIB).await;
        assert!(bench.poll(MUCH).is_pending());
        bench.comes(20 * KIB, 20 * KIB).await;
        bench.ready(MUCH).await;
        let mut bench = Bench::quick(20 * KIB).await;
        assert!(bench.poll(MUCH).is_ready(), "too little to wait for");
    }
}
