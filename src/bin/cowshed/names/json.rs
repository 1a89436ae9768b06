//! `json:{...}` as options by name, and options by name as `json:{...}`.
//!
//! Source: QEMU, qobject/json-parser.c: texts may stand between single quotes, and no two members of an object have one
//! name. `block.c`, bdrv_refresh_filename: how an image is named that has no file name of its own.

use std::collections::BTreeMap;

use super::Names;
use crate::json::{bucket, write_text};

/// How deep objects and lists may lie in each other.
const DEPTH_MAX: usize = 64;

/// The options that an object holds, those of its parts with the names of the parts in front.
///
/// # Errors
/// It is no object, or no JSON.
pub(super) fn parse(text: &[u8]) -> Result<Names, String> {
    let mut parser = Parser { text, at: 0 };
    let failed = |reason: &str| format!("Could not parse the JSON options: {reason}");
    parser.skip_space();
    if parser.peek() != Some(b'{') {
        // Anything but an object is said to be wrong only if it is JSON.
        let value = parser.value(&mut Names::new(), String::new(), 0);
        value.map_err(|error| failed(&error))?;
        return Err("Invalid JSON object given".into());
    }
    let mut names = Names::new();
    parser.value(&mut names, String::new(), 0).map_err(|error| failed(&error))?;
    parser.skip_space();
    match parser.peek() {
        None => Ok(names),
        Some(_) => Err(failed("Expecting at most one JSON value")),
    }
}

/// The options as the object that they would be in a `json:` name, which is not in front.
pub(crate) fn to_json(names: &Names) -> String {
    let mut tree = Tree::default();
    for (name, value) in names {
        let mut place = &mut tree;
        // QEMU keeps those of encryption in one place.
        let is_whole = name.starts_with("encrypt.");
        for part in name.split(|it: char| it == '.' && !is_whole) {
            place = place.members.entry(part.to_owned()).or_default();
        }
        place.value = Some(value.clone());
    }
    let mut out = String::new();
    tree.write(&mut out);
    out
}

/// Options by the parts of their names.
#[derive(Default)]
struct Tree {
    value: Option<String>,
    members: BTreeMap<String, Tree>,
}

impl Tree {
    fn write(&self, out: &mut String) {
        if let Some(value) = &self.value {
            match value.as_str() {
                "on" => out.push_str("true"),
                "off" => out.push_str("false"),
                number if number.parse::<u64>().is_ok() => out.push_str(number),
                text => write_text(out, text.as_bytes()),
            }
            return;
        }
        let mut members: Vec<_> = self.members.iter().collect();
        members.sort_by_key(|(name, _)| bucket(name));
        out.push('{');
        for (index, (name, member)) in members.into_iter().enumerate() {
            out.push_str(if index == 0 { "" } else { ", " });
            write_text(out, name.as_bytes());
            out.push_str(": ");
            member.write(out);
        }
        out.push('}');
    }
}

/// Reads JSON from where it is.
struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Takes this byte, behind space.
    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Reads a value, and puts what it holds into `names`, under `name`.
    fn value(&mut self, names: &mut Names, name: String, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err("JSON nesting depth limit exceeded".into());
        }
        self.skip_space();
        match self.peek().ok_or_else(early_end)? {
            b'{' => self.object(names, &name, depth),
            b'[' => self.list(names, &name, depth),
            b'"' | b'\'' => {
                let text = self.text()?;
                names.insert(name, text);
                Ok(())
            }
            _ => {
                let value = self.word()?;
                names.insert(name, value);
                Ok(())
            }
        }
    }

    fn object(&mut self, names: &mut Names, name: &str, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.take(b'}') {
            return Ok(());
        }
        let mut keys: Vec<String> = Vec::new();
        loop {
            self.skip_space();
            if !matches!(self.peek().ok_or_else(early_end)?, b'"' | b'\'') {
                return Err("JSON parse error, key is not a string in object".into());
            }
            let key = self.text()?;
            if keys.contains(&key) {
                return Err("JSON parse error, duplicate key".into());
            }
            if !self.take(b':') {
                return Err(self.missing("missing : in object pair"));
            }
            self.value(names, joined(name, &key), depth + 1)?;
            keys.push(key);
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.missing("expected separator in dict"));
            }
        }
    }

    fn list(&mut self, names: &mut Names, name: &str, depth: usize) -> Result<(), String> {
        self.at += 1;
        if self.take(b']') {
            return Ok(());
        }
        let mut index = 0_u32;
        loop {
            self.value(names, joined(name, &index.to_string()), depth + 1)?;
            index = index.saturating_add(1);
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.missing("expected separator in list"));
            }
        }
    }

    /// A text between the quotes that stand here.
    fn text(&mut self) -> Result<String, String> {
        let quote = self.text[self.at];
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let byte = self.peek().ok_or_else(early_end)?;
            self.at += 1;
            match byte {
                b'\\' => {
                    let escaped = self.peek().ok_or_else(early_end)?;
                    self.at += 1;
                    match escaped {
                        b'b' => bytes.push(8),
                        b'f' => bytes.push(12),
                        b'n' => bytes.push(b'\n'),
                        b'r' => bytes.push(b'\r'),
                        b't' => bytes.push(b'\t'),
                        b'"' | b'\'' | b'\\' | b'/' => bytes.push(escaped),
                        b'u' => {
                            let character = self.escaped_character()?;
                            bytes.extend(character.to_string().bytes());
                        }
                        _ => return Err("JSON parse error, invalid escape in string".into()),
                    }
                }
                byte if byte == quote => break,
                byte if byte < 0x20 => {
                    return Err("JSON parse error, stray control character".into());
                }
                byte => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| "JSON parse error, invalid UTF-8 sequence".into())
    }

    /// What stands behind `\u`: one UTF-16 unit, or two that are a pair.
    fn escaped_character(&mut self) -> Result<char, String> {
        let wrong = || "JSON parse error, invalid hex escape in string".to_owned();
        let mut unit = || {
            let digits = self.text.get(self.at..self.at + 4).ok_or_else(early_end)?;
            self.at += 4;
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            u16::from_str_radix(digits, 16).map_err(|_| wrong())
        };
        let first = unit()?;
        let mut units = vec![first];
        if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with(b"\\u") {
            self.at += 2;
            let digits = self.text.get(self.at..self.at + 4).ok_or_else(early_end)?;
            self.at += 4;
            let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
            units.push(u16::from_str_radix(digits, 16).map_err(|_| wrong())?);
        }
        let character = char::decode_utf16(units).next().and_then(Result::ok);
        character.filter(|&character| character != '\0').ok_or_else(wrong)
    }

    /// A number or a word, as the text of an option.
    fn word(&mut self) -> Result<String, String> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        match word.as_str() {
            "true" => Ok("on".into()),
            "false" => Ok("off".into()),
            "null" => Ok(String::new()),
            number if number.parse::<f64>().is_ok_and(f64::is_finite) => Ok(word),
            "" => Err("JSON parse error, expecting value".into()),
            _ => Err(format!("JSON parse error, invalid keyword '{word}'")),
        }
    }

    fn missing(&self, what: &str) -> String {
        match self.peek() {
            None => early_end(),
            Some(_) => format!("JSON parse error, {what}"),
        }
    }
}

fn early_end() -> String {
    "JSON parse error, premature EOI".into()
}

fn joined(name: &str, member: &str) -> String {
    if name.is_empty() { member.to_owned() } else { format!("{name}.{member}") }
}

#[cfg(test)]
mod tests {
    use super::{parse, to_json};

    fn options(text: &str) -> Vec<(String, String)> {
        parse(text.as_bytes()).unwrap().into_iter().collect()
    }

    #[test]
    fn objects_become_names_with_dots() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            options(
                r#"{'driver': "qcow2", 'file': {'filename': 'a"b', 'x.y': [1, true, {'z': null}]}}"#
            ),
            [
                pair("driver", "qcow2"),
                pair("file.filename", "a\"b"),
                pair("file.x.y.0", "1"),
                pair("file.x.y.1", "on"),
                pair("file.x.y.2.z", ""),
            ]
        );
        assert_eq!(
            options(r#"{"a": "\u00e9\ud83d\ude00\n\/"}"#),
            [pair("a", "\u{e9}\u{1f600}\n/")]
        );
        assert_eq!(options(" { } "), []);
    }

    // What is expected is what qemu-img 10.0.2 says of the first five.
    #[test]
    fn what_is_no_object_is_refused() {
        let prefix = "Could not parse the JSON options: ";
        for (text, reason) in [
            ("[]", "Invalid JSON object given"),
            ("{", &*format!("{prefix}JSON parse error, premature EOI")),
            ("{} x", &*format!("{prefix}Expecting at most one JSON value")),
            ("{'a':1,'a':2}", &*format!("{prefix}JSON parse error, duplicate key")),
            ("{'a' 1}", &*format!("{prefix}JSON parse error, missing : in object pair")),
            ("{'a':'", &*format!("{prefix}JSON parse error, premature EOI")),
            ("{'a':'\\u12", &*format!("{prefix}JSON parse error, premature EOI")),
            ("{'a':'\\ud800\\u12", &*format!("{prefix}JSON parse error, premature EOI")),
            (
                "{'a':'\\u0000'}",
                &*format!("{prefix}JSON parse error, invalid hex escape in string"),
            ),
            ("{'a':foo}", &*format!("{prefix}JSON parse error, invalid keyword 'foo'")),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), reason, "{text}");
        }
        let deep = format!("{{'a':{}", "[".repeat(100_000));
        assert!(parse(deep.as_bytes()).unwrap_err().contains("nesting"));
    }

    #[test]
    fn names_are_written_in_the_order_of_qemu() {
        let (names, _) = crate::names::parse("driver=raw,file.driver=null-co,file.size=65536");
        assert_eq!(
            to_json(&names),
            r#"{"driver": "raw", "file": {"driver": "null-co", "size": 65536}}"#
        );
        assert_eq!(parse(to_json(&names).as_bytes()).unwrap(), names);
    }
}
