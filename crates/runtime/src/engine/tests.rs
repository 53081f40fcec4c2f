use super::*;

#[test]
fn commands_follow_the_rules_of_entrypoint_and_cmd() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for (command, args, want) in
        [("", "", "entry cmd"), ("x", "", "x"), ("", "a b", "entry a b"), ("x y", "a", "x y a")]
    {
        let image = ImageInfo { entrypoint: words("entry"), cmd: words("cmd"), ..ImageInfo::default() };
        let spec = ContainerSpec {
            command: words(command),
            args: words(args),
            log_path: "c/0.log".into(),
            ..ContainerSpec::default()
        };
        let plan = plan_container("i".into(), spec, image, vec![], "/d".into()).unwrap();
        assert_eq!(plan.argv, words(want));
        assert_eq!(plan.stop_signal, 15);
    }
}

#[test]
fn environment_overrides_the_image() {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let image = ImageInfo { env: vec![pair("A", "1"), pair("B", "2")], ..ImageInfo::default() };
    let spec = ContainerSpec { env: vec![pair("A", "3")], log_path: "l".into(), ..ContainerSpec::default() };
    let plan = plan_container("i".into(), spec, image, vec![], "/d".into()).unwrap();
    assert_eq!(plan.env, [pair("B", "2"), pair("A", "3")]);
}

#[test]
fn logs_stay_below_their_folder() {
    for path in ["../x", "/etc/x", ""] {
        let spec = ContainerSpec { log_path: path.into(), ..ContainerSpec::default() };
        let refused = plan_container("i".into(), spec, ImageInfo::default(), vec![], "/d".into());
        assert!(matches!(refused, Err(RuntimeError::Invalid(_))), "{path:?}");
    }
}

#[test]
fn signals_have_names_and_numbers() {
    for (name, want) in [("SIGTERM", 15), ("usr1", 10), ("9", 9), ("SIGRTMIN+3", 37), ("SIGSYS", 31)] {
        assert_eq!(signal_number(name), Ok(want), "{name}");
    }
    assert!(signal_number("SIGNOTHING").is_err());
    assert!(signal_number("65").is_err());
}
