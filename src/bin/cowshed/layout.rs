//! What the options of an image say of where it is: its format, what it lies in, and what it is to find where it names
//! other files.

use std::ffi::{OsStr, OsString};

use crate::image_format::ImageFormat;
use crate::names::{Names, must_be_known, protocol_len, take_part, to_json};
use crate::node::{Debug, Null};

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

/// Those of them that no format has.
const OF_FILES_ALONE: [&str; 3] = ["aio", "locking", "x-check-cache-dropped"];

/// Drivers of files.
const FILES: [&str; 3] = ["file", "host_device", "host_cdrom"];

/// The driver that lets reads make an image's own what they find below it.
const COPY_ON_READ: &str = "copy-on-read";

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The format, if it is given.
    pub(crate) format: Option<String>,
    /// What the format is called where the image is what lies below a format otherwise.
    pub(crate) protocol: Option<&'static str>,
    pub(crate) place: Place,
    /// Whether reads make the image's own what they find below it.
    pub(crate) copies_on_read: bool,
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
        match names.get("driver").map(String::as_str) {
            Some(COPY_ON_READ) => {
                let below = take_part(names, "file");
                let layout = Self::take_below(names, below, file)?;
                return Ok(Self { copies_on_read: true, ..layout });
            }
            // Above a format it is nothing but the limits of requests, which nobody sees.
            Some(Debug::DRIVER) if !Debug::is_seen(names) && is_above_format(names) => {
                Debug::check_limits(names)?;
                let mut name = Names::new();
                if let Some(file) = file_or_named(names, file) {
                    Debug::take_name(&mut name, &file)?;
                }
                let below = Debug::take_image(names, is_format);
                let file = name.remove("x-image");
                return Self::take_below(names, below, file.as_deref().map(OsStr::new));
            }
            _ => {}
        }
        let mut named = Names::new();
        for part in ["backing", "data-file"] {
            for (name, value) in take_part(names, part) {
                named.insert(format!("{part}.{name}"), value);
            }
            // What JSON calls null: there is none, whatever the image says.
            if part == "backing" && names.get(part).is_some_and(String::is_empty) {
                named.extend(names.remove_entry(part));
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
                let filename = below.remove("filename");
                below = std::mem::take(names);
                for name in OF_FILES.iter().filter(|name| !OF_FILES_ALONE.contains(name)) {
                    names.extend(below.remove_entry(*name));
                }
                below.insert("driver".to_owned(), driver);
                let file = file.map(|file| file.to_string_lossy().into()).or(filename);
                if let Some(file) = file.filter(|_| protocol != Null::DRIVER) {
                    below.entry("filename".to_owned()).or_insert(file);
                }
                (Some("raw".to_owned()), Place::take(below)?)
            }
            (Some(driver), None) if ImageFormat::from_name(&driver).is_none() => {
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
        Ok(Self { format, protocol, place, copies_on_read: false, named })
    }

    /// Of what lies below something that changes nothing of where it is.
    fn take_below(names: &mut Names, below: Names, file: Option<&OsStr>) -> Result<Self, String> {
        names.remove("driver");
        names.extend(below);
        Self::take(names, file)
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
    if names.get("driver").is_some_and(|driver| driver == Debug::DRIVER) {
        let mut own = names.clone();
        let below = Place::take(Debug::take_image(&mut own, is_format));
        if let Ok(Place::File(file)) = below
            && let Some(name) = Debug::name(&own, &file.to_string_lossy())
        {
            return name.into();
        }
    }
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
    pub(crate) fn take(mut names: Names) -> Result<Self, String> {
        let is_debug = |name: &String| {
            protocol_len(name.as_bytes()) == Some(Debug::DRIVER.len())
                && name.starts_with(Debug::DRIVER)
        };
        let mut driver = names.remove("driver");
        if driver.is_none() && names.get("filename").is_some_and(is_debug) {
            driver = Some(Debug::DRIVER.to_owned());
        }
        let driver = driver.unwrap_or_else(|| "file".to_owned());
        if driver == Debug::DRIVER
            && let Some(name) = names.remove("filename")
        {
            Debug::take_name(&mut names, &name)?;
        }
        if FILES.contains(&&*driver) {
            let file = names.remove("filename");
            let file =
                file.ok_or_else(|| format!("The '{driver}' block driver requires a file name"))?;
            must_be_known(&names, &driver, &OF_FILES)?;
            return Ok(Self::File(file.into()));
        }
        if ![Null::DRIVER, Debug::DRIVER].contains(&&*driver)
            && ImageFormat::from_name(&driver).is_none()
        {
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
        must_be_known(&names, &driver, &OF_FILES)?;
        Ok(Self::File(file.to_owned()))
    }
}

/// Whether what `blkdebug` lies above is an image in a format.
fn is_above_format(names: &Names) -> bool {
    names.get("image.driver").is_some_and(|driver| is_format(driver))
}

/// Whether this driver is one of a format, or lies above one.
pub(crate) fn is_format(driver: &str) -> bool {
    ImageFormat::from_name(driver).is_some() || driver == COPY_ON_READ
}

/// The name of the image, given by itself or among the options.
fn file_or_named(names: &mut Names, file: Option<&OsStr>) -> Option<String> {
    let named = names.remove("file.filename");
    file.map(|file| file.to_string_lossy().into_owned()).or(named)
}

/// What a driver that is no format's is called.
fn protocol(driver: &str) -> Option<&'static str> {
    FILES.into_iter().chain([Null::DRIVER, Debug::DRIVER]).find(|&protocol| protocol == driver)
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
