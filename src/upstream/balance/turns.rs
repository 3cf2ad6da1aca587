//! Weights laid out at reload as one sequence of turns, in which a heavy endpoint's turns lie apart: read in order it is
//! a rotation, read at random it is a draw by weight.

use super::{Weighted, below};

/// Turns in a sequence, unless there are more endpoints. Weights whose sum is larger are scaled down to it.
const TURNS_MAX: u64 = 4096;

/// The sequence of turns.
#[derive(Debug)]
pub struct Turns {
    sequence: Box<[u32]>,
}

impl Turns {
    /// The turns of primaries, or of backups; none of those that drain.
    pub(super) fn compile(endpoints: &[Weighted], backup: bool) -> Turns {
        let weight = |weighted: &Weighted| if weighted.backup == backup { weighted.weight.into() } else { 0 };
        let weights = endpoints.iter().map(weight).collect();
        Turns { sequence: sequence(&reduced(weights)) }
    }

    pub(super) fn len(&self) -> usize {
        self.sequence.len()
    }

    /// Whose turn the `turn`th is, counted round and round.
    pub(super) fn at(&self, turn: usize) -> Option<usize> {
        let turn = turn.checked_rem(self.sequence.len())?;
        self.sequence.get(turn).and_then(|&at| usize::try_from(at).ok())
    }

    /// An endpoint drawn by weight, from the low 32 random bits.
    pub(super) fn draw(&self, random: u64) -> Option<usize> {
        self.at(below(random, self.sequence.len()))
    }
}

/// The same shares in smaller numbers.
fn reduced(mut weights: Vec<u64>) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    weights.iter_mut().for_each(|weight| *weight /= divisor);
    let sum: u64 = weights.iter().sum();
    if sum > TURNS_MAX {
        let scaled = |weight: u64| if weight == 0 { 0 } else { (weight * TURNS_MAX / sum).max(1) };
        weights.iter_mut().for_each(|weight| *weight = scaled(*weight));
    }
    weights
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Lays out each endpoint's turns at even distances and sorts them by place: the turn `i` of `w` stands at
/// `(2i + 1) / 2w` of the round.
fn sequence(weights: &[u64]) -> Box<[u32]> {
    let mut turns: Vec<(u64, u32)> = Vec::new();
    for (at, &weight) in (0u32..).zip(weights) {
        turns.extend((0..weight).map(|i| (((2 * i + 1) << 32) / (2 * weight), at)));
    }
    turns.sort_unstable();
    turns.into_iter().map(|(_, at)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_lie_apart() {
        assert_eq!(*sequence(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(*sequence(&[4, 2]), [0, 1, 0, 0, 1, 0]);
        assert_eq!(*sequence(&[5, 1, 1]), [0, 0, 0, 1, 2, 0, 0]);
    }

    #[test]
    fn turns_go_round_and_none_is_none() {
        let turns = Turns { sequence: sequence(&[1, 2]) };
        assert_eq!((0..6).filter_map(|turn| turns.at(turn)).collect::<Vec<_>>(), [1, 0, 1, 1, 0, 1]);
        assert_eq!((turns.draw(0), turns.draw(u64::MAX), turns.len()), (Some(1), Some(1), 3));
        let none = Turns::compile(&[], false);
        assert_eq!((none.at(0), none.draw(1), none.len()), (None, None, 0));
    }

    #[test]
    fn weights_are_reduced_and_bounded_and_nobody_is_lost() {
        assert_eq!(reduced(vec![1000, 500, 500]), [2, 1, 1]);
        assert_eq!(reduced(vec![7]), [1]);
        let many = reduced((0..1000).map(|i| if i == 0 { 1000 } else { 999 }).collect());
        assert!(many.iter().sum::<u64>() <= TURNS_MAX && many.iter().all(|&weight| weight >= 1));
        let lone = reduced([vec![1000; 9], vec![1]].concat());
        assert_eq!(lone.last(), Some(&1));
    }
}
