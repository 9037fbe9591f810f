//! Where new addresses come from: public pools, and what is free in a subnet.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;

use super::rule::network;
use crate::arm::store::Store;

/// Hands out public addresses: 198.18.0.0/15 and 2001:db8:a2::/64, which nobody else uses.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    v4: u32,
    v6: u128,
    /// Addresses that were asked for by name: the pool goes around them.
    named: HashSet<IpAddr>,
}

impl Pools {
    pub(crate) fn name(&mut self, address: IpAddr) {
        self.named.insert(address);
    }

    pub(crate) fn public(&mut self, v6: bool) -> IpAddr {
        loop {
            let next = if v6 {
                self.v6 += 1;
                let base = u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0xa2, 0, 0, 0, 0, 0));
                IpAddr::V6(Ipv6Addr::from(base + self.v6))
            } else {
                self.v4 += 1;
                let base = u32::from(Ipv4Addr::new(198, 18, 0, 0));
                IpAddr::V4(Ipv4Addr::from(base + self.v4 % (1 << 17)))
            };
            if !self.named.contains(&next) {
                return next;
            }
        }
    }
}

/// The prefixes of a virtual network's address space or of a subnet, whichever form they are written in.
pub(crate) fn prefixes(properties: &Value) -> Vec<IpNet> {
    let lists = [&properties["addressSpace"]["addressPrefixes"], &properties["addressPrefixes"]];
    let many = lists.into_iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
    let mut found: Vec<IpNet> = many.filter_map(network).collect();
    if let Some(one) = properties["addressPrefix"].as_str().and_then(network)
        && !found.contains(&one)
    {
        found.push(one);
    }
    found
}

/// Private addresses that network interfaces hold in a subnet.
pub(crate) fn used_in(store: &Store, subnet: &str, except: &str) -> HashSet<IpAddr> {
    let mut used = HashSet::new();
    for nic in store.referrers(subnet).filter(|k| *k != except).filter_map(|k| store.get(k)) {
        for config in nic.properties()["ipConfigurations"].as_array().into_iter().flatten() {
            let properties = &config["properties"];
            let here = properties["subnet"]["id"].as_str().is_some_and(|s| s.eq_ignore_ascii_case(subnet));
            if here && let Some(Ok(address)) = properties["privateIPAddress"].as_str().map(str::parse) {
                used.insert(address);
            }
        }
    }
    used
}

/// The first free address of a prefix; Azure keeps the first four and the last for itself.
pub(crate) fn free_in(prefix: &IpNet, used: &HashSet<IpAddr>) -> Option<IpAddr> {
    match prefix {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()) + 4, u32::from(net.broadcast()));
            (first..last).map(|a| IpAddr::V4(Ipv4Addr::from(a))).find(|a| !used.contains(a))
        }
        IpNet::V6(net) => {
            let first = u128::from(net.network()) + 4;
            let last = u128::from(net.broadcast());
            (first..last).map(|a| IpAddr::V6(Ipv6Addr::from(a))).find(|a| !used.contains(a))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_address_of_a_subnet_is_its_fifth() {
        let net: IpNet = "10.0.0.0/29".parse().unwrap();
        let mut used = HashSet::new();
        for last in 4..7 {
            let address = free_in(&net, &used).unwrap();
            assert_eq!(address, IpAddr::from([10, 0, 0, last]));
            used.insert(address);
        }
        assert_eq!(free_in(&net, &used), None);
    }
}
