//! Options of a new image's format, as `-o` gives them: parsing, printing and help in the words of `qemu-img`, and what
//! they mean to the engine.

use std::fmt::Write as _;

use cowshed::crypt::LuksArea;
use cowshed::format::{Compression, Version};
use cowshed::image::{AmendOptions, CreateOptions, Preallocation};

use crate::encryption;
use crate::image_format::ImageFormat;
use crate::secret::Secrets;
use crate::size::{self, SizeError};

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Number,
    Size,
}

/// An option: its name, what it takes, what it is without being given, and the help.
struct Known {
    name: &'static str,
    kind: Kind,
    default: Option<&'static str>,
    help: &'static str,
    /// Whether the file has it, not the format.
    of_file: bool,
}

const fn known(name: &'static str, kind: Kind, help: &'static str) -> Known {
    Known { name, kind, default: None, help, of_file: false }
}

const fn with_default(known: Known, default: &'static str) -> Known {
    Known { default: Some(default), ..known }
}

const fn of_file(known: Known) -> Known {
    Known { of_file: true, ..known }
}

/// Options of qcow2 images, in the order in which `qemu-img create` prints them.
const QCOW2: &[Known] = &[
    known(
        "encryption",
        Kind::Flag,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    known("encrypt.format", Kind::Text, "Encrypt the image, format choices: 'aes', 'luks'"),
    known(
        "encrypt.key-secret",
        Kind::Text,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    known("encrypt.cipher-alg", Kind::Text, "Name of encryption cipher algorithm"),
    known("encrypt.cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    known("encrypt.ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    known("encrypt.ivgen-hash-alg", Kind::Text, "Name of IV generator hash algorithm"),
    known("encrypt.hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    known("encrypt.iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    with_default(known("cluster_size", Kind::Size, "qcow2 cluster size"), "65536"),
    with_default(known("extended_l2", Kind::Flag, "Extended L2 tables"), "off"),
    known(
        "preallocation",
        Kind::Text,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    with_default(
        known(
            "compression_type",
            Kind::Text,
            "Compression method used for image cluster compression",
        ),
        "zlib",
    ),
    known("size", Kind::Size, "Virtual disk size"),
    known("compat", Kind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    known("backing_file", Kind::Text, "File name of a base image"),
    known("backing_fmt", Kind::Text, "Image format of the base image"),
    known("data_file", Kind::Text, "File name of an external data file"),
    known("data_file_raw", Kind::Flag, "The external data file must stay valid as a raw image"),
    with_default(known("lazy_refcounts", Kind::Flag, "Postpone refcount updates"), "off"),
    with_default(
        known("refcount_bits", Kind::Number, "Width of a reference count entry in bits"),
        "16",
    ),
    of_file(NOCOW),
    of_file(EXTENT_SIZE_HINT),
];

/// Options that an existing LUKS volume can be given.
const LUKS_AMEND: &[Known] = &[
    known("iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    known("keyslot", Kind::Number, "Select a single keyslot to modify explicitly"),
    known(
        "new-secret",
        Kind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    known("old-secret", Kind::Text, "Select all keyslots that match this password"),
    known("state", Kind::Text, "Select new state of affected keyslots (active/inactive)"),
];

/// Options that an existing qcow2 image can be given.
const QCOW2_AMEND: &[Known] = &[
    known("backing_file", Kind::Text, "File name of a base image"),
    known("backing_fmt", Kind::Text, "Image format of the base image"),
    known("compat", Kind::Text, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    known("data_file", Kind::Text, "File name of an external data file"),
    known("data_file_raw", Kind::Flag, "The external data file must stay valid as a raw image"),
    known("encrypt.iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    known("encrypt.keyslot", Kind::Number, "Select a single keyslot to modify explicitly"),
    known(
        "encrypt.new-secret",
        Kind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    known("encrypt.old-secret", Kind::Text, "Select all keyslots that match this password"),
    known("encrypt.state", Kind::Text, "Select new state of affected keyslots (active/inactive)"),
    known("lazy_refcounts", Kind::Flag, "Postpone refcount updates"),
    known("refcount_bits", Kind::Number, "Width of a reference count entry in bits"),
    known("size", Kind::Size, "Virtual disk size"),
];

/// Options of LUKS volumes, in the order in which `qemu-img create` prints them.
const LUKS: &[Known] = &[
    known("size", Kind::Size, "Virtual disk size"),
    known("key-secret", Kind::Text, "ID of the secret that provides the keyslot passphrase"),
    known("cipher-alg", Kind::Text, "Name of encryption cipher algorithm"),
    known("cipher-mode", Kind::Text, "Name of encryption cipher mode"),
    known("ivgen-alg", Kind::Text, "Name of IV generator algorithm"),
    known("ivgen-hash-alg", Kind::Text, "Name of IV generator hash algorithm"),
    known("hash-alg", Kind::Text, "Name of encryption hash algorithm"),
    known("iter-time", Kind::Number, "Time to spend in PBKDF in milliseconds"),
    known("detached-header", Kind::Flag, "Create a detached LUKS header"),
    of_file(NOCOW),
    of_file(PREALLOCATION),
    of_file(EXTENT_SIZE_HINT),
];

/// Options of raw images.
const RAW: &[Known] = &[
    known("size", Kind::Size, "Virtual disk size"),
    of_file(NOCOW),
    of_file(PREALLOCATION),
    of_file(EXTENT_SIZE_HINT),
];

const NOCOW: Known = known("nocow", Kind::Flag, "Turn off copy-on-write (valid only on btrfs)");

const PREALLOCATION: Known =
    known("preallocation", Kind::Text, "Preallocation mode (allowed values: off, falloc, full)");

const EXTENT_SIZE_HINT: Known =
    known("extent_size_hint", Kind::Size, "Extent size hint for the image file, 0 to disable");

/// Formats that QEMU has, for the name of a backing file's.
const FORMATS: &[&str] = &[
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "io_uring",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "nvme-io_uring",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// The largest `extent_size_hint`.
const EXTENT_SIZE_HINT_MAX: u64 = u32::MAX as u64;
/// The largest disk.
const SIZE_MAX: u64 = size::SIZE_MAX;

/// Why options are not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionError {
    /// What is wrong.
    pub(crate) message: String,
    /// Further lines of `qemu-img`'s.
    pub(crate) hint: Option<&'static str>,
}

impl From<String> for OptionError {
    fn from(message: String) -> Self {
        Self { message, hint: None }
    }
}

/// Which options there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// Those of a new image of this format.
    New(ImageFormat),
    /// Those that an existing image of this format can be given.
    Amend(ImageFormat),
}

/// The options of a new image, or those that an image is to be given.
#[derive(Debug, Clone)]
pub(crate) struct FormatOptions {
    list: List,
    /// Index of the option, and its value as it was given.
    given: Vec<(usize, String)>,
}

/// What a new LUKS volume is like.
#[derive(Debug)]
pub(crate) struct LuksOptions {
    pub(crate) area: LuksArea,
    /// The size of the disk in bytes.
    pub(crate) size: u64,
    pub(crate) preallocation: Preallocation,
}

/// Joins the lists of several `-o`.
///
/// # Errors
/// What `qemu-img` says of a list that is none.
pub(crate) fn join<'a>(
    lists: impl IntoIterator<Item = &'a String>,
) -> Result<Option<String>, OptionError> {
    let mut joined: Option<String> = None;
    for list in lists {
        let commas = list.len() - list.trim_end_matches(',').len();
        if list.is_empty() || list.starts_with(',') || commas % 2 != 0 {
            return Err(format!("Invalid option list: {list}").into());
        }
        match &mut joined {
            Some(joined) => *joined = format!("{joined},{list}"),
            None => joined = Some(list.clone()),
        }
    }
    Ok(joined)
}

/// Whether a list asks for help.
pub(crate) fn asks_for_help(list: &str) -> bool {
    list.split(',').any(|option| matches!(option, "help" | "?"))
}

/// What `-o help` prints: the options of the format, and of files, if a file is named.
pub(crate) fn help(format: ImageFormat, with_file: bool) -> String {
    let known = known_options(List::New(format)).iter();
    let known = known.filter(|known| with_file || !known.of_file);
    let mut out = match with_file {
        true => "Supported options:\n".to_owned(),
        false => format!("Supported {} options:\n", format.name()),
    };
    out += &described(known);
    if !with_file {
        out += "\nThe protocol level may support further options.\n\
                Specify the target filename to include those options.\n";
    }
    out
}

/// What `-o help` prints for `amend`.
pub(crate) fn amend_help(format: ImageFormat) -> String {
    let known = known_options(List::Amend(format)).iter();
    format!("Amend options for '{}':\n{}", format.name(), described(known))
}

/// Lines that describe options, by their names.
fn described<'a>(known: impl Iterator<Item = &'a Known>) -> String {
    let mut known: Vec<_> = known.collect();
    known.sort_by_key(|known| known.name);
    let mut out = String::new();
    for Known { name, kind, help, .. } in known {
        let kind = match kind {
            Kind::Text => "str",
            Kind::Flag => "bool (on/off)",
            Kind::Number => "num",
            Kind::Size => "size",
        };
        // Writing to a String does not fail.
        let _ = writeln!(out, "  {:<22} - {help}", format!("{name}=<{kind}>"));
    }
    out
}

fn known_options(list: List) -> &'static [Known] {
    match list {
        List::New(ImageFormat::Qcow2) => QCOW2,
        List::New(ImageFormat::Raw) => RAW,
        List::New(ImageFormat::Luks) => LUKS,
        List::Amend(ImageFormat::Qcow2) => QCOW2_AMEND,
        List::Amend(ImageFormat::Raw) => &[],
        List::Amend(ImageFormat::Luks) => LUKS_AMEND,
    }
}

impl FormatOptions {
    /// Parses a list of options.
    ///
    /// # Errors
    /// What `qemu-img` says of one that does not exist, or of a value that is not of its kind.
    pub(crate) fn parse(format: ImageFormat, list: Option<&str>) -> Result<Self, OptionError> {
        Self::parse_list(List::New(format), list.unwrap_or_default())
    }

    /// Parses a list of options that an existing image of this format is to be given.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(crate) fn parse_amend(format: ImageFormat, list: &str) -> Result<Self, OptionError> {
        Self::parse_list(List::Amend(format), list)
    }

    fn parse_list(list: List, mut rest: &str) -> Result<Self, OptionError> {
        let mut options = Self { list, given: Vec::new() };
        while !rest.is_empty() {
            let end = rest.find([',', '=']).unwrap_or(rest.len());
            let name = &rest[..end];
            if rest[end..].starts_with('=') {
                let value;
                (value, rest) = value_of(&rest[end + 1..]);
                options.set(name, value)?;
            } else {
                rest = rest[end..].strip_prefix(',').unwrap_or_default();
                match name.strip_prefix("no").filter(|_| position(list, name).is_none()) {
                    Some(name) => options.set(name, "off".to_owned())?,
                    None => options.set(name, "on".to_owned())?,
                }
            }
        }
        Ok(options)
    }

    /// Sets an option, as if it were given last.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub(crate) fn set(&mut self, name: &str, value: String) -> Result<(), OptionError> {
        let Some(index) = position(self.list, name) else {
            let is_of_new = match self.list {
                List::New(_) => false,
                List::Amend(format) => position(List::New(format), name).is_some(),
            };
            let hint = "This option is only supported for image creation";
            return Err(OptionError {
                message: format!("Invalid parameter '{name}'"),
                hint: is_of_new.then_some(hint),
            });
        };
        check(&known_options(self.list)[index], &value)?;
        self.given.push((index, value));
        Ok(())
    }

    /// The value that was given last.
    pub(crate) fn given(&self, name: &str) -> Option<&str> {
        let index = position(self.list, name)?;
        self.given.iter().rev().find(|(given, _)| *given == index).map(|(_, value)| &**value)
    }

    /// The value, given or not.
    fn value(&self, name: &str) -> Option<&str> {
        let default = || known_options(self.list)[position(self.list, name)?].default;
        self.given(name).or_else(default)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.value(name).is_some_and(is_on)
    }

    /// The disk's size in bytes, if it is given.
    pub(crate) fn size(&self) -> Option<u64> {
        self.given("size").and_then(|value| size::parse_u64(value).ok())
    }

    /// What `qemu-img create` prints behind the format.
    pub(crate) fn shown(&self) -> String {
        let mut out = String::new();
        for Known { name, kind, .. } in known_options(self.list) {
            let Some(value) = self.value(name) else { continue };
            let value = match kind {
                Kind::Text => value.replace(',', ",,"),
                Kind::Flag => value.to_owned(),
                Kind::Number => number(value).map_or(0, u64::cast_signed).to_string(),
                Kind::Size => size::parse_u64(value).map_or(0, u64::cast_signed).to_string(),
            };
            // Writing to a String does not fail.
            let _ = write!(out, " {name}={value}");
        }
        out
    }

    /// What the options mean for a qcow2 image.
    ///
    /// # Errors
    /// A value that does not exist, in the words and the order of `qemu-img create`. What does not go together is for the
    /// engine to say.
    pub(crate) fn create_options(&self, secrets: &Secrets) -> Result<CreateOptions, OptionError> {
        let wrong = |name: &str, value: &str| {
            OptionError::from(format!("Parameter '{name}' does not accept value '{value}'"))
        };
        let bytes = |name| self.given(name).map(|value| value.as_bytes().to_vec());
        let size = self.size().unwrap_or(0);
        if self.extent_size_hint() > EXTENT_SIZE_HINT_MAX {
            return Err("Extent size hint is too large".to_owned().into());
        }
        let mut options = CreateOptions::new(size);
        options.data_file = bytes("data_file");
        options.data_file_raw = self.flag("data_file_raw");
        options.extended_l2 = self.flag("extended_l2");
        options.version = match self.given("compat") {
            None | Some("1.1" | "v3") => Version::V3,
            Some("0.10" | "v2") => Version::V2,
            Some(other) => return Err(wrong("version", other)),
        };
        options.backing_file = bytes("backing_file");
        options.backing_format = bytes("backing_fmt");
        if let Some(format) = self.given("backing_fmt").filter(|name| !FORMATS.contains(name)) {
            return Err(wrong("backing-fmt", format));
        }
        options.cluster_size = self.cluster_size();
        options.preallocation = match self.given("preallocation") {
            None => Preallocation::Off,
            Some(name) => preallocation(name).ok_or_else(|| wrong("preallocation", name))?,
        };
        options.lazy_refcounts = self.flag("lazy_refcounts");
        options.refcount_bits = self.refcount_bits();
        options.compression = match self.value("compression_type") {
            None | Some("zlib") => Compression::Deflate,
            Some("zstd") => Compression::Zstd,
            Some(other) => return Err(wrong("compression-type", other)),
        };
        if size > SIZE_MAX {
            return Err("Could not resize image: Image size cannot be negative".to_owned().into());
        }
        options.encryption = encryption::of(self, secrets)?;
        Ok(options)
    }

    /// What the options mean for a LUKS volume. Making the encryption header takes the time that they say.
    ///
    /// # Errors
    /// A value that does not exist, a secret that is not there, or what the system says.
    pub(crate) fn luks_options(&self, secrets: &Secrets) -> Result<LuksOptions, OptionError> {
        let preallocation = match self.given("preallocation") {
            None => Preallocation::Off,
            Some(name) => preallocation(name).ok_or_else(|| invalid_value(name))?,
        };
        let area = encryption::area(self, secrets)?;
        if self.extent_size_hint() > EXTENT_SIZE_HINT_MAX {
            return Err("Extent size hint is too large".to_owned().into());
        }
        Ok(LuksOptions { area, size: self.size().unwrap_or(0), preallocation })
    }

    /// The name of an option of encryption: for a format that is nothing else it has no prefix.
    pub(crate) fn encryption_name(&self, name: &str) -> String {
        match self.list {
            List::New(ImageFormat::Luks) | List::Amend(ImageFormat::Luks) => name.to_owned(),
            List::New(_) | List::Amend(_) => format!("encrypt.{name}"),
        }
    }

    /// The value of an option of encryption that was given last.
    pub(crate) fn encryption(&self, name: &str) -> Option<&str> {
        self.given(&self.encryption_name(name))
    }

    /// What the options mean for an existing image, but for those of its encryption and its backing file.
    ///
    /// # Errors
    /// A value that does not exist, in the words of `qemu-img amend`.
    pub(crate) fn amend_options(&self) -> Result<AmendOptions, OptionError> {
        let mut options = AmendOptions::default();
        options.version = match self.given("compat") {
            None => None,
            Some("1.1" | "v3") => Some(Version::V3),
            Some("0.10" | "v2") => Some(Version::V2),
            Some(other) => return Err(format!("Unknown compatibility level {other}").into()),
        };
        options.refcount_bits = self.given("refcount_bits").map(|_| self.refcount_bits());
        options.lazy_refcounts = self.given("lazy_refcounts").map(is_on);
        options.data_file = self.given("data_file").map(|name| name.as_bytes().to_vec());
        options.data_file_raw = self.given("data_file_raw").map(is_on);
        // As in QEMU, none is as good as no size.
        options.size = self.size().filter(|size| *size > 0);
        Ok(options)
    }

    /// Whether an option is given whose name starts so.
    pub(crate) fn any_given(&self, start: &str) -> bool {
        self.given.iter().any(|(index, _)| known_options(self.list)[*index].name.starts_with(start))
    }

    /// What the options mean to `measure`, which asks less.
    ///
    /// # Errors
    /// A value that does not exist, in the words of `qemu-img measure`.
    pub(crate) fn measure_options(&self) -> Result<CreateOptions, OptionError> {
        let mut options = CreateOptions::new(self.size().unwrap_or(0));
        options.extended_l2 = self.flag("extended_l2");
        options.cluster_size = self.cluster_size();
        options.version = match self.given("compat") {
            None | Some("1.1") => Version::V3,
            Some("0.10") => Version::V2,
            Some(other) => return Err(format!("Invalid compatibility level: '{other}'").into()),
        };
        options.refcount_bits = self.refcount_bits();
        options.preallocation = match self.given("preallocation") {
            None => Preallocation::Off,
            Some(name) => preallocation(name).ok_or_else(|| invalid_value(name))?,
        };
        options.backing_file = self.given("backing_file").map(|name| name.as_bytes().to_vec());
        Ok(options)
    }

    /// What of a raw file is allocated at once.
    ///
    /// # Errors
    /// A value that does not exist, in the words of `qemu-img create`.
    pub(crate) fn raw_preallocation(&self) -> Result<Preallocation, OptionError> {
        if self.extent_size_hint() > EXTENT_SIZE_HINT_MAX {
            return Err("Extent size hint is too large".to_owned().into());
        }
        match self.given("preallocation") {
            None => Ok(Preallocation::Off),
            Some(name) => match preallocation(name) {
                Some(Preallocation::Metadata) => {
                    Err(format!("Unsupported preallocation mode: {name}").into())
                }
                Some(preallocation) => Ok(preallocation),
                None => Err(invalid_value(name)),
            },
        }
    }

    /// The cluster size in bytes, as it is given.
    pub(crate) fn cluster_size(&self) -> u64 {
        self.value("cluster_size").and_then(|value| size::parse_u64(value).ok()).unwrap_or(0)
    }

    /// The width of refcounts in bits; what does not fit is too large all the same.
    pub(crate) fn refcount_bits(&self) -> u32 {
        let bits = self.value("refcount_bits").and_then(number).unwrap_or(0);
        u32::try_from(bits).unwrap_or(u32::MAX)
    }

    fn extent_size_hint(&self) -> u64 {
        self.given("extent_size_hint").and_then(|value| size::parse_u64(value).ok()).unwrap_or(0)
    }
}

/// Whether QEMU has a format of this name.
pub(crate) fn is_format(name: &str) -> bool {
    FORMATS.contains(&name)
}

/// The preallocation of this name.
fn preallocation(name: &str) -> Option<Preallocation> {
    Some(match name {
        "off" => Preallocation::Off,
        "metadata" => Preallocation::Metadata,
        "falloc" => Preallocation::Falloc,
        "full" => Preallocation::Full,
        _ => return None,
    })
}

fn invalid_value(value: &str) -> OptionError {
    format!("invalid parameter value: {value}").into()
}

/// Where an option is in the list of its format.
fn position(list: List, name: &str) -> Option<usize> {
    known_options(list).iter().position(|known| known.name == name)
}

/// The value at the start of `text`, in which two commas stand for one, and what follows its end.
fn value_of(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut rest = text;
    loop {
        let end = rest.find(',').unwrap_or(rest.len());
        value.push_str(&rest[..end]);
        rest = rest[end..].strip_prefix(',').unwrap_or_default();
        match rest.strip_prefix(',') {
            Some(more) => {
                value.push(',');
                rest = more;
            }
            None => return (value, rest),
        }
    }
}

/// Whether a value is of the option's kind.
fn check(known: &Known, value: &str) -> Result<(), OptionError> {
    let name = known.name;
    match known.kind {
        Kind::Text => Ok(()),
        Kind::Flag if is_on(value) || ["off", "no", "false", "n"].contains(&value) => Ok(()),
        Kind::Flag => Err(format!("Parameter '{name}' expects 'on' or 'off'").into()),
        Kind::Number => match number(value) {
            Some(_) => Ok(()),
            None if is_number(value) => {
                Err(format!("Value '{value}' is too large for parameter '{name}'").into())
            }
            None => Err(format!("Parameter '{name}' expects a number").into()),
        },
        Kind::Size => match size::parse_u64(value) {
            Ok(_) => Ok(()),
            Err(SizeError::Range) => {
                Err(format!("Value '{value}' is out of range for parameter '{name}'").into())
            }
            Err(SizeError::Syntax) => Err(OptionError {
                message: format!("Parameter '{name}' expects a non-negative number below 2^64"),
                hint: Some(
                    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                     and exabytes, respectively.",
                ),
            }),
        },
    }
}

fn is_on(value: &str) -> bool {
    ["on", "yes", "true", "y"].contains(&value)
}

/// A number as C's `strtoull` reads it, of base 8, 10 or 16 by its beginning; negative ones wrap.
fn number(text: &str) -> Option<u64> {
    let (negative, radix, digits) = split_number(text);
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    Some(if negative { magnitude.wrapping_neg() } else { magnitude })
}

/// Whether a text is a number, of whatever size.
fn is_number(text: &str) -> bool {
    let (_, radix, digits) = split_number(text);
    !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix))
}

fn split_number(text: &str) -> (bool, u32, &str) {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let (negative, text) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (negative, 16, digits),
        None if text.len() > 1 && text.starts_with('0') => (negative, 8, &text[1..]),
        None => (negative, 10, text),
    }
}
