//! Why a verb ended early: the line it leaves on standard error and its exit code.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;

use crate::escape;
use crate::persona::Persona;

/// The exit code of a command whose reader went away: that of one killed by the signal for it.
const BROKEN_PIPE_CODE: u8 = 128 + 13;

/// An end with an error: what to say, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    what: What,
    /// A question to the user, or advice, on lines of its own.
    hint: Option<String>,
}

#[derive(Debug)]
enum What {
    /// An image that is at fault; `context` is what `qemu-img` says in front of the reason.
    Image { image: OsString, context: Context, reason: String },
    /// A message that needs no image.
    Message(String),
    /// A command line that is wrong, with the verb whose help to read; whether the message is getopt's.
    Usage { verb: Option<&'static str>, getopt: bool, message: String },
    /// Standard output that cannot be written.
    Output(io::Error),
}

/// What was being done with an image.
#[derive(Debug)]
enum Context {
    /// Opening it.
    Open,
    /// Something that `qemu-img` names in these words, which may name the image.
    Doing(String),
}

impl Failure {
    /// The image cannot be opened.
    pub(crate) fn open(image: &OsStr, reason: impl ToString) -> Self {
        let (image, reason) = (image.to_owned(), reason.to_string());
        Self::new(What::Image { image, context: Context::Open, reason })
    }

    /// Something failed that `qemu-img` would report as `doing: reason`.
    pub(crate) fn image(image: &OsStr, doing: impl Into<String>, reason: impl ToString) -> Self {
        let (image, reason) = (image.to_owned(), reason.to_string());
        Self::new(What::Image { image, context: Context::Doing(doing.into()), reason })
    }

    /// Something is wrong that is no image's fault.
    pub(crate) fn message(message: impl Into<String>) -> Self {
        Self::new(What::Message(message.into()))
    }

    /// The command line of `verb` is wrong.
    pub(crate) fn usage(verb: Option<&'static str>, message: impl Into<String>) -> Self {
        Self::new(What::Usage { verb, getopt: false, message: message.into() })
    }

    /// An option of `verb` is wrong; the message is one of getopt's.
    pub(crate) fn option(verb: Option<&'static str>, message: impl Into<String>) -> Self {
        Self::new(What::Usage { verb, getopt: true, message: message.into() })
    }

    fn new(what: What) -> Self {
        Self { code: 1, what, hint: None }
    }

    /// The same with a question to the user, on a line of its own.
    #[must_use]
    pub(crate) fn with_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// The same for the new image `image`, whose backing file it is that cannot be opened.
    #[must_use]
    pub(crate) fn of_backing_file(self, image: &OsStr, persona: Persona) -> Self {
        let (backing, reason) = match self.what {
            What::Image { image, reason, .. } => (image, reason),
            what => return Self { what, ..self },
        };
        let reason = match persona {
            Persona::Cowshed => format!("backing file '{}': {reason}", backing.display()),
            Persona::QemuImg | Persona::QemuIo => reason,
        };
        let hint = "Could not open backing image.".to_owned();
        Self::image(image, image.display().to_string(), reason)
            .with_hint((persona == Persona::QemuImg).then_some(hint))
    }

    /// The same, of what is called `image` on the command line.
    #[must_use]
    pub(crate) fn of(self, image: &OsStr) -> Self {
        match self.what {
            What::Image { context, reason, .. } => {
                Self { what: What::Image { image: image.to_owned(), context, reason }, ..self }
            }
            what => Self { what, ..self },
        }
    }

    /// What is at fault, without the image and without what was being done.
    pub(crate) fn reason(self) -> String {
        match self.what {
            What::Image { reason, .. } => reason,
            What::Message(message) | What::Usage { message, .. } => message,
            What::Output(error) => error.to_string(),
        }
    }

    /// The same, as what went wrong in `doing`.
    #[must_use]
    pub(crate) fn doing(self, doing: String) -> Self {
        match self.what {
            What::Image { image, reason, .. } => {
                let context = Context::Doing(doing);
                Self { what: What::Image { image, context, reason }, ..self }
            }
            what => Self { what, ..self },
        }
    }

    /// The same with another exit code.
    #[must_use]
    pub(crate) fn with_code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Says what is wrong on standard error, and gives the exit code.
    pub(crate) fn report(self, persona: Persona) -> u8 {
        let name = persona.name();
        let lines = match self.what {
            What::Image { image, context, reason } => {
                let image = escape::terminal(image.as_bytes());
                // Names in errors are as hostile as the images they come from.
                let reason = escape::terminal(reason.as_bytes());
                match (persona, context) {
                    (Persona::Cowshed, _) => format!("{name}: {image}: {reason}"),
                    (Persona::QemuIo, Context::Open) if image.is_empty() => {
                        format!("{name}: can't open: {reason}")
                    }
                    (Persona::QemuIo, Context::Open) => {
                        format!("{name}: can't open device {image}: {reason}")
                    }
                    (Persona::QemuImg, Context::Open) => {
                        format!("{name}: Could not open '{image}': {reason}")
                    }
                    (_, Context::Doing(doing)) if doing.is_empty() => {
                        format!("{name}: {reason}")
                    }
                    (_, Context::Doing(doing)) => {
                        format!("{name}: {doing}: {reason}")
                    }
                }
            }
            What::Message(message) => format!("{name}: {message}"),
            What::Usage { verb, getopt, message } => {
                let verb = verb.map_or(String::new(), |verb| format!(" {verb}"));
                let message = escape::terminal(message.as_bytes());
                let subject = if getopt { &*verb } else { "" };
                format!("{name}{subject}: {message}\nTry '{name}{verb} --help' for more info")
            }
            What::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return BROKEN_PIPE_CODE;
            }
            What::Output(error) => format!("{name}: standard output: {error}"),
        };
        warn(&lines);
        for line in self.hint.iter().flat_map(|hint| hint.lines()) {
            warn(&escape::terminal(line.as_bytes()));
        }
        self.code
    }
}

/// What [`Failure`] is made of when standard output cannot be written: `?` on a write makes one.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(What::Output(error))
    }
}

/// Writes a line on standard error. An error of that has nowhere to go.
pub(crate) fn warn(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
