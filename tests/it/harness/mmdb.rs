//! Writes small databases in MaxMind's format (version 2.0), IPv4 only, 24-bit records.

/// A database that knows the countries of these networks.
pub fn countries(networks: &[(&str, &str)]) -> Vec<u8> {
    let mut data = Vec::new();
    // Each node is two records: 0 stands for "nothing", odd numbers for data, even ones for nodes.
    let mut nodes = vec![[0usize; 2]];
    for (network, country) in networks {
        let network: ipnet::Ipv4Net = network.parse().unwrap();
        let at = data.len();
        data.push(map(1));
        string(&mut data, "country");
        data.push(map(1));
        string(&mut data, "iso_code");
        string(&mut data, country);
        let bits = u32::from(network.addr());
        let mut node = 0;
        for depth in 0..network.prefix_len() {
            let side = (bits >> (31 - depth) & 1) as usize;
            if depth + 1 == network.prefix_len() {
                nodes[node][side] = at * 2 + 1;
            } else {
                if nodes[node][side] == 0 {
                    nodes.push([0; 2]);
                    nodes[node][side] = (nodes.len() - 1) * 2;
                }
                node = nodes[node][side] / 2;
            }
        }
    }
    let record = |value: usize| match value {
        0 => nodes.len(),
        odd if odd % 2 == 1 => nodes.len() + 16 + odd / 2,
        even => even / 2,
    };
    let mut file: Vec<u8> = nodes
        .iter()
        .flatten()
        .flat_map(|value| (record(*value) as u32).to_be_bytes()[1..].to_vec())
        .collect();
    file.extend([0; 16]);
    file.extend(data);
    file.extend(b"\xab\xcd\xefMaxMind.com");
    metadata(&mut file, nodes.len() as u32);
    file
}

fn metadata(file: &mut Vec<u8>, nodes: u32) {
    file.push(map(9));
    string(file, "node_count");
    file.push(6 << 5 | 4);
    file.extend(nodes.to_be_bytes());
    for (name, value) in [
        ("record_size", 24u16),
        ("ip_version", 4),
        ("binary_format_major_version", 2),
        ("binary_format_minor_version", 0),
    ] {
        string(file, name);
        file.push(5 << 5 | 2);
        file.extend(value.to_be_bytes());
    }
    string(file, "build_epoch");
    file.extend([4, 2, 0, 0, 0, 1]); // uint64 of four bytes, type 9
    string(file, "database_type");
    string(file, "Test-Country");
    string(file, "languages");
    file.extend([1, 4]); // an array of one, type 11
    string(file, "en");
    string(file, "description");
    file.push(map(1));
    string(file, "en");
    string(file, "made by a test");
}

fn map(entries: u8) -> u8 {
    7 << 5 | entries
}

fn string(out: &mut Vec<u8>, text: &str) {
    assert!(text.len() < 29);
    out.push(2 << 5 | text.len() as u8);
    out.extend(text.as_bytes());
}
