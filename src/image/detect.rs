//! A guess at what a file is, for when a person has just picked it. Never for a disk that a guest has written and
//! whose format was once known.

use super::gate::Format;

/// "QFI\xfb", the first four bytes of every qcow2 image.
const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Suggests a format for a file that starts with `first_bytes` (8 suffice): qcow2 if they are the magic and a known
/// version, raw otherwise.
///
/// Version 1, "qcow", is another format; it is suggested as qcow2 so that opening says what it is instead of showing
/// its metadata as a disk.
#[must_use]
pub fn detect(first_bytes: &[u8]) -> Format {
    if first_bytes.starts_with(&MAGIC) { Format::Qcow2 } else { Format::Raw }
}

#[cfg(test)]
mod tests {
    use super::{Format, detect};

    #[test]
    fn the_magic_alone_decides() {
        assert_eq!(detect(b"QFI\xfb\0\0\0\x03"), Format::Qcow2);
        assert_eq!(detect(b"QFI\xfb"), Format::Qcow2);
        assert_eq!(detect(b"QFI"), Format::Raw);
        assert_eq!(detect(b""), Format::Raw);
        assert_eq!(detect(b"\x7fELF\0\0\0\x03"), Format::Raw);
    }
}
