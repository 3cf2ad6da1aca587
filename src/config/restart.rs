//! Which changed settings take effect only in a new process.

use super::model::Server;

/// The settings (like `server.workers`) that differ between two servers and need a restart; the table of settings
/// marks which do.
pub fn restart_needed(old: &Server, new: &Server) -> Vec<&'static str> {
    rows(old, new).into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
}

fn rows(old: &Server, new: &Server) -> Vec<(&'static str, bool)> {
    vec![
        ("server.http", old.http != new.http),
        ("server.https", old.https != new.https),
        ("server.workers", old.workers != new.workers),
        ("server.state", old.state != new.state),
        ("server.limit_entries", old.limit_entries != new.limit_entries),
        ("metrics.listen", old.metrics != new.metrics),
        ("admin.socket", old.admin_socket != new.admin_socket),
        ("demo.listen", old.demo != new.demo),
        ("bans.entries", old.bans.entries != new.bans.entries),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::setting::TABLE;

    fn server(text: &str) -> Server {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tidegate.toml"), text).unwrap();
        crate::config::load(&folder.path().join(Path::new("tidegate.toml"))).server.unwrap()
    }

    #[test]
    fn what_the_table_marks_is_compared_and_nothing_else() {
        let server = server("");
        let compared: Vec<&str> = rows(&server, &server).into_iter().map(|(key, _)| key).collect();
        let marked: Vec<String> = TABLE
            .iter()
            .flat_map(|section| section.settings.iter().map(move |setting| (section, setting)))
            .filter(|(_, setting)| setting.needs_restart)
            .map(|(section, setting)| format!("{}.{}", section.title.trim_matches(['[', ']']), setting.name))
            .collect();
        assert_eq!(compared, marked);
    }

    #[test]
    fn only_what_changed_is_named() {
        let old = server("");
        assert!(restart_needed(&old, &old).is_empty());
        let new = server("[server]\nworkers = 3\ndrain = \"1s\"\n[log]\nformat = \"combined\"\n");
        assert_eq!(restart_needed(&old, &new), ["server.workers"]);
    }
}
