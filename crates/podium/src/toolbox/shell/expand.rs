//! Quotes, variables and command substitution in a word.

use super::exec::Shell;

/// Expands a raw word to the fields that it makes: unquoted values are split at white space and vanish when empty.
pub(super) fn fields(shell: &mut Shell, word: &str) -> Vec<String> {
    let mut expansion = Expansion { shell, fields: Vec::new(), current: None };
    expansion.word(word, false);
    let Expansion { mut fields, current, .. } = expansion;
    fields.extend(current);
    fields
}

/// Expands a word that stays one field: assignments and file names.
pub(super) fn one(shell: &mut Shell, word: &str) -> String {
    let mut expansion = Expansion { shell, fields: Vec::new(), current: None };
    expansion.word(word, true);
    expansion.current.unwrap_or_default()
}

struct Expansion<'a> {
    shell: &'a mut Shell,
    fields: Vec<String>,
    current: Option<String>,
}

impl Expansion<'_> {
    fn push(&mut self, character: char) {
        self.current.get_or_insert_default().push(character);
    }

    /// `whole`: values are not split (inside quotes, in assignments).
    fn word(&mut self, word: &str, whole: bool) {
        let mut rest = word;
        while let Some(character) = rest.chars().next() {
            rest = &rest[character.len_utf8()..];
            match character {
                '\\' => {
                    let next = rest.chars().next().unwrap_or('\\');
                    rest = rest.strip_prefix(next).unwrap_or(rest);
                    self.push(next);
                }
                '\'' => {
                    let (text, after) = rest.split_once('\'').unwrap_or((rest, ""));
                    self.current.get_or_insert_default().push_str(text);
                    rest = after;
                }
                '"' => rest = self.double_quotes(rest),
                '$' => rest = self.dollar(rest, whole),
                other => self.push(other),
            }
        }
    }

    /// Returns the text after the closing quote.
    fn double_quotes<'t>(&mut self, text: &'t str) -> &'t str {
        self.current.get_or_insert_default();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            rest = &rest[character.len_utf8()..];
            match character {
                '"' => return rest,
                '\\' => {
                    let next = rest.chars().next().unwrap_or('\\');
                    if !matches!(next, '"' | '\\' | '$' | '`') {
                        self.push('\\');
                    }
                    rest = rest.strip_prefix(next).unwrap_or(rest);
                    self.push(next);
                }
                '$' => rest = self.dollar(rest, true),
                other => self.push(other),
            }
        }
        rest
    }

    /// Text after a `$`; returns what follows the variable or substitution.
    fn dollar<'t>(&mut self, text: &'t str, whole: bool) -> &'t str {
        if let Some(inner) = text.strip_prefix('(') {
            let length = closing(inner);
            let (script, after) = inner.split_at(length);
            let output = self.shell.substitute(script);
            self.value(output.trim_end_matches('\n'), whole);
            return after.strip_prefix(')').unwrap_or(after);
        }
        let (name, after) = match text.strip_prefix('{') {
            Some(inner) => inner.split_once('}').unwrap_or((inner, "")),
            None => {
                let special = text.starts_with(['?', '#', '@', '*', '$'])
                    || text.starts_with(|c: char| c.is_ascii_digit());
                let end = if special {
                    1
                } else {
                    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
                };
                text.split_at(end)
            }
        };
        if name.is_empty() {
            self.push('$');
            return after;
        }
        let value = match name.split_once(":-") {
            Some((name, default)) => {
                let value = self.shell.variable(name);
                if value.is_empty() { default.to_owned() } else { value }
            }
            None => self.shell.variable(name),
        };
        self.value(&value, whole);
        after
    }

    fn value(&mut self, value: &str, whole: bool) {
        if whole {
            self.current.get_or_insert_default().push_str(value);
            return;
        }
        if value.starts_with(char::is_whitespace) {
            self.fields.extend(self.current.take());
        }
        let mut words = value.split_whitespace().peekable();
        while let Some(word) = words.next() {
            self.current.get_or_insert_default().push_str(word);
            if words.peek().is_some() || value.ends_with(char::is_whitespace) {
                self.fields.extend(self.current.take());
            }
        }
    }
}

/// Bytes up to the parenthesis that closes a substitution.
fn closing(text: &str) -> usize {
    let (mut depth, mut quote) = (1, None);
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), c) if c == open => quote = None,
            (None | Some(_), _) => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}
