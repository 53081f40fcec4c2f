//! Whether a container's image must be pulled, and the words of what goes wrong.

use std::time::Duration;

use jiff::Timestamp;

use crate::observed::{Blocked, after};
use crate::pod_actions::doubled;
use crate::ports::{PullProgress, RuntimeError};

/// What to do about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageStep {
    Use,
    Pull,
    /// Policy Never and no such image.
    Refuse,
}

/// Decides by pull policy and presence. An unset policy means Always for `:latest` and untagged references.
pub fn image_step(reference: &str, policy: Option<&str>, present: bool) -> ImageStep {
    match policy.unwrap_or_else(|| default_policy(reference)) {
        "Never" if present => ImageStep::Use,
        "Never" => ImageStep::Refuse,
        "Always" => ImageStep::Pull,
        _ if present => ImageStep::Use,
        _ => ImageStep::Pull,
    }
}

fn default_policy(reference: &str) -> &'static str {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    let tagged = name.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    if tagged { "IfNotPresent" } else { "Always" }
}

/// A failed pull: its reason, text and when to try again (10 s doubling to 5 min).
pub fn pull_failed(reference: &str, error: &RuntimeError, failures: u32, now: Timestamp) -> Blocked {
    blocked("ErrImagePull", format!("failed to pull image {reference:?}: {error}"), failures, now)
}

/// Policy Never without the image.
pub fn never_pull(reference: &str) -> String {
    format!("Container image {reference:?} is not present with pull policy of Never")
}

/// A container blocked after `failures` earlier ones.
pub fn blocked(reason: &str, message: String, failures: u32, now: Timestamp) -> Blocked {
    Blocked {
        reason: reason.into(),
        message,
        since: now,
        retry_at: Some(after(now, doubled(failures))),
        failures: failures.saturating_add(1),
    }
}

/// For the event of a pull that takes its time.
pub fn progress_text(reference: &str, progress: &PullProgress) -> String {
    let PullProgress { layers, layers_done, bytes, bytes_done } = progress;
    format!("Pulling image {reference:?}: {layers_done} of {layers} layers, {bytes_done} of {bytes} bytes")
}

/// `350ms`, `1.234s`, `1m2.5s`, for the Pulled event.
pub fn duration_text(duration: Duration) -> String {
    let (minutes, rest) = (duration.as_secs() / 60, duration.as_millis() % 60_000);
    if minutes == 0 && rest < 1000 {
        return format!("{rest}ms");
    }
    let seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes == 0 { format!("{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ImageStep, duration_text, image_step};

    #[test]
    fn durations() {
        for (ms, want) in [(0, "0ms"), (350, "350ms"), (1234, "1.234s"), (2000, "2s"), (62_500, "1m2.5s")] {
            assert_eq!(duration_text(Duration::from_millis(ms)), want);
        }
    }

    #[test]
    fn policies() {
        use ImageStep::{Pull, Refuse, Use};
        let table = [
            ("a:1", None, true, Use),
            ("a:1", None, false, Pull),
            ("a", None, true, Pull),
            ("a:latest", None, true, Pull),
            ("host:5000/a", None, true, Pull),
            ("a@sha256:1", None, true, Use),
            ("a", Some("IfNotPresent"), true, Use),
            ("a:1", Some("Always"), true, Pull),
            ("a:1", Some("Never"), true, Use),
            ("a:1", Some("Never"), false, Refuse),
        ];
        for (reference, policy, present, wanted) in table {
            assert_eq!(image_step(reference, policy, present), wanted, "{reference} {policy:?} {present}");
        }
    }
}
