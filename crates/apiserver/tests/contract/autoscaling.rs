//! HorizontalPodAutoscalers in both versions.

use api::PatchType;
use serde_json::{Value, json};

use crate::common::{Fixture, at};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autoscalers_have_two_versions() {
    let f = Fixture::new().await;
    let v1 = at("autoscaling", "horizontalpodautoscalers", "default");
    let mut v2 = v1.clone();
    v2.gvr.version = "v2".into();
    let spec = json!({"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}});
    let made = f.create(&v1, json!({"metadata": {"name": "a"}, "spec": spec})).await.unwrap();
    assert_eq!(
        (&made["apiVersion"], &made["spec"]["targetCPUUtilizationPercentage"]),
        (&json!("autoscaling/v1"), &json!(80))
    );
    let seen = f.get(&v2, "a").await.unwrap();
    assert_eq!(
        seen["spec"]["metrics"][0]["resource"]["target"],
        json!({"type": "Utilization", "averageUtilization": 80})
    );
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}});
    let patch = json!({"spec": {"metrics": [memory]}});
    f.patch(&v2, "a", PatchType::Merge, patch).await.unwrap();
    let seen = f.get(&v1, "a").await.unwrap();
    assert_eq!(seen["spec"]["targetCPUUtilizationPercentage"], Value::Null);
    let noted = seen["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"].as_str().unwrap();
    assert!(noted.contains("\"targetAverageValue\":\"1Gi\""), "{noted}");
    // An update through the older version loses nothing of the newer one.
    f.patch(&v1, "a", PatchType::Merge, json!({"spec": {"maxReplicas": 5}})).await.unwrap();
    let seen = f.get(&v2, "a").await.unwrap();
    assert_eq!((&seen["spec"]["maxReplicas"], &seen["spec"]["metrics"]), (&json!(5), &json!([memory])));
    assert_eq!(seen["metadata"]["annotations"], Value::Null);
}
