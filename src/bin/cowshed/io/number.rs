//! Numbers as `qemu-io` reads and writes them.

use std::ffi::OsStr;

use crate::escape;
use crate::size::{self, SizeError};

use super::fault::Fault;

/// The most bytes of one request, as in QEMU: as many as 31 bits tell, in whole sectors.
pub(super) const REQUEST_LEN_BYTES_MAX: u64 = 0x7fff_fe00;
/// The bytes of a sector.
pub(super) const SECTOR_LEN_BYTES: u64 = 512;

/// The number of bytes that `text` says, with an optional unit.
///
/// # Errors
/// It says none, or one that does not fit.
pub(super) fn bytes(text: &OsStr) -> Result<u64, Fault> {
    size::parse(&text.to_string_lossy()).map_err(|error| size_fault(error, text))
}

/// What is said of a text that is no size; `shown` is what stands behind the message.
pub(super) fn size_fault(error: SizeError, shown: &OsStr) -> Fault {
    let what = match error {
        SizeError::Syntax => "non-numeric argument, or extraneous/unrecognized suffix",
        SizeError::Range => "argument too large",
    };
    Fault::Output(format!("Parsing error: {what} -- {}", shown_text(shown)))
}

/// The byte that `text` says, in C's decimal, octal or hexadecimal notation.
///
/// # Errors
/// It says none.
pub(super) fn pattern(text: &OsStr) -> Result<u8, Fault> {
    integer(&text.to_string_lossy())
        .and_then(|number| u8::try_from(number).ok())
        .ok_or_else(|| Fault::Output(format!("{} is not a valid pattern byte", shown_text(text))))
}

/// The whole of `text` as C's `strtol` reads it with base 0; numbers that do not fit become the largest.
pub(super) fn integer(text: &str) -> Option<i64> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (digits, radix) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let number = i64::from_str_radix(digits, radix).unwrap_or(i64::MAX);
    Some(if negative { -number } else { number })
}

/// A number of bytes with three decimals, or none if they are zeros, and a binary unit.
pub(super) fn human(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = " bytes".to_owned();
    let mut text = format!("{bytes:.6}");
    let mut size = 1024.0;
    for name in UNITS {
        if bytes >= size {
            unit = format!(" {name}");
            text = format!("{:.3}", bytes / size);
        }
        size *= 1024.0;
    }
    if let Some(at) = text.find(".000") {
        text.truncate(at);
    }
    text + &unit
}

/// [`human`] of a whole number.
pub(super) fn human_bytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "three decimals are shown")]
    let bytes = bytes as f64;
    human(bytes)
}

/// A text of the user's to be shown again.
pub(super) fn shown_text(text: &OsStr) -> String {
    escape::terminal(text.as_encoded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected texts are those of qemu-io's `length` and reports, version 10.0.2.
    #[test]
    fn sizes_read_as_qemu_io_prints_them() {
        for (bytes, text) in [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (1023.5, "1023.500000 bytes"),
            (1024.0, "1 KiB"),
            (66_560.0, "65 KiB"),
            (1536.0, "1.500 KiB"),
            (3_080_192.0, "2.938 MiB"),
            (1_099_511_627_776.0, "1 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn integers_are_read_as_strtol_reads_them() {
        for (text, number) in [
            ("0", Some(0)),
            ("010", Some(8)),
            ("0x1F", Some(31)),
            ("-1", Some(-1)),
            ("255", Some(255)),
            ("08", None),
            ("0x", None),
            ("1k", None),
            ("x", None),
            ("99999999999999999999", Some(i64::MAX)),
        ] {
            assert_eq!(integer(text), number, "{text}");
        }
    }
}
