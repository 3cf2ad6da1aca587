//! Endpoints listed in a file: one address a line, `#` begins a comment, ` weight N` may follow.
//!
//! For whatever writes a file: a script, a template of another system, a configuration management. The file is looked at
//! every [`LOOK`] (which also works on network file systems and bind mounts), and read when it changed. A line that is
//! no address spoils the whole file: half a list would take endpoints away that are meant to be there.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use super::{Member, Update, Watch};
use crate::config::model::Source;
use crate::config::section::host;

/// How often the file is looked at.
pub const LOOK: Duration = Duration::from_millis(500);
/// Bytes that are read.
const BYTES_MAX: u64 = 1 << 20;

/// What tells one version of the file from another.
type Version = Option<(u64, u64, [i64; 4])>;

/// Watches one file.
pub struct FileWatch {
    path: PathBuf,
    source: Source,
    /// That it is not there means an empty list.
    optional: bool,
    /// The version last told; `None` before the first look.
    told: Option<Version>,
    /// What kept from reading it, where that was told last.
    trouble: Option<String>,
}

impl FileWatch {
    /// Watches this file, which need not exist yet.
    pub fn new(path: &Path) -> FileWatch {
        let source = Source::File(path.to_string_lossy().into());
        FileWatch { path: path.to_path_buf(), source, optional: false, told: None, trouble: None }
    }

    /// Watches a file for another source; that it does not exist means an empty list.
    pub fn optional(path: &Path, source: Source) -> FileWatch {
        FileWatch { path: path.to_path_buf(), source, optional: true, told: None, trouble: None }
    }

    /// What there is now. Blocks.
    fn look(path: &Path, told: Option<Version>, optional: bool) -> Looked {
        let failed = |error: io::Error| Looked::Failed(format!("{} cannot be read: {error}", path.display()));
        // The version first: what changes while it is read is read again.
        let version = match version(path) {
            Ok(version) if told == Some(version) => return Looked::Same,
            Ok(version) => version,
            Err(error) => return failed(error),
        };
        match (version, optional) {
            (None, true) => Looked::Read(version, Ok(Vec::new())),
            (None, false) => failed(io::ErrorKind::NotFound.into()),
            (Some(_), _) => match text(path) {
                Ok(text) => Looked::Read(version, text.and_then(|text| members(path, &text))),
                Err(error) => failed(error),
            },
        }
    }
}

/// What a look found.
enum Looked {
    /// The version that was told.
    Same,
    /// Another one, and what it says.
    Read(Version, Result<Vec<Member>, String>),
    /// It cannot be said: to be tried again, though the file may stay as it is.
    Failed(String),
}

/// Errors: whether there is a file cannot be told, which is not that there is none.
fn version(path: &Path) -> io::Result<Version> {
    let found = match path.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?,
    };
    // When the inode changed, too: a file that could not be read may be readable now.
    let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
    Ok(Some((found.ino(), found.size(), times)))
}

#[async_trait]
impl Watch for FileWatch {
    async fn next(&mut self) -> Option<Update> {
        loop {
            let (path, told, optional) = (self.path.clone(), self.told, self.optional);
            let look = move || FileWatch::look(&path, told, optional);
            match tokio::task::spawn_blocking(look).await.ok()? {
                Looked::Same => {}
                Looked::Read(version, read) => {
                    (self.told, self.trouble) = (Some(version), None);
                    let source = self.source.clone();
                    return Some(match read {
                        Ok(members) => Update::Members(source, members),
                        Err(why) => Update::Trouble(source, why),
                    });
                }
                Looked::Failed(why) => {
                    self.told = None;
                    if self.trouble.as_ref() != Some(&why) {
                        self.trouble = Some(why.clone());
                        return Some(Update::Trouble(self.source.clone(), why));
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The text of a file; the inner error is about the file, and stays until it changes.
fn text(path: &Path) -> io::Result<Result<String, String>> {
    // A FIFO would block for ever.
    if !path.metadata()?.is_file() {
        return Ok(Err(format!("{} is not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    if bytes.len() as u64 == BYTES_MAX {
        return Ok(Err(format!("{} is larger than 1MiB", path.display())));
    }
    Ok(String::from_utf8(bytes).map_err(|_| format!("{} is no text in UTF-8", path.display())))
}

fn members(path: &Path, text: &str) -> Result<Vec<Member>, String> {
    parse(text).map_err(|(line, why)| format!("{}:{line}: {why}", path.display()))
}

/// Reads a list.
///
/// # Errors
/// The line, from 1, and what is wrong there.
pub fn parse(text: &str) -> Result<Vec<Member>, (usize, String)> {
    let lines = text.lines().enumerate().filter_map(|(at, line)| {
        let line = line.split('#').next().unwrap_or_default().trim();
        (!line.is_empty()).then_some((at + 1, line))
    });
    lines
        .map(|(at, line)| {
            let (address, weight) = match line.split_once(char::is_whitespace) {
                None => (line, None),
                Some((address, rest)) => (address, Some(rest.trim())),
            };
            let address = host::endpoint(address).map_err(|(what, help)| (at, format!("{what}: {help}")))?;
            let weight = weight.map(|text| self::weight(text).ok_or_else(|| (at, wrong_weight(text))));
            Ok(Member { weight: weight.transpose()?, ..Member::at(address) })
        })
        .collect()
}

fn weight(text: &str) -> Option<u32> {
    let number = text.strip_prefix("weight")?.trim_start_matches([' ', '\t', '=']);
    number.parse().ok().filter(|weight| (1..=1_000).contains(weight))
}

fn wrong_weight(text: &str) -> String {
    let text = crate::config::parse::quoted(text);
    format!("`{text}` behind an address: legal is `weight N`, with N from 1 to 1000")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_addresses_weights_and_comments() {
        let list = "# web\n10.0.0.1:80\n\n [2001:db8::1]:81  weight 5 # big\napi.internal:82\tweight=2\n";
        let found: Vec<_> =
            parse(list).unwrap().into_iter().map(|m| (m.address.to_string(), m.weight)).collect();
        let expected = [("10.0.0.1:80", None), ("[2001:db8::1]:81", Some(5)), ("api.internal:82", Some(2))];
        assert_eq!(found, expected.map(|(address, weight)| (address.to_owned(), weight)));
    }

    #[test]
    fn a_line_that_is_no_address_spoils_the_list_and_is_named() {
        for (list, line, what) in [
            ("10.0.0.1:80\n10.0.0.2\n", 2, "has no port"),
            ("10.0.0.1:80 weight 0", 1, "legal is `weight N`"),
            ("10.0.0.1:80 backup", 1, "legal is `weight N`"),
            ("\n\nhttp://x:80/", 3, "has a path"),
        ] {
            let (at, why) = parse(list).unwrap_err();
            assert!(at == line && why.contains(what), "{list:?}: {at} {why}");
        }
        assert_eq!(parse("# none\n").unwrap(), []);
    }

    #[tokio::test]
    async fn a_file_is_told_when_it_comes_changes_breaks_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web");
        let mut watch = FileWatch::new(&path);
        let replace = |text: &str| {
            std::fs::write(folder.path().join("new"), text).unwrap();
            std::fs::rename(folder.path().join("new"), &path).unwrap();
        };
        let Some(Update::Trouble(_, why)) = watch.next().await else { panic!("it is not there") };
        assert!(why.contains("cannot be read"), "{why}");
        replace("10.0.0.1:80\n");
        let Some(Update::Members(_, members)) = watch.next().await else { panic!("it is there") };
        assert_eq!(members.len(), 1);
        replace("10.0.0.1\n");
        let Some(Update::Trouble(_, why)) = watch.next().await else { panic!("it is broken") };
        assert!(why.contains("web:1: `10.0.0.1` has no port"), "{why}");
        replace("");
        assert!(matches!(watch.next().await, Some(Update::Members(_, members)) if members.is_empty()));
        // What only could not be read is tried again, though the file is as it was.
        let told = watch.told.unwrap();
        assert!(matches!(FileWatch::look(&path, Some(told), false), Looked::Same));
        assert!(matches!(FileWatch::look(Path::new("/proc/self/mem"), None, false), Looked::Failed(_)));
        assert!(matches!(FileWatch::look(&path.join("below"), None, true), Looked::Failed(_)), "not: none");
        // Who may read it now is a reason to try again, too.
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let again = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        assert!(matches!(again, Ok(Some(Update::Members(..)))), "it is read again");
    }
}
