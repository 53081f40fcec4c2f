//! Strategic merge patch: RFC 7386 with lists merged as the schema says (Kubernetes' "strategic-merge-patch" document).
//!
//! Directives in a patch: `$patch: delete|replace|merge` in an object or a list item, `$retainKeys`,
//! `$deleteFromPrimitiveList/<list>` and `$setElementOrder/<list>` beside a list.

use serde_json::{Map, Value};

use crate::{Field, FieldType, Object, SchemaTable, Status, TypeId};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

type Merged<T> = Result<T, Status>;

/// Applies a strategic merge patch.
///
/// # Errors
/// BadRequest for a body that is no object or holds wrong directives.
pub fn merge(table: &SchemaTable, ty: TypeId, object: &Object, patch: &Value) -> Result<Object, Status> {
    let Value::Object(patch) = patch else {
        return Err(Status::bad_request("error decoding patch: a strategic merge patch must be an object"));
    };
    let merger = Merger { table };
    let mut root = object.0.clone();
    merger.map(&FieldType::Ref(ty), &mut root, patch)?;
    Ok(Object(root))
}

fn bad<T>(why: impl Into<String>) -> Merged<T> {
    Err(Status::bad_request(why))
}

struct Merger<'t> {
    table: &'t SchemaTable,
}

/// How a member of an object merges.
struct Member<'a> {
    ty: &'a FieldType,
    field: Option<&'a Field>,
}

impl<'t> Merger<'t> {
    fn member<'a>(&'a self, ty: &'a FieldType, name: &str) -> Member<'a> {
        match ty {
            FieldType::Ref(id) => match self.table.get(*id).field(name) {
                Some(field) => Member { ty: &field.ty, field: Some(field) },
                None => Member { ty: &FieldType::Any, field: None },
            },
            FieldType::Map(inner) => Member { ty: inner, field: None },
            _ => Member { ty: &FieldType::Any, field: None },
        }
    }

    fn map(&self, ty: &FieldType, target: &mut Map<String, Value>, patch: &Map<String, Value>) -> Merged<()> {
        match directive(patch)? {
            Some("replace") => {
                *target =
                    patch.iter().filter(|(k, _)| *k != PATCH).map(|(k, v)| (k.clone(), v.clone())).collect();
                return Ok(());
            }
            Some("delete") => {
                target.clear();
                return Ok(());
            }
            _ => {}
        }
        retain_keys(target, patch)?;
        for (key, value) in patch {
            if key == PATCH || key == RETAIN {
                continue;
            }
            if let Some(name) = key.strip_prefix(DELETE_FROM) {
                // Beside a patched list the deletion is part of merging that list.
                if !patch.contains_key(name) {
                    self.list(&self.member(ty, name), target, name, patch)?;
                }
            } else if let Some(name) = key.strip_prefix(ORDER) {
                let deleted = patch.contains_key(&format!("{DELETE_FROM}{name}"));
                if !patch.contains_key(name) && !deleted {
                    self.list(&self.member(ty, name), target, name, patch)?;
                }
            } else if value.is_null() {
                target.remove(key);
            } else {
                self.entry(ty, target, key, value, patch)?;
            }
        }
        Ok(())
    }

    fn entry(
        &self,
        ty: &FieldType,
        target: &mut Map<String, Value>,
        key: &str,
        value: &Value,
        patch: &Map<String, Value>,
    ) -> Merged<()> {
        let member = self.member(ty, key);
        match value {
            Value::Object(inner) => {
                let slot = target.entry(key.to_owned()).or_insert_with(|| Value::Object(Map::new()));
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(map) = slot {
                    self.map(member.ty, map, inner)?;
                }
                Ok(())
            }
            Value::Array(_) if member.field.is_some_and(|f| f.patch_merge) => {
                self.list(&member, target, key, patch)
            }
            other => {
                target.insert(key.to_owned(), other.clone());
                Ok(())
            }
        }
    }

    /// Merges a list with its directives; `patch` is the object that holds the list and the directives.
    fn list(
        &self,
        member: &Member<'_>,
        target: &mut Map<String, Value>,
        name: &str,
        patch: &Map<String, Value>,
    ) -> Merged<()> {
        let empty = Vec::new();
        let items_of = |key: String| match patch.get(&key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(_) => bad(format!("{key} must be a list")),
        };
        let items = items_of(name.to_owned())?.unwrap_or(&empty);
        let order = items_of(format!("{ORDER}{name}"))?;
        let deletions = items_of(format!("{DELETE_FROM}{name}"))?.unwrap_or(&empty);
        let current = match target.get(name) {
            Some(Value::Array(current)) => current.clone(),
            _ => Vec::new(),
        };
        let element = match member.ty {
            FieldType::List(inner) => inner,
            _ => &FieldType::Any,
        };
        let key = member.field.and_then(|f| f.patch_merge_key.as_deref());
        let merged = match key {
            Some(key) => self.keyed(element, key, current, items, order)?,
            None => primitives(current, items, deletions, order),
        };
        target.insert(name.to_owned(), Value::Array(merged));
        Ok(())
    }

    fn keyed(
        &self,
        element: &FieldType,
        key: &str,
        mut current: Vec<Value>,
        items: &[Value],
        order: Option<&Vec<Value>>,
    ) -> Merged<Vec<Value>> {
        let replace = items.iter().any(|i| i.get(PATCH).and_then(Value::as_str) == Some("replace"));
        if replace {
            let plain = items.iter().filter(|i| i.get(PATCH).is_none());
            return Ok(plain.cloned().collect());
        }
        let before = current.clone();
        for item in items {
            let Value::Object(fields) = item else {
                return bad(format!("a list merged by {key:?} holds an item that is no object"));
            };
            let Some(wanted) = fields.get(key) else {
                return bad(format!("map: {item} does not contain declared merge key: {key}"));
            };
            if directive(fields)? == Some("delete") {
                current.retain(|c| c.get(key) != Some(wanted));
                continue;
            }
            let found = current.iter_mut().find(|c| c.get(key) == Some(wanted));
            if let Some(Value::Object(target)) = found {
                self.map(element, target, fields)?;
            } else {
                let mut fresh = Map::new();
                self.map(element, &mut fresh, fields)?;
                current.push(Value::Object(fresh));
            }
        }
        let identity = |v: &Value| v.get(key).cloned().unwrap_or_default();
        Ok(reorder(current, &before, order.map_or(items, Vec::as_slice), identity))
    }
}

fn directive(patch: &Map<String, Value>) -> Merged<Option<&str>> {
    match patch.get(PATCH) {
        None => Ok(None),
        Some(Value::String(text)) if matches!(text.as_str(), "replace" | "delete" | "merge") => {
            Ok(Some(text))
        }
        Some(other) => bad(format!("unrecognized patch directive {other}")),
    }
}

fn retain_keys(target: &mut Map<String, Value>, patch: &Map<String, Value>) -> Merged<()> {
    let Some(keep) = patch.get(RETAIN) else { return Ok(()) };
    let Some(keep) = keep.as_array() else { return bad("invalid patch format of retainKeys") };
    let kept = |name: &str| keep.iter().any(|k| k.as_str() == Some(name));
    let stray = patch.iter().any(|(k, v)| !k.starts_with('$') && !v.is_null() && !kept(k));
    if stray {
        return bad("invalid patch format of retainKeys: a key of the patch is not in the list");
    }
    target.retain(|name, _| kept(name));
    Ok(())
}

fn primitives(
    current: Vec<Value>,
    items: &[Value],
    deletions: &[Value],
    order: Option<&Vec<Value>>,
) -> Vec<Value> {
    let mut merged: Vec<Value> = current.iter().filter(|v| !deletions.contains(v)).cloned().collect();
    for item in items {
        if !merged.contains(item) {
            merged.push(item.clone());
        }
    }
    reorder(merged, &current, order.map_or(items, Vec::as_slice), Value::clone)
}

/// Puts listed items in the listed order (the patch's own, unless a directive lists them); the others keep their place
/// relative to the items they stood before, behind those that are new.
fn reorder(
    merged: Vec<Value>,
    before: &[Value],
    order: &[Value],
    identity: impl Fn(&Value) -> Value,
) -> Vec<Value> {
    let order: Vec<Value> =
        order.iter().map(|o| if o.is_object() { identity(o) } else { o.clone() }).collect();
    let place = |v: &Value| before.iter().position(|b| identity(b) == identity(v));
    let (mut listed, others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|v| order.contains(&identity(v)));
    listed.sort_by_key(|v| order.iter().position(|o| *o == identity(v)));
    let mut out = Vec::with_capacity(listed.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in listed {
        if let Some(at) = place(&item) {
            while let Some(other) = others.next_if(|o| place(o).is_some_and(|p| p < at)) {
                out.push(other);
            }
        }
        out.push(item);
    }
    out.extend(others);
    out
}
