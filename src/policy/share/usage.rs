//! Who used how much of one worker's processor lately, and who used more than its share.
//!
//! Time is looked at in windows of a tenth of a second. A tenant's share of a window is its weight among those of all
//! tenants that did anything in it or in the one before: an idle tenant's share is everybody's. What is used beyond the
//! share is a debt that later windows pay back. A tenant is over its share once debt and use together exceed two windows'
//! share: one burst is nobody's fault.
//!
//! Pure: the worker tells what was used and what time it is.

use super::Slot;

/// Shares that a debt is at most: how many windows a tenant is remembered for what it used.
const DEBT_MAX: u64 = 10;
/// Windows whose share may be used at once.
const BURST: u64 = 2;
/// Hundredths of a share beyond which a tenant is over it.
pub const OVER: u64 = 100 * BURST;

/// What tenants used on one worker.
#[derive(Debug)]
pub struct Usage {
    rows: Vec<Row>,
    /// Those that used something in this window, or owe something.
    active: Vec<Slot>,
    /// Their weights, and those of the window before.
    weights: u64,
    weights_before: u64,
    began: u64,
    /// Length of the window before, in microseconds.
    window: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Row {
    weight: u32,
    used: u64,
    debt: u64,
    active: bool,
}

/// What a window is taken to last before the first is over, in microseconds.
const WINDOW: u64 = 100_000;

impl Default for Usage {
    fn default() -> Usage {
        Usage {
            rows: Vec::new(),
            active: Vec::new(),
            weights: 0,
            weights_before: 0,
            began: 0,
            window: WINDOW,
        }
    }
}

impl Usage {
    /// A tenant used so many microseconds.
    pub fn charge(&mut self, slot: Slot, weight: u32, micros: u64) {
        let at = slot.index();
        if self.rows.len() <= at {
            // Slots are dense and as many as there are tenants.
            self.rows.resize(at + 1, Row::default());
        }
        let Some(row) = self.rows.get_mut(at) else { return };
        row.used = row.used.saturating_add(micros);
        if !row.active {
            row.active = true;
            row.weight = weight.max(1);
            self.active.push(slot);
            if slot != Slot::NOBODY {
                self.weights += u64::from(row.weight);
            }
        }
    }

    /// Whether a tenant has used more than its share.
    pub fn is_over(&self, slot: Slot) -> bool {
        let Some(row) = self.rows.get(slot.index()).filter(|row| row.active) else { return false };
        let share = self.share(slot, row.weight, self.window);
        // Who is alone has nobody to leave anything to.
        share < self.window && row.used.saturating_add(row.debt) > share.saturating_mul(BURST)
    }

    /// How much of the processor a tenant used in this window and owes from those before, in hundredths of its share.
    pub fn percent(&self, slot: Slot) -> u64 {
        let Some(row) = self.rows.get(slot.index()).filter(|row| row.active) else { return 0 };
        let share = self.share(slot, row.weight, self.window).max(1);
        row.used.saturating_add(row.debt).saturating_mul(100) / share
    }

    /// Microseconds of a window that are a tenant's.
    fn share(&self, slot: Slot, weight: u32, window: u64) -> u64 {
        // What belongs to nobody yet is on its way to become somebody's: it has as much as all tenants together.
        if slot == Slot::NOBODY {
            return window / 2;
        }
        let weight = u64::from(weight);
        window.saturating_mul(weight) / self.weights.max(self.weights_before).max(weight).max(1)
    }

    /// Ends a window; gives what each tenant used in it, and what it used and owes in hundredths of its share.
    pub fn roll(&mut self, now: u64, mut used: impl FnMut(Slot, u64, u64)) {
        self.window = now.saturating_sub(self.began).clamp(1, 10 * WINDOW);
        self.began = now;
        let mut active = std::mem::take(&mut self.active);
        let (mut weights, before) = (0, self.weights);
        active.retain(|&slot| {
            let share =
                self.rows.get(slot.index()).map_or(0, |row| self.share(slot, row.weight, self.window));
            let Some(row) = self.rows.get_mut(slot.index()) else { return false };
            let sum = row.debt.saturating_add(row.used);
            if row.used > 0 {
                used(slot, row.used, sum.saturating_mul(100) / share.max(1));
            }
            row.debt = sum.saturating_sub(share).min(share.saturating_mul(DEBT_MAX));
            row.used = 0;
            row.active = row.debt > 0;
            if row.active && slot != Slot::NOBODY {
                weights += u64::from(row.weight);
            }
            row.active
        });
        self.active = active;
        (self.weights, self.weights_before) = (weights, before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(usage: &mut Usage, count: u64, each: &[(u32, u32, u64)]) {
        for _ in 0..count {
            for &(slot, weight, micros) in each {
                usage.charge(Slot(slot), weight, micros);
            }
            usage.roll(usage.began + WINDOW, |_, _, _| {});
        }
    }

    fn over(usage: &Usage) -> Vec<u32> {
        (0..6).filter(|&slot| usage.is_over(Slot(slot))).collect()
    }

    #[test]
    fn who_is_alone_may_use_everything() {
        let mut usage = Usage::default();
        windows(&mut usage, 20, &[(1, 1, WINDOW)]);
        usage.charge(Slot(1), 1, WINDOW);
        assert!(over(&usage).is_empty());
    }

    #[test]
    fn who_uses_more_than_its_share_is_over_it_and_others_are_not() {
        let mut usage = Usage::default();
        windows(&mut usage, 20, &[(1, 1, 80_000), (2, 1, 9_000), (3, 1, 11_000)]);
        for (slot, micros) in [(1, 1), (2, 9_000), (3, 11_000)] {
            usage.charge(Slot(slot), 1, micros);
        }
        assert_eq!(over(&usage), [1]);
        assert!(usage.percent(Slot(1)) > 100 && usage.percent(Slot(2)) < 100);
        // It stops: what it owes is paid back, and it is one of all again.
        windows(&mut usage, 15, &[(2, 1, 9_000)]);
        usage.charge(Slot(1), 1, 1_000);
        assert!(over(&usage).is_empty());
    }

    #[test]
    fn a_share_follows_the_weight_and_an_idle_one_is_lent() {
        let mut usage = Usage::default();
        windows(&mut usage, 20, &[(1, 3, 70_000), (2, 1, 30_000)]);
        usage.charge(Slot(1), 3, 1);
        usage.charge(Slot(2), 1, 1);
        assert_eq!(over(&usage), [2]);
        // The heavy one goes: what was its share is the other's.
        windows(&mut usage, 20, &[(2, 1, 90_000)]);
        usage.charge(Slot(2), 1, 1);
        assert!(over(&usage).is_empty());
    }

    #[test]
    fn one_burst_is_forgiven() {
        let mut usage = Usage::default();
        windows(&mut usage, 5, &[(1, 1, 1_000), (2, 1, 1_000)]);
        usage.charge(Slot(2), 1, 1);
        usage.charge(Slot(1), 1, 2 * WINDOW / 2);
        assert!(over(&usage).is_empty());
        usage.charge(Slot(1), 1, 1);
        assert_eq!(over(&usage), [1]);
    }

    #[test]
    fn what_belongs_to_nobody_has_half_and_takes_nothing_from_the_others_shares() {
        let mut usage = Usage::default();
        windows(&mut usage, 5, &[(0, 1, 40_000), (1, 1, 60_000)]);
        usage.charge(Slot(0), 1, 40_000);
        usage.charge(Slot(1), 1, 60_000);
        assert!(over(&usage).is_empty());
        windows(&mut usage, 5, &[(0, 1, 80_000), (1, 1, 10_000)]);
        usage.charge(Slot(0), 1, 40_000);
        assert_eq!(over(&usage), [0]);
    }

    #[test]
    fn what_was_used_is_told_once() {
        let mut usage = Usage::default();
        usage.charge(Slot(3), 1, 7);
        usage.charge(Slot(3), 1, 5);
        let mut told = Vec::new();
        usage.roll(WINDOW, |slot, micros, _| told.push((slot, micros)));
        usage.roll(2 * WINDOW, |slot, micros, _| told.push((slot, micros)));
        assert_eq!(told, [(Slot(3), 12)]);
    }
}
