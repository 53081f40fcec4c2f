//! A persistent sorted map of entries: cloning is O(1), a change copies only the path it touches, so every
//! clone is an immutable snapshot. A B+ tree with subtree counts, for the number of keys after a page.

use std::sync::Arc;

use crate::types::Entry;

/// Entries in a leaf, children in an inner node.
const MAX: usize = 48;
const MIN: usize = MAX / 4;

/// Entries sorted by key.
#[derive(Clone)]
pub(crate) struct Map {
    root: Arc<Node>,
}

#[derive(Clone)]
enum Node {
    Leaf(Vec<Entry>),
    Inner { count: usize, children: Vec<Child> },
}

#[derive(Clone)]
struct Child {
    /// Not above any key of the node, and above all keys of its left neighbour.
    first: Arc<str>,
    node: Arc<Node>,
}

impl Default for Map {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())) }
    }
}

impl Map {
    pub(crate) fn len(&self) -> usize {
        self.root.count()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    return entries.binary_search_by(|e| (*e.key).cmp(key)).ok().map(|i| &entries[i]);
                }
                Node::Inner { children, .. } => node = &children[child_of(children, key)].node,
            }
        }
    }

    /// Adds or replaces; gives what was there.
    pub(crate) fn insert(&mut self, entry: Entry) -> Option<Entry> {
        let (replaced, split) = Arc::make_mut(&mut self.root).insert(entry);
        if let Some(right) = split {
            let left = Child { first: self.root.first_key(), node: Arc::clone(&self.root) };
            let count = left.node.count() + right.node.count();
            self.root = Arc::new(Node::Inner { count, children: vec![left, right] });
        }
        replaced
    }

    /// Removes a key; gives what was there.
    pub(crate) fn remove(&mut self, key: &str) -> Option<Entry> {
        self.get(key)?;
        let removed = Arc::make_mut(&mut self.root).remove(key);
        while let Node::Inner { children, .. } = &*self.root {
            match children.as_slice() {
                [] => self.root = Arc::new(Node::Leaf(Vec::new())),
                [only] => self.root = Arc::clone(&only.node),
                _ => break,
            }
        }
        removed
    }

    /// How many keys satisfy `before`, which must hold for a leading part of the keys and for no later one.
    pub(crate) fn rank(&self, before: impl Fn(&str) -> bool) -> usize {
        let mut node = &*self.root;
        let mut rank = 0;
        loop {
            match node {
                Node::Leaf(entries) => return rank + entries.partition_point(|e| before(&e.key)),
                Node::Inner { children, .. } => {
                    let Some(last) = children.partition_point(|c| before(&c.first)).checked_sub(1) else {
                        return rank;
                    };
                    rank += children[..last].iter().map(|c| c.node.count()).sum::<usize>();
                    node = &children[last].node;
                }
            }
        }
    }

    /// Entries in order, from the first that does not satisfy `before` (see [`Map::rank`]).
    pub(crate) fn iter_from(&self, before: impl Fn(&str) -> bool) -> Iter<'_> {
        let mut stack = Vec::new();
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    stack.push((node, entries.partition_point(|e| before(&e.key))));
                    return Iter { stack };
                }
                Node::Inner { children, .. } => {
                    let at = children.partition_point(|c| before(&c.first)).saturating_sub(1);
                    stack.push((node, at + 1));
                    node = &children[at].node;
                }
            }
        }
    }

    pub(crate) fn iter(&self) -> Iter<'_> {
        self.iter_from(|_| false)
    }
}

/// See [`Map::iter_from`].
pub(crate) struct Iter<'a> {
    /// Path to the next entry: a node and the index of what is next in it.
    stack: Vec<(&'a Node, usize)>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Entry;

    fn next(&mut self) -> Option<&'a Entry> {
        loop {
            let (node, at) = self.stack.last_mut()?;
            let next = *at;
            *at += 1;
            match *node {
                Node::Leaf(entries) => match entries.get(next) {
                    Some(entry) => return Some(entry),
                    None => self.stack.pop(),
                },
                Node::Inner { children, .. } => match children.get(next) {
                    Some(child) => {
                        self.stack.push((&child.node, 0));
                        None
                    }
                    None => self.stack.pop(),
                },
            };
        }
    }
}

fn child_of(children: &[Child], key: &str) -> usize {
    children.partition_point(|c| *c.first <= *key).saturating_sub(1)
}

impl Node {
    fn count(&self) -> usize {
        match self {
            Node::Leaf(entries) => entries.len(),
            Node::Inner { count, .. } => *count,
        }
    }

    fn width(&self) -> usize {
        match self {
            Node::Leaf(entries) => entries.len(),
            Node::Inner { children, .. } => children.len(),
        }
    }

    fn first_key(&self) -> Arc<str> {
        match self {
            Node::Leaf(entries) => Arc::clone(&entries[0].key),
            Node::Inner { children, .. } => Arc::clone(&children[0].first),
        }
    }

    fn insert(&mut self, entry: Entry) -> (Option<Entry>, Option<Child>) {
        let replaced = match self {
            Node::Leaf(entries) => match entries.binary_search_by(|e| e.key.cmp(&entry.key)) {
                Ok(i) => Some(std::mem::replace(&mut entries[i], entry)),
                Err(i) => {
                    entries.insert(i, entry);
                    None
                }
            },
            Node::Inner { count, children } => {
                let at = child_of(children, &entry.key);
                if entry.key < children[at].first {
                    children[at].first = Arc::clone(&entry.key);
                }
                let (replaced, split) = Arc::make_mut(&mut children[at].node).insert(entry);
                *count += usize::from(replaced.is_none());
                if let Some(right) = split {
                    children.insert(at + 1, right);
                }
                replaced
            }
        };
        (replaced, self.split())
    }

    /// Cuts off the right half of a node that is too wide.
    fn split(&mut self) -> Option<Child> {
        if self.width() <= MAX {
            return None;
        }
        let right = match self {
            Node::Leaf(entries) => Node::Leaf(entries.split_off(entries.len() / 2)),
            Node::Inner { count, children } => {
                let children = children.split_off(children.len() / 2);
                let moved = children.iter().map(|c| c.node.count()).sum();
                *count -= moved;
                Node::Inner { count: moved, children }
            }
        };
        Some(Child { first: right.first_key(), node: Arc::new(right) })
    }

    fn remove(&mut self, key: &str) -> Option<Entry> {
        match self {
            Node::Leaf(entries) => {
                entries.binary_search_by(|e| (*e.key).cmp(key)).ok().map(|i| entries.remove(i))
            }
            Node::Inner { count, children } => {
                let at = child_of(children, key);
                let removed = Arc::make_mut(&mut children[at].node).remove(key);
                *count -= usize::from(removed.is_some());
                if children[at].node.width() == 0 {
                    children.remove(at);
                } else if children[at].node.width() < MIN {
                    let left = if at + 1 < children.len() { at } else { at.saturating_sub(1) };
                    merge(children, left);
                }
                removed
            }
        }
    }
}

/// Joins a child with its right neighbour when both fit into one node.
fn merge(children: &mut Vec<Child>, left: usize) {
    let Some(right) = children.get(left + 1) else { return };
    if children[left].node.width() + right.node.width() > MAX {
        return;
    }
    let right = children.remove(left + 1);
    match (Arc::make_mut(&mut children[left].node), Arc::unwrap_or_clone(right.node)) {
        (Node::Leaf(a), Node::Leaf(b)) => a.extend(b),
        (Node::Inner { count, children }, Node::Inner { count: more, children: b }) => {
            *count += more;
            children.extend(b);
        }
        (Node::Leaf(_), Node::Inner { .. }) | (Node::Inner { .. }, Node::Leaf(_)) => {
            unreachable!("all leaves are at the same depth")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(key: u16, value: u64) -> Entry {
        Entry {
            key: format!("{key:05}").into(),
            value: Bytes::new(),
            create_revision: 0,
            mod_revision: value,
        }
    }

    fn keys(map: &Map) -> Vec<(String, u64)> {
        map.iter().map(|e| (e.key.to_string(), e.mod_revision)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_like_a_btree_map(steps in prop::collection::vec((any::<bool>(), 0u16..600), 0..3000)) {
            let mut map = Map::default();
            let mut model = BTreeMap::new();
            let mut frozen = None;
            for (i, (insert, key)) in steps.iter().enumerate() {
                if i == steps.len() / 2 {
                    frozen = Some((map.clone(), keys(&map)));
                }
                let name = format!("{key:05}");
                if *insert || i % 3 == 0 {
                    let old = map.insert(entry(*key, i as u64)).map(|e| e.mod_revision);
                    prop_assert_eq!(old, model.insert(name, i as u64));
                } else {
                    prop_assert_eq!(map.remove(&name).map(|e| e.mod_revision), model.remove(&name));
                }
                prop_assert_eq!(map.len(), model.len());
            }
            let want: Vec<_> = model.iter().map(|(k, v)| (k.clone(), *v)).collect();
            prop_assert_eq!(keys(&map), want.clone());
            for probe in ["", "00000", "00123", "003", "99999"] {
                let rank = map.rank(|k| k < probe);
                prop_assert_eq!(rank, want.iter().filter(|(k, _)| k.as_str() < probe).count());
                let rest: Vec<_> = map.iter_from(|k| k < probe).map(|e| e.key.to_string()).collect();
                let wanted: Vec<_> = want[rank..].iter().map(|(k, _)| k.clone()).collect();
                prop_assert_eq!(rest, wanted);
                prop_assert_eq!(map.get(probe).map(|e| e.mod_revision), model.get(probe).copied());
            }
            if let Some((map, before)) = frozen {
                prop_assert_eq!(keys(&map), before);
            }
        }
    }
}
