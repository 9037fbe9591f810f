//! What Azure refuses of a rule.

use ipnet::IpNet;

use crate::plan::model::{Access, MAX_PRIORITY, MIN_PRIORITY, Peer, Rule};
use crate::providers::{CloudErrorKind, FirewallLimits};

type Refusal = (CloudErrorKind, String);

/// Judges `rule` against the others of its firewall; `outbound` is the number of rules and addresses there, `translates`
/// whether it leads packets on.
pub(super) fn rule(
    rule: &Rule,
    rules: &[Rule],
    outbound: (usize, usize),
    limits: FirewallLimits,
    translates: bool,
) -> Result<(), Refusal> {
    name(&rule.name, limits.name)?;
    if translates {
        return translating(rule, rules, limits);
    }
    if rule.translation.is_some() {
        return Err(invalid("it leads no packets on".to_owned()));
    }
    if rule.description.chars().count() > limits.description {
        return Err(invalid(format!("the description is longer than {} characters", limits.description)));
    }
    if !(MIN_PRIORITY..=MAX_PRIORITY).contains(&rule.priority) {
        return Err(invalid(format!(
            "priority {} is not from {MIN_PRIORITY} to {MAX_PRIORITY}",
            rule.priority
        )));
    }
    side("source", &rule.sources)?;
    side("destination", &rule.destinations)?;
    one_family(rule)?;
    for (what, ports) in [("source", &rule.source_ports), ("destination", &rule.ports)] {
        if ports.is_empty() {
            return Err(invalid(format!("the {what} ports are missing")));
        }
    }
    let others = || rules.iter().filter(|other| !other.name.eq_ignore_ascii_case(&rule.name));
    if let Some(other) = others().find(|other| other.priority == rule.priority) {
        return Err((
            CloudErrorKind::PriorityTaken,
            format!("priority {} is taken by rule {}", rule.priority, other.name),
        ));
    }
    if others().count() + outbound.0 + 1 > limits.rules {
        return Err((CloudErrorKind::Full, format!("there are {} rules already", limits.rules)));
    }
    let size = |rule: &Rule| rule.sources.len() + rule.destinations.len();
    if others().map(size).sum::<usize>() + outbound.1 + size(rule) > limits.addresses {
        return Err((CloudErrorKind::Full, format!("there are {} addresses already", limits.addresses)));
    }
    Ok(())
}

/// As an Azure Firewall has it: allows alone, of IPv4, without priorities of their own.
fn translating(rule: &Rule, rules: &[Rule], limits: FirewallLimits) -> Result<(), Refusal> {
    side("source", &rule.sources)?;
    side("destination", &rule.destinations)?;
    let six = networks(&rule.sources).chain(networks(&rule.destinations)).any(|net| net.addr().is_ipv6());
    let fits = rule.access == Access::Allow && !rule.ports.is_empty() && !six;
    if !fits || (rule.translation.is_some() && rule.destinations.len() != 1) {
        return Err(invalid("an Azure Firewall holds no such rule".to_owned()));
    }
    let others = rules.iter().filter(|other| !other.name.eq_ignore_ascii_case(&rule.name));
    if others.count() + 1 > limits.rules {
        return Err((CloudErrorKind::Full, format!("there are {} rules already", limits.rules)));
    }
    Ok(())
}

fn invalid(message: String) -> Refusal {
    (CloudErrorKind::Invalid, message)
}

fn name(name: &str, longest: usize) -> Result<(), Refusal> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let fits = name.len() <= longest
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(word)
        && name.chars().all(|c| word(c) || c == '.' || c == '-');
    if fits { Ok(()) } else { Err(invalid(format!("{name:?} is not a name of a rule"))) }
}

fn side(what: &str, peers: &[Peer]) -> Result<(), Refusal> {
    if peers.is_empty() {
        return Err(invalid(format!("the {what} is missing")));
    }
    if peers.len() > 1 && peers.iter().any(|peer| matches!(peer, Peer::Any | Peer::Tag(_))) {
        return Err(invalid(format!("a list of {what}s holds * or a service tag")));
    }
    let groups = peers.iter().filter(|peer| matches!(peer, Peer::Group(_))).count();
    if groups > 10 || (groups > 0 && groups < peers.len()) {
        return Err(invalid(format!("the {what}s mix groups and networks, or are more than 10 groups")));
    }
    if peers.iter().any(|peer| matches!(peer, Peer::Unknown(_))) {
        return Err(invalid(format!("a {what} is of no known kind")));
    }
    let mut networks: Vec<IpNet> = networks(peers).collect();
    networks.sort();
    if let Some(pair) = networks.windows(2).find(|pair| pair[0].contains(&pair[1])) {
        return Err(invalid(format!("the {what}s {} and {} overlap", pair[0], pair[1])));
    }
    Ok(())
}

fn one_family(rule: &Rule) -> Result<(), Refusal> {
    let mut six = networks(&rule.sources).chain(networks(&rule.destinations)).map(|net| net.addr().is_ipv6());
    match six.next() {
        Some(first) if six.any(|other| other != first) => {
            Err(invalid("the addresses are of different families".into()))
        }
        Some(_) | None => Ok(()),
    }
}

fn networks(peers: &[Peer]) -> impl Iterator<Item = IpNet> {
    peers.iter().filter_map(|peer| if let Peer::Net(net) = peer { Some(*net) } else { None })
}
