//! Endpoints that `tidegate deploy` put in place: a list in the state folder, and beside it the one before.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Member;
use super::file::{self, FileWatch};
use crate::config::model::Source;

/// Folder of the lists, in the state folder.
const FOLDER: &str = "deployments";

/// Watches the list of one deployment; there is none before the first.
pub fn watch(name: &Arc<str>, state: &Path) -> FileWatch {
    FileWatch::optional(&list(state, name), Source::Deployed(name.clone()))
}

/// Where the list is.
pub fn list(state: &Path, name: &str) -> PathBuf {
    state.join(FOLDER).join(name)
}

/// Where the list before it is.
pub fn former(state: &Path, name: &str) -> PathBuf {
    state.join(FOLDER).join(format!("{name}.before"))
}

/// A list as text.
pub fn text(members: &[Member]) -> String {
    let mut text = String::from("# written by `tidegate deploy`\n");
    for member in members {
        let weight = member.weight.map(|weight| format!(" weight {weight}")).unwrap_or_default();
        let _ = writeln!(text, "{}{weight}", member.address);
    }
    text
}

/// What the list says at this moment; `None` where it cannot be read.
pub fn current(state: &Path, name: &str) -> Option<Vec<Member>> {
    match std::fs::read_to_string(list(state, name)) {
        Ok(text) => file::parse(&text).ok(),
        Err(error) => (error.kind() == std::io::ErrorKind::NotFound).then(Vec::new),
    }
}

/// The endpoints before the last deployment.
///
/// # Errors
/// A sentence: there are none.
pub fn before(state: &Path, name: &str) -> Result<Vec<Member>, String> {
    let path = former(state, name);
    let text = std::fs::read_to_string(&path)
        .map_err(|error| format!("there is no way back for `{name}`: {}: {error}", path.display()))?;
    file::parse(&text).map_err(|(line, why)| format!("{}:{line}: {why}", path.display()))
}
