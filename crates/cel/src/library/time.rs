//! Times and durations.

use jiff::tz::{Offset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use super::failed;
use crate::eval::Eval;
use crate::value::Val;

/// Reads a duration as Go writes it: `1h30m`, `-1.5s`, `100ms`.
pub(crate) fn parse(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut nanos: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number = &rest[..digits];
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit: i128 = match &rest[..end] {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        rest = &rest[end..];
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        nanos = nanos.checked_add(whole.checked_mul(unit)?)?;
        let mut scale = unit;
        for digit in fraction.bytes().take(18) {
            scale /= 10;
            nanos += i128::from(digit.checked_sub(b'0')?) * scale;
        }
    }
    let nanos = if negative { -nanos } else { nanos };
    // As Go's, a duration is 64 bits of nanoseconds.
    i64::try_from(nanos).ok().map(SignedDuration::from_nanos)
}

/// A duration in seconds: `5400s`.
pub(crate) fn text(duration: SignedDuration) -> String {
    let nanos = duration.as_nanos();
    let (sign, nanos) = if nanos < 0 { ("-", -nanos) } else { ("", nanos) };
    let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if rest == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{rest:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// The functions of this theme.
pub(super) fn call<'a>(name: &str, member: bool, args: &[Val<'a>]) -> Option<Eval<'a>> {
    use Val::{Duration, Int, String, Timestamp as Time};
    let overflow = || failed("timestamp overflow");
    let time = |time: Result<Timestamp, jiff::Error>| time.map_or_else(|_| overflow(), |time| Ok(Time(time)));
    if member {
        return parts(name, args);
    }
    Some(match (name, args) {
        ("timestamp", [Time(t)]) => Ok(Time(*t)),
        ("timestamp", [Int(seconds)]) => time(Timestamp::from_second(*seconds)),
        ("timestamp", [String(text)]) => text.parse().map_or_else(
            |_| failed(format!("type conversion error from 'string' to 'timestamp': {text}")),
            |t| Ok(Time(t)),
        ),
        ("duration", [Duration(d)]) => Ok(Duration(*d)),
        ("duration", [Int(nanos)]) => Ok(Duration(SignedDuration::from_nanos(*nanos))),
        ("duration", [String(text)]) => parse(text).map_or_else(
            || failed(format!("type conversion error from 'string' to 'duration': {text}")),
            |d| Ok(Duration(d)),
        ),
        ("_+_", [Time(t), Duration(d)] | [Duration(d), Time(t)]) => time(t.checked_add(*d)),
        ("_-_", [Time(t), Duration(d)]) => time(t.checked_sub(*d)),
        ("_-_", [Time(a), Time(b)]) => Ok(Duration(a.duration_since(*b))),
        ("_+_", [Duration(a), Duration(b)]) => a.checked_add(*b).map_or_else(overflow, |d| Ok(Duration(d))),
        ("_-_", [Duration(a), Duration(b)]) => a.checked_sub(*b).map_or_else(overflow, |d| Ok(Duration(d))),
        _ => return None,
    })
}

fn parts<'a>(name: &str, args: &[Val<'a>]) -> Option<Eval<'a>> {
    let int = |n: i64| Ok(Val::Int(n));
    match args {
        [Val::Duration(d)] => Some(match name {
            "getHours" => int(d.as_secs() / 3600),
            "getMinutes" => int(d.as_secs() / 60),
            "getSeconds" => int(d.as_secs()),
            "getMilliseconds" => int(i64::from(d.subsec_millis())),
            _ => return None,
        }),
        [Val::Timestamp(t), zone @ ..] if name.starts_with("get") => {
            let zone = match zone {
                [] => Some(TimeZone::UTC),
                [Val::String(zone)] => self::zone(zone),
                _ => None,
            };
            let Some(zone) = zone else { return Some(failed("unknown time zone")) };
            let at = t.to_zoned(zone).datetime();
            Some(match name {
                "getFullYear" => int(at.year().into()),
                "getMonth" => int(i64::from(at.month()) - 1),
                "getDayOfYear" => int(i64::from(at.day_of_year()) - 1),
                "getDayOfMonth" => int(i64::from(at.day()) - 1),
                "getDate" => int(at.day().into()),
                "getDayOfWeek" => int(at.weekday().to_sunday_zero_offset().into()),
                "getHours" => int(at.hour().into()),
                "getMinutes" => int(at.minute().into()),
                "getSeconds" => int(at.second().into()),
                "getMilliseconds" => int(at.millisecond().into()),
                _ => return None,
            })
        }
        _ => None,
    }
}

/// `UTC` or a fixed offset, `+02:00`; there is no zone database.
fn zone(text: &str) -> Option<TimeZone> {
    if matches!(text, "UTC" | "Z" | "") {
        return Some(TimeZone::UTC);
    }
    let (sign, rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok().map(TimeZone::fixed)
}
