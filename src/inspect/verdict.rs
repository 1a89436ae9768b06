//! Is this image safe to hand to a virtual machine?
//!
//! A verdict is a list of findings, each with a severity, a stable code, a text and a place, and a conclusion that follows
//! from the severest of them. It looks at the image file, and at the disk as its guest sees it if that can be read; it
//! opens nothing, however the image names it, and it works on images that cannot be opened.
//!
//! What it looks for is what has been used against hosts: names of other files, formats that are guessed from what a
//! guest wrote, sizes that only claim, structures on top of each other.

mod names;
mod signatures;
mod structures;

use std::fmt;

use super::ReadAt;
use crate::error::{Error, Result};
use crate::format::Header;
use crate::image::Format;
use crate::image::check::CheckReport;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look before you run it.
    Caution,
    /// Could harm the host, or the data.
    Danger,
}

impl Severity {
    /// Returns its name: "info", "caution", "danger".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Caution => "caution",
            Self::Danger => "danger",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What follows from the findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conclusion {
    /// No finding is worse than [`Severity::Info`].
    Safe,
    /// No finding is worse than [`Severity::Caution`].
    Caution,
    /// Some finding is a [`Severity::Danger`].
    Unsafe,
}

impl Conclusion {
    /// Returns its name: "safe", "caution", "unsafe".
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Caution => "caution",
            Self::Unsafe => "unsafe",
        }
    }
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerdictFinding {
    /// How bad it is.
    pub severity: Severity,
    /// Its kind in kebab case: "backing-file". It is stable.
    pub code: &'static str,
    /// What it is, in one line. Names from the image are escaped.
    pub text: String,
    /// Where it was found: "header", "L1 table", "guest disk"...
    pub structure: &'static str,
    /// The byte offset in the image file, or on the disk for what is on the guest's disk.
    pub offset: Option<u64>,
}

/// What to hold an image against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerdictOptions {
    /// The largest disk in bytes that may be; without it only absurd sizes are found.
    pub virtual_size_max: Option<u64>,
}

/// Whether an image is safe to hand to a virtual machine, and why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    findings: Vec<VerdictFinding>,
}

impl Verdict {
    /// Returns the findings, the worst first.
    pub fn findings(&self) -> &[VerdictFinding] {
        &self.findings
    }

    /// Returns what follows from them.
    pub fn conclusion(&self) -> Conclusion {
        match self.findings.iter().map(|finding| finding.severity).max() {
            Some(Severity::Danger) => Conclusion::Unsafe,
            Some(Severity::Caution) => Conclusion::Caution,
            Some(Severity::Info) | None => Conclusion::Safe,
        }
    }

    /// Adds what a check of the same image found.
    pub fn add_check(&mut self, report: &CheckReport, cluster_size: u64, file_len: u64) {
        let mut found = Findings { findings: std::mem::take(&mut self.findings) };
        let image = "image";
        if report.corruptions > 0 {
            let text = format!("the check found {} corruptions", report.corruptions);
            found.add(Severity::Danger, "check-corruptions", text, image, None);
        }
        if report.check_errors > 0 {
            let text = format!("the check could not look at {} places", report.check_errors);
            found.add(Severity::Danger, "check-errors", text, image, None);
        }
        if report.leaks > 0 {
            let text = format!("{} clusters are leaked", report.leaks);
            found.add(Severity::Info, "check-leaks", text, image, None);
        }
        let inflated = report.allocated_clusters.saturating_mul(cluster_size);
        if report.compressed_clusters > 0 && inflated / INFLATION_MAX > file_len {
            let text = format!(
                "{inflated} bytes of data are in a file of {file_len} bytes, more than {INFLATION_MAX} times as much"
            );
            found.add(Severity::Caution, "compression-bomb", text, image, None);
        }
        let end = report.image_end_offset;
        if end < file_len {
            let text = format!("{} bytes follow the last cluster in use", file_len - end);
            found.add(Severity::Info, "trailing-bytes", text, image, Some(end));
        }
        self.findings = found.sorted();
    }
}

/// More than this many times as much data as file is suspicious: deflate reaches 1030 on zeros, which no tool stores as
/// data.
const INFLATION_MAX: u64 = 200;
/// Disks above this are suspicious: 64 TiB.
const VIRTUAL_SIZE_SUSPICIOUS: u64 = 64 << 40;

/// Findings as they come.
#[derive(Default)]
struct Findings {
    findings: Vec<VerdictFinding>,
}

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        text: impl Into<String>,
        structure: &'static str,
        offset: Option<u64>,
    ) {
        let text = text.into();
        self.findings.push(VerdictFinding { severity, code, text, structure, offset });
    }

    /// What kept us from looking.
    fn add_error(&mut self, severity: Severity, error: &Error) {
        let (code, structure, offset) = match error {
            Error::Corrupt(corrupt) => (corrupt.code(), corrupt.structure(), corrupt.offset()),
            Error::Unsupported(what) => (what.code(), what.structure(), what.offset()),
            _ => ("unreadable", "image", None),
        };
        self.add(severity, code, error.to_string(), structure, offset);
    }

    fn sorted(mut self) -> Vec<VerdictFinding> {
        self.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        self.findings
    }
}

/// Judges an image: `file` is its file, `format` what it is taken for, and `guest` its disk, if it could be opened.
///
/// The time it takes does not depend on the image's size: tables are looked at as far as the header points, refcounts
/// and L2 tables not at all. [`Verdict::add_check`] adds what a full check says.
///
/// # Errors
///
/// What reading the file says. Everything that is wrong with the image is a finding; so is a disk that cannot be read.
///
/// # Cancel safety
///
/// It only reads: dropping the future has no effect.
pub async fn verdict<F: ReadAt, G: ReadAt>(
    file: &F,
    format: Format,
    guest: Option<&G>,
    options: &VerdictOptions,
) -> Result<Verdict> {
    let mut found = Findings::default();
    match format {
        Format::Qcow2 => qcow2(file, options, &mut found).await?,
        Format::Raw => {
            size(file.len(), file.len(), options, &mut found);
            signatures::disk(file, format, &mut found).await?;
        }
    }
    if format == Format::Qcow2 {
        match guest {
            Some(guest) => {
                if let Err(error) = signatures::disk(guest, format, &mut found).await {
                    let text = format!("the guest's first sectors could not be read: {error}");
                    found.add(Severity::Info, "guest-unread", text, "guest disk", Some(0));
                }
            }
            None => {
                let text = "the guest's first sectors were not looked at";
                found.add(Severity::Info, "guest-unread", text, "guest disk", Some(0));
            }
        }
    }
    Ok(Verdict { findings: found.sorted() })
}

async fn qcow2<F: ReadAt>(file: &F, options: &VerdictOptions, found: &mut Findings) -> Result<()> {
    let sector = read_within(file, 0, Header::PROBE_LEN).await?;
    let header = match Header::probe_len(&sector) {
        Ok(len) => {
            let cluster = read_within(file, 0, len).await?;
            for deviation in Header::deviations(&cluster) {
                found.add_error(Severity::Caution, &deviation.into());
            }
            Header::parse(&cluster, file.len())
        }
        Err(error) => Err(error),
    };
    // Other formats in the same file, whatever the header is like.
    let cluster_size = header.as_ref().map_or(0, |header| header.geometry().cluster_size());
    signatures::beside(file, cluster_size, found).await?;
    match header {
        Ok(header) => {
            names::references(&header, found);
            features(&header, found);
            size(header.size, file.len(), options, found);
            structures::look(file, &header, options, found).await
        }
        Err(error) => {
            found.add_error(Severity::Danger, &error);
            Ok(())
        }
    }
}

/// What the bits say.
fn features(header: &Header, found: &mut Findings) {
    use crate::format::{Autoclear, Compatible, CryptMethod, Extension, Incompatible};
    const INCOMPATIBLE: u64 = 72;
    const COMPATIBLE: u64 = 80;
    const AUTOCLEAR: u64 = 88;
    const CRYPT_METHOD: u64 = 32;
    let place = "header";
    if header.incompatible.contains(Incompatible::CORRUPT) {
        let text = "the image is marked as corrupt";
        found.add(Severity::Danger, "corrupt-bit", text, place, Some(INCOMPATIBLE));
    }
    if header.incompatible.contains(Incompatible::DIRTY) {
        let text = "the image was not closed: its refcounts may be wrong, and opening it for writing repairs them";
        found.add(Severity::Caution, "dirty-bit", text, place, Some(INCOMPATIBLE));
    }
    let unknown = [
        (COMPATIBLE, "compatible", header.compatible.raw() & !Compatible::KNOWN.raw()),
        (AUTOCLEAR, "autoclear", header.autoclear.raw() & !Autoclear::KNOWN.raw()),
    ];
    for (offset, which, bits) in unknown.into_iter().filter(|(_, _, bits)| *bits != 0) {
        let text = format!("{which} feature bits {bits:#x} are not known");
        found.add(Severity::Info, "unknown-features", text, place, Some(offset));
    }
    for extension in &header.extensions {
        if let Extension::Unknown { kind, data } = extension {
            let text =
                format!("header extension {kind:#010x} of {} bytes is not known", data.len());
            found.add(Severity::Info, "unknown-extension", text, "header extension", None);
        }
    }
    match header.crypt {
        CryptMethod::None => {}
        CryptMethod::Luks => {
            let text = "the disk is encrypted with LUKS: what is on it cannot be looked at";
            found.add(Severity::Info, "encrypted", text, place, Some(CRYPT_METHOD));
        }
        CryptMethod::Aes => {
            let text = "the disk is encrypted with AES-CBC, which is broken and which virtual machines refuse";
            found.add(Severity::Caution, "encrypted-weakly", text, place, Some(CRYPT_METHOD));
        }
    }
}

fn size(virtual_size: u64, file_len: u64, options: &VerdictOptions, found: &mut Findings) {
    const SIZE: u64 = 24;
    match options.virtual_size_max {
        Some(max) if virtual_size > max => {
            let text = format!("the disk of {virtual_size} bytes is larger than {max}");
            found.add(Severity::Danger, "size-over-limit", text, "header", Some(SIZE));
        }
        None if virtual_size > VIRTUAL_SIZE_SUSPICIOUS && virtual_size / 1024 > file_len => {
            let text = format!(
                "a file of {file_len} bytes claims a disk of {virtual_size}: it may grow until the host is full"
            );
            found.add(Severity::Caution, "size-bomb", text, "header", Some(SIZE));
        }
        _ => {}
    }
}

/// Reads `len` bytes from `offset`, or as many as there are.
async fn read_within<R: ReadAt>(bytes: &R, offset: u64, len: usize) -> Result<Vec<u8>> {
    let rest = bytes.len().saturating_sub(offset);
    let mut buf = vec![0; len.min(usize::try_from(rest).unwrap_or(usize::MAX))];
    if !buf.is_empty() {
        bytes.read_at(&mut buf, offset).await?;
    }
    Ok(buf)
}

/// A name from the image in a form that can be shown: no control characters, no bytes that are not UTF-8.
fn shown(name: &[u8]) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        text.extend(chunk.valid().escape_debug());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}
