//! What the options of an image say of where it is: its format, what it lies in, and what it is to find where it names
//! other files.

use std::ffi::{OsStr, OsString};

use crate::names::{Names, take_part, to_json};
use crate::node::Null;

/// Options of a file that change nothing of what is in it; whether they have a value that QEMU knows is not looked at.
const OF_FILES: [&str; 10] = [
    "aio",
    "auto-read-only",
    "cache.direct",
    "cache.no-flush",
    "discard",
    "force-share",
    "locking",
    "node-name",
    "read-only",
    "x-check-cache-dropped",
];

/// Drivers of files.
const FILES: [&str; 3] = ["file", "host_device", "host_cdrom"];

/// Drivers of formats.
const FORMATS: [&str; 2] = ["qcow2", "raw"];

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The format, if it is given.
    pub(crate) format: Option<String>,
    /// What the format is called where the image is what lies below a format otherwise.
    pub(crate) protocol: Option<&'static str>,
    pub(crate) place: Place,
    /// What is to be found where the image names other files: options in front of whose names stand the names of the
    /// parts, `backing` and `data-file`.
    pub(crate) named: Names,
}

/// What an image lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    File(OsString),
    /// Something without a name, by its options.
    Node(Names),
}

impl Layout {
    /// Takes what says where an image is out of its options, and leaves the rest; `file` is the name of its file, if it is
    /// not among them.
    ///
    /// # Errors
    /// In QEMU's words.
    pub(crate) fn take(names: &mut Names, file: Option<&OsStr>) -> Result<Self, String> {
        let mut named = Names::new();
        for part in ["backing", "data-file"] {
            for (name, value) in take_part(names, part) {
                named.insert(format!("{part}.{name}"), value);
            }
            if let Some(node) = names.get(part) {
                return Err(format!("Cannot find device='{node}' nor node-name='{node}'"));
            }
        }
        if let Some(node) = names.get("file") {
            return Err(format!("Cannot find device='{node}' nor node-name='{node}'"));
        }
        let driver = names.remove("driver");
        let mut below = take_part(names, "file");
        let protocol = driver.as_deref().and_then(protocol);
        let (format, place) = match (driver, protocol) {
            (Some(driver), Some(protocol)) => {
                below = std::mem::take(names);
                for name in OF_FILES {
                    names.extend(below.remove_entry(name));
                }
                below.insert("driver".to_owned(), driver);
                if let Some(file) = file.filter(|_| FILES.contains(&protocol)) {
                    below.entry("filename".to_owned()).or_insert(file.to_string_lossy().into());
                }
                (Some("raw".to_owned()), Place::take(below)?)
            }
            (Some(driver), None) if !FORMATS.contains(&&*driver) => {
                return Err(format!("Unknown driver '{driver}'"));
            }
            (format, _) => {
                let place = match (file, below.is_empty()) {
                    (Some(_), _) if below.contains_key("filename") => {
                        return Err(
                            "Can't specify 'file' and 'filename' options at the same time".into()
                        );
                    }
                    (Some(file), _) => Place::take_named(below, file)?,
                    (None, true) if format.is_some() => {
                        return Err("A block device must be specified for \"file\"".into());
                    }
                    (None, _)
                        if !["driver", "filename"].iter().any(|it| below.contains_key(*it)) =>
                    {
                        return Err("Must specify either driver or file".into());
                    }
                    (None, _) => Place::take(below)?,
                };
                (format, place)
            }
        };
        Ok(Self { format, protocol, place, named })
    }

    /// The name of the image: that of its file, or what it is, as QEMU has it.
    pub(crate) fn name(&self) -> OsString {
        let names = match &self.place {
            Place::File(file) => return file.clone(),
            Place::Node(names) => names,
        };
        if self.protocol.is_some() {
            return name_of(names);
        }
        let within = names.iter().map(|(name, value)| (format!("file.{name}"), value.clone()));
        let format = self.format.clone().map(|format| ("driver".to_owned(), format));
        name_of(&within.chain(format).collect())
    }
}

/// What QEMU calls something without a name of its own, by its options.
pub(crate) fn name_of(names: &Names) -> OsString {
    let is_null = names.get("driver").is_some_and(|driver| driver == Null::DRIVER);
    match names.len() {
        1 if is_null => format!("{}://", Null::DRIVER).into(),
        _ => format!("json:{}", to_json(names)).into(),
    }
}

impl Place {
    /// What these options say.
    ///
    /// # Errors
    /// There is no such driver, or it has no such option.
    fn take(mut names: Names) -> Result<Self, String> {
        let driver = names.remove("driver").unwrap_or_else(|| "file".to_owned());
        if FILES.contains(&&*driver) {
            let file = names.remove("filename");
            let file =
                file.ok_or_else(|| format!("The '{driver}' block driver requires a file name"))?;
            must_be_of_files(&names, &driver)?;
            return Ok(Self::File(file.into()));
        }
        if driver != Null::DRIVER && !FORMATS.contains(&&*driver) {
            return Err(format!("Unknown driver '{driver}'"));
        }
        names.insert("driver".to_owned(), driver);
        Ok(Self::Node(names))
    }

    /// The file with this name, if the options let it be one.
    ///
    /// # Errors
    /// They do not.
    fn take_named(mut names: Names, file: &OsStr) -> Result<Self, String> {
        let driver = names.remove("driver").unwrap_or_else(|| "file".to_owned());
        if !FILES.contains(&&*driver) {
            return Err(format!("the option file.driver={driver} is not supported"));
        }
        must_be_of_files(&names, &driver)?;
        Ok(Self::File(file.to_owned()))
    }
}

/// Refuses options that files do not have.
fn must_be_of_files(names: &Names, driver: &str) -> Result<(), String> {
    match names.keys().find(|name| !OF_FILES.contains(&name.as_str())) {
        Some(name) => Err(format!("Block protocol '{driver}' doesn't support the option '{name}'")),
        None => Ok(()),
    }
}

/// What a driver that is no format's is called.
fn protocol(driver: &str) -> Option<&'static str> {
    FILES.into_iter().chain([Null::DRIVER]).find(|&protocol| protocol == driver)
}

#[cfg(test)]
mod tests {
    use super::{Layout, Names, Place};
    use crate::names::parse;
    use std::ffi::OsStr;

    fn layout(text: &str, file: Option<&str>) -> Result<(Layout, Names), String> {
        let (mut names, _) = parse(text);
        Layout::take(&mut names, file.map(OsStr::new)).map(|layout| (layout, names))
    }

    #[test]
    fn a_file_is_found_and_the_formats_own_options_are_left() {
        let (layout, rest) =
            layout("driver=qcow2,file.driver=file,file.filename=a,lazy-refcounts=on", None)
                .unwrap();
        assert_eq!(layout.format.as_deref(), Some("qcow2"));
        assert_eq!(layout.place, Place::File("a".into()));
        assert_eq!(layout.name(), "a");
        assert_eq!(rest, parse("lazy-refcounts=on").0);
    }

    // What is expected is what qemu-img 10.0.2 says.
    #[test]
    fn images_without_files_are_named_by_what_they_are() {
        for (options, name) in [
            ("driver=null-co", "null-co://"),
            ("driver=null-co,size=65536", r#"json:{"driver": "null-co", "size": 65536}"#),
            (
                "driver=raw,file.driver=null-co,file.size=65536",
                r#"json:{"driver": "raw", "file": {"driver": "null-co", "size": 65536}}"#,
            ),
        ] {
            assert_eq!(layout(options, None).unwrap().0.name(), name);
        }
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_of_qemu() {
        for (options, file, reason) in [
            ("", None, "Must specify either driver or file"),
            ("driver=qcow2", None, "A block device must be specified for \"file\""),
            ("driver=foo", None, "Unknown driver 'foo'"),
            ("driver=qcow2,file=a", None, "Cannot find device='a' nor node-name='a'"),
            ("driver=file", None, "The 'file' block driver requires a file name"),
            ("driver=qcow2,file.locking=off", None, "Must specify either driver or file"),
            ("file.driver=file", None, "The 'file' block driver requires a file name"),
            (
                "file.filename=a,file.x=1",
                None,
                "Block protocol 'file' doesn't support the option 'x'",
            ),
            (
                "file.filename=a",
                Some("b"),
                "Can't specify 'file' and 'filename' options at the same time",
            ),
        ] {
            assert_eq!(layout(options, file).unwrap_err(), reason, "{options}");
        }
    }
}
