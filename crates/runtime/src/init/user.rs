//! Who a process runs as: numbers from the specification, names from the image's /etc/passwd and /etc/group.

use crate::error::RuntimeError;
use crate::spec::ContainerPlan;

/// User and groups of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

/// Decides from the plan and the text of the image's passwd and group files.
pub(super) fn resolve(plan: &ContainerPlan, passwd: &str, group: &str) -> Result<Identity, RuntimeError> {
    let (image_user, image_group) = match plan.image_user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (plan.image_user.as_str(), ""),
    };
    let wanted = match plan.spec.user {
        Some(uid) => number(uid)?.to_string(),
        None => image_user.to_owned(),
    };
    let entry = lookup(passwd, if wanted.is_empty() { "0" } else { &wanted }, 7);
    let uid = match (&entry, wanted.parse::<u32>()) {
        (Some(entry), _) => field(entry, 2)?,
        (None, Ok(uid)) => uid,
        (None, Err(_)) if wanted.is_empty() => 0,
        (None, Err(_)) => return Err(RuntimeError::Invalid(format!("no user {wanted:?} in the image"))),
    };
    let gid = match plan.spec.group {
        Some(gid) => number(gid)?,
        None if plan.spec.user.is_none() && !image_group.is_empty() => group_number(group, image_group)?,
        None => entry.as_ref().map_or(Ok(0), |entry| field(entry, 3))?,
    };
    let mut groups = vec![gid];
    let name = entry.as_ref().map_or("", |entry| entry[0]);
    let group = if plan.spec.strict_groups { "" } else { group };
    for line in group.lines().map(|line| line.split(':').collect::<Vec<_>>()) {
        if line.len() >= 4 && !name.is_empty() && line[3].split(',').any(|member| member == name) {
            groups.push(field(&line, 2)?);
        }
    }
    for extra in &plan.spec.supplemental_groups {
        groups.push(number(*extra)?);
    }
    groups.sort_unstable();
    groups.dedup();
    let home = entry.map_or("/", |entry| if entry[5].is_empty() { "/" } else { entry[5] });
    Ok(Identity { uid, gid, groups, home: home.to_owned() })
}

fn number(id: i64) -> Result<u32, RuntimeError> {
    u32::try_from(id).map_err(|_| RuntimeError::Invalid(format!("{id} is no user or group number")))
}

/// The line whose name or number is `wanted`.
fn lookup<'a>(table: &'a str, wanted: &str, fields: usize) -> Option<Vec<&'a str>> {
    let mut lines =
        table.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|l| l.len() >= fields);
    let by_number = wanted.parse::<u32>().is_ok();
    lines.find(|line| if by_number { line[2] == wanted } else { line[0] == wanted })
}

fn group_number(table: &str, wanted: &str) -> Result<u32, RuntimeError> {
    match (lookup(table, wanted, 3), wanted.parse()) {
        (_, Ok(gid)) => Ok(gid),
        (Some(line), Err(_)) => field(&line, 2),
        (None, Err(_)) => Err(RuntimeError::Invalid(format!("no group {wanted:?} in the image"))),
    }
}

fn field(line: &[&str], index: usize) -> Result<u32, RuntimeError> {
    line[index]
        .parse()
        .map_err(|_| RuntimeError::Invalid(format!("malformed entry of {:?} in the image", line[0])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ContainerSpec;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlog:x:40:a,web\n";

    #[test]
    fn users_come_from_the_specification_then_the_image() {
        type Case<'a> = (&'a str, Option<i64>, Option<i64>, &'a [i64], (u32, u32, &'a [u32], &'a str));
        let cases: [Case<'_>; 7] = [
            ("", None, None, &[], (0, 0, &[0], "/root")),
            ("web", None, None, &[], (33, 34, &[34, 40], "/srv")),
            ("web:log", None, None, &[7], (33, 40, &[7, 40], "/srv")),
            ("1000", None, None, &[], (1000, 0, &[0], "/")),
            ("1000:1001", None, None, &[], (1000, 1001, &[1001], "/")),
            ("web", Some(5), None, &[], (5, 0, &[0], "/")),
            ("web:log", Some(33), Some(9), &[], (33, 9, &[9, 40], "/srv")),
        ];
        for (image_user, user, group, extra, (uid, gid, groups, home)) in cases {
            let spec = ContainerSpec {
                user,
                group,
                supplemental_groups: extra.to_vec(),
                ..ContainerSpec::default()
            };
            let plan = ContainerPlan { image_user: image_user.into(), spec, ..ContainerPlan::default() };
            let want = Identity { uid, gid, groups: groups.to_vec(), home: home.into() };
            assert_eq!(resolve(&plan, PASSWD, GROUP), Ok(want), "{image_user} {user:?}");
        }
        let plan = ContainerPlan { image_user: "nobody".into(), ..ContainerPlan::default() };
        assert!(resolve(&plan, PASSWD, GROUP).is_err());
        let spec =
            ContainerSpec { strict_groups: true, supplemental_groups: vec![7], ..ContainerSpec::default() };
        let plan = ContainerPlan { image_user: "web".into(), spec, ..ContainerPlan::default() };
        assert_eq!(resolve(&plan, PASSWD, GROUP).unwrap().groups, [7, 34]);
    }
}
