//! Logs go to standard error: as text for people, or as a JSON object a line for programs.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// The variable that sets levels where the flag does not.
const VARIABLE: &str = "PODIUM_LOG";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// Podium's own modules may be named without a level: everything of them.
const MODULES: [&str; 10] =
    ["api", "apiserver", "client", "controllers", "net", "node", "podium", "runtime", "scheduler", "store"];

#[derive(Args)]
pub(crate) struct LogArgs {
    /// What is logged: a level (error, warn, info, debug, trace, off) or levels by module, like node=debug,info
    /// (default: PODIUM_LOG, else warn)
    #[arg(long, value_name = "LEVELS", global = true)]
    log_level: Option<String>,
    /// How logs are written
    #[arg(long, value_name = "FORMAT", global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Starts logging.
///
/// # Errors
/// When the levels are malformed; names the flag or the variable.
pub(crate) fn init(args: &LogArgs) -> Result<()> {
    let (source, text) = match (&args.log_level, std::env::var(VARIABLE)) {
        (Some(flag), _) => ("--log-level", flag.clone()),
        (None, Ok(variable)) if !variable.is_empty() => (VARIABLE, variable),
        (None, _) => ("", "warn".to_owned()),
    };
    let filter = filter(&text).map_err(|error| anyhow!("{source}: {error}"))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => subscriber.with_target(true).init(),
        LogFormat::Json => subscriber.event_format(JsonLines).init(),
    }
    Ok(())
}

/// Reads levels strictly: a misspelt level is no module that happens to be silent.
fn filter(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',') {
        let directive = directive.trim();
        let known = match directive.rsplit_once('=') {
            Some((target, level)) => !target.is_empty() && is_level(level),
            None => is_level(directive) || MODULES.contains(&directive),
        };
        if !known {
            return Err(format!(
                "{directive:?} is no level: write LEVEL or MODULE=LEVEL, separated by commas, where LEVEL is one of {}",
                LEVELS.join(", ")
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("{text:?}: {error}"))
}

fn is_level(text: &str) -> bool {
    LEVELS.contains(&text.to_ascii_lowercase().as_str())
}

/// `{"ts":…,"level":…,"target":…,"msg":…,"fields":{…}}`
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let meta = event.metadata();
        let line = json!({
            "ts": jiff::Timestamp::now().to_string(),
            "level": meta.level().as_str().to_ascii_lowercase(),
            "target": meta.target(),
            "msg": fields.message,
            "fields": fields.others,
        });
        writeln!(writer, "{line}")
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => drop(self.others.insert(name.to_owned(), value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let mut text = String::new();
        if write!(text, "{value:?}").is_ok() {
            self.put(field, text.into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_misspelt_level_is_an_error() {
        for good in ["info", "WARN", "node=debug,net=trace,warn", "node", "hyper=off", "off"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for (bad, named) in [
            ("verbose", "\"verbose\""),
            ("info,node=loud", "\"node=loud\""),
            ("=debug", "\"=debug\""),
            ("info,", "\"\""),
            ("", "\"\""),
        ] {
            let error = filter(bad).unwrap_err();
            assert!(error.starts_with(named), "{bad}: {error}");
        }
    }

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter("info").unwrap())
            .with_writer(move || writer.clone())
            .event_format(JsonLines)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let error = "line 1\nline 2 \"quoted\"";
            tracing::warn!(target: "node::worker", error, count = 3, ok = true, who = %"x", "went {}", "wrong");
            tracing::debug!("not shown");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let mut line: Value = serde_json::from_str(&text).unwrap();
        line["ts"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        line["ts"] = Value::Null;
        assert_eq!(
            line,
            json!({"ts": null, "level": "warn", "target": "node::worker", "msg": "went wrong",
                "fields": {"error": "line 1\nline 2 \"quoted\"", "count": 3, "ok": true, "who": "x"}})
        );
    }
}
