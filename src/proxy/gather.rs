//! Step 8, pieces of a long body: what comes quickly is sent on in packets that are full.
//!
//! A worker that is faster than a client reads what there is whenever there is something, and each send of it costs a
//! packet, an acknowledgement and a wake of the backend, whatever its size. So where a body with a known length comes
//! quickly, its pieces wait for each other until they fill a packet. Nobody is slowed down: the client sends on,
//! the last piece waits for nothing, and where no more comes, what is here goes on with the second [`TICK`] at the latest.
//! A body without a length may be a conversation: nothing of it waits.

use std::collections::VecDeque;
use std::task::Context as Task;

use bytes::Bytes;
use hyper::body::Frame;

use crate::net::low_water::Quick;
use crate::net::timer::{TICK, Timer, Wheel};
use crate::proxy::upload::size_of;

/// Bytes that go on together: just below the 64 KiB that a packet has before a network card, or the loopback, cuts it.
const PACKET: u64 = 63 * 1024;
/// Pieces that wait for each other: a flood of tiny ones costs more than its bytes.
const PIECES_MAX: usize = 32;

/// What was read of a body and not sent on yet.
pub struct Gather {
    held: VecDeque<Frame<Bytes>>,
    /// Bytes in it.
    size: u64,
    /// So many of them may go.
    free: u64,
    wheel: Wheel,
    /// Goes off when what is held waited long enough; most bodies never need it.
    late: Option<Timer>,
    /// Whether a packet was filled within a tick.
    quick: Quick,
}

impl Gather {
    /// Begins with what was read already, which waits for nothing.
    pub fn new(wheel: &Wheel, held: VecDeque<Frame<Bytes>>) -> Gather {
        let size = held.iter().map(size_of).sum();
        let quick = Quick::new(wheel.now(), PACKET);
        Gather { held, size, free: u64::MAX, wheel: wheel.clone(), late: None, quick }
    }

    /// Bytes that are held.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Nothing is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The next piece that may go.
    pub fn take(&mut self) -> Option<Frame<Bytes>> {
        if self.free == 0 {
            return None;
        }
        let Some(frame) = self.held.pop_front() else {
            self.free = 0;
            return None;
        };
        let frame = self.cut(frame);
        let size = size_of(&frame);
        self.size = self.size.saturating_sub(size);
        self.free = self.free.saturating_sub(size);
        if self.free == 0 && self.size > 0 {
            self.begin_to_wait();
        }
        Some(frame)
    }

    /// As much of it as may go; the rest is held.
    fn cut(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        if size_of(&frame) <= self.free {
            return frame;
        }
        match frame.into_data() {
            Ok(mut data) => {
                let first = data.split_to(usize::try_from(self.free).unwrap_or(usize::MAX).min(data.len()));
                self.held.push_front(Frame::data(data));
                Frame::data(first)
            }
            Err(frame) => frame,
        }
    }

    /// A piece came, and `rest` bytes are to come, if that is known. Given back is what waits for nothing.
    pub fn add(&mut self, frame: Frame<Bytes>, rest: Option<u64>) -> Option<Frame<Bytes>> {
        let size = size_of(&frame);
        self.quick.note(self.wheel.now(), size);
        let waits = self.quick.is_quick() && frame.is_data() && rest.is_some_and(|rest| rest > 0);
        if self.held.is_empty() {
            if !waits {
                return Some(frame);
            }
            self.begin_to_wait();
        }
        self.held.push_back(frame);
        self.size += size;
        let waits = waits && self.held.len() < PIECES_MAX;
        self.free = if waits { self.size - self.size % PACKET } else { u64::MAX };
        None
    }

    /// What is held from here on.
    fn begin_to_wait(&mut self) {
        self.late.get_or_insert_with(|| self.wheel.timer()).set(TICK);
    }

    /// Nothing came: whether what is held waited long enough. Wakes the task when it has.
    pub fn is_late(&mut self, cx: &mut Task<'_>) -> bool {
        let Some(late) = self.late.as_ref().filter(|_| !self.held.is_empty()) else { return false };
        if late.poll_expired(cx).is_pending() {
            return false;
        }
        late.clear();
        self.free = u64::MAX;
        self.quick.forget();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::base::clock::Millis;

    struct Bench {
        wheel: Wheel,
        gather: Gather,
        at: u64,
    }

    impl Bench {
        fn new() -> Bench {
            let wheel = Wheel::new(Millis(0));
            let gather = Gather::new(&wheel, VecDeque::new());
            Bench { wheel, gather, at: 0 }
        }

        /// Sizes of what goes when this comes.
        fn add(&mut self, size: u64, rest: Option<u64>) -> Vec<u64> {
            let mut gone: Vec<u64> = self.gather.add(piece(size), rest).iter().map(size_of).collect();
            gone.extend(self.gone());
            gone
        }

        fn gone(&mut self) -> Vec<u64> {
            std::iter::from_fn(|| self.gather.take()).map(|frame| size_of(&frame)).collect()
        }

        fn ticks(&mut self, count: u64) {
            for _ in 0..count {
                self.at += TICK.as_millis() as u64;
                self.wheel.advance(Millis(self.at));
            }
        }

        fn is_late(&mut self) -> bool {
            self.gather.is_late(&mut Task::from_waker(Waker::noop()))
        }
    }

    fn piece(size: u64) -> Frame<Bytes> {
        Frame::data(vec![1; size as usize].into())
    }

    const KIB: u64 = 1024;
    const MUCH: Option<u64> = Some(1 << 20);
    const NOTHING: [u64; 0] = [];

    #[test]
    fn what_comes_quickly_goes_in_full_packets_and_the_end_waits_for_nothing() {
        let mut bench = Bench::new();
        // Nobody knows yet that it comes quickly.
        assert_eq!(bench.add(60 * KIB, MUCH), [60 * KIB]);
        assert_eq!(bench.add(40 * KIB, MUCH), NOTHING);
        assert_eq!(bench.add(40 * KIB, MUCH), [40 * KIB, 23 * KIB]);
        assert_eq!(bench.gather.size(), 17 * KIB);
        // Several packets at once, and what is left of them.
        assert_eq!(bench.add(200 * KIB, MUCH), [17 * KIB, 3 * 63 * KIB - 17 * KIB]);
        assert_eq!(bench.add(30, Some(0)), [28 * KIB, 30]);
        assert!(bench.gather.is_empty() && bench.gather.size() == 0);
    }

    #[test]
    fn what_comes_slowly_or_has_no_known_end_waits_for_nothing() {
        let mut bench = Bench::new();
        for _ in 0..10 {
            assert_eq!(bench.add(40 * KIB, MUCH), [40 * KIB]);
            bench.ticks(1);
        }
        for _ in 0..10 {
            assert_eq!(bench.add(40 * KIB, None), [40 * KIB]);
        }
        // Trailers follow what is held, in their place.
        assert_eq!(bench.add(KIB, MUCH), NOTHING);
        assert!(bench.gather.add(Frame::trailers(http::HeaderMap::new()), Some(0)).is_none());
        assert_eq!(bench.gone(), [KIB, 0]);
    }

    #[test]
    fn what_waited_goes_after_two_ticks_and_then_nothing_waits_until_it_is_quick_again() {
        let mut bench = Bench::new();
        assert!(!bench.is_late(), "nothing is held");
        assert_eq!(bench.add(62 * KIB, MUCH), [62 * KIB]);
        assert_eq!(bench.add(10 * KIB, MUCH), NOTHING);
        assert!(!bench.is_late());
        bench.ticks(2);
        assert!(bench.is_late());
        assert_eq!(bench.gone(), [10 * KIB]);
        assert_eq!(bench.add(10 * KIB, MUCH), [10 * KIB]);
        assert_eq!(bench.add(50 * KIB, MUCH), [50 * KIB]);
        assert_eq!(bench.add(10 * KIB, MUCH), NOTHING);
        // After a pause that brought nothing it is not quick, whatever it was before.
        bench.ticks(3);
        assert!(bench.is_late());
        assert_eq!(bench.gone(), [10 * KIB]);
        assert!(!bench.is_late());
    }

    #[test]
    fn tiny_pieces_are_not_collected() {
        let mut bench = Bench::new();
        bench.add(63 * KIB, MUCH);
        for _ in 0..1000 {
            bench.add(1, MUCH);
            assert!(bench.gather.held.len() < PIECES_MAX);
        }
    }

    #[test]
    fn what_was_read_before_goes_first_and_at_once() {
        let wheel = Wheel::new(Millis(0));
        let mut gather = Gather::new(&wheel, [piece(10), piece(100 * KIB)].into());
        assert_eq!((gather.size(), gather.is_empty()), (100 * KIB + 10, false));
        let gone: Vec<u64> = std::iter::from_fn(|| gather.take()).map(|frame| size_of(&frame)).collect();
        assert_eq!((gone, gather.size()), (vec![10, 100 * KIB], 0));
    }
}
