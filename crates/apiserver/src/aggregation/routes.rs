//! APIServices as they are asked for with every request.

use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::Value;

use crate::callout::tls::{self, Trust};
use crate::printing::cells;
use crate::resources::{AVAILABLE, Priority};
use crate::server::FrontProxy;
use crate::stored::{self, CachedObject};

/// All APIServices at one revision.
#[derive(Default)]
pub(crate) struct Routes {
    pub(super) revision: u64,
    services: Vec<Arc<ApiService>>,
}

/// One APIService.
pub(crate) struct ApiService {
    /// `v1.apps`
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) priority: Priority,
    /// Where requests go; `None` when this server serves them itself.
    pub(crate) remote: Option<Remote>,
    /// Whether the other server answered when it was asked last.
    pub(crate) available: bool,
}

/// Another server.
pub(crate) struct Remote {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) port: u16,
    /// Whom its certificate has to come from: a `caBundle`, or `*` for anybody.
    pub(super) trust: String,
    pub(super) tls: Result<Arc<ClientConfig>, String>,
}

impl Remote {
    /// What its certificate has to be for.
    pub(super) fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }
}

impl Routes {
    pub(super) fn of(objects: &[Arc<CachedObject>], revision: u64, own: Option<&FrontProxy>) -> Self {
        let read = |object: &Arc<CachedObject>| match stored::decode(&object.value, object.revision) {
            Ok(tree) => Some(Arc::new(ApiService::of(&tree, own))),
            Err(status) => {
                tracing::error!(key = %object.key, %status, "an APIService is not understood");
                None
            }
        };
        Self { revision, services: objects.iter().filter_map(read).collect() }
    }

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<ApiService>> {
        self.services.iter()
    }

    /// The one of a group and version.
    pub(crate) fn get(&self, group: &str, version: &str) -> Option<&Arc<ApiService>> {
        self.services.iter().find(|service| service.group == group && service.version == version)
    }

    /// The same, if requests go to another server.
    pub(crate) fn remote(&self, group: &str, version: &str) -> Option<&Arc<ApiService>> {
        self.services.iter().filter(|s| s.remote.is_some()).find(|s| s.group == group && s.version == version)
    }
}

impl ApiService {
    fn of(object: &api::Object, own: Option<&FrontProxy>) -> Self {
        let spec = |name: &str| object.get(&["spec", name]).cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let service = spec("service");
        let remote = service.is_object().then(|| {
            let bundle = text(&spec("caBundle"));
            let anybody = spec("insecureSkipTLSVerify") == true;
            let (trust, known) =
                if anybody { (Trust::Anybody, "*") } else { (Trust::Bundle(&bundle), bundle.as_str()) };
            Remote {
                namespace: text(&service["namespace"]),
                service: text(&service["name"]),
                port: service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
                tls: tls::client(&trust, own),
                trust: known.to_owned(),
            }
        });
        let number = |name: &str| spec(name).as_i64().unwrap_or_default();
        Self {
            name: object.name().to_owned(),
            group: text(&spec("group")),
            version: text(&spec("version")),
            priority: (number("groupPriorityMinimum"), number("versionPriority")),
            remote,
            available: cells::condition(object, AVAILABLE) == "True",
        }
    }
}
