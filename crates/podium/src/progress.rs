//! What becomes ready while Podium starts: a line per part, with the time it took.

use std::io::IsTerminal as _;
use std::time::Instant;

use crate::cli::outln;

/// Prints the parts of a start. On a terminal ready parts are marked in colour; else the lines are plain.
pub(crate) struct Progress {
    begun: Instant,
    last: Instant,
    terminal: bool,
}

impl Progress {
    /// Begins, with a heading.
    pub(crate) fn begin(heading: &str) -> Self {
        outln(heading);
        let now = Instant::now();
        Self { begun: now, last: now, terminal: std::io::stdout().is_terminal() }
    }

    /// A part is ready; the time counts from the part before it.
    pub(crate) fn ready(&mut self, part: &str, detail: &str) {
        let millis = self.last.elapsed().as_millis();
        self.last = Instant::now();
        let mark = if self.terminal { "\x1b[32m✓\x1b[0m" } else { "ready" };
        outln(format!("  {mark} {part:<14} {millis:>6} ms  {detail}").trim_end());
    }

    /// Something is wrong, but the start goes on.
    pub(crate) fn warn(&self, part: &str, detail: &str) {
        let mark = if self.terminal { "\x1b[33m!\x1b[0m" } else { "warning" };
        outln(&format!("  {mark} {part}: {detail}"));
    }

    /// Everything is ready; `lines` say how to go on.
    pub(crate) fn done(&self, summary: &str, lines: &[String]) {
        outln(&format!("{summary} after {} ms", self.begun.elapsed().as_millis()));
        for line in lines {
            outln(&format!("  {line}"));
        }
    }
}
