//! Sets of completion indexes as text: `1,3-5,7`.

use std::collections::BTreeSet;

pub(crate) type Indexes = BTreeSet<i32>;

/// Reads a list; what is beyond `completions` or unreadable is left out.
pub(crate) fn parse(text: &str, completions: i32) -> Indexes {
    let mut set = Indexes::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i32>(), last.parse::<i32>()) {
            set.extend((first..=last.min(completions - 1)).filter(|index| *index >= 0));
        }
    }
    set
}

/// Writes a list with runs shortened.
pub(crate) fn format(set: &Indexes) -> String {
    let mut runs: Vec<(i32, i32)> = Vec::new();
    for &index in set {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let text = runs.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}
