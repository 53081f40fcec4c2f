//! What can change in a cluster, as bits: a pod that no node would take is tried again only after a change that
//! can help against what refused it.

/// A set of kinds of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hints(u16);

impl Hints {
    pub const NONE: Hints = Hints(0);
    pub const NODE_ADDED: Hints = Hints(1);
    pub const NODE_LABELS: Hints = Hints(1 << 1);
    /// Taints, or `spec.unschedulable`.
    pub const NODE_TAINTS: Hints = Hints(1 << 2);
    pub const NODE_ALLOCATABLE: Hints = Hints(1 << 3);
    /// Removing a node can even out spreading.
    pub const NODE_REMOVED: Hints = Hints(1 << 4);
    /// A pod on a node came.
    pub const POD_ADDED: Hints = Hints(1 << 5);
    /// A pod on a node ended, went, or needs less.
    pub const POD_REMOVED: Hints = Hints(1 << 6);
    pub const POD_LABELS: Hints = Hints(1 << 7);
    pub const NAMESPACE_LABELS: Hints = Hints(1 << 8);
    /// A claim, volume or class came, went or changed.
    pub const VOLUMES: Hints = Hints(1 << 9);

    /// The union.
    #[must_use]
    pub const fn or(self, other: Hints) -> Hints {
        Hints(self.0 | other.0)
    }

    /// Whether the sets have something in common.
    pub const fn meets(self, other: Hints) -> bool {
        self.0 & other.0 != 0
    }

    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}
