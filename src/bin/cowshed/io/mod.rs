//! `io`: the command language of `qemu-io`, which reads, writes and discards ranges of a disk, one line a command. Under
//! the name `qemu-io` the whole program is it.
//!
//! Output, messages and exit codes are those of `qemu-io` 10.0.2, whose behaviour each command matches (qemu-io-cmds.c).
//! What a command says of requests goes to standard output, what it says of itself to standard error, as there.

mod access;
mod aio;
mod background;
mod breaks;
mod command;
mod copy_on_read;
mod device;
mod discard;
mod fault;
mod flags;
mod getopt;
mod mapping;
mod number;
mod other;
mod read;
mod report;
mod resize;
mod settings;
mod shell;
mod snapshot;
mod write;

use std::ffi::OsString;
use std::io::BufRead as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use crate::cli::Session;
use crate::failure::{Failure, warn};
use crate::names::Names;
use crate::open;
use crate::persona::Persona;
use crate::secret::Secrets;

use fault::Fault;
pub(crate) use fault::strerror;
use flags::Flags;
use getopt::{Getopt, Long};
use settings::Settings;
use shell::Shell;

/// The verb's name.
pub(crate) const NAME: &str = "io";

const SHORT: &str = "hVc:d:f:rsnCmki:t:T:U";
#[rustfmt::skip]
const LONG: &[Long] = &[
    Long { name: "help", has_value: false, letter: 'h' },
    Long { name: "version", has_value: false, letter: 'V' },
    Long { name: "cmd", has_value: true, letter: 'c' },
    Long { name: "format", has_value: true, letter: 'f' },
    Long { name: "read-only", has_value: false, letter: 'r' },
    Long { name: "snapshot", has_value: false, letter: 's' },
    Long { name: "nocache", has_value: false, letter: 'n' },
    Long { name: "copy-on-read", has_value: false, letter: 'C' },
    Long { name: "misalign", has_value: false, letter: 'm' },
    Long { name: "native-aio", has_value: false, letter: 'k' },
    Long { name: "aio", has_value: true, letter: 'i' },
    Long { name: "discard", has_value: true, letter: 'd' },
    Long { name: "cache", has_value: true, letter: 't' },
    Long { name: "trace", has_value: true, letter: 'T' },
    Long { name: "object", has_value: true, letter: OBJECT },
    Long { name: "image-opts", has_value: false, letter: IMAGE_OPTS },
    Long { name: "force-share", has_value: false, letter: 'U' },
    Long { name: "allow", has_value: true, letter: ALLOW },
];
/// What stands for the long options without a short one.
const OBJECT: char = '1';
const IMAGE_OPTS: char = '2';
const ALLOW: char = '3';

/// Its options. They are read by [`Getopt`], which reads them as `qemu-io` does.
pub(crate) fn command() -> Command {
    Command::new(NAME)
        .about("Read, write and discard ranges of a disk by commands, as qemu-io does")
        .disable_help_flag(true)
        .arg(
            Arg::new("arguments")
                .value_name("[-c COMMAND]... [OPTIONS] [FILE]")
                .value_parser(value_parser!(OsString))
                .num_args(0..)
                .trailing_var_arg(true)
                .allow_hyphen_values(true),
        )
}

/// Runs it.
pub(crate) fn run(matches: &ArgMatches, session: &mut Session) -> Result<u8, Failure> {
    let arguments = matches.get_many::<OsString>("arguments").into_iter().flatten().cloned();
    run_with(format!("{} {NAME}", session.persona.name()), arguments.collect(), session)
}

/// Runs it with the arguments of a program of which it is all.
pub(crate) fn run_with(
    program: String,
    arguments: Vec<OsString>,
    session: &mut Session,
) -> Result<u8, Failure> {
    match open::block_on(run_program(program, arguments, session)) {
        Ok(code) => Ok(code),
        Err(Fault::Broken(error)) => Err(error.into()),
        Err(Fault::Open(failure)) => Err(failure),
        Err(Fault::Error(line)) => Err(Failure::message(line)),
        Err(Fault::Output(line) | Fault::Bare(line) | Fault::Option(line)) => {
            warn(&line);
            Ok(1)
        }
        Err(Fault::Usage | Fault::Said) => Ok(1),
    }
}

async fn run_program(
    program: String,
    arguments: Vec<OsString>,
    session: &mut Session,
) -> Result<u8, Fault> {
    let persona = session.persona;
    let mut flags = Flags::default();
    let (mut commands, mut format, mut image_opts) = (Vec::new(), None, false);
    let mut allow: Vec<PathBuf> = Vec::new();
    let mut secrets = Secrets::default();
    let mut options = Getopt::new(program, SHORT, LONG, arguments);
    loop {
        let (letter, value) = match options.next() {
            Ok(Some(option)) => option,
            Ok(None) => break,
            Err(message) => {
                warn(&message);
                session.out_line(&usage(persona))?;
                return Ok(1);
            }
        };
        match letter {
            'h' => {
                session.out_line(&usage(persona))?;
                return Ok(0);
            }
            'V' => {
                session.out_line(persona.version())?;
                return Ok(0);
            }
            'c' => commands.push(value),
            'f' => format = Some(value.to_string_lossy().into_owned()),
            'T' => return Err(Fault::Error("--trace is not supported".to_owned())),
            OBJECT => secrets.add(&value.to_string_lossy()).map_err(Fault::Error)?,
            IMAGE_OPTS => image_opts = true,
            ALLOW => allow.push(value.into()),
            // Memory is as aligned as the storage asks for.
            'm' => {}
            _ => access::flag(&mut flags, letter, &value)?,
        }
    }
    let mut operands = options.operands();
    if operands.len() > 1 {
        session.out_line(&usage(persona))?;
        return Ok(1);
    }
    if image_opts && format.is_some() {
        return Err(Fault::Error("--image-opts and -f are mutually exclusive".to_owned()));
    }
    let mut shell = Shell::new(session, allow, secrets);
    shell.image_opts = image_opts;
    if let Some(file) = operands.pop() {
        let mut names = Names::new();
        if image_opts {
            names = shell.names(&file);
        }
        names.extend(format.map(|format| ("driver".to_owned(), format)));
        let file = (!image_opts).then_some(file);
        access::open_file(&mut shell, file, Settings { flags, names }).await?;
    }

    let mut is_good = true;
    if commands.is_empty() {
        is_good = converse(&mut shell).await?;
    }
    for line in commands {
        if shell.is_over {
            break;
        }
        is_good &= command::run_line(&mut shell, line.as_bytes()).await?;
    }
    shell.close().await?;
    Ok(u8::from(!is_good))
}

/// Reads commands from standard input; whether all succeeded.
async fn converse(shell: &mut Shell<'_>) -> Result<bool, Fault> {
    let mut is_good = true;
    while !shell.is_over {
        shell.say(format_args!("{}> ", shell.persona().name()))?;
        shell.show()?;
        // On another thread: requests in the background go on and report meanwhile.
        let line = blocking::unblock(|| {
            let mut line = Vec::new();
            std::io::stdin().lock().read_until(b'\n', &mut line).map(|_| line)
        });
        let line = shell.wait(line).await?;
        let Some(line) = line.strip_suffix(b"\n").or((!line.is_empty()).then_some(&*line)) else {
            break;
        };
        is_good &= command::run_line(shell, line).await?;
    }
    Ok(is_good)
}

fn usage(persona: Persona) -> String {
    let (name, allow) = match persona {
        Persona::QemuIo => ("qemu-io", ""),
        _ => (
            "cowshed io",
            "      --allow PATH     let images name files in the folder PATH, or the file PATH\n",
        ),
    };
    format!(
        "Usage: {name} [OPTIONS]... [-c COMMAND]... [FILE]\n\
         Reads, writes and discards ranges of a disk, by the commands given or those on standard input.\n\
         \n\
         \x20 -c, --cmd COMMAND    run this command; may be given several times\n\
         \x20 -f, --format FMT     take the image for FMT (qcow2, raw or luks)\n\
         \x20 -r, --read-only      open the image for reading only\n\
         \x20 -n, --nocache        as -t none\n\
         \x20 -t, --cache MODE     none, directsync, writeback, writethrough (the default) or unsafe\n\
         \x20 -d, --discard MODE   unmap (the default) or ignore\n\
         \x20 -i, --aio MODE       threads, native or io_uring; only checked, the best is taken\n\
         \x20 -k, --native-aio     as -i native\n\
         \x20 -m, --misalign       no effect\n\
         \x20 -U, --force-share    open the image although a program writes to it\n\
         \x20     --image-opts     FILE is a list of options: driver=qcow2,file.filename=NAME\n\
         \x20     --object OBJECT  secret,id=ID,data=TEXT or file=NAME: a passphrase for encrypt.key-secret\n\
         {allow}\
         \x20 -s, --snapshot       write to a temporary file, and leave the image as it is\n\
         \x20 -C, --copy-on-read   what a read finds below the image becomes the image's own\n\
         \x20 -T is refused: it is not supported\n\
         \x20 -h, --help           print this\n\
         \x20 -V, --version        print the version\n\
         \n\
         '{name} -c help' lists the commands.",
    )
}
