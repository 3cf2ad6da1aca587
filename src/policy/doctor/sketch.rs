//! Who sends most, in sixteen places: space-saving counts (Metwally, Agrawal, El Abbadi). Whoever sends more than a
//! sixteenth is in it, and its count is known from below and from above.

use crate::base::address::ClientKey;

/// Clients told apart.
pub const PLACES: usize = 16;

/// See the head of this file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sketch {
    places: [Place; PLACES],
    total: u64,
}

/// What is known of one client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub key: ClientKey,
    /// Its requests at most.
    count: u64,
    /// Of these, so many may have been others'.
    over: u64,
    /// Its requests that carried fields which proxies add, at least.
    pub forwarded: u64,
}

impl Place {
    /// Its requests at least.
    pub fn sure(&self) -> u64 {
        self.count - self.over
    }
}

impl Sketch {
    /// One request more.
    pub fn feed(&mut self, key: ClientKey, forwarded: bool) {
        self.total += 1;
        self.take(Place { key, count: 1, over: 0, forwarded: u64::from(forwarded) });
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Sketch) {
        self.total += other.total;
        other.all().for_each(|place| self.take(*place));
    }

    /// Requests fed.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The clients that are known.
    pub fn all(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().filter(|place| place.count > 0)
    }

    fn take(&mut self, more: Place) {
        // An empty place has the least of all.
        let known = self.places.iter().position(|place| place.count > 0 && place.key == more.key);
        let least = || self.places.iter().enumerate().min_by_key(|(_, place)| place.count).map(|(at, _)| at);
        let Some(place) = known.or_else(least).and_then(|at| self.places.get_mut(at)) else { return };
        if known.is_none() {
            // Who comes anew may have been there before: as often as the one that gives way, at most.
            *place = Place { key: more.key, count: place.count, over: place.count, forwarded: 0 };
        }
        place.count += more.count;
        place.over += more.over;
        place.forwarded += more.forwarded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sketch: &Sketch, key: u128) -> Option<&Place> {
        sketch.all().find(|place| place.key == ClientKey(key))
    }

    #[test]
    fn who_sends_much_is_found_among_many_and_never_counted_too_high() {
        let mut sketch = Sketch::default();
        for at in 0..30_000u128 {
            sketch.feed(ClientKey(1000 + at), false);
            sketch.feed(ClientKey(7), at % 4 != 0);
            sketch.feed(ClientKey(2000 + at * 7), true);
        }
        let loud = place(&sketch, 7).unwrap();
        assert_eq!((sketch.total(), sketch.all().count()), (90_000, PLACES));
        assert!(loud.sure() <= 30_000 && loud.sure() > 25_000, "{loud:?}");
        assert!(loud.forwarded <= 22_500 && loud.forwarded > 20_000, "{loud:?}");
        let others = sketch.all().filter(|place| place.key != ClientKey(7));
        assert!(others.map(Place::sure).all(|sure| sure < 100));
    }

    #[test]
    fn few_are_counted_exactly_also_over_several_workers() {
        let (mut all, mut worker) = (Sketch::default(), Sketch::default());
        (0..10u128).for_each(|key| (0..=key).for_each(|_| worker.feed(ClientKey(key), key % 2 == 0)));
        all.merge(&worker);
        all.merge(&worker);
        assert_eq!(all.total(), 110);
        for key in 0..10 {
            let place = place(&all, key).unwrap();
            assert_eq!(u128::from(place.sure()), 2 * (key + 1));
            assert_eq!(place.forwarded, if key % 2 == 0 { place.sure() } else { 0 });
        }
    }
}
