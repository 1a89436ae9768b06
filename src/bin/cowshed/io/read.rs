//! `read` and `readv`: bytes of the disk or of the VM state, compared, shown, and reported.

use std::ffi::{OsStr, OsString};

use cowshed::Error;
use cowshed::image::Format;

use crate::open::DiskImage;

use super::command::Call;
use super::copy_on_read;
use super::fault::Fault;
use super::getopt::Getopt;
use super::number::{self, REQUEST_LEN_BYTES_MAX, SECTOR_LEN_BYTES, shown_text};
use super::report::{Report, dump};
use super::shell::{Refusal, Shell};

/// What memory holds before it is read into, as in QEMU: a byte that no test writes.
pub(super) const UNREAD: u8 = 0xab;

/// Runs `read`.
pub(super) async fn read(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let (mut machine, mut quiet, mut show) = (false, false, false);
    let (mut vm_state, mut registered) = (false, false);
    let (mut pattern, mut from, mut len) = (None, None, None);
    let mut options = Getopt::new(call.name, "bCl:pP:qrs:v", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'b' => vm_state = true,
            'C' => machine = true,
            'l' => len = Some(number::bytes(&value)?),
            'P' => pattern = Some(number::pattern(&value)?),
            'q' => quiet = true,
            'r' => registered = true,
            's' => from = Some(number::bytes(&value)?),
            'v' => show = true,
            _ => {}
        }
    }
    let [offset, count] = two(options.operands())?;
    let offset = number::bytes(&offset)?;
    let count_text = count;
    let count = number::bytes(&count_text)?;
    if count > REQUEST_LEN_BYTES_MAX {
        return Err(too_long(&count_text, ""));
    }
    if pattern.is_none() && (from.is_some() || len.is_some()) {
        return Err(Fault::Usage);
    }
    let from = from.unwrap_or(0);
    let compared = match len {
        Some(len) => Some(len),
        None => count.checked_sub(from),
    };
    let Some(compared) =
        compared.filter(|len| len.checked_add(from).is_some_and(|end| end <= count))
    else {
        let message = "pattern verification range exceeds end of read data";
        return Err(Fault::Output(message.to_owned()));
    };
    if vm_state {
        must_be_sectors(offset, count)?;
        if registered {
            let message = "I/O buffer registration is not supported when reading from vmstate";
            return Err(Fault::Output(message.to_owned()));
        }
    }

    let image = shell.image()?;
    let is_raw = shell.device()?.format == Format::Raw;
    let mut bytes = vec![UNREAD; narrow(count)];
    let request = async {
        match vm_state {
            true if is_raw => Err(Refusal::Here("Operation not supported")),
            true => read_vm_state(&image, &mut bytes, offset).await.map_err(Refusal::from),
            false => image.read_at(&mut bytes, offset).await.map_err(Refusal::from),
        }
    };
    let (result, elapsed) = shell.timed(request).await;
    shell.check("read", result)?;
    if !vm_state {
        let copied = copy_on_read::copied(shell, offset, count).await;
        shell.check("read", copied)?;
    }

    let range = narrow(from)..narrow(from + compared);
    let differs = pattern.is_some_and(|byte| bytes[range].iter().any(|&read| read != byte));
    if differs {
        shell.say(format_args!("{}\n", mismatch(offset + from, compared)))?;
    }
    if !quiet {
        if show {
            shell.say(format_args!("{}", dump(&bytes, offset)))?;
        }
        let report = Report { verb: "read", offset, len: count, elapsed, machine };
        shell.say(format_args!("{report}"))?;
    }
    if differs { Err(Fault::Said) } else { Ok(()) }
}

/// Runs `readv`.
pub(super) async fn readv(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let (mut machine, mut quiet, mut show, mut pattern) = (false, false, false, None);
    let mut options = Getopt::new(call.name, "CP:qrv", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'C' => machine = true,
            'P' => pattern = Some(number::pattern(&value)?),
            'q' => quiet = true,
            'v' => show = true,
            _ => {}
        }
    }
    let (offset, len) = vector(options.operands())?;
    let image = shell.image()?;
    let mut bytes = vec![UNREAD; narrow(len)];
    let request = async { image.read_at(&mut bytes, offset).await.map_err(Refusal::from) };
    let (result, elapsed) = shell.timed(request).await;
    shell.check("readv", result)?;
    let copied = copy_on_read::copied(shell, offset, len).await;
    shell.check("readv", copied)?;

    let differs = pattern.is_some_and(|byte| bytes.iter().any(|&read| read != byte));
    if differs {
        shell.say(format_args!("{}\n", mismatch(offset, len)))?;
    }
    if !quiet {
        if show {
            shell.say(format_args!("{}", dump(&bytes, offset)))?;
        }
        let report = Report { verb: "read", offset, len, elapsed, machine };
        shell.say(format_args!("{report}"))?;
    }
    if differs { Err(Fault::Said) } else { Ok(()) }
}

/// What is said of bytes that are not those of the pattern.
pub(super) fn mismatch(offset: u64, len: u64) -> String {
    format!("Pattern verification failed at offset {offset}, {len} bytes")
}

/// The offset and the length of a command that takes no more.
pub(super) fn two(operands: Vec<OsString>) -> Result<[OsString; 2], Fault> {
    operands.try_into().map_err(|_| Fault::Usage)
}

/// The offset of a command that takes any number of lengths, and the lengths together.
pub(super) fn vector(operands: Vec<OsString>) -> Result<(u64, u64), Fault> {
    let [offset, lens @ ..] = &*operands else { return Err(Fault::Usage) };
    if lens.is_empty() {
        return Err(Fault::Usage);
    }
    let offset = number::bytes(offset)?;
    let mut sum = 0;
    for text in lens {
        let len = number::bytes(text)?;
        if len > REQUEST_LEN_BYTES_MAX {
            let text = shown_text(text);
            let message = format!("Argument '{text}' exceeds maximum size {REQUEST_LEN_BYTES_MAX}");
            return Err(Fault::Output(message));
        }
        if sum > REQUEST_LEN_BYTES_MAX - len {
            return Err(Fault::Output(format!(
                "The total number of bytes exceed the maximum size {REQUEST_LEN_BYTES_MAX}"
            )));
        }
        sum += len;
    }
    Ok((offset, sum))
}

/// What is said of a length that is too large; `unless` is an option that allows it.
pub(super) fn too_long(text: &OsStr, unless: &str) -> Fault {
    let text = shown_text(text);
    Fault::Output(format!("length cannot exceed {REQUEST_LEN_BYTES_MAX}{unless}, given {text}"))
}

/// Refuses what is not made of sectors.
pub(super) fn must_be_sectors(offset: u64, count: u64) -> Result<(), Fault> {
    for (number, name) in [(offset, "offset"), (count, "count")] {
        if !number.is_multiple_of(SECTOR_LEN_BYTES) {
            let message = format!("{number} is not a sector-aligned value for '{name}'");
            return Err(Fault::Output(message));
        }
    }
    Ok(())
}

/// A length of memory. It has 31 bits at most.
pub(super) fn narrow(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// Reads the VM state. Where no table is, as QEMU has it, there are zeros.
async fn read_vm_state(image: &DiskImage, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
    // A sector is never in two tables.
    for (sector, at) in bytes.chunks_mut(512).zip((offset..).step_by(512)) {
        match image.read_vm_state_at(sector, at).await {
            Err(Error::OutOfBounds { .. }) => sector.fill(0),
            result => result?,
        }
    }
    Ok(())
}
