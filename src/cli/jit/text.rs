//! Text that other people wrote, made safe to show.
//!
//! A justification, a name or a comment may hold whatever its author liked: escape sequences that move the cursor,
//! line breaks that forge a line of the plan, marks that turn the direction of writing. Such characters are spelt
//! out, so that what is read is what is there.

/// Whether a character does something else than show itself.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c,
            // Invisible: soft hyphen, joiners, fillers, operators, the byte order mark.
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2065}'
            | '\u{206a}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            // Direction of writing.
            | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            // Line and paragraph separators.
            | '\u{2028}' | '\u{2029}'
            // Blank, and not space.
            | '\u{2800}'
            // Shorthand and musical controls, tags, variation selectors, private use.
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
            | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}')
}

/// The text on one line, with every hostile character spelt out: `\n`, `\u{202e}`.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_hostile(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// The text on one line of at most so many characters.
#[must_use]
pub fn cut(text: &str, most: usize) -> String {
    let text = plain(text);
    if text.chars().count() <= most {
        return text;
    }
    text.chars().take(most.saturating_sub(3)).chain("...".chars()).collect()
}

/// The text in lines of at most `width` characters, so that no line of somebody's text begins where a line of ours
/// would: the caller puts something before each.
#[must_use]
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line: Vec<char> = Vec::new();
    for c in plain(text).chars() {
        line.push(c);
        if line.len() > width {
            // After the last space, where there is one; it may hang over the end of its line.
            let end = line.iter().rposition(|c| *c == ' ').map_or(width, |at| at + 1);
            let rest = line.split_off(end);
            lines.push(line.iter().collect::<String>());
            line = rest;
        }
    }
    if !line.is_empty() {
        lines.push(line.into_iter().collect());
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_not_show_itself_is_spelt_out() {
        for (text, shown) in [
            ("INC-4711 disk full", "INC-4711 disk full"),
            ("CONTOSO\\alice", "CONTOSO\\alice"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("abc\u{202e}cba", "abc\\u{202e}cba"),
            ("ad\u{200b}min", "ad\\u{200b}min"),
            ("tag\u{e0041}", "tag\\u{e0041}"),
            ("Zürich 東京 ñ", "Zürich 東京 ñ"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn a_cut_keeps_its_length() {
        assert_eq!(cut("short", 10), "short");
        assert_eq!(cut("longer than ten", 10), "longer ...");
        assert_eq!(cut("\n\n\n\n\n\n", 5), "\\n...");
    }

    #[test]
    fn long_text_breaks_at_spaces_and_never_grows_past_the_width() {
        assert_eq!(wrapped("one two three", 8), ["one two ", "three"]);
        assert_eq!(wrapped("four more", 4), ["four ", "more"]);
        assert_eq!(wrapped("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert!(wrapped("", 4).is_empty());
    }

    proptest! {
        #[test]
        fn nothing_hostile_is_left_and_nothing_is_lost(text in any::<String>(), width in 1_usize..80) {
            let shown = plain(&text);
            prop_assert!(!shown.chars().any(is_hostile));
            let lines = wrapped(&text, width);
            prop_assert!(lines.iter().all(|line| line.trim_end().chars().count() <= width));
            prop_assert_eq!(lines.concat(), shown);
            prop_assert!(cut(&text, width.max(3)).chars().count() <= width.max(3));
        }
    }
}
