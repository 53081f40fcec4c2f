//! Reads the definitions out of `k8s-openapi`'s generated sources: the `json_schema!` literals and `Resource` constants.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;

/// A definition: `io.k8s.api.core.v1.Pod`.
pub(crate) struct Definition {
    pub(crate) schema: Value,
    /// Group, version, kind and list kind, for kinds
    pub(crate) kind: Option<(String, String, String, Option<String>)>,
}

/// A schema literal.
pub(crate) enum Value {
    Text(String),
    /// A number or boolean; which one does not matter here
    Word,
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
    /// Another definition, with the description that overrides its own
    Ref {
        path: String,
        description: Option<String>,
    },
}

impl Value {
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        match self {
            Value::Map(entries) => entries.iter().find(|(key, _)| key == name).map(|(_, value)| value),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// All definitions below a folder, by name. References are resolved to names.
pub(crate) fn read(root: &Path) -> Result<BTreeMap<String, Definition>, Box<dyn Error>> {
    let mut found = Vec::new();
    let mut names = BTreeMap::new();
    let mut folders = vec![(root.to_owned(), "crate".to_owned())];
    while let Some((folder, module)) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
            if path.is_dir() {
                folders.push((path, format!("{module}::{stem}")));
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let Some(name) =
                text.strip_prefix("// Generated from definition ").and_then(|t| t.lines().next())
            else {
                continue;
            };
            let Some(start) = text.find("json_schema!(") else { continue };
            let schema = Parser { rest: &text[start + "json_schema!(".len()..] }.value();
            let schema = schema.map_err(|error| format!("{}: {error}", path.display()))?;
            let short = name.rsplit('.').next().unwrap_or(name);
            names.insert(format!("{module}::{short}"), name.to_owned());
            found.push((name.to_owned(), Definition { schema, kind: kind(&text) }));
        }
    }
    let mut definitions = BTreeMap::new();
    for (name, mut definition) in found {
        resolve(&mut definition.schema, &names)?;
        definitions.insert(name, definition);
    }
    Ok(definitions)
}

fn kind(text: &str) -> Option<(String, String, String, Option<String>)> {
    let constant = |name: &str| {
        let start = text.find(&format!("const {name}: &'static str = \""))?;
        text[start..].split('"').nth(1).map(str::to_owned)
    };
    Some((constant("GROUP")?, constant("VERSION")?, constant("KIND")?, constant("LIST_KIND")))
}

fn resolve(value: &mut Value, names: &BTreeMap<String, String>) -> Result<(), Box<dyn Error>> {
    match value {
        Value::Ref { path, .. } => {
            *path = names.get(path.as_str()).ok_or_else(|| format!("no definition for {path}"))?.clone();
        }
        Value::List(values) => values.iter_mut().try_for_each(|value| resolve(value, names))?,
        Value::Map(entries) => entries.iter_mut().try_for_each(|(_, value)| resolve(value, names))?,
        Value::Text(_) | Value::Word => {}
    }
    Ok(())
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn value(&mut self) -> Result<Value, Box<dyn Error>> {
        self.skip_space();
        match self.rest.chars().next() {
            Some('"') => self.literal().map(Value::Text),
            Some('{') => self.map(),
            Some('[') => self.list(),
            Some('(') => self.expression(),
            _ if self.rest.starts_with("__gen.") => self.bare_reference(),
            _ => {
                self.skip_word();
                Ok(Value::Word)
            }
        }
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn take(&mut self, sign: char) -> bool {
        self.skip_space();
        let after = self.rest.strip_prefix(sign);
        self.rest = after.unwrap_or(self.rest);
        after.is_some()
    }

    fn skip_word(&mut self) {
        let end = self.rest.find([',', '}', ']', ')']).unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }

    /// `__gen.subschema_for::<PATH>()`
    fn bare_reference(&mut self) -> Result<Value, Box<dyn Error>> {
        let (_, after) = self.rest.split_once("subschema_for::<").ok_or("a call without a type")?;
        let (path, rest) = after.split_once(">()").ok_or("an open type name")?;
        self.rest = rest;
        Ok(Value::Ref { path: path.to_owned(), description: None })
    }

    fn map(&mut self) -> Result<Value, Box<dyn Error>> {
        self.take('{');
        let mut entries = Vec::new();
        while !self.take('}') {
            self.skip_space();
            let key = self.literal()?;
            if !self.take(':') {
                return Err(format!("no value for {key}").into());
            }
            entries.push((key, self.value()?));
            self.take(',');
        }
        Ok(Value::Map(entries))
    }

    fn list(&mut self) -> Result<Value, Box<dyn Error>> {
        self.take('[');
        let mut values = Vec::new();
        while !self.take(']') {
            values.push(self.value()?);
            self.take(',');
        }
        Ok(Value::List(values))
    }

    /// A Rust expression in parentheses: `(__gen.subschema_for::<PATH>())`, or a block that also sets the description.
    fn expression(&mut self) -> Result<Value, Box<dyn Error>> {
        let whole = self.rest;
        let mut depth = 0_usize;
        let (mut path, mut description) = (None, None);
        while let Some(character) = self.rest.chars().next() {
            if let Some(after) = self.rest.strip_prefix("subschema_for::<") {
                let (name, rest) = after.split_once(">()").ok_or("an open type name")?;
                path = Some(name.to_owned());
                self.rest = rest;
                continue;
            }
            if let Some(after) = self.rest.strip_prefix("insert(\"description\".into(), ") {
                self.rest = after;
                description = Some(self.literal()?);
                depth += 1;
                continue;
            }
            self.rest = &self.rest[character.len_utf8()..];
            match character {
                '(' => depth += 1,
                ')' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        let text: String = whole.chars().take(80).collect();
        Ok(Value::Ref { path: path.ok_or(format!("no type in {text}"))?, description })
    }

    /// A Rust string literal.
    fn literal(&mut self) -> Result<String, Box<dyn Error>> {
        let mut text = String::new();
        let mut characters = self
            .rest
            .strip_prefix('"')
            .ok_or_else(|| format!("no string but {:.40}", self.rest))?
            .char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = &self.rest[at + 2..];
                    return Ok(text);
                }
                '\\' => match characters.next().map(|(_, c)| c) {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some('u') => {
                        let digits: String =
                            characters.by_ref().map(|(_, c)| c).skip(1).take_while(|c| *c != '}').collect();
                        text.push(
                            u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32).unwrap_or('?'),
                        );
                    }
                    Some(other) => text.push(other),
                    None => break,
                },
                other => text.push(other),
            }
        }
        Err("an open string".into())
    }
}
