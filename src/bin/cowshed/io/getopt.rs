//! Options as C's `getopt_long` reads them, for a command line that `clap` does not know: the commands of this language,
//! and the program called as `qemu-io`.
//!
//! Options may stand behind operands, short ones may be joined, long ones may be shortened while they are unambiguous,
//! and `--` ends them. The messages are those of the GNU C library.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// A long option: its name, whether it has a value, and the letter that it is reported as.
#[derive(Debug, Clone, Copy)]
pub(super) struct Long {
    pub(super) name: &'static str,
    pub(super) has_value: bool,
    pub(super) letter: char,
}

/// The arguments of a command, behind its name.
#[derive(Debug)]
pub(super) struct Getopt {
    program: String,
    /// The short options; those with a value are followed by a colon.
    short: &'static str,
    long: &'static [Long],
    arguments: VecDeque<OsString>,
    /// The rest of joined short options.
    joined: VecDeque<u8>,
    operands: Vec<OsString>,
}

impl Getopt {
    /// Reads `arguments`; `program` is the name in front of messages.
    pub(super) fn new(
        program: impl Into<String>,
        short: &'static str,
        long: &'static [Long],
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Self {
        Self {
            program: program.into(),
            short,
            long,
            arguments: arguments.into_iter().collect(),
            joined: VecDeque::new(),
            operands: Vec::new(),
        }
    }

    /// The letter of the next option and its value, which is empty for those without.
    ///
    /// # Errors
    /// The line that `getopt` prints.
    pub(super) fn next(&mut self) -> Result<Option<(char, OsString)>, String> {
        if let Some(letter) = self.joined.pop_front() {
            return self.short(letter).map(Some);
        }
        while let Some(argument) = self.arguments.pop_front() {
            match argument.as_bytes() {
                b"--" => self.operands.extend(self.arguments.drain(..)),
                [b'-', b'-', long @ ..] if !self.long.is_empty() => {
                    return self.long(long).map(Some);
                }
                [b'-', letter, rest @ ..] => {
                    self.joined = rest.iter().copied().collect();
                    return self.short(*letter).map(Some);
                }
                _ => self.operands.push(argument),
            }
        }
        Ok(None)
    }

    /// What is no option, once there are no more of those.
    pub(super) fn operands(self) -> Vec<OsString> {
        self.operands
    }

    fn short(&mut self, letter: u8) -> Result<(char, OsString), String> {
        let shown = char::from(letter);
        let at = (letter != b':').then(|| self.short.bytes().position(|known| known == letter));
        let Some(at) = at.flatten() else {
            return Err(format!("{}: invalid option -- '{shown}'", self.program));
        };
        if self.short.as_bytes().get(at + 1) != Some(&b':') {
            return Ok((shown, OsString::new()));
        }
        if !self.joined.is_empty() {
            return Ok((shown, OsString::from_vec(self.joined.drain(..).collect())));
        }
        match self.arguments.pop_front() {
            Some(value) => Ok((shown, value)),
            None => Err(format!("{}: option requires an argument -- '{shown}'", self.program)),
        }
    }

    fn long(&mut self, text: &[u8]) -> Result<(char, OsString), String> {
        let program = &self.program;
        let end = text.iter().position(|&byte| byte == b'=').unwrap_or(text.len());
        let (name, value) = (&text[..end], text.get(end + 1..));
        let mut found =
            self.long.iter().filter(|long| long.name.as_bytes().starts_with(name)).peekable();
        let exact = self.long.iter().find(|long| long.name.as_bytes() == name);
        let shown = String::from_utf8_lossy(name);
        let Some(&long) = exact.or(found.peek().copied()) else {
            return Err(format!("{program}: unrecognized option '--{shown}'"));
        };
        if exact.is_none() && found.clone().any(|other| other.letter != long.letter) {
            let names: String = found.map(|long| format!(" '--{}'", long.name)).collect();
            return Err(format!(
                "{program}: option '--{shown}' is ambiguous; possibilities:{names}"
            ));
        }
        match (long.has_value, value) {
            (true, Some(value)) => Ok((long.letter, OsStr::from_bytes(value).to_owned())),
            (true, None) => match self.arguments.pop_front() {
                Some(value) => Ok((long.letter, value)),
                None => Err(format!("{program}: option '--{}' requires an argument", long.name)),
            },
            (false, None) => Ok((long.letter, OsString::new())),
            (false, Some(_)) => {
                Err(format!("{program}: option '--{}' doesn't allow an argument", long.name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &[Long] = &[
        Long { name: "cmd", has_value: true, letter: 'c' },
        Long { name: "cache", has_value: true, letter: 't' },
        Long { name: "read-only", has_value: false, letter: 'r' },
    ];

    fn read(arguments: &[&str]) -> Result<(String, Vec<OsString>), String> {
        let mut options =
            Getopt::new("io", "rc:t:", LONG, arguments.iter().map(|&text| text.into()));
        let mut out = String::new();
        while let Some((letter, value)) = options.next()? {
            out.push(letter);
            out.push_str(&value.to_string_lossy());
            out.push(' ');
        }
        Ok((out, options.operands()))
    }

    #[test]
    fn options_are_read_wherever_they_stand() {
        let all = ["-rc", "a b", "file", "-t5", "--read", "--cmd=x", "--cache", "y", "--", "-r"];
        let (options, operands) = read(&all).unwrap();
        assert_eq!(options, "r ca b t5 r cx ty ");
        assert_eq!(operands, ["file", "-r"]);
    }

    // Expected texts are those of qemu-io, version 10.0.2.
    #[test]
    fn messages_are_those_of_getopt() {
        for (arguments, message) in [
            (["-x"], "io: invalid option -- 'x'"),
            (["-c"], "io: option requires an argument -- 'c'"),
            (["--foo"], "io: unrecognized option '--foo'"),
            (["--cmd"], "io: option '--cmd' requires an argument"),
            (["--read-only=3"], "io: option '--read-only' doesn't allow an argument"),
            (["--c"], "io: option '--c' is ambiguous; possibilities: '--cmd' '--cache'"),
        ] {
            assert_eq!(read(&arguments).unwrap_err(), message);
        }
    }
}
