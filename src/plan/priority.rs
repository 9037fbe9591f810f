//! Priority numbers: which are free, and which of them suits a rule.
//!
//! Numbers are only ever taken from those that were free when the firewall was read. So every write is valid
//! whichever of the others of the same plan went wrong; what needs a number that the plan itself frees waits
//! for the next plan.

use super::model::{MAX_PRIORITY, MIN_PRIORITY, Observed};

/// Where denies prefer to stand: below the room for grants and exemptions, above 1000, where most people's
/// own rules begin.
const PREFERRED: std::ops::RangeInclusive<u16> = 400..=999;

/// The free priority numbers of a firewall.
#[derive(Clone, Debug)]
pub struct Slots {
    taken: Vec<bool>,
}

impl Slots {
    /// Those that no inbound rule has.
    #[must_use]
    pub fn of(observed: &Observed) -> Self {
        let mut slots = Self { taken: vec![false; usize::from(MAX_PRIORITY) + 1] };
        for rule in &observed.rules {
            slots.take(rule.priority);
        }
        slots
    }

    /// Marks a number as taken.
    pub fn take(&mut self, priority: u16) {
        if let Some(taken) = self.taken.get_mut(usize::from(priority)) {
            *taken = true;
        }
    }

    /// Whether no rule has the number.
    #[must_use]
    pub fn is_free(&self, priority: u16) -> bool {
        self.taken.get(usize::from(priority)) == Some(&false)
    }

    /// The free numbers in rising order.
    pub fn free(&self) -> impl DoubleEndedIterator<Item = u16> + '_ {
        (MIN_PRIORITY..=MAX_PRIORITY).filter(|priority| self.is_free(*priority))
    }

    /// The lowest free number below `bound`.
    #[must_use]
    pub fn lowest_below(&self, bound: u16) -> Option<u16> {
        self.free().next().filter(|priority| *priority < bound)
    }

    /// The highest free number below `bound`.
    #[must_use]
    pub fn highest_below(&self, bound: u16) -> Option<u16> {
        self.free().rfind(|priority| *priority < bound)
    }
}

/// What speaks against a place for a deny; less is better. Compared field by field, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cost {
    /// Rules of others that it would stand on the wrong side of.
    pub wrong_side: usize,
    /// Whether it would shut out a live grant.
    pub shuts_out_grant: bool,
    /// How far it is from where denies prefer to stand, and how little room it leaves for grants.
    pub band: u32,
}

/// What decides where a deny may stand.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Priorities of the rules of others that let its packets in, rising.
    pub allows: Vec<u16>,
    /// The highest priority number of a live grant through it.
    pub last_grant: Option<u16>,
    /// Whether it goes below the rules of others rather than above them.
    pub keep: bool,
}

impl Surroundings {
    /// What speaks against this place.
    #[must_use]
    pub fn cost(&self, priority: u16) -> Cost {
        let above = self.allows.partition_point(|allow| *allow < priority);
        let shuts_out_grant = self.last_grant.is_some_and(|grant| grant > priority);
        if self.keep {
            return Cost { wrong_side: self.allows.len() - above, shuts_out_grant, band: 0 };
        }
        let band = match priority {
            p if PREFERRED.contains(&p) => 0,
            p if p > *PREFERRED.end() => 1,
            // Grants stand above it: half the room is one worse. A finer measure would have it move with every rule
            // of others that comes and goes.
            p => 2 + p.saturating_sub(MIN_PRIORITY).leading_zeros(),
        };
        Cost { wrong_side: above, shuts_out_grant, band }
    }

    /// The best free place: the least cost, and of those the highest number.
    #[must_use]
    pub fn best(&self, slots: &Slots) -> Option<u16> {
        // Most often nothing speaks against one of these.
        let perfect = PREFERRED.rev().find(|priority| {
            !self.keep && slots.is_free(*priority) && self.cost(*priority) == Cost::default()
        });
        perfect.or_else(|| slots.free().rev().min_by_key(|priority| self.cost(*priority)))
    }

    /// Where a rule that stands at `standing` should stand: there, unless a free place is better.
    #[must_use]
    pub fn place(&self, standing: Option<u16>, slots: &Slots) -> Option<u16> {
        if let Some(own) = standing
            && self.cost(own) == Cost::default()
        {
            return Some(own);
        }
        match (standing, self.best(slots)) {
            (Some(own), Some(other)) if self.cost(other) < self.cost(own) => Some(other),
            (Some(own), _) => Some(own),
            (None, other) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(taken: impl IntoIterator<Item = u16>) -> Slots {
        let mut slots = Slots { taken: vec![false; usize::from(MAX_PRIORITY) + 1] };
        taken.into_iter().for_each(|priority| slots.take(priority));
        slots
    }

    #[test]
    fn a_deny_goes_to_the_highest_number_below_1000_that_is_above_the_allows() {
        let around = |allows: &[u16]| Surroundings { allows: allows.to_vec(), ..Default::default() };
        assert_eq!(around(&[]).best(&slots([])), Some(999));
        assert_eq!(around(&[1000]).best(&slots([999, 998])), Some(997));
        assert_eq!(around(&[700, 900]).best(&slots([700, 900])), Some(699));
        assert_eq!(around(&[103]).best(&slots([101, 103])), Some(102));
        assert_eq!(around(&[101]).best(&slots([101])), Some(100));
        // No room above the first: above the second at least.
        assert_eq!(around(&[100, 500]).best(&slots([100, 500])), Some(499));
    }

    #[test]
    fn a_deny_that_keeps_existing_rules_goes_below_them() {
        let around =
            |allows: &[u16]| Surroundings { allows: allows.to_vec(), keep: true, ..Default::default() };
        assert_eq!(around(&[]).best(&slots([4096])), Some(4095));
        assert_eq!(around(&[4000]).place(Some(500), &slots([4000, 500])), Some(4096));
        assert_eq!(around(&[400]).place(Some(500), &slots([400, 500])), Some(500));
    }

    #[test]
    fn a_deny_that_a_rule_pushed_up_comes_down_again_to_leave_grants_room() {
        let around = |allows: &[u16]| Surroundings { allows: allows.to_vec(), ..Default::default() };
        // Pushed up by a rule at 101; another at 300 stays.
        assert_eq!(around(&[101, 300]).place(Some(299), &slots([101, 299, 300])), Some(100));
        assert_eq!(around(&[300]).place(Some(100), &slots([100, 300])), Some(299));
        assert_eq!(around(&[104]).place(Some(100), &slots([100, 104])), Some(103));
        assert_eq!(around(&[101]).place(Some(100), &slots([100, 101])), Some(100));
        // A little more room is not worth a write.
        assert_eq!(around(&[300]).place(Some(280), &slots([280, 300])), Some(280));
    }

    #[test]
    fn a_number_below_a_bound_is_not_the_bound() {
        let slots = slots([100, 102]);
        assert_eq!([101, 102, 103].map(|bound| slots.lowest_below(bound)), [None, Some(101), Some(101)]);
        assert_eq!([101, 103, 104].map(|bound| slots.highest_below(bound)), [None, Some(101), Some(103)]);
    }

    #[test]
    fn below_where_denies_prefer_to_stand_one_number_is_as_good_as_another() {
        let around = Surroundings::default();
        let full = |others: &[u16]| slots(PREFERRED.chain(others.iter().copied()));
        assert_eq!(around.place(Some(1500), &full(&[1500])), Some(1500));
        assert_eq!(around.place(Some(300), &full(&[300])), Some(4096));
    }

    #[test]
    fn what_stands_well_stays_and_what_crowds_the_grants_moves() {
        let around = Surroundings::default();
        assert_eq!(around.place(Some(640), &slots([640])), Some(640));
        assert_eq!(around.place(Some(120), &slots([120])), Some(999));
        let pierced = Surroundings { last_grant: Some(130), ..Default::default() };
        assert_eq!(pierced.place(Some(120), &slots([120, 130])), Some(999));
    }
}
