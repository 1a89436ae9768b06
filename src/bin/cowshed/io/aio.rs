//! `aio_read` and `aio_write`: requests that go on beside what follows them, and report when they are done.

use std::time::{Duration, Instant};

use super::command::Call;
use super::copy_on_read;
use super::fault::Fault;
use super::getopt::Getopt;
use super::number;
use super::read::{UNREAD, mismatch, narrow, vector};
use super::report::Report;
use super::shell::{Finished, Refusal, Shell};
use super::write::{PATTERN, Writer};

/// Runs `aio_read`.
pub(super) async fn read(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let (mut machine, mut quiet, mut show, mut pattern) = (false, false, false, None);
    let mut options = Getopt::new(call.name, "CiP:qrv", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'C' => machine = true,
            'i' => return shell.say(format_args!("injecting invalid read request\n")),
            'P' => pattern = Some(number::pattern(&value)?),
            'q' => quiet = true,
            'v' => show = true,
            _ => {}
        }
    }
    let (offset, len) = vector(options.operands())?;
    let image = shell.image()?;
    let start = Instant::now();
    let copied = copy_on_read::copied(shell, offset, len).await;
    let request = async move {
        let mut bytes = vec![UNREAD; narrow(len)];
        let read = async {
            copied?;
            image.read_at(&mut bytes, offset).await.map_err(Refusal::from)
        };
        let result = read.await;
        let differs = pattern.is_some_and(|byte| bytes.iter().any(|&read| read != byte));
        Finished {
            // So QEMU calls it.
            doing: "readv",
            result,
            complaint: differs.then(|| mismatch(offset, len)),
            quiet,
            shown: show.then_some(bytes),
            report: Report { verb: "read", offset, len, elapsed: start.elapsed(), machine },
        }
    };
    shell.start(request).await;
    Ok(())
}

/// Runs `aio_write`.
pub(super) async fn write(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let (mut machine, mut quiet, mut durable, mut registered) = (false, false, false, false);
    let (mut unmap, mut zero, mut pattern) = (false, false, PATTERN);
    let mut options = Getopt::new(call.name, "CfiP:qruz", &[], call.arguments);
    while let Some((letter, value)) = options.next().map_err(Fault::Option)? {
        match letter {
            'C' => machine = true,
            'f' => durable = true,
            'i' => return shell.say(format_args!("injecting invalid write request\n")),
            'P' => pattern = number::pattern(&value)?,
            'q' => quiet = true,
            'r' => registered = true,
            'u' => unmap = true,
            'z' => zero = true,
            _ => {}
        }
    }
    let operands = options.operands();
    if operands.len() < 2 {
        return Err(Fault::Usage);
    }
    for (is_wrong, message) in [
        (zero && operands.len() != 2, "-z supports only a single length parameter"),
        (unmap && !zero, "-u requires -z to be specified"),
        (zero && registered, "cannot combine zero write with registered I/O buffer"),
    ] {
        if is_wrong {
            return Err(Fault::Output(message.to_owned()));
        }
    }
    let (offset, len) = match &*operands {
        [offset, len] if zero => (number::bytes(offset)?, number::bytes(len)?),
        _ => vector(operands)?,
    };
    let data = if zero { Vec::new() } else { vec![pattern; narrow(len)] };
    let device = shell.device()?;
    let writer = Writer::of(device, durable);
    let allowed = device.allows(&data, offset).await;
    let start = Instant::now();
    let request = async move {
        let result = match (allowed, zero) {
            (false, _) => Err(Refusal::Here("Operation not permitted")),
            (true, true) => writer.zero(offset, len, unmap, false).await,
            (true, false) => writer.write(&data, offset).await,
        };
        let elapsed = start.elapsed().max(Duration::from_nanos(1));
        Finished {
            doing: "aio_write",
            result,
            complaint: None,
            quiet,
            shown: None,
            report: Report { verb: "wrote", offset, len, elapsed, machine },
        }
    };
    shell.start(request).await;
    Ok(())
}
