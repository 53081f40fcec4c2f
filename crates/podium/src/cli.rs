//! The command line. It is stable: flags are added, not changed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::housekeeping::HousekeepingArgs;
use crate::logging::{self, LogArgs};
use crate::{agent, backup, down, image, restore, token, up};

/// Version of Podium and of the Kubernetes API that it serves.
pub(crate) const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"), " (Kubernetes API v1.37)");

#[derive(Parser)]
#[command(name = "podium", about = "Kubernetes as one small binary", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Start the control plane and a node on this machine
    Up(UpArgs),
    /// Start the control plane alone (needs no root)
    Server(ServerArgs),
    /// Start a node of a cluster whose control plane runs elsewhere
    Agent(AgentArgs),
    /// Make, list and delete the tokens with which machines join
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Write everything of a cluster that can't be derived again to a file, also while it runs
    Backup(backup::BackupArgs),
    /// Make a data directory from a backup
    Restore(restore::RestoreArgs),
    /// Remove everything that `up` or `agent` made on this machine
    Down(DownArgs),
    /// Container images on this machine
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Print the version
    Version,
}

#[derive(Args)]
pub(crate) struct ServerArgs {
    /// Where the cluster's data lives
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
    pub(crate) data_dir: PathBuf,
    /// Address and port of the API server
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:6443")]
    pub(crate) listen: SocketAddr,
    /// Addresses of this machine for the other nodes: one, or one of IPv4 and one of IPv6 with a comma between them
    /// (default: those of its default routes)
    #[arg(long, value_name = "IP[,IP]", default_value = "", hide_default_value = true)]
    pub(crate) node_ip: NodeIps,
    /// Apply the manifests in a file or folder once the cluster is ready (may be repeated)
    #[arg(long, value_name = "PATH")]
    pub(crate) apply: Vec<PathBuf>,
    /// How long a node may be silent before it counts as lost
    #[arg(long, value_name = "TIME", default_value = "40s")]
    pub(crate) node_monitor_grace_period: Period,
    /// The same for a node that has never reported
    #[arg(long, value_name = "TIME", default_value = "1m")]
    pub(crate) node_startup_grace_period: Period,
}

/// At most one address of each family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeIps(Vec<IpAddr>);

impl NodeIps {
    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.0
    }
}

impl FromStr for NodeIps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(',').filter(|_| !text.is_empty());
        let parse = |word: &str| word.parse().map_err(|_| format!("{word:?} is no IP address"));
        let ips: Vec<IpAddr> = words.map(parse).collect::<Result<_, _>>()?;
        match ips[..] {
            [] | [_] => Ok(Self(ips)),
            [a, b] if a.is_ipv4() && b.is_ipv6() => Ok(Self(ips)),
            _ => Err("two addresses must be one of IPv4 and then one of IPv6".to_owned()),
        }
    }
}

/// A time as Kubernetes' flags write it: `40s`, `1m30s`, `500ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Period(pub(crate) Duration);

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const UNITS: [(&str, u64); 4] = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1000)];
        let malformed = || format!("{text:?} is no time like 40s, 1m30s or 500ms");
        let (mut rest, mut milliseconds) = (text, 0u64);
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
            let (number, unit) = rest.split_at(digits);
            let (name, factor) =
                UNITS.iter().find(|(name, _)| unit.starts_with(name)).ok_or_else(malformed)?;
            let number: u64 = number.parse().map_err(|_| malformed())?;
            let part = number.checked_mul(*factor).ok_or_else(malformed)?;
            milliseconds = milliseconds.checked_add(part).ok_or_else(malformed)?;
            rest = &unit[name.len()..];
        }
        if text.is_empty() { Err(malformed()) } else { Ok(Self(Duration::from_millis(milliseconds))) }
    }
}

#[derive(Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// What both commands that start a node know.
#[derive(Args, Clone)]
pub(crate) struct NodeArgs {
    /// Name of this machine's Node (default: the host name)
    #[arg(long, value_name = "N")]
    pub(crate) node_name: Option<String>,
    /// How packets get to the pods of other nodes: host-gw (routes; nodes in one segment), vxlan, or auto, which
    /// decides for each pair of nodes
    #[arg(long, value_name = "auto|host-gw|vxlan", default_value = "auto")]
    pub(crate) network_backend: net::routes::Backend,
    /// How long the node's lease is good; it is renewed after a quarter of that
    #[arg(long, value_name = "SECONDS", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) node_lease_duration_seconds: u16,
    /// Folder of the manifests of static pods, which this machine runs by itself (default: manifests in the data
    /// directory)
    #[arg(long, value_name = "DIR")]
    pub(crate) pod_manifest_path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) housekeeping: HousekeepingArgs,
}

#[derive(Args)]
pub(crate) struct AgentArgs {
    /// The cluster's API server
    #[arg(long, value_name = "https://HOST:PORT")]
    pub(crate) server: String,
    /// From `podium token create`; needed the first time only
    #[arg(long, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Where the node's data lives
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Addresses of this machine for the other nodes: one, or one of IPv4 and one of IPv6 with a comma between them
    /// (default: that of its route to the server, and one of IPv6 if the machine has any)
    #[arg(long, value_name = "IP[,IP]", default_value = "", hide_default_value = true)]
    pub(crate) node_ip: NodeIps,
}

#[derive(Args)]
pub(crate) struct DownArgs {
    /// Where the cluster's data lives
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
    pub(crate) data_dir: PathBuf,
    /// Delete the data too
    #[arg(long)]
    pub(crate) purge: bool,
}

/// Parses the arguments and runs the command. Errors are one line on stderr and exit code 1 (2 for wrong usage).
pub(crate) fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = logging::init(&cli.log).and_then(|()| match cli.command {
        Command::Version => {
            outln(&format!("podium {VERSION}"));
            Ok(())
        }
        Command::Up(args) => up::run(&args.server, up::Role::ServerAndNode(args.node)),
        Command::Server(args) => up::run(&args, up::Role::Server),
        Command::Agent(args) => agent::run(&args),
        Command::Token(command) => token::run(&command),
        Command::Backup(args) => backup::run(&args),
        Command::Restore(args) => restore::run(&args),
        Command::Down(args) => down::run(&args),
        Command::Image(command) => image::run(&command),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            errln(&format!("podium: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        errln(error.to_string().trim_end());
        ExitCode::from(2)
    } else {
        outln(error.to_string().trim_end());
        ExitCode::SUCCESS
    }
}

/// A line on standard output. A closed pipe is no error of ours.
#[expect(clippy::let_underscore_must_use, reason = "nobody is left to read the line")]
pub(crate) fn outln(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// A line on standard error.
#[expect(clippy::let_underscore_must_use, reason = "nobody is left to read the line")]
pub(crate) fn errln(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_at_most_one_address_of_each_family() {
        for good in ["", "192.0.2.1", "fd00::1", "192.0.2.1,fd00::1"] {
            let ips: NodeIps = good.parse().unwrap();
            let texts: Vec<String> = ips.addresses().iter().map(ToString::to_string).collect();
            assert_eq!(texts.join(","), good);
        }
        for wrong in
            ["x", "192.0.2.1,", "192.0.2.1,192.0.2.2", "fd00::1,192.0.2.1", "192.0.2.1,fd00::1,fd00::2"]
        {
            assert!(wrong.parse::<NodeIps>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_written_as_in_kubernetes() {
        for (text, milliseconds) in
            [("40s", 40_000), ("1m30s", 90_000), ("500ms", 500), ("1h", 3_600_000), ("0s", 0)]
        {
            assert_eq!(text.parse(), Ok(Period(Duration::from_millis(milliseconds))), "{text}");
        }
        for wrong in ["", "40", "s", "4x", "-1s", "99999999999999999999s", "999999999999999999h"] {
            assert!(wrong.parse::<Period>().is_err(), "{wrong}");
        }
    }
}
