use std::time::Duration;

use super::*;

fn registry() -> Registry {
    let registry = Registry::default();
    let adds = registry.counter("adds_total", "Additions.", &["name"]);
    adds.with(&["a"]).inc();
    adds.with(&["quote\" slash\\ line\n"]).add(2);
    registry.gauge("depth", "How deep.", &[]).with(&[]).set(1.5);
    registry.counted("cpu_seconds_total", "Time.", &[]).with(&[]).set(0.25);
    let work = registry.histogram("work_seconds", "Work.", &["name"], &[0.01, 1.0]);
    for millis in [5, 10, 500, 3000] {
        work.with(&["a"]).observe(Duration::from_millis(millis));
    }
    registry
}

#[test]
fn the_page_is_in_the_text_form() {
    let text = registry().text();
    assert_eq!(
        text,
        "# HELP adds_total Additions.\n# TYPE adds_total counter\n\
         adds_total{name=\"a\"} 1\nadds_total{name=\"quote\\\" slash\\\\ line\\n\"} 2\n\
         # HELP cpu_seconds_total Time.\n# TYPE cpu_seconds_total counter\ncpu_seconds_total 0.25\n\
         # HELP depth How deep.\n# TYPE depth gauge\ndepth 1.5\n\
         # HELP work_seconds Work.\n# TYPE work_seconds histogram\n\
         work_seconds_bucket{name=\"a\",le=\"0.01\"} 2\nwork_seconds_bucket{name=\"a\",le=\"1\"} 3\n\
         work_seconds_bucket{name=\"a\",le=\"+Inf\"} 4\nwork_seconds_sum{name=\"a\"} 3.515\nwork_seconds_count{name=\"a\"} 4\n"
    );
    let samples = format::parse(&text).unwrap();
    assert_eq!(samples.len(), 9);
    assert_eq!(samples[1].labels["name"], "quote\" slash\\ line\n");
    assert!(format::parse(&registry().text_of(1000)).unwrap() == samples);
}

#[test]
fn a_name_is_one_family_and_empty_ones_are_not_shown() {
    let registry = registry();
    registry.counter("adds_total", "Additions.", &["name"]).with(&["a"]).inc();
    registry.counter("never_total", "Nothing.", &[]);
    let depth = registry.gauge("depth", "How deep.", &[]).with(&[]);
    registry.on_scrape(&depth, |depth| depth.add(1.0));
    let gone = Arc::new(());
    registry.on_scrape(&gone, |()| panic!("it is gone"));
    drop(gone);
    let text = registry.text();
    assert!(text.contains("adds_total{name=\"a\"} 2\n") && !text.contains("never"), "{text}");
    assert!(text.contains("depth 2.5\n") && registry.text().contains("depth 3.5\n"), "{text}");
    registry.counter("adds_total", "", &["name"]).clear();
    assert!(!registry.text().contains("adds_total"));
}

#[test]
fn the_strict_reader_refuses_what_scrapers_would() {
    let head = "# HELP a b\n# TYPE a counter\n";
    for (page, rule) in [
        ("a 1\n".to_owned(), "before its TYPE"),
        ("# TYPE a counter\na 1\n".to_owned(), "must follow its HELP"),
        ("# HELP a b\n".to_owned(), "HELP without TYPE"),
        (head.to_owned(), "without series"),
        (format!("{head}a 1\n\n"), "no value"),
        (format!("{head}a 1"), "no end"),
        (format!("{head}b 1\n"), "another family"),
        (format!("{head}a_sum 1\n"), "another family"),
        (format!("{head}a 1\na 2\n"), "series is there twice"),
        (format!("{head}a 1\n{head}a{{x=\"y\"}} 1\n"), "family is there twice"),
        (format!("{head}a -1\n"), "never negative"),
        (format!("{head}a inf\n"), "malformed number"),
        (format!("{head}a{{x=\"y}} 1\n"), "open quote"),
        (format!("{head}a{{x=\"\\y\"}} 1\n"), "unknown escape"),
        (format!("{head}a{{x=\"y\",x=\"z\"}} 1\n"), "twice"),
        (format!("{head}a{{1x=\"y\"}} 1\n"), "malformed label"),
        (format!("{head}a{{x=\"y\"}}1\n"), "no space"),
        (format!("{head}a 1 now\n"), "malformed moment"),
    ] {
        let error = format::parse(&page).unwrap_err();
        assert!(error.contains(rule), "{page:?}: {error}");
    }
    let head = "# HELP h b\n# TYPE h histogram\n";
    for (samples, rule) in [
        ("h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 1\nh_count 1\n", "no _sum"),
        ("h_bucket{le=\"1\"} 1\nh_sum 1\nh_count 1\n", "+Inf"),
        ("h_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n", "must grow"),
        ("h_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 2\n", "holds all"),
        ("h_bucket 1\n", "another family"),
    ] {
        let error = format::parse(&format!("{head}{samples}")).unwrap_err();
        assert!(error.contains(rule), "{samples:?}: {error}");
    }
}
