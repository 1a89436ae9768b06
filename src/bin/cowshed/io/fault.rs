//! Why a command of the language failed, and where that is said.

use std::io;

use cowshed::Error;

use crate::failure::Failure;
use crate::open;

/// A command that failed. What it says goes where `qemu-io` says it.
#[derive(Debug)]
pub(super) enum Fault {
    /// A line on standard output.
    Output(String),
    /// A line on standard error, behind the program's name.
    Error(String),
    /// A line on standard error as it is.
    Bare(String),
    /// The arguments make no sense: the command's own line of the help, on standard output.
    Usage,
    /// The same behind a line of `getopt` on standard error.
    Option(String),
    /// An image that could not be opened.
    Open(Failure),
    /// There is nothing more to say.
    Said,
    /// Standard output cannot be written.
    Broken(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// What C calls the error number that QEMU has for this error.
pub(crate) fn strerror(error: &Error) -> String {
    match error {
        Error::Storage { source, .. } | Error::Open { source, .. } => io_strerror(source),
        Error::Unsupported(_) => "Operation not supported".to_owned(),
        Error::InvalidArgument(_) => "Invalid argument".to_owned(),
        Error::ReadOnly(_) | Error::Refused { .. } => "Operation not permitted".to_owned(),
        Error::LimitExceeded { .. } => "File too large".to_owned(),
        Error::Closed => "No medium found".to_owned(),
        _ => "Input/output error".to_owned(),
    }
}

/// The same for an error of the system.
pub(super) fn io_strerror(error: &io::Error) -> String {
    if error.raw_os_error().is_some() {
        return open::io_reason(error);
    }
    match error.kind() {
        io::ErrorKind::StorageFull => "No space left on device",
        io::ErrorKind::Unsupported => "Operation not supported",
        io::ErrorKind::InvalidInput => "Invalid argument",
        io::ErrorKind::PermissionDenied => "Operation not permitted",
        _ => "Input/output error",
    }
    .to_owned()
}
