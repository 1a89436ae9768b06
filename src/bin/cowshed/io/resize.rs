//! `truncate`: a disk of another size.

use std::ffi::OsString;

use cowshed::Error;
use cowshed::image::{Format, Preallocation, ResizeOptions};

use crate::open;
use crate::size;

use super::command::Call;
use super::fault::{Fault, strerror};
use super::getopt::Getopt;
use super::number::{self, shown_text};
use super::shell::Shell;

/// Runs `truncate`.
pub(super) async fn truncate(shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
    // QEMU shows the first argument in place of the wrong one.
    let first = call.arguments.first().cloned().unwrap_or_default();
    let mut preallocation = Preallocation::Off;
    let mut options = Getopt::new(call.name, "m:", &[], call.arguments);
    while let Some((_, mode)) = options.next().map_err(Fault::Option)? {
        preallocation = match mode.to_str() {
            Some("off") => Preallocation::Off,
            Some("metadata") => Preallocation::Metadata,
            Some("falloc") => Preallocation::Falloc,
            Some("full") => Preallocation::Full,
            _ => {
                let mode = shown_text(&mode);
                return Err(Fault::Error(format!("Invalid preallocation mode '{mode}'")));
            }
        };
    }
    let operands: Vec<OsString> = options.operands();
    let text = operands.first().ok_or(Fault::Usage)?;
    let size =
        size::parse(&text.to_string_lossy()).map_err(|error| number::size_fault(error, &first))?;

    let image = shell.image()?;
    let shrinks = size < image.virtual_size();
    let wrong = match (shell.device()?.format, preallocation) {
        (Format::Raw, Preallocation::Metadata) => "Unsupported preallocation mode: metadata",
        (Format::Raw, Preallocation::Falloc | Preallocation::Full) if shrinks => {
            "Cannot use preallocation for shrinking files"
        }
        (Format::Qcow2, _) if !size.is_multiple_of(512) => "The new size must be a multiple of 512",
        (Format::Qcow2, mode) if shrinks && mode != Preallocation::Off => {
            "Preallocation can't be used for shrinking an image"
        }
        _ => "",
    };
    if !wrong.is_empty() {
        return Err(Fault::Error(wrong.to_owned()));
    }
    let mut options = ResizeOptions::default();
    options.shrink = true;
    options.preallocation = preallocation;
    let result = shell.wait(image.resize(size, &options)).await;
    result.map_err(|error| match &error {
        Error::InvalidArgument(message) => Fault::Error(message.clone()),
        Error::Storage { .. } => {
            Fault::Error(format!("Could not resize file: {}", strerror(&error)))
        }
        _ => Fault::Error(open::reason(&error)),
    })
}
