//! Times on the wire: RFC 3339 in UTC, with seconds (`Time`) or microseconds (`MicroTime`).

use jiff::Timestamp;

/// `2026-01-02T03:04:05Z`
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `2026-01-02T03:04:05.000006Z`
pub fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// Reads a time with seconds or finer, in any offset.
///
/// # Errors
/// When the text is no RFC 3339 time.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    text.parse::<Timestamp>()
        .map_err(|_| format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        let time = parse("2026-01-02T05:04:05.0000065+02:00").unwrap();
        assert_eq!(seconds(time), "2026-01-02T03:04:05Z");
        assert_eq!(micros(time), "2026-01-02T03:04:05.000006Z");
        assert!(parse("yesterday").is_err());
        assert!(parse("2026-01-02").is_err());
    }
}
