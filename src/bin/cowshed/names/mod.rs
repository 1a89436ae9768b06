//! Options by name, and the three ways in which a name on the command line gives them: `name=value,name=value`,
//! `json:{...}`, and a protocol in front of a file name. An option of a part of an image has the name of the part and a
//! dot in front of its own: `file.filename`, `backing.driver`.
//!
//! What the options mean is not known here.

mod json;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

pub(crate) use json::to_json;

/// Options by name; of several with one name the last counts.
pub(crate) type Names = BTreeMap<String, String>;

/// What a name on the command line is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// The name of a file.
    File(OsString),
    /// The options of an image.
    Options(Names),
}

/// Takes a name apart that may have a protocol in front.
///
/// # Errors
/// The protocol is not known, or what is behind it is wrong.
pub(crate) fn named(name: &OsStr) -> Result<Named, String> {
    let bytes = name.as_bytes();
    let Some(colon) = protocol_len(bytes) else { return Ok(Named::File(name.to_owned())) };
    let behind = &bytes[colon + 1..];
    match &bytes[..colon] {
        b"file" if behind.is_empty() => Err("The 'file' block driver requires a file name".into()),
        b"file" => Ok(Named::File(path_of(behind))),
        b"json" => json::parse(behind).map(Named::Options),
        b"blkdebug" => {
            let name = name.to_string_lossy().into_owned();
            Ok(Named::Options(Names::from([("file.filename".into(), name)])))
        }
        b"null-co" if behind == b"//" => {
            Ok(Named::Options(Names::from([("driver".into(), "null-co".into())])))
        }
        b"null-co" => Err("The only allowed filename for this driver is 'null-co://'".into()),
        // A file may have such a name; QEMU finds none then.
        _ if std::fs::symlink_metadata(name).is_ok() => Ok(Named::File(name.to_owned())),
        other => Err(format!("Unknown protocol '{}'", String::from_utf8_lossy(other))),
    }
}

/// The length of the protocol in front of a name, if it has one: there is a colon before any slash.
pub(crate) fn protocol_len(name: &[u8]) -> Option<usize> {
    let first = name.iter().position(|byte| matches!(byte, b':' | b'/'))?;
    (name[first] == b':').then_some(first)
}

/// The name of another image as it is seen from here where an image called `from` names it: beside that, by the letters.
pub(crate) fn beside(from: &OsStr, name: &OsStr) -> OsString {
    if protocol_len(name.as_bytes()).is_some() || protocol_len(from.as_bytes()).is_some() {
        return name.to_owned();
    }
    Path::new(from).parent().unwrap_or(Path::new("")).join(name).into_os_string()
}

/// A path that no one takes for a protocol and something behind it.
fn path_of(name: &[u8]) -> OsString {
    let prefix: &[u8] = if protocol_len(name).is_some() { b"./" } else { b"" };
    OsString::from_vec([prefix, name].concat())
}

/// Takes the options of a part out of those of the whole, without the part's name.
pub(crate) fn take_part(names: &mut Names, part: &str) -> Names {
    let prefix = format!("{part}.");
    let (part, rest) =
        std::mem::take(names).into_iter().partition(|(name, _)| name.starts_with(&prefix));
    *names = rest;
    let part: Names = part;
    part.into_iter().map(|(name, value)| (name[prefix.len()..].to_owned(), value)).collect()
}

/// Refuses options that the driver of a protocol does not have.
///
/// # Errors
/// There is one, in QEMU's words.
pub(crate) fn must_be_known(names: &Names, driver: &str, known: &[&str]) -> Result<(), String> {
    match names.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(format!("Block protocol '{driver}' doesn't support the option '{name}'")),
        None => Ok(()),
    }
}

/// Splits `name=value,name=value`; a comma in a value is doubled. The lines are warnings.
pub(crate) fn parse(text: &str) -> (Names, Vec<String>) {
    let (mut names, mut warnings) = (Names::new(), Vec::new());
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        if let Some(mut tail) = behind.strip_prefix('=') {
            let mut value = String::new();
            loop {
                let end = tail.find(',').unwrap_or(tail.len());
                value.push_str(&tail[..end]);
                tail = &tail[end..];
                match tail.strip_prefix(",,") {
                    Some(behind) => {
                        value.push(',');
                        tail = behind;
                    }
                    None => break,
                }
            }
            names.insert(name.to_owned(), value);
            rest = tail.strip_prefix(',').unwrap_or(tail);
        } else {
            let (full, value) = match name.strip_prefix("no") {
                Some(full) => (full, "off"),
                None => (name, "on"),
            };
            warnings.push(format!(
                "warning: short-form boolean option '{name}' deprecated\nPlease use {full}={value} instead"
            ));
            names.insert(full.to_owned(), value.to_owned());
            rest = behind.strip_prefix(',').unwrap_or(behind);
        }
    }
    (names, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values are those of qemu-io, version 10.0.2.
    #[test]
    fn options_are_split_as_qemu_splits_them() {
        let pairs = |text| {
            let (names, warnings) = parse(text);
            (names.into_iter().collect::<Vec<_>>(), warnings.len())
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(pairs("a=1,b=2,a=3"), (vec![pair("a", "3"), pair("b", "2")], 0));
        assert_eq!(pairs("a=1,,2,b="), (vec![pair("a", "1,2"), pair("b", "")], 0));
        assert_eq!(pairs("a=b,c"), (vec![pair("a", "b"), pair("c", "on")], 1));
        assert_eq!(pairs("noc"), (vec![pair("c", "off")], 1));
        assert_eq!(pairs(","), (vec![pair("", "on")], 1));
        assert_eq!(pairs("a=1,,"), (vec![pair("a", "1,")], 0));
    }

    #[test]
    fn a_colon_before_any_slash_makes_a_protocol() {
        let file = |name: &str| Ok(Named::File(name.into()));
        let named = |name: &str| named(OsStr::new(name));
        assert_eq!(named("a/b:c"), file("a/b:c"));
        assert_eq!(named("file:a"), file("a"));
        assert_eq!(named("file:a:b"), file("./a:b"));
        assert_eq!(named("file:/a:b"), file("/a:b"));
        assert_eq!(named("file:").unwrap_err(), "The 'file' block driver requires a file name");
        assert_eq!(named("nowhere:a").unwrap_err(), "Unknown protocol 'nowhere'");
        let null = Names::from([("driver".into(), "null-co".into())]);
        assert_eq!(named("null-co://"), Ok(Named::Options(null)));
    }

    #[test]
    fn parts_are_taken_with_their_dots() {
        let (mut names, _) = parse("a=1,file.b=2,file.c.d=3,filename=4");
        let (part, _) = parse("b=2,c.d=3");
        assert_eq!(take_part(&mut names, "file"), part);
        assert_eq!(names, parse("a=1,filename=4").0);
    }
}
