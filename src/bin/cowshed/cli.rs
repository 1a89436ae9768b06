//! The command line: verbs, the parsing of their options as `qemu-img`'s getopt does it, and its error texts.
//!
//! Options may stand behind file names, short ones may be joined, long ones may be shortened while they are unambiguous,
//! the last of several counts, and a value may start with a hyphen.

use std::ffi::OsString;
use std::io::{self, BufWriter, Write as _};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgMatches, Command};

use crate::failure::Failure;
use crate::persona::Persona;

/// What a verb works with.
pub(crate) struct Session {
    /// Who the command is.
    pub(crate) persona: Persona,
    /// Standard output, buffered; flushed when the verb returns.
    pub(crate) out: BufWriter<io::Stdout>,
}

impl Session {
    /// Writes a line on standard output.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn out_line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")
    }
}

/// A verb: its options, and what it does. The result is the exit code.
struct Verb {
    name: &'static str,
    command: fn() -> Command,
    run: fn(&ArgMatches, &mut Session) -> Result<u8, Failure>,
}

/// A verb out of its module.
macro_rules! verb {
    ($($module:ident)::+) => {
        Verb {
            name: crate::$($module)::+::NAME,
            command: crate::$($module)::+::command,
            run: crate::$($module)::+::run,
        }
    };
}

/// The verbs, in the order of the help.
const VERBS: &[Verb] = &[
    verb!(info),
    verb!(map),
    verb!(check),
    verb!(compare),
    verb!(convert),
    verb!(create),
    verb!(resize),
    verb!(amend),
    verb!(commit),
    verb!(rebase),
    verb!(measure),
    verb!(snapshot),
    verb!(bitmap),
    verb!(dd),
    verb!(bench),
    verb!(io),
    verb!(read),
    verb!(verdict),
    verb!(files::disk),
    verb!(files::ls),
    verb!(files::cat),
    verb!(files::tar),
    verb!(files::find),
    verb!(files::os),
];

/// Runs the command with its arguments, the first of which is its own name; gives the exit code.
///
/// # Errors
/// What ended it.
pub(crate) fn run(persona: Persona, mut arguments: Vec<OsString>) -> Result<u8, Failure> {
    if persona == Persona::QemuIo {
        return run_io(arguments);
    }
    crate::resize::protect_size(&mut arguments);
    let matches = match command(persona).try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) => return help_or_usage(&error, persona, &arguments),
    };
    if matches.get_flag("version") {
        writeln!(io::stdout(), "{}", persona.version())?;
        return Ok(0);
    }
    let verb = matches.subcommand().and_then(|(name, matches)| {
        VERBS.iter().find(|verb| verb.name == name).map(|verb| (verb, matches))
    });
    let Some((verb, matches)) = verb else {
        return Err(Failure::usage(None, "Not enough arguments"));
    };
    let mut session = Session { persona, out: BufWriter::with_capacity(1 << 16, io::stdout()) };
    let result = (verb.run)(matches, &mut session);
    // What was said before an error is said, as a stream would have it.
    let flushed = session.out.flush();
    let code = result?;
    flushed?;
    Ok(code)
}

/// Runs the verb `io` as a program of its own.
fn run_io(arguments: Vec<OsString>) -> Result<u8, Failure> {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_default().to_string_lossy().into_owned();
    let out = BufWriter::with_capacity(1 << 16, io::stdout());
    let mut session = Session { persona: Persona::QemuIo, out };
    let result = crate::io::run_with(program, arguments.collect(), &mut session);
    let flushed = session.out.flush();
    let code = result?;
    flushed?;
    Ok(code)
}

/// The whole command line.
fn command(persona: Persona) -> Command {
    Command::new(persona.name())
        .bin_name(persona.name())
        .arg(
            clap::Arg::new("version")
                .short('V')
                .long("version")
                .action(clap::ArgAction::SetTrue)
                .help("Print the version"),
        )
        .about("Makes, inspects, checks, compares, converts and judges qcow2 images")
        .after_help(
            "Run a command with --help for its options. Verbs, options, output and exit codes are those of qemu-img;\n\
             `read`, `verdict`, `disk`, `ls`, `cat`, `tar`, `find` and `os` are cowshed's own.\n\n\
             An image may name other files. They are opened if they are regular files in the image's own folder or\n\
             below it; --allow PATH allows more.",
        )
        .subcommands(VERBS.iter().map(|verb| {
            (verb.command)().args_override_self(true).infer_long_args(true).next_line_help(true)
        }))
}

/// Prints the help that was asked for, or makes an error in `qemu-img`'s words.
fn help_or_usage(
    error: &clap::Error,
    persona: Persona,
    arguments: &[OsString],
) -> Result<u8, Failure> {
    if error.kind() == ErrorKind::DisplayHelp {
        write!(io::stdout(), "{error}")?;
        return Ok(0);
    }
    let verb =
        arguments.get(1).and_then(|name| VERBS.iter().find(|verb| name.as_os_str() == verb.name));
    let verb = verb.map(|verb| verb.name);
    let argument = context(error, ContextKind::InvalidArg);
    let message = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = context(error, ContextKind::InvalidSubcommand);
            return Err(Failure::usage(None, format!("Command not found: {name}")));
        }
        ErrorKind::UnknownArgument => match argument.strip_prefix('-') {
            Some(letter) if !letter.starts_with('-') => format!("invalid option -- '{letter}'"),
            _ => format!("unrecognized option '{argument}'"),
        },
        ErrorKind::InvalidValue => match arguments.last().and_then(|last| last.to_str()) {
            Some(last) if last.starts_with("--") => format!("option '{last}' requires an argument"),
            Some(last) => {
                format!("option requires an argument -- '{}'", last.chars().last().unwrap_or('-'))
            }
            None => format!("option '{argument}' requires an argument"),
        },
        ErrorKind::TooManyValues => format!("option '{argument}' doesn't allow an argument"),
        ErrorKind::InvalidUtf8 => "an option's value is not valid UTF-8".to_owned(),
        _ => error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    let suggestion = context(error, ContextKind::SuggestedArg);
    if persona == Persona::Cowshed && !suggestion.is_empty() {
        return Err(Failure::option(verb, format!("{message}; did you mean '{suggestion}'?")));
    }
    Err(Failure::option(verb, message))
}

/// A word that the error is about.
fn context(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    }
}
