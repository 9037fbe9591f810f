//! What a service tag means for one virtual network.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{index::Index, plane::Facts};
use crate::resources::rule::network;

/// The host's own address, from which load balancers probe.
const HOST_V4: [u8; 4] = [168, 63, 129, 16];
const HOST_V6: &str = "fe80::1234:5678:9abc";

/// Prefixes of tags such as `Storage`, given through the control door. A tag without any matches nothing.
#[derive(Debug, Default)]
pub(crate) struct ServiceTags {
    prefixes: BTreeMap<String, Vec<IpNet>>,
}

impl ServiceTags {
    pub(crate) fn set(&mut self, tag: &str, prefixes: &[String]) -> Result<(), String> {
        let nets: Result<Vec<IpNet>, String> = prefixes
            .iter()
            .map(|p| network(p).ok_or_else(|| format!("{tag}: {p:?} is not an address or a CIDR")))
            .collect();
        self.prefixes.insert(tag.to_lowercase(), nets?);
        Ok(())
    }
}

/// Where a rule is evaluated: tags mean different things in different networks.
pub(crate) struct Place<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) index: &'a Index,
    pub(crate) tags: &'a ServiceTags,
    pub(crate) network: &'a str,
    pub(crate) subnet: &'a str,
}

impl Place<'_> {
    /// Does this tag, `*` included, contain the address here?
    pub(crate) fn tag_contains(&self, tag: &str, address: IpAddr) -> bool {
        match tag.to_lowercase().as_str() {
            "*" | "any" => true,
            "virtualnetwork" => self.virtual_network_contains(address),
            "azureloadbalancer" => is_host(address),
            // Public addresses outside the network and its peers. A default route makes an address *also* part of
            // VirtualNetwork: the first matching rule decides.
            "internet" => !self.networks_contain(address) && is_public(address),
            other => {
                self.tags.prefixes.get(other).is_some_and(|nets| nets.iter().any(|n| n.contains(&address)))
            }
        }
    }

    fn networks_contain(&self, address: IpAddr) -> bool {
        let own = self.index.space(self.network);
        let peers = self.index.peers(self.network);
        own.iter().any(|n| n.contains(&address))
            || peers.iter().any(|peer| self.index.space(peer).iter().any(|n| n.contains(&address)))
    }

    /// The network, its peers, the host, and every prefix of the subnet's user-defined routes.
    fn virtual_network_contains(&self, address: IpAddr) -> bool {
        is_host(address)
            || self.networks_contain(address)
            || self.index.routes(self.facts, self.subnet).iter().any(|n| n.contains(&address))
    }
}

fn is_host(address: IpAddr) -> bool {
    address == IpAddr::from(HOST_V4) || address.to_string() == HOST_V6
}

/// Reachable from the internet by its form.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let [first, second, ..] = a.octets();
            let shared = first == 100 && (64..128).contains(&second);
            !(a.is_private() || a.is_loopback() || a.is_link_local() || a.is_unspecified() || shared)
                && first < 224
                && !is_host(address)
        }
        IpAddr::V6(a) => {
            let first = a.segments()[0];
            !(a.is_loopback() || a.is_unspecified())
                && first & 0xfe00 != 0xfc00
                && first & 0xffc0 != 0xfe80
                && first & 0xff00 != 0xff00
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_and_host_addresses_are_not_public() {
        for private in
            ["10.1.2.3", "172.31.0.1", "192.168.0.1", "100.64.0.1", "168.63.129.16", "fd00::1", "fe80::1"]
        {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["203.0.113.7", "198.18.0.1", "100.128.0.1", "2001:db8::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
