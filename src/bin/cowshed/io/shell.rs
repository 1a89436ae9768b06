//! What the commands share: the image that is open, the requests in the background, and where output goes.

use std::ffi::OsString;
use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowshed::Error;

use crate::cli::Session;
use crate::failure::warn;
use crate::names::Names;
use crate::open::DiskImage;
use crate::persona::Persona;
use crate::secret::Secrets;

use super::background::Background;
use super::device::{Device, Opener};
use super::fault::{Fault, io_strerror, strerror};
use super::report::{Report, dump};

/// The state between two commands.
pub(super) struct Shell<'a> {
    session: &'a mut Session,
    /// Whether a person watches: what is said is shown at once then.
    is_watched: bool,
    pub(super) opener: Opener,
    pub(super) device: Option<Device>,
    /// Whether images are named by options (`--image-opts`).
    pub(super) image_opts: bool,
    /// Whether `quit` was said.
    pub(super) is_over: bool,
    background: Background<Finished>,
    /// The error that a report in the background met on standard output.
    broken: Option<io::Error>,
}

/// A request of the background that is done.
pub(super) struct Finished {
    /// What failures are reported as.
    pub(super) doing: &'static str,
    pub(super) result: Result<(), Refusal>,
    /// A line before the report.
    pub(super) complaint: Option<String>,
    pub(super) quiet: bool,
    /// Bytes to show, if they are to be.
    pub(super) shown: Option<Vec<u8>>,
    pub(super) report: Report,
}

/// Why a request did nothing.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The engine failed.
    Engine(Error),
    /// The command itself did not let it happen; says why in C's words.
    Here(&'static str),
    /// A request of the command's own failed.
    System(io::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Engine(error)
    }
}

impl<'a> Shell<'a> {
    /// Nothing is open yet.
    pub(super) fn new(
        session: &'a mut Session,
        allow: Vec<std::path::PathBuf>,
        secrets: Secrets,
    ) -> Self {
        Self {
            is_watched: io::stdout().is_terminal(),
            opener: Opener { persona: session.persona, allow, secrets },
            session,
            device: None,
            image_opts: false,
            is_over: false,
            background: Background::new(),
            broken: None,
        }
    }

    /// Who the program is.
    pub(super) fn persona(&self) -> Persona {
        self.opener.persona
    }

    /// The open image. Commands that need one are not run without.
    pub(super) fn device(&self) -> Result<&Device, Fault> {
        self.device.as_ref().ok_or_else(no_file)
    }

    /// The image itself, to keep for as long as a request takes.
    pub(super) fn image(&self) -> Result<Arc<DiskImage>, Fault> {
        Ok(Arc::clone(&self.device()?.image))
    }

    /// Writes on standard output.
    pub(super) fn say(&mut self, text: std::fmt::Arguments<'_>) -> Result<(), Fault> {
        Ok(self.session.out.write_fmt(text)?)
    }

    /// Shows what was said.
    pub(super) fn show(&mut self) -> Result<(), Fault> {
        Ok(self.session.out.flush()?)
    }

    /// Shows from now on at once what is said.
    pub(super) fn show_at_once(&mut self) {
        self.is_watched = true;
    }

    /// Ends a command: shows what it said, if a person watches.
    pub(super) fn end_of_command(&mut self) -> Result<(), Fault> {
        if let Some(error) = self.broken.take() {
            return Err(error.into());
        }
        if self.is_watched { self.show() } else { Ok(()) }
    }

    /// Runs a request to its end, those of the background beside it, and says how long it took.
    pub(super) async fn timed<T>(&mut self, request: impl Future<Output = T>) -> (T, Duration) {
        let start = Instant::now();
        let result = self.wait(request).await;
        (result, start.elapsed())
    }

    /// Runs `future` to its end, and the requests of the background beside it.
    pub(super) async fn wait<T>(&mut self, future: impl Future<Output = T>) -> T {
        let Self { background, session, device, broken, opener, .. } = self;
        let say = |finished: Finished| {
            finished.say(session, device.as_ref(), opener.persona, broken);
        };
        background.beside(future, say).await
    }

    /// Starts a request of the background.
    pub(super) async fn start(&mut self, request: impl Future<Output = Finished> + 'static) {
        self.background.start(request).await;
    }

    /// Lets the requests of the background go on as far as they get without waiting.
    pub(super) async fn start_what_can(&mut self) {
        self.background.go_on().await;
    }

    /// Waits for all requests of the background.
    pub(super) async fn drain(&mut self) {
        let Self { background, session, device, broken, opener, .. } = self;
        let say = |finished: Finished| {
            finished.say(session, device.as_ref(), opener.persona, broken);
        };
        background.drain(say).await;
    }

    /// Closes the image, if one is open, behind the requests of the background.
    pub(super) async fn close(&mut self) -> Result<(), Fault> {
        self.drain().await;
        match self.device.take() {
            Some(device) => device.close(self.opener.persona).await.map_err(Fault::Open),
            None => Ok(()),
        }
    }

    /// The result of a request: of one that failed, what to say.
    pub(super) fn check<T>(&self, doing: &str, result: Result<T, Refusal>) -> Result<T, Fault> {
        result.map_err(|refusal| {
            Fault::Output(refusal.line(doing, self.device.as_ref(), self.persona()))
        })
    }

    /// The names out of the text of an option `-o`.
    pub(super) fn names(&self, text: &OsString) -> Names {
        let (names, warnings) = crate::names::parse(&text.to_string_lossy());
        for warning in warnings {
            warn(&format!("{}: {warning}", self.persona().name()));
        }
        names
    }
}

/// What is said of a command that needs an image.
pub(super) fn no_file() -> Fault {
    Fault::Bare("no file open, try 'help open'".to_owned())
}

impl Refusal {
    fn line(&self, doing: &str, device: Option<&Device>, persona: Persona) -> String {
        match self {
            Self::Engine(error) => {
                if let Some(device) = device {
                    device.explain(persona, error);
                }
                format!("{doing} failed: {}", strerror(error))
            }
            Self::System(error) => format!("{doing} failed: {}", io_strerror(error)),
            Self::Here(text) => format!("{doing} failed: {text}"),
        }
    }
}

impl Finished {
    fn say(
        self,
        session: &mut Session,
        device: Option<&Device>,
        persona: Persona,
        broken: &mut Option<io::Error>,
    ) {
        let out = &mut session.out;
        let mut say = || {
            if let Err(refusal) = &self.result {
                return writeln!(out, "{}", refusal.line(self.doing, device, persona));
            }
            if let Some(complaint) = &self.complaint {
                writeln!(out, "{complaint}")?;
            }
            if self.quiet {
                return Ok(());
            }
            if let Some(bytes) = &self.shown {
                write!(out, "{}", dump(bytes, self.report.offset))?;
            }
            write!(out, "{}", self.report)
        };
        if let Err(error) = say() {
            broken.get_or_insert(error);
        }
    }
}
