//! Images from registries on loopback: through a mirror, with a pull secret, slowly, and not at all.

use std::time::Duration;

use serde_json::json;

use crate::kubectl::Kubectl;
use crate::registry::{Registry, layer};

/// A little longer than the time between reports of a pull.
const DAWDLE: Duration = Duration::from_secs(33);

/// A pod that shows a file of an image, which is mounted as a volume: the image needs no program then.
fn pod(name: &str, image: &str, policy: &str, secret: Option<&str>) -> serde_json::Value {
    let secrets: Vec<_> = secret.into_iter().map(|name| json!({"name": name})).collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0, "imagePullSecrets": secrets,
        "containers": [{"name": "c", "image": "podium.local/toolbox", "command": ["sh", "-c", "cat /image/greeting; sleep 1000"],
            "volumeMounts": [{"name": "image", "mountPath": "/image"}]}],
        "volumes": [{"name": "image", "image": {"reference": image, "pullPolicy": policy}}]}})
}

fn apply(k: &Kubectl, object: &serde_json::Value) {
    k.feed(&["apply", "-f", "-"], object.to_string().as_bytes());
}

fn events(k: &Kubectl, pod: &str) -> String {
    let of_pod = format!("involvedObject.name={pod}");
    let columns = r#"jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}"#;
    k.run(&["get", "events", "--field-selector", &of_pod, "-o", columns])
}

pub(crate) fn pulls(k: &Kubectl) {
    let pool = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let start = || pool.block_on(Registry::start(None));
    let (mirror, private) = (start(), start());
    let user = || Some(("me".to_owned(), "secret".to_owned()));
    (mirror.state().user, private.state().user) = (user(), user());
    mirror.add("1", &[layer("greeting", b"by mirror\n")], false);
    private.add("1", &[layer("greeting", b"by secret\n")], true);
    private.state().pause = DAWDLE;
    private.add("slow", &[layer("greeting", &[b'x'; 100_000])], false);
    let (mirror, private) = (mirror.address.to_string(), private.address.to_string());
    // YAML has JSON in it.
    let registries = json!({
        "mirrors": {"far.example": {"endpoint": [format!("http://{mirror}")]},
            &private: {"endpoint": [format!("http://{private}")]}},
        "configs": {&mirror: {"auth": {"username": "me", "password": "secret"}}},
    });
    std::fs::write(k.data_dir().join("registries.yaml"), registries.to_string()).unwrap();
    let server = format!("--docker-server={private}");
    k.run(&[
        "create",
        "secret",
        "docker-registry",
        "pull",
        &server,
        "--docker-username=me",
        "--docker-password=secret",
    ]);

    let named = |tag: &str| format!("{private}/team/app:{tag}");
    apply(k, &pod("slow", &named("slow"), "IfNotPresent", Some("pull")));
    apply(k, &pod("mirrored", "far.example/app:1", "Always", None));
    apply(k, &pod("never", "far.example/other:1", "Never", None));
    apply(k, &pod("refused", &named("1"), "Always", None));
    k.run(&["wait", "--for=condition=Ready", "--timeout=50s", "pod", "mirrored"]);
    shows(k, "mirrored", "by mirror\n");
    let pulled = "Pulled: Successfully pulled image \"far.example/app:1\" in ";
    told(k, "mirrored", &["Pulling: Pulling image \"far.example/app:1\"", pulled]);
    told(
        k,
        "never",
        &[
            "ErrImageNeverPull: Container image \"far.example/other:1\" is not present with pull policy of Never",
        ],
    );
    let refused = format!("Failed: Failed to pull image \"{}\": ", named("1"));
    told(k, "refused", &[&refused, "Failed: Error: ErrImagePull", "BackOff: Back-off pulling image "]);

    apply(k, &pod("secret", &named("1"), "Always", Some("pull")));
    k.run(&["wait", "--for=condition=Ready", "--timeout=50s", "pod", "secret"]);
    shows(k, "secret", "by secret\n");
    let progress = format!("Pulling: Pulling image \"{}\": 0 of 1 layers, ", named("slow"));
    told(k, "slow", &[&progress]);
    k.run(&["wait", "--for=condition=Ready", "--timeout=50s", "pod", "slow"]);
    let events = events(k, "slow");
    let size = events.lines().find_map(|line| line.split_once("including waiting). Image size: "));
    let size = size.and_then(|(_, rest)| rest.trim_end_matches(" bytes.").parse::<u64>().ok());
    assert!(size.is_some_and(|size| size > 100_000), "{events}");
}

/// Waits until a pod has written what is in its image.
fn shows(k: &Kubectl, pod: &str, greeting: &str) {
    eventually(|| match k.run(&["logs", pod]) {
        log if log == greeting => Ok(()),
        log => Err(format!("{pod} writes {log:?}")),
    });
}

/// Waits until the events of a pod have lines that begin so.
fn told(k: &Kubectl, pod: &str, beginnings: &[&str]) {
    eventually(|| {
        let all = events(k, pod);
        let missing = beginnings.iter().find(|wanted| !all.lines().any(|line| line.starts_with(**wanted)));
        missing.map_or(Ok(()), |missing| Err(format!("{pod}: no event {missing:?} in\n{all}")))
    });
}

fn eventually(look: impl Fn() -> Result<(), String>) {
    let begun = std::time::Instant::now();
    while let Err(why) = look() {
        assert!(begun.elapsed() < crate::kubectl::PATIENCE, "{why}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
