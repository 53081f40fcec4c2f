//! Kinds that are questions: created, answered, never stored.

use super::row::Row;

pub(super) fn authentication() -> Vec<Row> {
    vec![
        Row::review("selfsubjectreviews", "SelfSubjectReview").cluster(),
        Row::review("tokenreviews", "TokenReview").cluster(),
    ]
}

pub(super) fn authorization() -> Vec<Row> {
    vec![
        Row::review("localsubjectaccessreviews", "LocalSubjectAccessReview"),
        Row::review("selfsubjectaccessreviews", "SelfSubjectAccessReview").cluster(),
        Row::review("selfsubjectrulesreviews", "SelfSubjectRulesReview").cluster(),
        Row::review("subjectaccessreviews", "SubjectAccessReview").cluster(),
    ]
}
