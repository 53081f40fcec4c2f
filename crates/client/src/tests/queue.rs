use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::metrics::Metrics;
use proptest::prelude::*;

use crate::{QueueMeter, SystemClock, WorkQueue};

#[test]
fn a_key_waits_once_and_comes_back_when_added_during_its_work() {
    let mut queue = WorkQueue::new(1);
    queue.add(0, "a");
    queue.add(0, "a");
    assert_eq!(queue.pop(Duration::ZERO, |_| true), Some((0, "a")));
    assert_eq!(queue.pop(Duration::ZERO, |_| true), None);
    queue.add(0, "a");
    assert_eq!(queue.pop(Duration::ZERO, |_| true), None, "it is being worked on");
    queue.done(0, &"a");
    assert_eq!(queue.pop(Duration::ZERO, |_| true), Some((0, "a")));
}

#[test]
fn lanes_take_turns() {
    let mut queue = WorkQueue::new(2);
    for key in ["a", "b", "c"] {
        queue.add(0, key);
    }
    queue.add(1, "x");
    let order: Vec<&str> =
        std::iter::from_fn(|| queue.pop(Duration::ZERO, |_| true)).map(|(_, key)| key).collect();
    assert_eq!(order, ["a", "x", "b", "c"]);
}

#[test]
fn failures_wait_longer_and_longer_until_a_success() {
    let mut queue = WorkQueue::new(1);
    let mut now = Duration::ZERO;
    let mut delays = Vec::new();
    for _ in 0..3 {
        delays.push(queue.add_failed(0, "a", now).as_millis());
        now = queue.next_due().unwrap();
        assert_eq!(queue.pop(now, |_| true), Some((0, "a")));
        queue.done(0, &"a");
    }
    assert_eq!(delays, [5, 10, 20]);
    queue.succeeded(0, &"a");
    assert_eq!(queue.add_failed(0, "a", now).as_millis(), 5);
}

#[test]
fn the_earliest_of_several_delays_counts() {
    let mut queue = WorkQueue::new(1);
    queue.add_at(0, "a", Duration::from_secs(9));
    queue.add_at(0, "a", Duration::from_secs(3));
    queue.add_at(0, "a", Duration::from_secs(5));
    assert_eq!(queue.next_due(), Some(Duration::from_secs(3)));
    assert_eq!(queue.pop(Duration::from_secs(3), |_| true), Some((0, "a")));
    assert_eq!(queue.next_due(), None);
}

#[derive(Clone, Debug)]
enum Step {
    Add(usize, u8),
    Delay(usize, u8, u8),
    Fail(usize, u8),
    Pop,
    Done(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3usize, 0..4u8).prop_map(|(lane, key)| Step::Add(lane, key)),
        (0..3usize, 0..4u8, 0..50u8).prop_map(|(lane, key, ms)| Step::Delay(lane, key, ms)),
        (0..3usize, 0..4u8).prop_map(|(lane, key)| Step::Fail(lane, key)),
        Just(Step::Pop),
        (0..8usize).prop_map(Step::Done),
    ]
}

proptest! {
    /// No key is worked on twice at the same time, and whatever was added is given out in the end.
    #[test]
    fn serial_per_key_and_nothing_lost(steps in proptest::collection::vec(step(), 1..80)) {
        let mut queue = WorkQueue::new(3);
        let mut now = Duration::ZERO;
        let mut working: Vec<(usize, u8)> = Vec::new();
        let mut owed = BTreeSet::new();
        let mut popped = BTreeSet::new();
        for step in steps {
            now += Duration::from_millis(1);
            if let Step::Add(lane, key) | Step::Delay(lane, key, _) | Step::Fail(lane, key) = step {
                popped.remove(&(lane, key));
            }
            match step {
                Step::Add(lane, key) => { queue.add(lane, key); owed.insert((lane, key)); }
                Step::Delay(lane, key, ms) => {
                    queue.add_at(lane, key, now + Duration::from_millis(ms.into()));
                    owed.insert((lane, key));
                }
                Step::Fail(lane, key) => { queue.add_failed(lane, key, now); owed.insert((lane, key)); }
                Step::Pop => if let Some(entry) = queue.pop(now, |_| true) {
                    prop_assert!(!working.contains(&entry));
                    working.push(entry);
                    popped.insert(entry);
                },
                Step::Done(index) => if !working.is_empty() {
                    let (lane, key) = working.remove(index % working.len());
                    queue.done(lane, &key);
                },
            }
        }
        let mut served = BTreeSet::new();
        for (lane, key) in working.drain(..) {
            queue.done(lane, &key);
        }
        now += Duration::from_secs(1000);
        while let Some((lane, key)) = queue.pop(now, |_| true) {
            served.insert((lane, key));
            queue.done(lane, &key);
        }
        prop_assert!(owed.iter().all(|entry| served.contains(entry) || popped.contains(entry)));
        prop_assert_eq!(queue.next_due(), None);
    }
}

#[test]
fn a_metered_queue_tells_how_long_keys_wait_and_are_worked_on() {
    let page = Metrics::default();
    let meter = QueueMeter::new(&page, Arc::new(SystemClock::default()), "replicaset");
    let mut queue = WorkQueue::metered([meter]);
    for key in ["a", "b", "b"] {
        queue.add(0, key);
    }
    queue.pop(Duration::ZERO, |_| true);
    queue.add_failed(0, "a", Duration::ZERO);
    let value = |name: &str| {
        let samples = api::metrics::format::parse(&page.text()).unwrap();
        let found = samples.into_iter().find(|sample| sample.name == name);
        let found = found.unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(found.labels["name"], "replicaset");
        found.value
    };
    assert_eq!(value("workqueue_adds_total"), 2.0, "a key that waits is not added again");
    assert_eq!(value("workqueue_depth"), 1.0);
    assert_eq!(value("workqueue_retries_total"), 1.0);
    assert_eq!(value("workqueue_queue_duration_seconds_count"), 1.0);
    std::thread::sleep(Duration::from_millis(2));
    assert!(value("workqueue_unfinished_work_seconds") > 0.001);
    assert!(value("workqueue_longest_running_processor_seconds") > 0.001);
    queue.done(0, &"a");
    assert_eq!(value("workqueue_work_duration_seconds_count"), 1.0);
    assert_eq!(value("workqueue_unfinished_work_seconds"), 0.0);
}
