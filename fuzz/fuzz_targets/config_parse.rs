//! A configuration: every text gives settings or messages, never a panic; what is accepted compiles, its canonical text
//! means the same, and so does what the next load takes over from it.
#![no_main]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tidegate::config;
use tidegate::policy::header::HeaderEdits;
use tidegate::route::Table;

/// A file of this process, in memory where the machine has such a folder.
fn file() -> &'static Path {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { shm.to_path_buf() } else { std::env::temp_dir() };
        let folder = folder.join(format!("tidegate-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        folder.join("tidegate.toml")
    })
}

/// What a load takes over from the one before, though all of it moved, is what it would read.
fn taken_over(text: &str, former: &config::Loaded) {
    std::fs::write(file(), format!("# one line more\n{text}")).expect("write");
    let former = config::Former { loaded: Some(former), look: None };
    let (taken, fresh) = (config::load_with(file(), &|_, _| false, &[], former), config::load(file()));
    let found = |loaded: &config::Loaded| format!("{:?} {:?}", loaded.sites, loaded.diagnostics);
    assert_eq!(found(&taken), found(&fresh));
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Would read other files of this machine.
    if text.contains("include") || text.contains("\\u") || text.contains("\\x") {
        return;
    }
    std::fs::write(file(), text).expect("write");
    let loaded = config::load(file());
    let said = config::render_human(&loaded.diagnostics, &loaded.sources, false);
    assert_eq!(said.is_empty(), loaded.diagnostics.is_empty());
    let _ = config::to_json(&loaded.diagnostics);
    if loaded.server.is_none() {
        assert!(loaded.has_errors(), "refused without a word");
    }
    let Some(server) = &loaded.server else { return };
    let _ = loaded.effective();
    taken_over(text, &loaded);
    for entry in &loaded.sites {
        let Some(site) = &entry.site else {
            assert!(loaded.has_errors(), "{} refused without a word", entry.name);
            continue;
        };
        if let Err((_, why)) = Table::compile(&site.routes) {
            panic!("accepted, but {why}");
        }
        for route in &site.routes {
            HeaderEdits::compile(&route.request_headers).expect("accepted, but does not compile");
            HeaderEdits::compile(&route.response_headers).expect("accepted, but does not compile");
        }
        let (again, diagnostics) =
            config::parse_site(&entry.name, Path::new("/elsewhere.toml"), &entry.text, server);
        assert!(again.is_some(), "{diagnostics:?} in canonical text {}", entry.text);
    }
});
