//! What the owner of a machine should know before pods run on it: one line each. The look is an effect, the judgement is pure.

use std::path::Path;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors that a busy node needs: some for each container, connection and watch.
const DESCRIPTORS: u64 = 1024;
/// Each followed log takes one.
const INOTIFY_INSTANCES: u64 = 128;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Contents of `/sys/fs/selinux/enforce`, where SELinux is there.
    pub(crate) selinux: Option<String>,
    /// Descriptors that the process may open, after the soft limit was raised.
    pub(crate) descriptors: Option<u64>,
    pub(crate) inotify_instances: Option<u64>,
    /// Folder and options of its mount.
    pub(crate) mounts: Vec<(String, String)>,
    /// `/etc/resolv.conf`
    pub(crate) resolv_conf: Option<String>,
}

/// Raises the soft limit of descriptors to the hard one and looks at the machine.
pub(crate) fn look(folders: &[&Path]) -> Facts {
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let table = text("/proc/self/mountinfo").unwrap_or_default();
    let options = |folder: &&Path| {
        let found = mount_options(&table, &folder.to_string_lossy())?;
        Some((folder.display().to_string(), found))
    };
    Facts {
        selinux: text("/sys/fs/selinux/enforce"),
        descriptors: raise_descriptors(),
        inotify_instances: text("/proc/sys/fs/inotify/max_user_instances")
            .and_then(|n| n.trim().parse().ok()),
        mounts: folders.iter().filter_map(options).collect(),
        resolv_conf: text("/etc/resolv.conf"),
    }
}

/// The limit that holds now; `None` where there is none.
fn raise_descriptors() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of descriptors stays");
            limit.current
        }
    }
}

/// Options of the mount that a folder is on (proc(5), mountinfo: the sixth field).
fn mount_options(table: &str, folder: &str) -> Option<String> {
    let holds = |point: &str| {
        let rest = folder.strip_prefix(point.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mounts = table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        Some((fields.next()?, fields.next()?))
    });
    // of several on one place the last one covers the others
    let best = mounts.filter(|(point, _)| holds(point)).max_by_key(|(point, _)| point.len());
    best.map(|(_, options)| options.to_owned())
}

/// A line for everything that will make itself felt.
pub(crate) fn judge(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    match facts.selinux.as_deref().map(str::trim) {
        Some("1") => lines.push(
            "SELinux is enforcing: pods get no labels of their own and run under this program's; what the policy \
             denies them is in the audit log (ausearch -m avc)"
                .to_owned(),
        ),
        Some(_) => lines.push(
            "SELinux is permissive: it denies pods nothing, and they get no labels of their own".to_owned(),
        ),
        None => {}
    }
    if let Some(most) = facts.descriptors.filter(|most| *most < DESCRIPTORS) {
        lines.push(format!(
            "only {most} files may be open at once: raise the limit (ulimit -n, LimitNOFILE=) to {DESCRIPTORS} or more"
        ));
    }
    if let Some(most) = facts.inotify_instances.filter(|most| *most < INOTIFY_INSTANCES) {
        lines.push(format!(
            "only {most} inotify instances: following many logs needs more (sysctl fs.inotify.max_user_instances)"
        ));
    }
    for (folder, options) in &facts.mounts {
        let bad = ["noexec", "nosuid"].into_iter().filter(|bad| options.split(',').any(|o| o == *bad));
        let bad: Vec<&str> = bad.collect();
        if !bad.is_empty() {
            let bad = bad.join(",");
            lines.push(format!(
                "{folder} is mounted {bad}: so are volumes of pods (emptyDir); images are not affected"
            ));
        }
    }
    let servers = |text: &str| text.lines().any(|line| line.split_whitespace().next() == Some("nameserver"));
    if !facts.resolv_conf.as_deref().is_some_and(servers) {
        lines.push(
            "/etc/resolv.conf names no server: pods resolve names of the cluster, and others only if a server \
             answers on 127.0.0.1"
                .to_owned(),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Facts {
        Facts {
            selinux: None,
            descriptors: Some(1 << 19),
            inotify_instances: Some(128),
            mounts: vec![("/var/lib/podium".into(), "rw,relatime".into())],
            resolv_conf: Some("nameserver 127.0.0.53\n".into()),
        }
    }

    #[test]
    fn a_usual_machine_is_not_worth_a_word() {
        assert_eq!(judge(&fine()), Vec::<String>::new());
        assert_eq!(
            judge(&Facts { descriptors: None, inotify_instances: None, ..fine() }),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_lack_is_one_line() {
        let cases: [(Facts, &str); 7] = [
            (Facts { selinux: Some("1\n".into()), ..fine() }, "SELinux is enforcing"),
            (Facts { selinux: Some("0".into()), ..fine() }, "SELinux is permissive"),
            (Facts { descriptors: Some(256), ..fine() }, "only 256 files"),
            (Facts { inotify_instances: Some(8), ..fine() }, "only 8 inotify instances"),
            (
                Facts { mounts: vec![("/d".into(), "rw,nosuid,noexec".into())], ..fine() },
                "/d is mounted noexec,nosuid",
            ),
            (Facts { resolv_conf: None, ..fine() }, "/etc/resolv.conf names no server"),
            (
                Facts { resolv_conf: Some("search x\n# nameserver 1.1.1.1\n".into()), ..fine() },
                "/etc/resolv.conf",
            ),
        ];
        for (facts, begins) in cases {
            let lines = judge(&facts);
            assert!(lines.len() == 1 && lines[0].starts_with(begins), "{begins}: {lines:?}");
            assert!(!lines[0].contains('\n'));
        }
    }

    #[test]
    fn the_innermost_mount_counts() {
        let table = "1 1 8:1 / / rw,relatime shared:1 - ext4 /dev/a rw\n\
                     2 1 0:5 / /var rw,nosuid - tmpfs tmpfs rw\n\
                     3 1 0:6 / /var/lib/podium rw,noexec - tmpfs tmpfs rw\n\
                     4 1 0:7 / /var/lib/podium rw,nodev - tmpfs tmpfs rw\n";
        for (folder, want) in [
            ("/var/lib/podium", "rw,nodev"),
            ("/var/lib/podium/x", "rw,nodev"),
            ("/var/lib/podium2", "rw,nosuid"),
            ("/home", "rw,relatime"),
        ] {
            assert_eq!(mount_options(table, folder).as_deref(), Some(want), "{folder}");
        }
    }
}
