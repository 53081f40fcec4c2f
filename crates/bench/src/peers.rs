//! create + start + delete of a static program that does nothing: crun, runc and ours, one after the other.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use runtime::{ContainerSpec, Engine, EngineConfig, Layout, SandboxSpec};
use serde_json::json;

use crate::{Row, say, show};

const RUNS: usize = 30;
/// What a pod's container gets when nobody says otherwise; the peers are asked for the same.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];
const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Prints the medians of those runtimes that are there, and how ours compares.
pub(crate) async fn compare(podium: &Path) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("podium-bench-bundle-{}", std::process::id()));
    let outcome = all(podium, &folder).await;
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    outcome
}

async fn all(podium: &Path, folder: &Path) -> Result<()> {
    bundle(folder)?;
    let own = millis(ours(podium, folder).await?);
    show(&Row::plain("podium: create + start + wait + delete in a sandbox", own, "ms"));
    // crun refuses a hybrid tree; in this mount namespace all see the pure one from here on
    let own = match only_v2() {
        Ok(()) => {
            let own = millis(ours(podium, folder).await?);
            show(&Row::plain("podium: the same where control groups are v2 alone", own, "ms"));
            own
        }
        Err(error) => {
            say(&format!("all see the host's control groups: {error}"));
            own
        }
    };
    for (name, what, ratio) in [
        ("crun", "crun: create + start + delete", Some("times faster than crun")),
        ("runc", "runc: create + start + delete", None),
    ] {
        match find(name).map(|program| run(&program, folder)) {
            Some(Ok(time)) => {
                let peer = millis(time);
                show(&Row::plain(what, peer, "ms"));
                let budget = ratio.map(|_| 2.0);
                let what = ratio.unwrap_or("times faster than runc");
                show(&Row { what, value: peer / own, unit: "", budget, at_least: true });
            }
            Some(Err(error)) => say(&format!("skipped: 1 ({name}: {error:#})")),
            None => say(&format!("skipped: 1 ({name} is not installed)")),
        }
    }
    Ok(())
}

/// Replaces the control groups by the v2 ones alone.
fn only_v2() -> rustix::io::Result<()> {
    let folder = "/sys/fs/cgroup";
    rustix::mount::unmount(folder, rustix::mount::UnmountFlags::DETACH)?;
    rustix::mount::mount("cgroup2", folder, "cgroup2", rustix::mount::MountFlags::empty(), None)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Median of ours, through the engine: the shim of the sandbox is there, as the peers' callers are.
async fn ours(podium: &Path, folder: &Path) -> Result<Duration> {
    let config = EngineConfig {
        data_dir: folder.join("data"),
        run_dir: folder.join("run"),
        cgroup_parent: format!("podium-bench-{}", std::process::id()),
        exe: podium.to_owned(),
    };
    let outcome = async {
        let engine = Engine::open(config.clone()).await?;
        let layout = Layout {
            executable: folder.join("rootfs/bin/true"),
            program: "/bin/true".into(),
            ..Layout::default()
        };
        engine.ensure_builtin_image("bench.local/true", layout).await?;
        let spec = SandboxSpec {
            pod_uid: "bench".into(),
            name: "bench".into(),
            log_dir: folder.join("logs"),
            ..SandboxSpec::default()
        };
        let sandbox = engine.run_sandbox(spec).await?.id;
        let mut times = Vec::new();
        for number in 0..RUNS {
            let spec = ContainerSpec {
                name: format!("true-{number}"),
                image: "bench.local/true".into(),
                command: vec!["/bin/true".into()],
                log_path: format!("true-{number}/0.log").into(),
                ..ContainerSpec::default()
            };
            let begun = Instant::now();
            let id = engine.create_container(&sandbox, spec).await?;
            engine.start_container(&id).await?;
            engine.wait_container(&id).await?;
            engine.remove_container(&id).await?;
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        anyhow::Ok(times[RUNS / 2])
    };
    let outcome = outcome.await;
    runtime::down(&config).context("cannot clean up")?;
    outcome
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// A root file system with a static program that does nothing, and its configuration (OCI runtime specification 1.0).
fn bundle(folder: &Path) -> Result<()> {
    let root = folder.join("rootfs");
    for part in ["bin", "proc", "dev", "sys"] {
        std::fs::create_dir_all(root.join(part))?;
    }
    let source = folder.join("true.c");
    std::fs::write(&source, "int main(void) { return 0; }\n")?;
    let built =
        Command::new("cc").args(["-static", "-O2", "-o"]).arg(root.join("bin/true")).arg(&source).status();
    anyhow::ensure!(built.is_ok_and(|status| status.success()), "cannot compile a static program");
    let namespaces = ["pid", "ipc", "uts", "mount", "network", "cgroup"].map(|kind| json!({"type": kind}));
    let capabilities = ["bounding", "effective", "permitted"].map(|set| (set, json!(CAPABILITIES)));
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/", "env": [],
            "noNewPrivileges": true, "capabilities": std::collections::BTreeMap::from(capabilities)},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=64m"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=64m"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
                "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        // no rules for devices: crun wants to lock memory for them, which root may not be allowed to
        "linux": {"namespaces": namespaces, "maskedPaths": MASKED, "readonlyPaths": READ_ONLY},
    });
    Ok(std::fs::write(folder.join("config.json"), config.to_string())?)
}

/// Median of the runs.
fn run(program: &Path, folder: &Path) -> Result<Duration> {
    let state = folder.join("state");
    let mut times = Vec::new();
    for number in 0..RUNS {
        let id = format!("bench-{number}");
        let begun = Instant::now();
        for arguments in [vec!["create", "--bundle", ".", &id], vec!["start", &id], vec!["delete", "-f", &id]]
        {
            let mut command = Command::new(program);
            command.arg("--root").arg(&state).args(&arguments).current_dir(folder);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let status = command.status().context("cannot run it")?;
            anyhow::ensure!(status.success(), "`{}` fails here", arguments[0]);
        }
        times.push(begun.elapsed());
    }
    times.sort_unstable();
    Ok(times[RUNS / 2])
}
