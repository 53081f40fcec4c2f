//! Lexer and parser of selector strings.

use super::{FieldSelector, LabelSelector, ParseResult, Requirement};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Not,
    Open,
    Close,
    Comma,
    Equals,
    DoubleEquals,
    NotEquals,
    Greater,
    Less,
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Not => "!",
            Token::Open => "(",
            Token::Close => ")",
            Token::Comma => ",",
            Token::Equals => "=",
            Token::DoubleEquals => "==",
            Token::NotEquals => "!=",
            Token::Greater => ">",
            Token::Less => "<",
            Token::End => "",
        }
    }
}

fn tokens(text: &str) -> Vec<Token> {
    let mut out = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let mut followed_by_equals = || chars.next_if_eq(&'=').is_some();
        out.push(match c {
            c if c.is_ascii_whitespace() => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '>' => Token::Greater,
            '<' => Token::Less,
            '!' if followed_by_equals() => Token::NotEquals,
            '!' => Token::Not,
            '=' if followed_by_equals() => Token::DoubleEquals,
            '=' => Token::Equals,
            _ => {
                let mut word = String::from(c);
                while let Some(next) = chars.next_if(|c| !c.is_ascii_whitespace() && !"(),><!=".contains(*c))
                {
                    word.push(next);
                }
                Token::Word(word)
            }
        });
    }
    out.push(Token::End);
    out
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn requirement(&mut self) -> ParseResult<Requirement> {
        let negated = *self.peek() == Token::Not;
        if negated {
            self.at += 1;
        }
        let key = match self.take() {
            Token::Word(word) => word,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        check_key(&key)?;
        if matches!(self.peek(), Token::End | Token::Comma) {
            return Ok(if negated { Requirement::DoesNotExist(key) } else { Requirement::Exists(key) });
        }
        if negated {
            return Err(format!("found '{}', expected: ',' or 'end of string'", self.peek().text()));
        }
        self.operation(key)
    }

    fn operation(&mut self, key: String) -> ParseResult<Requirement> {
        let operator = self.take();
        Ok(match operator {
            Token::Equals | Token::DoubleEquals => {
                let value = self.exact(&key)?;
                Requirement::In(key, vec![value])
            }
            Token::NotEquals => {
                let value = self.exact(&key)?;
                Requirement::NotIn(key, vec![value])
            }
            Token::Greater | Token::Less => {
                let value = self.exact(&key)?;
                let bound = value.parse().map_err(|_| {
                    format!("values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer")
                })?;
                if operator == Token::Greater {
                    Requirement::GreaterThan(key, bound)
                } else {
                    Requirement::LessThan(key, bound)
                }
            }
            Token::Word(word) if word == "in" => Requirement::In(key.clone(), self.values(&key)?),
            Token::Word(word) if word == "notin" => Requirement::NotIn(key.clone(), self.values(&key)?),
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.text()));
            }
        })
    }

    fn exact(&mut self, key: &str) -> ParseResult<String> {
        match self.peek() {
            Token::End | Token::Comma => Ok(String::new()),
            Token::Word(word) => {
                let word = word.clone();
                self.at += 1;
                check_value(key, &word)?;
                Ok(word)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn values(&mut self, key: &str) -> ParseResult<Vec<String>> {
        match self.take() {
            Token::Open => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        let mut values = Vec::new();
        let mut current = String::new();
        loop {
            match self.take() {
                Token::Word(word) if current.is_empty() => {
                    check_value(key, &word)?;
                    current = word;
                }
                Token::Comma => values.push(std::mem::take(&mut current)),
                Token::Close => {
                    values.push(current);
                    break;
                }
                other => return Err(format!("found '{}', expected: ',', or ')'", other.text())),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

pub(super) fn labels(text: &str) -> ParseResult<LabelSelector> {
    let mut parser = Parser { tokens: tokens(text), at: 0 };
    let mut requirements = Vec::new();
    let wrap = |why: String| format!("unable to parse requirement: {why}");
    if *parser.peek() == Token::End {
        return Ok(LabelSelector::default());
    }
    loop {
        match parser.peek() {
            Token::Word(_) | Token::Not => requirements.push(parser.requirement().map_err(wrap)?),
            other => {
                return Err(format!("found '{}', expected: !, identifier, or 'end of string'", other.text()));
            }
        }
        match parser.take() {
            Token::End => return Ok(LabelSelector { requirements }),
            Token::Comma => {
                if !matches!(parser.peek(), Token::Word(_) | Token::Not) {
                    return Err(format!("found '{}', expected: identifier after ','", parser.peek().text()));
                }
            }
            other => return Err(format!("found '{}', expected: ',' or 'end of string'", other.text())),
        }
    }
}

pub(super) fn fields(text: &str) -> ParseResult<FieldSelector> {
    let mut terms = Vec::new();
    for term in split_unescaped(text) {
        if term.is_empty() {
            continue;
        }
        let (path, operator, value) = split_term(term)
            .ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{term}'"))?;
        terms.push((path.to_owned(), unescape(value)?, operator));
    }
    Ok(FieldSelector { terms })
}

/// Splits at the first operator; true means equality.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find(['!', '='])?;
    let (path, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((path, false, value));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((path, true, value))
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> ParseResult<String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped character in value: {c}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

const NAME_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn is_name(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253
        && text.split('.').all(|label| {
            let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let bytes = label.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

pub(super) fn check_key(key: &str) -> ParseResult<()> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let why = if prefix.is_some_and(|p| !is_dns_subdomain(p)) {
        "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
         and must start and end with an alphanumeric character"
    } else if name.is_empty() {
        "name part must be non-empty"
    } else if name.len() > 63 {
        "name part must be no more than 63 characters"
    } else if is_name(name) {
        return Ok(());
    } else {
        NAME_RULE
    };
    Err(format!("key: Invalid value: {key:?}: {why}"))
}

pub(super) fn check_value(key: &str, value: &str) -> ParseResult<()> {
    let why = if value.len() > 63 {
        "must be no more than 63 characters"
    } else if value.is_empty() || is_name(value) {
        return Ok(());
    } else {
        VALUE_RULE
    };
    Err(format!("values[0][{key}]: Invalid value: {value:?}: {why}"))
}
