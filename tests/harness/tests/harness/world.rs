//! The simulator and the sample world in it.

use portcullis_harness::simulator::SimulatorOptions;
use portcullis_harness::world::{FOREIGN_RDP, FOREIGN_SSH};
use portcullis_harness::{Simulator, World};
use reqwest::{Method, StatusCode};

/// An address on the Internet.
const STRANGER: &str = "198.51.100.23";

#[tokio::test]
async fn before_any_lock_the_rules_of_others_let_management_ports_in() -> anyhow::Result<()> {
    let simulator = Simulator::start(SimulatorOptions::default()).await?;
    let world = World::create(&simulator).await?;
    assert_eq!(world.machines().len(), 6);

    let web = world.machine("web-1")?;
    let win = world.machine("win-1")?;
    for (machine, port, rule, firewalls) in [(web, 22, FOREIGN_SSH, 2), (win, 3389, FOREIGN_RDP, 1)] {
        let public = machine.public_address.as_deref().unwrap_or_default();
        for destination in [public, &machine.private_address] {
            let verdict = simulator.probe(STRANGER, destination, port, "Tcp").await?;
            assert!(verdict.allowed, "{}: {verdict:?}", machine.name);
            let rules = verdict.decided_by.iter().filter(|decider| decider["rule"] == rule).count();
            assert_eq!(rules, firewalls, "{}: {verdict:?}", machine.name);
        }
        let closed = simulator.probe(STRANGER, public, 5985, "Tcp").await?;
        assert!(!closed.allowed, "{}: {closed:?}", machine.name);
    }
    for (machine, open) in [("fleet-1", true), ("fleet-3", true)] {
        let verdict = simulator.probe(STRANGER, &world.machine(machine)?.private_address, 22, "Tcp").await?;
        assert_eq!(verdict.allowed, open, "{machine}: {verdict:?}");
    }
    Ok(())
}

#[tokio::test]
async fn azure_is_spoken_with_tokens_and_not_without() -> anyhow::Result<()> {
    let simulator = Simulator::start(SimulatorOptions::default()).await?;
    let world = World::create(&simulator).await?;
    let nsg = world.nsg("web", "web-1");
    let url = format!("{}{nsg}?api-version=2024-05-01", simulator.announcement().url);
    let answer = reqwest::Client::builder().no_proxy().build()?.get(url).send().await?;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);

    let read = simulator.get(&nsg).await?;
    let rules = read["properties"]["securityRules"].as_array().map(Vec::len);
    assert_eq!(rules, Some(2), "{read}");
    let rule = format!("{nsg}/securityRules/{FOREIGN_SSH}");
    simulator.delete(&rule).await?;
    assert_eq!(simulator.arm(Method::GET, &rule, None).await?.0, StatusCode::NOT_FOUND);
    Ok(())
}
