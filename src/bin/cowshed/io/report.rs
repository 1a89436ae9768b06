//! What a request leaves on standard output: its size and speed, and its bytes.

use std::fmt::{self, Write as _};
use std::time::Duration;

use super::number::human;

/// How many bytes a line of a dump has.
const LINE_LEN_BYTES: usize = 16;

/// A request that is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Report {
    /// What it did: "read", "wrote", "discard".
    pub(super) verb: &'static str,
    /// Where, in bytes.
    pub(super) offset: u64,
    /// How much, in bytes.
    pub(super) len: u64,
    /// How long it took.
    pub(super) elapsed: Duration,
    /// Whether it is for a program (`-C`).
    pub(super) machine: bool,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, offset, len, elapsed, machine } = *self;
        #[allow(clippy::cast_precision_loss, reason = "three decimals are shown")]
        let bytes = len as f64;
        let seconds = elapsed.as_secs_f64();
        let (rate, operations) = (bytes / seconds, 1.0 / seconds);
        let time = time(elapsed, machine);
        if machine {
            writeln!(f, "{len},1,{time},{rate:.3},{operations:.3}")
        } else {
            writeln!(f, "{verb} {len}/{len} bytes at offset {offset}")?;
            let (size, rate) = (human(bytes), human(rate));
            writeln!(f, "{size}, 1 ops; {time} ({rate}/sec and {operations:.4} ops/sec)")
        }
    }
}

fn time(elapsed: Duration, always_full: bool) -> String {
    let seconds = elapsed.as_secs();
    let fraction = f64::from(elapsed.subsec_nanos()) / 1e9;
    if !always_full && seconds == 0 {
        return format!("{fraction:05.2} sec");
    }
    #[allow(clippy::cast_precision_loss, reason = "it is less than 60")]
    let rest = (seconds % 60) as f64 + fraction;
    format!("{}:{:02}:{rest:05.2}", seconds / 3600, seconds / 60 % 60)
}

/// The bytes that lie at `offset`, in hexadecimal digits and as text.
pub(super) fn dump(bytes: &[u8], offset: u64) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(LINE_LEN_BYTES) * 77);
    for (line, at) in bytes.chunks(LINE_LEN_BYTES).zip((offset..).step_by(LINE_LEN_BYTES)) {
        // Writing to a String does not fail.
        let _ = write!(out, "{at:08x}:  ");
        for byte in line {
            let _ = write!(out, "{byte:02x} ");
        }
        out.push(' ');
        out.extend(
            line.iter()
                .map(|&byte| if byte.is_ascii_alphanumeric() { char::from(byte) } else { '.' }),
        );
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected texts follow qemu-io's, version 10.0.2.
    #[test]
    fn reports_look_as_those_of_qemu_io() {
        let mut report = Report {
            verb: "wrote",
            offset: 512,
            len: 65536,
            elapsed: Duration::from_millis(250),
            machine: false,
        };
        assert_eq!(
            report.to_string(),
            "wrote 65536/65536 bytes at offset 512\n64 KiB, 1 ops; 00.25 sec (256 KiB/sec and 4.0000 ops/sec)\n"
        );
        report.machine = true;
        assert_eq!(report.to_string(), "65536,1,0:00:00.25,262144.000,4.000\n");
        report.machine = false;
        report.elapsed = Duration::from_millis(3_723_500);
        assert!(report.to_string().contains("1 ops; 1:02:03.50 ("), "{report}");
    }
}
