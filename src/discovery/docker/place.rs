//! Where a container is reached: by which network or published port, at which port. Pure. What is not certain is an error
//! that names what there is to choose from.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::api::{Inspected, Listed};
use super::labels::Part;
use crate::base::address::EndpointAddress;
use crate::config::model::Docker;

/// Where a container is reached. `port` counts more than what its labels say.
///
/// # Errors
/// A sentence about the container.
pub fn address(
    facts: &Inspected,
    settings: &Docker,
    part: &Part,
    port: Option<u16>,
) -> Result<EndpointAddress, String> {
    let port = match port.or(part.port) {
        Some(port) => port,
        None => exposed(facts)?,
    };
    if settings.published {
        return published(facts, port);
    }
    let none = BTreeMap::new();
    let networks = facts.network_settings.networks.as_ref().unwrap_or(&none);
    let names = || networks.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let wanted = part.network.as_ref().or(settings.network.as_ref());
    let (name, network) = match wanted {
        Some(wanted) => networks.get_key_value(&**wanted).ok_or_else(|| {
            format!(
                "it is not in the network `{wanted}`, but in: {}",
                if networks.is_empty() { "none".into() } else { names() }
            )
        })?,
        None => match networks.len() {
            0 => return Err("it is in no network".into()),
            1 => networks.iter().next().ok_or("it is in no network")?,
            _ => {
                return Err(format!(
                    "it is in several networks ({}): say which by the label `tidegate.network`, or by `network` in [docker]",
                    names()
                ));
            }
        },
    };
    let ip = match name.as_str() {
        // It has the addresses of this machine.
        "host" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => network.v4.parse().ok().or_else(|| network.v6.parse().ok()),
    };
    let ip: IpAddr = ip.ok_or_else(|| format!("it has no address in the network `{name}`"))?;
    Ok(EndpointAddress::Socket((ip, port).into()))
}

/// Whether a container has this address in one of its networks.
pub fn is_at(listed: &Listed, address: &EndpointAddress) -> bool {
    let EndpointAddress::Socket(at) = address else { return false };
    let networks = listed.network_settings.networks.iter().flat_map(BTreeMap::values);
    let mut ips = networks.flat_map(|network| [&network.v4, &network.v6]);
    ips.any(|ip| ip.parse() == Ok(at.ip()))
}

/// What a container exposes, where the port of this address is not among it.
pub fn wrong_port(facts: &Inspected, address: &EndpointAddress) -> Option<String> {
    let EndpointAddress::Socket(at) = address else { return None };
    let ports = exposes(facts);
    if ports.is_empty() || ports.contains(&at.port()) {
        return None;
    }
    let ports: Vec<String> = ports.iter().map(|port| format!("{port}/tcp")).collect();
    let name = facts.name.trim_start_matches('/');
    Some(format!("the container {name} exposes {}, you asked {}", ports.join(", "), at.port()))
}

fn exposes(facts: &Inspected) -> Vec<u16> {
    let ports = facts.config.exposed_ports.iter().flat_map(BTreeMap::keys);
    ports.filter_map(|port| port.strip_suffix("/tcp")?.parse().ok()).collect()
}

fn exposed(facts: &Inspected) -> Result<u16, String> {
    let ports = exposes(facts);
    match ports[..] {
        [port] => Ok(port),
        [] => Err("its image exposes no port: say which by the label `tidegate.port`".into()),
        _ => {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            Err(format!(
                "its image exposes the ports {}: say which by the label `tidegate.port`",
                ports.join(", ")
            ))
        }
    }
}

fn published(facts: &Inspected, port: u16) -> Result<EndpointAddress, String> {
    let ports = facts.network_settings.ports.as_ref();
    let found = ports.and_then(|ports| ports.get(&format!("{port}/tcp"))?.as_ref()?.first());
    let missing = || {
        let all = ports.into_iter().flatten().filter(|(_, at)| at.as_ref().is_some_and(|at| !at.is_empty()));
        let all: Vec<&str> = all.map(|(port, _)| port.as_str()).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        format!("it does not publish the port {port} on this machine; published are: {all}")
    };
    let found = found.ok_or_else(missing)?;
    let on: u16 = found.host_port.parse().map_err(|_| missing())?;
    let ip: IpAddr = found.host_ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let ip = match ip {
        IpAddr::V4(all) if all.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(all) if all.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(EndpointAddress::Socket((ip, on).into()))
}
