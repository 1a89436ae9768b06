//! Names that the image holds: what a virtual machine would open because the image says so.

use super::{Findings, Severity, shown};
use crate::format::{Autoclear, Header};

/// Header offset of the backing file's name's offset.
const BACKING_FILE_OFFSET: u64 = 8;
const AUTOCLEAR_FEATURES: u64 = 88;
/// Formats that a backing file is usually in.
const FORMATS_USUAL: [&[u8]; 2] = [b"qcow2", b"raw"];

/// Looks at the backing file and the external data file.
pub(super) fn references(header: &Header, found: &mut Findings) {
    if let Some(name) = &header.backing_file {
        let offset = Some(BACKING_FILE_OFFSET);
        let text = format!("the image reads from the backing file \"{}\"", shown(name));
        found.add(Severity::Caution, "backing-file", text, "header", offset);
        dangers("backing file", name, offset, found);
        match header.backing_format() {
            None => {
                let text = "the backing file's format is not stated: a virtual machine guesses it from the bytes, and \
                            whoever can write them chooses what else it opens";
                found.add(Severity::Caution, "backing-format-missing", text, "header", None);
            }
            Some(format) if !FORMATS_USUAL.contains(&format) => {
                let text = format!("the backing file's format is \"{}\"", shown(format));
                found.add(Severity::Caution, "backing-format-unusual", text, "header", None);
            }
            Some(_) => {}
        }
    }
    if header.has_data_file() {
        match header.data_file() {
            Some(name) => {
                let text = format!("the guest's data is in the data file \"{}\"", shown(name));
                found.add(Severity::Caution, "data-file", text, "header extension", None);
                dangers("data file", name, None, found);
            }
            None => {
                let text = "the guest's data is in a data file that is not named";
                found.add(Severity::Caution, "data-file", text, "header", None);
            }
        }
    } else if header.data_file().is_some() {
        let text = "a data file is named, and the feature bit says that there is none";
        found.add(Severity::Caution, "data-file-unused", text, "header extension", None);
    }
    if header.autoclear.contains(Autoclear::DATA_FILE_RAW) {
        let text = "the data file is a raw image by itself: its format must be stated wherever it is opened";
        found.add(Severity::Info, "data-file-raw", text, "header", Some(AUTOCLEAR_FEATURES));
    }
}

/// What is dangerous about a name, whatever it names.
fn dangers(what: &'static str, name: &[u8], offset: Option<u64>, found: &mut Findings) {
    let mut add = |severity, code, text: String| found.add(severity, code, text, what, offset);
    if let Some(protocol) = protocol(name) {
        let text = format!(
            "the {what}'s name is not a file's: \"{}:\" makes a virtual machine connect or parse the rest",
            shown(protocol)
        );
        add(Severity::Danger, "name-protocol", text);
    }
    if name.starts_with(b"/") || name.starts_with(b"\\") || has_drive(name) {
        add(Severity::Danger, "name-absolute", format!("the {what}'s name is an absolute path"));
    }
    if name.split(|byte| matches!(byte, b'/' | b'\\')).any(|part| part == b"..") {
        add(
            Severity::Danger,
            "name-parent",
            format!("the {what}'s name leaves the image's folder"),
        );
    }
    if name.iter().any(|byte| byte.is_ascii_control()) {
        let text = format!("the {what}'s name has control characters");
        add(Severity::Danger, "name-control", text);
    } else if std::str::from_utf8(name).is_err() {
        add(Severity::Caution, "name-not-utf8", format!("the {what}'s name is not UTF-8"));
    }
}

/// What stands before a colon that makes a name more than a path, as QEMU sees it (block.c:path_has_protocol).
fn protocol(name: &[u8]) -> Option<&[u8]> {
    let end = name.iter().position(|byte| matches!(byte, b':' | b'/'))?;
    (name[end] == b':' && !has_drive(name)).then(|| &name[..end])
}

fn has_drive(name: &[u8]) -> bool {
    matches!(name, [letter, b':', ..] if letter.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(name: &[u8]) -> Vec<&'static str> {
        let mut found = Findings::default();
        dangers("backing file", name, None, &mut found);
        found.findings.iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn every_danger_of_a_name_is_told() {
        let none: &[&str] = &[];
        assert_eq!(codes(b"base.qcow2"), none);
        assert_eq!(codes(b"folder/base.raw"), none);
        assert_eq!(codes(b"./a:b.qcow2"), none);
        assert_eq!(codes(b"a..b"), none);
        assert_eq!(codes(b"json:{\"driver\":\"null-co\"}"), ["name-protocol"]);
        assert_eq!(codes(b"nbd://host/export"), ["name-protocol"]);
        assert_eq!(codes(b"fd:3"), ["name-protocol"]);
        assert_eq!(codes(b"/etc/passwd"), ["name-absolute"]);
        assert_eq!(codes(b"c:\\disk.raw"), ["name-absolute"]);
        assert_eq!(codes(b"\\\\server\\disk"), ["name-absolute"]);
        assert_eq!(codes(b"../base"), ["name-parent"]);
        assert_eq!(codes(b"a/../../base"), ["name-parent"]);
        assert_eq!(codes(b"file:/../a\0"), ["name-protocol", "name-parent", "name-control"]);
        assert_eq!(codes(b"a\x1b[31m"), ["name-control"]);
        assert_eq!(codes(b"a\xff"), ["name-not-utf8"]);
    }
}
