//! Pods: defaults, rules, what may change.

use expect_test::expect;
use serde_json::{Value, json};

use crate::resource::DeleteDecision;
use crate::resources::tests::{change_findings, defaulted, findings, object, row};

fn pod() -> Value {
    json!({"metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": "web"}]}})
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod();
    change(&mut pod);
    pod
}

#[test]
fn defaults() {
    let out = defaulted(
        "",
        "pods",
        json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "sa",
            "hostNetwork": true,
            "containers": [{
                "name": "c", "image": "reg:5000/web", "ports": [{"containerPort": 80}],
                "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}},
                "livenessProbe": {"httpGet": {"port": 80}, "periodSeconds": 0},
                "lifecycle": {"preStop": {"httpGet": {"port": 80}}}}],
            "volumes": [{"name": "a"}, {"name": "b", "configMap": {"name": "x"}},
                {"name": "c", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}}),
    );
    expect![[r#"
        {
          "containers": [
            {
              "env": [
                {
                  "name": "A",
                  "valueFrom": {
                    "fieldRef": {
                      "apiVersion": "v1",
                      "fieldPath": "status.podIP"
                    }
                  }
                }
              ],
              "image": "reg:5000/web",
              "imagePullPolicy": "Always",
              "lifecycle": {
                "preStop": {
                  "httpGet": {
                    "path": "/",
                    "port": 80,
                    "scheme": "HTTP"
                  }
                }
              },
              "livenessProbe": {
                "failureThreshold": 3,
                "httpGet": {
                  "path": "/",
                  "port": 80,
                  "scheme": "HTTP"
                },
                "periodSeconds": 10,
                "successThreshold": 1,
                "timeoutSeconds": 1
              },
              "name": "c",
              "ports": [
                {
                  "containerPort": 80,
                  "hostPort": 80,
                  "protocol": "TCP"
                }
              ],
              "resources": {
                "limits": {
                  "cpu": "1",
                  "memory": "1Gi"
                },
                "requests": {
                  "cpu": "500m",
                  "memory": "1Gi"
                }
              },
              "terminationMessagePath": "/dev/termination-log",
              "terminationMessagePolicy": "File"
            }
          ],
          "dnsPolicy": "ClusterFirst",
          "enableServiceLinks": true,
          "hostNetwork": true,
          "restartPolicy": "Always",
          "schedulerName": "default-scheduler",
          "securityContext": {},
          "serviceAccount": "sa",
          "serviceAccountName": "sa",
          "terminationGracePeriodSeconds": 30,
          "volumes": [
            {
              "emptyDir": {},
              "name": "a"
            },
            {
              "configMap": {
                "defaultMode": 420,
                "name": "x"
              },
              "name": "b"
            },
            {
              "name": "c",
              "projected": {
                "defaultMode": 420,
                "sources": [
                  {
                    "serviceAccountToken": {
                      "expirationSeconds": 3600,
                      "path": "t"
                    }
                  }
                ]
              }
            }
          ]
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&out["spec"]).unwrap());
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, want) in [
        ("web", "Always"),
        ("web:latest", "Always"),
        ("web:1", "IfNotPresent"),
        ("reg:5000/web", "Always"),
        ("reg:5000/web:1", "IfNotPresent"),
        ("web@sha256:abc", "IfNotPresent"),
    ] {
        let out = defaulted("", "pods", with(|p| p["spec"]["containers"][0]["image"] = image.into()));
        assert_eq!(out["spec"]["containers"][0]["imagePullPolicy"], want, "{image}");
    }
}

/// (what is set at `spec.…`, the findings)
#[test]
fn rules() {
    assert_eq!(findings("", "pods", pod()), "");
    let c = |field: &str, value: Value| with(|p| p["spec"]["containers"][0][field] = value);
    let s = |field: &str, value: Value| with(|p| p["spec"][field] = value);
    let cases = [
        (s("containers", json!([])), "spec.containers: Required value\n"),
        (
            s("restartPolicy", json!("Sometimes")),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"\n",
        ),
        (
            s("activeDeadlineSeconds", json!(0)),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive\n",
        ),
        (
            s("tolerations", json!([{"operator": "Exists", "value": "x"}])),
            "spec.tolerations[0].operator: Invalid value: \"Exists\": value must be empty when `operator` is 'Exists'\n",
        ),
        (
            s("volumes", json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}])),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type\n",
        ),
        (
            s(
                "topologySpreadConstraints",
                json!([{"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]),
            ),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero\n",
        ),
        (c("image", json!("")), "spec.containers[0].image: Required value\n"),
        (
            c("volumeMounts", json!([{"name": "nope", "mountPath": "/a"}])),
            "spec.containers[0].volumeMounts[0].name: Not found: \"nope\"\n",
        ),
        (
            c("ports", json!([{"containerPort": 70000}])),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive\n",
        ),
        (
            c("env", json!([{"name": "A=B"}])),
            "spec.containers[0].env[0].name: Invalid value: \"A=B\": a valid environment variable name must consist only of printable ASCII characters other than '='\n",
        ),
        (
            c(
                "env",
                json!([{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
            ),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty\n",
        ),
        (
            c(
                "env",
                json!([{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]),
            ),
            "",
        ),
        (
            c("resources", json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1\n",
        ),
        (
            c("resources", json!({"limits": {"cpu": "-1"}})),
            "spec.containers[0].resources.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0\n\
             spec.containers[0].resources.requests[cpu]: Invalid value: \"-1\": must be greater than or equal to 0\n",
        ),
        (
            c("livenessProbe", json!({"httpGet": {"port": "BAD"}, "successThreshold": 2})),
            "spec.containers[0].livenessProbe.httpGet.port: Invalid value: \"BAD\": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)\n\
             spec.containers[0].livenessProbe.httpGet.port: Invalid value: \"BAD\": must contain at least one letter (a-z)\n\
             spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1\n",
        ),
        (
            c("readinessProbe", json!({})),
            "spec.containers[0].readinessProbe: Required value: must specify a handler type\n",
        ),
        (
            c("name", json!("A")),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')\n",
        ),
    ];
    for (pod, want) in cases {
        assert_eq!(findings("", "pods", pod.clone()), want, "{pod}");
    }
    let twice = s(
        "initContainers",
        json!([{"name": "c", "image": "x", "readinessProbe": {"exec": {"command": ["x"]}}}]),
    );
    expect![[r#"
        spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always
        spec.containers[0].name: Duplicate value: "c"
    "#]]
    .assert_eq(&findings("", "pods", twice));
}

#[test]
fn changes() {
    let base = || {
        with(|p| {
            p["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
            p["spec"]["activeDeadlineSeconds"] = 10.into();
        })
    };
    let change = |edit: fn(&mut Value)| {
        let mut new = base();
        edit(&mut new["spec"]);
        change_findings("", "pods", base(), new)
    };
    assert_eq!(change(|_| {}), "");
    assert_eq!(change(|s| s["containers"][0]["image"] = "other".into()), "");
    assert_eq!(change(|s| s["activeDeadlineSeconds"] = 5.into()), "");
    assert_eq!(
        change(|s| s["tolerations"] =
            json!([{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}])),
        ""
    );
    assert!(change(|s| s["tolerations"] = json!([])).contains("existing toleration can not be modified"));
    assert!(
        change(|s| s["activeDeadlineSeconds"] = 11.into())
            .contains("must be less than or equal to previous value: 10")
    );
    assert!(
        change(|s| s["nodeSelector"] = json!({"a": "b"}))
            .contains("pod updates may not change fields other than")
    );
    assert!(change(|s| s["containers"][0]["command"] = json!(["x"])).contains("pod updates may not change"));
    assert!(
        change(|s| s["containers"][0]["resources"] = json!({"limits": {"cpu": "1"}}))
            .contains("pod updates may not")
    );
    assert!(change(|s| s["containers"] = json!([])).contains("may not add or remove containers"));
    assert!(change(|s| s["schedulingGates"] = json!([{"name": "x"}])).contains("only deletion is allowed"));
}

struct NoReader;

impl crate::resource::Reader for NoReader {
    fn get<'a>(
        &'a self,
        _: &'a api::GroupVersionResource,
        _: &'a api::ObjectKey,
    ) -> futures_util::future::BoxFuture<'a, Result<Option<api::Object>, api::Status>> {
        Box::pin(async { Ok(None) })
    }
    fn list<'a>(
        &'a self,
        _: &'a api::GroupVersionResource,
        _: Option<&'a str>,
    ) -> futures_util::future::BoxFuture<'a, Result<Vec<api::Object>, api::Status>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn private<'a>(
        &'a self,
        _: &'a str,
    ) -> futures_util::future::BoxFuture<'a, Result<Option<crate::resource::PrivateEntry>, api::Status>> {
        Box::pin(async { Ok(None) })
    }
    fn private_range<'a>(
        &'a self,
        _: &'a str,
    ) -> futures_util::future::BoxFuture<'a, Result<Vec<crate::resource::PrivateEntry>, api::Status>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

fn in_context<T>(run: impl FnOnce(&crate::resource::WriteContext<'_>) -> T) -> T {
    let user = crate::resource::UserInfo::new("u", &[]);
    run(&crate::resource::WriteContext {
        user: &user,
        now: jiff::Timestamp::UNIX_EPOCH,
        subresource: None,
        dry_run: false,
        reader: &NoReader,
        service_cidrs: &[],
        cluster_cidrs: &[],
        node_port_range: (30000, 32767),
    })
}

#[test]
fn deletion() {
    let row = row("", "pods");
    let decide = |edit: fn(&mut Value), grace: Option<i64>| {
        let mut pod = with(|p| {
            p["spec"]["nodeName"] = "n".into();
            p["spec"]["terminationGracePeriodSeconds"] = 30.into();
        });
        edit(&mut pod);
        let options = api::RequestOptions { grace_period_seconds: grace, ..Default::default() };
        in_context(|cx| row.strategy.before_delete(cx, &object(pod), &options)).unwrap()
    };
    assert_eq!(decide(|_| {}, None), DeleteDecision::Graceful { seconds: 30 });
    assert_eq!(decide(|_| {}, Some(5)), DeleteDecision::Graceful { seconds: 5 });
    assert_eq!(decide(|_| {}, Some(0)), DeleteDecision::Now);
    assert_eq!(decide(|_| {}, Some(-3)), DeleteDecision::Graceful { seconds: 1 });
    assert_eq!(decide(|p| p["spec"]["nodeName"] = "".into(), None), DeleteDecision::Now);
    assert_eq!(decide(|p| p["status"] = json!({"phase": "Succeeded"}), None), DeleteDecision::Now);
}

#[test]
fn quality_of_service() {
    let row = row("", "pods");
    let class = |resources: Value| {
        let mut pod = object(with(|p| p["spec"]["containers"][0]["resources"] = resources));
        row.strategy.default(&mut pod);
        in_context(|cx| row.strategy.prepare_for_create(cx, &mut pod));
        assert_eq!(pod.str(&["status", "phase"]), "Pending");
        pod.str(&["status", "qosClass"]).to_owned()
    };
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(
        class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}})),
        "Guaranteed"
    );
    assert_eq!(class(json!({"limits": {"cpu": "1"}})), "Burstable");
}
