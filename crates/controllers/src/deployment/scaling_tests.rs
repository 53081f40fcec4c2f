//! A rollout as a game of counts: the decider against ReplicaSets that are late and pods that take their time.

use proptest::prelude::*;

use super::scaling::{Bounds, Size, new_size, old_sizes, proportional};

#[derive(Clone, Debug, Default)]
struct Set {
    wanted: i32,
    ready: i32,
    unready: i32,
    /// What the status says, which may be late.
    reported: i32,
}

impl Set {
    /// What the ReplicaSet controller does: pods that are not ready go first.
    fn sync(&mut self) {
        let pods = self.ready + self.unready;
        if pods < self.wanted {
            self.unready += self.wanted - pods;
        } else {
            let surplus = pods - self.wanted;
            let unready = surplus.min(self.unready);
            self.unready -= unready;
            self.ready -= surplus - unready;
        }
        self.reported = self.ready;
    }

    fn size(&self) -> Size {
        Size { replicas: self.wanted, available: self.reported, max_replicas: None }
    }
}

#[derive(Clone, Debug)]
enum Move {
    Plan,
    Sync(usize),
    Ready(usize),
    /// A new template: the new set becomes an old one.
    NewTemplate,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        4 => Just(Move::Plan),
        4 => (0..4usize).prop_map(Move::Sync),
        4 => (0..4usize).prop_map(Move::Ready),
        1 => Just(Move::NewTemplate),
    ];
    proptest::collection::vec(one, 0..60)
}

struct World {
    bounds: Bounds,
    /// The last one is the new one.
    sets: Vec<Set>,
}

impl World {
    fn play(&mut self, step: &Move) {
        let count = self.sets.len();
        match step {
            Move::Plan => self.plan(),
            Move::Sync(index) => self.sets[index % count].sync(),
            Move::Ready(index) => {
                let set = &mut self.sets[index % count];
                let ready = set.unready.min(1);
                set.unready -= ready;
                set.ready += ready;
            }
            Move::NewTemplate if count < 5 => self.sets.push(Set::default()),
            Move::NewTemplate => {}
        }
    }

    fn plan(&mut self) {
        let (new, old) = self.sets.split_last_mut().expect("there is a new set");
        let sizes: Vec<Size> = old.iter().map(Set::size).collect();
        let wanted = new_size(&self.bounds, new.wanted, &sizes);
        if wanted != new.wanted {
            new.wanted = wanted;
            return;
        }
        for (set, wanted) in old.iter_mut().zip(old_sizes(&self.bounds, &new.size(), &sizes)) {
            set.wanted = wanted;
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let wanted: i32 = self.sets.iter().map(|set| set.wanted).sum();
        let ready: i32 = self.sets.iter().map(|set| set.ready).sum();
        prop_assert!(wanted <= self.bounds.max_total(), "too many: {:?}", self.sets);
        prop_assert!(ready >= self.bounds.min_available(), "too few: {:?}", self.sets);
        prop_assert!(self.sets.iter().all(|set| set.wanted >= 0));
        Ok(())
    }

    fn is_done(&self) -> bool {
        let (new, old) = self.sets.split_last().expect("there is a new set");
        new.ready == self.bounds.replicas && old.iter().all(|set| set.ready + set.unready == 0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_rollout_keeps_its_bounds_and_ends(
        replicas in 1..12i32, max_surge in 0..5i32, max_unavailable in 0..5i32, moves in moves(),
    ) {
        let max_unavailable = if max_surge == 0 { max_unavailable.max(1) } else { max_unavailable }.min(replicas);
        let bounds = Bounds { replicas, max_surge, max_unavailable, rolling: true };
        let first = Set { wanted: replicas, ready: replicas, unready: 0, reported: replicas };
        let mut world = World { bounds, sets: vec![first, Set::default()] };
        for step in &moves {
            world.play(step);
            world.check()?;
        }
        let mut rounds = 0;
        while !world.is_done() {
            rounds += 1;
            prop_assert!(rounds < 500, "stuck: {:?}", world.sets);
            for index in 0..world.sets.len() {
                for step in [Move::Ready(index), Move::Sync(index), Move::Plan] {
                    world.play(&step);
                    world.check()?;
                }
            }
        }
    }

    #[test]
    fn resizing_shares_out_exactly_what_is_allowed(
        sizes in proptest::collection::vec(1..30i32, 2..5), replicas in 1..60i32, surge in 0..10i32,
    ) {
        let bounds = Bounds { replicas, max_surge: surge, max_unavailable: 1, rolling: true };
        let before: i32 = sizes.iter().sum();
        let sets: Vec<Size> = sizes.iter().map(|&n| Size { replicas: n, available: n, max_replicas: Some(before) }).collect();
        let after = proportional(&bounds, &sets, before);
        prop_assert_eq!(after.iter().sum::<i32>(), replicas + surge);
        prop_assert!(after.iter().all(|size| *size >= 0));
        let grows = replicas + surge >= before;
        let one_way = after.iter().zip(&sizes).all(|(a, b)| a == b || (a > b) == grows);
        prop_assert!(one_way);
    }
}
