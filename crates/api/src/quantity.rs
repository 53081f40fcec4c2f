//! Resource quantities (`100m`, `1.5Gi`): exact fixed-point numbers with the suffix family they were written in.
//!
//! A value is kept in billionths, the finest step that Kubernetes keeps; finer input is rounded away from zero.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};

#[cfg(test)]
mod tests;

const NANOS: i128 = 1_000_000_000;
/// The largest magnitude, 2^63 - 1, in billionths.
const MAX: i128 = i64::MAX as i128 * NANOS;

/// The suffix family a quantity is printed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// `n u m "" k M G T P E`
    #[default]
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`
    BinarySi,
    /// `e3`, `E6`
    DecimalExponent,
}

/// An exact quantity. Equality and order look at the value alone, not at the format.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Form,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// A whole number, such as a count.
    pub fn whole(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANOS, format: Format::DecimalSi }
    }

    /// A number of bytes, printed with binary suffixes.
    pub fn bytes(value: i64) -> Self {
        Self { nanos: i128::from(value) * NANOS, format: Format::BinarySi }
    }

    /// Thousandths, such as milli-CPUs.
    pub fn from_milli(value: i64) -> Self {
        Self { nanos: i128::from(value) * 1_000_000, format: Format::DecimalSi }
    }

    /// Reads a quantity; magnitudes over 2^63-1 are capped, digits below a billionth round away from zero.
    ///
    /// # Errors
    /// When the text is no quantity or its suffix is unknown.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
            None => return Err(QuantityError::Form),
        };
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Form);
        }
        let scale = Scale::parse(suffix)?;
        let magnitude = scaled(whole, fraction, scale).min(MAX);
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, format: scale.format() })
    }

    /// The value in thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        saturate(ceil_div(self.nanos, 1_000_000))
    }

    /// The value in whole units, rounded up.
    pub fn value(&self) -> i64 {
        saturate(ceil_div(self.nanos, NANOS))
    }

    /// The value as a floating-point number, for ratios only.
    #[allow(clippy::cast_precision_loss)]
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether the value is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANOS == 0
    }

    pub fn format(&self) -> Format {
        self.format
    }
}

fn ceil_div(value: i128, by: i128) -> i128 {
    let quotient = value / by;
    if value % by > 0 { quotient + 1 } else { quotient }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[derive(Clone, Copy)]
enum Scale {
    Ten(i32, Format),
    Two(u32),
}

impl Scale {
    fn parse(suffix: &str) -> Result<Self, QuantityError> {
        let si = |power| Ok(Scale::Ten(power, Format::DecimalSi));
        match suffix {
            "n" => si(-9),
            "u" => si(-6),
            "m" => si(-3),
            "" => si(0),
            "k" => si(3),
            "M" => si(6),
            "G" => si(9),
            "T" => si(12),
            "P" => si(15),
            "E" => si(18),
            "Ki" => Ok(Scale::Two(10)),
            "Mi" => Ok(Scale::Two(20)),
            "Gi" => Ok(Scale::Two(30)),
            "Ti" => Ok(Scale::Two(40)),
            "Pi" => Ok(Scale::Two(50)),
            "Ei" => Ok(Scale::Two(60)),
            _ => {
                let digits = suffix.strip_prefix(['e', 'E']).ok_or_else(|| wrong_suffix(suffix))?;
                let power: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
                Ok(Scale::Ten(power, Format::DecimalExponent))
            }
        }
    }

    fn format(self) -> Format {
        match self {
            Scale::Ten(_, format) => format,
            Scale::Two(_) => Format::BinarySi,
        }
    }
}

fn wrong_suffix(suffix: &str) -> QuantityError {
    let letters = suffix.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(['+', '-']);
    if letters.bytes().all(|b| b"eEinumkKMGTP".contains(&b)) {
        QuantityError::Suffix
    } else {
        QuantityError::Form
    }
}

/// `whole.fraction * scale` in billionths, rounded up; saturates.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let fraction = fraction.trim_end_matches('0');
    let digits = whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0'));
    let mut mantissa: i128 = 0;
    // Powers of ten that remain to be applied: the unit is billionths, each fraction digit takes one away.
    let mut power = 9i32.saturating_sub(i32::try_from(fraction.len()).unwrap_or(i32::MAX));
    let mut lost = false;
    let mut full = false;
    for digit in digits {
        match mantissa
            .checked_mul(10)
            .and_then(|m| m.checked_add(digit))
            .filter(|m| !full && *m < i128::MAX >> 61)
        {
            Some(next) => mantissa = next,
            None => {
                full = true;
                lost |= digit != 0;
                power = power.saturating_add(1);
            }
        }
    }
    match scale {
        Scale::Ten(extra, _) => power = power.saturating_add(extra),
        Scale::Two(bits) => mantissa = mantissa.saturating_mul(1 << bits),
    }
    if mantissa == 0 {
        return 0;
    }
    while power > 0 {
        mantissa = mantissa.saturating_mul(10).min(MAX * 10);
        power = if mantissa > MAX { 0 } else { power - 1 };
    }
    while power < 0 && mantissa > 0 {
        lost |= mantissa % 10 != 0;
        mantissa /= 10;
        power += 1;
    }
    mantissa.saturating_add(i128::from(lost))
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that loses nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Small or fractional values print with decimal suffixes so that nothing is lost (Kubernetes does the same).
        let binary = self.format == Format::BinarySi && self.is_whole() && self.nanos.abs() >= 1024 * NANOS;
        if binary {
            let mut amount = self.nanos / NANOS;
            let mut steps = 0;
            while amount % 1024 == 0 && steps < 6 {
                amount /= 1024;
                steps += 1;
            }
            return write!(f, "{amount}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][steps]);
        }
        let mut amount = self.nanos;
        let mut steps = 0;
        while amount % 1000 == 0 && steps < 9 {
            amount /= 1000;
            steps += 1;
        }
        if self.format == Format::DecimalExponent {
            let power = (i32::try_from(steps).expect("at most 9") - 3) * 3;
            return if power == 0 { write!(f, "{amount}") } else { write!(f, "{amount}e{power}") };
        }
        write!(f, "{amount}{}", ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][steps])
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Quantity;

    /// The sum keeps the format of the first operand that is not zero.
    fn add(self, other: Quantity) -> Quantity {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Quantity;

    fn neg(self) -> Quantity {
        Quantity { nanos: -self.nanos, format: self.format }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Quantity) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Quantity) {
        *self = *self - other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Self {
        iter.fold(Quantity::ZERO, Add::add)
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Quantity::parse(text)
    }
}
