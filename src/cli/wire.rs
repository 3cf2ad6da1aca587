//! What the commands take from the rest of the process: a few calls, in one place.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{config, control, server};

/// What `check` found.
pub(super) struct Checked {
    /// Problems for people; empty when there are none.
    pub human: String,
    /// Problems for programs.
    pub json: Value,
    /// Problems that refuse something.
    pub errors: usize,
    /// Problems that refuse nothing.
    pub warnings: usize,
    /// Sites found.
    pub sites: usize,
}

/// Reads the configuration, compiles its sites and reports on both: what a start would find.
pub(super) fn check(config: &Path, colour: bool) -> Result<Checked, String> {
    crate::tls::install_provider();
    let (loaded, diagnostics) = control::reload::check(config)?;
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
    Ok(Checked {
        human: config::render_human(&diagnostics, &loaded.sources, colour),
        json: config::to_json(&diagnostics),
        errors,
        warnings: diagnostics.len() - errors,
        sites: loaded.sites.len(),
    })
}

/// The admin socket that a configuration names.
pub(super) fn admin_socket(config: &Path) -> Result<PathBuf, String> {
    let loaded = config::load(config);
    match loaded.server {
        Some(server) => Ok(server.admin_socket),
        None => Err(format!(
            "the configuration {} has errors, so its admin socket is not known: `tidegate check` shows them; \
             meanwhile name the socket with --socket",
            config.display()
        )),
    }
}

/// Every setting in force by a configuration, as key and value.
pub(super) fn effective(config: &Path) -> Result<Vec<(String, String)>, String> {
    let loaded = config::load(config);
    if loaded.server.is_none() {
        return Err(format!(
            "the configuration {} has errors: `tidegate check` shows them",
            config.display()
        ));
    }
    Ok(loaded.effective().into_iter().map(|one| (one.key, one.value)).collect())
}

/// Where the certificate store of a configuration is.
pub(super) struct StorePlace {
    /// The state folder.
    pub state: PathBuf,
    /// The keys of the store.
    pub key: Option<config::model::StoreKey>,
    /// The admin socket of the process that uses it.
    pub socket: PathBuf,
}

/// Where the store is that a configuration names.
pub(super) fn store_place(config: &Path) -> Result<StorePlace, String> {
    let server = config::load(config).server.ok_or_else(|| {
        format!(
            "the configuration {} has errors, so its state folder is not known: `tidegate check` shows them",
            config.display()
        )
    })?;
    let key = server.acme.and_then(|acme| acme.store_key);
    Ok(StorePlace { state: server.state, key, socket: server.admin_socket })
}

/// Runs until a signal ends it; calls `ready` when everything listens.
pub(super) fn serve(config: &Path, ready: impl FnOnce(&server::Started)) -> Result<(), String> {
    server::run(config, ready)
}

/// What a configuration says about virtual patches.
pub(super) fn patches(config: &Path) -> Result<config::model::Patches, String> {
    let server = config::load(config).server.ok_or_else(|| {
        format!("the configuration {} has errors: `tidegate check` shows them", config.display())
    })?;
    server.patches.ok_or_else(|| format!("the configuration {} has no [patches]", config.display()))
}

/// What is checked where no configuration is asked.
pub(super) fn no_patches() -> config::model::Patches {
    config::model::Patches::default()
}

/// The same, with other keys where any are named.
pub(super) fn with_keys(mut settings: config::model::Patches, keys: &[String]) -> config::model::Patches {
    if !keys.is_empty() {
        let located = |key: &String| config::model::Located {
            value: key.clone(),
            origin: config::model::Origin::Default,
        };
        settings.keys = keys.iter().map(located).collect();
        settings.allow_unsigned = false;
    }
    settings
}

/// The packs of a folder.
pub(super) fn packs(folder: &Path) -> Vec<PathBuf> {
    control::patches::list(folder)
}

/// Checks a pack as a reload would; what vouches for it.
pub(super) fn verify_pack(file: &Path, settings: &config::model::Patches) -> Result<String, String> {
    control::patches::verify(file, settings)
}

/// Runs the cases of a pack; how many there were.
pub(super) fn test_pack(file: &Path, settings: &config::model::Patches) -> Result<String, String> {
    control::patches::test(file, settings)
}
