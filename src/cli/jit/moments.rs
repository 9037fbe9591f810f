//! Times as kubectl shows them: how long ago in tables, the moment itself where there is room.

use jiff::{SignedDuration, Timestamp};

/// A length of time in at most two units, as in kubectl's AGE.
#[must_use]
pub fn short(length: SignedDuration) -> String {
    let seconds = length.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |whole: i64, unit: char, rest: i64, rest_unit: char| match rest {
        0 => format!("{whole}{unit}"),
        rest => format!("{whole}{unit}{rest}{rest_unit}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, 'd', hours % 24, 'h'),
        () if days < 730 => format!("{days}d"),
        () if days < 2920 => two(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

/// How old something is; `<unknown>` where nobody says.
#[must_use]
pub fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    since.map_or_else(|| "<unknown>".to_owned(), |since| short(now.duration_since(since)))
}

/// `in 25m` or `3m ago`.
#[must_use]
pub fn relative(at: Timestamp, now: Timestamp) -> String {
    let until = at.duration_since(now);
    if until.is_positive() {
        format!("in {}", short(until))
    } else {
        format!("{} ago", short(now.duration_since(at)))
    }
}

/// The moment, to the second, and how far it is: `2026-11-24T02:16:57Z (in 25m)`.
#[must_use]
pub fn absolute(at: Timestamp, now: Timestamp) -> String {
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    format!("{whole} ({})", relative(at, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_kubectls() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (190, "3m10s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (12_600, "3h30m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
            (252_288_000, "8y"),
        ] {
            assert_eq!(short(SignedDuration::from_secs(seconds)), text, "{seconds}");
        }
    }

    #[test]
    fn what_is_to_come_is_told_from_what_was() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(absolute(at("2026-01-31T12:25:00.7Z"), now), "2026-01-31T12:25:00Z (in 25m)");
        assert_eq!(relative(at("2026-01-31T11:57:00Z"), now), "3m ago");
        assert_eq!(age(None, now), "<unknown>");
    }
}
