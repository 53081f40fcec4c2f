//! Errors as users see them: the Kubernetes `Status` object (API conventions, "Response Status Kind").

use serde_json::{Value, json};
use std::fmt;

/// Why a request failed, machine-readable (`status.reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    MethodNotAllowed,
    NotAcceptable,
    UnsupportedMediaType,
    RequestEntityTooLarge,
    TooManyRequests,
    InternalError,
    ServiceUnavailable,
    Timeout,
    ServerTimeout,
    Unknown,
}

impl Reason {
    /// The word on the wire; empty for `Unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BadRequest => "BadRequest",
            Reason::Unauthorized => "Unauthorized",
            Reason::Forbidden => "Forbidden",
            Reason::NotFound => "NotFound",
            Reason::AlreadyExists => "AlreadyExists",
            Reason::Conflict => "Conflict",
            Reason::Gone => "Gone",
            Reason::Expired => "Expired",
            Reason::Invalid => "Invalid",
            Reason::MethodNotAllowed => "MethodNotAllowed",
            Reason::NotAcceptable => "NotAcceptable",
            Reason::UnsupportedMediaType => "UnsupportedMediaType",
            Reason::RequestEntityTooLarge => "RequestEntityTooLarge",
            Reason::TooManyRequests => "TooManyRequests",
            Reason::InternalError => "InternalError",
            Reason::ServiceUnavailable => "ServiceUnavailable",
            Reason::Timeout => "Timeout",
            Reason::ServerTimeout => "ServerTimeout",
            Reason::Unknown => "",
        }
    }

    /// HTTP status code that goes with the reason.
    pub fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError | Reason::Unknown => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout | Reason::ServerTimeout => 504,
        }
    }

    /// Reads the word on the wire.
    pub fn parse(word: &str) -> Reason {
        const ALL: [Reason; 18] = [
            Reason::BadRequest,
            Reason::Unauthorized,
            Reason::Forbidden,
            Reason::NotFound,
            Reason::AlreadyExists,
            Reason::Conflict,
            Reason::Gone,
            Reason::Expired,
            Reason::Invalid,
            Reason::MethodNotAllowed,
            Reason::NotAcceptable,
            Reason::UnsupportedMediaType,
            Reason::RequestEntityTooLarge,
            Reason::TooManyRequests,
            Reason::InternalError,
            Reason::ServiceUnavailable,
            Reason::Timeout,
            Reason::ServerTimeout,
        ];
        ALL.into_iter().find(|reason| reason.as_str() == word).unwrap_or(Reason::Unknown)
    }
}

/// What is wrong with one field, with the words of `k8s.io/apimachinery` field errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldErrorKind {
    Required,
    Invalid,
    NotSupported,
    Duplicate,
    Forbidden,
    NotFound,
    TooLong,
    TooMany,
    TypeInvalid,
}

/// One finding of validation; validation returns all of them, never only the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// JSON path of the field: `spec.containers[0].name`.
    pub field: String,
    pub kind: FieldErrorKind,
    /// The whole message after the field: `Invalid value: "x": must be …`.
    pub message: String,
}

impl FieldError {
    /// A required value is missing.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Self { field: field.into(), kind: FieldErrorKind::Required, message }
    }

    /// A value breaks a rule; `value` is printed as JSON.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: &str) -> Self {
        let message = format!("Invalid value: {}: {detail}", value.into());
        Self { field: field.into(), kind: FieldErrorKind::Invalid, message }
    }

    /// A value is none of the supported ones.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message = format!("Unsupported value: {}: supported values: {}", value.into(), list.join(", "));
        Self { field: field.into(), kind: FieldErrorKind::NotSupported, message }
    }

    /// A value that must be unique occurs twice.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            field: field.into(),
            kind: FieldErrorKind::Duplicate,
            message: format!("Duplicate value: {}", value.into()),
        }
    }

    /// A field may not be set, or not be changed.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self { field: field.into(), kind: FieldErrorKind::Forbidden, message: format!("Forbidden: {detail}") }
    }

    /// A reference points to nothing.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        Self {
            field: field.into(),
            kind: FieldErrorKind::NotFound,
            message: format!("Not found: {}", value.into()),
        }
    }

    fn reason(&self) -> &'static str {
        match self.kind {
            FieldErrorKind::Required => "FieldValueRequired",
            FieldErrorKind::Invalid => "FieldValueInvalid",
            FieldErrorKind::NotSupported => "FieldValueNotSupported",
            FieldErrorKind::Duplicate => "FieldValueDuplicate",
            FieldErrorKind::Forbidden => "FieldValueForbidden",
            FieldErrorKind::NotFound => "FieldValueNotFound",
            FieldErrorKind::TooLong => "FieldValueTooLong",
            FieldErrorKind::TooMany => "FieldValueTooMany",
            FieldErrorKind::TypeInvalid => "FieldValueTypeInvalid",
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// One entry of `status.details.causes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub reason: String,
    pub message: String,
    pub field: String,
}

/// A failed request. `Display` is the message alone.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: u16,
    pub reason: Reason,
    pub message: String,
    /// `details.name`, `details.group`, `details.kind` (kind holds the resource name for most reasons).
    pub name: String,
    pub group: String,
    pub kind: String,
    pub causes: Vec<Cause>,
    pub retry_after_seconds: Option<u32>,
    /// Where a list that lost its state can go on (`metadata.continue`); "" for none
    pub continue_token: String,
}

impl Status {
    /// A status with the code that goes with its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code: reason.code(),
            reason,
            message: message.into(),
            name: String::new(),
            group: String::new(),
            kind: String::new(),
            causes: Vec::new(),
            retry_after_seconds: None,
            continue_token: String::new(),
        }
    }

    /// Names the object that the status is about.
    #[must_use]
    pub fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.group = group.into();
        self.kind = kind.into();
        self.name = name.into();
        self
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Reason::ServiceUnavailable, message)
    }

    /// `pods "x" not found`; `resource` is the group-resource form, `deployments.apps`.
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", group_resource(group, resource));
        Self::new(Reason::NotFound, message).about(group, resource, name)
    }

    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", group_resource(group, resource));
        Self::new(Reason::AlreadyExists, message).about(group, resource, name)
    }

    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", group_resource(group, resource));
        Self::new(Reason::Conflict, message).about(group, resource, name)
    }

    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let object = group_resource(group, resource);
        let message = if name.is_empty() {
            format!("{object} is forbidden: {why}")
        } else {
            format!("{object} {name:?} is forbidden: {why}")
        };
        Self::new(Reason::Forbidden, message).about(group, resource, name)
    }

    /// `Deployment.apps "x" is invalid: [spec.a: …, spec.b: …]`.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let text = if list.len() == 1 { list.join("") } else { format!("[{}]", list.join(", ")) };
        let message = format!("{} {name:?} is invalid: {text}", group_resource(group, kind));
        let mut status = Self::new(Reason::Invalid, message).about(group, kind, name);
        status.causes = errors
            .iter()
            .map(|e| Cause { reason: e.reason().into(), message: e.message.clone(), field: e.field.clone() })
            .collect();
        status
    }

    /// A resourceVersion, `continue` token or watch that is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }

    pub fn is_expired(&self) -> bool {
        matches!(self.reason, Reason::Expired | Reason::Gone)
    }

    /// Whether one of the causes has a reason: `NamespaceTerminating`.
    pub fn has_cause(&self, reason: &str) -> bool {
        self.causes.iter().any(|cause| cause.reason == reason)
    }

    /// The `Status` object as JSON.
    pub fn to_value(&self) -> Value {
        let mut details = serde_json::Map::new();
        for (name, text) in [("name", &self.name), ("group", &self.group), ("kind", &self.kind)] {
            if !text.is_empty() {
                details.insert(name.into(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            let causes = self.causes.iter();
            let list = causes.map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}));
            details.insert("causes".into(), list.collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        let mut value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason.as_str(), "code": self.code,
        });
        if !self.continue_token.is_empty() {
            value["metadata"] = json!({"continue": self.continue_token});
        }
        if !details.is_empty() {
            value["details"] = Value::Object(details);
        }
        value
    }

    /// Reads a `Status` object; `code` is the HTTP code, used when the body holds none.
    pub fn from_value(value: &Value, code: u16) -> Self {
        let text = |v: &Value, name: &str| v[name].as_str().unwrap_or_default().to_owned();
        let details = &value["details"];
        let causes = details["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            code: value["code"].as_u64().and_then(|c| u16::try_from(c).ok()).unwrap_or(code),
            reason: Reason::parse(value["reason"].as_str().unwrap_or_default()),
            message: text(value, "message"),
            name: text(details, "name"),
            group: text(details, "group"),
            kind: text(details, "kind"),
            causes: causes
                .iter()
                .map(|c| Cause {
                    reason: text(c, "reason"),
                    message: text(c, "message"),
                    field: text(c, "field"),
                })
                .collect(),
            retry_after_seconds: details["retryAfterSeconds"].as_u64().and_then(|s| u32::try_from(s).ok()),
            continue_token: text(&value["metadata"], "continue"),
        }
    }
}

fn group_resource(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_survive_the_wire() {
        let errors = [FieldError::required("spec.a", ""), FieldError::invalid("spec.b", 5, "must be small")];
        let invalid = Status::invalid("apps", "Deployment", "x", &errors);
        let text = "Deployment.apps \"x\" is invalid: [spec.a: Required value, spec.b: Invalid value: 5: must be small]";
        assert_eq!(invalid.message, text);
        let mut busy = Status::new(Reason::TooManyRequests, "later");
        busy.retry_after_seconds = Some(3);
        for status in [
            invalid,
            busy,
            Status::not_found("", "pods", "a"),
            Status::conflict("apps", "deployments", "d", "no"),
        ] {
            assert_eq!(Status::from_value(&status.to_value(), 0), status);
        }
        assert_eq!(Status::from_value(&json!({}), 502).code, 502);
    }

    #[test]
    fn messages_are_those_of_kubernetes() {
        let cases = [
            (Status::not_found("apps", "deployments", "d"), "deployments.apps \"d\" not found"),
            (Status::already_exists("", "pods", "p"), "pods \"p\" already exists"),
            (Status::forbidden("", "pods", "", "no"), "pods is forbidden: no"),
            (Status::conflict("", "pods", "p", "x"), "Operation cannot be fulfilled on pods \"p\": x"),
        ];
        for (status, text) in cases {
            assert_eq!(status.to_string(), text);
        }
        let kind = FieldError::not_supported("spec.type", "X", &["A", "B"]);
        assert_eq!(kind.to_string(), "spec.type: Unsupported value: \"X\": supported values: \"A\", \"B\"");
    }
}
