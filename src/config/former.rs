//! What was read before, so that what says the same is not read again: of ten thousand sites a change concerns a few.
//!
//! A site is taken over where the part of a file that says it is byte for byte what it was, in the same file, nothing was
//! wrong with it, and the server, which sites inherit from, says what it said. It may stand at another place: origins move
//! along with their [`Part`].

use std::path::Path;
use std::sync::Arc;

use super::look::Look;
use super::model::{Origin, Part, Server};
use super::{Loaded, SiteEntry, document};

/// Where a site stands by itself, and nothing was wrong with it.
#[derive(Debug, Clone)]
pub struct Said {
    /// Bytes of the text that it was read from.
    pub(super) range: std::ops::Range<usize>,
    /// What its origins go by.
    pub(super) part: Arc<Part>,
}

/// What is known before a load.
#[derive(Clone, Copy, Default)]
pub struct Former<'a> {
    /// The last one whose server part was good.
    pub loaded: Option<&'a Loaded>,
    /// A look at files that began before this load.
    pub look: Option<&'a Look>,
}

impl<'a> Former<'a> {
    /// The same, if the server says what it said.
    pub(super) fn of_server(self, server: &Server) -> Former<'a> {
        let same =
            |loaded: &&Loaded| loaded.server.as_ref().is_some_and(|former| former.says_the_same(server));
        Former { loaded: self.loaded.filter(same), ..self }
    }

    /// The site that this part of a file said before. `name` as it is written.
    pub(super) fn site(self, file: &Path, name: &str, text: &str) -> Option<&'a SiteEntry> {
        let loaded = self.loaded?;
        let name = name.to_ascii_lowercase();
        let at = loaded.sites.binary_search_by(|entry| (*entry.name).cmp(&name)).ok()?;
        let entry = loaded.sites.get(at).filter(|entry| *entry.file == *file)?;
        let before = loaded.sources.get(file)?.text().get(entry.said.as_ref()?.range.clone())?;
        // Where a path goes up, the file system decides where that is, and may decide otherwise today.
        (before == text && !text.contains("..")).then_some(entry)
    }

    /// Whether a part of a file says what it said before, for [`document::parse_unknown`].
    pub(super) fn knows(self, file: &Path) -> impl Fn(&str, &str) -> bool {
        move |name, text| self.site(file, name, text).is_some()
    }
}

impl SiteEntry {
    /// Where its name stands.
    pub(super) fn key(&self) -> std::ops::Range<usize> {
        match self.site.as_ref().map(|site| &site.origin) {
            Some(Origin::File(place)) => place.range(),
            _ => 0..0,
        }
    }

    /// The same site, which stands somewhere else in its file now.
    pub(super) fn moved(&self, piece: &document::Piece<'_>, lines: u32) -> SiteEntry {
        let said = self.said.as_ref().map(|said| {
            said.part.move_to(piece.range.start, lines);
            Said { range: piece.range.clone(), part: said.part.clone() }
        });
        SiteEntry { said, ..self.clone() }
    }
}
