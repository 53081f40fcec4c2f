//! Schedules: five fields (minute, hour, day of month, month, day of week) or `@every 90m`, `@hourly`, …
//!
//! A field is a list of `*`, `?`, numbers, names, ranges and steps. If both day fields are restricted, one of them is
//! enough. Times are UTC.

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// A schedule, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Schedule {
    Fields(Fields),
    /// Seconds between two times.
    Every(i64),
}

/// Sets of allowed values as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    any_day: bool,
    any_weekday: bool,
}

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that has no time within this many days (30 February) has none at all.
const HORIZON_DAYS: usize = 366 * 5;

impl Schedule {
    /// Reads a schedule; the error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(period) = text.strip_prefix("@every ") {
            return seconds(period.trim()).map(Schedule::Every);
        }
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other if other.starts_with('@') => return Err(format!("unrecognized descriptor: {other}")),
            other => other,
        };
        let parts: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{text}]", parts.len()));
        };
        let any = |field: &str| field.split(',').any(|part| matches!(part, "*" | "?"));
        let weekdays = bits(weekday, 0, 7, &WEEKDAYS)?;
        Ok(Schedule::Fields(Fields {
            minutes: bits(minute, 0, 59, &[])?,
            hours: bits(hour, 0, 23, &[])?,
            days: bits(day, 1, 31, &[])?,
            months: bits(month, 1, 12, &MONTHS)?,
            // 7 is Sunday too.
            weekdays: weekdays | (weekdays >> 7 & 1),
            any_day: any(day),
            any_weekday: any(weekday),
        }))
    }

    /// The first time after `after`.
    pub(crate) fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Schedule::Every(seconds) => Timestamp::from_second(after.as_second() + seconds).ok(),
            Schedule::Fields(fields) => fields.next(after),
        }
    }

    /// The last time in `(after, until]`, and whether there were more than a hundred.
    pub(crate) fn last(&self, after: Timestamp, until: Timestamp) -> Option<(Timestamp, bool)> {
        const MANY: usize = 100;
        if let Schedule::Every(seconds) = self {
            let count = (until.as_second() - after.as_second()) / seconds;
            let last = Timestamp::from_second(after.as_second() + count * seconds).ok()?;
            return (count > 0).then_some((last, count > 100));
        }
        // A dense schedule need not be followed over years.
        let week_ago = until.checked_sub(SignedDuration::from_hours(24 * 7)).unwrap_or(until);
        let start = if after < week_ago && self.next(week_ago).is_some_and(|time| time <= until) {
            week_ago
        } else {
            after
        };
        let (mut last, mut count) = (None, 0);
        let mut time = start;
        while let Some(next) = self.next(time).filter(|next| *next <= until) {
            (last, time) = (Some(next), next);
            count += 1;
        }
        last.map(|last| (last, count > MANY))
    }
}

impl Fields {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let has = |set: u64, value: i8| set >> value & 1 == 1;
        let start = Timestamp::from_second(after.as_second().div_euclid(60) * 60 + 60).ok()?;
        let start = start.to_zoned(TimeZone::UTC).datetime();
        let mut date = start.date();
        for day in 0..HORIZON_DAYS {
            if day > 0 {
                date = date.tomorrow().ok()?;
            }
            if !has(self.months, date.month()) || !self.allows(date) {
                continue;
            }
            let earliest = if day == 0 { (start.hour(), start.minute()) } else { (0, 0) };
            let minute_of = |hour: i8| {
                let first = if hour == earliest.0 { earliest.1 } else { 0 };
                (first..60).find(|minute| has(self.minutes, *minute))
            };
            let hours = (earliest.0..24).filter(|hour| has(self.hours, *hour));
            if let Some((hour, minute)) =
                hours.filter_map(|hour| minute_of(hour).map(|minute| (hour, minute))).next()
            {
                let time = date.at(hour, minute, 0, 0).to_zoned(TimeZone::UTC).ok()?;
                return Some(time.timestamp());
            }
        }
        None
    }

    fn allows(&self, date: jiff::civil::Date) -> bool {
        let day = self.days >> date.day() & 1 == 1;
        let weekday = self.weekdays >> date.weekday().to_sunday_zero_offset() & 1 == 1;
        if self.any_day || self.any_weekday { day && weekday } else { day || weekday }
    }
}

/// The values of a field as bits.
fn bits(field: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, String> {
    let mut set = 0;
    for part in field.split(',') {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step, 0, &[])?)),
            None => (part, None),
        };
        if step == Some(0) {
            return Err(format!("step of range should be a positive number: {part}"));
        }
        let (first, last) = match range.split_once('-') {
            _ if matches!(range, "*" | "?") => (min, max),
            Some((first, last)) => (number(first, min, names)?, number(last, min, names)?),
            None => {
                let one = number(range, min, names)?;
                (one, if step.is_some() { max } else { one })
            }
        };
        if first < min {
            return Err(format!("beginning of range ({first}) below minimum ({min}): {part}"));
        }
        if last > max {
            return Err(format!("end of range ({last}) above maximum ({max}): {part}"));
        }
        if first > last {
            return Err(format!("beginning of range ({first}) beyond end of range ({last}): {part}"));
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(1);
        for value in (first..=last).step_by(step) {
            set |= 1_u64 << value;
        }
    }
    Ok(set)
}

fn number(text: &str, min: u32, names: &[&str]) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    if let Some(position) = names.iter().position(|name| *name == lower) {
        return Ok(min + u32::try_from(position).unwrap_or(0));
    }
    text.parse().map_err(|_| format!("failed to parse int from {text}"))
}

/// A period such as `1h30m`, at least a second.
fn seconds(text: &str) -> Result<i64, String> {
    let wrong = || format!("failed to parse duration @every {text}");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let count: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += count
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    #[expect(clippy::cast_possible_truncation, reason = "seconds of a schedule")]
    let whole = total as i64;
    if text.is_empty() { Err(wrong()) } else { Ok(whole.max(1)) }
}
