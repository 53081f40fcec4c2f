//! From text to commands.

use std::fmt;

/// Why a text is no list of commands.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Error {
    /// More text may complete it.
    Incomplete,
    Unexpected(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Incomplete => write!(f, "unexpected end"),
            Error::Unexpected(what) => write!(f, "unexpected {what:?}"),
        }
    }
}

/// Commands in sequence.
pub(super) type List = Vec<Command>;

#[derive(Debug, PartialEq)]
pub(super) enum Command {
    Simple { words: Vec<String>, redirects: Vec<Redirect> },
    Pipeline(Vec<Command>),
    Not(Box<Command>),
    And(Box<Command>, Box<Command>),
    Or(Box<Command>, Box<Command>),
    If { condition: List, then: List, otherwise: List },
    While { condition: List, body: List, until: bool },
    For { name: String, words: Vec<String>, body: List },
    Group(List),
    Background(Box<Command>),
}

/// `2>>file`: which descriptor goes where. Words are raw: quotes and variables are resolved when the command runs.
#[derive(Debug, PartialEq)]
pub(super) struct Redirect {
    pub(super) descriptor: u8,
    pub(super) target: Target,
}

#[derive(Debug, PartialEq)]
pub(super) enum Target {
    Read(String),
    Write(String),
    Append(String),
    Duplicate(u8),
}

#[derive(Debug, PartialEq, Clone)]
enum Token {
    Word(String),
    /// `;`, newline, `&&`, `||`, `|`, `&`
    Operator(&'static str),
    Redirect(u8, &'static str),
}

/// Parses a whole text.
pub(super) fn parse(text: &str) -> Result<List, Error> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0 };
    let list = parser.list(&[])?;
    match parser.peek() {
        None => Ok(list),
        Some(token) => Err(unexpected(token)),
    }
}

fn unexpected(token: &Token) -> Error {
    Error::Unexpected(match token {
        Token::Word(word) => word.clone(),
        Token::Operator(operator) | Token::Redirect(_, operator) => (*operator).to_owned(),
    })
}

fn tokens(text: &str) -> Result<Vec<Token>, Error> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if first == '#' {
            rest = rest.find('\n').map_or("", |end| rest.split_at(end).1);
            continue;
        }
        if first == ' ' || first == '\t' {
            rest = &rest[1..];
            continue;
        }
        if let Some(after) = rest.strip_prefix("\\\n") {
            rest = after;
            continue;
        }
        const OPERATORS: [(&str, &str); 6] =
            [("&&", "&&"), ("||", "||"), ("|", "|"), (";", ";"), ("\n", ";"), ("&", "&")];
        if let Some((sign, operator)) = OPERATORS.into_iter().find(|(sign, _)| rest.starts_with(sign)) {
            tokens.push(Token::Operator(operator));
            rest = &rest[sign.len()..];
            continue;
        }
        if let Some((token, after)) = redirect(rest) {
            tokens.push(token);
            rest = after;
            continue;
        }
        let length = word_length(rest)?;
        let (word, after) = rest.split_at(length);
        tokens.push(Token::Word(word.to_owned()));
        rest = after;
    }
    Ok(tokens)
}

fn redirect(text: &str) -> Option<(Token, &str)> {
    let digit = text.chars().next().and_then(|c| c.to_digit(10)).and_then(|d| u8::try_from(d).ok());
    let after = if digit.is_some() { &text[1..] } else { text };
    let sign = [">>", ">&", ">", "<"].into_iter().find(|sign| after.starts_with(sign))?;
    let descriptor = digit.unwrap_or(u8::from(sign != "<"));
    Some((Token::Redirect(descriptor, sign), &after[sign.len()..]))
}

/// Bytes of the word at the start of `text`, quotes and substitutions included.
fn word_length(text: &str) -> Result<usize, Error> {
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            ' ' | '\t' | '\n' | ';' | '&' | '|' | '<' | '>' => return Ok(at),
            '\\' => {
                characters.next().ok_or(Error::Incomplete)?;
            }
            '\'' => {
                characters.find(|(_, c)| *c == '\'').ok_or(Error::Incomplete)?;
            }
            '"' => skip_double_quotes(&mut characters)?,
            '$' if text[at..].starts_with("$(") => {
                characters.next();
                skip_substitution(&mut characters)?;
            }
            _ => {}
        }
    }
    Ok(text.len())
}

fn skip_double_quotes(characters: &mut std::str::CharIndices<'_>) -> Result<(), Error> {
    let mut dollar = false;
    while let Some((_, character)) = characters.next() {
        match character {
            '"' => return Ok(()),
            '\\' => {
                characters.next().ok_or(Error::Incomplete)?;
            }
            '(' if dollar => skip_substitution(characters)?,
            _ => {}
        }
        dollar = character == '$';
    }
    Err(Error::Incomplete)
}

/// After `$(`: up to its closing parenthesis.
fn skip_substitution(characters: &mut std::str::CharIndices<'_>) -> Result<(), Error> {
    let mut depth = 1;
    while let Some((_, character)) = characters.next() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            '\'' => {
                characters.find(|(_, c)| *c == '\'').ok_or(Error::Incomplete)?;
            }
            '"' => skip_double_quotes(characters)?,
            _ => {}
        }
        if depth == 0 {
            return Ok(());
        }
    }
    Err(Error::Incomplete)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    fn skip(&mut self, operator: &str) -> bool {
        let found = matches!(self.peek(), Some(Token::Operator(o)) if *o == operator);
        self.at += usize::from(found);
        found
    }

    fn keyword(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => Some(word),
            Some(Token::Operator(_) | Token::Redirect(..)) | None => None,
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), Error> {
        match self.next() {
            Some(Token::Word(found)) if found == word => Ok(()),
            Some(token) => Err(unexpected(&token)),
            None => Err(Error::Incomplete),
        }
    }

    /// Commands up to one of the closing words, which stays.
    fn list(&mut self, closing: &[&str]) -> Result<List, Error> {
        let mut list = Vec::new();
        loop {
            while self.skip(";") {}
            match self.keyword() {
                Some(word) if closing.contains(&word) => return Ok(list),
                Some(_) => {}
                None if self.peek().is_none() && closing.is_empty() => return Ok(list),
                None if self.peek().is_none() => return Err(Error::Incomplete),
                None => {}
            }
            let mut command = self.and_or()?;
            if self.skip("&") {
                command = Command::Background(Box::new(command));
            } else if self.peek().is_some()
                && !self.skip(";")
                && !self.keyword().is_some_and(|w| closing.contains(&w))
            {
                return self.peek().map_or(Err(Error::Incomplete), |token| Err(unexpected(token)));
            }
            list.push(command);
        }
    }

    fn and_or(&mut self) -> Result<Command, Error> {
        let mut left = self.pipeline()?;
        loop {
            let and = self.skip("&&");
            if !and && !self.skip("||") {
                return Ok(left);
            }
            while self.skip(";") {}
            let right = Box::new(self.pipeline()?);
            left = if and { Command::And(Box::new(left), right) } else { Command::Or(Box::new(left), right) };
        }
    }

    fn pipeline(&mut self) -> Result<Command, Error> {
        if self.keyword() == Some("!") {
            self.at += 1;
            return Ok(Command::Not(Box::new(self.pipeline()?)));
        }
        let mut commands = vec![self.command()?];
        while self.skip("|") {
            while self.skip(";") {}
            commands.push(self.command()?);
        }
        if commands.len() == 1 { Ok(commands.remove(0)) } else { Ok(Command::Pipeline(commands)) }
    }

    fn command(&mut self) -> Result<Command, Error> {
        match self.keyword() {
            Some("if") => self.if_command(),
            Some("while") => self.while_command(false),
            Some("until") => self.while_command(true),
            Some("for") => self.for_command(),
            Some("{") => {
                self.at += 1;
                let list = self.list(&["}"])?;
                self.expect("}")?;
                Ok(Command::Group(list))
            }
            Some(_) | None => self.simple(),
        }
    }

    fn if_command(&mut self) -> Result<Command, Error> {
        self.at += 1;
        let condition = self.list(&["then"])?;
        self.expect("then")?;
        let then = self.list(&["elif", "else", "fi"])?;
        let otherwise = match self.keyword() {
            Some("elif") => return Ok(Command::If { condition, then, otherwise: vec![self.if_command()?] }),
            Some("else") => {
                self.at += 1;
                self.list(&["fi"])?
            }
            Some(_) | None => Vec::new(),
        };
        self.expect("fi")?;
        Ok(Command::If { condition, then, otherwise })
    }

    fn while_command(&mut self, until: bool) -> Result<Command, Error> {
        self.at += 1;
        let condition = self.list(&["do"])?;
        Ok(Command::While { condition, body: self.body()?, until })
    }

    fn for_command(&mut self) -> Result<Command, Error> {
        self.at += 1;
        let name = match self.next() {
            Some(Token::Word(name)) => name,
            Some(token) => return Err(unexpected(&token)),
            None => return Err(Error::Incomplete),
        };
        self.expect("in")?;
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        while self.skip(";") {}
        Ok(Command::For { name, words, body: self.body()? })
    }

    fn body(&mut self) -> Result<List, Error> {
        self.expect("do")?;
        let body = self.list(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn simple(&mut self) -> Result<Command, Error> {
        let (mut words, mut redirects) = (Vec::new(), Vec::new());
        loop {
            match self.peek().cloned() {
                Some(Token::Word(word)) => words.push(word),
                Some(Token::Redirect(descriptor, sign)) => {
                    self.at += 1;
                    let Some(Token::Word(word)) = self.peek().cloned() else { return Err(Error::Incomplete) };
                    let target = match sign {
                        "<" => Target::Read(word),
                        ">" => Target::Write(word),
                        ">>" => Target::Append(word),
                        _ => Target::Duplicate(word.parse().map_err(|_| Error::Unexpected(word))?),
                    };
                    redirects.push(Redirect { descriptor, target });
                }
                Some(token @ Token::Operator(_)) if words.is_empty() && redirects.is_empty() => {
                    return Err(unexpected(&token));
                }
                None if words.is_empty() && redirects.is_empty() => return Err(Error::Incomplete),
                Some(Token::Operator(_)) | None => return Ok(Command::Simple { words, redirects }),
            }
            self.at += 1;
        }
    }
}
