//! The commands: their names, what they take, and the help on them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::failure::warn;

use super::fault::Fault;
use super::shell::{Shell, no_file};
use super::{access, aio, breaks, discard, mapping, other, read, resize, write};

/// Which command it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Abort,
    AioFlush,
    AioRead,
    AioWrite,
    Alloc,
    Break,
    Close,
    Discard,
    Flush,
    Help,
    Info,
    Length,
    Map,
    Open,
    Quit,
    Read,
    Readv,
    RemoveBreak,
    Reopen,
    Resume,
    Sigraise,
    Sleep,
    Truncate,
    WaitBreak,
    Write,
    Writev,
    Zone,
}

/// What must be open for a command to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Image,
    /// An image that may be written to.
    Writing,
}

/// A command.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) name: &'static str,
    alias: &'static str,
    which: Which,
    needs: Needs,
    /// How many arguments it takes, and how many at most.
    arguments_min: usize,
    arguments_max: Option<usize>,
    /// The arguments as the help shows them.
    arguments: Option<&'static str>,
    summary: &'static str,
    /// What its options mean.
    options: &'static [&'static str],
}

/// The commands in the order of their names.
#[rustfmt::skip]
const COMMANDS: &[Command] = &[
    Command { name: "abort", alias: "", which: Which::Abort, needs: Needs::Nothing, arguments_min: 0, arguments_max: Some(0), arguments: None,
        summary: "simulate a program crash using abort(3)", options: &[] },
    Command { name: "aio_flush", alias: "", which: Which::AioFlush, needs: Needs::Image, arguments_min: 0, arguments_max: Some(0), arguments: None,
        summary: "completes all outstanding aio requests", options: &[] },
    Command { name: "aio_read", alias: "", which: Which::AioRead, needs: Needs::Image, arguments_min: 2, arguments_max: None,
        arguments: Some("[-Ciqrv] [-P pattern] off len [len..]"), summary: "asynchronously reads a number of bytes",
        options: &["-C  report for programs", "-i  only pretend", "-P  compare with this byte", "-q  report nothing", "-r  (has no effect)", "-v  show the bytes"] },
    Command { name: "aio_write", alias: "", which: Which::AioWrite, needs: Needs::Writing, arguments_min: 2, arguments_max: None,
        arguments: Some("[-Cfiqruz] [-P pattern] off len [len..]"), summary: "asynchronously writes a number of bytes",
        options: &["-C  report for programs", "-f  flush behind the write", "-i  only pretend", "-P  write this byte instead of 0xcd", "-q  report nothing", "-r  (has no effect)", "-u  with -z, space may be given up", "-z  write zeros"] },
    Command { name: "alloc", alias: "a", which: Which::Alloc, needs: Needs::Image, arguments_min: 1, arguments_max: Some(2),
        arguments: Some("offset [count]"), summary: "checks if offset is allocated in the file", options: &[] },
    Command { name: "break", alias: "", which: Which::Break, needs: Needs::Image, arguments_min: 2, arguments_max: Some(2),
        arguments: Some("event tag"), summary: "sets a breakpoint on event and tags the stopped request as tag", options: &[] },
    Command { name: "close", alias: "c", which: Which::Close, needs: Needs::Image, arguments_min: 0, arguments_max: Some(0), arguments: None,
        summary: "close the current open file", options: &[] },
    Command { name: "discard", alias: "d", which: Which::Discard, needs: Needs::Writing, arguments_min: 2, arguments_max: None,
        arguments: Some("[-Cq] off len"), summary: "discards a number of bytes at a specified offset",
        options: &["-C  report for programs", "-q  report nothing"] },
    Command { name: "flush", alias: "f", which: Which::Flush, needs: Needs::Image, arguments_min: 0, arguments_max: Some(0), arguments: None,
        summary: "flush all in-core file state to disk", options: &[] },
    Command { name: "help", alias: "?", which: Which::Help, needs: Needs::Nothing, arguments_min: 0, arguments_max: Some(1),
        arguments: Some("[command]"), summary: "help for one or all commands", options: &[] },
    Command { name: "info", alias: "i", which: Which::Info, needs: Needs::Image, arguments_min: 0, arguments_max: Some(0), arguments: None,
        summary: "prints information about the current file", options: &[] },
    Command { name: "length", alias: "l", which: Which::Length, needs: Needs::Image, arguments_min: 0, arguments_max: Some(0), arguments: None,
        summary: "gets the length of the current file", options: &[] },
    Command { name: "map", alias: "", which: Which::Map, needs: Needs::Image, arguments_min: 0, arguments_max: Some(0),
        arguments: Some(""), summary: "prints the allocated areas of a file", options: &[] },
    Command { name: "open", alias: "o", which: Which::Open, needs: Needs::Nothing, arguments_min: 1, arguments_max: None,
        arguments: Some("[-rsCnkU] [-t cache] [-d discard] [-o options] [path]"), summary: "open the file specified by path",
        options: &["-r  for reading only", "-s  write to a temporary file", "-C  copy on read", "-n  as -t none", "-U  although others write to it", "-k, -i MODE  (no effect but for its conditions)",
            "-t  the cache mode: none, directsync, writeback, writethrough (the default), unsafe", "-d  the discard mode: unmap (the default), ignore", "-o  NAME=VALUE,...: options of the block driver"] },
    Command { name: "quit", alias: "q", which: Which::Quit, needs: Needs::Nothing, arguments_min: 0, arguments_max: None, arguments: None,
        summary: "exit the program", options: &[] },
    Command { name: "read", alias: "r", which: Which::Read, needs: Needs::Image, arguments_min: 2, arguments_max: None,
        arguments: Some("[-abCqrv] [-P pattern [-s off] [-l len]] off len"), summary: "reads a number of bytes at a specified offset",
        options: &["-b  the VM state instead of the disk", "-C  report for programs", "-l  with -P, compare so many bytes", "-p  (has no effect)", "-P  compare with this byte",
            "-q  report nothing", "-r  (has no effect)", "-s  with -P, compare from so many bytes on", "-v  show the bytes"] },
    Command { name: "readv", alias: "", which: Which::Readv, needs: Needs::Image, arguments_min: 2, arguments_max: None,
        arguments: Some("[-Cqrv] [-P pattern] off len [len..]"), summary: "reads a number of bytes at a specified offset",
        options: &["-C  report for programs", "-P  compare with this byte", "-q  report nothing", "-r  (has no effect)", "-v  show the bytes"] },
    Command { name: "remove_break", alias: "", which: Which::RemoveBreak, needs: Needs::Image, arguments_min: 1, arguments_max: Some(1),
        arguments: Some("tag"), summary: "remove a breakpoint by tag", options: &[] },
    Command { name: "reopen", alias: "", which: Which::Reopen, needs: Needs::Image, arguments_min: 0, arguments_max: None,
        arguments: Some("[(-r|-w)] [-c cache] [-o options]"), summary: "reopens an image with new options",
        options: &["-r  for reading only", "-w  for reading and writing", "-c  with this cache mode", "-o  NAME=VALUE,...: options of the block driver"] },
    Command { name: "resume", alias: "", which: Which::Resume, needs: Needs::Image, arguments_min: 1, arguments_max: Some(1),
        arguments: Some("tag"), summary: "resumes the request tagged as tag", options: &[] },
    Command { name: "sigraise", alias: "", which: Which::Sigraise, needs: Needs::Nothing, arguments_min: 1, arguments_max: Some(1),
        arguments: Some("signal"), summary: "raises a signal", options: &[] },
    Command { name: "sleep", alias: "", which: Which::Sleep, needs: Needs::Nothing, arguments_min: 1, arguments_max: Some(1), arguments: None,
        summary: "waits for the given value in milliseconds", options: &[] },
    Command { name: "truncate", alias: "t", which: Which::Truncate, needs: Needs::Writing, arguments_min: 1, arguments_max: Some(3),
        arguments: Some("[-m prealloc_mode] off"), summary: "truncates the current file at the given offset",
        options: &["-m  how what is added is allocated: off, metadata, falloc, full"] },
    Command { name: "wait_break", alias: "", which: Which::WaitBreak, needs: Needs::Image, arguments_min: 1, arguments_max: Some(1),
        arguments: Some("tag"), summary: "waits for the suspension of a request", options: &[] },
    Command { name: "write", alias: "w", which: Which::Write, needs: Needs::Writing, arguments_min: 2, arguments_max: None,
        arguments: Some("[-bcCfnqruz] [-P pattern | -s source_file] off len"), summary: "writes a number of bytes at a specified offset",
        options: &["-b  the VM state instead of the disk", "-c  compressed", "-C  report for programs", "-f  flush behind the write", "-n  with -z, only if zeros need not be written out",
            "-p  (has no effect)", "-P  write this byte instead of 0xcd", "-q  report nothing", "-r  (has no effect)", "-s  write what is in this file, again and again", "-u  with -z, space may be given up", "-z  write zeros"] },
    Command { name: "writev", alias: "", which: Which::Writev, needs: Needs::Writing, arguments_min: 2, arguments_max: None,
        arguments: Some("[-Cfqr] [-P pattern] off len [len..]"), summary: "writes a number of bytes at a specified offset",
        options: &["-C  report for programs", "-f  flush behind the write", "-P  write this byte instead of 0xcd", "-q  report nothing", "-r  (has no effect)"] },
    Command { name: "zone_append", alias: "zap", which: Which::Zone, needs: Needs::Image, arguments_min: 3, arguments_max: Some(4),
        arguments: Some("offset len [len..]"), summary: "append write a number of bytes at a specified offset", options: &[] },
    Command { name: "zone_close", alias: "zc", which: Which::Zone, needs: Needs::Image, arguments_min: 2, arguments_max: Some(2),
        arguments: Some("offset len"), summary: "close a range of zones in zone block device", options: &[] },
    Command { name: "zone_finish", alias: "zf", which: Which::Zone, needs: Needs::Image, arguments_min: 2, arguments_max: Some(2),
        arguments: Some("offset len"), summary: "finish a range of zones in zone block device", options: &[] },
    Command { name: "zone_open", alias: "zo", which: Which::Zone, needs: Needs::Image, arguments_min: 2, arguments_max: Some(2),
        arguments: Some("offset len"), summary: "explicit open a range of zones in zone block device", options: &[] },
    Command { name: "zone_report", alias: "zrp", which: Which::Zone, needs: Needs::Image, arguments_min: 2, arguments_max: Some(2),
        arguments: Some("offset number"), summary: "report zone information", options: &[] },
    Command { name: "zone_reset", alias: "zrs", which: Which::Zone, needs: Needs::Image, arguments_min: 2, arguments_max: Some(2),
        arguments: Some("offset len"), summary: "reset a zone write pointer in zone block device", options: &[] },
];

/// What a command is given.
#[derive(Debug)]
pub(super) struct Call {
    /// Its name as it was written.
    pub(super) name: String,
    /// What stands behind it.
    pub(super) arguments: Vec<OsString>,
}

/// The command called `name`.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| {
        command.name == name || (!command.alias.is_empty() && command.alias == name)
    })
}

/// Runs one line of commands' language; whether it succeeded.
///
/// # Errors
/// Standard output cannot be written.
pub(super) async fn run_line(shell: &mut Shell<'_>, line: &[u8]) -> Result<bool, std::io::Error> {
    let mut words = line
        .split(|&byte| byte == b' ')
        .filter(|word| !word.is_empty())
        .map(|word| OsString::from_vec(word.to_vec()));
    let Some(name) = words.next() else { return Ok(true) };
    let name = crate::escape::terminal(name.as_bytes());
    let call = Call { arguments: words.collect(), name };
    let mut result = match find(&call.name) {
        Some(command) => match command.run(shell, call).await {
            Err(Fault::Usage) => Err(command.usage(shell)),
            Err(Fault::Option(message)) => {
                warn(&message);
                Err(command.usage(shell))
            }
            result => result,
        },
        None => Err(Fault::Bare(format!("command \"{}\" not found", call.name))),
    };
    if result.is_ok() {
        result = shell.end_of_command();
    }
    let Err(fault) = result else { return Ok(true) };
    say_fault(shell, fault)?;
    Ok(false)
}

fn say_fault(shell: &mut Shell<'_>, fault: Fault) -> Result<(), std::io::Error> {
    let said = match fault {
        Fault::Output(line) => {
            shell.say(format_args!("{line}\n")).and_then(|()| shell.end_of_command())
        }
        Fault::Error(line) => {
            warn(&format!("{}: {line}", shell.persona().name()));
            Ok(())
        }
        Fault::Bare(line) => {
            warn(&line);
            Ok(())
        }
        Fault::Open(failure) => {
            failure.report(shell.persona());
            Ok(())
        }
        Fault::Said | Fault::Usage | Fault::Option(_) => Ok(()),
        Fault::Broken(error) => Err(Fault::Broken(error)),
    };
    match said {
        Err(Fault::Broken(error)) => Err(error),
        _ => Ok(()),
    }
}

impl Command {
    async fn run(&self, shell: &mut Shell<'_>, call: Call) -> Result<(), Fault> {
        if self.needs != Needs::Nothing && shell.device.is_none() {
            return Err(no_file());
        }
        let (given, name) = (call.arguments.len(), &call.name);
        let (min, max) = (self.arguments_min, self.arguments_max);
        if given < min || max.is_some_and(|max| given > max) {
            let expected = match max {
                None => format!("at least {min}"),
                Some(max) if max == min => format!("{min}"),
                Some(max) => format!("between {min} and {max}"),
            };
            return Err(Fault::Bare(format!(
                "bad argument count {given} to {name}, expected {expected} arguments"
            )));
        }
        if self.needs == Needs::Writing && shell.device()?.read_only {
            return Err(Fault::Error("Block node is read-only".to_owned()));
        }
        match self.which {
            Which::Abort => std::process::abort(),
            Which::AioFlush => {
                shell.drain().await;
                Ok(())
            }
            Which::AioRead => aio::read(shell, call).await,
            Which::AioWrite => aio::write(shell, call).await,
            Which::Alloc => mapping::alloc(shell, call).await,
            Which::Break => breaks::add(shell, &call),
            Which::Close => shell.close().await,
            Which::Discard => discard::discard(shell, call).await,
            Which::Flush => other::flush(shell).await,
            Which::Help => help(shell, &call),
            Which::Info => other::info(shell).await,
            Which::Length => other::length(shell),
            Which::Map => mapping::map(shell).await,
            Which::Open => access::open(shell, call).await,
            Which::Quit => {
                shell.is_over = true;
                Ok(())
            }
            Which::Read => read::read(shell, call).await,
            Which::Readv => read::readv(shell, call).await,
            Which::RemoveBreak => breaks::remove(shell, &call),
            Which::Reopen => access::reopen(shell, call).await,
            Which::Resume => breaks::resume(shell, &call).await,
            Which::Sigraise => other::sigraise(shell, &call),
            Which::Sleep => other::sleep(shell, &call).await,
            Which::Truncate => resize::truncate(shell, call).await,
            Which::WaitBreak => breaks::wait(shell, &call).await,
            Which::Write => write::write(shell, call).await,
            Which::Writev => write::writev(shell, call).await,
            Which::Zone => other::unsupported(&format!("{} failed", self.name.replace('_', " "))),
        }
    }

    /// Says how the command is used.
    fn usage(&self, shell: &mut Shell<'_>) -> Fault {
        let said = shell.say(format_args!(
            "{} {} -- {}\n",
            self.name,
            self.arguments.unwrap_or_default(),
            self.summary
        ));
        said.err().unwrap_or(Fault::Said)
    }

    /// Its line in the help, under the name that was asked for.
    fn help(&self, name: &str) -> String {
        match self.arguments {
            Some(arguments) => format!("{name} {arguments} -- {}\n", self.summary),
            None => format!("{name} -- {}\n", self.summary),
        }
    }
}

fn help(shell: &mut Shell<'_>, call: &Call) -> Result<(), Fault> {
    let Some(name) = call.arguments.first() else {
        for command in COMMANDS {
            shell.say(format_args!("{}", command.help(command.name)))?;
        }
        return shell.say(format_args!("\nUse 'help commandname' for extended help.\n"));
    };
    let name = super::number::shown_text(name);
    let Some(command) = find(&name) else {
        return Err(Fault::Output(format!("command {name} not found")));
    };
    shell.say(format_args!("{}", command.help(&name)))?;
    if !command.options.is_empty() {
        shell.say(format_args!("\n"))?;
        for option in command.options {
            shell.say(format_args!(" {option}\n"))?;
        }
        shell.say(format_args!("\n"))?;
    }
    Ok(())
}
