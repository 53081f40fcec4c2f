//! What a part of Podium counts about itself, and the page that shows it in Prometheus' text form (version 0.0.4).
//!
//! ```text
//!   Registry ──name──▶ Family ──label values──▶ Counter | Gauge | Histogram      (kept by whoever counts: one atomic addition)
//!      └── text(): what is looked up only when somebody asks (`on_scrape`), then every family with its HELP and TYPE
//! ```
//!
//! Invariants:
//! - A name means one thing: whoever asks for a family that is there already gets the same one.
//! - Label values come from small sets: nobody outside can make ever more series.

mod family;
pub mod format;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use family::{Counter, Family, Gauge, Histogram, Metric};

/// The content type of [`Registry::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Bounds of histograms of short and long work, in seconds.
pub const SECONDS: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// All families of one page. Cheap to share; locked only when a family is looked up or the page is made.
#[derive(Default)]
pub struct Registry {
    families: Mutex<BTreeMap<&'static str, Shown>>,
    on_scrape: Mutex<Vec<Look>>,
}

/// Looks something up; false when it is gone.
type Look = Box<dyn Fn() -> bool + Send + Sync>;

struct Shown {
    help: &'static str,
    kind: &'static str,
    family: AnyFamily,
}

enum AnyFamily {
    Counter(Family<Counter>),
    Gauge(Family<Gauge>),
    Histogram(Family<Histogram>),
}

impl Registry {
    /// Counts what happened.
    pub fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Family<Counter> {
        match self.family(name, help, "counter", || AnyFamily::Counter(Family::new(labels, Counter::default)))
        {
            AnyFamily::Counter(family) => family,
            AnyFamily::Gauge(_) | AnyFamily::Histogram(_) => Family::new(labels, Counter::default),
        }
    }

    /// Says how much there is.
    pub fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Family<Gauge> {
        self.value(name, help, "gauge", labels)
    }

    /// A number that only grows and that somebody else counts: it is set, not added to.
    pub fn counted(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
    ) -> Family<Gauge> {
        self.value(name, help, "counter", labels)
    }

    fn value(
        &self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        labels: &'static [&'static str],
    ) -> Family<Gauge> {
        match self.family(name, help, kind, || AnyFamily::Gauge(Family::new(labels, Gauge::default))) {
            AnyFamily::Gauge(family) => family,
            AnyFamily::Counter(_) | AnyFamily::Histogram(_) => Family::new(labels, Gauge::default),
        }
    }

    /// Says how often something took how long (or was how large); `bounds` grow.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        bounds: &'static [f64],
    ) -> Family<Histogram> {
        let new = || Family::new(labels, move || Histogram::new(bounds));
        match self.family(name, help, "histogram", || AnyFamily::Histogram(new())) {
            AnyFamily::Histogram(family) => family,
            AnyFamily::Counter(_) | AnyFamily::Gauge(_) => new(),
        }
    }

    /// The family of that name, made if need be. One of another kind is a mistake in the program: the second one is not shown.
    fn family(
        &self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        make: impl FnOnce() -> AnyFamily,
    ) -> AnyFamily {
        let mut families = lock(&self.families);
        let shown = families.entry(name).or_insert_with(|| Shown { help, kind, family: make() });
        debug_assert_eq!(shown.kind, kind, "{name} is there as another kind");
        match &shown.family {
            AnyFamily::Counter(family) => AnyFamily::Counter(family.clone()),
            AnyFamily::Gauge(family) => AnyFamily::Gauge(family.clone()),
            AnyFamily::Histogram(family) => AnyFamily::Histogram(family.clone()),
        }
    }

    /// Looks at something each time before the page is made, while it lives: for what nobody counts as it happens.
    pub fn on_scrape<T: Send + Sync + 'static>(
        &self,
        what: &Arc<T>,
        look: impl Fn(&T) + Send + Sync + 'static,
    ) {
        let what = Arc::downgrade(what);
        lock(&self.on_scrape).push(Box::new(move || what.upgrade().map(|what| look(&what)).is_some()));
    }

    /// The page: every family that has a series, by name.
    pub fn text(&self) -> String {
        self.text_at("")
    }

    /// The same with the moment, in milliseconds since 1970, to which the values belong.
    pub fn text_of(&self, millis: i64) -> String {
        self.text_at(&format!(" {millis}"))
    }

    fn text_at(&self, moment: &str) -> String {
        lock(&self.on_scrape).retain(|look| look());
        let mut out = String::with_capacity(16 << 10);
        for (name, Shown { help, kind, family }) in lock(&self.families).iter() {
            let series = match family {
                AnyFamily::Counter(family) => family.lines(name, moment),
                AnyFamily::Gauge(family) => family.lines(name, moment),
                AnyFamily::Histogram(family) => family.lines(name, moment),
            };
            if !series.is_empty() {
                // writing to a String can't fail
                let head = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
                debug_assert!(head.is_ok());
                out.push_str(&series);
            }
        }
        out
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared by all parts that appear on one page.
pub type Metrics = Arc<Registry>;
