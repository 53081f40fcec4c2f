//! Families of series, and the three kinds of numbers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::lock;

/// Series of one name, told apart by the values of their labels. Cheap to clone.
pub struct Family<T> {
    labels: &'static [&'static str],
    make: Arc<dyn Fn() -> T + Send + Sync>,
    /// by their labels as they are shown
    series: Arc<Mutex<BTreeMap<String, Arc<T>>>>,
}

impl<T> Clone for Family<T> {
    fn clone(&self) -> Self {
        Self { labels: self.labels, make: Arc::clone(&self.make), series: Arc::clone(&self.series) }
    }
}

impl<T: Metric> Family<T> {
    pub(super) fn new(labels: &'static [&'static str], make: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self { labels, make: Arc::new(make), series: Arc::default() }
    }

    /// The series with these values, in the order of the labels. Keep it where it is used often.
    pub fn with(&self, values: &[&str]) -> Arc<T> {
        let key = self.key(values);
        let mut series = lock(&self.series);
        if let Some(found) = series.get(&key) {
            return Arc::clone(found);
        }
        let made = Arc::new((self.make)());
        series.insert(key, Arc::clone(&made));
        made
    }

    /// Forgets a series that will not be used again.
    pub fn remove(&self, values: &[&str]) {
        lock(&self.series).remove(&self.key(values));
    }

    /// Forgets all series.
    pub fn clear(&self) {
        lock(&self.series).clear();
    }

    fn key(&self, values: &[&str]) -> String {
        debug_assert_eq!(self.labels.len(), values.len(), "a value for each of {:?}", self.labels);
        let mut key = String::with_capacity(values.len() * 24);
        for (label, value) in self.labels.iter().zip(values) {
            if !key.is_empty() {
                key.push(',');
            }
            key.push_str(label);
            key.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => key.push_str("\\\\"),
                    '"' => key.push_str("\\\""),
                    '\n' => key.push_str("\\n"),
                    c => key.push(c),
                }
            }
            key.push('"');
        }
        key
    }

    pub(super) fn lines(&self, name: &str, moment: &str) -> String {
        let mut out = String::new();
        for (labels, metric) in lock(&self.series).iter() {
            metric.lines(&mut Line { out: &mut out, name, labels, moment });
        }
        out
    }
}

/// One kind of number.
pub trait Metric: Send + Sync + 'static {
    /// Writes its samples.
    fn lines(&self, line: &mut Line<'_>);
}

/// Where samples are written.
pub struct Line<'a> {
    out: &'a mut String,
    name: &'a str,
    labels: &'a str,
    moment: &'a str,
}

impl Line<'_> {
    fn sample(&mut self, suffix: &str, more: &str, value: impl std::fmt::Display) {
        let Self { out, name, labels, moment } = self;
        let comma = if labels.is_empty() || more.is_empty() { "" } else { "," };
        let (open, close) = if labels.is_empty() && more.is_empty() { ("", "") } else { ("{", "}") };
        let written = writeln!(out, "{name}{suffix}{open}{labels}{comma}{more}{close} {value}{moment}");
        // writing to a String can't fail
        debug_assert!(written.is_ok());
    }
}

/// A count that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metric for Counter {
    fn lines(&self, line: &mut Line<'_>) {
        line.sample("", "", self.get());
    }
}

/// A number that goes up and down.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds to it; a negative number takes away.
    pub fn add(&self, more: f64) {
        let sum = |bits: u64| Some((f64::from_bits(bits) + more).to_bits());
        let added = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, sum);
        debug_assert!(added.is_ok(), "the sum is always given");
    }

    /// What it is.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Metric for Gauge {
    fn lines(&self, line: &mut Line<'_>) {
        line.sample("", "", Number(self.get()));
    }
}

/// How often a value was how large.
pub struct Histogram {
    bounds: &'static [f64],
    /// Not cumulative; the last one is beyond all bounds.
    buckets: Box<[AtomicU64]>,
    /// in billionths: sums of whole numbers need no loop
    sum: AtomicU64,
}

impl Histogram {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, buckets, sum: AtomicU64::new(0) }
    }

    /// Something took so long.
    pub fn observe(&self, time: Duration) {
        self.count(time.as_secs_f64(), u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Something was so many.
    pub fn observe_number(&self, number: u32) {
        self.count(f64::from(number), u64::from(number) * 1_000_000_000);
    }

    fn count(&self, value: f64, billionths: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(billionths, Ordering::Relaxed);
    }
}

impl Metric for Histogram {
    fn lines(&self, line: &mut Line<'_>) {
        let mut count = 0;
        for (bound, bucket) in self.bounds.iter().zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            line.sample("_bucket", &format!("le=\"{bound}\""), count);
        }
        count += self.buckets.last().map_or(0, |beyond| beyond.load(Ordering::Relaxed));
        line.sample("_bucket", "le=\"+Inf\"", count);
        line.sample("_sum", "", Number(self.sum.load(Ordering::Relaxed) as f64 / 1e9));
        line.sample("_count", "", count);
    }
}

/// A number as the format writes it.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            value if value == f64::INFINITY => f.write_str("+Inf"),
            value if value == f64::NEG_INFINITY => f.write_str("-Inf"),
            value => write!(f, "{value}"),
        }
    }
}
