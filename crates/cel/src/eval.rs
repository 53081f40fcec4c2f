//! Evaluation of a tree: a walk that spends a budget.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value as Json;

use crate::ast::{Comprehension, Expr, Fold, Kind, Literal};
use crate::check::unescaped;
use crate::library::{self, Check, Decision};
use crate::types::Type;
use crate::value::{Key, Made, Val};
use crate::{Bindings, Error};

pub(crate) type Eval<'a> = Result<Val<'a>, Error>;

/// What evaluations of one request share: what is left to spend, and what lazy variables gave.
pub(crate) struct Run<'a, 'p> {
    pub(crate) bindings: &'p Bindings<'a, 'p>,
    pub(crate) left: &'p Cell<u64>,
    pub(crate) memo: RefCell<HashMap<String, Result<Val<'a>, Error>>>,
}

pub(crate) struct Evaluator<'a, 'p, 'r> {
    pub(crate) run: &'r Run<'a, 'p>,
    pub(crate) scope: Vec<(&'p str, Val<'a>)>,
}

fn failed<'a>(why: impl Into<String>) -> Eval<'a> {
    Err(Error::Failed(why.into()))
}

fn no_overload<'a>() -> Eval<'a> {
    failed("no such overload")
}

impl<'a, 'p> Evaluator<'a, 'p, '_> {
    fn spend(&self, cost: u64) -> Result<(), Error> {
        match self.run.left.get().checked_sub(cost) {
            Some(left) => {
                self.run.left.set(left);
                Ok(())
            }
            None => Err(Error::Budget),
        }
    }

    pub(crate) fn expr(&mut self, expr: &'p Expr) -> Eval<'a> {
        self.spend(1)?;
        match &expr.kind {
            Kind::Literal(literal) => Ok(value_of(literal)),
            Kind::Ident(name) => self.ident(name),
            Kind::Select { of, field, optional, test } => self.select(of, field, *optional, *test),
            Kind::Index { of, index, optional } => {
                let (of, index) = (self.expr(of)?, self.expr(index)?);
                self.index(&of, &index, *optional)
            }
            Kind::Call { name, target, args } => self.call(name, target.as_deref(), args),
            Kind::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (optional, item) in items {
                    list.extend(self.item(*optional, item)?);
                }
                Ok(Val::list(list))
            }
            Kind::Map(entries) => {
                let mut map = BTreeMap::new();
                for (optional, key, value) in entries {
                    let key =
                        self.expr(key)?.key().ok_or_else(|| Error::Failed("unsupported key type".into()))?;
                    if let Some(value) = self.item(*optional, value)?
                        && map.insert(key.clone(), value).is_some()
                    {
                        return failed(format!("duplicate key: {key}"));
                    }
                }
                Ok(Val::Map(Arc::new(map)))
            }
            Kind::Struct { name, fields } => {
                let mut made = BTreeMap::new();
                for (field, optional, value) in fields {
                    if let Some(value) = self.item(*optional, value)? {
                        made.insert(unescaped(field), value);
                    }
                }
                Ok(Val::Struct(Arc::new(Made { name: name.clone(), fields: made })))
            }
            Kind::Comprehension(inner) => self.comprehension(inner),
            Kind::OptMap { target, var, body, flat } => match self.expr(target)? {
                Val::Optional(None) => Ok(Val::NONE),
                Val::Optional(Some(inner)) => {
                    self.scope.push((var, (*inner).clone()));
                    let result = self.expr(body);
                    self.scope.pop();
                    if *flat { result } else { result.map(Val::some) }
                }
                _ => no_overload(),
            },
        }
    }

    fn item(&mut self, optional: bool, expr: &'p Expr) -> Result<Option<Val<'a>>, Error> {
        let value = self.expr(expr)?;
        Ok(match value {
            Val::Optional(inner) if optional => inner.map(|inner| (*inner).clone()),
            other => Some(other),
        })
    }

    fn ident(&mut self, name: &str) -> Eval<'a> {
        if let Some((_, value)) = self.scope.iter().rev().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        if let Some((_, value)) = self.run.bindings.values.iter().find(|(known, _)| *known == name) {
            return Ok(value.clone());
        }
        match name {
            "bool" | "int" | "uint" | "double" | "string" | "bytes" | "list" | "map" | "null_type"
            | "type" => Ok(Val::Type(name.into())),
            _ => failed(format!("no such attribute: {name}")),
        }
    }

    /// A variable that is an expression of its own, evaluated when it is first asked for.
    fn lazy(&mut self, name: &str) -> Option<Eval<'a>> {
        let (_, program) = self.run.bindings.lazy.iter().find(|(known, _)| *known == name)?;
        if let Some(known) = self.run.memo.borrow().get(name) {
            return Some(known.clone());
        }
        let result = Evaluator { run: self.run, scope: Vec::new() }.expr(&program.expr);
        let result = result.map_err(|error| match error {
            Error::Failed(why) => {
                Error::Failed(format!("composited variable {name:?} fails to evaluate: {why}"))
            }
            other => other,
        });
        self.run.memo.borrow_mut().insert(name.to_owned(), result.clone());
        Some(result)
    }

    fn select(&mut self, of: &'p Expr, field: &str, optional: bool, test: bool) -> Eval<'a> {
        if let Kind::Ident(name) = &of.kind
            && name == "variables"
            && let Some(result) = self.lazy(field)
        {
            return if test { result.map(|_| Val::Bool(true)) } else { result };
        }
        let of = self.expr(of)?;
        if let Val::Optional(inner) = &of {
            let found = inner.as_ref().and_then(|inner| member(inner, field));
            return Ok(if test { Val::Bool(found.is_some()) } else { Val::Optional(found.map(Arc::new)) });
        }
        let has_fields =
            matches!(of, Val::Map(_) | Val::Struct(_) | Val::Opaque(_) | Val::Tree(Json::Object(_), _));
        if !has_fields && (test || !optional) {
            return no_overload();
        }
        let found = member(&of, field);
        match (found, test, optional) {
            (found, true, _) => {
                Ok(Val::Bool(found.is_some_and(|found| !matches!(found, Val::Null) || !is_typed(&of))))
            }
            (found, false, true) => Ok(Val::Optional(found.map(Arc::new))),
            (Some(found), false, false) => Ok(found),
            (None, false, false) => failed(format!("no such key: {field}")),
        }
    }

    fn index(&mut self, of: &Val<'a>, index: &Val<'a>, optional: bool) -> Eval<'a> {
        if let Val::Optional(inner) = of {
            let Some(inner) = inner else { return Ok(Val::NONE) };
            let inner = Val::clone(inner);
            return self.index(&inner, index, true);
        }
        let found = if of.is_list() {
            let at = match index.key() {
                Some(Key::Int(at)) => usize::try_from(at).ok(),
                _ => return no_overload(),
            };
            at.and_then(|at| of.item(at)).ok_or_else(|| format!("index out of bounds: {}", shown(index)))
        } else if let Some(key) = index.key() {
            let found = match (&key, of) {
                (Key::String(name), _) => of.field(name),
                (key, Val::Map(map)) => map.get(key).cloned(),
                _ => None,
            };
            if !of.is_map() {
                return no_overload();
            }
            found.ok_or_else(|| format!("no such key: {}", shown(index)))
        } else {
            return no_overload();
        };
        match (found, optional) {
            (found, true) => Ok(Val::Optional(found.ok().map(Arc::new))),
            (Ok(found), false) => Ok(found),
            (Err(why), false) => failed(why),
        }
    }

    fn call(&mut self, name: &'p str, target: Option<&'p Expr>, args: &'p [Expr]) -> Eval<'a> {
        match (name, args) {
            ("_&&_", [left, right]) => return self.logic(left, right, false),
            ("_||_", [left, right]) => return self.logic(left, right, true),
            ("_?_:_", [condition, yes, no]) => {
                return match self.expr(condition)? {
                    Val::Bool(true) => self.expr(yes),
                    Val::Bool(false) => self.expr(no),
                    _ => no_overload(),
                };
            }
            _ => {}
        }
        let mut values = Vec::with_capacity(args.len() + 1);
        if let Some(target) = target {
            values.push(self.expr(target)?);
        }
        if matches!((name, values.first()), ("or" | "orValue", Some(Val::Optional(Some(_))))) {
            let found = values.remove(0);
            return match found {
                Val::Optional(Some(inner)) if name == "orValue" => Ok((*inner).clone()),
                other => Ok(other),
            };
        }
        for arg in args {
            values.push(self.expr(arg)?);
        }
        self.spend(cost(name, &values))?;
        let result = library::call(name, target.is_some(), &values);
        // What is made has to be paid for too: text that doubles would not end otherwise.
        self.spend(result.as_ref().map_or(0, weight) / 10)?;
        match result {
            Ok(Val::Opaque(opaque)) => self.decided(&opaque),
            other => other,
        }
    }

    /// A question to the authorizer becomes its decision.
    fn decided(&self, opaque: &Arc<library::Opaque>) -> Eval<'a> {
        let library::Opaque::Question(check) = &**opaque else { return Ok(Val::Opaque(Arc::clone(opaque))) };
        self.spend(350_000)?;
        let known: Option<&(Check, Decision)> =
            self.run.bindings.decisions.iter().find(|(known, _)| known == check);
        match known {
            Some((_, decision)) => Ok(Val::Opaque(Arc::new(library::Opaque::Decision(decision.clone())))),
            None => Err(Error::Need(Box::new(check.clone()))),
        }
    }

    /// `&&` and `||`: one side that decides absorbs a failure of the other.
    fn logic(&mut self, left: &'p Expr, right: &'p Expr, decisive: bool) -> Eval<'a> {
        let first = self.expr(left);
        if let Err(error @ (Error::Budget | Error::Need(_))) = first {
            return Err(error);
        }
        if matches!(first, Ok(Val::Bool(value)) if value == decisive) {
            return first;
        }
        let second = self.expr(right);
        match (first, second) {
            (_, Err(error @ (Error::Budget | Error::Need(_)))) => Err(error),
            (_, Ok(Val::Bool(value))) if value == decisive => Ok(Val::Bool(decisive)),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(Val::Bool(_)), Ok(Val::Bool(_))) => Ok(Val::Bool(!decisive)),
            _ => no_overload(),
        }
    }

    fn comprehension(&mut self, inner: &'p Comprehension) -> Eval<'a> {
        let range = self.expr(&inner.range)?;
        let entries: Vec<(Val<'a>, Val<'a>)> = if let Some(items) = range.items() {
            (0..).map(Val::Int).zip(items).collect()
        } else if let Some(entries) = range.entries() {
            entries.into_iter().map(|(key, value)| (key.into_val(), value)).collect()
        } else {
            return no_overload();
        };
        let is_map = range.items().is_none();
        let mut gathered = Gathered::default();
        for (key, value) in entries {
            let one = if is_map { key.clone() } else { value.clone() };
            let depth = self.scope.len();
            match inner.vars.as_slice() {
                [var] => self.scope.push((var, one.clone())),
                [first, second] => {
                    self.scope.push((first, key.clone()));
                    self.scope.push((second, value));
                }
                _ => return no_overload(),
            }
            let accepted = inner.filter.as_ref().map_or(Ok(Val::Bool(true)), |filter| self.expr(filter));
            let body = match accepted {
                Ok(Val::Bool(true)) => Some(self.expr(&inner.body)),
                Ok(Val::Bool(false)) => None,
                Ok(_) => Some(no_overload()),
                Err(error) => Some(Err(error)),
            };
            self.scope.truncate(depth);
            if let Some(body) = body
                && gathered.add(inner.fold, key, one, body)?
            {
                break;
            }
        }
        gathered.finish(inner.fold)
    }
}

/// What a comprehension has made so far.
#[derive(Default)]
struct Gathered<'a> {
    list: Vec<Val<'a>>,
    keys: Vec<Val<'a>>,
    map: BTreeMap<Key, Val<'a>>,
    count: usize,
    decided: bool,
    error: Option<Error>,
}

impl<'a> Gathered<'a> {
    /// Adds what the body gave for one item; whether the rest does not matter.
    fn add(&mut self, fold: Fold, key: Val<'a>, item: Val<'a>, body: Eval<'a>) -> Result<bool, Error> {
        if let Err(error @ (Error::Budget | Error::Need(_))) = body {
            return Err(error);
        }
        match (fold, body) {
            (Fold::All | Fold::Exists, Ok(Val::Bool(value))) => {
                self.decided = value == (fold == Fold::Exists);
                return Ok(self.decided);
            }
            (Fold::All | Fold::Exists, Err(error)) => self.error = Some(error),
            (Fold::ExistsOne, Ok(Val::Bool(value))) => self.count += usize::from(value),
            (Fold::Filter, Ok(Val::Bool(value))) => self.list.extend(Some(item).filter(|_| value)),
            (Fold::Map, Ok(value)) => self.list.push(value),
            (Fold::SortBy, Ok(value)) => {
                self.keys.push(value);
                self.list.push(item);
            }
            (Fold::TransformMap, Ok(value)) => {
                let key = key.key().ok_or_else(|| Error::Failed("unsupported key type".into()))?;
                self.map.insert(key, value);
            }
            (Fold::TransformMapEntry, Ok(value)) => {
                for (key, value) in value.entries().ok_or_else(|| Error::Failed("no such overload".into()))? {
                    if self.map.insert(key.clone(), value).is_some() {
                        return Err(Error::Failed(format!("insert failed: key {key} already exists")));
                    }
                }
            }
            (_, Err(error)) => return Err(error),
            _ => return Err(Error::Failed("no such overload".into())),
        }
        Ok(false)
    }

    fn finish(self, fold: Fold) -> Eval<'a> {
        Ok(match fold {
            Fold::All | Fold::Exists => match (self.decided, self.error) {
                (false, Some(error)) => return Err(error),
                (decided, _) => Val::Bool(decided == (fold == Fold::Exists)),
            },
            Fold::ExistsOne => Val::Bool(self.count == 1),
            Fold::Filter | Fold::Map => Val::list(self.list),
            Fold::TransformMap | Fold::TransformMapEntry => Val::Map(Arc::new(self.map)),
            Fold::SortBy => {
                let mut pairs: Vec<_> = self.keys.into_iter().zip(self.list).collect();
                pairs.sort_by(|(a, _), (b, _)| a.order(b).unwrap_or(std::cmp::Ordering::Equal));
                Val::list(pairs.into_iter().map(|(_, item)| item).collect())
            }
        })
    }
}

fn is_typed(val: &Val<'_>) -> bool {
    matches!(val, Val::Tree(_, Type::Struct(_)))
}

fn member<'a>(of: &Val<'a>, field: &str) -> Option<Val<'a>> {
    of.field(field).or_else(|| of.field(&unescaped(field)).filter(|_| field.contains("__")))
}

/// Roughly how much work a value is.
fn weight(val: &Val<'_>) -> u64 {
    let size = match val {
        Val::String(text) => text.len(),
        other => other.size().unwrap_or(0),
    };
    u64::try_from(size).unwrap_or(u64::MAX)
}

/// What compiling a pattern costs, whatever it is matched with.
const PATTERN_COST: u64 = 200;

/// Roughly how much work a call is.
fn cost(name: &str, args: &[Val<'_>]) -> u64 {
    let sizes = || args.iter().map(weight);
    match (name, args) {
        ("matches" | "find" | "findAll", _) => PATTERN_COST + sizes().sum::<u64>(),
        // Everything is compared with everything.
        ("sets.contains" | "sets.equivalent" | "sets.intersects", _) => sizes().fold(1, u64::saturating_mul),
        ("distinct", [list]) => weight(list).saturating_mul(weight(list)) / 2,
        ("lists.range", [Val::Int(count)]) => count.unsigned_abs(),
        _ => sizes().sum::<u64>() / 10,
    }
}

fn shown(val: &Val<'_>) -> String {
    val.to_json().map_or_else(String::new, |json| match json {
        Json::String(text) => text,
        other => other.to_string(),
    })
}

fn value_of<'a>(literal: &Literal) -> Val<'a> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(b) => Val::Bool(*b),
        Literal::Int(n) => Val::Int(*n),
        Literal::Uint(n) => Val::Uint(*n),
        Literal::Double(n) => Val::Double(*n),
        Literal::String(text) => Val::text(text),
        Literal::Bytes(bytes) => Val::Bytes(bytes.as_slice().into()),
    }
}
