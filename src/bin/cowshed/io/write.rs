//! `write` and `writev`: a pattern, a file's bytes, zeros, or compressed data.

use std::ffi::OsStr;
use std::io::Read as _;
use std::sync::Arc;

use cowshed::format::Version;
use cowshed::image::{ExtentKind, Format, ZeroMode};

use crate::failure::warn;
use crate::open::{self, DiskImage};

use super::command::Call;
use super::device::Device;
use super::fault::Fault;
use super::getopt::Getopt;
use super::number::{self, REQUEST_LEN_BYTES_MAX, shown_text};
use super::read::{must_be_sectors, narrow, too_long, two, vector};
use super::report::Report;
use super::settings::DetectZeroes;
use super::shell::{Refusal, Shell};

/// What is written if nothing else is said.
pub(super) const PATTERN: u8 = 0xcd;

/// Runs `write`.
pub(super) async fn write(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let (mut machine, mut quiet, mut vm_state, mut compressed) = (false, false, false, false);
    let (mut durable, mut no_fallback, mut registered) = (false, false, false);
    let (mut unmap, mut zero) = (false, false);
    let (mut pattern, mut file) = (None, None);
    let mut options = Getopt::new(call.name, "bcCfnpP:qrs:uz", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'b' => vm_state = true,
            'c' => compressed = true,
            'C' => machine = true,
            'f' => durable = true,
            'n' => no_fallback = true,
            'P' => pattern = Some(number::pattern(&value)?),
            'q' => quiet = true,
            'r' => registered = true,
            's' => file = Some(value),
            'u' => unmap = true,
            'z' => zero = true,
            _ => {}
        }
    }
    let [offset, count_text] = two(options.operands())?;
    for (is_wrong, message) in [
        (vm_state && zero, "-b and -z cannot be specified at the same time"),
        (
            durable && (vm_state || compressed),
            "-f and -b or -c cannot be specified at the same time",
        ),
        (no_fallback && !zero, "-n requires -z to be specified"),
        (unmap && !zero, "-u requires -z to be specified"),
        (
            u8::from(zero) + u8::from(pattern.is_some()) + u8::from(file.is_some()) > 1,
            "Only one of -z, -P, and -s can be specified at the same time",
        ),
    ] {
        if is_wrong {
            return Err(Fault::Output(message.to_owned()));
        }
    }
    let offset = number::bytes(&offset)?;
    let count = number::bytes(&count_text)?;
    if count > REQUEST_LEN_BYTES_MAX && !no_fallback {
        return Err(too_long(&count_text, " without -n"));
    }
    if vm_state || compressed {
        must_be_sectors(offset, count)?;
    }
    if zero && registered {
        let message = "cannot combine zero write with registered I/O buffer";
        return Err(Fault::Output(message.to_owned()));
    }

    let data = match (&file, zero) {
        (_, true) => Vec::new(),
        (Some(file), _) => from_file(file, narrow(count))?,
        (None, _) => vec![pattern.unwrap_or(PATTERN); narrow(count)],
    };
    let device = shell.device()?;
    let writer = Writer::of(device, durable);
    let allowed = zero || device.allows(&data, offset).await;
    let request = async {
        if !allowed {
            Err(Refusal::Here("Operation not permitted"))
        } else if vm_state {
            writer.vm_state(&data, offset).await
        } else if zero {
            writer.zero(offset, count, unmap, no_fallback).await
        } else if compressed {
            writer.compressed(&data, offset).await
        } else {
            writer.write(&data, offset).await
        }
    };
    let (result, elapsed) = shell.timed(request).await;
    shell.check("write", result)?;
    if quiet {
        return Ok(());
    }
    let report = Report { verb: "wrote", offset, len: count, elapsed, machine };
    shell.say(format_args!("{report}"))
}

/// Runs `writev`.
pub(super) async fn writev(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let (mut machine, mut quiet, mut durable, mut pattern) = (false, false, false, PATTERN);
    let mut options = Getopt::new(call.name, "CfP:qr", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'C' => machine = true,
            'f' => durable = true,
            'P' => pattern = number::pattern(&value)?,
            'q' => quiet = true,
            _ => {}
        }
    }
    let (offset, len) = vector(options.operands())?;
    let data = vec![pattern; narrow(len)];
    let device = shell.device()?;
    let writer = Writer::of(device, durable);
    let allowed = device.allows(&data, offset).await;
    let request = async {
        match allowed {
            true => writer.write(&data, offset).await,
            false => Err(Refusal::Here("Operation not permitted")),
        }
    };
    let (result, elapsed) = shell.timed(request).await;
    shell.check("writev", result)?;
    if quiet {
        return Ok(());
    }
    let report = Report { verb: "wrote", offset, len, elapsed, machine };
    shell.say(format_args!("{report}"))
}

/// How a request writes.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    image: Arc<DiskImage>,
    /// A flush follows.
    durable: bool,
    unmap: bool,
    detect_zeroes: DetectZeroes,
}

impl Writer {
    /// As `device` was opened; `durable` asks for a flush behind the write.
    pub(super) fn of(device: &Device, durable: bool) -> Self {
        Self {
            image: Arc::clone(&device.image),
            durable: durable && !device.no_flush,
            unmap: device.unmap,
            detect_zeroes: device.detect_zeroes,
        }
    }

    /// Writes `data`.
    pub(super) async fn write(&self, data: &[u8], offset: u64) -> Result<(), Refusal> {
        if self.detect_zeroes != DetectZeroes::Off && data.iter().all(|&byte| byte == 0) {
            let unmap = self.detect_zeroes == DetectZeroes::Unmap;
            return self.zero(offset, data.len() as u64, unmap, false).await;
        }
        self.image.write_at(data, offset).await?;
        self.end().await
    }

    /// Makes a range zeros. `no_fallback`: not by writing them.
    pub(super) async fn zero(
        &self,
        offset: u64,
        len: u64,
        unmap: bool,
        no_fallback: bool,
    ) -> Result<(), Refusal> {
        if no_fallback && !self.zeroes_are_cheap(offset, len).await? {
            return Err(Refusal::Here("Operation not supported"));
        }
        let mode = if unmap && self.unmap { ZeroMode::MayUnmap } else { ZeroMode::KeepSpace };
        self.image.write_zeroes_at(offset, len, mode).await?;
        self.end().await
    }

    /// Writes `data` as VM state.
    async fn vm_state(&self, data: &[u8], offset: u64) -> Result<(), Refusal> {
        if self.image.layers().next().is_some_and(|layer| layer.format == Format::Raw) {
            return Err(Refusal::Here("Operation not supported"));
        }
        Ok(self.image.write_vm_state_at(data, offset).await?)
    }

    /// Writes `data` compressed.
    async fn compressed(&self, data: &[u8], offset: u64) -> Result<(), Refusal> {
        if self.image.layers().next().is_some_and(|layer| layer.format == Format::Raw) {
            return Err(Refusal::Here("Operation not supported"));
        }
        if data.is_empty() {
            return Ok(());
        }
        // What has its place in the file is not written compressed, as in QEMU.
        let mut extents = self.image.extents(offset, data.len() as u64)?;
        let cluster_size = self.image.geometry().map_or(1, |geometry| geometry.cluster_size());
        // What does not start with a cluster the engine refuses, whatever is there.
        let is_aligned = offset.is_multiple_of(cluster_size);
        while let Some(extent) = extents.next().await?.filter(|_| is_aligned) {
            let is_free = matches!(
                extent.kind,
                ExtentKind::Unallocated { host: None } | ExtentKind::Zero { host: None }
            );
            if extent.depth == 0 && !is_free {
                return Err(Refusal::Here("Input/output error"));
            }
        }
        drop(extents);
        Ok(self.image.write_compressed_at(data, offset).await?)
    }

    async fn end(&self) -> Result<(), Refusal> {
        if self.durable {
            self.image.flush().await?;
        }
        Ok(())
    }

    /// Whether zeros in the range are a matter of metadata alone. As in QEMU, they are not in images of version 2, nor
    /// in a part of a cluster whose rest is not zeros.
    async fn zeroes_are_cheap(&self, offset: u64, len: u64) -> Result<bool, Refusal> {
        let Some(header) = self.image.header() else {
            // In a volume they are encrypted and written.
            return Ok(self.image.layer_storage(0).volume().is_none());
        };
        let Some(end) = offset.checked_add(len).filter(|&end| end <= self.image.virtual_size())
        else {
            // The request itself fails.
            return Ok(true);
        };
        if header.version == Version::V2 {
            return Ok(false);
        }
        let unit = header.geometry().subcluster_size();
        let size = self.image.virtual_size();
        let (first, last) = (offset / unit * unit, end.next_multiple_of(unit).min(size));
        for (from, to) in [(first, offset), (end, last)] {
            let mut rest = vec![0; narrow(to - from)];
            self.image.read_at(&mut rest, from).await?;
            if rest.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// `len` bytes: those of the file `name`, again and again.
fn from_file(name: &OsStr, len: usize) -> Result<Vec<u8>, Fault> {
    let failed = |error: std::io::Error| {
        warn(&format!("{}: {}", shown_text(name), open::io_reason(&error)));
        Fault::Said
    };
    let file = std::fs::File::open(name).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(len as u64).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.is_empty() {
        return Err(Fault::Bare(format!("{}: file is empty", shown_text(name))));
    }
    let period = bytes.len();
    bytes.reserve_exact(len - period);
    while bytes.len() < len {
        let more = period.min(len - bytes.len());
        bytes.extend_from_within(..more);
    }
    Ok(bytes)
}
