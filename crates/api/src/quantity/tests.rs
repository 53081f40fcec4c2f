use super::*;
use proptest::prelude::*;

#[test]
fn canonical_forms() {
    let cases = [
        ("0", "0"),
        ("0Ki", "0"),
        ("1", "1"),
        ("+1", "1"),
        ("-1.5", "-1500m"),
        ("0.5", "500m"),
        ("100m", "100m"),
        ("1000m", "1"),
        ("1500", "1500"),
        ("1000", "1k"),
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("1000Ki", "1000Ki"),
        ("0.5Ki", "512"),
        ("1e3", "1e3"),
        ("1E6", "1e6"),
        ("12e2", "1200"),
        ("1e-3", "1e-3"),
        ("1E", "1E"),
        (".5", "500m"),
        ("5.", "5"),
        ("0.0000000001", "1n"),
        ("1.1Ki", "1126400m"),
        ("100E", "9223372036854775807"),
        ("123456789012345678901234567890", "9223372036854775807"),
    ];
    for (text, wanted) in cases {
        assert_eq!(Quantity::parse(text).unwrap().to_string(), wanted, "{text}");
    }
}

#[test]
fn bad_texts() {
    for text in ["", "abc", "1.2.3", "1x", "--1", "1 Gi", ".", "-"] {
        assert!(Quantity::parse(text).is_err(), "{text}");
    }
    assert_eq!(Quantity::parse("1KiB"), Err(QuantityError::Form));
    assert_eq!(Quantity::parse("1Kii"), Err(QuantityError::Suffix));
}

#[test]
fn values_round_up() {
    let cases =
        [("1.1", 2, 1100), ("100m", 1, 100), ("1u", 1, 1), ("-1.5", -1, -1500), ("1Gi", 1 << 30, 1000 << 30)];
    for (text, whole, milli) in cases {
        let quantity = Quantity::parse(text).unwrap();
        assert_eq!((quantity.value(), quantity.milli()), (whole, milli), "{text}");
    }
}

proptest! {
    #[test]
    fn printing_keeps_the_value(amount in any::<i32>(), suffix in prop::sample::select(
        vec!["n", "u", "m", "", "k", "M", "G", "Ki", "Mi", "Gi", "e3", "e-3"])) {
        let quantity = Quantity::parse(&format!("{amount}{suffix}")).unwrap();
        let again = Quantity::parse(&quantity.to_string()).unwrap();
        prop_assert_eq!(quantity, again);
        prop_assert_eq!(quantity.to_string(), again.to_string());
    }

    #[test]
    fn sums_follow_integers(a in -1_000_000i64..1_000_000, b in -1_000_000i64..1_000_000) {
        let (x, y) = (Quantity::from_milli(a), Quantity::from_milli(b));
        prop_assert_eq!((x + y).milli(), a + b);
        prop_assert_eq!((x - y).milli(), a - b);
        prop_assert_eq!(x.cmp(&y), a.cmp(&b));
    }
}
