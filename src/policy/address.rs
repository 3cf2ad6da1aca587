//! Lists of addresses: who is let in by where they come from.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::base::address::CidrSet;
use crate::base::trust;
use crate::config::model::{Addresses, Mode, Networks};

/// Networks in one file.
pub const NETWORKS_MAX: usize = 1_000_000;

/// One `addresses`, compiled.
#[derive(Debug)]
pub struct AddressList {
    allow: Option<Vec<Arc<CidrSet>>>,
    deny: Vec<Arc<CidrSet>>,
    /// Whether it refuses.
    pub mode: Mode,
}

impl AddressList {
    /// Compiles; `list` finds the lists with names.
    ///
    /// # Errors
    /// A sentence where a list is not there.
    pub fn compile(
        said: &Addresses,
        list: impl Fn(&str) -> Option<Arc<CidrSet>>,
    ) -> Result<AddressList, String> {
        let sets = |entries: &[Networks]| sets(entries, &list);
        Ok(AddressList {
            allow: said.allow.as_deref().map(sets).transpose()?,
            deny: sets(&said.deny)?,
            mode: said.mode,
        })
    }

    /// Whether the address is let in: not denied, and allowed where only some are.
    pub fn admits(&self, address: IpAddr) -> bool {
        let in_any = |sets: &[Arc<CidrSet>]| sets.iter().any(|set| set.contains(address));
        !in_any(&self.deny) && self.allow.as_deref().is_none_or(in_any)
    }
}

/// What is written out becomes one set; each list stays one, shared by all who name it.
fn sets(
    entries: &[Networks],
    list: impl Fn(&str) -> Option<Arc<CidrSet>>,
) -> Result<Vec<Arc<CidrSet>>, String> {
    let (mut sets, mut written) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Networks::One(network) => written.push(*network),
            Networks::Named(name) => match (trust::find(name), list(name)) {
                (Some(networks), _) => written.extend(networks),
                (None, Some(set)) => sets.push(set),
                (None, None) => {
                    return Err(format!(
                        "the list `{name}` has no networks: its file could not be understood, and there is no \
                         earlier version"
                    ));
                }
            },
        }
    }
    if !written.is_empty() {
        sets.push(Arc::new(CidrSet::new(written)));
    }
    Ok(sets)
}

/// Reads a file of networks: one a line; what follows `#` or `;` is a comment.
///
/// # Errors
/// A sentence that names the line. Half a list is worse than the one before it: nothing is left out.
pub fn parse(text: &str) -> Result<Vec<IpNet>, String> {
    let mut networks = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let entry = line.split(['#', ';']).next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let network = crate::config::section::address::network(entry).ok_or_else(|| {
            let shown: String = entry.chars().filter(|c| !c.is_control()).take(60).collect();
            format!("line {}: `{shown}` is not a network", number + 1)
        })?;
        if networks.len() >= NETWORKS_MAX {
            return Err(format!("line {}: more than {NETWORKS_MAX} networks", number + 1));
        }
        networks.push(network);
    }
    Ok(networks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Origin;

    fn compiled(allow: Option<&[&str]>, deny: &[&str]) -> AddressList {
        let entry = |text: &&str| {
            let network = crate::config::section::address::network(text);
            network.map_or_else(|| Networks::Named((*text).into()), Networks::One)
        };
        let said = Addresses {
            allow: allow.map(|allow| allow.iter().map(entry).collect()),
            deny: deny.iter().map(entry).collect(),
            mode: Mode::Enforce,
            origin: Origin::Default,
        };
        let office = Arc::new(CidrSet::new(["192.0.2.0/24".parse().unwrap()]));
        AddressList::compile(&said, |name| (name == "office").then(|| office.clone())).unwrap()
    }

    fn admits(list: &AddressList, address: &str) -> bool {
        list.admits(address.parse().unwrap())
    }

    #[test]
    fn what_is_denied_stays_out_even_where_it_is_allowed() {
        let list = compiled(Some(&["office", "2001:db8::/32"]), &["192.0.2.7"]);
        assert!(
            admits(&list, "192.0.2.8") && admits(&list, "2001:db8::1") && admits(&list, "::ffff:192.0.2.8")
        );
        assert!(!admits(&list, "192.0.2.7") && !admits(&list, "198.51.100.1"));
        let open = compiled(None, &["private", "loopback"]);
        assert!(admits(&open, "198.51.100.1") && !admits(&open, "10.1.2.3") && !admits(&open, "::1"));
        let nobody = compiled(Some(&[]), &[]);
        assert!(!admits(&nobody, "198.51.100.1"), "an empty list lets nobody in");
    }

    #[test]
    fn a_list_without_networks_is_said_and_not_taken_for_an_empty_one() {
        let deny = vec![Networks::Named("gone".into())];
        let said = Addresses { allow: None, deny, mode: Mode::Enforce, origin: Origin::Default };
        assert!(AddressList::compile(&said, |_| None).unwrap_err().contains("`gone`"));
    }

    #[test]
    fn files_have_one_network_a_line_and_comments_and_a_wrong_line_spoils_them() {
        let text = "# DROP list\n1.10.16.0/20 ; SBL256894\n\n  192.0.2.7  # one address\n2001:db8::/32\n";
        let networks: Vec<String> = parse(text).unwrap().iter().map(IpNet::to_string).collect();
        assert_eq!(networks, ["1.10.16.0/20", "192.0.2.7/32", "2001:db8::/32"]);
        assert_eq!(
            parse("192.0.2.0/24\n192.0.2.0/33\n").unwrap_err(),
            "line 2: `192.0.2.0/33` is not a network"
        );
        assert_eq!(parse("").unwrap(), []);
        let many = "192.0.2.1\n".repeat(NETWORKS_MAX + 1);
        assert!(parse(&many).unwrap_err().contains("more than"));
    }
}
