//! `v1`: the core group.

pub(super) mod allocation;
mod columns;
mod config;
pub(super) mod event;
mod namespace;
mod node;
mod pod;
mod quota;
mod rules;
mod service;

use api::Verb;

use super::names;
use super::row::{Row, age_col, col, name_col};
use crate::printing::cells;
use crate::resource::Durability;

const GET_CREATE: &[Verb] = &[Verb::Create, Verb::Get];
const ANY_METHOD: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];
const NO_DELETE_COLLECTION: &[Verb] =
    &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
const VIEW: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];

fn pods() -> Row {
    Row::new("pods", "Pod")
        .short(&["po"])
        .in_all()
        .fields(&[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ])
        .connect("attach", "PodAttachOptions", GET_CREATE)
        .create("binding", "", "v1", "Binding")
        .part("ephemeralcontainers", VIEW)
        .create("eviction", "policy", "v1", "Eviction")
        .connect("exec", "PodExecOptions", GET_CREATE)
        .connect("log", "", &[Verb::Get])
        .connect("portforward", "PodPortForwardOptions", GET_CREATE)
        .connect("proxy", "PodProxyOptions", ANY_METHOD)
        .part("resize", VIEW)
        .status()
        .strategy(pod::PodStrategy)
        .columns(columns::pod_before_age(), columns::pod_after_age())
}

fn volumes() -> Vec<Row> {
    vec![
        Row::new("persistentvolumeclaims", "PersistentVolumeClaim")
            .short(&["pvc"])
            .status()
            .strategy(rules::CLAIM)
            .columns(columns::claim(), vec![columns::volume_mode()]),
        Row::new("persistentvolumes", "PersistentVolume")
            .short(&["pv"])
            .cluster()
            .status()
            .strategy(rules::VOLUME)
            .columns(columns::volume(), vec![columns::volume_mode()]),
    ]
}

fn workloads() -> Vec<Row> {
    vec![
        pods(),
        Row::new("podtemplates", "PodTemplate").strategy(rules::POD_TEMPLATE).exact_columns(vec![
            name_col(),
            col("Containers", "string", "Names of the containers.", cells::pod_template_containers),
            col("Images", "string", "Images of the containers.", cells::pod_template_images),
            col("Pod Labels", "string", "Labels of the pods.", |o, _| {
                cells::labels(o.get(&["template", "metadata", "labels"])).into()
            }),
        ]),
        Row::new("replicationcontrollers", "ReplicationController")
            .short(&["rc"])
            .in_all()
            .fields(&["status.replicas"])
            .scale(&["status", "replicas"])
            .status()
            .strategy(rules::REPLICATION_CONTROLLER)
            .columns(super::apps::replica_columns(), columns::template_with_label_selector()),
    ]
}

pub(super) fn rows() -> Vec<Row> {
    let mut rows = vec![
        Row::new("bindings", "Binding").strategy(rules::BINDING).verbs(&[Verb::Create]),
        Row::new("configmaps", "ConfigMap").short(&["cm"]).strategy(config::CONFIG_MAP).columns(
            vec![col("Data", "integer", "Number of keys.", |o, _| {
                (cells::size(o, &["data"]) + cells::size(o, &["binaryData"])).into()
            })],
            Vec::new(),
        ),
        Row::new("endpoints", "Endpoints").short(&["ep"]).strategy(rules::ENDPOINTS).columns(
            vec![col("Endpoints", "string", "Ready addresses with ports.", columns::endpoints)],
            Vec::new(),
        ),
        Row::new("events", "Event")
            .short(&["ev"])
            .durability(Durability::Relaxed)
            .fields(event::FIELDS)
            .strategy(event::EVENT)
            .exact_columns(event::columns()),
        Row::new("limitranges", "LimitRange").short(&["limits"]).strategy(rules::LIMIT_RANGE),
        Row::new("namespaces", "Namespace")
            .short(&["ns"])
            .verbs(NO_DELETE_COLLECTION)
            .cluster()
            .named(names::dns_label)
            .fields(&["status.phase"])
            .part("finalize", &[Verb::Update])
            .status()
            .strategy(namespace::NamespaceStrategy)
            .columns(
                vec![col("Status", "string", "Phase of the namespace.", |o, _| {
                    o.str(&["status", "phase"]).into()
                })],
                Vec::new(),
            ),
        Row::new("nodes", "Node")
            .short(&["no"])
            .cluster()
            .fields(&["spec.unschedulable"])
            .connect("proxy", "NodeProxyOptions", ANY_METHOD)
            .status()
            .strategy(node::NodeStrategy)
            .columns(columns::node_before_age(), columns::node_after_age()),
    ];
    rows.extend(volumes());
    rows.extend(workloads());
    rows.extend([
        Row::new("resourcequotas", "ResourceQuota")
            .short(&["quota"])
            .status()
            .strategy(quota::QuotaStrategy)
            .exact_columns(vec![
                name_col(),
                col("Request", "string", "Used and allowed requests and counts.", |o, _| {
                    columns::quota(o, false)
                }),
                col("Limit", "string", "Used and allowed limits.", |o, _| columns::quota(o, true)),
                age_col(),
            ]),
        Row::new("secrets", "Secret").fields(&["type"]).strategy(config::SECRET).columns(
            vec![
                col("Type", "string", "What the data is for.", |o, _| o.str(&["type"]).into()),
                col("Data", "integer", "Number of keys.", |o, _| cells::size(o, &["data"]).into()),
            ],
            Vec::new(),
        ),
        Row::new("serviceaccounts", "ServiceAccount")
            .short(&["sa"])
            .create("token", "authentication.k8s.io", "v1", "TokenRequest")
            .columns(
                vec![col("Secrets", "integer", "Number of secrets that pods may use.", |o, _| {
                    cells::size(o, &["secrets"]).into()
                })],
                Vec::new(),
            ),
        Row::new("services", "Service")
            .short(&["svc"])
            .in_all()
            .named(names::dns_1035_label)
            .fields(&["spec.clusterIP", "spec.type"])
            .connect("proxy", "ServiceProxyOptions", ANY_METHOD)
            .status()
            .strategy(service::ServiceStrategy)
            .columns(columns::service(), columns::service_after_age()),
    ]);
    rows
}
