//! What volumes hold that is known by its name and not read: other file systems, and what other volumes are made of.
//!
//! It must not know partitions, images or where the bytes come from.

use super::{ReadAt, Window};
use crate::error::Result;

/// Where a kind of volume has its magic number, the number, and the kind's name.
const MAGICS: [(u64, &[u8], &str); 14] = [
    (0, b"XFSB", "XFS"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (3, b"ReFS\0", "ReFS"),
    (3, b"-FVE-FS-", "BitLocker"),
    (0, b"hsqs", "SquashFS"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (32, b"NXSB", "APFS"),
    (536, b"LVM2 001", "LVM"),
    (1024, b"H+\0\x04", "HFS+"),
    (1024, b"\x10\x20\xf5\xf2", "F2FS"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (4086, b"SWAPSPACE2", "swap"),
    (0x1_0040, b"_BHRfS_M", "Btrfs"),
];
/// The longest of the numbers, in bytes.
const MAGIC_BYTES_MAX: usize = 10;

/// The name of what is on `volume`, if it is one of these.
///
/// # Errors
/// What reading says.
pub(super) async fn foreign<R: ReadAt>(volume: &Window<R>) -> Result<Option<&'static str>> {
    for (offset, magic, name) in MAGICS {
        let mut bytes = [0; MAGIC_BYTES_MAX];
        let bytes = &mut bytes[..magic.len()];
        if offset + magic.len() as u64 <= volume.len() {
            volume.read_at(bytes, offset).await?;
            if bytes == magic {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}
