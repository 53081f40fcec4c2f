//! Certificate requests that have served their time go (Kubernetes' csrcleaner): an hour after they were answered, or a
//! day after they were made if nobody has answered them.

use api::{ObjectKey, RequestOptions};
use client::{Action, Controller, Kind, Plan, View, Watch};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;

const ANSWERED: SignedDuration = SignedDuration::from_hours(1);
const UNANSWERED: SignedDuration = SignedDuration::from_hours(24);

pub struct CsrCleaner;

impl Controller for CsrCleaner {
    fn name(&self) -> &'static str {
        "csrcleaner"
    }

    fn watches(&self) -> Vec<Watch> {
        vec![Watch::own::<CertificateSigningRequest>()]
    }

    fn plan(&self, key: &ObjectKey, view: &View, now: Timestamp) -> Plan {
        let Some(request) = view.get::<CertificateSigningRequest>(key) else { return Plan::nothing() };
        let due = due(&request.object);
        if due > now {
            let wait = std::time::Duration::try_from(due.duration_since(now)).unwrap_or_default();
            return Plan::Do { actions: Vec::new(), requeue_after: Some(wait) };
        }
        let options =
            RequestOptions { precondition_uid: Some(request.uid.clone()), ..RequestOptions::default() };
        Plan::actions(vec![Action::Delete {
            gvr: CertificateSigningRequest::gvr(),
            key: key.clone(),
            options,
        }])
    }
}

/// When a request may go.
fn due(request: &CertificateSigningRequest) -> Timestamp {
    let created = request.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let answers = conditions.filter(|c| matches!(c.type_.as_str(), "Approved" | "Denied" | "Failed"));
    let answered = answers.map(|c| c.last_update_time.as_ref().map_or(created, |at| at.0)).max();
    let (since, life) = match answered {
        Some(at) => (at, ANSWERED),
        None => (created, UNANSWERED),
    };
    since.checked_add(life).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn requests_go_when_they_have_served_their_time() {
        let condition = |kind: &str, at: &str| json!({"type": kind, "status": "True", "lastUpdateTime": at});
        let table: [(Value, &str); 4] = [
            (json!([]), "2026-01-02T00:00:00Z"),
            (json!([condition("Approved", "2026-01-01T05:00:00Z")]), "2026-01-01T06:00:00Z"),
            (json!([condition("Denied", "2026-01-01T23:30:00Z")]), "2026-01-02T00:30:00Z"),
            (
                json!([
                    condition("Approved", "2026-01-01T01:00:00Z"),
                    condition("Failed", "2026-01-01T02:00:00Z")
                ]),
                "2026-01-01T03:00:00Z",
            ),
        ];
        for (conditions, want) in table {
            let request = serde_json::from_value(json!({
                "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"request": "", "signerName": "a/b"}, "status": {"conditions": conditions},
            }));
            assert_eq!(due(&request.unwrap()), want.parse().unwrap(), "{conditions}");
        }
    }
}
