use super::*;

fn machine() -> Machine {
    let measure = |available, total| Measure { available, total };
    Machine {
        memory: measure(4 << 30, 8 << 30),
        disk: measure(50 << 30, 100 << 30),
        inodes: measure(1000, 2000),
        image_disk: measure(50 << 30, 100 << 30),
        image_inodes: measure(1000, 2000),
        pids: measure(30_000, 32_768),
    }
}

fn threshold(text: &str) -> Threshold {
    text.parse::<settings::Thresholds>().unwrap().0.swap_remove(0)
}

#[test]
fn thresholds_are_met() {
    let usual = Rules::usual().thresholds;
    assert!(met(&machine(), &usual).is_empty());
    let mut low = machine();
    low.memory.available = 99 << 20;
    low.inodes.available = 19;
    let names: Vec<_> = met(&low, &usual).iter().map(|t| t.signal.name()).collect();
    assert_eq!(names, ["memory.available", "nodefs.inodesFree"]);
    low.memory.total = 0;
    assert_eq!(met(&low, &usual).len(), 1, "what cannot be measured is no pressure");
}

#[test]
fn conditions_stay_for_a_while_and_soft_thresholds_wait() {
    let at = |seconds: i64| Timestamp::from_second(1_800_000_000 + seconds).unwrap();
    let soft = Threshold { grace: Some(Duration::from_secs(90)), ..threshold("memory.available<2Gi") };
    let hard = threshold("memory.available<1Gi");
    let rules = Rules { thresholds: vec![soft.clone(), hard.clone()], ..Rules::usual() };
    let with = |available: u64| Machine { memory: Measure { available, total: 8 << 30 }, ..machine() };
    // (second, GiB of memory, condition shown, what is due)
    let table: [(i64, u64, bool, Option<&Threshold>); 10] = [
        (0, 3, false, None),
        (10, 1, true, None),
        (99, 1, true, None),
        (100, 1, true, Some(&soft)),
        (110, 0, true, Some(&hard)),
        (120, 2, true, None),
        (130, 1, true, None),
        (219, 1, true, None),
        (300, 3, true, None),
        (519, 3, false, None),
    ];
    let mut history = History::default();
    for (second, gib, shown, due) in table {
        let verdict = judge(&with(gib << 30), &rules, &mut history, at(second));
        let want = if shown { vec!["MemoryPressure".to_owned()] } else { Vec::new() };
        assert_eq!((verdict.conditions, verdict.due.as_ref()), (want, due), "second {second}");
    }
}

#[test]
fn the_pod_that_goes() {
    let pod = |uid: &str, priority, used: u64, requested: u64| Candidate {
        uid: uid.into(),
        priority,
        memory_used: used,
        memory_requested: requested,
        pids: used,
        ..Candidate::default()
    };
    let memory = threshold("memory.available<100Mi");
    let pids = threshold("pid.available<1");
    // (pods, threshold, who goes)
    let table: [(Vec<Candidate>, &Threshold, Option<&str>); 6] = [
        (vec![], &memory, None),
        (vec![pod("within", 0, 5, 9), pod("over", 100, 9, 5)], &memory, Some("over")),
        (vec![pod("dear", 100, 90, 5), pod("cheap", 0, 9, 5)], &memory, Some("cheap")),
        (vec![pod("small", 0, 6, 5), pod("large", 0, 60, 50)], &memory, Some("large")),
        (vec![pod("system", 2_000_001_000, 60, 0), pod("idle", 0, 0, 0)], &memory, None),
        (vec![pod("few", 0, 3, 0), pod("many", 0, 30, 0)], &pids, Some("many")),
    ];
    for (pods, threshold, want) in table {
        let found = choose(threshold, &machine(), &Rules::usual(), &pods);
        assert_eq!(found.as_ref().map(|(uid, _)| uid.as_str()), want, "{pods:?}");
    }
    let (_, failure) = choose(&memory, &machine(), &Rules::usual(), &[pod("a", 0, 9, 5)]).unwrap();
    let want = "The node was low on resource: memory. Threshold quantity: 104857600, available: 4294967296. \
                The pod was using 9, request is 5.";
    assert_eq!(
        (failure.reason.as_str(), failure.message.as_str(), failure.disruption),
        ("Evicted", want, true)
    );
}
