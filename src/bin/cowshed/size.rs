//! Sizes as QEMU writes and reads them: "1.38 MiB" out, "1.5G" or "0x10000" in.

/// The largest size that an option takes, in bytes.
pub(crate) const SIZE_MAX: u64 = i64::MAX as u64;

/// `bytes` with three significant digits and a binary unit, as QEMU prints sizes.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // The unit is the largest of which the size is at least 1000/1024.
    let unit = (1..UNITS.len())
        .take_while(|unit| u128::from(bytes) * 1024 >= 1000 << (10 * unit))
        .last()
        .unwrap_or(0);
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let value = bytes as f64 / (1_u64 << (10 * unit)) as f64;
    format!("{} {}B", three_digits(value), UNITS[unit])
}

/// C's `%.3g` for `0.9 < value < 1000` or 0.
fn three_digits(value: f64) -> String {
    let text = if value >= 999.5 {
        // Rounded to three digits it is 1000, which C writes with an exponent.
        return "1e+03".to_owned();
    } else if value >= 99.95 {
        return format!("{value:.0}");
    } else if value >= 9.995 {
        format!("{value:.1}")
    } else if value >= 0.9995 || value == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Why a text is not a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// It is no number, or something stands behind it.
    Syntax,
    /// It is negative or does not fit.
    Range,
}

/// The number of bytes that `text` says: decimal digits with an optional fraction and one of the units B, K, M, G, T,
/// P, E (powers of 1024, of either case), or hexadecimal digits behind `0x`.
///
/// # Errors
/// [`SizeError::Syntax`] for what is none of these, [`SizeError::Range`] for negative numbers and those above
/// [`SIZE_MAX`].
pub(crate) fn parse(text: &str) -> Result<u64, SizeError> {
    match parse_u64(text) {
        Ok(size) if size > SIZE_MAX => Err(SizeError::Range),
        parsed => parsed,
    }
}

/// As [`parse`], up to 2^64.
///
/// # Errors
/// As [`parse`].
pub(crate) fn parse_u64(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let (negative, text) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => hexadecimal(digits)?,
        None => decimal(text)?,
    };
    if negative { Err(SizeError::Range) } else { magnitude.ok_or(SizeError::Range) }
}

/// The value of hexadecimal digits; `None` if it does not fit.
fn hexadecimal(digits: &str) -> Result<Option<u64>, SizeError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(SizeError::Syntax);
    }
    Ok(u64::from_str_radix(digits, 16).ok())
}

/// The value of a decimal number with fraction and unit; `None` if it does not fit.
fn decimal(text: &str) -> Result<Option<u64>, SizeError> {
    let whole_len = text.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = text.split_at(whole_len);
    let (fraction, unit) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(rest.bytes().take_while(u8::is_ascii_digit).count()),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(SizeError::Syntax);
    }
    let shift = match unit {
        "" | "b" | "B" => 0,
        "k" | "K" => 10,
        "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        "p" | "P" => 50,
        "e" | "E" => 60,
        _ => return Err(SizeError::Syntax),
    };
    let fraction = fraction.trim_end_matches('0');
    if shift == 0 && !fraction.is_empty() {
        return Err(SizeError::Syntax);
    }
    let whole = if whole.is_empty() { Some(0) } else { whole.parse::<u64>().ok() };
    let Some(whole) = whole.and_then(|n| n.checked_mul(1 << shift)) else { return Ok(None) };
    Ok(whole.checked_add(fraction_of(fraction, shift)))
}

/// The bytes, rounded to the nearest, in the decimal fraction `digits` of `1 << shift` bytes, with the precision of C's
/// `double`.
fn fraction_of(digits: &str, shift: u32) -> u64 {
    let fraction: f64 = format!("0.{digits}").parse().unwrap_or(0.0);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "between 0 and 2^60"
    )]
    let bytes = (fraction * (1_u64 << shift) as f64 + 0.5) as u64;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected texts are `qemu-img info`'s, version 10.0.2, of raw files of the lengths.
    #[test]
    fn sizes_read_as_qemu_img_prints_them() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (101_888, "99.5 KiB"),
            (197_120, "192 KiB"),
            (1_441_792, "1.38 MiB"),
            (1_023_488, "1e+03 KiB"),
            (1_047_552, "0.999 MiB"),
            (1_048_527_360, "1e+03 MiB"),
            (10 << 30, "10 GiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    // Expected values are the starts that `qemu-img map --output=json -s TEXT` prints, version 10.0.2.
    #[test]
    fn sizes_are_read_as_qemu_img_reads_them() {
        for (text, bytes) in [
            ("1k", 1024),
            ("1.5K", 1536),
            ("0x10", 16),
            ("0.1k", 102),
            ("1.k", 1024),
            (".5k", 512),
            (" 5", 5),
            ("+5", 5),
            ("1B", 1),
            ("010", 10),
            ("1.0b", 1),
            ("1e", 1 << 60),
            ("7.9999E", 9_223_256_744_704_315_136),
            ("0.000000000001k", 0),
            ("9223372036854775807", 9_223_372_036_854_775_807),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in [
            "1.5", "0x10k", "0x", "5 ", "1kb", "1e3", "", "0x1.8k", "1.5b", "1kk", "abc", "1,5k",
            "-", ".",
        ] {
            assert_eq!(parse(text), Err(SizeError::Syntax), "{text}");
        }
        for text in ["9223372036854775808", "8E", "18446744073709551616", "16E", "-5", "-0"] {
            assert_eq!(parse(text), Err(SizeError::Range), "{text}");
        }
    }
}
