//! Sites that stand in no file, such as those that labels of containers say: texts that are read after the files.
//!
//! A site that a file defines wins over a fragment of the same name, whoever was first: a label takes nothing from a file.

use std::path::Path;
use std::sync::Arc;

use super::Run;
use super::model::{Origin, Server};
use super::source::Source;

/// One site that stands in no file.
#[derive(Debug, Clone, Default)]
pub struct Fragment {
    /// What stands where a file would have its path, like `docker:shop.example`; never absolute.
    pub place: Arc<str>,
    /// The site, as a file would say it.
    pub text: String,
    /// What each line of the text stems from, in words; may be shorter than the text.
    pub lines: Vec<Arc<str>>,
}

impl PartialEq for Fragment {
    /// Equal fragments mean equal settings; whose labels they were does not matter.
    fn eq(&self, other: &Fragment) -> bool {
        self.place == other.place && self.text == other.text
    }
}

impl Fragment {
    fn path(&self) -> Arc<Path> {
        Path::new(&*self.place).into()
    }

    fn line(&self, line: u32) -> Option<&Arc<str>> {
        self.lines.get(usize::try_from(line).ok()?.checked_sub(1)?).filter(|line| !line.is_empty())
    }
}

impl Run<'_> {
    /// Takes the sites of a fragment. What is wrong is told with what the line stems from.
    pub(super) fn fragment(&mut self, fragment: &Fragment, server: &Server) {
        let path = fragment.path();
        let source = Arc::new(Source::new(path.clone(), fragment.text.clone()));
        self.loaded.sources.insert(source.clone());
        self.loaded.order.push(path.clone());
        let before = self.loaded.diagnostics.len();
        if let Some((root, pieces)) = self.parse(&source) {
            let mut context = super::Context::new(&source, None, false);
            self.take_sites(&mut context, &source, &root, &pieces, server);
            self.loaded.diagnostics.append(&mut context.diagnostics);
        }
        for diagnostic in self.loaded.diagnostics.iter_mut().skip(before) {
            if let Origin::File(place) = &diagnostic.origin
                && **place.path() == *path
                && let Some(from) = fragment.line(place.line())
            {
                diagnostic.message = format!("{} ({from})", diagnostic.message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Former, load, load_with};
    use super::*;

    fn fragment(site: &str, setting: &str) -> Fragment {
        Fragment {
            place: format!("docker:{site}").into(),
            text: format!("[site.\"{site}\"]\n{setting}\n"),
            lines: vec!["".into(), "label `tidegate.health` of the container web-1".into()],
        }
    }

    #[test]
    fn a_file_wins_over_a_fragment_and_a_bad_fragment_says_whose_label_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.toml");
        let text = "[docker]\n[site.\"a.test\"]\nbackends = [\"10.0.0.1:80\"]\n";
        std::fs::write(&file, text).unwrap();
        let fragments = [
            fragment("a.test", "respond = { status = 200 }"),
            fragment("b.test", "health = 7"),
            fragment("c.test", "backends = [{ address = \"docker-labels:c.test|/\" }]"),
            Fragment { text: "[site".into(), ..fragment("d.test", "") },
        ];
        // However long the label was there.
        let loaded =
            load_with(&file, &|_, file| file == Path::new("docker:a.test"), &fragments, Former::default());
        let good: Vec<_> = loaded.sites.iter().filter(|e| e.site.is_some()).map(|e| &*e.name).collect();
        assert_eq!(good, ["a.test", "c.test"]);
        assert_eq!(*loaded.sites[0].file, *file);
        assert_eq!(*loaded.broken_files, [Arc::from(Path::new("docker:d.test"))]);
        let told: Vec<_> = loaded.diagnostics.iter().map(|d| d.message.as_str()).collect();
        assert!(told.iter().any(|message| message.contains("`a.test` is already defined")), "{told:?}");
        let whose = |message: &&str| message.ends_with("(label `tidegate.health` of the container web-1)");
        assert!(told.iter().any(whose), "{told:?}");
        assert!(load(&file).sites.len() == 1);
        // Without the section nobody asks an engine, and labels say nothing.
        std::fs::write(&file, "").unwrap();
        assert!(load_with(&file, &|_, _| false, &fragments, Former::default()).sites.is_empty());
    }
}
