//! Quantities of resources as whole numbers (API reference, "Quantity"): always rounded up, saturating.

/// Thousandths, as cpu is counted. `None` when the text is no quantity.
pub(crate) fn milli(text: &str) -> Option<i64> {
    parse(text, 1000)
}

/// Whole units, as bytes and everything else are counted.
pub(crate) fn units(text: &str) -> Option<i64> {
    parse(text, 1)
}

/// The value times `scale`, rounded up.
fn parse(text: &str, scale: i128) -> Option<i64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | '+' | '-')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let fraction = &fraction[..fraction.len().min(12)];
    let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (multiplier, divisor) = factor(suffix)?;
    let divisor = divisor * 10i128.pow(u32::try_from(fraction.len()).ok()?);
    let scaled = mantissa.saturating_mul(multiplier).saturating_mul(scale);
    let rounded = if negative { -(scaled / divisor) } else { (scaled.saturating_add(divisor - 1)) / divisor };
    Some(i64::try_from(rounded).unwrap_or(if negative { i64::MIN } else { i64::MAX }))
}

/// (multiplier, divisor) of a suffix.
fn factor(suffix: &str) -> Option<(i128, i128)> {
    let binary = |power: u32| Some((1i128 << (10 * power), 1));
    let decimal = |power: u32| Some((10i128.pow(power), 1));
    match suffix {
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "" => Some((1, 1)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10i128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.abs() <= 18)?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_rounded_up() {
        let cases = [
            ("1", Some(1000), Some(1)),
            ("100m", Some(100), Some(1)),
            ("0.5", Some(500), Some(1)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("128Mi", Some(134_217_728_000), Some(134_217_728)),
            ("2k", Some(2_000_000), Some(2000)),
            ("1e3", Some(1_000_000), Some(1000)),
            ("25e-1", Some(2500), Some(3)),
            ("1n", Some(1), Some(1)),
            ("-2", Some(-2000), Some(-2)),
            (".5", Some(500), Some(1)),
            ("100E", Some(i64::MAX), Some(i64::MAX)),
            ("", None, None),
            ("x", None, None),
            ("1Zi", None, None),
            ("1.2.3", None, None),
        ];
        for (text, thousandths, whole) in cases {
            assert_eq!((milli(text), units(text)), (thousandths, whole), "{text}");
        }
    }
}
