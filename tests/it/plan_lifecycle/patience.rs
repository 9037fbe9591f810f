//! How long a request waits: by its policy's own times, and never ended by what is merely not known.

use super::*;

fn hours(count: i64) -> Timestamp {
    start() + SignedDuration::from_hours(count)
}

/// Where a request in `state` comes to when it is looked at after so long, under a policy that says 8 h.
fn comes_to(state: State, judged: &Judgement, at: Timestamp, pending_timeout: Option<u64>) -> State {
    let mut request = request(3600);
    request.status = Some(portcullis::api::JitAccessRequestStatus {
        state: Some(state.as_str().into()),
        plan_hash: Some("a".repeat(64)),
        approved_at: Some(Time(start())),
        ..Default::default()
    });
    let cluster = Cluster::new("test", &[]);
    let tally = Tally::default();
    let world = World {
        request: &request,
        judgement: judged,
        tally: &tally,
        admission: &IN_FORCE,
        pending_timeout: pending_timeout.map(std::time::Duration::from_secs),
        cluster: &cluster,
        seen: &|_| Seen::Nothing,
        no_room: Some((Reason::LimitReached, "waits".to_owned())),
        stopped_by: None,
        ground: Ground::Found,
    };
    let next = step(&world, at);
    State::parse(next.status.state.as_deref().unwrap()).unwrap()
}

const EIGHT: Option<u64> = Some(8 * 3600);

#[test]
fn a_start_an_edit_and_a_suspension_end_no_request_before_its_own_time() {
    let unknown = judgement(5, 3600);
    let suspended = judgement(3, 3600);
    // A restart or an edit makes the judgement Unknown for a moment, a suspension Held.
    assert_eq!(comes_to(State::Pending, &unknown, hours(2), EIGHT), State::Pending);
    assert_eq!(comes_to(State::Pending, &suspended, hours(2), EIGHT), State::Pending);
    assert_eq!(comes_to(State::Pending, &suspended, hours(8), EIGHT), State::TimedOut);
    assert_eq!(comes_to(State::Pending, &judgement(4, 3600), hours(1), Some(3600)), State::TimedOut);
    // Approvals may have come in time while nobody looked.
    assert_eq!(comes_to(State::Pending, &unknown, hours(9), EIGHT), State::Pending);
    assert_eq!(comes_to(State::Pending, &suspended, hours(900), None), State::Pending, "no time is known");
}

#[test]
fn an_approval_is_not_lost_to_what_is_merely_not_known() {
    let mut long = plan(3600);
    long.use_within = std::time::Duration::from_secs(72 * 3600);
    let allowed = Judgement::Allowed(Box::new(long));
    assert_eq!(comes_to(State::Approved, &judgement(5, 3600), hours(25), EIGHT), State::Approved);
    assert_eq!(comes_to(State::Approved, &allowed, hours(25), EIGHT), State::Approved);
    assert_eq!(comes_to(State::Approved, &allowed, hours(72), EIGHT), State::TimedOut);
}
