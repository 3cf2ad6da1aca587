//! `[patches]`, and what a site says about them.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Located, Mode, Origin};

/// `[patches]`: virtual patches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patches {
    /// Where the section stands.
    pub origin: Origin,
    /// Whether the packs that came with the program are in force.
    pub builtin: bool,
    /// Where other packs are; absolute.
    pub folder: PathBuf,
    /// Public keys of minisign whose signatures count.
    pub keys: Vec<Located<String>>,
    /// Packs without a signature count too.
    pub allow_unsigned: bool,
    /// What sites that say nothing else do with a match. Shadow.
    pub mode: Mode,
    /// Rules below are not looked for. Medium.
    pub severity: Severity,
    /// Bytes of a body that are looked at; 0: none.
    pub body: usize,
}

impl Default for Patches {
    fn default() -> Patches {
        Patches {
            origin: Origin::Default,
            builtin: true,
            folder: PathBuf::from("patches"),
            keys: Vec::new(),
            allow_unsigned: false,
            mode: Mode::Shadow,
            severity: Severity::Medium,
            body: 8 * 1024,
        }
    }
}

/// `patches` of a site.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SitePatches {
    /// `"off"`: nothing is looked for.
    pub none: bool,
    /// Ids of rules, CVEs and names of packs that are not looked for.
    pub off: Vec<Located<String>>,
    /// `None`: the server's.
    pub mode: Option<Mode>,
}

/// How bad a hole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Information leaks, probes.
    Low,
    /// Needs more than one request, or a rare setup.
    Medium,
    /// Files or data can be read.
    High,
    /// Code can be run.
    Critical,
}

impl Severity {
    /// Every severity, from the least.
    pub const ALL: [Severity; 4] = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}
