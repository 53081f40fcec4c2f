//! Joins definitions with messages and the supplement.

use std::collections::HashMap;

use crate::openapi::{Definition, STRING, Type};
use crate::pb::{Field, Markers, Message, Messages, key};

pub(crate) struct Joined {
    pub(crate) types: Vec<JoinedType>,
    /// (group, version, kind, index of the type)
    pub(crate) kinds: Vec<(String, String, String, usize)>,
}

pub(crate) struct JoinedType {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) atomic: bool,
    pub(crate) fields: Vec<JoinedField>,
}

pub(crate) struct JoinedField {
    pub(crate) name: String,
    pub(crate) ty: Type,
    pub(crate) required: bool,
    pub(crate) description: String,
    pub(crate) number: u32,
    pub(crate) inlined_in: u32,
    pub(crate) markers: Markers,
}

pub(crate) fn join(definitions: Vec<Definition>, messages: &Messages, supplement: &str) -> Joined {
    let extra = read_supplement(supplement);
    let mut joined = Joined { types: Vec::new(), kinds: Vec::new() };
    let mut lists = Vec::new();
    for definition in definitions {
        if let Some((group, version, kind, list)) = definition.kind.clone() {
            if !list.is_empty() {
                lists.push((group.clone(), version.clone(), list, definition.name.clone()));
            }
            joined.kinds.push((group, version, kind, joined.types.len()));
        }
        joined.types.push(one(definition, messages, &extra));
    }
    for (group, version, kind, item) in lists {
        joined.kinds.push((group, version, kind.clone(), joined.types.len()));
        joined.types.push(list_type(&kind, &item));
    }
    joined
}

fn one(definition: Definition, messages: &Messages, extra: &HashMap<(String, String), Markers>) -> JoinedType {
    let short = definition.name.rsplit('.').next().unwrap_or_default().to_owned();
    let exact = messages.get(&key(&definition.package, &short));
    // A type that became stable after the messages were written keeps the markers of its earlier versions, but its
    // numbers are not taken over unseen.
    let message = exact.or_else(|| earlier(&definition.package, &short, messages));
    let plain = |name: &str| name.to_lowercase().replace(['-', '$'], "");
    let taken: Vec<String> = definition.properties.iter().map(|p| plain(&p.name)).collect();
    let mut fields: Vec<JoinedField> = Vec::new();
    for property in definition.properties {
        let found = message.and_then(|m| find(m, &plain(&property.name), &taken, messages, 3));
        let (number, inlined_in) = match &found {
            Some((field, outer)) if exact.is_some() => (field.number, *outer),
            _ => (0, 0),
        };
        let mut markers = found.map(|(field, _)| field.markers.clone()).unwrap_or_default();
        if let Some(more) = extra.get(&(definition.name.clone(), property.name.clone())) {
            markers = more.clone();
        }
        fields.push(JoinedField {
            name: property.name,
            ty: property.ty,
            required: property.required,
            description: property.description,
            number,
            inlined_in,
            markers,
        });
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    let atomic = message.is_some_and(|m| m.markers.atomic);
    JoinedType { name: definition.name, description: definition.description, atomic, fields }
}

fn earlier<'m>(package: &str, name: &str, messages: &'m Messages) -> Option<&'m Message> {
    let (group, version) = package.rsplit_once('/')?;
    let wanted = name.to_lowercase();
    let candidates = messages.iter().filter(|(key, _)| {
        let Some((other, short)) = key.rsplit_once('/') else { return false };
        let same_group = other.rsplit_once('/').is_some_and(|(g, v)| g == group && v != version);
        same_group && short == wanted
    });
    candidates.max_by_key(|(key, _)| key.as_str()).map(|(_, message)| message)
}

/// A field by name, directly or in a message that Go inlines; then with the number of the inlined message's field.
fn find<'m>(
    message: &'m Message,
    name: &str,
    taken: &[String],
    messages: &'m Messages,
    depth: u32,
) -> Option<(&'m Field, u32)> {
    if let Some(field) = message.fields.iter().find(|f| f.name == name) {
        return Some((field, 0));
    }
    if depth == 0 {
        return None;
    }
    for field in message.fields.iter().filter(|f| !taken.contains(&f.name)) {
        let inner = field.message.as_ref().and_then(|key| messages.get(key));
        if let Some((found, _)) = inner.and_then(|m| find(m, name, taken, messages, depth - 1)) {
            return Some((found, field.number));
        }
    }
    None
}

const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

fn list_type(kind: &str, item: &str) -> JoinedType {
    let package = item.rsplit_once('.').map_or("", |(package, _)| package);
    let field = |name: &str, ty, number, required, description: &str| JoinedField {
        name: name.to_owned(),
        ty,
        required,
        description: description.to_owned(),
        number,
        inlined_in: 0,
        markers: Markers::default(),
    };
    let version = "The version of this representation of an object.";
    let named = "The kind of this object, in CamelCase.";
    JoinedType {
        name: format!("{package}.{kind}"),
        description: format!("{kind} is a list of {}", item.rsplit('.').next().unwrap_or_default()),
        atomic: false,
        fields: vec![
            field("apiVersion", Type::Plain(STRING), 0, false, version),
            field("items", Type::List(Box::new(Type::Ref(item.to_owned()))), 2, true, "The objects."),
            field("kind", Type::Plain(STRING), 0, false, named),
            field("metadata", Type::Ref(LIST_META.to_owned()), 1, false, "Metadata of the list."),
        ],
    }
}

/// Lines of `type field marker…`; `#` starts a comment.
fn read_supplement(text: &str) -> HashMap<(String, String), Markers> {
    let mut out = HashMap::new();
    for line in text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(ty), Some(field)) = (words.next(), words.next()) else { panic!("supplement: {line:?}") };
        let mut markers = Markers::default();
        words.for_each(|word| markers.read(word));
        out.insert((ty.to_owned(), field.to_owned()), markers);
    }
    out
}
