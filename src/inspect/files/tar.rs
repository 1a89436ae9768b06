//! Files as a tar archive: headers of POSIX.1-2001 (`ustar`, with `pax` records for what does not fit).
//!
//! A name that could leave the folder it is extracted to never gets into an archive: the one who makes it joins names that
//! [`Entry::has_plain_name`] lets through, and [`header`] refuses others.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 100 | name |
//! | 100 | 8 each | mode, user, group, in octal |
//! | 124 | 12 | length in bytes |
//! | 136 | 12 | seconds since 1970 |
//! | 148 | 8 | checksum |
//! | 156 | 1 | type |
//! | 157 | 100 | target of a link |
//! | 257 | 8 | "ustar", NUL, "00" |
//! | 345 | 155 | prefix of the name |

use super::{Entry, FileKind, is_plain_name};
use crate::error::{Error, Result};

/// The length of a record, in bytes: headers and the bytes of files are multiples of it.
pub const RECORD_BYTES: usize = 512;

/// What ends an archive, in bytes of zeros.
pub const END_BYTES: usize = 2 * RECORD_BYTES;

/// What fits into the header's field of a length: 8 GiB - 1.
const LEN_MAX: u64 = 0o77_777_777_777;
/// What fits into its fields of users and groups.
const ID_MAX: u32 = 0o7_777_777;

/// The header of `entry` under the relative `path`, to be followed by the file's bytes, if it is a file, and [`padding`] zeros.
/// `None` for what an archive cannot hold: sockets and damaged entries; devices, whose numbers are not known.
///
/// # Errors
/// [`Error::InvalidArgument`] if the path is absolute, empty, or has `.` or `..` in it.
pub fn header(entry: &Entry, path: &[u8], link: Option<&[u8]>) -> Result<Option<Vec<u8>>> {
    if path.is_empty() || !path.split(|byte| *byte == b'/').all(is_plain_name) {
        let path = String::from_utf8_lossy(path);
        return Err(Error::InvalidArgument(format!("{path:?} is no path for an archive")));
    }
    let (kind, mode) = match entry.kind {
        FileKind::File => (b'0', 0o644),
        FileKind::Symlink => (b'2', 0o777),
        FileKind::Folder => (b'5', 0o755),
        FileKind::Fifo => (b'6', 0o644),
        FileKind::BlockDevice
        | FileKind::CharacterDevice
        | FileKind::Socket
        | FileKind::Unknown => {
            return Ok(None);
        }
    };
    let mut name = path.to_vec();
    if entry.kind == FileKind::Folder {
        name.push(b'/');
    }
    let link = link.unwrap_or_default();
    let len = if entry.kind == FileKind::File { entry.len } else { 0 };
    let modified = entry.modified.unwrap_or(0);
    let (user, group) = entry.owner.map_or((0, 0), |owner| (owner.user, owner.group));

    let mut extra = Vec::new();
    let (prefix, short) = split(&name).unwrap_or_else(|| {
        pax(&mut extra, "path", &name);
        (&[], &name[..name.len().min(100)])
    });
    if link.len() > 100 {
        pax(&mut extra, "linkpath", link);
    }
    if len > LEN_MAX {
        pax(&mut extra, "size", len.to_string().as_bytes());
    }
    if modified < 0 || modified.unsigned_abs() > LEN_MAX {
        pax(&mut extra, "mtime", modified.to_string().as_bytes());
    }
    for (key, id) in [("uid", user), ("gid", group)] {
        if id > ID_MAX {
            pax(&mut extra, key, id.to_string().as_bytes());
        }
    }
    let mut out = Vec::new();
    if !extra.is_empty() {
        out.extend_from_slice(
            &Fields {
                name: b"pax",
                mode: 0o644,
                len: extra.len() as u64,
                kind: b'x',
                ..Fields::default()
            }
            .encode(),
        );
        let padding = padding(extra.len() as u64);
        out.extend_from_slice(&extra);
        out.resize(out.len() + padding, 0);
    }
    out.extend_from_slice(
        &Fields {
            name: short,
            prefix,
            link: &link[..link.len().min(100)],
            mode: u64::from(entry.mode.unwrap_or(mode)),
            user: user.min(ID_MAX).into(),
            group: group.min(ID_MAX).into(),
            len: len.min(LEN_MAX),
            modified: u64::try_from(modified).unwrap_or(0).min(LEN_MAX),
            kind,
        }
        .encode(),
    );
    Ok(Some(out))
}

/// How many zeros follow `len` bytes of a file.
#[must_use]
pub fn padding(len: u64) -> usize {
    let record = RECORD_BYTES as u64;
    // OK to unwrap: less than a record.
    usize::try_from((record - len % record) % record).unwrap_or(0)
}

/// A name in two fields: a prefix of up to 155 bytes and up to 100 behind a slash. `None` if it fits nowhere.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if name.len() <= 100 {
        return Some((&[], name));
    }
    let from = name.len() - 101;
    let slash = from + name[from..name.len() - 1].iter().position(|byte| *byte == b'/')?;
    (slash <= 155).then(|| (&name[..slash], &name[slash + 1..]))
}

/// Adds a record: its own length in decimal, a space, the key, `=`, the value, a line feed.
fn pax(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(format!("{len} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The fields of a header.
#[derive(Default)]
struct Fields<'a> {
    name: &'a [u8],
    prefix: &'a [u8],
    link: &'a [u8],
    mode: u64,
    user: u64,
    group: u64,
    len: u64,
    modified: u64,
    kind: u8,
}

impl Fields<'_> {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut record = [0; RECORD_BYTES];
        let mut put = |offset: usize, bytes: &[u8]| {
            record[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(0, self.name);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, format!("{:07o}", self.user).as_bytes());
        put(116, format!("{:07o}", self.group).as_bytes());
        put(124, format!("{:011o}", self.len).as_bytes());
        put(136, format!("{:011o}", self.modified).as_bytes());
        put(148, b"        ");
        put(156, &[self.kind]);
        put(157, self.link);
        put(257, b"ustar\x0000");
        put(345, self.prefix);
        let sum: u64 = record.iter().map(|byte| u64::from(*byte)).sum();
        record[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        record
    }
}

#[cfg(test)]
mod tests {
    use super::{pax, split};

    #[test]
    fn records_count_their_own_length() {
        for value in [1, 80, 86, 87, 88, 89, 986, 987, 988, 989] {
            let mut record = Vec::new();
            pax(&mut record, "path", &vec![b'x'; value]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), record.len());
        }
    }

    #[test]
    fn names_are_split_at_a_slash() {
        let name = format!("{}/{}", "a".repeat(155), "b".repeat(100));
        assert_eq!(
            split(name.as_bytes()),
            Some((&name.as_bytes()[..155], &name.as_bytes()[156..]))
        );
        assert_eq!(split(format!("{}/b", "a".repeat(156)).as_bytes()), None);
        assert_eq!(split("a".repeat(101).as_bytes()), None);
        assert_eq!(split("a".repeat(100).as_bytes()).unwrap().0, b"");
    }
}
