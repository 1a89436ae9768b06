//! `discard`.

use super::command::Call;
use super::fault::Fault;
use super::getopt::Getopt;
use super::number::{self, REQUEST_LEN_BYTES_MAX};
use super::read::{too_long, two};
use super::report::Report;
use super::shell::{Refusal, Shell};

/// Runs `discard`.
pub(super) async fn discard(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    let (mut machine, mut quiet) = (false, false);
    let mut options = Getopt::new(call.name, "Cq", &[], call.arguments);
    while let Some((letter, _)) = options.next().map_err(Fault::Option)? {
        match letter {
            'C' => machine = true,
            'q' => quiet = true,
            _ => {}
        }
    }
    let [offset, len_text] = two(options.operands())?;
    let offset = number::bytes(&offset)?;
    let len = number::bytes(&len_text)?;
    if len > REQUEST_LEN_BYTES_MAX {
        return Err(too_long(&len_text, ""));
    }
    let image = shell.image()?;
    let (unmap, size) = (shell.device()?.unmap, image.virtual_size());
    let request = async {
        if offset.checked_add(len).is_none_or(|end| end > size) {
            Err(Refusal::Here("Input/output error"))
        } else if unmap {
            image.discard_at(offset, len).await.map_err(Refusal::from)
        } else {
            Ok(())
        }
    };
    let (result, elapsed) = shell.timed(request).await;
    shell.check("discard", result)?;
    if quiet {
        return Ok(());
    }
    let report = Report { verb: "discard", offset, len, elapsed, machine };
    shell.say(format_args!("{report}"))
}
