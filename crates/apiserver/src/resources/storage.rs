//! `storage.k8s.io/v1`: StorageClass, VolumeAttachment, CSIDriver, CSINode, CSIStorageCapacity, VolumeAttributesClass.

use api::{FieldError, Object};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::check::{At, Errors, immutable};
use super::names;
use super::row::{Hooks, Row, col, name_col};
use crate::printing::cells;

const CLASS: Hooks = Hooks {
    default: |o| {
        o.set_default(&["reclaimPolicy"], "Delete");
        o.set_default(&["volumeBindingMode"], "Immediate");
    },
    validate: |o, e| {
        At::top(o, "provisioner").required_text(e, |s| names::qualified_name(&s.to_lowercase()));
        At::top(o, "reclaimPolicy").one_of(e, &["Delete", "Retain"]);
        At::top(o, "volumeBindingMode").required_one_of(e, &["Immediate", "WaitForFirstConsumer"]);
    },
    validate_update: |new, old, e| {
        for name in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
            if new.get(&[name]) != old.get(&[name]) {
                e.push(FieldError::forbidden(name, "updates to this field are forbidden."));
            }
        }
    },
    ..Hooks::NONE
};
const ATTRIBUTES_CLASS: Hooks = Hooks {
    validate_update: |new, old, e| {
        immutable(e, new, old, &["driverName"]);
        immutable(e, new, old, &["parameters"]);
    },
    ..Hooks::NONE
};
const ATTACHMENT: Hooks =
    Hooks { validate_update: |new, old, e| immutable(e, new, old, &["spec"]), ..Hooks::NONE };
const DRIVER: Hooks = Hooks { default: default_driver, validate: validate_driver, ..Hooks::NONE };
const CAPACITY: Hooks = Hooks {
    validate_update: |new, old, e| {
        immutable(e, new, old, &["nodeTopology"]);
        immutable(e, new, old, &["storageClassName"]);
    },
    ..Hooks::NONE
};

fn default_driver(o: &mut Object) {
    o.set_default(&["spec", "attachRequired"], true);
    o.set_default(&["spec", "podInfoOnMount"], false);
    o.set_default(&["spec", "storageCapacity"], false);
    o.set_default(&["spec", "fsGroupPolicy"], "ReadWriteOnceWithFSType");
    o.set_default(&["spec", "volumeLifecycleModes"], json!(["Persistent"]));
    o.set_default(&["spec", "requiresRepublish"], false);
    o.set_default(&["spec", "seLinuxMount"], false);
}

fn validate_driver(o: &Object, e: &mut Errors) {
    let spec = At::top(o, "spec");
    for mode in spec.field("volumeLifecycleModes").items() {
        mode.one_of(e, &["Ephemeral", "Persistent"]);
    }
    spec.field("fsGroupPolicy").one_of(e, &["File", "None", "ReadWriteOnceWithFSType"]);
    spec.field("tokenRequests").unique(e, "audience");
}

fn flag(o: &Object, path: &[&str]) -> Value {
    (o.get(path).and_then(Value::as_bool) == Some(true)).into()
}

fn class_name(o: &Object, _: Timestamp) -> Value {
    let annotation = o.str(&["metadata", "annotations", "storageclass.kubernetes.io/is-default-class"]);
    if annotation == "true" { format!("{} (default)", o.name()).into() } else { o.name().into() }
}

fn audiences(o: &Object, _: Timestamp) -> Value {
    let all = cells::list(o, &["spec", "tokenRequests"]).iter();
    let texts: Vec<&str> = all.map(|t| cells::sub(t, "audience")).collect();
    if texts.is_empty() { "<unset>".into() } else { texts.join(",").into() }
}

fn driver_row() -> Row {
    Row::new("csidrivers", "CSIDriver").cluster().strategy(DRIVER).columns(
        vec![
            col("AttachRequired", "boolean", "Whether volumes are attached to nodes first.", |o, _| {
                flag(o, &["spec", "attachRequired"])
            }),
            col("PodInfoOnMount", "boolean", "Whether the driver is told about the pod.", |o, _| {
                flag(o, &["spec", "podInfoOnMount"])
            }),
            col("StorageCapacity", "boolean", "Whether scheduling looks at free capacity.", |o, _| {
                flag(o, &["spec", "storageCapacity"])
            }),
            col("TokenRequests", "string", "Audiences of the tokens the driver gets.", audiences),
            col("RequiresRepublish", "boolean", "Whether mounts are renewed now and then.", |o, _| {
                flag(o, &["spec", "requiresRepublish"])
            }),
            col("Modes", "string", "Kinds of volumes the driver serves.", |o, _| {
                match cells::joined(cells::list(o, &["spec", "volumeLifecycleModes"])) {
                    text if text.is_empty() => "<none>".into(),
                    text => text.into(),
                }
            }),
        ],
        Vec::new(),
    )
}

fn class_row() -> Row {
    let mut row =
        Row::new("storageclasses", "StorageClass").short(&["sc"]).cluster().strategy(CLASS).columns(
            vec![
                col("Provisioner", "string", "Who makes the volumes.", |o, _| o.str(&["provisioner"]).into()),
                col("ReclaimPolicy", "string", "What happens to a released volume.", |o, _| {
                    o.str(&["reclaimPolicy"]).into()
                }),
                col("VolumeBindingMode", "string", "When volumes are made and bound.", |o, _| {
                    o.str(&["volumeBindingMode"]).into()
                }),
                col("AllowVolumeExpansion", "boolean", "Whether volumes can grow.", |o, _| {
                    flag(o, &["allowVolumeExpansion"])
                }),
            ],
            Vec::new(),
        );
    row.first_column(class_name);
    row
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        driver_row(),
        Row::new("csinodes", "CSINode").cluster().columns(
            vec![col("Drivers", "integer", "Number of drivers on the node.", |o, _| {
                cells::size(o, &["spec", "drivers"]).into()
            })],
            Vec::new(),
        ),
        Row::new("csistoragecapacities", "CSIStorageCapacity").strategy(CAPACITY).exact_columns(vec![
            name_col(),
            col("StorageClassName", "string", "The StorageClass.", |o, _| {
                o.str(&["storageClassName"]).into()
            }),
            col("Capacity", "string", "Free capacity.", |o, _| match cells::text(o, &["capacity"]) {
                text if text.is_empty() => "<unset>".into(),
                text => text.into(),
            }),
        ]),
        class_row(),
        Row::new("volumeattachments", "VolumeAttachment").cluster().status().strategy(ATTACHMENT).columns(
            vec![
                col("Attacher", "string", "The driver.", |o, _| o.str(&["spec", "attacher"]).into()),
                col("PV", "string", "The volume.", |o, _| {
                    o.str(&["spec", "source", "persistentVolumeName"]).into()
                }),
                col("Node", "string", "The node.", |o, _| o.str(&["spec", "nodeName"]).into()),
                col("Attached", "boolean", "Whether the volume is attached.", |o, _| {
                    flag(o, &["status", "attached"])
                }),
            ],
            Vec::new(),
        ),
        Row::new("volumeattributesclasses", "VolumeAttributesClass")
            .short(&["vac"])
            .cluster()
            .strategy(ATTRIBUTES_CLASS)
            .columns(
                vec![col("DriverName", "string", "The driver.", |o, _| o.str(&["driverName"]).into())],
                Vec::new(),
            ),
    ]
}
