//! Where a value was said.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

/// Where a value was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said it; the default applies.
    Default,
    /// In a file.
    File(Place),
}

/// A part of a file that is read by itself: the whole, or what says one site. What was read from it knows the part, so that
/// it need not be read again where the part only moved.
#[derive(Debug)]
pub struct Part {
    path: Arc<Path>,
    /// Bytes and lines of the file that stand before it.
    start: AtomicUsize,
    lines: AtomicU32,
}

/// A byte range of a file.
#[derive(Clone)]
pub struct Place {
    part: Arc<Part>,
    // Within the part.
    start: usize,
    end: usize,
    line: u32,
    column: u32,
}

impl Part {
    /// A part of the file `path`, with so many bytes and lines of it before. It begins at the beginning of a line.
    pub fn new(path: Arc<Path>, start: usize, lines: u32) -> Part {
        Part { path, start: AtomicUsize::new(start), lines: AtomicU32::new(lines) }
    }

    /// It stands elsewhere in its file now, and says what it said.
    pub fn move_to(&self, start: usize, lines: u32) {
        self.start.store(start, Relaxed);
        self.lines.store(lines, Relaxed);
    }
}

impl Place {
    /// A byte range of the file; line (0: the file as a whole) and column count from 1. What lies before the part is cut off.
    pub fn new(part: &Arc<Part>, range: Range<usize>, line: u32, column: u32) -> Place {
        let (before, lines) = (part.start.load(Relaxed), part.lines.load(Relaxed));
        let (start, end) = (range.start.saturating_sub(before), range.end.saturating_sub(before));
        Place { part: part.clone(), start, end, line: line.saturating_sub(lines), column }
    }

    /// The file.
    pub fn path(&self) -> &Arc<Path> {
        &self.part.path
    }

    /// Bytes of its text.
    pub fn range(&self) -> Range<usize> {
        let before = self.part.start.load(Relaxed);
        before.saturating_add(self.start)..before.saturating_add(self.end)
    }

    /// The line where it begins, from 1; 0: this is about the file as a whole.
    pub fn line(&self) -> u32 {
        self.part.lines.load(Relaxed).saturating_add(self.line)
    }

    /// The column where it begins, in characters, from 1.
    pub fn column(&self) -> u32 {
        self.column
    }
}

impl fmt::Debug for Place {
    /// Where it stands now: equal places look the same.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{:?}", self.path().display(), self.line(), self.column, self.range())
    }
}

impl PartialEq for Place {
    fn eq(&self, other: &Place) -> bool {
        self.range() == other.range()
            && (self.line(), self.column) == (other.line(), other.column)
            && self.path() == other.path()
    }
}

impl Eq for Place {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_part_says_moves_with_it() {
        let path: Arc<Path> = Path::new("/a.toml").into();
        let (whole, part) = (Arc::new(Part::new(path.clone(), 0, 0)), Arc::new(Part::new(path, 100, 10)));
        let (absolute, within) = (Place::new(&whole, 120..130, 12, 3), Place::new(&part, 120..130, 12, 3));
        assert_eq!(absolute, within);
        part.move_to(200, 15);
        assert_eq!((within.range(), within.line(), within.column()), (220..230, 17, 3));
        assert_ne!(absolute, within);
        assert_eq!(Place::new(&part, 220..230, 17, 3), within);
        // What is no place in the part does no harm.
        assert_eq!(Place::new(&part, 1..3, 0, 0).range(), 200..200);
    }
}
