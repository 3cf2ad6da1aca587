//! The settings of virtual patches.

use super::Fallback::{Value, Words};
use super::{Id, KIB, Kind, Section, row};

#[rustfmt::skip]
pub(super) static PATCHES: Section = Section {
    id: Id::Patches,
    title: "[patches]",
    doc: "Virtual patches: requests that exploit known holes are recognised by rules. Without the section nothing is looked for; with it, rules begin in shadow.",
    settings: &[
        row("builtin", Kind::Flag, Value("true"), "Use the packs that came with the program."),
        row("folder", Kind::Path, Value(r#""patches""#), "Folder with other packs, `*.toml`, each with its signature in `*.toml.minisig`; changes are taken up at once. A missing folder is fine."),
        row("keys", Kind::Texts(16), Value("[]"), "Public keys of minisign whose signatures count: the second line of a `.pub` file."),
        row("allow_unsigned", Kind::Flag, Value("false"), "Use packs without a signature too. A signature that is there must be good all the same."),
        row("mode", Kind::Word(&["shadow", "enforce"]), Value(r#""shadow""#), "`\"shadow\"`: matches are counted and marked in the access log, and let through; `\"enforce\"`: they are refused with 403. A site may say otherwise."),
        row("severity", Kind::Word(&["low", "medium", "high", "critical"]), Value(r#""medium""#), "Rules of a lower severity are not looked for."),
        row("body", Kind::Size(0, 64 * KIB), Value(r#""8KiB""#), "Bytes of a request body that are looked at before it is sent on, where a rule asks for them; `\"0B\"`: none."),
    ],
};

#[rustfmt::skip]
pub(super) static SITE_PATCHES: Section = Section {
    id: Id::SitePatches,
    title: "patches = { … }",
    doc: "What a site says about virtual patches.",
    settings: &[
        row("mode", Kind::Word(&["shadow", "enforce"]), Words("the server's"), "Whether matches are refused here (`\"enforce\"`), or only counted and marked (`\"shadow\"`)."),
        row("off", Kind::Texts(1_000), Words("none"), "What is not looked for here: ids of rules, CVEs, names of packs."),
    ],
};
