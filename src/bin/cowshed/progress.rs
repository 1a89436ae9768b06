//! How far a verb is: a bar on a terminal, `qemu-img`'s percentages elsewhere.

use std::io::{self, IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows progress, or nothing.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Nothing is shown.
    Off,
    /// A bar on standard error, over a total in bytes.
    Bar(ProgressBar),
    /// The percentage on standard output, over the line before, in steps.
    Percent {
        /// The total in bytes.
        total: u64,
        /// How many percent to be silent for.
        step: f32,
        /// The percentage printed last.
        printed: f32,
    },
}

impl Progress {
    /// Shows progress, if it is asked for, towards a total that [`Self::start`] sets; percentages in steps of more than
    /// `step`. The first thing shown is 0.
    pub(crate) fn new(asked_for: bool, step: f32) -> io::Result<Self> {
        if !asked_for {
            return Ok(Self::Off);
        }
        if io::stdout().is_terminal() && io::stderr().is_terminal() {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            return Ok(Self::Bar(bar));
        }
        let progress = Self::Percent { total: 0, step, printed: 0.0 };
        progress.print(0.0)?;
        Ok(progress)
    }

    /// Whether anything is shown.
    pub(crate) fn is_shown(&self) -> bool {
        !matches!(self, Self::Off)
    }

    /// Sets the total in bytes.
    pub(crate) fn start(&mut self, len: u64) {
        match self {
            Self::Off => {}
            Self::Bar(bar) => {
                bar.set_length(len);
                let template =
                    "{wide_bar} {percent:>3}% {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
            }
            Self::Percent { total, .. } => *total = len,
        }
    }

    /// Says that `done` bytes of the total are done.
    pub(crate) fn set(&mut self, done: u64) -> io::Result<()> {
        match self {
            Self::Off => {}
            Self::Bar(bar) => bar.set_position(done),
            Self::Percent { total, step, printed } => {
                #[allow(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    reason = "a percentage"
                )]
                let percent = (100.0 * done as f64 / (*total).max(1) as f64).min(100.0) as f32;
                if (percent - *printed).abs() > *step || percent >= 100.0 {
                    *printed = percent;
                    self.print(percent)?;
                }
            }
        }
        Ok(())
    }

    /// Says that everything is done.
    pub(crate) fn complete(&mut self) -> io::Result<()> {
        match self {
            Self::Off | Self::Bar(_) => Ok(()),
            Self::Percent { .. } => self.print(100.0),
        }
    }

    /// Ends the display.
    pub(crate) fn end(self) -> io::Result<()> {
        match self {
            Self::Off => Ok(()),
            Self::Bar(bar) => {
                bar.finish_and_clear();
                Ok(())
            }
            Self::Percent { .. } => writeln!(io::stdout()),
        }
    }

    fn print(&self, percent: f32) -> io::Result<()> {
        let mut out = io::stdout().lock();
        write!(out, "    ({percent:.2}/100%)\r")?;
        out.flush()
    }
}
