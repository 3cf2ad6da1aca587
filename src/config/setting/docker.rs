//! The settings of `[docker]`.

use super::Fallback::{Value, Words};
use super::{Id, Kind, Section, row};

#[rustfmt::skip]
pub(super) static DOCKER: Section = Section {
    id: Id::Docker,
    title: "[docker]",
    doc: "A container engine that is asked for containers: Docker, or Podman by its compatible interface. Without the section no engine is asked.",
    settings: &[
        row("socket", Kind::Text(1_024), Value(r#""unix:///var/run/docker.sock""#), "Where the engine listens: `unix:///path`, or `tcp://host:port` of a socket proxy."),
        row("network", Kind::Text(256), Words("the only network a container is in, else the one that its label `tidegate.network` names"), "The network by which containers are reached."),
        row("address", Kind::Word(&["container", "published"]), Value(r#""container""#), "`\"container\"`: a container's address in its network. `\"published\"`: the port it publishes on this machine, where Tidegate cannot reach the network of containers."),
    ],
};
