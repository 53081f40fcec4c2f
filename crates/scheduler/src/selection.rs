//! Which pods a term of affinity or spreading is about.

use std::collections::{BTreeMap, BTreeSet};

use api::LabelSelector;

use crate::pod::PodInfo;

/// Labels of all namespaces.
pub(crate) type NamespaceLabels = BTreeMap<String, BTreeMap<String, String>>;

/// Namespaces by name or by label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    pub names: BTreeSet<String>,
    pub by_labels: Option<LabelSelector>,
}

impl Namespaces {
    pub(crate) fn one(name: &str) -> Self {
        Self { names: BTreeSet::from([name.to_owned()]), by_labels: None }
    }

    fn contains(&self, namespace: &str, labels: &NamespaceLabels) -> bool {
        let empty = BTreeMap::new();
        self.names.contains(namespace)
            || self.by_labels.as_ref().is_some_and(|s| s.matches(labels.get(namespace).unwrap_or(&empty)))
    }
}

/// A set of pods: those that match all parts. Two selections are the same when their texts are.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    parts: Vec<(Namespaces, LabelSelector)>,
    controller: Option<String>,
    living_only: bool,
    text: String,
}

impl PartialEq for Selection {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Selection {
    pub(crate) fn new(namespaces: Namespaces, labels: LabelSelector) -> Self {
        Self { parts: vec![(namespaces, labels)], ..Self::default() }.named()
    }

    /// Pods of one controller.
    pub(crate) fn of_controller(namespace: &str, controller: Option<&str>, labels: LabelSelector) -> Self {
        let controller = controller.map(str::to_owned);
        Self { parts: vec![(Namespaces::one(namespace), labels)], controller, ..Self::default() }.named()
    }

    /// Pods that all the terms select.
    pub(crate) fn all(terms: &[Term]) -> Self {
        let parts = terms.iter().flat_map(|term| term.selection.parts.iter().cloned()).collect();
        Self { parts, ..Self::default() }.named()
    }

    /// Without pods that are being deleted.
    pub(crate) fn living(mut self) -> Self {
        self.living_only = true;
        self.named()
    }

    fn named(mut self) -> Self {
        self.text = format!("{:?}{:?}{}", self.parts, self.controller, self.living_only);
        self
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn depends_on_namespace_labels(&self) -> bool {
        self.parts.iter().any(|(namespaces, _)| namespaces.by_labels.is_some())
    }

    pub(crate) fn contains(&self, pod: &PodInfo, namespaces: &NamespaceLabels) -> bool {
        !(self.living_only && pod.deleting)
            && self.controller.as_ref().is_none_or(|uid| pod.spec.controller.as_ref() == Some(uid))
            && self.parts.iter().all(|(within, labels)| {
                within.contains(&pod.key.namespace, namespaces) && labels.matches(&pod.spec.labels)
            })
    }
}

/// A term of pod (anti-)affinity.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    pub topology_key: String,
    pub selection: Selection,
}
