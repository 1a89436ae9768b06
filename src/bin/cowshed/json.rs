//! JSON as QEMU's tools print it: keys in the order of QEMU's hash table, four spaces of indentation, every byte the
//! same; and the same values as the indented text of `info`. Knows nothing of images.

use std::fmt::Write as _;

use crate::escape;

/// A value to print. Texts are bytes, for names in images are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Json {
    /// `true` or `false`.
    Bool(bool),
    /// A number.
    Number(i128),
    /// A text; what is not UTF-8 in it is shown as U+FFFD.
    Text(Vec<u8>),
    /// A list.
    List(Vec<Json>),
    /// An object, printed in [`hash_order`].
    Object(Vec<(&'static str, Json)>),
}

impl Json {
    /// A text.
    pub(crate) fn text(text: impl AsRef<[u8]>) -> Self {
        Self::Text(text.as_ref().to_vec())
    }

    /// A number of any integer type.
    pub(crate) fn number(number: impl Into<i128>) -> Self {
        Self::Number(number.into())
    }

    /// The value as pretty-printed JSON, without a line feed at its end.
    pub(crate) fn pretty(&self) -> String {
        let mut out = String::new();
        self.write_pretty(&mut out, 0);
        out
    }

    /// The value as the indented `key: value` lines of `qemu-img info`, `depth` levels deep. Control characters in texts
    /// are escaped for a terminal.
    pub(crate) fn lines(&self, depth: usize) -> String {
        let mut out = String::new();
        self.write_lines(&mut out, depth);
        out
    }

    fn is_composite(&self) -> bool {
        matches!(self, Self::List(_) | Self::Object(_))
    }

    fn write_pretty(&self, out: &mut String, depth: usize) {
        match self {
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(value) => push_fmt(out, format_args!("{value}")),
            Self::Text(text) => write_text(out, text),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i == 0 { "\n" } else { ",\n" });
                    indent(out, depth + 1);
                    item.write_pretty(out, depth + 1);
                }
                out.push('\n');
                indent(out, depth);
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (i, (key, value)) in hash_order(members).into_iter().enumerate() {
                    out.push_str(if i == 0 { "\n" } else { ",\n" });
                    indent(out, depth + 1);
                    write_text(out, key.as_bytes());
                    out.push_str(": ");
                    value.write_pretty(out, depth + 1);
                }
                out.push('\n');
                indent(out, depth);
                out.push('}');
            }
        }
    }

    fn write_lines(&self, out: &mut String, depth: usize) {
        let mut member = |key: &str, value: &Self| {
            indent(out, depth);
            out.push_str(key);
            if value.is_composite() {
                out.push_str(":\n");
                value.write_lines(out, depth + 1);
            } else {
                out.push_str(": ");
                value.write_lines(out, depth + 1);
                out.push('\n');
            }
        };
        match self {
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(value) => push_fmt(out, format_args!("{value}")),
            Self::Text(text) => out.push_str(&escape::terminal(text)),
            Self::List(items) => {
                for (i, item) in items.iter().enumerate() {
                    member(&format!("[{i}]"), item);
                }
            }
            Self::Object(members) => {
                for (key, value) in hash_order(members) {
                    member(&key.replace('-', " "), value);
                }
            }
        }
    }
}

/// The order in which QEMU's dictionary yields its keys: by bucket, and within one the last inserted first.
fn hash_order<'a>(members: &'a [(&'static str, Json)]) -> Vec<(&'static str, &'a Json)> {
    let mut ordered: Vec<_> = members.iter().rev().map(|(key, value)| (*key, value)).collect();
    ordered.sort_by_key(|(key, _)| bucket(key));
    ordered
}

/// The bucket of a key in QEMU's dictionary: its hash (that of tdb) modulo the 512 buckets.
pub(crate) fn bucket(key: &str) -> u32 {
    let len = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let mut value = 0x238F_13AF_u32.wrapping_mul(len);
    let mut shift = 0;
    for byte in key.bytes() {
        value = value.wrapping_add(u32::from(byte) << shift);
        shift = (shift + 5) % 24;
    }
    value.wrapping_mul(1_103_515_243).wrapping_add(12345) % 512
}

/// Writes a text as a JSON string in ASCII, as QEMU does: everything else is an escape of UTF-16 units.
pub(crate) fn write_text(out: &mut String, text: &[u8]) {
    out.push('"');
    let mut units = [0; 2];
    for character in text.utf8_chunks().flat_map(|chunk| {
        let invalid = if chunk.invalid().is_empty() { None } else { Some('\u{fffd}') };
        chunk.valid().chars().chain(invalid)
    }) {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(character),
            _ => {
                for unit in printable_or_replacement(character).encode_utf16(&mut units) {
                    push_fmt(out, format_args!("\\u{unit:04X}"));
                }
            }
        }
    }
    out.push('"');
}

/// QEMU takes Unicode's non-characters for invalid.
fn printable_or_replacement(character: char) -> char {
    let code = u32::from(character);
    let invalid = (0xfdd0..=0xfdef).contains(&code) || code & 0xfffe == 0xfffe;
    if invalid { '\u{fffd}' } else { character }
}

fn indent(out: &mut String, depth: usize) {
    for _ in 0..depth {
        out.push_str("    ");
    }
}

fn push_fmt(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String does not fail.
    let _ = out.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(keys: &[&'static str]) -> Vec<&'static str> {
        let members: Vec<_> = keys.iter().map(|key| (*key, Json::Bool(true))).collect();
        hash_order(&members).into_iter().map(|(key, _)| key).collect()
    }

    // The orders are those of `qemu-img info --output=json` and `qemu-img check --output=json`, version 10.0.2.
    #[test]
    fn keys_come_in_the_order_of_qemu_img() {
        assert_eq!(
            order(&[
                "filename",
                "format",
                "check-errors",
                "image-end-offset",
                "total-clusters",
                "allocated-clusters",
                "fragmented-clusters",
                "compressed-clusters"
            ]),
            [
                "image-end-offset",
                "compressed-clusters",
                "total-clusters",
                "check-errors",
                "allocated-clusters",
                "filename",
                "format",
                "fragmented-clusters"
            ]
        );
        assert_eq!(
            order(&[
                "id",
                "name",
                "vm-state-size",
                "date-sec",
                "date-nsec",
                "vm-clock-sec",
                "vm-clock-nsec",
                "icount"
            ]),
            [
                "icount",
                "vm-clock-nsec",
                "name",
                "date-sec",
                "date-nsec",
                "vm-clock-sec",
                "id",
                "vm-state-size"
            ]
        );
        assert_eq!(
            order(&[
                "format",
                "cipher-alg",
                "cipher-mode",
                "ivgen-alg",
                "hash-alg",
                "uuid",
                "slots",
                "payload-offset",
                "master-key-iters",
                "detached-header"
            ]),
            [
                "ivgen-alg",
                "detached-header",
                "hash-alg",
                "cipher-alg",
                "uuid",
                "format",
                "cipher-mode",
                "slots",
                "payload-offset",
                "master-key-iters"
            ]
        );
    }

    #[test]
    fn empty_lists_and_objects_take_two_lines() {
        let value = Json::List(vec![
            Json::Object(vec![("flags", Json::List(vec![]))]),
            Json::Object(vec![]),
        ]);
        let text = "[\n    {\n        \"flags\": [\n        ]\n    },\n    {\n    }\n]";
        assert_eq!(value.pretty(), text);
    }

    #[test]
    fn texts_are_ascii_with_escapes() {
        let text =
            Json::text(b"a\"\\\x08\x0c\n\r\t\x01\x7f\xc3\xa9\xf0\x9f\x90\x84\xff\xef\xbf\xbe/");
        assert_eq!(
            text.pretty(),
            r#""a\"\\\b\f\n\r\t\u0001\u007F\u00E9\uD83D\uDC04\uFFFD\uFFFD/""#
        );
    }
}
