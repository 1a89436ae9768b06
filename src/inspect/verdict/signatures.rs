//! Marks of formats: of other image formats on a guest's disk, and of anything beside qcow2 in the same file.
//!
//! A program that guesses a format from the first bytes lets a guest choose it: whoever writes "QFI\xfb" and the name of
//! a backing file to the first sector of a raw disk has it opened as an image the next time.

use super::{Findings, ReadAt, Severity, read_within};
use crate::error::Result;
use crate::image::Format;

/// A mark at a fixed place.
struct Mark {
    offset: u64,
    bytes: &'static [u8],
    name: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A format of disk images, which a virtual machine opens if it guesses.
    Image,
    /// Something that is not a disk.
    Other,
    /// What a disk may well hold.
    Content,
}

const fn mark(offset: u64, bytes: &'static [u8], name: &'static str, kind: Kind) -> Mark {
    Mark { offset, bytes, name, kind }
}

/// Marks near the start.
const MARKS: &[Mark] = &[
    mark(0, b"QFI\xfb\0\0\0\x01", "qcow", Kind::Image),
    mark(0, b"QFI\xfb", "qcow2", Kind::Image),
    mark(0, b"KDMV", "VMDK", Kind::Image),
    mark(0, b"COWD", "VMDK", Kind::Image),
    mark(0, b"# Disk DescriptorFile", "VMDK descriptor", Kind::Image),
    mark(64, b"\x7f\x10\xda\xbe", "VDI", Kind::Image),
    mark(0, b"vhdxfile", "VHDX", Kind::Image),
    mark(0, b"conectix", "VHD", Kind::Image),
    mark(0, b"QED\0", "QED", Kind::Image),
    mark(0, b"WithoutFreeSpace", "Parallels", Kind::Image),
    mark(0, b"WithouFreSpacExt", "Parallels", Kind::Image),
    mark(0, b"Bochs Virtual HD Image", "Bochs", Kind::Image),
    mark(0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop", Kind::Image),
    mark(0, b"LUKS\xba\xbe", "LUKS", Kind::Content),
    mark(0, b"\x7fELF", "ELF", Kind::Other),
    mark(0, b"MZ", "PE or DOS program", Kind::Other),
    mark(0, b"#!/", "script", Kind::Other),
    mark(0, b"PK\x03\x04", "ZIP", Kind::Other),
    mark(0, b"\x1f\x8b\x08", "gzip", Kind::Other),
    mark(0, b"\xfd7zXZ\0", "xz", Kind::Other),
    mark(0, b"\x28\xb5\x2f\xfd", "zstd", Kind::Other),
    mark(0, b"BZh", "bzip2", Kind::Other),
    mark(0, b"7z\xbc\xaf\x27\x1c", "7z", Kind::Other),
    mark(0, b"%PDF-", "PDF", Kind::Other),
    mark(0, b"<!DOCTYPE", "HTML", Kind::Other),
    mark(0, b"<html", "HTML", Kind::Other),
    mark(257, b"ustar", "tar", Kind::Other),
    mark(510, b"\x55\xaa", "boot sector", Kind::Content),
    mark(512, b"EFI PART", "GPT", Kind::Content),
    mark(0x8001, b"CD001", "ISO 9660", Kind::Content),
];

/// Marks in the last sector, counted from the end.
const MARKS_AT_END: &[(u64, &[u8], &str)] =
    &[(512, b"conectix", "VHD"), (512, b"koly", "DMG"), (22, b"PK\x05\x06", "ZIP")];

/// As far as marks reach from the start.
const START_LEN: usize = 0x8000 + 512;
const END_LEN: usize = 512;

/// Looks at the first and the last bytes of a disk, for what a guest should not have there.
pub(super) async fn disk<R: ReadAt>(bytes: &R, format: Format, found: &mut Findings) -> Result<()> {
    let place = if format == Format::Raw { "image" } else { "guest disk" };
    let start = read_within(bytes, 0, START_LEN).await?;
    let mut images = 0;
    for mark in MARKS.iter().filter(|mark| is_at(&start, mark.offset, mark.bytes)) {
        let (severity, code, text) = match (mark.kind, format) {
            // "qcow" and "qcow2" start alike: one of them is enough.
            (Kind::Image, _) if images > 0 => continue,
            (Kind::Image, Format::Raw) => (
                Severity::Danger,
                "disk-is-an-image",
                format!(
                    "the disk starts like a {} image: a program that guesses the format opens it as one, and whatever \
                     it names",
                    mark.name
                ),
            ),
            (Kind::Image, Format::Qcow2) => (
                Severity::Caution,
                "disk-is-an-image",
                format!(
                    "the disk starts like a {} image: as a raw disk it would be opened as one, and whatever it names",
                    mark.name
                ),
            ),
            (Kind::Other, _) => (
                Severity::Caution,
                "disk-is-no-disk",
                format!("the disk starts like something else: {}", mark.name),
            ),
            (Kind::Content, _) => continue,
        };
        images += u32::from(mark.kind == Kind::Image);
        found.add(severity, code, text, place, Some(mark.offset));
    }
    at_end(bytes, place, Severity::Caution, found).await
}

/// Looks for other formats in the file of a qcow2 image, whose first cluster has nothing of that kind.
pub(super) async fn beside<R: ReadAt>(
    file: &R,
    cluster_size: u64,
    found: &mut Findings,
) -> Result<()> {
    let start = read_within(file, 0, START_LEN).await?;
    // A guest's own CD image or boot sector may lie anywhere behind the first cluster.
    let marks = MARKS.iter().filter(|mark| mark.offset > 0 && mark.offset < cluster_size);
    for mark in marks.filter(|mark| is_at(&start, mark.offset, mark.bytes)) {
        let text = format!("the file is a qcow2 image and has the mark of {} too", mark.name);
        found.add(Severity::Danger, "polyglot", text, "header", Some(mark.offset));
    }
    at_end(file, "image", Severity::Caution, found).await
}

async fn at_end<R: ReadAt>(
    bytes: &R,
    place: &'static str,
    severity: Severity,
    found: &mut Findings,
) -> Result<()> {
    let from = bytes.len().saturating_sub(END_LEN as u64);
    let end = read_within(bytes, from, END_LEN).await?;
    for (before_end, mark, name) in MARKS_AT_END {
        let Some(offset) = bytes.len().checked_sub(*before_end) else { continue };
        if is_at(&end, offset - from, mark) {
            let text = format!("it ends like something else: {name}");
            found.add(severity, "polyglot-end", text, place, Some(offset));
        }
    }
    Ok(())
}

fn is_at(bytes: &[u8], offset: u64, mark: &[u8]) -> bool {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    bytes.get(start..).is_some_and(|rest| rest.starts_with(mark))
}
