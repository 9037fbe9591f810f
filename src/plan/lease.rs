//! Who may write: the one replica that holds the lease.
//!
//! As in client-go, no replica compares its clock with another's: it takes the lease for lapsed where it has seen no
//! change of it for as long as the lease says it is held. The holder counts from the moment at which it *sent* its last
//! renewal, which is earlier than any other replica can have seen it: so it stops before another begins, as long as
//! their clocks run at the same pace.
//!
//! Closing needs no lease. What each [`Role`] may write:
//!
//! | role | opens, locks, statuses | removes single rules | removes by writing a whole firewall |
//! |---|---|---|---|
//! | `Holder` | while the lease outlasts the request ([`Knowledge::outlasts`]) | at once | at once |
//! | `Standby` | no | [`GRACE`] after they are due | no |
//! | `Nobody` | no | at once | at once |

use std::time::Duration;

/// How much later than the holder another replica removes what is due: by then the holder has either done it, or will
/// not.
pub const GRACE: Duration = Duration::from_secs(10);

/// The longest that a lease of another is respected without a renewal, whatever it says of itself.
const LONGEST: Duration = Duration::from_secs(60);

/// How a lease is kept. The defaults are those of Kubernetes' own controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    /// How long it is held after a renewal.
    pub duration: Duration,
    /// How long after its last renewal the holder goes on as such.
    pub renew_deadline: Duration,
    /// How often it is renewed, or looked at.
    pub retry_period: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// A moment as one replica sees it: the time since it started, by a clock that is never set.
pub type Moment = Duration;

/// The lease as it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Who holds it; none where it was given back.
    pub holder: Option<String>,
    /// For how long after each renewal.
    pub duration: Duration,
    /// Changes with each renewal.
    pub version: String,
    /// Changes with each change of holder.
    pub term: String,
}

/// What a replica may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// It holds the lease.
    Holder,
    /// Another one does, as far as is known.
    Standby,
    /// As far as is known, nobody does: it has lapsed, was given back, or was not renewed in time by this one.
    Nobody,
}

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Next {
    /// Write oneself into it.
    Take,
    /// Write it again.
    Renew,
    /// Look at it again.
    Wait,
}

/// A time in which no other replica can have held the lease, by the clock that is never set.
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    /// When it began: no two of a process have this in common.
    pub begun: Moment,
    /// For how long it has lasted.
    pub lasted: Duration,
}

/// What one replica knows of the lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Knowledge {
    me: String,
    times: Times,
    /// As last read or written. The outer none: never read; the inner: there was none.
    seen: Option<Option<Record>>,
    /// Since when it is as it is.
    since: Moment,
    /// When the last renewal of our own that succeeded was sent.
    sent: Option<Moment>,
    /// When the first was sent of those with nothing of anybody else between them.
    tenure: Option<Moment>,
}

impl Knowledge {
    /// What is known at the start: nothing.
    #[must_use]
    pub const fn new(me: String, times: Times, now: Moment) -> Self {
        Self { me, times, seen: None, since: now, sent: None, tenure: None }
    }

    /// The lease was read; `at`: when the answer was there.
    pub fn saw(&mut self, record: Option<Record>, at: Moment) {
        if record.as_ref().and_then(|record| record.holder.as_ref()) != Some(&self.me) {
            self.sent = None;
        }
        // Of a renewal of ours whose answer was lost, the term is the same.
        let goes_on = match (&self.seen, &record) {
            (Some(Some(last)), Some(record)) => last.holder == record.holder && last.term == record.term,
            _ => false,
        };
        if !goes_on {
            self.tenure = None;
        }
        // One that was deleted is respected as if it were there: who held it may not know of it yet.
        let vanished = record.is_none() && matches!(&self.seen, Some(Some(last)) if !self.is_free(last, at));
        if !vanished && self.seen.as_ref() != Some(&record) {
            (self.seen, self.since) = (Some(record), at);
        }
    }

    /// It was written with us as its holder; `sent`: when that was begun.
    pub fn wrote(&mut self, record: Record, sent: Moment) {
        (self.seen, self.since, self.sent) = (Some(Some(record)), sent, Some(sent));
        // The server lets through only who has read what is there: it was what was seen last.
        self.tenure.get_or_insert(sent);
    }

    /// Since when nobody else can have held the lease: for longer than the present role, where renewals were merely late.
    #[must_use]
    pub const fn tenure(&self) -> Option<Moment> {
        self.tenure
    }

    /// For how long it is held after a renewal.
    #[must_use]
    pub const fn duration(&self) -> Duration {
        self.times.duration
    }

    /// It was given back.
    pub fn gave_back(&mut self) {
        (self.seen, self.sent, self.tenure) = (Some(None), None, None);
    }

    /// What this replica may write now.
    #[must_use]
    pub fn role(&self, now: Moment) -> Role {
        if self.sent.is_some_and(|sent| now < sent + self.times.renew_deadline) {
            return Role::Holder;
        }
        match &self.seen {
            // One that was never read may be anybody's.
            None if now < self.since + self.times.duration => Role::Standby,
            Some(Some(record)) if !self.is_free(record, now) => Role::Standby,
            None | Some(_) => Role::Nobody,
        }
    }

    /// Whether it is held for longer than something takes that is begun now.
    #[must_use]
    pub fn outlasts(&self, takes: Duration, now: Moment) -> bool {
        self.role(now) == Role::Holder
            && self.sent.is_some_and(|sent| now + takes <= sent + self.times.duration)
    }

    /// What to do about it now.
    #[must_use]
    pub fn next(&self, now: Moment) -> Next {
        match &self.seen {
            None => Next::Wait,
            Some(Some(record)) if record.holder.as_ref() == Some(&self.me) => Next::Renew,
            Some(Some(record)) if !self.is_free(record, now) => Next::Wait,
            Some(_) => Next::Take,
        }
    }

    /// When the role changes by itself, if nothing is heard until then.
    #[must_use]
    pub fn changes_at(&self) -> Moment {
        match (self.sent, &self.seen) {
            (Some(sent), _) => sent + self.times.renew_deadline,
            (None, Some(Some(record))) => self.since + respected(record),
            (None, _) => self.since + self.times.duration,
        }
    }

    /// Whether nobody else holds it.
    fn is_free(&self, record: &Record, now: Moment) -> bool {
        match &record.holder {
            None => true,
            Some(holder) => *holder == self.me || now >= self.since + respected(record),
        }
    }
}

fn respected(record: &Record) -> Duration {
    record.duration.min(LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIMES: Times = Times {
        duration: Duration::from_secs(15),
        renew_deadline: Duration::from_secs(10),
        retry_period: Duration::from_secs(2),
    };

    const fn at(second: u64) -> Moment {
        Duration::from_secs(second)
    }

    fn record(holder: &str, version: u64) -> Record {
        Record {
            holder: (!holder.is_empty()).then(|| holder.to_owned()),
            duration: TIMES.duration,
            version: version.to_string(),
            term: String::new(),
        }
    }

    #[test]
    fn a_lease_of_another_is_respected_until_it_was_not_renewed_for_as_long_as_it_says() {
        let mut mine = Knowledge::new("b".into(), TIMES, at(0));
        assert_eq!((mine.role(at(14)), mine.next(at(14))), (Role::Standby, Next::Wait), "it was never read");
        assert_eq!((mine.role(at(15)), mine.next(at(15))), (Role::Nobody, Next::Wait));
        mine.saw(Some(record("a", 1)), at(20));
        mine.saw(Some(record("a", 2)), at(30));
        mine.saw(Some(record("a", 2)), at(44));
        assert_eq!((mine.role(at(44)), mine.next(at(44))), (Role::Standby, Next::Wait));
        assert_eq!((mine.role(at(45)), mine.next(at(45))), (Role::Nobody, Next::Take));
        assert_eq!(mine.changes_at(), at(45));
        mine.wrote(record("b", 3), at(46));
        assert_eq!((mine.role(at(55)), mine.next(at(55))), (Role::Holder, Next::Renew));
        assert_eq!(
            (mine.role(at(56)), mine.next(at(56))),
            (Role::Nobody, Next::Renew),
            "not renewed in time"
        );
    }

    #[test]
    fn one_that_was_given_back_or_is_not_there_is_taken_at_once() {
        for free in [None, Some(record("", 1))] {
            let mut mine = Knowledge::new("b".into(), TIMES, at(0));
            mine.saw(free, at(1));
            assert_eq!((mine.role(at(1)), mine.next(at(1))), (Role::Nobody, Next::Take));
        }
    }

    /// Whoever held it may not have heard of it yet, and goes on until its fence falls.
    #[test]
    fn one_that_was_deleted_is_respected_as_long_as_it_would_have_been_held() {
        let mut mine = Knowledge::new("b".into(), TIMES, at(0));
        mine.saw(Some(record("a", 1)), at(1));
        mine.saw(None, at(2));
        assert_eq!((mine.role(at(15)), mine.next(at(15))), (Role::Standby, Next::Wait));
        assert_eq!((mine.role(at(16)), mine.next(at(16))), (Role::Nobody, Next::Take));
        // One's own is made anew at once, and is not held until then.
        mine.wrote(record("b", 2), at(17));
        mine.saw(None, at(18));
        assert_eq!((mine.role(at(18)), mine.next(at(18))), (Role::Nobody, Next::Take));
    }

    #[test]
    fn one_that_was_given_back_is_nobodys_at_once() {
        let mut mine = Knowledge::new("b".into(), TIMES, at(0));
        mine.wrote(record("b", 1), at(1));
        assert_eq!(mine.role(at(2)), Role::Holder);
        mine.gave_back();
        assert_eq!((mine.role(at(2)), mine.next(at(2))), (Role::Nobody, Next::Take));
        assert!(!mine.outlasts(Duration::ZERO, at(2)));
    }

    #[test]
    fn when_the_role_changes_by_itself_is_known_beforehand() {
        let mut mine = Knowledge::new("b".into(), TIMES, at(100));
        assert_eq!(mine.changes_at(), at(115), "it was never read");
        mine.saw(Some(record("a", 1)), at(120));
        assert_eq!(mine.changes_at(), at(135), "another holds it");
        mine.wrote(record("b", 2), at(140));
        assert_eq!(mine.changes_at(), at(150), "it has to be renewed");
        let before = Duration::from_millis(1);
        assert_ne!(mine.role(mine.changes_at() - before), mine.role(mine.changes_at()));
    }

    #[test]
    fn one_that_says_it_is_held_for_ever_is_not() {
        let mut mine = Knowledge::new("b".into(), TIMES, at(0));
        mine.saw(Some(Record { duration: Duration::MAX, ..record("a", 1) }), at(1));
        assert_eq!((mine.next(at(60)), mine.next(at(61))), (Next::Wait, Next::Take));
    }

    /// A program that starts again in the same pod: the one before is dead.
    #[test]
    fn ones_own_is_taken_up_at_once_but_only_held_once_it_was_renewed() {
        let mut mine = Knowledge::new("b".into(), TIMES, at(0));
        mine.saw(Some(record("b", 1)), at(1));
        assert_eq!((mine.role(at(1)), mine.next(at(1))), (Role::Nobody, Next::Renew));
        assert!(!mine.outlasts(Duration::ZERO, at(1)));
        mine.wrote(record("b", 2), at(2));
        assert!(mine.outlasts(mine.duration(), at(2)) && !mine.outlasts(mine.duration(), at(3)));
        mine.saw(Some(record("a", 3)), at(4));
        assert_eq!(mine.role(at(4)), Role::Standby, "somebody has taken it");
        assert!(!mine.outlasts(Duration::ZERO, at(4)));
    }

    /// What a replica does in a second of the server's clock.
    #[derive(Clone, Debug)]
    struct Second {
        replica: usize,
        /// Between the decision and the write, and between the write and its answer.
        delays: (u64, u64),
        /// Whether the answer is lost.
        lost: bool,
    }

    fn seconds() -> impl Strategy<Value = Vec<Second>> {
        let one = (0_usize..3, 0_u64..4, 0_u64..4, prop::bool::weighted(0.2))
            .prop_map(|(replica, before, after, lost)| Second { replica, delays: (before, after), lost });
        prop::collection::vec(one, 1..120)
    }

    #[test]
    fn a_tenure_ends_where_another_may_have_held_it_and_not_where_a_renewal_was_late() {
        let mut mine = Knowledge::new("b".into(), TIMES, at(0));
        mine.saw(None, at(1));
        assert_eq!(mine.tenure(), None);
        mine.wrote(record("b", 1), at(2));
        mine.saw(Some(record("b", 1)), at(40));
        assert_eq!(mine.role(at(40)), Role::Nobody);
        mine.wrote(record("b", 2), at(41));
        assert_eq!((mine.role(at(42)), mine.tenure()), (Role::Holder, Some(at(2))));
        // The answer of a renewal was lost.
        mine.saw(Some(record("b", 4)), at(60));
        mine.wrote(record("b", 5), at(61));
        assert_eq!(mine.tenure(), Some(at(2)));
        // Another one had it, and then it was taken again, which was not heard of.
        let again = |version| Record { term: "later".into(), ..record("b", version) };
        mine.saw(Some(again(8)), at(70));
        mine.wrote(again(9), at(71));
        assert_eq!(mine.tenure(), Some(at(71)));
        for between in [Some(record("a", 6)), None] {
            mine.saw(between, at(80));
            assert_eq!(mine.tenure(), None);
            mine.wrote(record("b", 7), at(100));
            assert_eq!(mine.tenure(), Some(at(100)));
        }
        mine.gave_back();
        assert_eq!(mine.tenure(), None);
    }

    proptest! {
        /// However writes and answers are delayed or lost: nobody's fence is still up when another takes the lease, and nobody
        /// else has taken it in a tenure.
        #[test]
        fn no_two_replicas_hold_it_at_once(steps in seconds()) {
            let names = ["a", "b", "c"];
            let mut server: Option<Record> = None;
            let mut taken: Vec<(usize, u64)> = Vec::new();
            let mut terms = 0;
            let mut version = 0;
            let mut now = 0;
            let mut replicas: Vec<Knowledge> =
                names.iter().map(|name| Knowledge::new((*name).into(), TIMES, at(0))).collect();
            for Second { replica, delays: (before, after), lost } in steps {
                now += 1;
                let mine = &mut replicas[replica];
                if !lost {
                    mine.saw(server.clone(), at(now));
                }
                let (begun, next, read) = (now, mine.next(at(now)), mine.seen.clone());
                now += before;
                // The server lets through only who has read what is there.
                if next != Next::Wait && read == Some(server.clone()) {
                    version += 1;
                    if taken.last().is_none_or(|(last, _)| *last != replica) {
                        terms += 1;
                    }
                    let written = Record { term: terms.to_string(), ..record(names[replica], version) };
                    server = Some(written.clone());
                    taken.push((replica, now));
                    for (other, knowledge) in replicas.iter().enumerate() {
                        prop_assert!(
                            other == replica || !knowledge.outlasts(Duration::ZERO, at(now)),
                            "{} holds it still when {} takes it", names[other], names[replica]
                        );
                    }
                    now += after;
                    if !lost {
                        replicas[replica].wrote(written, at(begun));
                        let tenure = replicas[replica].tenure().unwrap();
                        prop_assert!(taken.iter().all(|(by, when)| *by == replica || at(*when) <= tenure));
                    }
                }
            }
        }
    }
}
