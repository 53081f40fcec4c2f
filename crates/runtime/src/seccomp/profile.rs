//! Profiles in files, in the format of the OCI runtime specification ("Seccomp").
//!
//! A filter has one action for what it lists and one for all else. A profile with more actions becomes several filters: the
//! kernel asks all of them and takes the strictest answer.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use serde::Deserialize;

use super::names;
use crate::error::RuntimeError;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Calls>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Calls {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters of a profile, in the order in which they are to be loaded.
///
/// # Errors
/// Invalid for text that is no profile, or asks for what can't be done.
pub fn profile_seccomp(json: &[u8]) -> Result<Vec<Vec<u8>>, RuntimeError> {
    let wrong = |why: String| RuntimeError::Invalid(format!("seccomp profile: {why}"));
    let profile: Profile = serde_json::from_slice(json).map_err(|e| wrong(e.to_string()))?;
    let default = action(&profile.default_action, profile.default_errno_ret).map_err(wrong)?;
    let mut listed = Rules::new();
    let mut groups: Vec<(SeccompAction, Rules)> = Vec::new();
    for calls in &profile.syscalls {
        let action = action(&calls.action, calls.errno_ret).map_err(wrong)?;
        let rule = rule(calls.args.as_deref().unwrap_or_default()).map_err(wrong)?;
        // Names that the machine does not know can't be called either.
        for number in calls.names.iter().filter_map(|name| names::number(name)) {
            add(&mut listed, number, rule.clone());
            if action == SeccompAction::Allow {
                continue;
            }
            let index = groups.iter().position(|(other, _)| *other == action).unwrap_or_else(|| {
                groups.push((action.clone(), Rules::new()));
                groups.len() - 1
            });
            add(&mut groups[index].1, number, rule.clone());
        }
    }
    // The one that refuses most comes last: the others have to be loaded under it.
    let mut filters = Vec::new();
    for (action, rules) in groups {
        filters.push(filter(rules, SeccompAction::Allow, action).map_err(wrong)?);
    }
    if default != SeccompAction::Allow {
        filters.push(filter(listed, default, SeccompAction::Allow).map_err(wrong)?);
    }
    Ok(filters)
}

/// A call that is listed without conditions is listed whatever else is said of it.
fn add(rules: &mut Rules, number: i64, rule: Option<SeccompRule>) {
    match (rule, rules.get_mut(&number)) {
        (None, _) => drop(rules.insert(number, Vec::new())),
        (Some(rule), None) => drop(rules.insert(number, vec![rule])),
        (Some(rule), Some(list)) if !list.is_empty() => list.push(rule),
        (Some(_), Some(_)) => {}
    }
}

fn filter(rules: Rules, otherwise: SeccompAction, listed: SeccompAction) -> Result<Vec<u8>, String> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| e.to_string())?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch).map_err(|e| e.to_string())?;
    let program: BpfProgram = filter.try_into().map_err(|e: seccompiler::BackendError| e.to_string())?;
    Ok(super::bytes(&program))
}

fn action(name: &str, errno: Option<u32>) -> Result<SeccompAction, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => SeccompAction::Allow,
        "SCMP_ACT_ERRNO" => SeccompAction::Errno(errno.unwrap_or(libc::EPERM.cast_unsigned())),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => SeccompAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => SeccompAction::KillProcess,
        "SCMP_ACT_LOG" => SeccompAction::Log,
        "SCMP_ACT_TRAP" => SeccompAction::Trap,
        other => return Err(format!("action {other:?} is not supported")),
    })
}

/// All conditions must hold; `None` for none.
fn rule(arguments: &[Argument]) -> Result<Option<SeccompRule>, String> {
    if arguments.is_empty() {
        return Ok(None);
    }
    let condition = |a: &Argument| {
        let (operator, value) = match a.op.as_str() {
            "SCMP_CMP_EQ" => (SeccompCmpOp::Eq, a.value),
            "SCMP_CMP_NE" => (SeccompCmpOp::Ne, a.value),
            "SCMP_CMP_LT" => (SeccompCmpOp::Lt, a.value),
            "SCMP_CMP_LE" => (SeccompCmpOp::Le, a.value),
            "SCMP_CMP_GT" => (SeccompCmpOp::Gt, a.value),
            "SCMP_CMP_GE" => (SeccompCmpOp::Ge, a.value),
            "SCMP_CMP_MASKED_EQ" => (SeccompCmpOp::MaskedEq(a.value), a.value_two),
            other => return Err(format!("comparison {other:?} is not supported")),
        };
        SeccompCondition::new(a.index, SeccompCmpArgLen::Qword, operator, value).map_err(|e| e.to_string())
    };
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    SeccompRule::new(conditions).map(Some).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(json: &str) -> Result<usize, RuntimeError> {
        profile_seccomp(json.as_bytes()).map(|filters| filters.len())
    }

    #[test]
    fn each_action_beside_the_default_has_a_filter() {
        let calls = |action: &str| format!(r#"{{"names": ["mkdir", "unheard_of"], "action": "{action}"}}"#);
        let profile = |default: &str, calls: &[String]| {
            format!(r#"{{"defaultAction": "{default}", "syscalls": [{}]}}"#, calls.join(","))
        };
        let (allow, errno) = ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO");
        assert_eq!(count(&profile(allow, &[])), Ok(0), "everything is allowed");
        assert_eq!(count(&profile(allow, &[calls(errno), calls("SCMP_ACT_KILL")])), Ok(2));
        assert_eq!(count(&profile(errno, &[calls(allow)])), Ok(1));
        assert_eq!(count(&profile(errno, &[calls(allow), calls("SCMP_ACT_LOG")])), Ok(2));
        for bad in [profile("SCMP_ACT_NOTIFY", &[]), profile(allow, &[calls("X")]), "{}".into(), "x".into()] {
            assert!(matches!(count(&bad), Err(RuntimeError::Invalid(_))), "{bad}");
        }
        let args = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["socket"], "action":
            "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(count(args), Ok(1));
        assert!(count(&args.replace("CMP_EQ", "CMP_XX")).is_err());
    }
}
