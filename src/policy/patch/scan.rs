//! One look at a request: every text once through the automaton, and then only the rules whose strings were found.
//!
//! What a request costs is bounded: the texts by [`TEXT_BYTES_MAX`](super::field::TEXT_BYTES_MAX), the expressions by
//! the bytes they may read together. A request that wants more is held to be an attack on the matcher itself.

use std::ops::Range;

use super::compile::{Node, Set, Test};
use super::decode::Triggers;
use super::field::{Body, Facts, Kind, TEXTS};

/// Bytes that the expressions of all rules may read of one request.
const WORK_MAX: usize = 2 << 20;
/// Ranges that a view may have: each text of a field, in both readings.
const RANGES: usize = 2 * TEXTS;
/// Memory that is kept from one request to the next.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Clean,
    /// This rule, the first in order.
    Match(usize),
    /// Nothing yet, but the body may change that.
    WantsBody,
    /// So many rules had to be tried that the request itself is the attack.
    Overworked,
}

/// What a worker uses again for each request.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The texts, one behind the other.
    text: Vec<u8>,
    /// For each view, where its texts are: so many, empty ones behind them.
    views: Vec<[Range<usize>; RANGES]>,
    /// Texts of a field that differ, and the views that each is the text of.
    distinct: Vec<(Range<usize>, u64)>,
    /// Strings found in the text being looked at; atoms and rules concerned.
    strings: Bits,
    atoms: Bits,
    rules: Bits,
    decoded: Vec<u8>,
    spare: Vec<u8>,
    work: usize,
}

#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn clear(&mut self, count: usize) {
        self.0.clear();
        self.0.resize(count.div_ceil(64), 0);
    }

    /// Sets a bit; whether it was not set before.
    fn set(&mut self, at: usize) -> bool {
        let Some(word) = self.0.get_mut(at / 64) else { return false };
        let bit = 1 << (at % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn has(&self, at: usize) -> bool {
        has(&self.0, at)
    }
}

fn has(words: &[u64], at: usize) -> bool {
    words.get(at / 64).is_some_and(|word| word & 1 << (at % 64) != 0)
}

/// How far a condition is fulfilled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Holds {
    No,
    /// It depends on the body.
    Maybe,
    Yes,
}

impl Set {
    /// Looks at a request. `off` has a bit for each rule that is not asked.
    pub fn look(&self, facts: &Facts<'_>, off: &[u64], scratch: &mut Scratch) -> Look {
        if self.rules.is_empty() {
            return Look::Clean;
        }
        scratch.begin(self);
        for group in &self.groups {
            self.read(group, facts, scratch);
        }
        let found = self.judge(facts, off, scratch);
        scratch.end();
        found
    }

    /// Reads one field in all ways that rules want it.
    fn read(&self, group: &super::compile::Group, facts: &Facts<'_>, scratch: &mut Scratch) {
        for nth in 0..TEXTS {
            let start = scratch.text.len();
            group.field.write(facts, nth, &mut scratch.text);
            let raw = start..scratch.text.len();
            if !raw.is_empty() {
                self.read_text(group, facts, raw, scratch);
            }
        }
    }

    fn read_text(
        &self,
        group: &super::compile::Group,
        facts: &Facts<'_>,
        raw: Range<usize>,
        scratch: &mut Scratch,
    ) {
        scratch.distinct.clear();
        scratch.distinct.push((raw.clone(), 0));
        let triggers = Triggers::of(scratch.text.get(raw.clone()).unwrap_or_default());
        let plus = group.field.has_plus(facts.body);
        for (view, chain) in &group.views {
            let chain = super::decode::Chain { plus: chain.plus && plus, ..*chain };
            if !chain.concerns(triggers) {
                scratch.place(*view, raw.clone());
                continue;
            }
            // What some backends resolve or leave out is there for others: both readings are looked at.
            for second in [false, true] {
                let text = scratch.text.get(raw.clone()).unwrap_or_default();
                let (changed, gone) = chain.run(text, &mut scratch.decoded, &mut scratch.spare, second);
                let text = if changed { scratch.share() } else { raw.clone() };
                scratch.place(*view, text);
                if !gone {
                    break;
                }
            }
        }
        for at in 0..scratch.distinct.len() {
            if let Some((range, views)) = scratch.distinct.get(at).cloned()
                && views != 0
            {
                self.find(range, views, scratch);
            }
        }
    }

    /// The one pass over a text.
    fn find(&self, range: Range<usize>, views: u64, scratch: &mut Scratch) {
        scratch.strings.clear(self.starts.len());
        let text = scratch.text.get(range).unwrap_or_default();
        let Some(finder) = &self.finder else { return };
        for found in finder.find_overlapping_iter(text) {
            let string = found.pattern().as_usize();
            if !scratch.strings.set(string) {
                continue;
            }
            let bound = |at: usize| self.starts.get(at).map_or(0, |start| *start as usize);
            for target in self.targets.get(bound(string)..bound(string + 1)).unwrap_or_default() {
                if views & 1 << target.view != 0 {
                    scratch.atoms.set(target.atom as usize);
                    scratch.rules.set(target.rule as usize);
                }
            }
        }
    }

    /// Asks the rules whose strings were found, in order, and those that only a body can fulfil.
    fn judge(&self, facts: &Facts<'_>, off: &[u64], scratch: &mut Scratch) -> Look {
        let mut wanted = false;
        for word in 0..scratch.rules.0.len() {
            let mut bits =
                scratch.rules.0.get(word).copied().unwrap_or(0) & !off.get(word).copied().unwrap_or(0);
            while bits != 0 {
                let at = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(rule) = self.rules.get(at) else { continue };
                // First as if every expression matched: most rules end here, at no cost.
                if self.holds(&rule.node, facts, scratch, false) == Holds::No {
                    continue;
                }
                match self.holds(&rule.node, facts, scratch, true) {
                    _ if scratch.work > WORK_MAX => return Look::Overworked,
                    Holds::Yes => return Look::Match(at),
                    Holds::Maybe => wanted = true,
                    Holds::No => {}
                }
            }
        }
        if let Body::Ahead(kind) = facts.body {
            wanted = wanted || self.waits(kind, facts, off, scratch);
        }
        if wanted { Look::WantsBody } else { Look::Clean }
    }

    fn waits(&self, kind: Kind, facts: &Facts<'_>, off: &[u64], scratch: &mut Scratch) -> bool {
        let rules = self.by_body.get(kind as usize).into_iter().flatten().map(|at| *at as usize);
        rules.filter(|at| !has(off, *at)).any(|at| {
            self.rules
                .get(at)
                .is_some_and(|rule| self.holds(&rule.node, facts, scratch, false) == Holds::Maybe)
        })
    }

    /// `exact`: the expressions are tried; otherwise a string found is as good as a match.
    fn holds(&self, node: &Node, facts: &Facts<'_>, scratch: &mut Scratch, exact: bool) -> Holds {
        match node {
            Node::All(nodes) => {
                let mut least = Holds::Yes;
                for node in nodes {
                    least = least.min(self.holds(node, facts, scratch, exact));
                    if least == Holds::No {
                        break;
                    }
                }
                least
            }
            Node::Any(nodes) => {
                let mut most = Holds::No;
                for node in nodes {
                    most = most.max(self.holds(node, facts, scratch, exact));
                    if most == Holds::Yes {
                        break;
                    }
                }
                most
            }
            Node::Method(methods) => yes(methods.iter().any(|method| **method == *facts.method)),
            Node::Body(atom, field) => match facts.body {
                Body::None => Holds::No,
                Body::Ahead(kind) if field.takes(kind) => Holds::Maybe,
                Body::Ahead(_) => Holds::No,
                Body::Here(..) => yes(self.atom(*atom as usize, scratch, exact)),
            },
            Node::Atom(atom) => yes(self.atom(*atom as usize, scratch, exact)),
        }
    }

    fn atom(&self, at: usize, scratch: &mut Scratch, exact: bool) -> bool {
        if !scratch.atoms.has(at) || !exact {
            return scratch.atoms.has(at);
        }
        let Some(atom) = self.atoms.get(at) else { return false };
        let ranges = scratch.views.get(usize::from(atom.view)).cloned().unwrap_or_default();
        ranges.into_iter().filter(|range| !range.is_empty()).any(|range| {
            if !matches!(atom.test, Test::Found) {
                scratch.work = scratch.work.saturating_add(range.len());
            }
            if scratch.work > WORK_MAX {
                return false;
            }
            let text = scratch.text.get(range).unwrap_or_default();
            match &atom.test {
                Test::Found => true,
                Test::Contains(list) => list.iter().any(|part| memchr::memmem::find(text, part).is_some()),
                Test::Equals(list, true) => list.iter().any(|whole| whole.eq_ignore_ascii_case(text)),
                Test::Equals(list, false) => list.iter().any(|whole| **whole == *text),
                Test::Regex(regex) => regex.is_match(text),
            }
        })
    }
}

fn yes(holds: bool) -> Holds {
    if holds { Holds::Yes } else { Holds::No }
}

impl Scratch {
    fn begin(&mut self, set: &Set) {
        self.text.clear();
        self.views.clear();
        self.views.resize(set.views, Default::default());
        self.atoms.clear(set.atoms.len());
        self.rules.clear(set.rules.len());
        self.work = 0;
    }

    /// One long request leaves no memory behind.
    fn end(&mut self) {
        for buffer in [&mut self.text, &mut self.decoded, &mut self.spare] {
            if buffer.capacity() > KEPT_BYTES_MAX {
                buffer.clear();
                buffer.shrink_to(KEPT_BYTES_MAX);
            }
        }
    }

    /// Gives a view one more text.
    fn place(&mut self, view: u8, text: Range<usize>) {
        if let Some((_, views)) = self.distinct.iter_mut().find(|(range, _)| *range == text) {
            *views |= 1 << view;
        }
        let mut ranges = self.views.get_mut(usize::from(view)).into_iter().flatten();
        if let Some(free) = ranges.find(|range: &&mut Range<usize>| range.start == range.end) {
            *free = text;
        }
    }

    /// Takes what was decoded last among the texts, unless another view has the same already.
    fn share(&mut self) -> Range<usize> {
        let same =
            |(range, _): &&(Range<usize>, u64)| self.text.get(range.clone()) == Some(&self.decoded[..]);
        if let Some((range, _)) = self.distinct.iter().find(same) {
            return range.clone();
        }
        let start = self.text.len();
        self.text.extend_from_slice(&self.decoded);
        let range = start..self.text.len();
        self.distinct.push((range.clone(), 0));
        range
    }
}
