//! The runtime on the real kernel: needs root, works in a mount namespace and control groups of its own.
//!
//! The test binary is engine, spawner, shim and, packed as an image, the program in the containers.

#![allow(unsafe_code, clippy::unwrap_used, clippy::zombie_processes)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use runtime::{
    ContainerSpec, ContainerState, ContainerStatus, Engine, EngineConfig, ExecOutput, ExecSpec, Layout,
    Mount, Resources, Rlimit, SandboxSpec,
};

const IMAGE: &str = "podium.local/test";
const APPLETS: [&str; 16] = [
    "true",
    "exit",
    "echo",
    "cat",
    "sleep",
    "alloc",
    "spew",
    "catch",
    "ls",
    "listen",
    "write",
    "tty",
    "orphan",
    "escape",
    "overwrite",
    "mknod",
];

fn main() -> ExitCode {
    if let Some(code) = runtime::dispatch() {
        return code;
    }
    let words: Vec<String> = std::env::args().collect();
    let name =
        Path::new(&words[0]).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if name == "exe" {
        // An attacker's link to whatever runs it.
        return ExitCode::from(applet(&words[1], &words[2..]));
    }
    if APPLETS.contains(&name.as_str()) {
        return ExitCode::from(applet(&name, &words[1..]));
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        let required = std::env::var("PODIUM_TEST_REQUIRE").as_deref() == Ok("root");
        return ExitCode::from(u8::from(required));
    }
    own_mounts();
    let filter = words.iter().skip(1).find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    let threads = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut failed = 0;
    macro_rules! run {
        ($($test:ident),* $(,)?) => {$(
            if stringify!($test).contains(&filter) {
                let started = Instant::now();
                let bench = Bench::new();
                let outcome = threads.block_on(async {
                    let limited = tokio::time::timeout(Duration::from_secs(60), $test(bench.clone()));
                    tokio::spawn(limited_future(limited)).await
                });
                let left = bench.leftovers();
                let ok = matches!(outcome, Ok(true)) && left.is_empty();
                println!("{} {} ({:?}) {left}", if ok { "ok  " } else { "FAIL" }, stringify!($test), started.elapsed());
                failed += u8::from(!ok);
            }
        )*};
    }
    run!(
        runs_and_reports_exit_codes,
        writes_logs,
        kills_and_stops,
        reports_out_of_memory,
        executes_commands,
        gives_terminals,
        attaches,
        connects_to_ports,
        sets_up_the_process,
        keeps_its_own_program,
        changes_limits,
        mounts_images,
        applies_profiles,
        mounts_safely,
        propagates_mounts,
        privileged_containers_have_devices,
        devices_of_the_machine_stay_closed,
        shares_namespaces,
        shares_processes,
        joins_the_processes_of_another,
        refuses_what_cannot_run,
        forgets_what_is_removed,
        is_adopted_after_a_restart,
        survives_the_spawner,
        says_so_when_the_shim_dies,
        goes_down_without_an_agent,
        imports_layers,
        starts_many_at_once,
        survives_many_restarts,
        is_quick,
    );
    if Path::new("/sys/fs/cgroup/unified").exists() && !only_v2() {
        println!("again with cgroup v2 only:");
        let again = std::process::Command::new(std::env::current_exe().unwrap())
            .args(words.iter().skip(1))
            .env("PODIUM_TEST_CGROUP_V2", "1")
            .status()
            .unwrap();
        failed += u8::from(!again.success());
    }
    ExitCode::from(u8::from(failed > 0))
}

async fn limited_future<F: Future<Output = Result<(), tokio::time::error::Elapsed>>>(test: F) -> bool {
    test.await.is_ok()
}

/// The second run on a machine with both versions sees only v2, though without the controllers that v1 has taken.
fn only_v2() -> bool {
    std::env::var_os("PODIUM_TEST_CGROUP_V2").is_some()
}

/// A file of a control group of a test, in whatever hierarchy says which processes are in it.
fn group_file(bench: &Bench, rest: &str) -> PathBuf {
    let base =
        if Path::new("/sys/fs/cgroup/pids").exists() { "/sys/fs/cgroup/pids" } else { "/sys/fs/cgroup" };
    Path::new(base).join(&bench.config.cgroup_parent).join(rest)
}

/// Nothing that is mounted here is seen outside.
fn own_mounts() {
    rustix_unshare();
    let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).unwrap();
    if only_v2() {
        let folder = "/sys/fs/cgroup";
        rustix::mount::unmount(folder, rustix::mount::UnmountFlags::DETACH).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("cgroup2", folder, "cgroup2", flags, None::<&std::ffi::CStr>).unwrap();
    }
}

fn rustix_unshare() {
    // SAFETY: the process has one thread and no descriptors are unshared.
    unsafe {
        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS).unwrap();
    }
}

/// The programs in the test image.
fn applet(name: &str, words: &[String]) -> u8 {
    let number = |index: usize| words.get(index).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
    match name {
        "true" => {}
        "exit" => return number(0) as u8,
        "echo" => println!("{}", words.join(" ")),
        "cat" => {
            if words.is_empty() {
                std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).unwrap();
            }
            for path in words {
                match std::fs::read(path) {
                    Ok(bytes) => std::io::Write::write_all(&mut std::io::stdout(), &bytes).unwrap(),
                    Err(error) => {
                        eprintln!("{path}: {error}");
                        return 1;
                    }
                }
            }
        }
        "sleep" => std::thread::sleep(Duration::from_secs(number(0))),
        "alloc" => {
            let mut memory = vec![1u8; (number(0) as usize) << 20];
            memory.iter_mut().step_by(4096).for_each(|byte| *byte += 1);
            std::hint::black_box(&memory);
        }
        "spew" => {
            print!("{}", "x".repeat(number(0) as usize));
            eprintln!("oops");
        }
        "catch" => {
            // Blocks SIGTERM and leaves with 5 when it comes.
            println!("ready");
            // SAFETY: the set is initialised by sigemptyset; the program has one thread.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, libc::SIGTERM);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                let mut signal = 0;
                libc::sigwait(&raw const set, &raw mut signal);
            }
            return 5;
        }
        "ls" => {
            let mut names: Vec<_> = std::fs::read_dir(&words[0])
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            println!("{}", names.join(" "));
        }
        "write" => match std::fs::write(&words[0], &words[1]) {
            Ok(()) => {}
            Err(error) => {
                println!("{error}");
                return 1;
            }
        },
        "mknod" => {
            let device = rustix::fs::makedev(number(1) as u32, number(2) as u32);
            let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::RWXU);
            return u8::from(rustix::fs::mknodat(rustix::fs::CWD, &words[0], kind, mode, device).is_err());
        }
        "tty" => {
            let size = rustix::termios::tcgetwinsize(std::io::stdout());
            println!("{} {}", rustix::termios::isatty(std::io::stdin()), size.is_ok());
        }
        "listen" => {
            let listener = std::net::TcpListener::bind(&words[0]).unwrap();
            for connection in listener.incoming() {
                std::io::Write::write_all(&mut connection.unwrap(), words[1].as_bytes()).unwrap();
            }
        }
        "escape" => {
            // Holds on to the program that runs, and writes to it when nothing runs it any more.
            use std::os::fd::AsRawFd as _;
            use std::os::unix::process::CommandExt as _;
            println!("{}", std::fs::read_link("/proc/self/exe").unwrap().display());
            let program = std::fs::File::open("/proc/self/exe").unwrap();
            rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty()).unwrap();
            let number = program.as_raw_fd().to_string();
            panic!("{}", std::process::Command::new("/bin/overwrite").arg(number).exec());
        }
        "overwrite" => {
            let path = format!("/proc/self/fd/{}", words[0]);
            let written = std::fs::OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|mut file| std::io::Write::write_all(&mut file, b"evil"));
            if let Err(error) = written {
                println!("{error}");
                return 1;
            }
        }
        "orphan" => {
            // Leaves a child that keeps standard output open.
            std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            println!("left");
        }
        _ => return 127,
    }
    0
}

/// Directories and control groups of one test.
#[derive(Clone)]
struct Bench {
    dir: Arc<tempfile::TempDir>,
    config: EngineConfig,
}

impl Bench {
    fn new() -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let dir = Arc::new(tempfile::Builder::new().prefix("podium-runtime").tempdir().unwrap());
        let config = EngineConfig {
            data_dir: dir.path().join("data"),
            run_dir: dir.path().join("run"),
            cgroup_parent: format!("podium-test-{}-{count}", std::process::id()),
            exe: std::env::current_exe().unwrap(),
        };
        Self { dir, config }
    }

    async fn engine(&self) -> Arc<Engine> {
        let engine = Engine::open(self.config.clone()).await.unwrap();
        engine.ensure_builtin_image(IMAGE, layout()).await.unwrap();
        engine
    }

    /// Takes everything down, then says what is still there.
    fn leftovers(&self) -> String {
        let mut left = String::new();
        if let Err(error) = runtime::down(&self.config) {
            left = format!("down: {error}");
        }
        let groups = format!("/sys/fs/cgroup/*/{}", self.config.cgroup_parent);
        if Path::new("/sys/fs/cgroup").join(&self.config.cgroup_parent).exists() {
            left.push_str(&groups);
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            if hierarchy.path().join(&self.config.cgroup_parent).exists() {
                left.push_str(&groups);
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir.path().to_str().unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(dir)).map(|line| format!("\n{line}")));
        if self.config.run_dir.exists() {
            left.push_str(" run_dir");
        }
        left
    }

    async fn sandbox(&self, engine: &Arc<Engine>) -> String {
        engine.run_sandbox(self.sandbox_spec()).await.unwrap().id
    }

    fn sandbox_spec(&self) -> SandboxSpec {
        SandboxSpec {
            pod_uid: "uid".into(),
            name: "web".into(),
            hostname: "web-0".into(),
            log_dir: self.dir.path().join("logs"),
            ..SandboxSpec::default()
        }
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join("logs").join(name)).unwrap()
    }

    /// Runs a container to its end and gives its status and the text of its log.
    async fn run(
        &self,
        engine: &Arc<Engine>,
        sandbox: &str,
        spec: ContainerSpec,
    ) -> (ContainerStatus, String) {
        let id = engine.create_container(sandbox, spec).await.unwrap();
        engine.start_container(&id).await.unwrap();
        let status = engine.wait_container(&id).await.unwrap();
        let log = std::fs::read_to_string(&status.log_path).unwrap();
        let text = log
            .lines()
            .filter_map(|line| line.splitn(4, ' ').nth(3))
            .map(|line| format!("{line}\n"))
            .collect();
        (status, text)
    }
}

fn layout() -> Layout {
    let link = |name: &&str| (format!("/bin/{name}"), "/program".to_owned());
    Layout {
        executable: std::env::current_exe().unwrap(),
        program: "/program".into(),
        links: APPLETS
            .iter()
            .map(link)
            .chain([("/evil".into(), "/../../../../proc/self/root".into())])
            .collect(),
        folders: vec![("/tmp".into(), 0o1777)],
        files: vec![
            ("/etc/passwd".into(), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n".into(), 0o644),
            ("/etc/group".into(), "web:x:34:\nlog:x:40:web\n".into(), 0o644),
        ],
        env: vec![("FROM_IMAGE".into(), "1".into())],
        ..Layout::default()
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn container(command: &str) -> ContainerSpec {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    ContainerSpec {
        name: "c".into(),
        image: IMAGE.into(),
        command: words(command),
        log_path: format!("c/{count}.log").into(),
        ..ContainerSpec::default()
    }
}

async fn started(engine: &Arc<Engine>, sandbox: &str, spec: ContainerSpec) -> String {
    let id = engine.create_container(sandbox, spec).await.unwrap();
    engine.start_container(&id).await.unwrap();
    id
}

fn status(engine: &Engine, id: &str) -> ContainerStatus {
    engine.list_containers().into_iter().find(|status| status.id == id).unwrap()
}

async fn exec(engine: &Engine, id: &str, command: &str) -> (i32, String) {
    let result = engine.exec_sync(id, words(command), Duration::from_secs(10)).await.unwrap();
    (
        result.exit_code,
        String::from_utf8_lossy(&[result.stdout, result.stderr].concat()).trim_end().to_owned(),
    )
}

async fn runs_and_reports_exit_codes(bench: Bench) {
    let engine = bench.engine().await;
    let mut events = engine.events();
    let sandbox = bench.sandbox(&engine).await;
    let (ended, _) = bench.run(&engine, &sandbox, container("true")).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    assert!(
        ended.created_at_nanos < ended.started_at_nanos && ended.started_at_nanos < ended.finished_at_nanos
    );
    let (ended, _) = bench.run(&engine, &sandbox, container("exit 7")).await;
    assert_eq!((ended.exit_code, ended.reason.as_str(), ended.state), (7, "Error", ContainerState::Exited));
    assert_eq!(events.recv().await.unwrap().kind, runtime::RuntimeEventKind::Started);
    assert_eq!(events.recv().await.unwrap().kind, runtime::RuntimeEventKind::Exited);
    engine.remove_container(&ended.id).await.unwrap();
    engine.remove_container(&ended.id).await.unwrap();
    assert_eq!(engine.list_containers().len(), 1);
    engine.stop_sandbox(&sandbox).await.unwrap();
    engine.stop_sandbox(&sandbox).await.unwrap();
    assert!(!engine.list_sandboxes()[0].ready);
    assert!(engine.create_container(&sandbox, container("true")).await.is_err());
    engine.remove_sandbox(&sandbox).await.unwrap();
    engine.remove_sandbox(&sandbox).await.unwrap();
    assert!(engine.list_sandboxes().is_empty() && engine.list_containers().is_empty());
    assert_eq!(std::fs::read_dir(bench.config.run_dir.join("sandboxes")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(bench.config.data_dir.join("containers")).unwrap().count(), 0);
}

async fn writes_logs(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let spec = ContainerSpec { log_path: "x/0.log".into(), ..container("spew 40000") };
    bench.run(&engine, &sandbox, spec).await;
    let log = bench.log("x/0.log");
    let mut lengths: Vec<(String, String, usize)> = log
        .lines()
        .map(|line| {
            let parts: Vec<&str> = line.splitn(4, ' ').collect();
            assert!(parts[0].ends_with('Z') && parts[0].len() == 30, "{}", parts[0]);
            (parts[1].to_owned(), parts[2].to_owned(), parts[3].len())
        })
        .collect();
    lengths.sort();
    let row = |stream: &str, tag: &str, length| (stream.to_owned(), tag.to_owned(), length);
    let want = [
        row("stderr", "F", 4),
        // the output does not end with a line end, and the log keeps that
        row("stdout", "P", 40_000 - 2 * 16_384),
        row("stdout", "P", 16_384),
        row("stdout", "P", 16_384),
    ];
    assert_eq!(lengths, want);
}

async fn kills_and_stops(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id = started(&engine, &sandbox, container("catch")).await;
    while !std::fs::read_to_string(status(&engine, &id).log_path).unwrap().contains("ready") {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    engine.stop_container(&id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(status(&engine, &id).exit_code, 5);
    // The first process of a pid namespace is deaf to SIGTERM unless it has a handler.
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    engine.stop_container(&id, Duration::from_millis(50)).await.unwrap();
    assert_eq!((status(&engine, &id).exit_code, status(&engine, &id).reason.as_str()), (137, "Error"));
    engine.stop_container(&id, Duration::ZERO).await.unwrap();
    let created = engine.create_container(&sandbox, container("true")).await.unwrap();
    engine.stop_container(&created, Duration::from_secs(5)).await.unwrap();
    assert_eq!(status(&engine, &created).state, ContainerState::Exited);
}

async fn reports_out_of_memory(bench: Bench) {
    if only_v2() {
        println!("skipped: the memory controller belongs to v1 on this machine");
        return;
    }
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let resources = Resources { memory_limit_bytes: Some(64 << 20), ..Resources::default() };
    let (ended, _) =
        bench.run(&engine, &sandbox, ContainerSpec { resources, ..container("alloc 200") }).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    let (ended, _) = bench.run(&engine, &sandbox, container("alloc 200")).await;
    assert_eq!(ended.exit_code, 0);
}

async fn executes_commands(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    assert_eq!(exec(&engine, &id, "echo a b").await, (0, "a b".into()));
    assert_eq!(exec(&engine, &id, "exit 3").await.0, 3);
    let names = exec(&engine, &id, "ls /proc").await.1;
    assert!(names.starts_with("1 ") && !names.contains(&std::process::id().to_string()), "{names}");
    let outside = engine.exec_sync(&id, words("nothing"), Duration::from_secs(5)).await;
    assert!(matches!(outside, Err(runtime::RuntimeError::Invalid(_))), "{outside:?}");
    let late = engine.exec_sync(&id, words("sleep 1000"), Duration::from_millis(200)).await;
    assert_eq!(late, Err(runtime::RuntimeError::Timeout));
    while exec(&engine, &id, "cat /proc/2/cmdline /proc/3/cmdline /proc/4/cmdline /proc/5/cmdline")
        .await
        .1
        .contains("1000")
    {
        tokio::task::yield_now().await;
    }
    // A process left behind must not hold the answer back.
    assert_eq!(exec(&engine, &id, "orphan").await, (0, "left".into()));
    let spec = ExecSpec { command: words("cat"), stdin: true, stdout: true, ..ExecSpec::default() };
    let mut streams = engine.exec(&id, spec).await.unwrap();
    streams.stdin.take().unwrap().send("through".into()).await.unwrap();
    assert_eq!(streams.output.recv().await, Some(ExecOutput::Stdout("through".into())));
    assert_eq!(streams.output.recv().await, None);
    assert_eq!(streams.exit.await.unwrap(), Ok(0));
}

async fn gives_terminals(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let (_, text) = bench.run(&engine, &sandbox, ContainerSpec { tty: true, ..container("tty") }).await;
    assert_eq!(text.trim(), "true true");
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    let spec =
        ExecSpec { command: words("tty"), stdin: true, stdout: true, tty: true, ..ExecSpec::default() };
    let mut streams = engine.exec(&id, spec).await.unwrap();
    streams.resize.send(runtime::TerminalSize { width: 80, height: 25 }).await.unwrap();
    let mut text = String::new();
    while let Some(ExecOutput::Stdout(bytes)) = streams.output.recv().await {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert_eq!(text.trim(), "true true");
    assert_eq!(streams.exit.await.unwrap(), Ok(0));
    let id = started(&engine, &sandbox, ContainerSpec { tty: true, stdin: true, ..container("cat") }).await;
    let mut streams = engine.attach(&id, true).await.unwrap();
    streams.stdin.as_ref().unwrap().send("typed\n".into()).await.unwrap();
    let mut text = String::new();
    while text.matches("typed").count() < 2 {
        let Some(ExecOutput::Stdout(bytes)) = streams.output.recv().await else { panic!("{text}") };
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    // End of file as a terminal gives it.
    streams.stdin.as_ref().unwrap().send("\u{4}".into()).await.unwrap();
    assert_eq!(streams.exit.await.unwrap(), Ok(0));
}

async fn attaches(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id =
        started(&engine, &sandbox, ContainerSpec { stdin: true, stdin_once: true, ..container("cat") }).await;
    let listener = engine.attach(&id, false).await.unwrap();
    assert!(listener.stdin.is_none());
    drop(listener);
    let mut streams = engine.attach(&id, true).await.unwrap();
    let stdin = streams.stdin.take().unwrap();
    stdin.send("hello\n".into()).await.unwrap();
    assert_eq!(streams.output.recv().await, Some(ExecOutput::Stdout("hello\n".into())));
    // The end of the input is enough: the client stays to hear the rest.
    drop(stdin);
    assert_eq!(engine.wait_container(&id).await.unwrap().exit_code, 0);
}

/// The server listens in the sandbox's network, on a port of the test's own network that nobody listens on.
async fn connects_to_ports(bench: Bench) {
    use tokio::io::AsyncReadExt as _;
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    started(&engine, &sandbox, container("listen 127.0.0.1:7777 four")).await;
    started(&engine, &sandbox, container("listen [::1]:7778 six")).await;
    for (port, want) in [(7777, "four"), (7778, "six")] {
        let mut text = String::new();
        // The program may not have come so far yet.
        let mut stream = loop {
            match engine.connect(&sandbox, port).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, want);
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "not out here");
    }
    let refused = engine.connect(&sandbox, 7779).await.unwrap_err().to_string();
    assert!(refused.contains("127.0.0.1:7779"), "{refused}");
    engine.stop_sandbox(&sandbox).await.unwrap();
    assert!(engine.connect(&sandbox, 7777).await.is_err());
}

async fn sets_up_the_process(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let spec = ContainerSpec {
        env: vec![("A".into(), "b".into())],
        working_dir: "/work/here".into(),
        user: Some(33),
        supplemental_groups: vec![77],
        resources: Resources { oom_score_adj: Some(500), pids_limit: Some(50), ..Resources::default() },
        ..container("sleep 1000")
    };
    let id = started(&engine, &sandbox, spec).await;
    let environ = exec(&engine, &id, "cat /proc/1/environ").await.1;
    for variable in ["A=b", "FROM_IMAGE=1", "HOME=/srv", "PATH=/usr/local/sbin"] {
        assert!(environ.contains(variable), "{environ}");
    }
    let process = exec(&engine, &id, "cat /proc/self/status /proc/self/oom_score_adj").await.1;
    let process = process.replace('\t', " ");
    for line in [
        "Uid: 33 33 33 33",
        "Gid: 34 34 34 34",
        "Groups: 34 40 77",
        "CapEff: 0000000000000000",
        "CapBnd: 00000000a80425fb",
        "NoNewPrivs: 1",
        "\n500",
    ] {
        assert!(process.contains(line), "{line}\n{process}");
    }
    assert_eq!(exec(&engine, &id, "ls /proc/self/cwd").await, (0, String::new()));
    assert_eq!(exec(&engine, &id, "cat /proc/sys/kernel/hostname").await.1, "web-0");
    let root = started(
        &engine,
        &sandbox,
        ContainerSpec {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            allow_privilege_escalation: true,
            ..container("sleep 1000")
        },
    )
    .await;
    let process = exec(&engine, &root, "cat /proc/self/status").await.1.replace('\t', " ");
    assert!(process.contains("CapEff: 0000000000001000") && process.contains("NoNewPrivs: 0"), "{process}");
    // The shortest filter: allow everything (BPF_RET | BPF_K, SECCOMP_RET_ALLOW).
    let filter = [&0x06u16.to_ne_bytes()[..], &[0, 0], &0x7fff_0000u32.to_ne_bytes()].concat();
    let default = runtime::default_seccomp(&container("true")).unwrap();
    for (allow_privilege_escalation, filter) in
        [(false, &filter), (true, &filter), (false, &default), (true, &default)]
    {
        let limit = |kind: &str, number| Rlimit { kind: kind.into(), soft: number, hard: number };
        let spec = ContainerSpec {
            seccomp: Some(filter.clone()),
            allow_privilege_escalation,
            rlimits: vec![limit("RLIMIT_NOFILE", 321), limit("RLIMIT_NPROC", u64::MAX)],
            ..container("cat /proc/self/status /proc/self/limits")
        };
        let (ended, text) = bench.run(&engine, &sandbox, spec).await;
        assert!(ended.exit_code == 0 && text.contains("Seccomp:\t2"), "{text}");
        let files: Vec<&str> = text
            .lines()
            .find(|line| line.starts_with("Max open files"))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(files[3..5], ["321", "321"]);
    }
    let fds = exec(&engine, &root, "ls /proc/1/fd").await.1;
    assert_eq!(fds, "0 1 2");
}

async fn keeps_its_own_program(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let program = std::env::current_exe().unwrap();
    let seen = || std::fs::metadata(&program).map(|m| (m.len(), m.modified().unwrap())).unwrap();
    let before = seen();
    let id = started(&engine, &sandbox, ContainerSpec { privileged: true, ..container("sleep 1000") }).await;
    // As in CVE-2019-5736: a command that is a link to the process that starts it.
    let (code, text) = exec(&engine, &id, "/proc/self/exe escape").await;
    assert_eq!(code, 1, "{text}");
    // Others run from it too; and it is sealed.
    let kept = text.contains("busy") || text.contains("not permitted");
    assert!(text.contains("memfd") && kept, "{text}");
    assert_eq!(seen(), before);
}

async fn changes_limits(bench: Bench) {
    if only_v2() {
        println!("skipped: the controllers belong to v1 on this machine");
        return;
    }
    let engine = bench.engine().await;
    let amounts = |shares: u64, mebibytes: i64| Resources {
        cpu_shares: Some(shares),
        memory_limit_bytes: Some(mebibytes << 20),
        ..Resources::default()
    };
    let spec = |name: &str| SandboxSpec {
        pod_uid: name.into(),
        name: name.into(),
        slice: "burstable".into(),
        cgroup: amounts(100, 256),
        log_dir: bench.dir.path().join("logs"),
        ..SandboxSpec::default()
    };
    let first = engine.run_sandbox(spec("a")).await.unwrap().id;
    let second = engine.run_sandbox(spec("b")).await.unwrap().id;
    let resources = amounts(10, 64);
    let id = started(&engine, &first, ContainerSpec { resources, ..container("sleep 1000") }).await;
    let value = |controller: &str, rest: &str, v1: &str, v2: &str| -> String {
        let old = Path::new("/sys/fs/cgroup").join(controller);
        let (base, file) = if old.exists() { (old, v1) } else { (PathBuf::from("/sys/fs/cgroup"), v2) };
        let path = base.join(&bench.config.cgroup_parent).join("burstable").join(rest).join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
    };
    let memory = |rest: &str| value("memory", rest, "memory.limit_in_bytes", "memory.max");
    let (pod, inner) = (format!("poda-{first}"), format!("poda-{first}/{id}"));
    assert_eq!((memory(&pod), memory(&inner)), ((256 << 20).to_string(), (64 << 20).to_string()));
    engine.limit_sandbox(&first, amounts(200, 512)).await.unwrap();
    engine.limit_container(&id, amounts(10, 300)).await.unwrap();
    assert_eq!((memory(&pod), memory(&inner)), ((512 << 20).to_string(), (300 << 20).to_string()));
    assert_eq!(status(&engine, &id).resources, amounts(10, 300));
    let listed = engine.list_sandboxes().into_iter().find(|s| s.id == first).unwrap();
    assert_eq!(listed.cgroup, amounts(200, 512));
    if Path::new("/sys/fs/cgroup/cpu").exists() {
        let weight = || value("cpu", "", "cpu.shares", "cpu.weight");
        assert_eq!(weight(), "300", "a slice weighs what its sandboxes weigh");
        engine.remove_sandbox(&second).await.unwrap();
        assert_eq!(weight(), "200");
    }
    let engine = {
        drop(engine);
        bench.engine().await
    };
    assert_eq!(status(&engine, &id).resources, amounts(10, 300), "an adopted container keeps what it has");
}

async fn applies_profiles(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let profile = br#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getdents64"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["sched_getaffinity"], "action": "SCMP_ACT_LOG"}]}"#;
    let filters = runtime::profile_seccomp(profile).unwrap();
    assert_eq!(filters.len(), 2);
    for privileges in [true, false] {
        let spec = |command: &str| ContainerSpec {
            more_seccomp: filters[..1].to_vec(),
            seccomp: Some(filters[1].clone()),
            allow_privilege_escalation: privileges,
            ..container(command)
        };
        assert_eq!(bench.run(&engine, &sandbox, spec("echo fine")).await.1, "fine\n");
        assert_ne!(bench.run(&engine, &sandbox, spec("ls /")).await.0.exit_code, 0, "{privileges}");
    }
    assert_eq!(bench.run(&engine, &sandbox, container("ls /bin")).await.0.exit_code, 0);
}

async fn mounts_images(bench: Bench) {
    let engine = bench.engine().await;
    let base = engine.image_status(IMAGE).await.unwrap().unwrap();
    let layer = bench.config.data_dir.join("images/layers").join(base.id.trim_start_matches("sha256:"));
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", layer).unwrap();
    let file = bench.dir.path().join("image.tar");
    std::fs::write(&file, oci_layout(archive.into_inner().unwrap())).unwrap();
    engine.import_image(&file).await.unwrap();
    let sandbox = bench.sandbox(&engine).await;
    let mount = |image: &str, sub_path: &str, inside: &str| Mount {
        image: Some(image.into()),
        sub_path: sub_path.into(),
        container_path: inside.into(),
        ..Mount::default()
    };
    let layers = "example.org/app:2";
    let mounts = vec![
        mount(layers, "", "/all"),
        mount(layers, "count", "/one"),
        mount(layers, "../../count", "/up"),
        mount(IMAGE, "", "/programs"),
    ];
    let spec = ContainerSpec { mounts, ..container("sleep 1000") };
    let id = started(&engine, &sandbox, spec.clone()).await;
    assert_eq!(exec(&engine, &id, "cat /all/count /one /up").await, (0, "696969".into()));
    for path in ["/all/new", "/one", "/programs/new"] {
        let (code, text) = exec(&engine, &id, &format!("write {path} x")).await;
        assert!(code == 1 && text.contains("Read-only"), "{path}: {text}");
    }
    let refused = engine.exec_sync(&id, words("/programs/program"), Duration::from_secs(10)).await;
    assert!(matches!(&refused, Err(error) if error.to_string().contains("denied")), "{refused:?}");
    for (image, sub_path) in [(layers, "gone"), (IMAGE, "evil/etc"), ("example.org/none:1", "")] {
        let spec = ContainerSpec { mounts: vec![mount(image, sub_path, "/x")], ..container("true") };
        assert!(engine.create_container(&sandbox, spec).await.is_err(), "{image} {sub_path}");
    }
    assert!(engine.remove_image(layers).await.is_err(), "a container has it mounted");
}

async fn mounts_safely(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let host = bench.dir.path().join("host");
    std::fs::create_dir_all(&host).unwrap();
    std::fs::write(host.join("file"), "content").unwrap();
    let mount = |host: PathBuf, inside: &str, readonly| Mount {
        host_path: host,
        container_path: inside.into(),
        readonly,
        ..Mount::default()
    };
    let spec = ContainerSpec {
        readonly_rootfs: true,
        mounts: vec![
            mount(host.join("file"), "/deep/inside/file", true),
            mount(host.clone(), "/rw", false),
            mount(host.clone(), "/ro", true),
            mount(host.join("file"), "/evil/etc/marker", true),
        ],
        ..container("sleep 1000")
    };
    let refused = engine.create_container(&sandbox, spec.clone()).await;
    // Following the image's link through /proc would leave the container's root: refused, and nothing happens outside.
    assert!(refused.is_err(), "{refused:?}");
    assert!(!Path::new("/etc/marker").exists());
    let mut spec = spec;
    spec.mounts.pop();
    let id = started(&engine, &sandbox, spec).await;
    assert_eq!(exec(&engine, &id, "cat /deep/inside/file").await, (0, "content".into()));
    assert_eq!(exec(&engine, &id, "write /rw/new x").await.0, 0);
    assert!(host.join("new").exists());
    for path in ["/ro/new", "/new", "/deep/inside/file", "/proc/sys/kernel/hostname", "/sys/kernel/profiling"]
    {
        let (code, text) = exec(&engine, &id, &format!("write {path} x")).await;
        assert!(
            code == 1 && (text.contains("Read-only") || text.contains("denied")),
            "{path}: {code} {text}"
        );
    }
    assert_eq!(exec(&engine, &id, "write /dev/shm/a x").await.0, 0);
    assert_eq!(exec(&engine, &id, "write /dev/null x").await.0, 0);
    for (command, path) in [("cat", "/proc/keys"), ("cat", "/proc/timer_list"), ("ls", "/sys/firmware")] {
        if Path::new(path).exists() {
            assert_eq!(exec(&engine, &id, &format!("{command} {path}")).await, (0, String::new()), "{path}");
        }
    }
    let groups = exec(&engine, &id, "cat /proc/self/cgroup").await.1;
    assert!(!groups.contains("podium-test"), "{groups}");
    let outside = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!outside.contains("rootfs"), "{outside}");
}

async fn propagates_mounts(bench: Bench) {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let shared = bench.dir.path().join("shared");
    std::fs::create_dir_all(shared.join("sub")).unwrap();
    rustix::mount::mount_bind(&shared, &shared).unwrap();
    rustix::mount::mount_change(&shared, MountPropagationFlags::SHARED).unwrap();
    let mount = |inside: &str, propagation| Mount {
        host_path: shared.clone(),
        container_path: inside.into(),
        propagation,
        ..Mount::default()
    };
    let mounts = vec![
        mount("/follows", runtime::Propagation::HostToContainer),
        mount("/private", runtime::Propagation::Private),
    ];
    let id = started(&engine, &sandbox, ContainerSpec { mounts, ..container("sleep 1000") }).await;
    let sub = shared.join("sub");
    rustix::mount::mount("tmpfs", &sub, "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>).unwrap();
    std::fs::write(sub.join("late"), "seen").unwrap();
    let follows = exec(&engine, &id, "cat /follows/sub/late").await;
    let private = exec(&engine, &id, "ls /private/sub").await;
    rustix::mount::unmount(&sub, UnmountFlags::DETACH).unwrap();
    rustix::mount::unmount(&shared, UnmountFlags::DETACH).unwrap();
    assert_eq!(follows, (0, "seen".into()));
    assert_eq!(private, (0, String::new()));
}

async fn privileged_containers_have_devices(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let plain = started(&engine, &sandbox, container("sleep 1000")).await;
    let privileged =
        started(&engine, &sandbox, ContainerSpec { privileged: true, ..container("sleep 1000") }).await;
    let names = |text: String| words(&text);
    let few = names(exec(&engine, &plain, "ls /dev").await.1);
    let many = names(exec(&engine, &privileged, "ls /dev").await.1);
    assert!(few.iter().all(|name| many.contains(name)), "{few:?} {many:?}");
    assert_eq!(Path::new("/dev/kmsg").exists(), many.iter().any(|name| name == "kmsg"), "{many:?}");
    assert!(!few.iter().any(|name| name == "kmsg"));
    assert_eq!(exec(&engine, &privileged, "write /proc/sys/net/ipv4/ip_forward 1").await.0, 0);
}

async fn devices_of_the_machine_stay_closed(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let plain = started(&engine, &sandbox, container("sleep 1000")).await;
    let (made, text) = exec(&engine, &plain, "mknod /kmsg 1 11").await;
    assert_eq!(made, 0, "{text}");
    assert_ne!(
        exec(&engine, &plain, "write /kmsg x").await.0,
        0,
        "the kernel's log takes what a container writes"
    );
    for usual in ["/dev/null", "/dev/zero", "/dev/random"] {
        assert_eq!(exec(&engine, &plain, &format!("write {usual} x")).await.0, 0, "{usual}");
    }
    let spec = ContainerSpec { privileged: true, ..container("sleep 1000") };
    let privileged = started(&engine, &sandbox, spec).await;
    assert_eq!(exec(&engine, &privileged, "mknod /kmsg 1 3").await.0, 0);
    assert_eq!(exec(&engine, &privileged, "write /kmsg x").await.0, 0);
}

async fn shares_namespaces(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let a = started(&engine, &sandbox, container("sleep 1000")).await;
    let b = started(&engine, &sandbox, container("sleep 1000")).await;
    let namespace = |id: &str, kind: &str| {
        std::fs::read_link(format!("/proc/{}/ns/{kind}", status(&engine, id).pid)).unwrap()
    };
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(&a, kind), namespace(&b, kind));
        assert_ne!(namespace(&a, kind), std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
    }
    for kind in ["mnt", "pid", "cgroup"] {
        assert_ne!(namespace(&a, kind), namespace(&b, kind));
    }
    assert_eq!(exec(&engine, &a, "write /dev/shm/x shared").await.0, 0);
    assert_eq!(exec(&engine, &b, "cat /dev/shm/x").await.1, "shared");
    use std::os::unix::fs::MetadataExt as _;
    let netns = engine.list_sandboxes()[0].netns.clone().unwrap();
    let inode = std::fs::metadata(netns).unwrap().ino();
    assert_eq!(namespace(&a, "net").to_str().unwrap(), format!("net:[{inode}]"));
}

async fn shares_processes(bench: Bench) {
    let engine = bench.engine().await;
    let spec = SandboxSpec { share_process_namespace: true, ..bench.sandbox_spec() };
    let sandbox = engine.run_sandbox(spec).await.unwrap().id;
    let a = started(&engine, &sandbox, container("sleep 1000")).await;
    let b = started(&engine, &sandbox, container("sleep 1001")).await;
    assert!(exec(&engine, &a, "cat /proc/2/cmdline /proc/3/cmdline").await.1.contains("1001"));
    assert_eq!(exec(&engine, &a, "orphan").await.0, 0);
    engine.stop_container(&a, Duration::ZERO).await.unwrap();
    assert_eq!(status(&engine, &a).exit_code, 137);
    assert_eq!(status(&engine, &b).state, ContainerState::Running);
    assert!(!exec(&engine, &b, "cat /proc/2/cmdline").await.1.contains("1000"));
    let group = group_file(&bench, &format!("poduid-{sandbox}/{a}/cgroup.procs"));
    assert_eq!(std::fs::read_to_string(group).unwrap(), "", "the orphan of the stopped container lives");
    engine.remove_sandbox(&sandbox).await.unwrap();
}

async fn joins_the_processes_of_another(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let target = started(&engine, &sandbox, container("sleep 1000")).await;
    let spec = ContainerSpec { process_namespace_of: Some(target.clone()), ..container("cat") };
    let id = started(&engine, &sandbox, ContainerSpec { stdin: true, ..spec.clone() }).await;
    assert!(exec(&engine, &id, "cat /proc/1/cmdline").await.1.contains("1000"));
    // They end together: the first process of a namespace takes all others along.
    engine.stop_container(&target, Duration::ZERO).await.unwrap();
    assert_eq!(engine.wait_container(&id).await.unwrap().exit_code, 137);
    let refused = engine.create_container(&sandbox, spec).await;
    assert!(matches!(refused, Err(runtime::RuntimeError::Invalid(_))), "{refused:?}");
}

async fn refuses_what_cannot_run(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let refused = [
        ContainerSpec { image: "no/such".into(), ..container("true") },
        ContainerSpec { add_capabilities: vec!["FLY".into()], ..container("true") },
        ContainerSpec { command: vec![], ..container("") },
        ContainerSpec { stop_signal: Some("SIGNO".into()), ..container("true") },
        ContainerSpec { log_path: "../../x".into(), ..container("true") },
    ];
    for spec in refused {
        let result = engine.create_container(&sandbox, spec.clone()).await;
        assert!(result.is_err(), "{spec:?}");
    }
    assert!(engine.list_containers().is_empty());
    for spec in [
        container("/no/such"),
        container("nosuch"),
        ContainerSpec { seccomp: Some(vec![1, 2, 3]), ..container("true") },
    ] {
        let id = engine.create_container(&sandbox, spec).await.unwrap();
        assert!(engine.start_container(&id).await.is_err());
        let ended = engine.wait_container(&id).await.unwrap();
        assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"));
        assert!(engine.start_container(&id).await.is_err());
    }
    let spec = SandboxSpec { sysctls: [("kernel.panic".into(), "1".into())].into(), ..bench.sandbox_spec() };
    assert!(matches!(engine.run_sandbox(spec).await, Err(runtime::RuntimeError::Invalid(_))));
    let spec =
        SandboxSpec { sysctls: [("net.ipv4.ip_forward".into(), "1".into())].into(), ..bench.sandbox_spec() };
    engine.run_sandbox(spec).await.unwrap();
}

async fn forgets_what_is_removed(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    for _ in 0..5 {
        let mut removals = Vec::new();
        for _ in 0..8 {
            let id = engine.create_container(&sandbox, container("sleep 1000")).await.unwrap();
            let engine = Arc::clone(&engine);
            removals.push(tokio::spawn(async move { engine.remove_container(&id).await }));
        }
        for removal in removals {
            removal.await.unwrap().unwrap();
        }
    }
    // News of the removed ones' ends come before those of this one's.
    let last = started(&engine, &sandbox, container("true")).await;
    engine.wait_container(&last).await.unwrap();
    let left: Vec<String> = engine.list_containers().into_iter().map(|c| c.id).collect();
    assert_eq!(left, [last]);
}

async fn is_adopted_after_a_restart(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    let soon = started(&engine, &sandbox, container("catch")).await;
    let before = status(&engine, &id);
    drop(engine);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Ends while nobody watches.
    let pid = rustix::process::Pid::from_raw(before.pid).unwrap();
    let engine = bench.engine().await;
    assert_eq!(status(&engine, &id), before);
    assert_eq!(exec(&engine, &id, "echo still").await.1, "still");
    engine.stop_container(&soon, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status(&engine, &soon).exit_code, 5);
    drop(engine);
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let engine = bench.engine().await;
    let ended = engine.wait_container(&id).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
}

fn processes_named(name: &str, parent: Option<u32>) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let of_parent = parent.is_none_or(|parent| status.contains(&format!("PPid:\t{parent}\n")));
        if status.starts_with(&format!("Name:\t{name}\n")) && of_parent {
            found.push(pid);
        }
    }
    found
}

async fn survives_the_spawner(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    let spawners = processes_named("podium-spawner", Some(std::process::id()));
    assert_eq!(spawners.len(), 1);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(spawners[0]).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let second = bench.sandbox(&engine).await;
    let (ended, _) = bench.run(&engine, &second, container("exit 4")).await;
    assert_eq!(ended.exit_code, 4);
    assert_eq!(exec(&engine, &id, "echo here").await.1, "here");
    // What runs before a container's program is a sealed copy, never the host's file.
    let shim = shim_of(&bench, &sandbox).as_raw_nonzero();
    let program = std::fs::read_link(format!("/proc/{shim}/exe")).unwrap();
    assert!(program.to_string_lossy().starts_with("/memfd:podium"), "{program:?}");
    let write = std::fs::File::options().write(true).open(format!("/proc/{shim}/exe"));
    assert!(write.is_err(), "the sealed copy can be written");
}

/// The shim of a sandbox, by its control group.
fn shim_of(bench: &Bench, sandbox: &str) -> rustix::process::Pid {
    let file = group_file(bench, &format!("shim-{sandbox}/cgroup.procs"));
    rustix::process::Pid::from_raw(std::fs::read_to_string(file).unwrap().trim().parse().unwrap()).unwrap()
}

async fn says_so_when_the_shim_dies(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    let (done, _) = bench.run(&engine, &sandbox, container("true")).await;
    rustix::process::kill_process(shim_of(&bench, &sandbox), rustix::process::Signal::KILL).unwrap();
    let ended = engine.wait_container(&id).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "ContainerStatusUnknown"));
    assert_eq!(status(&engine, &done.id), done);
    assert!(engine.create_container(&sandbox, container("true")).await.is_err());
    // The same when agent and shim die together.
    let other = bench.sandbox(&engine).await;
    let id = started(&engine, &other, container("sleep 1000")).await;
    let pid = status(&engine, &id).pid;
    drop(engine);
    rustix::process::kill_process(shim_of(&bench, &other), rustix::process::Signal::KILL).unwrap();
    let engine = bench.engine().await;
    assert_eq!(status(&engine, &id).reason, "ContainerStatusUnknown");
    assert!(!Path::new(&format!("/proc/{pid}/root/bin")).exists());
    assert_eq!(status(&engine, &done.id), done);
    engine.remove_container(&id).await.unwrap();
    engine.remove_sandbox(&sandbox).await.unwrap();
    engine.remove_sandbox(&other).await.unwrap();
}

async fn goes_down_without_an_agent(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    let (pid, shim) = (status(&engine, &id).pid, shim_of(&bench, &sandbox));
    drop(engine);
    let stray = bench.config.data_dir.join("containers/of-a-crash/upper");
    std::fs::create_dir_all(&stray).unwrap();
    let engine = bench.engine().await;
    assert!(!stray.exists());
    assert_eq!(status(&engine, &id).pid, pid);
    drop(engine);
    let report = runtime::down(&bench.config).unwrap();
    assert_eq!((report.sandboxes, report.processes, report.mounts), (1, 2, 2), "{report}");
    assert!(report.cgroups >= 4, "{report}");
    for pid in [pid, shim.as_raw_nonzero().get()] {
        assert!(!Path::new(&format!("/proc/{pid}/root/bin")).exists());
    }
    assert_eq!(runtime::down(&bench.config).unwrap(), runtime::Report::default());
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    started(&engine, &sandbox, container("sleep 1000")).await;
    engine.purge().await.unwrap();
    assert!(engine.list_sandboxes().is_empty() && !bench.config.run_dir.exists());
}

fn sha256(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, path, &content[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

/// An OCI layout with a base and many thin layers, of which one deletes a file and one replaces a folder.
fn oci_layout(base: Vec<u8>) -> Vec<u8> {
    let file = |path: &str, text: &str| (path.to_owned(), text.as_bytes().to_vec());
    let mut layers = vec![base, tar_of(&[file("d/old", "old"), file("bin/.wh.echo", "")])];
    layers.push(tar_of(&[file("d/.wh..wh..opq", ""), file("d/new", "new")]));
    layers.extend((0..70).map(|count| tar_of(&[file("count", &count.to_string())])));
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = serde_json::json!({
        "os": "linux", "architecture": "any", "config": {"Cmd": ["/bin/true"], "WorkingDir": "/d"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let mut files = Vec::new();
    let mut blob = |bytes: Vec<u8>| {
        let digest = sha256(&bytes);
        let size = bytes.len();
        files.push((format!("blobs/sha256/{digest}"), bytes));
        serde_json::json!({"digest": format!("sha256:{digest}"), "size": size, "mediaType": "x"})
    };
    let config = blob(config.to_string().into_bytes());
    let layers: Vec<_> = layers.into_iter().map(&mut blob).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut manifest = blob(manifest.to_string().into_bytes());
    manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "example.org/app:2"});
    files.push(("index.json".into(), serde_json::json!({"manifests": [manifest]}).to_string().into_bytes()));
    files.push(("oci-layout".into(), b"{}".to_vec()));
    tar_of(&files)
}

async fn imports_layers(bench: Bench) {
    let engine = bench.engine().await;
    let base = engine.image_status(IMAGE).await.unwrap().unwrap();
    let layer = bench.config.data_dir.join("images/layers").join(base.id.trim_start_matches("sha256:"));
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.append_dir_all(".", layer).unwrap();
    let file = bench.dir.path().join("image.tar");
    std::fs::write(&file, oci_layout(archive.into_inner().unwrap())).unwrap();
    let image = engine.import_image(&file).await.unwrap().pop().unwrap();
    assert_eq!(image.repo_tags, ["example.org/app:2"]);
    let sandbox = bench.sandbox(&engine).await;
    let spec = |command: &str| ContainerSpec { image: "example.org/app:2".into(), ..container(command) };
    assert_eq!(bench.run(&engine, &sandbox, spec("")).await.0.exit_code, 0);
    assert_eq!(bench.run(&engine, &sandbox, spec("ls .")).await.1, "new\n");
    assert_eq!(bench.run(&engine, &sandbox, spec("cat /count")).await.1, "69\n");
    assert!(!bench.run(&engine, &sandbox, spec("ls /bin")).await.1.contains("echo"));
    assert!(engine.remove_image("example.org/app:2").await.is_err(), "containers use it");
    engine.remove_sandbox(&sandbox).await.unwrap();
    engine.remove_image("example.org/app:2").await.unwrap();
    assert_eq!(std::fs::read_dir(bench.config.data_dir.join("images/layers")).unwrap().count(), 1);
}

async fn starts_many_at_once(bench: Bench) {
    let engine = bench.engine().await;
    let mut tasks = tokio::task::JoinSet::new();
    for count in 0..25 {
        let (engine, bench) = (Arc::clone(&engine), bench.clone());
        tasks.spawn(async move {
            let sandbox = bench.sandbox(&engine).await;
            let (ended, text) = bench.run(&engine, &sandbox, container(&format!("echo {count}"))).await;
            assert_eq!((ended.exit_code, text), (0, format!("{count}\n")));
            let id = started(&engine, &sandbox, container("sleep 1000")).await;
            let outputs = (0..4).map(|turn| {
                let (engine, id) = (Arc::clone(&engine), id.clone());
                tokio::spawn(async move { exec(&engine, &id, &format!("exit {turn}")).await.0 == turn })
            });
            for output in outputs.collect::<Vec<_>>() {
                assert!(output.await.unwrap());
            }
            engine.remove_sandbox(&sandbox).await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert!(engine.list_sandboxes().is_empty() && engine.list_containers().is_empty());
}

async fn survives_many_restarts(bench: Bench) {
    let engine = bench.engine().await;
    let sandbox = bench.sandbox(&engine).await;
    let id = started(&engine, &sandbox, container("sleep 1000")).await;
    let before = status(&engine, &id);
    drop(engine);
    for count in 0..10 {
        let engine = bench.engine().await;
        let (ended, _) = bench.run(&engine, &sandbox, container(&format!("exit {count}"))).await;
        assert_eq!(ended.exit_code, count);
        // Requests under way when the agent goes.
        let going = Arc::clone(&engine);
        let other = sandbox.clone();
        tokio::spawn(async move { going.create_container(&other, container("true")).await }).abort();
        drop(engine);
    }
    let engine = bench.engine().await;
    assert_eq!(status(&engine, &id), before);
}

/// Prints times; judges nothing.
async fn is_quick(bench: Bench) {
    let engine = bench.engine().await;
    let started = Instant::now();
    let sandbox = bench.sandbox(&engine).await;
    println!("     sandbox {:?}", started.elapsed());
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..20 {
        let mut last = Instant::now();
        let mut lap = |index: usize| {
            times[index].push(last.elapsed());
            last = Instant::now();
        };
        let id = engine.create_container(&sandbox, container("true")).await.unwrap();
        lap(0);
        engine.start_container(&id).await.unwrap();
        lap(1);
        engine.wait_container(&id).await.unwrap();
        lap(2);
        engine.remove_container(&id).await.unwrap();
        lap(3);
    }
    for (name, times) in ["create", "start", "wait", "remove"].iter().zip(&mut times) {
        times.sort();
        println!("     {name} median {:?} (least {:?})", times[10], times[0]);
    }
    let memory =
        std::fs::read_to_string(format!("/proc/{}/smaps_rollup", shim_of(&bench, &sandbox).as_raw_nonzero()));
    let memory = memory.unwrap();
    for line in memory.lines().filter(|line| line.starts_with("Pss:") || line.starts_with("Private_Dirty:")) {
        println!("     shim {line}");
    }
}
