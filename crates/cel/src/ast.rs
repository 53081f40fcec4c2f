//! The tree of an expression, with macros already taken apart.

/// A literal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(String),
    Bytes(Vec<u8>),
}

/// What a comprehension makes of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fold {
    All,
    Exists,
    ExistsOne,
    /// `filter`: the items that the body accepts
    Filter,
    /// `map` and `transformList`
    Map,
    /// `transformMap`: the same keys
    TransformMap,
    /// `transformMapEntry`: the body gives maps of one entry
    TransformMapEntry,
    /// `sortBy`: the items by what the body gives
    SortBy,
}

/// A node and where it stands, as a byte offset.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Expr {
    pub(crate) at: usize,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Literal(Literal),
    Ident(String),
    /// `of.field`, `of.?field`, and `has(of.field)` with `test`
    Select {
        of: Box<Expr>,
        field: String,
        optional: bool,
        test: bool,
    },
    /// `of[index]`, `of[?index]`
    Index {
        of: Box<Expr>,
        index: Box<Expr>,
        optional: bool,
    },
    /// Operators have the names of the standard: `_+_`, `!_`
    Call {
        name: String,
        target: Option<Box<Expr>>,
        args: Vec<Expr>,
    },
    /// Items; a marked one is an optional that may be left out
    List(Vec<(bool, Expr)>),
    Map(Vec<(bool, Expr, Expr)>),
    Struct {
        name: String,
        fields: Vec<(String, bool, Expr)>,
    },
    Comprehension(Box<Comprehension>),
    /// `target.optMap(var, body)`; `flat` when the body gives an optional itself
    OptMap {
        target: Box<Expr>,
        var: String,
        body: Box<Expr>,
        flat: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Comprehension {
    pub(crate) fold: Fold,
    pub(crate) range: Expr,
    /// One variable: the item, or the key of a map. Two: index and item, or key and value.
    pub(crate) vars: Vec<String>,
    pub(crate) filter: Option<Expr>,
    pub(crate) body: Expr,
}
