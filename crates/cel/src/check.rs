//! Types of a tree, found before it is evaluated: unknown names, unknown fields, calls that fit no function.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{Comprehension, Expr, Fold, Kind, Literal};
use crate::lex::Problem;
use crate::library;
use crate::types::{Found, Structure, Type, fits, join};

/// What an expression may speak of.
#[derive(Clone, Default)]
pub struct Env {
    variables: HashMap<String, Type>,
    /// Types that can be made with `Name{…}`.
    structures: Vec<Arc<dyn Structure>>,
    /// `Object…{}` may be made, of fields that nobody knows yet.
    open_objects: bool,
}

impl Env {
    /// An environment without variables.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a variable.
    #[must_use]
    pub fn with(mut self, name: &str, ty: Type) -> Self {
        self.variables.insert(name.to_owned(), ty);
        self
    }

    /// Adds a type that can be made.
    #[must_use]
    pub fn constructing(mut self, structure: Arc<dyn Structure>) -> Self {
        self.structures.push(structure);
        self
    }

    /// Allows `Object{…}`, `Object.spec{…}` and so on with any fields.
    #[must_use]
    pub fn with_open_objects(mut self) -> Self {
        self.open_objects = true;
        self
    }
}

/// The name of a field as the data has it: names that are no identifiers are written escaped.
pub(crate) fn unescaped(name: &str) -> String {
    const WORDS: [(&str, &str); 4] =
        [("__underscores__", "__"), ("__dot__", "."), ("__dash__", "-"), ("__slash__", "/")];
    if !name.contains("__") {
        return name.to_owned();
    }
    if let Some(word) = name.strip_prefix("__").and_then(|rest| rest.strip_suffix("__"))
        && word.bytes().all(|b| b.is_ascii_alphabetic())
        && !WORDS.iter().any(|(escape, _)| *escape == name)
    {
        return word.to_owned();
    }
    let (mut out, mut rest) = (String::new(), name);
    'outer: while !rest.is_empty() {
        for (escape, plain) in WORDS {
            if let Some(after) = rest.strip_prefix(escape) {
                out.push_str(plain);
                rest = after;
                continue 'outer;
            }
        }
        let next = rest.chars().next().expect("the rest is not empty");
        out.push(next);
        rest = &rest[next.len_utf8()..];
    }
    out
}

/// Finds the type of a tree, or everything that is wrong with it.
pub(crate) fn check(env: &Env, expr: &Expr) -> Result<Type, Vec<Problem>> {
    let mut checker = Checker { env, scope: Vec::new(), problems: Vec::new(), mixed: false };
    let ty = checker.expr(expr);
    if checker.problems.is_empty() { Ok(ty) } else { Err(checker.problems) }
}

struct Checker<'e> {
    env: &'e Env,
    scope: Vec<(String, Type)>,
    problems: Vec<Problem>,
    /// Lists may hold different types: the arguments of `format`.
    mixed: bool,
}

impl Checker<'_> {
    fn wrong(&mut self, at: usize, why: String) -> Type {
        self.problems.push((at, why));
        Type::Dyn
    }

    fn expr(&mut self, expr: &Expr) -> Type {
        match &expr.kind {
            Kind::Literal(literal) => literal_type(literal),
            Kind::Ident(name) => self.ident(expr.at, name),
            Kind::Select { of, field, optional, test } => {
                let of = self.expr(of);
                let ty = self.select(expr.at, &of, field, *optional);
                if *test { Type::Bool } else { ty }
            }
            Kind::Index { of, index, optional } => {
                let (container, index) = (self.expr(of), self.expr(index));
                self.index(expr.at, &container, &index, *optional)
            }
            Kind::Call { name, target, args } => self.call(expr.at, name, target.as_deref(), args),
            Kind::List(items) => self.list(items),
            Kind::Map(entries) => self.map(entries),
            Kind::Struct { name, fields } => self.structure(expr.at, name, fields),
            Kind::Comprehension(inner) => self.comprehension(inner),
            Kind::OptMap { target, var, body, flat } => {
                let inner = match self.expr(target) {
                    Type::Optional(inner) => (*inner).clone(),
                    ty if ty.is_dyn() => Type::Dyn,
                    other => {
                        let why = format!("found no matching overload for 'optMap' applied to '{other}'");
                        self.wrong(target.at, why)
                    }
                };
                self.scope.push((var.clone(), inner));
                let body = self.expr(body);
                self.scope.pop();
                if *flat { body } else { Type::optional(body) }
            }
        }
    }

    fn ident(&mut self, at: usize, name: &str) -> Type {
        if let Some((_, ty)) = self.scope.iter().rev().find(|(known, _)| known == name) {
            return ty.clone();
        }
        if let Some(ty) = self.env.variables.get(name) {
            return ty.clone();
        }
        const TYPES: [&str; 10] =
            ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];
        if TYPES.contains(&name) {
            return Type::Type;
        }
        self.wrong(at, format!("undeclared reference to '{name}' (in container '')"))
    }

    fn select(&mut self, at: usize, of: &Type, field: &str, optional: bool) -> Type {
        let ty = match of {
            Type::Dyn | Type::Param(_) => Type::Dyn,
            Type::Map(_, value) => (**value).clone(),
            Type::Struct(structure) => {
                match structure.field(field).or_else(|| structure.field(&unescaped(field))) {
                    Some(ty) => ty,
                    None => return self.wrong(at, format!("undefined field '{field}'")),
                }
            }
            Type::Optional(inner) => {
                let inner = self.select(at, inner, field, false);
                return if matches!(inner, Type::Optional(_)) { inner } else { Type::optional(inner) };
            }
            Type::Opaque("kubernetes.authorization.Authorizer") if field == "requestResource" => {
                Type::Opaque("kubernetes.authorization.ResourceCheck")
            }
            other => return self.wrong(at, format!("type '{other}' does not support field selection")),
        };
        if optional { Type::optional(ty) } else { ty }
    }

    fn index(&mut self, at: usize, of: &Type, index: &Type, optional: bool) -> Type {
        let fit = |want: &Type| {
            fits(want, index) || matches!((want, index), (Type::Int, Type::Uint | Type::Double))
        };
        let ty = match of {
            Type::Dyn | Type::Param(_) => Type::Dyn,
            Type::List(item) if fit(&Type::Int) => (**item).clone(),
            Type::Map(key, value) if fit(key) => (**value).clone(),
            Type::Optional(inner) => {
                let inner = self.index(at, &inner.clone(), index, false);
                return if matches!(inner, Type::Optional(_)) { inner } else { Type::optional(inner) };
            }
            other => {
                let why = format!("found no matching overload for '_[_]' applied to '({other}, {index})'");
                return self.wrong(at, why);
            }
        };
        if optional { Type::optional(ty) } else { ty }
    }

    fn call(&mut self, at: usize, name: &str, target: Option<&Expr>, args: &[Expr]) -> Type {
        let target = target.map(|target| self.expr(target));
        let outer = std::mem::replace(&mut self.mixed, name == "format");
        let args: Vec<Type> = args.iter().map(|arg| self.expr(arg)).collect();
        self.mixed = outer;
        let signatures = library::signatures(name);
        if signatures.is_empty() {
            return self.wrong(at, format!("undeclared reference to '{name}' (in container '')"));
        }
        let mut results: Vec<Type> = Vec::new();
        for signature in signatures.iter().filter(|s| s.target.is_some() == target.is_some()) {
            let mut found = Found::default();
            let target_fits = match (&signature.target, &target) {
                (Some(want), Some(is)) => found.takes(want, is),
                _ => true,
            };
            if target_fits
                && signature.args.len() == args.len()
                && signature.args.iter().zip(&args).all(|(want, is)| found.takes(want, is))
            {
                results.push(found.fill(&signature.result));
            }
        }
        if let Some(first) = results.first().cloned() {
            // Several functions fit arguments of unknown types: what they agree on is known.
            return if results.iter().all(|other| *other == first) { first } else { Type::Dyn };
        }
        let list = args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let applied = target.map_or_else(|| format!("({list})"), |target| format!("{target}.({list})"));
        self.wrong(at, format!("found no matching overload for '{name}' applied to '{applied}'"))
    }

    fn joined(&mut self, at: usize, known: Option<Type>, ty: Type) -> Option<Type> {
        let Some(known) = known else { return Some(ty) };
        match join(&known, &ty) {
            Some(joined) => Some(joined),
            None if self.mixed => Some(Type::Dyn),
            None => {
                self.wrong(at, format!("expected type '{known}' but found '{ty}'"));
                Some(Type::Dyn)
            }
        }
    }

    /// The type of an item that may be left out.
    fn item(&mut self, optional: bool, expr: &Expr) -> Type {
        match self.expr(expr) {
            Type::Optional(inner) if optional => (*inner).clone(),
            other => other,
        }
    }

    fn list(&mut self, items: &[(bool, Expr)]) -> Type {
        let mut known = None;
        for (optional, item) in items {
            let ty = self.item(*optional, item);
            known = self.joined(item.at, known, ty);
        }
        Type::list(known.unwrap_or(Type::Dyn))
    }

    fn map(&mut self, entries: &[(bool, Expr, Expr)]) -> Type {
        let (mut keys, mut values) = (None, None);
        for (optional, key, value) in entries {
            let key_type = self.expr(key);
            keys = self.joined(key.at, keys, key_type);
            let ty = self.item(*optional, value);
            // Values of object literals differ.
            values = match values {
                None => Some(ty),
                Some(known) => Some(join(&known, &ty).unwrap_or(Type::Dyn)),
            };
        }
        Type::Map(Arc::new(keys.unwrap_or(Type::Dyn)), Arc::new(values.unwrap_or(Type::Dyn)))
    }

    fn structure(&mut self, at: usize, name: &str, fields: &[(String, bool, Expr)]) -> Type {
        let known = self.env.structures.iter().find(|structure| structure.name() == name).cloned();
        let open = self.env.open_objects && (name == "Object" || name.starts_with("Object."));
        if known.is_none() && !open {
            for (_, optional, value) in fields {
                self.item(*optional, value);
            }
            return self.wrong(at, format!("undeclared reference to '{name}' (in container '')"));
        }
        for (field, optional, value) in fields {
            let is = self.item(*optional, value);
            let Some(structure) = &known else { continue };
            match structure.field(field).or_else(|| structure.field(&unescaped(field))) {
                None => drop(self.wrong(value.at, format!("undefined field '{field}'"))),
                Some(want) if fits(&want, &is) => {}
                Some(want) => {
                    let why =
                        format!("expected type of field '{field}' is '{want}' but provided type is '{is}'");
                    self.wrong(value.at, why);
                }
            }
        }
        known.map_or_else(|| Type::Struct(Arc::new(Open(name.to_owned()))), Type::Struct)
    }

    fn comprehension(&mut self, inner: &Comprehension) -> Type {
        let range = self.expr(&inner.range);
        let (key, value) = match &range {
            Type::List(item) => (Type::Int, (**item).clone()),
            Type::Map(key, value) => ((**key).clone(), (**value).clone()),
            ty if ty.is_dyn() => (Type::Dyn, Type::Dyn),
            other => {
                let why = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.wrong(inner.range.at, why);
                (Type::Dyn, Type::Dyn)
            }
        };
        let is_map = matches!(range, Type::Map(..));
        let one = if is_map { key.clone() } else { value.clone() };
        match inner.vars.as_slice() {
            [var] => self.scope.push((var.clone(), one.clone())),
            vars => {
                self.scope.extend(vars.iter().cloned().zip([key.clone(), value]));
            }
        }
        if let Some(filter) = &inner.filter {
            self.must_be_bool(filter);
        }
        let is_test = matches!(inner.fold, Fold::All | Fold::Exists | Fold::ExistsOne | Fold::Filter);
        let body = if is_test {
            self.must_be_bool(&inner.body);
            Type::Bool
        } else {
            self.expr(&inner.body)
        };
        self.scope.truncate(self.scope.len() - inner.vars.len());
        match inner.fold {
            Fold::All | Fold::Exists | Fold::ExistsOne => Type::Bool,
            Fold::Filter => Type::list(one),
            Fold::Map => Type::list(body),
            Fold::SortBy => range,
            Fold::TransformMap => Type::Map(Arc::new(key), Arc::new(body)),
            Fold::TransformMapEntry => body,
        }
    }

    fn must_be_bool(&mut self, expr: &Expr) {
        let ty = self.expr(expr);
        if !fits(&Type::Bool, &ty) {
            self.wrong(expr.at, format!("expected type 'bool' but found '{ty}'"));
        }
    }
}

/// An object of which only the name is known.
struct Open(String);

impl Structure for Open {
    fn name(&self) -> &str {
        &self.0
    }

    fn field(&self, _: &str) -> Option<Type> {
        Some(Type::Dyn)
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(_) => Type::String,
        Literal::Bytes(_) => Type::Bytes,
    }
}
