use super::*;

fn field_of(kind: (&str, &str, &str), path: &[&str]) -> Field {
    let table = table();
    let mut id = table.kind(kind.0, kind.1, kind.2).unwrap();
    let (last, parents) = path.split_last().unwrap();
    for name in parents {
        let mut ty = &table.get(id).field(name).unwrap().ty;
        while let FieldType::List(inner) | FieldType::Map(inner) = ty {
            ty = inner;
        }
        let FieldType::Ref(next) = ty else { panic!("{name} is no object") };
        id = *next;
    }
    table.get(id).field(last).unwrap().clone()
}

const POD: (&str, &str, &str) = ("", "v1", "Pod");
const SERVICE: (&str, &str, &str) = ("", "v1", "Service");

#[test]
fn lists_merge_by_their_keys() {
    let map = |keys: &[&str]| ListType::Map(keys.iter().map(|k| (*k).to_owned()).collect());
    let containers = field_of(POD, &["spec", "containers"]);
    assert_eq!(containers.list_type, map(&["name"]));
    assert_eq!(containers.patch_merge_key.as_deref(), Some("name"));
    assert!(containers.patch_merge && containers.required);
    let ports = field_of(SERVICE, &["spec", "ports"]);
    assert_eq!(ports.list_type, map(&["port", "protocol"]));
    assert_eq!(ports.patch_merge_key.as_deref(), Some("port"));
    assert_eq!(field_of(POD, &["metadata", "finalizers"]).list_type, ListType::Set);
    assert_eq!(field_of(POD, &["metadata", "ownerReferences"]).list_type, map(&["uid"]));
    // from the supplement
    assert_eq!(field_of(POD, &["spec", "evictionResponders"]).list_type, map(&["name"]));
    let strategy = field_of(("apps", "v1", "Deployment"), &["spec", "strategy"]);
    assert!(strategy.patch_retain_keys);
    // volumes inline their source: the marker is on the field of the outer list
    let volumes = field_of(POD, &["spec", "volumes"]);
    assert!(volumes.patch_merge && volumes.patch_retain_keys);
}

#[test]
fn types_and_numbers() {
    assert_eq!(field_of(("apps", "v1", "Deployment"), &["spec", "replicas"]).ty, FieldType::Int32);
    assert_eq!(field_of(POD, &["spec"]).number, 2);
    assert!(!field_of(POD, &["metadata"]).required);
    assert_eq!(field_of(("", "v1", "Secret"), &["data"]).ty, FieldType::Map(Box::new(FieldType::Bytes)));
    assert_eq!(field_of(SERVICE, &["spec", "ports", "targetPort"]).ty, FieldType::IntOrString);
    assert_eq!(field_of(POD, &["metadata", "creationTimestamp"]).ty, FieldType::Time);
    assert_eq!(
        field_of(("coordination.k8s.io", "v1", "Lease"), &["spec", "renewTime"]).ty,
        FieldType::MicroTime
    );
    let requests = field_of(POD, &["spec", "containers", "resources", "requests"]);
    assert_eq!(requests.ty, FieldType::Map(Box::new(FieldType::Quantity)));
    let config_map = field_of(POD, &["spec", "volumes", "configMap"]);
    assert!(!config_map.inlined_in.is_empty(), "VolumeSource is inlined in Volume");
    assert_eq!(field_of(SERVICE, &["spec", "ports", "protocol"]).default.as_deref(), Some("\"TCP\""));
    let selector =
        table().get(table().by_name("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").unwrap()).clone();
    assert!(selector.atomic);
}

#[test]
fn every_served_kind_and_its_list_are_there() {
    let kinds = [
        (
            "",
            "v1",
            "Pod Service Endpoints Namespace Node ConfigMap Secret ServiceAccount Event PersistentVolume \
            PersistentVolumeClaim ReplicationController ResourceQuota LimitRange PodTemplate",
        ),
        ("apps", "v1", "Deployment ReplicaSet StatefulSet DaemonSet ControllerRevision"),
        ("batch", "v1", "Job CronJob"),
        ("rbac.authorization.k8s.io", "v1", "Role RoleBinding ClusterRole ClusterRoleBinding"),
        ("coordination.k8s.io", "v1", "Lease"),
        ("discovery.k8s.io", "v1", "EndpointSlice"),
        ("events.k8s.io", "v1", "Event"),
        ("scheduling.k8s.io", "v1", "PriorityClass"),
        ("networking.k8s.io", "v1", "Ingress IngressClass NetworkPolicy ServiceCIDR IPAddress"),
        ("storage.k8s.io", "v1", "StorageClass VolumeAttachment CSIDriver CSINode CSIStorageCapacity"),
        ("policy", "v1", "PodDisruptionBudget"),
        ("autoscaling", "v2", "HorizontalPodAutoscaler"),
    ];
    let table = table();
    for (group, version, names) in kinds {
        for name in names.split_whitespace() {
            assert!(table.kind(group, version, name).is_some(), "{group}/{version} {name}");
            assert!(
                table.kind(group, version, &format!("{name}List")).is_some(),
                "{group}/{version} {name}List"
            );
        }
    }
    for (group, kind) in
        [("authentication.k8s.io", "TokenReview"), ("authorization.k8s.io", "SubjectAccessReview")]
    {
        assert!(table.kind(group, "v1", kind).is_some(), "{kind}");
    }
    assert!(table.kind("policy", "v1", "Eviction").is_some());
    assert!(table.kind("autoscaling", "v1", "Scale").is_some());
}

#[test]
fn the_table_is_whole() {
    let table = table();
    let types = table.types().count();
    let fields: usize = table.types().map(|(_, t)| t.fields.len()).sum();
    let described = table.types().flat_map(|(_, t)| &t.fields).filter(|f| !f.description.is_empty()).count();
    assert!(types > 800 && fields > 3300, "{types} types, {fields} fields");
    assert!(described * 100 > fields * 95, "{described} of {fields} fields have a description");
    for (_, ty) in table.types() {
        assert!(ty.fields.is_sorted_by(|a, b| a.name < b.name), "{}: lookups need sorted fields", ty.name);
    }
}

#[test]
fn stable_types_have_numbers() {
    // Types whose names the two sources capitalise differently join as well.
    assert_eq!(field_of(POD, &["spec", "containers", "livenessProbe", "httpGet", "path"]).number, 1);
    assert_eq!(
        field_of(POD, &["spec", "volumes", "iscsi", "iscsiInterface"]).default.as_deref(),
        Some("\"default\"")
    );
    assert_eq!(field_of(POD, &["status", "podIPs", "ip"]).number, 1);
    // An empty string is left out by Go, so it is no default here.
    assert_eq!(field_of(POD, &["spec", "imagePullSecrets", "name"]).default, None);
    let table = table();
    let stable = |name: &str| {
        name.contains(".core.v1.") || name.contains(".apps.v1.") || name.contains(".networking.v1.")
    };
    // What is newer than the source of numbers has its number in the supplement; NodeSystemInfo.runningInUserNamespace is newer still.
    let (mut all, mut without) = (0, Vec::new());
    for (_, ty) in table.types().filter(|(_, t)| stable(&t.name)) {
        for field in ty.fields.iter().filter(|f| !matches!(f.name.as_ref(), "apiVersion" | "kind")) {
            all += 1;
            if field.number == 0 {
                without.push(format!("{}.{}", ty.name, field.name));
            }
        }
    }
    assert!(all > 1_000 && without.len() <= 1, "{} of {all}: {without:#?}", without.len());
}

#[path = "../build/sha256.rs"]
mod sha256;

#[test]
fn digests_of_the_build_script() {
    // The examples of FIPS 180-4, and one of several blocks checked with coreutils.
    let cases = [
        ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (&"a".repeat(1000), "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3"),
    ];
    for (text, wanted) in cases {
        assert_eq!(sha256::hex(text.as_bytes()), wanted);
    }
}
