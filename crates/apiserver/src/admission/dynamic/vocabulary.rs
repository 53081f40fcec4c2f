//! What expressions of webhooks and policies may speak of, and how they are compiled.

use cel::{Env, Fields, Program, Type};

const AUTHORIZER: Type = Type::Opaque("kubernetes.authorization.Authorizer");

/// What an expression must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Anything,
    Bool,
    Text,
    TextOrNull,
    /// `Object{…}`
    Object,
    /// `[JSONPatch{…}]`
    Patches,
}

/// The variables of an expression beyond `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone)]
pub(crate) struct Vocabulary {
    pub(crate) object: Type,
    pub(crate) params: bool,
    pub(crate) authorizer: bool,
    pub(crate) variables: Option<Vec<(String, Type)>>,
}

impl Vocabulary {
    /// That of match conditions.
    pub(crate) fn conditions(params: bool) -> Self {
        Self { object: Type::Dyn, params, authorizer: true, variables: None }
    }

    fn env(&self, wanted: Wanted) -> Env {
        let mut env = Env::new()
            .with("object", self.object.clone())
            .with("oldObject", self.object.clone())
            .with("request", request())
            .with("namespaceObject", Type::Dyn);
        if self.params {
            env = env.with("params", Type::Dyn);
        }
        if self.authorizer {
            env = env.with("authorizer", AUTHORIZER);
        }
        if let Some(fields) = &self.variables {
            let fields: Vec<(&str, Type)> =
                fields.iter().map(|(name, ty)| (name.as_str(), ty.clone())).collect();
            env = env.with("variables", Fields::structure("kubernetes.variables", &fields));
        }
        if matches!(wanted, Wanted::Object | Wanted::Patches)
            && let Type::Struct(patch) = json_patch()
        {
            env = env.with_open_objects().constructing(patch);
        }
        env
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// What is wrong with it, as Kubernetes words it.
    pub(crate) fn compile(&self, text: &str, wanted: Wanted) -> Result<Program, String> {
        let program =
            Program::compile(text, &self.env(wanted)).map_err(|why| format!("compilation failed: {why}"))?;
        let gives = |ty: &Type| program.gives(ty);
        let (fits, what) = match wanted {
            Wanted::Anything => (true, ""),
            Wanted::Bool => (gives(&Type::Bool), "must evaluate to bool"),
            Wanted::Text => (gives(&Type::String), "must evaluate to string"),
            Wanted::TextOrNull => {
                (gives(&Type::String) || gives(&Type::Null), "must evaluate to one of [string null_type]")
            }
            Wanted::Object => (program.result.to_string() == "Object", "must evaluate to Object"),
            Wanted::Patches => (gives(&Type::list(json_patch())), "must evaluate to list(JSONPatch)"),
        };
        if fits { Ok(program) } else { Err(what.to_owned()) }
    }
}

fn json_patch() -> Type {
    let text = || Type::String;
    Fields::structure(
        "JSONPatch",
        &[("op", text()), ("from", text()), ("path", text()), ("value", Type::Dyn)],
    )
}

/// The request as expressions see it.
fn request() -> Type {
    let structure = |name: &str, fields: &[&str]| {
        let fields: Vec<(&str, Type)> = fields.iter().map(|field| (*field, Type::String)).collect();
        Fields::structure(name, &fields)
    };
    let kind = structure("kubernetes.GroupVersionKind", &["group", "version", "kind"]);
    let resource = structure("kubernetes.GroupVersionResource", &["group", "version", "resource"]);
    let user = Fields::structure(
        "kubernetes.UserInfo",
        &[
            ("username", Type::String),
            ("uid", Type::String),
            ("groups", Type::list(Type::String)),
            ("extra", Type::map(Type::list(Type::String))),
        ],
    );
    Fields::structure(
        "kubernetes.AdmissionRequest",
        &[
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", Type::String),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", Type::String),
            ("name", Type::String),
            ("namespace", Type::String),
            ("operation", Type::String),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
}
