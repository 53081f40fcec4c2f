//! Text into tokens.

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Ident(String),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

/// Longest first.
const SIGNS: [&str; 27] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "+", "-", "*", "/", "%", "!", "?", ":", ".", ",", "(", ")",
    "[", "]", "{", "}", "=", "&", "|",
];

/// What is wrong, and where.
pub(crate) type Problem = (usize, String);

/// All tokens with their byte offsets; the last one is `End`.
pub(crate) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Problem> {
    let mut lexer = Lexer { text, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_blank();
        let start = lexer.at;
        let token = lexer.next(start)?;
        let end = token == Token::End;
        out.push((start, token));
        if end {
            return Ok(out);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start().len();
            if !self.rest().starts_with("//") {
                return;
            }
            self.at += self.rest().find('\n').unwrap_or(self.rest().len());
        }
    }

    fn next(&mut self, start: usize) -> Result<Token, Problem> {
        let Some(first) = self.rest().chars().next() else { return Ok(Token::End) };
        if let Some(prefix) = self.string_prefix() {
            return self.string(prefix);
        }
        let digit_follows = self.rest().as_bytes().get(1).is_some_and(u8::is_ascii_digit);
        if first.is_ascii_digit() || (first == '.' && digit_follows) {
            return self.number();
        }
        if first == '_' || first.is_ascii_alphabetic() {
            let length = self.rest().bytes().take_while(|b| *b == b'_' || b.is_ascii_alphanumeric()).count();
            let word = self.rest()[..length].to_owned();
            self.at += length;
            return Ok(Token::Ident(word));
        }
        if first == '`' {
            let inside = &self.rest()[1..];
            let end = inside.find('`').ok_or((start, "token recognition error at: '`'".to_owned()))?;
            let word = inside[..end].to_owned();
            self.at += end + 2;
            return Ok(Token::Ident(word));
        }
        let sign = SIGNS.into_iter().find(|sign| self.rest().starts_with(sign));
        let sign = sign.ok_or_else(|| (start, format!("token recognition error at: '{first}'")))?;
        self.at += sign.len();
        Ok(Token::Sign(sign))
    }

    /// The letters before a quote.
    fn string_prefix(&self) -> Option<usize> {
        let bytes = self.rest().as_bytes();
        let letters = bytes.iter().take_while(|b| matches!(b, b'r' | b'R' | b'b' | b'B')).count();
        let quoted = bytes.get(letters).is_some_and(|b| matches!(b, b'"' | b'\''));
        (letters <= 2 && quoted).then_some(letters)
    }

    fn string(&mut self, prefix: usize) -> Result<Token, Problem> {
        let start = self.at;
        let letters = self.rest()[..prefix].to_ascii_lowercase();
        let (raw, bytes) = (letters.contains('r'), letters.contains('b'));
        self.at += prefix;
        let quote = &self.rest()[..1];
        let triple = quote.repeat(3);
        let close = if self.rest().starts_with(&triple) { triple } else { quote.to_owned() };
        self.at += close.len();
        let mut out = Vec::new();
        loop {
            let open = || (start, "Syntax error: unterminated string".to_owned());
            if self.rest().starts_with(&close) {
                self.at += close.len();
                break;
            }
            let next = self.rest().chars().next().ok_or_else(open)?;
            if next == '\n' && close.len() == 1 {
                return Err(open());
            }
            self.at += next.len_utf8();
            if next == '\\' && !raw {
                self.escape(start, bytes, &mut out)?;
            } else {
                out.extend_from_slice(next.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        if bytes {
            return Ok(Token::Bytes(out));
        }
        String::from_utf8(out).map(Token::String).map_err(|_| (start, "invalid string".to_owned()))
    }

    fn escape(&mut self, start: usize, bytes: bool, out: &mut Vec<u8>) -> Result<(), Problem> {
        let wrong = || (start, "unable to unescape string".to_owned());
        let letter = self.rest().chars().next().ok_or_else(wrong)?;
        self.at += letter.len_utf8();
        let plain = match letter {
            'a' => Some(7),
            'b' => Some(8),
            'f' => Some(12),
            'n' => Some(b'\n'),
            'r' => Some(b'\r'),
            't' => Some(b'\t'),
            'v' => Some(11),
            _ => None,
        };
        if let Some(byte) = plain {
            out.push(byte);
            return Ok(());
        }
        let (digits, radix) = match letter {
            '\\' | '?' | '"' | '\'' | '`' => {
                out.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            'x' | 'X' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='3' => {
                self.at -= 1;
                (3, 8)
            }
            _ => return Err(wrong()),
        };
        let text = self.rest().get(..digits).ok_or_else(wrong)?;
        let code = u32::from_str_radix(text, radix).map_err(|_| wrong())?;
        self.at += digits;
        match u8::try_from(code) {
            Ok(byte) if bytes && matches!(digits, 2 | 3) => out.push(byte),
            _ => {
                let character = char::from_u32(code).ok_or_else(wrong)?;
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Token, Problem> {
        let start = self.at;
        let rest = self.rest();
        let hex = rest.starts_with("0x") || rest.starts_with("0X");
        let count =
            |from: usize, ok: fn(&u8) -> bool| rest.as_bytes()[from..].iter().take_while(|b| ok(b)).count();
        let (mut end, mut float) = (0, false);
        if hex {
            end = 2 + count(2, u8::is_ascii_hexdigit);
        } else {
            end += count(0, u8::is_ascii_digit);
            let bytes = rest.as_bytes();
            if bytes.get(end) == Some(&b'.') && bytes.get(end + 1).is_some_and(u8::is_ascii_digit) {
                float = true;
                end += 1 + count(end + 1, u8::is_ascii_digit);
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                let digits = count((end + 1 + sign).min(bytes.len()), u8::is_ascii_digit);
                if digits > 0 {
                    float = true;
                    end += 1 + sign + digits;
                }
            }
        }
        let text = rest[..end].to_owned();
        let unsigned = matches!(rest.as_bytes().get(end), Some(b'u' | b'U')) && !float;
        self.at += end + usize::from(unsigned);
        let digits = if hex { &text[2..] } else { text.as_str() };
        let radix = if hex { 16 } else { 10 };
        let wrong = |what: &str| (start, format!("Syntax error: invalid {what} literal"));
        if float {
            return text.parse().map(Token::Double).map_err(|_| wrong("double"));
        }
        let value = u64::from_str_radix(digits, radix).map_err(|_| wrong("int"))?;
        if unsigned {
            return Ok(Token::Uint(value));
        }
        // The smallest integer is written as a negated literal; the parser joins the two.
        match i64::try_from(value) {
            Ok(value) => Ok(Token::Int(value)),
            Err(_) if value == i64::MIN.unsigned_abs() => Ok(Token::Int(i64::MIN)),
            Err(_) => Err(wrong("int")),
        }
    }
}
