//! What can go wrong, when, and how long.

use std::time::Duration;

use serde_json::{Value, json};

use crate::gateway::Trouble;
use crate::scenario::Scenario;
use crate::story::CLIENT;

/// One column of the table.
#[derive(Debug, Clone)]
pub struct Fault {
    pub name: String,
    pub what: What,
    /// From when on, and until when, in seconds after the requests were made.
    pub from: u64,
    pub until: u64,
    /// How many replicas run.
    pub replicas: usize,
    /// How much longer than it should a packet may pass.
    pub bound: Duration,
    /// Which closes it may hold up.
    pub holds_up: HoldsUp,
    pub place: Place,
    /// Whether others take locks and rules away, so that strangers get in until that is mended.
    pub gaps: bool,
}

impl Fault {
    /// How often it strikes.
    pub fn strikes(&self) -> usize {
        match &self.what {
            What::CrashAtApi(numbers) | What::CrashAtCloud(numbers) => numbers.len(),
            What::Nothing => 0,
            _ => 1,
        }
    }

    /// Whether it leaves a scenario alone.
    pub fn spares(&self, scenario: Scenario) -> bool {
        match self.place {
            Place::Everywhere => false,
            Place::Groups => scenario == Scenario::Firewall,
            Place::SharedGroup => scenario.group() != Scenario::Lock.group(),
        }
    }
}

/// Where it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Everywhere,
    /// Not at the Azure Firewall: a write of it that lands late or never ends is waited for for a quarter of an hour.
    Groups,
    /// At the group that most scenarios share, where somebody else writes.
    SharedGroup,
}

/// Which closes wait, for good reason, until nothing goes wrong any more, and have their time from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldsUp {
    /// None.
    Nothing,
    /// Those that somebody asks for: nobody can hear of that meanwhile. A deadline is a deadline.
    WhatIsAsked,
    /// All.
    Everything,
}

/// What is done to whom.
#[derive(Debug, Clone)]
pub enum What {
    Nothing,
    /// The controller is killed when the API server has done its write of this number, before it hears of that; and the
    /// one that is started then at the next number.
    CrashAtApi(Vec<u64>),
    /// The same of the cloud.
    CrashAtCloud(Vec<u64>),
    KillHolder,
    PauseHolder,
    /// The Lease is deleted, again and again: everybody may have it.
    LoseLease,
    Api(Trouble),
    /// Faults of the simulator.
    Cloud(Vec<Value>),
    /// The same, of tokens that live for so long.
    Tokens(&'static str, Vec<Value>),
    /// The same, and the holder is killed under it after so long.
    KillHolderUnder(Duration, Vec<Value>),
    /// What the cloud says what time it is.
    CloudClock(&'static str),
    /// The controller's own clock is set, to so many seconds ahead.
    WallClock(i64),
    /// One of another cluster locks a port on the same group, and opens it from time to time.
    AnotherCluster,
    ResourceLock,
    /// Reads the group early, and writes it as it was when all is closed.
    BringBack,
    /// Reads the group and writes it again at once, over and over.
    Rewrite,
    /// Writes the group as it was before us, over and over.
    Erase,
    /// Copies and edits rules of ours.
    Meddle,
    Revoke,
}

/// A write that is answered by whoever runs: the time of a start, of a round and of a write.
const BOUND: Duration = Duration::from_secs(20);

fn fault(name: &str, what: What, from: u64, until: u64) -> Fault {
    let (replicas, bound, gaps, holds_up) = (1, BOUND, false, HoldsUp::Nothing);
    let place = match what {
        What::AnotherCluster
        | What::ResourceLock
        | What::BringBack
        | What::Rewrite
        | What::Erase
        | What::Meddle => Place::SharedGroup,
        _ => Place::Everywhere,
    };
    Fault { name: name.to_owned(), what, from, until, replicas, bound, holds_up, place, gaps }
}

fn holds_up(holds_up: HoldsUp, fault: Fault) -> Fault {
    Fault { holds_up, ..fault }
}

/// Strikes every third of these calls.
fn third(method: &str, path: &str, effect: &Value) -> Vec<Value> {
    let one = |n: u64| {
        let mut rule =
            json!({"path": path, "caller": CLIENT, "nth": 1 + 3 * n, "count": 1, "effect": effect});
        if !method.is_empty() {
            rule["method"] = json!(method);
        }
        rule
    };
    (0..60).map(one).collect()
}

const RULES: &str = "/securityRules/portcullis|/ruleCollectionGroups/portcullis";
const ARM: &str = "^/subscriptions/";

/// Every fault but for the crashes after each write.
pub fn all() -> Vec<Fault> {
    let every = |path: &str, effect: Value| vec![json!({"path": path, "caller": CLIENT, "effect": effect})];
    let late =
        third("PUT", "/securityRules/portcullis-[0-9a-f]+-allow", &json!({"lateWrite": {"after": "15s"}}));
    let tokens = vec![json!({"path": "oauth2", "effect": {"status": {"status": 503}}})];
    let mut all = vec![
        fault("none", What::Nothing, 0, 0),
        fault("api: writes refused with 409", What::Api(Trouble::Refused(409)), 0, 45),
        fault("api: writes refused with 429", What::Api(Trouble::Refused(429)), 0, 45),
        fault("api: writes refused with 500", What::Api(Trouble::Refused(500)), 0, 45),
        fault("api: writes refused by a quota (403)", What::Api(Trouble::Refused(403)), 0, 45),
        fault("api: answers of writes lost", What::Api(Trouble::AnswerLost), 0, 45),
        fault("api: answers of writes lost, once granted", What::Api(Trouble::AnswerLost), 4, 45),
        fault("api: slow (1 s a call)", What::Api(Trouble::Slow(Duration::from_secs(1))), 0, 45),
        fault("api: every third read refused with 500", What::Api(Trouble::ReadsRefused(500)), 4, 45),
        holds_up(HoldsUp::WhatIsAsked, fault("api: away over deadlines", What::Api(Trouble::Away), 6, 40)),
        holds_up(HoldsUp::WhatIsAsked, fault("api: watches frozen", What::Api(Trouble::Frozen), 4, 40)),
        fault("api: watches dropped every 2 s", What::Api(Trouble::Dropped(Duration::from_secs(2))), 0, 45),
        fault("api: watches answered with 410", What::Api(Trouble::Gone), 0, 40),
        fault("api: lists rewound", What::Api(Trouble::Rewound), 6, 40),
        fault("api: the lease deleted every 3 s", What::LoseLease, 0, 40),
        holds_up(
            HoldsUp::Everything,
            fault(
                "cloud: throttled, Retry-After 20 s",
                What::Cloud(every(
                    ARM,
                    json!({"status": {"status": 429, "code": "TooManyRequests", "retryAfter": 20}}),
                )),
                6,
                26,
            ),
        ),
        fault(
            "cloud: every third write 503",
            What::Cloud(third("", RULES, &json!({"status": {"status": 503}}))),
            0,
            45,
        ),
        fault(
            "cloud: every third read 500",
            What::Cloud(third("GET", ARM, &json!({"status": {"status": 500}}))),
            0,
            45,
        ),
        fault(
            "cloud: time-out after commit",
            What::Cloud(third("", RULES, &json!({"timeoutAfterCommit": "2s"}))),
            0,
            45,
        ),
        fault("cloud: reset after commit", What::Cloud(third("", RULES, &json!("resetAfterCommit"))), 0, 45),
        fault(
            "cloud: dropped before commit",
            What::Cloud(third("", RULES, &json!("dropBeforeCommit"))),
            0,
            45,
        ),
        Fault {
            place: Place::Groups,
            ..fault("cloud: writes that land 15 s late", What::Cloud(late.clone()), 0, 45)
        },
        holds_up(
            HoldsUp::Everything,
            fault(
                "cloud: away over deadlines",
                What::Cloud(every(ARM, json!({"status": {"status": 503}}))),
                6,
                40,
            ),
        ),
        Fault {
            bound: Duration::from_secs(40),
            holds_up: HoldsUp::Everything,
            ..fault("cloud: silent over deadlines", What::Cloud(every(ARM, json!({"delay": "20s"}))), 6, 30)
        },
        fault(
            "cloud: operations that fail",
            What::Cloud(third("", RULES, &json!({"operation": {"fails": "InternalServerError"}}))),
            0,
            45,
        ),
        Fault {
            place: Place::Groups,
            bound: Duration::from_secs(40),
            ..fault(
                "cloud: polls that never end",
                What::Cloud(third("", "/securityRules/portcullis", &json!({"operation": {"never": true}}))),
                0,
                45,
            )
        },
        Fault {
            // Each of them holds up those behind it for 20 s, and may be the second, or itself the third.
            place: Place::Groups,
            bound: Duration::from_secs(60),
            ..fault(
                "cloud: polls of removals that never end",
                What::Cloud(third(
                    "DELETE",
                    "/securityRules/portcullis",
                    &json!({"operation": {"never": true}}),
                )),
                0,
                45,
            )
        },
        fault(
            "cloud: stale reads (10 s)",
            What::Cloud(every("/networkSecurityGroups/net$", json!({"staleRead": {"age": "10s"}}))),
            0,
            45,
        ),
        holds_up(HoldsUp::Everything, fault("cloud: no tokens", What::Tokens("24s", tokens), 6, 40)),
        holds_up(HoldsUp::Everything, fault("cloud: rights revoked and restored", What::Revoke, 6, 40)),
        fault("cloud: clock 90 s ahead", What::CloudClock("90s"), 4, 45),
        fault("cloud: clock 90 s behind", What::CloudClock("-90s"), 4, 45),
        fault("the controller's clock set 50 min back", What::WallClock(-3000), 6, 45),
        fault("the controller's clock set 50 min ahead", What::WallClock(3000), 6, 45),
        fault("others: another cluster on the same group", What::AnotherCluster, 0, 45),
        fault("others: a resource lock against deletion", What::ResourceLock, 6, 40),
        holds_up(HoldsUp::Everything, fault("others: a closed rule brought back", What::BringBack, 5, 50)),
        fault("others: the group rewritten every second", What::Rewrite, 0, 45),
        Fault { gaps: true, ..fault("others: an eraser every 10 s", What::Erase, 0, 40) },
        Fault {
            gaps: true,
            holds_up: HoldsUp::Everything,
            ..fault("others: rules copied and edited", What::Meddle, 4, 40)
        },
    ];
    let late = What::KillHolderUnder(Duration::from_secs(4), late);
    for (name, what, from) in [
        ("the holder killed", What::KillHolder, 6),
        ("the holder paused for 25 s", What::PauseHolder, 6),
        ("the lease deleted every 3 s", What::LoseLease, 6),
        ("the holder killed, its writes land 15 s late", late, 0),
    ] {
        // Where the holder is gone, or asleep, the other one takes 17 s until it has the lease, and 10 s for what is due.
        let place = if matches!(what, What::KillHolderUnder(..)) { Place::Groups } else { Place::Everywhere };
        all.push(Fault {
            place,
            replicas: 2,
            bound: Duration::from_secs(30),
            ..fault(&format!("two replicas: {name}"), what, from, 31)
        });
    }
    all
}

/// A crash after each write of the story, as many as one without faults has; two in each story, half of it apart.
pub fn crashes(api: u64, cloud: u64) -> Vec<Fault> {
    let series = |which: &str, writes: u64, what: fn(Vec<u64>) -> What| -> Vec<Fault> {
        let half = writes.div_ceil(2);
        let one = |first: u64| {
            let numbers: Vec<u64> = [first, first + half].into_iter().filter(|k| *k <= writes).collect();
            let said = numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", then ");
            fault(&format!("crash after {which} write {said}"), what(numbers), 0, 50)
        };
        (1..=half).map(one).collect()
    };
    let at_api = series("API", api, What::CrashAtApi);
    at_api.into_iter().chain(series("cloud", cloud, What::CrashAtCloud)).collect()
}
