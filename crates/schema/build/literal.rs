//! Reads the body of a `json_schema!({ … })` call, which is JSON with trailing commas and Rust expressions in
//! parentheses.

#[derive(Debug, Clone)]
pub(crate) enum Literal {
    Object(Vec<(String, Literal)>),
    Array(Vec<Literal>),
    Text(String),
    Bool,
    /// Path of a Rust type, with a description of its own
    Type(String, String),
}

impl Literal {
    pub(crate) fn get(&self, name: &str) -> Option<&Literal> {
        match self {
            Literal::Object(members) => members.iter().find(|(n, _)| n == name).map(|(_, v)| v),
            _ => None,
        }
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        match self.get(name) {
            Some(Literal::Text(text)) => text,
            _ => "",
        }
    }
}

pub(crate) struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&mut self) -> u8 {
        let bytes = self.text.as_bytes();
        while bytes[self.at].is_ascii_whitespace() {
            self.at += 1;
        }
        bytes[self.at]
    }

    fn expect(&mut self, byte: u8) {
        let found = self.peek();
        assert!(found == byte, "expected {:?} before {:?}", byte as char, self.rest());
        self.at += 1;
    }

    fn rest(&self) -> String {
        self.text[self.at..].chars().take(60).collect()
    }

    pub(crate) fn value(&mut self) -> Literal {
        match self.peek() {
            b'{' => {
                let mut members = Vec::new();
                self.sequence(b'{', b'}', |r| {
                    let name = r.string();
                    r.expect(b':');
                    members.push((name, r.value()));
                });
                Literal::Object(members)
            }
            b'[' => {
                let mut items = Vec::new();
                self.sequence(b'[', b']', |r| items.push(r.value()));
                Literal::Array(items)
            }
            b'"' => Literal::Text(self.string()),
            b'(' => self.expression(),
            _ => {
                let rest = &self.text[self.at..];
                let length = rest.find([',', '}', ']', '\n']).expect("a word ends");
                self.at += length;
                let word = rest[..length].trim();
                match word.split_once("subschema_for::<").and_then(|(_, path)| path.strip_suffix(">()")) {
                    Some(path) => Literal::Type(path.to_owned(), String::new()),
                    None if word == "true" || word == "false" => Literal::Bool,
                    None => panic!("unknown literal {word:?}"),
                }
            }
        }
    }

    fn sequence(&mut self, open: u8, close: u8, mut each: impl FnMut(&mut Self)) {
        self.expect(open);
        while self.peek() != close {
            each(self);
            if self.peek() == b',' {
                self.at += 1;
            }
        }
        self.at += 1;
    }

    /// `(__gen.subschema_for::<T>())`, or a block that also sets a description.
    fn expression(&mut self) -> Literal {
        self.expect(b'(');
        let mark = "subschema_for::<";
        let from = self.at + self.text[self.at..].find(mark).expect("a type") + mark.len();
        let length = self.text[from..].find(">()").expect("a type ends");
        let path = self.text[from..from + length].to_owned();
        self.at = from + length + 3;
        let mut description = String::new();
        // Up to the closing parenthesis: strings are skipped whole, nested parentheses counted.
        let mut depth = 1;
        let mut strings = 0;
        while depth > 0 {
            match self.peek() {
                b'"' => {
                    let text = self.string();
                    strings += 1;
                    if strings == 2 {
                        description = text;
                    }
                    continue;
                }
                b'(' => depth += 1,
                b')' => depth -= 1,
                _ => {}
            }
            self.at += 1;
        }
        Literal::Type(path, description)
    }

    fn string(&mut self) -> String {
        self.expect(b'"');
        let mut out = String::new();
        let mut chars = self.text[self.at..].char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return out;
                }
                '\\' => match chars.next().expect("an escape ends").1 {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'u' => {
                        let hex: String = chars.by_ref().map(|(_, c)| c).take_while(|c| *c != '}').collect();
                        let code = u32::from_str_radix(hex.trim_start_matches('{'), 16).expect("a code point");
                        out.push(char::from_u32(code).expect("a code point"));
                    }
                    other => out.push(other),
                },
                c => out.push(c),
            }
        }
        panic!("a string does not end")
    }
}
