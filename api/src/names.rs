//! Which names, labels and titles people may give: readable, bounded, and not made to deceive.

use roost_protocol::limits;
use unicode_normalization::UnicodeNormalization as _;
use unicode_normalization::char::is_combining_mark;

use crate::problem::Problem;

/// The longest label of a device, in bytes.
pub(crate) const LABEL_BYTES_MAX: usize = 64;
/// Marks that may follow one letter: enough for every living script, too few for a tower of them.
const MARKS_IN_A_ROW_MAX: usize = 2;

/// The account name in its normal form (NFKC), so that what looks the same is the same.
pub(crate) fn account_name(given: &str) -> Result<String, Problem> {
    let (min, max) = (limits::USER_NAME_BYTES_MIN, limits::USER_NAME_BYTES_MAX);
    let wrong = || Problem::field(format!("name: {min} to {max} bytes of letters, digits and . _ -"));
    if given.len() > max {
        return Err(wrong());
    }
    let name: String = given.nfkc().collect();
    let readable = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '_' | '-') || is_combining_mark(c));
    let begins_well = name.chars().next().is_some_and(|c| c.is_alphanumeric() && !is_combining_mark(c));
    if !(min..=max).contains(&name.len()) || !readable || !begins_well || too_many_marks(&name) {
        return Err(wrong());
    }
    Ok(name)
}

/// A device's label: anything in one line.
pub(crate) fn device_label(given: Option<String>) -> Result<String, Problem> {
    let label = given.unwrap_or_default();
    if label.len() > LABEL_BYTES_MAX || !is_plain_line(&label) {
        return Err(Problem::field(format!("device_label: at most {LABEL_BYTES_MAX} bytes in one line of plain text")));
    }
    Ok(label)
}

/// A group's title: something in one line.
pub(crate) fn title(given: &str) -> Result<(), Problem> {
    if given.is_empty() || given.len() > limits::TITLE_BYTES_MAX || !is_plain_line(given) {
        let max = limits::TITLE_BYTES_MAX;
        return Err(Problem::field(format!("title: 1 to {max} bytes in one line of plain text")));
    }
    Ok(())
}

fn is_plain_line(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || is_direction_or_line(c)) && !too_many_marks(text)
}

/// What turns the writing direction of its neighbours around, or breaks a line without being a control character.
fn is_direction_or_line(c: char) -> bool {
    matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn too_many_marks(text: &str) -> bool {
    let mut marks = 0;
    text.chars().any(|c| {
        marks = if is_combining_mark(c) { marks + 1 } else { 0 };
        marks > MARKS_IN_A_ROW_MAX
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_living_scripts_are_names() {
        for name in ["al", "Alice", "a.b_c-9", "Zoë", "Łukasz", "Дмитрий", "अनिल", "สมชาย", "美咲", "محمد", "יעל"]
        {
            assert!(account_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn what_looks_the_same_is_the_same() {
        assert_eq!(account_name("Zoe\u{308}"), account_name("Zo\u{eb}"));
        assert_eq!(account_name("\u{ff21}lice"), account_name("Alice"));
    }

    #[test]
    fn s38_names_that_deceive_or_flood() {
        let tower = format!("a{}", "\u{300}".repeat(20));
        let megabyte = format!("a{}", "\u{300}".repeat(500_000));
        for name in [
            "",
            "a",
            " ab",
            "a b",
            "ab\n",
            "a\0b",
            "a\u{202e}b",
            "a\u{2066}b",
            "a\u{200b}b",
            "\u{feff}ab",
            "@ab",
            "a/b",
            ".ab",
            "-ab",
            "\u{301}ab",
            "ab\u{7f}",
            "'; DROP TABLE accounts --",
            "😀😀",
            &tower,
            &megabyte,
            &"a".repeat(65),
        ] {
            assert!(account_name(name).is_err(), "{name:?}");
        }
        // One character that grows to eighteen: the limit holds after it too.
        assert!(account_name(&"\u{fdfa}".repeat(20)).is_err());
    }

    #[test]
    fn s38_labels_and_titles_are_one_line() {
        for text in ["a\nb", "a\0", "\u{202e}evil", "a\u{2028}b", &format!("a{}", "\u{300}".repeat(30))] {
            assert!(title(text).is_err(), "{text:?}");
            assert!(device_label(Some(text.to_owned())).is_err(), "{text:?}");
        }
        assert!(title("").is_err());
        assert!(title("Köln 🎉 — '; DROP TABLE x").is_ok());
        assert_eq!(device_label(None), Ok(String::new()));
    }
}
