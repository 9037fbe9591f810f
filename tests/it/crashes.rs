//! SIGKILL at any moment, many times over, while many grants live and end.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use crate::walk::{Play, moment};

const KILLS: usize = 50;
const REQUESTS: usize = 24;
const TIME: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_over_overlapping_grants_leave_no_packet_past_expiry() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    for machine in ["web-1", "win-1"] {
        play.policy(machine, &{
            let mut spec = play.one_machine(machine);
            spec["limits"] = serde_json::json!({"activePerRequester": 100});
            spec
        })
        .await;
        play.condition(&format!("jitpol/{machine}"), "Ready", "True").await;
    }
    let locked = Timestamp::now();
    let begun = Instant::now();
    let source = |number: usize| format!("203.0.113.{}", number + 1);
    let target = |number: usize| if number.is_multiple_of(3) { ("win-1", 3389) } else { ("web-1", 22) };
    let mut sent = 0;
    for kill in 0..KILLS {
        assert!(begun.elapsed() < TIME, "only {kill} kills in {TIME:?}");
        while sent < REQUESTS && sent * KILLS <= kill * REQUESTS {
            let (machine, port) = target(sent);
            let duration = format!("{}s", 30 + sent % 5 * 7);
            play.request(&format!("r-{sent}"), machine, machine, port, &source(sent), &duration).await;
            sent += 1;
        }
        // From dying in the middle of its start to living through whole openings and closings.
        tokio::time::sleep(Duration::from_millis(rand::random_range(50..2500))).await;
        controller.kill();
        controller.restart_unready().unwrap();
    }
    println!("{KILLS} kills in {:?}", begun.elapsed());
    controller.wait_ready(Duration::from_secs(60)).await.unwrap();
    let mut opened = 0;
    for number in 0..REQUESTS {
        let request =
            play.reaches(&format!("jitreq/r-{number}"), "/status/settled", "Some(Bool(true))").await;
        let (machine, port) = target(number);
        let exposed = play.exposed(&source(number), machine, port, locked).await;
        opened += usize::from(!exposed.is_empty());
        if exposed.is_empty() {
            continue;
        }
        let (granted, expires) =
            (moment(&request, "/status/grantedAt"), moment(&request, "/status/expiresAt"));
        for (from, to) in exposed {
            let to = to.unwrap_or_else(|| panic!("r-{number} is still open: {:#}", request["status"]));
            assert!(from >= granted, "r-{number} was open before its grant");
            // While the program is dead nothing closes; it is restarted at once, so the bound is its start and a write.
            let late = to.duration_since(expires);
            assert!(late < SignedDuration::from_secs(20), "r-{number} was open {late:#} past its deadline");
        }
        assert!(
            request["status"]["rules"]
                .as_array()
                .is_none_or(|rules| { rules.iter().all(|rule| rule["state"] == "Absent") })
        );
    }
    assert!(
        opened >= REQUESTS / 3,
        "only {opened} of {REQUESTS} were ever open: the test would prove nothing"
    );
    println!("{opened} of {REQUESTS} grants were open");
    assert_eq!(play.exposed("198.51.100.23", "web-1", 22, locked).await, []);
    assert_eq!(play.exposed("198.51.100.23", "win-1", 3389, locked).await, []);
}
