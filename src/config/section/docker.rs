//! `[docker]`: the container engine that is asked for containers.

use std::path::PathBuf;
use std::sync::Arc;

use super::host;
use crate::config::model::{Docker, DockerSocket, Located, Origin};
use crate::config::parse::{Context, Table, Value, literal, quoted};
use crate::config::setting::{Id, Setting};

/// Where Docker listens.
const USUAL: &str = "/var/run/docker.sock";

/// Reads the section; `None` where it is absent.
pub fn read(context: &mut Context<'_>, file: &Table<'_>) -> Option<Docker> {
    if !file.has("docker") {
        return None;
    }
    let table = context.table(file, "docker", Id::Docker);
    let fallback = Located { value: DockerSocket::Unix(PathBuf::from(USUAL)), origin: Origin::Default };
    let print = |socket: &DockerSocket| literal(&socket.to_string());
    let socket = context.value(&table, "socket", &fallback, read_socket, print).value;
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.text(setting, value).map(|text| Some(Arc::from(text)))
    };
    let print = |name: &Option<Arc<str>>| name.as_ref().map_or_else(|| "none".into(), |name| literal(name));
    let network = context.value(&table, "network", &fallback, read, print).value;
    let published = context.word(&table, "address", None).value == "published";
    Some(Docker { socket, network, published })
}

fn read_socket(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<DockerSocket> {
    let text = context.text(setting, value)?;
    let help = "write \"unix:///var/run/docker.sock\", or \"tcp://127.0.0.1:2375\" for a socket proxy";
    let wrong = |context: &mut Context<'_>, what: &str| {
        context.error("invalid-address", value.span(), format!("the socket `{}` {what}", quoted(text)), help);
        None
    };
    match text.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Some(DockerSocket::Unix(PathBuf::from(path))),
        Some(("unix", _)) => wrong(context, "has no absolute path"),
        Some(("tcp" | "http", at)) => match host::endpoint(at.trim_end_matches('/')) {
            Ok(address) => Some(DockerSocket::Tcp(address.to_string().into())),
            Err((what, _)) => wrong(context, &format!("is no host and port: {what}")),
        },
        Some(("https", _)) => wrong(context, "asks for TLS, which is not spoken to engines in this version"),
        _ if text.starts_with('/') => Some(DockerSocket::Unix(PathBuf::from(text))),
        _ => wrong(context, "has no scheme"),
    }
}
