use std::cell::Cell;

use serde_json::{Value as Json, json};

use super::*;

fn environment() -> Env {
    Env::new()
        .with("object", Type::Dyn)
        .with("n", Type::Int)
        .with("s", Type::String)
        .with("list", Type::list(Type::Int))
}

fn evaluate(text: &str) -> Result<Json, String> {
    let object = json!({"metadata": {"name": "web", "labels": {"a.b/c": "d"}}, "spec": {"replicas": 3, "ports": [
        {"name": "x", "port": 80}, {"name": "y", "port": 443}], "none": null}});
    let list = json!([3, 1, 2]);
    let program = Program::compile(text, &environment())?;
    let bindings = Bindings {
        values: vec![
            ("object", Val::of(&object, &Type::Dyn)),
            ("n", Val::Int(5)),
            ("s", Val::text("Grüße")),
            ("list", Val::of(&list, &Type::list(Type::Int))),
        ],
        ..Bindings::default()
    };
    let value = program.evaluate(&bindings, &Cell::new(TOTAL_BUDGET)).map_err(|error| error.to_string())?;
    Ok(value.to_json().unwrap_or_else(|| json!("no JSON")))
}

#[test]
fn expressions_have_values() {
    let table = [
        // the language
        ("1 + 2 * 3 - 4 / 2", json!(5)),
        ("-n % 3", json!(-2)),
        ("7u + 0x10u", json!(23)),
        ("1.5e2 > 149.0 && 2 < 2.5", json!(true)),
        ("'a' + \"b\" + '''c'd''' + r'\\n' + '\\x41\\u00e9\\n'", json!("abc'd\\nAé\n")),
        ("true ? 'x' : 'y'", json!("x")),
        ("[1, 2][1] == 2 && {'a': 1}['a'] == 1 && {'a': 1}.a == 1", json!(true)),
        ("1 in [1, 2] && !('x' in {'y': 1}) && 'name' in object.metadata && dyn(1u) in {1: 2}", json!(true)),
        ("{'b': 1, 'a': [2]} == {'a': [2], 'b': 1} && object.spec != object.metadata", json!(true)),
        ("9223372036854775807 > 0 && -9223372036854775808 < 0", json!(true)),
        ("object.metadata.name // the name", json!("web")),
        ("has(object.spec.replicas) && !has(object.spec.missing)", json!(true)),
        ("object.spec.none == null", json!(true)),
        ("dyn(1) == dyn(1.0) && dyn(1) == dyn(1u)", json!(true)),
        ("type(1) == int && type('') == string && type({}) == map", json!(true)),
        // errors are absorbed by what decides
        ("object.x.y == 1 || true", json!(true)),
        ("false && 1 / 0 > 0", json!(false)),
        ("[1, 0].exists(x, 1 / x == 1)", json!(true)),
        // macros
        ("object.spec.ports.all(p, p.port > 79)", json!(true)),
        ("object.spec.ports.exists_one(p, p.name == 'x')", json!(true)),
        ("object.spec.ports.map(p, p.port)", json!([80, 443])),
        ("object.spec.ports.map(p, p.port > 100, p.name)", json!(["y"])),
        ("object.spec.ports.filter(p, p.port > 100).size()", json!(1)),
        ("{'a': 1, 'b': 2}.exists(k, k == 'b')", json!(true)),
        ("object.metadata.labels.all(k, v, k != v)", json!(true)),
        ("[5, 6].transformList(i, v, i * 10 + v)", json!([5, 16])),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 2)", json!({"b": 4})),
        ("{'a': 'x'}.transformMapEntry(k, v, {v: k})", json!({"x": "a"})),
        ("[3, 1, 2].sortBy(x, -x)", json!([3, 2, 1])),
        // optionals
        ("object.?spec.?missing.orValue(7)", json!(7)),
        ("object.metadata.labels[?'a.b/c'].hasValue()", json!(true)),
        ("optional.of(1).optMap(x, x + 1).value()", json!(2)),
        ("optional.none().or(optional.of(3)).value()", json!(3)),
        ("[?object.?missing, ?optional.of(1)]", json!([1])),
        ("{?'a': object.?missing, 'b': 1}", json!({"b": 1})),
        ("optional.ofNonZeroValue('').hasValue()", json!(false)),
        // strings
        ("s.size() == 5 && s.charAt(2) == 'ü' && s.indexOf('ß') == 3", json!(true)),
        ("'tacocat'.lastIndexOf('c') == 4 && 'abc'.indexOf('c', 1) == 2", json!(true)),
        ("'a,b,c'.split(',')", json!(["a", "b", "c"])),
        ("'a,b,c'.split(',', 2)", json!(["a", "b,c"])),
        ("['a', 'b'].join('-') + 'xyz'.substring(1, 2)", json!("a-by")),
        ("'aXbX'.replace('X', '-', 1) + ' t '.trim()", json!("a-bXt")),
        (
            "'%s is %d, %.2f, %x, %s%%'.format(['it', 3, 1.5, 255, [1, 'a']])",
            json!("it is 3, 1.50, ff, [1, a]%"),
        ),
        ("'abc123'.matches('^[a-z]+[0-9]+$') && 'a1b22'.findAll('[0-9]+') == ['1', '22']", json!(true)),
        ("'abc'.upperAscii().lowerAscii() == 'abc'", json!(true)),
        // lists and sets
        ("list.sum() + list.max() - list.min()", json!(8)),
        ("list.isSorted() || list.sort().isSorted()", json!(true)),
        ("[[dyn(1)], [dyn(2), dyn([3])]].flatten()", json!([1, 2, [3]])),
        ("[1, 1, 2].distinct().reverse() + lists.range(2)", json!([2, 1, 0, 1])),
        ("[1, 2, 3].slice(1, 3)", json!([2, 3])),
        ("[1, 2].first().value() == 1 && [].last().hasValue() == false", json!(true)),
        (
            "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && !sets.intersects([1], [2])",
            json!(true),
        ),
        // times
        ("timestamp('2024-02-29T12:30:45Z').getFullYear() == 2024", json!(true)),
        ("timestamp('2024-02-29T23:30:00Z').getHours('+02:00')", json!(1)),
        ("duration('1h30m').getMinutes() == 90 && string(duration('1.5s')) == '1.5s'", json!(true)),
        (
            "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('24h')",
            json!(true),
        ),
        // Kubernetes' own
        (
            "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(1).compareTo(quantity('1.5')) == 0",
            json!(true),
        ),
        ("isQuantity('1x') || quantity('50k').asInteger() == 50000", json!(true)),
        ("url('https://a.b:80/p?q=1').getHostname() + url('https://a.b:80/p').getPort()", json!("a.b80")),
        ("url('https://x/p?q=1&q=2').getQuery()['q']", json!(["1", "2"])),
        ("isURL('/x') && !isURL('x y')", json!(true)),
        ("ip('192.168.0.1').family() == 4 && ip('::1').isLoopback() && !isIP('1.2.3')", json!(true)),
        (
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && !cidr('10.0.0.0/8').containsCIDR('11.0.0.0/16')",
            json!(true),
        ),
        ("string(cidr('10.1.2.3/8').masked())", json!("10.0.0.0/8")),
        ("semver('1.2.3').isLessThan(semver('1.10.0')) && semver('v1.2', true).minor() == 2", json!(true)),
        ("semver('1.0.0-rc.1').compareTo(semver('1.0.0'))", json!(-1)),
        ("format.dns1123Label().validate('a_b').hasValue() && !format.named('nope').hasValue()", json!(true)),
        ("jsonpatch.escapeKey('a/b~c')", json!("a~1b~0c")),
    ];
    let wrong: Vec<_> = table.into_iter().map(|(text, want)| (text, evaluate(text), Ok(want))).collect();
    let wrong: Vec<_> = wrong.into_iter().filter(|(_, got, want)| got != want).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn evaluation_fails_with_a_reason() {
    let table = [
        ("object.spec.missing == 1", "no such key: missing"),
        ("1 / (n - 5) == 0", "division by zero"),
        ("9223372036854775807 + n > 0", "integer overflow"),
        ("list[3] == 0", "index out of bounds: 3"),
        ("object.metadata.name.spec == 1", "no such overload"),
        ("object.metadata + 1 == 2", "no such overload"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("int('x') == 1", "type conversion error from 'string' to 'int'"),
        (
            "lists.range(30).map(a, lists.range(99999)).size()",
            "operation cancelled: actual cost limit exceeded",
        ),
        (
            "lists.range(99).all(x, lists.range(99).all(y, 'x'.matches('x')))",
            "operation cancelled: actual cost limit exceeded",
        ),
        (
            "lists.range(1000).all(a, lists.range(1000).all(b, lists.range(1000).all(c, true)))",
            "operation cancelled: actual cost limit exceeded",
        ),
    ];
    for (text, want) in table {
        assert_eq!(evaluate(text), Err(want.to_owned()), "{text}");
    }
}

struct Spec;

impl Structure for Spec {
    fn name(&self) -> &str {
        "Spec"
    }

    fn field(&self, name: &str) -> Option<Type> {
        match name {
            "replicas" => Some(Type::Int),
            "since" => Some(Type::Timestamp),
            "my-field" => Some(Type::String),
            _ => None,
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_evaluation() {
    let spec: std::sync::Arc<dyn Structure> = std::sync::Arc::new(Spec);
    let env = environment().with("spec", Type::Struct(std::sync::Arc::clone(&spec))).constructing(spec);
    let table = [
        ("spec.replicas > 1 && spec.my__dash__field == 'x'", ""),
        ("spec == null || Spec{replicas: 1}.replicas == 1", ""),
        ("missing > 1", "1:1: undeclared reference to 'missing' (in container '')"),
        ("spec.missing", "1:5: undefined field 'missing'"),
        ("spec.replicas + 'a'", "1:15: found no matching overload for '_+_' applied to '(int, string)'"),
        ("spec.replicas == 'a'", "1:15: found no matching overload for '_==_' applied to '(int, string)'"),
        ("s.frobnicate()", "1:2: undeclared reference to 'frobnicate' (in container '')"),
        ("s.startsWith(1)", "1:2: found no matching overload for 'startsWith' applied to 'string.(int)'"),
        ("n.foo", "1:2: type 'int' does not support field selection"),
        ("[1, 'a']", "1:5: expected type 'int' but found 'string'"),
        (
            "n.all(x, true)",
            "1:1: expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("list.all(x, x)", "1:13: expected type 'bool' but found 'int'"),
        (
            "Spec{replicas: 'x'}",
            "1:16: expected type of field 'replicas' is 'int' but provided type is 'string'",
        ),
        ("Other{}", "1:1: undeclared reference to 'Other' (in container '')"),
        ("... [] bad expression", "Syntax error"),
        ("1 +", "Syntax error: mismatched input '<EOF>'"),
        ("'abc", "Syntax error: unterminated string"),
        ("if", "reserved identifier: if"),
    ];
    for (text, want) in table {
        let got = Program::compile(text, &env).err().unwrap_or_default();
        let first = got.lines().next().unwrap_or_default();
        assert!(if want.is_empty() { got.is_empty() } else { first.contains(want) }, "{text}: {got}");
    }
    let shown = Program::compile("true &&\n  missing", &env).unwrap_err();
    assert_eq!(
        shown,
        "ERROR: <input>:2:3: undeclared reference to 'missing' (in container '')\n |   missing\n | ..^"
    );
    let gives = |text: &str, ty: &Type| Program::compile(text, &env).unwrap().gives(ty);
    assert!(gives("spec.replicas > 0", &Type::Bool) && gives("[]", &Type::list(Type::Int)));
    assert!(!gives("1", &Type::Bool) && !gives("object.x", &Type::Bool));
}

#[test]
fn typed_data_becomes_typed_values() {
    let data = json!({"since": "2024-01-01T00:00:00Z", "replicas": 1});
    let ty = Type::Struct(std::sync::Arc::new(Spec));
    let env = Env::new().with("spec", ty.clone());
    let program =
        Program::compile("spec.since.getFullYear() == 2024 && !has(spec.my__dash__field)", &env).unwrap();
    let bindings = Bindings { values: vec![("spec", Val::of(&data, &ty))], ..Bindings::default() };
    assert!(matches!(program.evaluate(&bindings, &Cell::new(TOTAL_BUDGET)), Ok(Val::Bool(true))));
}

#[test]
fn variables_are_evaluated_when_they_are_asked_for() {
    let env = Env::new().with("variables", Type::Dyn);
    let bad = Program::compile("1 / 0", &env).unwrap();
    let good = Program::compile("20 + 1", &env).unwrap();
    let double = Program::compile("variables.good * 2", &env).unwrap();
    let lazy = vec![("bad", &bad), ("good", &good), ("double", &double)];
    let bindings = Bindings { lazy, ..Bindings::default() };
    let run = |text: &str| {
        let program = Program::compile(text, &env).unwrap();
        program.evaluate(&bindings, &Cell::new(TOTAL_BUDGET)).map(|value| value.to_json().unwrap())
    };
    assert_eq!(run("variables.double"), Ok(json!(42)));
    let failed = run("variables.bad").unwrap_err().to_string();
    assert_eq!(failed, "composited variable \"bad\" fails to evaluate: division by zero");
}

#[test]
fn the_authorizer_is_asked_by_whoever_evaluates() {
    let env = Env::new().with("authorizer", Type::Opaque("kubernetes.authorization.Authorizer"));
    let text = "authorizer.group('apps').resource('deployments').namespace('n').check('create').allowed()";
    let program = Program::compile(text, &env).unwrap();
    let authorizer = || Val::Opaque(std::sync::Arc::new(Opaque::Authorizer(String::new(), Box::default())));
    let budget = Cell::new(TOTAL_BUDGET);
    let bindings = Bindings { values: vec![("authorizer", authorizer())], ..Bindings::default() };
    let Err(Error::Need(check)) = program.evaluate(&bindings, &budget) else { panic!("it must ask") };
    assert_eq!(
        (check.verb.as_str(), check.resource.as_str(), check.namespace.as_str()),
        ("create", "deployments", "n")
    );
    let decisions = [(*check, Decision { allowed: true, ..Decision::default() })];
    let bindings =
        Bindings { values: vec![("authorizer", authorizer())], decisions: &decisions, ..Bindings::default() };
    assert!(matches!(program.evaluate(&bindings, &budget), Ok(Val::Bool(true))));
}

#[test]
fn deep_nesting_is_refused() {
    let deep = format!("{}1{}", "(".repeat(500), ")".repeat(500));
    assert!(Program::compile(&deep, &Env::new()).unwrap_err().contains("recursion limit"));
    let bangs = format!("{}true", "!".repeat(5000));
    assert!(Program::compile(&bangs, &Env::new()).unwrap_err().contains("recursion limit"));
}

#[test]
fn objects_can_be_made() {
    let env = Env::new().with_open_objects();
    let text = "Object{spec: Object.spec{replicas: 2, list: [Object.spec.list{a: 'b'}]}, metadata: Object.metadata{labels: {'x': 'y'}}}";
    let program = Program::compile(text, &env).unwrap();
    let value = program.evaluate(&Bindings::default(), &Cell::new(TOTAL_BUDGET)).unwrap();
    let want = json!({"spec": {"replicas": 2, "list": [{"a": "b"}]}, "metadata": {"labels": {"x": "y"}}});
    assert_eq!(value.to_json(), Some(want));
    assert_eq!(value.check_places(), Ok(()));
    let wrong = Program::compile("Object{spec: Object.status{}}", &env).unwrap();
    let wrong = wrong.evaluate(&Bindings::default(), &Cell::new(TOTAL_BUDGET)).unwrap().check_places();
    assert!(
        wrong.unwrap_err().starts_with("unexpected type name \"Object.status\", expected \"Object.spec\"")
    );
    assert_eq!(program.result.to_string(), "Object");
}
