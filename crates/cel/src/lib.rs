//! The Common Expression Language as Kubernetes speaks it, on JSON trees.
//!
//! ```text
//!   text ──lex, parse──▶ tree ──check(Env)──▶ Program ──evaluate(Bindings, budget)──▶ Val
//! ```
//!
//! Pure: nothing is read and nobody is asked. Where an expression asks the authorizer, evaluation stops with
//! [`Error::Need`]; whoever evaluates finds the answer out and evaluates again.
//!
//! Invariants: evaluation ends, because every step spends of a budget and there are no loops but over finite data; a
//! program that was checked fails only because of its data.

mod ast;
mod check;
mod eval;
mod lex;
mod library;
mod parse;
mod types;
mod value;

use std::cell::Cell;

pub use check::Env;
pub use library::{Check, Decision, Opaque};
pub use types::{Fields, Structure, Type};
pub use value::{Key, Made, Val};

use eval::{Evaluator, Run};

/// What one expression may spend (Kubernetes' limit per call).
pub const CALL_BUDGET: u64 = 1_000_000;
/// What the expressions of one policy may spend together.
pub const TOTAL_BUDGET: u64 = 10_000_000;
/// What the match conditions of one webhook or policy may spend together.
pub const CONDITIONS_BUDGET: u64 = 2_500_000;

/// Why an evaluation came to nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Failed(String),
    #[error("operation cancelled: actual cost limit exceeded")]
    Budget,
    /// The authorizer's answer is needed first.
    #[error("a decision of the authorizer is missing")]
    Need(Box<Check>),
}

/// What an expression speaks of, by name.
#[derive(Default)]
pub struct Bindings<'a, 'p> {
    pub values: Vec<(&'p str, Val<'a>)>,
    /// `variables.x`, evaluated when they are asked for.
    pub lazy: Vec<(&'p str, &'p Program)>,
    /// Answers of the authorizer.
    pub decisions: &'p [(Check, Decision)],
}

/// A compiled expression.
#[derive(Debug)]
pub struct Program {
    text: String,
    expr: ast::Expr,
    /// What it gives, as far as that is known.
    pub result: Type,
}

impl Program {
    /// Compiles an expression.
    ///
    /// # Errors
    /// Everything that is wrong with it, with places: `ERROR: <input>:1:5: undeclared reference to 'x' …`.
    pub fn compile(text: &str, env: &Env) -> Result<Self, String> {
        let expr = parse::parse(text).map_err(|problem| shown(text, &[problem]))?;
        let result = check::check(env, &expr).map_err(|problems| shown(text, &problems))?;
        Ok(Self { text: text.to_owned(), expr, result })
    }

    /// Whether the expression is known to give a type; a list of unknown items is a list of any.
    pub fn gives(&self, wanted: &Type) -> bool {
        match (wanted, &self.result) {
            (Type::List(_), Type::List(item)) if matches!(**item, Type::Dyn) => true,
            (wanted, is) => wanted == is,
        }
    }

    /// The expression as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the expression names a variable anywhere.
    pub fn mentions(&self, name: &str) -> bool {
        mentions(&self.expr, name)
    }

    /// Evaluates the expression and takes what that costs from a budget.
    ///
    /// # Errors
    /// What fails with this data; [`Error::Need`] when the authorizer has to be asked first.
    pub fn evaluate<'a>(&self, bindings: &Bindings<'a, '_>, budget: &Cell<u64>) -> Result<Val<'a>, Error> {
        let left = Cell::new(budget.get().min(CALL_BUDGET));
        let before = left.get();
        let run = Run { bindings, left: &left, memo: Default::default() };
        let result = Evaluator { run: &run, scope: Vec::new() }.expr(&self.expr);
        budget.set(budget.get() - (before - left.get()));
        result
    }
}

fn mentions(expr: &ast::Expr, name: &str) -> bool {
    use ast::Kind;
    let any = |mut list: &mut dyn Iterator<Item = &ast::Expr>| (&mut list).any(|expr| mentions(expr, name));
    match &expr.kind {
        Kind::Literal(_) => false,
        Kind::Ident(ident) => ident == name,
        Kind::Select { of, .. } => mentions(of, name),
        Kind::Index { of, index, .. } => mentions(of, name) || mentions(index, name),
        Kind::Call { target, args, .. } => any(&mut target.as_deref().into_iter().chain(args)),
        Kind::List(items) => any(&mut items.iter().map(|(_, item)| item)),
        Kind::Map(entries) => any(&mut entries.iter().flat_map(|(_, key, value)| [key, value])),
        Kind::Struct { fields, .. } => any(&mut fields.iter().map(|(_, _, value)| value)),
        Kind::Comprehension(inner) => {
            any(&mut [&inner.range, &inner.body].into_iter().chain(inner.filter.as_ref()))
        }
        Kind::OptMap { target, body, .. } => any(&mut [&**target, &**body].into_iter()),
    }
}

/// Problems with their lines, each with a mark below the place.
fn shown(text: &str, problems: &[lex::Problem]) -> String {
    let one = |(at, why): &lex::Problem| {
        let before = &text[..(*at).min(text.len())];
        let line = before.matches('\n').count();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let column = before[start..].chars().count();
        let source = text[start..].lines().next().unwrap_or_default();
        let mark = format!("{}^", ".".repeat(column));
        format!("ERROR: <input>:{}:{}: {why}\n | {source}\n | {mark}", line + 1, column + 1)
    };
    problems.iter().map(one).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;
