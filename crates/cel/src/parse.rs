//! Tokens into a tree. Macros are recognised here: they are words of the language, not functions.

use crate::ast::{Comprehension, Expr, Fold, Kind, Literal};
use crate::lex::{Problem, Token, tokens};

/// Deeper nesting than this is refused.
const DEEPEST: usize = 120;
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Parses an expression.
pub(crate) fn parse(text: &str) -> Result<Expr, Problem> {
    let mut parser = Parser { tokens: tokens(text)?, next: 0, depth: 0 };
    let expr = parser.ternary()?;
    match parser.peek() {
        Token::End => Ok(expr),
        other => Err(parser.unexpected(&other.clone(), "<EOF>")),
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

type Parsed = Result<Expr, Problem>;

fn call(at: usize, name: &str, args: Vec<Expr>) -> Expr {
    Expr { at, kind: Kind::Call { name: name.to_owned(), target: None, args } }
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn at(&self) -> usize {
        self.tokens[self.next].0
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.next].1.clone();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    fn takes(&mut self, sign: &'static str) -> bool {
        let found = *self.peek() == Token::Sign(sign);
        if found {
            self.advance();
        }
        found
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Problem> {
        if self.takes(sign) {
            Ok(())
        } else {
            Err(self.unexpected(&self.peek().clone(), &format!("'{sign}'")))
        }
    }

    fn unexpected(&self, token: &Token, wanted: &str) -> Problem {
        let shown = match token {
            Token::End => "<EOF>".to_owned(),
            Token::Sign(sign) => (*sign).to_owned(),
            Token::Ident(word) => word.clone(),
            Token::String(text) => format!("\"{text}\""),
            Token::Int(n) => n.to_string(),
            Token::Uint(n) => format!("{n}u"),
            Token::Double(n) => n.to_string(),
            Token::Bytes(_) => "bytes".to_owned(),
        };
        (self.at(), format!("Syntax error: mismatched input '{shown}' expecting {wanted}"))
    }

    fn ternary(&mut self) -> Parsed {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err((self.at(), "expression recursion limit exceeded: 120".to_owned()));
        }
        let condition = self.binary(0)?;
        let at = self.at();
        let result = if self.takes("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.ternary()?;
            call(at, "_?_:_", vec![condition, yes, no])
        } else {
            condition
        };
        self.depth -= 1;
        Ok(result)
    }

    fn binary(&mut self, level: usize) -> Parsed {
        const LEVELS: [&[(&str, &str)]; 5] = [
            &[("||", "_||_")],
            &[("&&", "_&&_")],
            &[("==", "_==_"), ("!=", "_!=_"), ("<=", "_<=_"), (">=", "_>=_"), ("<", "_<_"), (">", "_>_")],
            &[("+", "_+_"), ("-", "_-_")],
            &[("*", "_*_"), ("/", "_/_"), ("%", "_%_")],
        ];
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        loop {
            let at = self.at();
            let found = match self.peek() {
                Token::Sign(sign) => operators.iter().find(|(s, _)| s == sign).map(|(_, name)| *name),
                Token::Ident(word) if level == 2 && word == "in" => Some("@in"),
                _ => None,
            };
            let Some(name) = found else { return Ok(left) };
            self.advance();
            let right = self.binary(level + 1)?;
            left = call(at, name, vec![left, right]);
        }
    }

    fn unary(&mut self) -> Parsed {
        let at = self.at();
        if self.takes("!") {
            self.depth += 1;
            let inner = self.nested(Self::unary)?;
            return Ok(call(at, "!_", vec![inner]));
        }
        if self.takes("-") {
            match self.peek().clone() {
                Token::Int(n) => {
                    self.advance();
                    let literal = Expr { at, kind: Kind::Literal(Literal::Int(n.wrapping_neg())) };
                    return self.postfix(literal);
                }
                Token::Double(n) => {
                    self.advance();
                    return self.postfix(Expr { at, kind: Kind::Literal(Literal::Double(-n)) });
                }
                _ => {}
            }
            self.depth += 1;
            let inner = self.nested(Self::unary)?;
            return Ok(call(at, "-_", vec![inner]));
        }
        let primary = self.primary()?;
        self.postfix(primary)
    }

    fn nested(&mut self, part: fn(&mut Self) -> Parsed) -> Parsed {
        if self.depth > DEEPEST {
            return Err((self.at(), "expression recursion limit exceeded: 120".to_owned()));
        }
        let result = part(self);
        self.depth -= 1;
        result
    }

    fn primary(&mut self) -> Parsed {
        let at = self.at();
        let literal = |literal| Ok(Expr { at, kind: Kind::Literal(literal) });
        match self.advance() {
            Token::Int(n) if n == i64::MIN => Err((at, "Syntax error: invalid int literal".to_owned())),
            Token::Int(n) => literal(Literal::Int(n)),
            Token::Uint(n) => literal(Literal::Uint(n)),
            Token::Double(n) => literal(Literal::Double(n)),
            Token::String(text) => literal(Literal::String(text)),
            Token::Bytes(bytes) => literal(Literal::Bytes(bytes)),
            Token::Ident(word) => match word.as_str() {
                "true" => literal(Literal::Bool(true)),
                "false" => literal(Literal::Bool(false)),
                "null" => literal(Literal::Null),
                _ => self.named(at, word),
            },
            Token::Sign("(") => {
                let inner = self.ternary()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Sign("[") => self.list(at),
            Token::Sign("{") => self.map(at),
            Token::Sign(".") => {
                let word = self.ident()?;
                self.named(at, word)
            }
            other => {
                self.next = self.next.saturating_sub(usize::from(other != Token::End));
                Err(self.unexpected(&other, "an expression"))
            }
        }
    }

    fn named(&mut self, at: usize, word: String) -> Parsed {
        if RESERVED.contains(&word.as_str()) || word == "in" {
            return Err((at, format!("reserved identifier: {word}")));
        }
        if self.takes("(") {
            let args = self.arguments()?;
            return self.function(at, word, args);
        }
        Ok(Expr { at, kind: Kind::Ident(word) })
    }

    fn ident(&mut self) -> Result<String, Problem> {
        match self.peek().clone() {
            Token::Ident(word) => {
                self.advance();
                Ok(word)
            }
            other => Err(self.unexpected(&other, "IDENTIFIER")),
        }
    }

    fn arguments(&mut self) -> Result<Vec<Expr>, Problem> {
        let mut args = Vec::new();
        if self.takes(")") {
            return Ok(args);
        }
        loop {
            args.push(self.ternary()?);
            if self.takes(")") {
                return Ok(args);
            }
            self.expect(",")?;
        }
    }

    fn list(&mut self, at: usize) -> Parsed {
        let mut items = Vec::new();
        while !self.takes("]") {
            let optional = self.takes("?");
            items.push((optional, self.ternary()?));
            if !self.takes(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok(Expr { at, kind: Kind::List(items) })
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        while !self.takes("}") {
            let optional = self.takes("?");
            let key = self.ternary()?;
            self.expect(":")?;
            entries.push((optional, key, self.ternary()?));
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr { at, kind: Kind::Map(entries) })
    }

    fn structure(&mut self, at: usize, name: String) -> Parsed {
        let mut fields = Vec::new();
        while !self.takes("}") {
            let optional = self.takes("?");
            let field = self.ident()?;
            self.expect(":")?;
            fields.push((field, optional, self.ternary()?));
            if !self.takes(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(Expr { at, kind: Kind::Struct { name, fields } })
    }

    fn postfix(&mut self, mut expr: Expr) -> Parsed {
        loop {
            let at = self.at();
            if self.takes(".") {
                let optional = self.takes("?");
                let field = self.ident()?;
                if !optional && self.takes("(") {
                    let args = self.arguments()?;
                    expr = self.method(at, expr, field, args)?;
                } else {
                    expr =
                        Expr { at, kind: Kind::Select { of: Box::new(expr), field, optional, test: false } };
                }
            } else if self.takes("[") {
                let optional = self.takes("?");
                let index = Box::new(self.ternary()?);
                self.expect("]")?;
                expr = Expr { at, kind: Kind::Index { of: Box::new(expr), index, optional } };
            } else if *self.peek() == Token::Sign("{")
                && let Some(name) = qualified(&expr)
            {
                self.advance();
                expr = self.structure(expr.at, name)?;
            } else {
                return Ok(expr);
            }
        }
    }

    /// A call without a target, or the macro `has`.
    fn function(&mut self, at: usize, name: String, mut args: Vec<Expr>) -> Parsed {
        if name == "has" && args.len() == 1 {
            let arg = args.remove(0);
            let Kind::Select { of, field, optional, .. } = arg.kind else {
                return Err((at, "invalid argument to has() macro".to_owned()));
            };
            return Ok(Expr { at: arg.at, kind: Kind::Select { of, field, optional, test: true } });
        }
        Ok(Expr { at, kind: Kind::Call { name, target: None, args } })
    }

    /// A call with a target, or a macro.
    fn method(&mut self, at: usize, target: Expr, name: String, args: Vec<Expr>) -> Parsed {
        let fold = match (name.as_str(), args.len()) {
            ("all", 2 | 3) => Some((Fold::All, args.len() - 1)),
            ("exists", 2 | 3) => Some((Fold::Exists, args.len() - 1)),
            ("exists_one" | "existsOne", 2 | 3) => Some((Fold::ExistsOne, args.len() - 1)),
            ("filter", 2) => Some((Fold::Filter, 1)),
            ("map", 2 | 3) => Some((Fold::Map, 1)),
            ("transformList", 3 | 4) => Some((Fold::Map, 2)),
            ("transformMap", 3 | 4) => Some((Fold::TransformMap, 2)),
            ("transformMapEntry", 3 | 4) => Some((Fold::TransformMapEntry, 2)),
            ("sortBy", 2) => Some((Fold::SortBy, 1)),
            _ => None,
        };
        if let Some((fold, count)) = fold {
            return comprehension(at, fold, target, args, count);
        }
        if matches!(name.as_str(), "optMap" | "optFlatMap") && args.len() == 2 {
            let [var, body] = <[Expr; 2]>::try_from(args).expect("two arguments were counted");
            let var = variable(&var)?;
            let flat = name == "optFlatMap";
            return Ok(Expr {
                at,
                kind: Kind::OptMap { target: Box::new(target), var, body: Box::new(body), flat },
            });
        }
        // Functions in a namespace: `optional.of`, `sets.contains`.
        if let Kind::Ident(space) = &target.kind
            && matches!(
                space.as_str(),
                "optional" | "sets" | "strings" | "lists" | "format" | "ip" | "jsonpatch" | "math"
            )
            && crate::library::is_global(&format!("{space}.{name}"))
        {
            return Ok(Expr { at, kind: Kind::Call { name: format!("{space}.{name}"), target: None, args } });
        }
        Ok(Expr { at, kind: Kind::Call { name, target: Some(Box::new(target)), args } })
    }
}

fn variable(expr: &Expr) -> Result<String, Problem> {
    match &expr.kind {
        Kind::Ident(name) => Ok(name.clone()),
        _ => Err((expr.at, "argument must be a simple name".to_owned())),
    }
}

fn comprehension(at: usize, fold: Fold, range: Expr, args: Vec<Expr>, count: usize) -> Parsed {
    let mut args = args.into_iter();
    let mut vars = Vec::new();
    for _ in 0..count {
        vars.push(variable(&args.next().expect("the arguments were counted"))?);
    }
    let first = args.next().expect("the arguments were counted");
    let (filter, body) = match args.next() {
        Some(body) => (Some(first), body),
        None => (None, first),
    };
    Ok(Expr { at, kind: Kind::Comprehension(Box::new(Comprehension { fold, range, vars, filter, body })) })
}

/// The dotted name that an expression spells, if it is one.
fn qualified(expr: &Expr) -> Option<String> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select { of, field, optional: false, test: false } => {
            Some(format!("{}.{field}", qualified(of)?))
        }
        _ => None,
    }
}
