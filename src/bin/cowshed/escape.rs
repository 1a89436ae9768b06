//! Names out of images and paths, made fit for a terminal: what could move the cursor, change colours, write the
//! title or reorder the line is shown, not sent.

use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `text` for a terminal: control characters and characters that reorder, hide or break the text as `\u{..}`, bytes
/// that are not UTF-8 as `\x{..}`, everything else as it is. The result has no line feed.
pub(crate) fn terminal(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_harmful(character) {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
            } else {
                out.push(character);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{{{byte:02x}}}");
        }
    }
    out
}

/// A path for a terminal.
pub(crate) fn path(path: &Path) -> String {
    terminal(path.as_os_str().as_bytes())
}

/// Whether a terminal may do something else with the character than draw it.
fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}'      // soft hyphen, Arabic letter mark, Mongolian vowel separator
            | '\u{200b}'..='\u{200f}'              // zero width, marks of direction
            | '\u{2028}'..='\u{202e}'              // line and paragraph separators, embeddings, overrides
            | '\u{2060}'..='\u{206f}'              // invisible operators, isolates
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' // byte order mark, interlinear annotation
            | '\u{e0000}'..='\u{e007f}') // tags
}

#[cfg(test)]
mod tests {
    use super::terminal;

    #[test]
    fn printable_text_stays() {
        assert_eq!(
            terminal("disk of K\u{e4}the, \u{1f404} \\ 'x'.qcow2".as_bytes()),
            "disk of K\u{e4}the, \u{1f404} \\ 'x'.qcow2"
        );
    }

    #[test]
    fn what_a_terminal_obeys_is_shown() {
        assert_eq!(
            terminal(b"a\x1b]0;title\x07\r\n\x7f\0"),
            "a\\u{1b}]0;title\\u{7}\\u{d}\\u{a}\\u{7f}\\u{0}"
        );
        assert_eq!(terminal("\u{9b}2J\u{202e}gpj.exe".as_bytes()), "\\u{9b}2J\\u{202e}gpj.exe");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown() {
        assert_eq!(terminal(b"\x9b2J\xff\xc3"), "\\x{9b}2J\\x{ff}\\x{c3}");
    }
}
