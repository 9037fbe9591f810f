//! How sources come to a machine behind a firewall with DNAT, and by which of its ports.
//!
//! - What the machine answers goes by the routes of its subnet: who is answered by way of a firewall comes by way of it.
//! - From the internet, packets come to a public address of the firewall, which leads them on: the machine sees an address
//!   of the firewall's subnet. From private networks they come as they are.
//! - The port on the public address follows from the machine's address and port, so that it is the same for every grant;
//!   where somebody else has it, the next free one is taken.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;
use sha2::{Digest, Sha256};

use super::{FirewallView, Judgement, PolicyView, PortMapping};
use crate::api::values::{ArmId, PortRange, Protocol};
use crate::api::{FirewallSource, JitAccessRequest, Reason};
use crate::plan::dnat;
use crate::plan::lifecycle;
use crate::plan::model::{Address, DnatRule, FirewallHop, FirewallId, Hop, Translation};
use crate::plan::sources::AddressSet;

/// The ports that packets are led on from. Azure takes none from 64000 on.
const FIRST: u16 = 50_000;
const COUNT: u16 = 14_000;
/// The most ports of one range: a firewall leads on port by port.
const MAX_PORTS: usize = 32;
/// Who is in these networks comes as he is.
static PRIVATE: LazyLock<AddressSet> = LazyLock::new(|| {
    let nets = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"];
    AddressSet::of_nets(&nets.iter().filter_map(|text| text.parse().ok()).collect::<Vec<IpNet>>())
});

/// How a source comes to an address.
#[derive(Clone, Copy, Debug)]
pub(super) enum By<'a> {
    /// Past no firewall that leads packets on.
    Direct,
    /// Through one, as it is.
    Routed(&'a FirewallHop),
    /// To a public address of one, which leads it on.
    Translated(&'a FirewallHop),
}

/// How a source comes to an address.
pub(super) fn by(address: &Address, source: IpNet) -> By<'_> {
    let hop = address.hops.iter().filter_map(Hop::firewall).find(|hop| hop.carries(source));
    match hop {
        Some(hop) if PRIVATE.contains(&AddressSet::of_nets([&source])) => By::Routed(hop),
        Some(hop) => By::Translated(hop),
        None => By::Direct,
    }
}

/// What could not be read of the way to an address, if that may be known again soon.
pub(super) fn unread(address: &Address) -> Result<(), Judgement> {
    let unread = address.hops.iter().find_map(|hop| match hop {
        Hop::Unread { why, .. } => Some(why.clone()),
        Hop::Firewall(_) | Hop::Appliance { .. } | Hop::Hub { .. } => None,
    });
    unread.map_or(Ok(()), |why| Err(Judgement::Unknown(Reason::CloudUnavailable, why)))
}

/// What the machine sees of a source that comes so.
pub(super) fn seen_as(by: By<'_>, source: IpNet, model: FirewallSource) -> Vec<IpNet> {
    match (by, model) {
        (By::Translated(hop), FirewallSource::Auto | FirewallSource::Translated)
        | (By::Routed(hop), FirewallSource::Translated) => hop.subnets.clone(),
        (By::Direct | By::Routed(_), _) | (By::Translated(_), FirewallSource::Original) => vec![source],
    }
}

/// Finds ports for what is led on, for one request.
pub(super) struct Ports<'a> {
    request: &'a JitAccessRequest,
    firewalls: &'a BTreeMap<FirewallId, FirewallView>,
    /// What this request has taken already.
    taken: Vec<(FirewallId, PortMapping)>,
}

impl<'a> Ports<'a> {
    pub(super) fn new(request: &'a JitAccessRequest, named: &'a PolicyView) -> Self {
        Self { request, firewalls: &named.firewalls, taken: Vec::new() }
    }

    /// Where packets come in that are led on to these ports of an address.
    pub(super) fn find(
        &mut self,
        hop: &FirewallHop,
        to: IpAddr,
        range: PortRange,
        protocol: Protocol,
    ) -> Result<Translation, Judgement> {
        let firewall = hop.writes_to();
        let count = usize::from(range.last() - range.first()) + 1;
        if count > MAX_PORTS {
            return Err(Judgement::Refused(
                Reason::TooLarge,
                format!(
                    "{} leads on port by port: ask for at most {MAX_PORTS} ports in a row, not {range}",
                    hop.id
                ),
            ));
        }
        let known = self.known(&firewall, to, range, protocol);
        if let Some(known) = known.filter(|_| self.is_granted()) {
            return Ok(known);
        }
        let view = self.ready(&firewall)?;
        if hop.publics.is_empty() {
            return Err(unfit(format!("{} has no public IPv4 address to lead packets on from", hop.id)));
        }
        if hop.subnets.is_empty() {
            return Err(unfit(format!("the subnet of {} has no IPv4 prefix that could be read", hop.id)));
        }
        let led = |from| PortMapping { from, to, ports: vec![range], name: String::new(), closing: false };
        let start = preferred(to, range, protocol);
        let ports = (0..COUNT).map(|step| FIRST + (start + step) % COUNT);
        let fits = |port: &u16| usize::from(*port) + count <= usize::from(FIRST) + usize::from(COUNT);
        let ports: Vec<u16> = ports.filter(fits).collect();
        let all = hop
            .publics
            .iter()
            .flat_map(|address| ports.iter().map(|port| Translation { address: *address, port: *port }));
        let found = known
            .into_iter()
            .chain(all)
            .find(|from| self.is_free(view, &firewall, &led(*from), count, protocol));
        match found {
            Some(from) => {
                self.taken.push((firewall, led(from)));
                Ok(from)
            }
            None => Err(unfit(format!(
                "no port from {FIRST} to {} is free on the public addresses of {}",
                FIRST + COUNT - 1,
                hop.id
            ))),
        }
    }

    /// What is known of a firewall that something is to be opened on; a live grant stays without.
    pub(super) fn ready(&self, firewall: &FirewallId) -> Result<&'a FirewallView, Judgement> {
        static NOTHING: LazyLock<FirewallView> = LazyLock::new(FirewallView::default);
        if self.is_granted() {
            return Ok(self.firewalls.get(firewall).unwrap_or(&NOTHING));
        }
        let view = self.firewalls.get(firewall);
        let unfit = view.and_then(|view| view.observed.as_ref()?.translating.as_ref()?.unfit.clone());
        if let Some(why) = unfit {
            return Err(Judgement::Impossible(why.reason, why.message));
        }
        match view {
            Some(view) if view.observed.is_some() => Ok(view),
            Some(FirewallView { problem: Some((reason @ Reason::NotPermitted, why)), .. }) => {
                Err(Judgement::Impossible(*reason, why.clone()))
            }
            Some(FirewallView { problem: Some((reason, why)), .. }) => {
                Err(Judgement::Unknown(*reason, why.clone()))
            }
            Some(_) | None => Err(Judgement::Unknown(
                Reason::Progressing,
                format!("{firewall} on the way has not been read yet"),
            )),
        }
    }

    /// Whether nobody else is led on to these ports of a machine by this firewall: he would be let in by what is opened
    /// for the firewall's subnet.
    pub(super) fn alone(
        &self,
        hop: &FirewallHop,
        to: IpAddr,
        (ports, protocol): (&[PortRange], Protocol),
        sources: &AddressSet,
    ) -> Result<(), Judgement> {
        let firewall = hop.writes_to();
        let view = self.ready(&firewall)?;
        let translating = view.observed.as_ref().and_then(|observed| observed.translating.as_ref());
        let leading = translating.iter().flat_map(|it| &it.translations);
        for dnat_rule in leading.filter(|dnat_rule| dnat::may_lead_to(dnat_rule, to, ports, protocol)) {
            if dnat::only_from(&dnat_rule.rule, sources) {
                continue;
            }
            // What is only called as ours are is somebody else's.
            let own = dnat_rule.part_of.as_ref().filter(|name| view.ours.contains(*name));
            let Some(part_of) = own else {
                return Err(Judgement::Impossible(
                    Reason::ForeignTranslation,
                    format!(
                        "rule {} of {} leads packets on to {to} too: the machine would see them come from the same \
                         subnet, and a grant would let them in",
                        dnat_rule.rule.name,
                        firewall.0.name()
                    ),
                ));
            };
            let is_live = |led: &PortMapping| led.name.eq_ignore_ascii_case(part_of) && !led.closing;
            if !self.is_granted() && !view.mappings.iter().any(is_live) {
                return Err(Judgement::Unknown(
                    Reason::Progressing,
                    format!(
                        "rule {part_of} of a grant that has ended is still being removed from {}",
                        firewall.0.name()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn is_granted(&self) -> bool {
        self.request.status.as_ref().is_some_and(|status| status.granted_at.is_some())
    }

    /// Where the status says that packets come in.
    fn known(
        &self,
        firewall: &FirewallId,
        to: IpAddr,
        range: PortRange,
        protocol: Protocol,
    ) -> Option<Translation> {
        let (to, range, protocol) = (to.to_string(), range.to_string(), protocol.to_string());
        let rules = self.request.status.iter().flat_map(|status| &status.rules);
        let mut same = rules.filter(|rule| {
            ArmId::parse(&rule.firewall).is_ok_and(|id| id == firewall.0)
                && rule.destinations == [to.as_str()]
                && rule.ports == [range.as_str()]
                && rule.protocol == protocol
        });
        same.find_map(|rule| lifecycle::translation(rule.translation.as_ref()?))
    }

    fn is_free(
        &self,
        view: &FirewallView,
        firewall: &FirewallId,
        wanted: &PortMapping,
        count: usize,
        protocol: Protocol,
    ) -> bool {
        let translating = view.observed.as_ref().and_then(|observed| observed.translating.as_ref());
        let mut standing = translating.iter().flat_map(|it| &it.translations);
        let is_ours = |dnat_rule: &DnatRule| {
            // The same way to the same port, for somebody else.
            dnat_rule.part_of.as_ref().is_some_and(|name| {
                view.mappings.iter().any(|led| led.name.eq_ignore_ascii_case(name) && led.shares(wanted))
            })
        };
        let other = self.taken.iter().filter(|(id, _)| id == firewall).map(|(_, led)| led);
        !standing
            .any(|dnat_rule| dnat::may_take(dnat_rule, wanted.from, count, protocol) && !is_ours(dnat_rule))
            && !other.chain(&view.mappings).any(|led| led.meets(wanted) && !led.shares(wanted))
    }
}

impl PortMapping {
    fn range(&self) -> (u32, u32) {
        let count: u32 =
            self.ports.iter().map(|range| u32::from(range.last()) - u32::from(range.first()) + 1).sum();
        (u32::from(self.from.port), u32::from(self.from.port) + count.max(1))
    }

    /// Whether both take a port.
    fn meets(&self, other: &Self) -> bool {
        let ((first, end), (other_first, other_end)) = (self.range(), other.range());
        self.from.address == other.from.address && first < other_end && other_first < end
    }

    /// Whether both lead the same ports on to the same ports.
    fn shares(&self, other: &Self) -> bool {
        self.from == other.from && self.to == other.to && self.ports == other.ports
    }
}

fn unfit(message: String) -> Judgement {
    Judgement::Impossible(Reason::FirewallUnfit, message)
}

/// Where the search for a port begins: the same for every grant of this port of this machine.
fn preferred(to: IpAddr, range: PortRange, protocol: Protocol) -> u16 {
    let digest = Sha256::digest(format!("{to} {range} {protocol}").as_bytes());
    u16::from_be_bytes([digest[0], digest[1]]) % COUNT
}
