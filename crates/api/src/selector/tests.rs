use super::*;
use serde_json::json;

fn labels(text: &str) -> BTreeMap<String, String> {
    text.split(',').filter_map(|p| p.split_once('=')).map(|(k, v)| (k.into(), v.into())).collect()
}

#[test]
fn label_selectors_match_as_documented() {
    let cases = [
        ("", "a=b", true),
        ("a=b", "a=b", true),
        ("a==b", "a=c", false),
        ("a=", "a=", true),
        ("a!=b", "", true),
        ("a!=b", "a=b", false),
        ("a in (b, c)", "a=c", true),
        ("a in (b,c),d", "a=c", false),
        ("a notin (b,c)", "x=y", true),
        ("a notin (b)", "a=b", false),
        ("a", "a=1", true),
        ("!a", "a=1", false),
        ("!a", "b=1", true),
        ("a>5", "a=6", true),
        ("a<5", "a=6", false),
        ("example.com/in in (in)", "example.com/in=in", true),
        ("a in (,b)", "a=", true),
    ];
    for (selector, set, wanted) in cases {
        let parsed = LabelSelector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
        assert_eq!(parsed.matches(&labels(set)), wanted, "{selector} on {set}");
        assert_eq!(LabelSelector::parse(&parsed.to_string()).unwrap(), parsed, "{selector} printed");
    }
}

#[test]
fn bad_label_selectors_say_why() {
    let cases = [
        ("a=b,", "expected: identifier after ','"),
        ("a b", "expected: in, notin, =, ==, !=, gt, lt"),
        ("a in b", "expected: '('"),
        ("a in (b", "expected: ',', or ')'"),
        (",a", "expected: !, identifier"),
        ("a=b=c", "expected: ',' or 'end of string'"),
        ("-a=b", "name part must consist of"),
        ("a=-b", "a valid label must be"),
        ("a>x", "must be an integer"),
        ("!a=b", "expected: ','"),
    ];
    for (selector, part) in cases {
        let error = LabelSelector::parse(selector).unwrap_err();
        assert!(error.contains(part), "{selector}: {error}");
    }
}

#[test]
fn label_selectors_from_json() {
    let value = json!({"matchLabels": {"app": "x"}, "matchExpressions": [
        {"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "no", "operator": "DoesNotExist"}]});
    let selector = LabelSelector::from_value(&value).unwrap();
    assert!(selector.matches(&labels("app=x,tier=a")));
    assert!(!selector.matches(&labels("app=x,tier=a,no=1")));
    assert!(!selector.matches(&labels("app=x")));
    assert!(LabelSelector::from_value(&json!({})).unwrap().matches(&labels("q=r")));
    assert!(!LabelSelector::from_value(&Value::Null).unwrap().matches(&labels("")));
    let bad = json!({"matchExpressions": [{"key": "a", "operator": "Maybe"}]});
    assert_eq!(
        LabelSelector::from_value(&bad).unwrap_err(),
        "\"Maybe\" is not a valid label selector operator"
    );
}

#[test]
fn field_selectors() {
    let selector = FieldSelector::parse("metadata.name=x,status.phase!=Running,a==b\\,c").unwrap();
    assert_eq!(selector.exact("metadata.name"), Some("x"));
    let wanted = ("a".to_owned(), "b,c".to_owned(), true);
    assert_eq!(selector.terms[2], wanted);
    let value = |path: &str| match path {
        "metadata.name" => "x",
        "a" => "b,c",
        _ => "Pending",
    };
    assert!(selector.matches_with(value));
    assert_eq!(FieldSelector::parse("bad").unwrap_err(), "invalid selector: 'bad'; can't understand 'bad'");
    assert!(FieldSelector::parse("").unwrap().terms.is_empty());
}
