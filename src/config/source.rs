//! Files in: bounded reading, positions in a text, include patterns, paths relative to the file they stand in.
//!
//! Everything read here may be hostile or half-written. Sizes and counts are bounded, only regular files are opened
//! (a FIFO would block for ever), and no environment variable or command is ever expanded.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::model::{Origin, Part, Place};
use crate::base::gentle;

/// Bytes of one configuration file.
pub const FILE_BYTES_MAX: u64 = 8 << 20;
/// Bytes of all configuration files together.
pub const TOTAL_BYTES_MAX: u64 = 256 << 20;
/// Bytes that are read, or searched for lines, in one go.
const STEP_BYTES: usize = 32 << 10;
/// Configuration files, the main one included.
pub const FILES_MAX: usize = 20_000;

/// One file's text and where its lines begin.
#[derive(Debug)]
pub struct Source {
    path: Arc<Path>,
    whole: Arc<Part>,
    text: String,
    /// Byte offset of the first byte of each line; the first entry is 0.
    line_starts: Vec<usize>,
}

impl Source {
    /// Makes a source of a text that stands (or stood) in `path`.
    pub fn new(path: Arc<Path>, text: String) -> Source {
        let mut line_starts = vec![0];
        for (number, step) in gentle::each(text.as_bytes().chunks(STEP_BYTES).enumerate()) {
            line_starts.extend(memchr::memchr_iter(b'\n', step).map(|at| number * STEP_BYTES + at + 1));
        }
        let whole = Arc::new(Part::new(path.clone(), 0, 0));
        Source { path, whole, text, line_starts }
    }

    /// The file, absolute.
    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// Its whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The folder that relative paths in this file start from.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// Line and column (in characters), both from 1, of a byte offset. O(log lines + length of the line).
    pub fn position(&self, offset: usize) -> (u32, u32) {
        let line = self.line_starts.partition_point(|start| *start <= offset).max(1);
        let start = self.line_starts.get(line - 1).copied().unwrap_or(0);
        let before = self.text.get(start..offset).map_or(0, |text| text.chars().count());
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(before + 1).unwrap_or(u32::MAX))
    }

    /// How many lines end before a byte.
    pub fn lines_before(&self, offset: usize) -> u32 {
        self.position(offset).0 - 1
    }

    /// All of it.
    pub fn whole(&self) -> &Arc<Part> {
        &self.whole
    }

    /// The origin of a byte range; a range outside the text is cut to it.
    pub fn origin(&self, span: Range<usize>) -> Origin {
        self.origin_in(&self.whole, span)
    }

    /// The origin of a byte range (of the whole text) in a part.
    pub fn origin_in(&self, part: &Arc<Part>, span: Range<usize>) -> Origin {
        let start = span.start.min(self.text.len());
        let end = span.end.clamp(start, self.text.len());
        let (line, column) = self.position(start);
        Origin::File(Place::new(part, start..end, line, column))
    }

    /// A line (from 1) without its line break, and the byte offset where it begins.
    pub fn line(&self, line: u32) -> Option<(&str, usize)> {
        let index = usize::try_from(line).ok()?.checked_sub(1)?;
        let start = *self.line_starts.get(index)?;
        let end = self.line_starts.get(index + 1).copied().unwrap_or(self.text.len());
        self.text.get(start..end).map(|text| (text.trim_end_matches(['\n', '\r']), start))
    }
}

/// The origin of a problem with a file as a whole: it has a path but no line (both numbers are 0).
pub fn whole_file(path: &Arc<Path>) -> Origin {
    Origin::File(Place::new(&Arc::new(Part::new(path.clone(), 0, 0)), 0..0, 0, 0))
}

/// The texts behind a set of diagnostics, by file.
#[derive(Debug, Default, Clone)]
pub struct Sources {
    by_path: HashMap<Arc<Path>, Arc<Source>>,
    /// Paths below this folder are shown without it.
    base: PathBuf,
}

impl Sources {
    /// Adds a text; a second one for the same path replaces the first.
    pub fn insert(&mut self, source: Arc<Source>) {
        self.by_path.insert(source.path.clone(), source);
    }

    /// The text of a file.
    pub fn get(&self, path: &Path) -> Option<&Arc<Source>> {
        self.by_path.get(path)
    }

    /// Shows paths below `folder` relative to it; `load` sets the current directory.
    pub fn show_relative_to(&mut self, folder: &Path) {
        self.base = folder.to_path_buf();
    }

    /// A path as messages show it.
    pub fn show(&self, path: &Path) -> String {
        let short = path.strip_prefix(&self.base).ok().filter(|short| !short.as_os_str().is_empty());
        short.unwrap_or(path).display().to_string()
    }
}

/// Reads files while counting them and their bytes.
#[derive(Debug, Default)]
pub struct Reader {
    files: usize,
    bytes: u64,
}

impl Reader {
    /// Reads one file as UTF-8.
    ///
    /// # Errors
    /// A diagnostic code and a sentence that says what is wrong with the file and what to do.
    pub fn read(&mut self, path: &Path) -> Result<String, (&'static str, String)> {
        self.files += 1;
        if self.files > FILES_MAX {
            return Err(("too-many", format!("more than {FILES_MAX} configuration files are not read")));
        }
        let cannot = |error: std::io::Error| ("unreadable", format!("this file cannot be read: {error}"));
        let metadata = fs::metadata(path).map_err(cannot)?;
        if !metadata.is_file() {
            return Err(("unreadable", "this is not a regular file".into()));
        }
        let expected = usize::try_from(metadata.len().min(FILE_BYTES_MAX) + 1).unwrap_or_default();
        let mut bytes = Vec::with_capacity(expected);
        // One byte more than allowed: a file that grows while it is read is still bounded and still noticed.
        let mut file = fs::File::open(path).map_err(cannot)?.take(FILE_BYTES_MAX + 1);
        while file.by_ref().take(STEP_BYTES as u64).read_to_end(&mut bytes).map_err(cannot)? > 0 {
            gentle::breathe();
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if length > FILE_BYTES_MAX {
            return Err(("too-large", "this file is larger than 8MiB: split its sites over several".into()));
        }
        self.bytes += length;
        if self.bytes > TOTAL_BYTES_MAX {
            return Err((
                "too-large",
                "all files together are larger than 256MiB; this one is not read".into(),
            ));
        }
        String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            ("unreadable", format!("this file is not UTF-8 text: byte {at} is wrong; save it as UTF-8"))
        })
    }
}

/// The files that an absolute include pattern means, sorted by name; `*` is legal in the last component only and never matches a leading dot,
/// so hidden files, editors' swap files and the `..data` links of mounted volumes stay out.
///
/// # Errors
/// A sentence that says what is wrong with the pattern or its folder.
pub fn expand(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let folder = pattern.parent().unwrap_or(Path::new("/"));
    let Some(last) = pattern.file_name() else {
        return Err("an include names a file, or files with `*`, like \"sites/*.toml\"".into());
    };
    if folder.as_os_str().as_encoded_bytes().contains(&b'*') {
        return Err("`*` is legal in the last part of an include only, like \"sites/*.toml\"".into());
    }
    if !last.as_encoded_bytes().contains(&b'*') {
        return Ok(vec![pattern.to_path_buf()]);
    }
    let paths = fs::read_dir(folder).map(|entries| entries.map(|entry| entry.map(|entry| entry.path())));
    let mut files = match paths {
        // No folder means no sites yet; the folder is watched.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(format!("the folder {} cannot be read: {error}", folder.display())),
        Ok(paths) => meant(pattern, paths)
            .map_err(|error| format!("the folder {} cannot be read to its end: {error}", folder.display()))?,
    };
    files.sort();
    // One more than may be read: the reader then says so.
    files.truncate(FILES_MAX + 1);
    Ok(files)
}

/// Those of a folder's files that a pattern means. Half a listing is none: it would read as if the sites of the other half
/// had been removed.
fn meant(
    pattern: &Path,
    paths: impl Iterator<Item = std::io::Result<PathBuf>>,
) -> std::io::Result<Vec<PathBuf>> {
    let meant = |path: &PathBuf| path.file_name().is_some_and(|name| takes(pattern, name)) && !path.is_dir();
    paths.filter(|path| path.as_ref().map_or(true, meant)).collect()
}

/// Whether an include pattern means a file of this name, where that lies in the pattern's folder.
pub fn takes(pattern: &Path, name: &OsStr) -> bool {
    let (Some(last), name) = (pattern.file_name(), name.as_encoded_bytes()) else { return false };
    glob(last.as_encoded_bytes(), name) && !name.starts_with(b".")
}

/// Whether `name` matches a pattern with any number of `*`. Linear per star, without backtracking over earlier ones.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let mut parts = pattern.split(|byte| *byte == b'*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let found = rest.windows(part.len().max(1)).position(|window| part.is_empty() || window == part);
        match found.and_then(|at| rest.get(at + part.len()..)) {
            Some(tail) => rest = tail,
            None if part.is_empty() => {}
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Makes a path absolute, starting from `folder`. `name/..` is shortened only where `name` is no symbolic link,
/// because the kernel goes to the parent of a link's target.
pub fn join(folder: &Path, path: &Path) -> PathBuf {
    let mut joined = folder.to_path_buf();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                let real = matches!(joined.components().next_back(), Some(Component::Normal(_)))
                    && !fs::symlink_metadata(&joined).is_ok_and(|metadata| metadata.is_symlink());
                if !real || !joined.pop() {
                    joined.push("..");
                }
            }
            other => joined.push(other),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(Arc::from(Path::new("/x/a.toml")), text.into())
    }

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let source = source("ab\nüx = 1\n");
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(2), (1, 3));
        assert_eq!(source.position(3), (2, 1));
        assert_eq!(source.position(5), (2, 2), "ü is two bytes and one column");
        assert_eq!(source.position(11), (3, 1));
        assert_eq!(source.line(2), Some(("üx = 1", 3)));
        assert_eq!(source.line(0), None);
        assert_eq!(source.line(9), None);
        // Outside the text, or inside a character: cut, never a panic.
        for (start, end) in [(0, 999), (999, 1), (4, 4)] {
            let _ = source.origin(start..end);
        }
    }

    #[test]
    fn stars_match_in_the_last_part_only() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml~", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "acb", false),
            ("**", "x", true),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        assert!(expand(Path::new("/a/*/b.toml")).unwrap_err().contains("last part"));
    }

    #[test]
    fn hidden_files_and_folders_stay_out_and_names_are_sorted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml", ".c.toml", "d.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("e.toml")).unwrap();
        let found = expand(&folder.path().join("*.toml")).unwrap();
        let names: Vec<_> = found.iter().filter_map(|file| file.file_name()?.to_str()).collect();
        assert_eq!(names, ["a.toml", "b.toml"]);
        assert!(expand(&folder.path().join("missing/*.toml")).unwrap().is_empty());
    }

    #[test]
    fn regression_half_a_listing_is_none() {
        let file = |name: &str| Ok(PathBuf::from(name));
        let broke = || Err(std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        let listed = |entries| meant(Path::new("/sites/*.toml"), Vec::into_iter(entries));
        assert_eq!(
            listed(vec![file("/sites/a.toml"), file("/sites/b.txt")]).unwrap(),
            [Path::new("/sites/a.toml")]
        );
        assert!(listed(vec![file("/sites/a.toml"), broke()]).is_err());
    }

    #[test]
    fn parents_are_shortened_but_not_across_links() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real/inner");
        fs::create_dir_all(&real).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert_eq!(join(&real, Path::new("../x")), folder.path().join("real/x"));
        assert_eq!(join(&real, Path::new("./x")), real.join("x"));
        assert_eq!(join(&link, Path::new("../x")), link.join("../x"));
        assert_eq!(join(&real, Path::new("/etc/x")), Path::new("/etc/x"));
        assert_eq!(join(Path::new("/"), Path::new("../x")), Path::new("/../x"));
    }

    #[test]
    fn what_is_not_a_readable_text_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Reader::default().read(folder.path()).unwrap_err().0, "unreadable");
        let binary = folder.path().join("b.toml");
        fs::write(&binary, [b'a', 0xff]).unwrap();
        assert!(Reader::default().read(&binary).unwrap_err().1.contains("byte 1"));
        let large = folder.path().join("l.toml");
        fs::File::create(&large).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(Reader::default().read(&large).unwrap_err().0, "too-large");
    }
}
