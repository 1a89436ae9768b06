//! Gates for images in folders: what the command opens for an image, and what it does not.
//!
//! A name in an image is a stranger's. [`FolderGate`] takes it for the name of a plain file and for nothing else: there
//! is no protocol, no JSON, no descriptor in it. In its default mode the file must lie in the image's own folder, below
//! it, or at a place that was approved; the system resolves it beneath that place, through no symbolic link, so that
//! neither `..` nor a link leads out. Only regular files are opened, and of others nothing is opened at all.
//!
//! A hard link is not told apart from the file that it is; who can make one in the folder could as well copy.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use blocking::unblock;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, open, openat, statat};
use rustix::io::Errno;

use super::disk::DiskStorage;
use super::file::FileOptions;
use crate::crypt::Secret;
use crate::error::{Error, Result};
use crate::image::{Answer, Format, Gate, Locked, Reference, ReferenceKind, Source, detect};
use crate::storage::{Buf, Storage, StorageLimits};

/// Opens files that an image names if they lie where the user has approved of.
#[derive(Debug, Clone)]
pub struct FolderGate {
    /// `None`: plain files anywhere.
    places: Option<Vec<Place>>,
    options: FileOptions,
    keys: Keys,
}

/// Who knows the passphrases of encrypted layers.
#[derive(Clone)]
struct Keys(Arc<Ask>);

type Ask = dyn Fn(&Locked<'_>) -> Result<Option<Secret>> + Send + Sync;

impl Default for Keys {
    fn default() -> Self {
        Self(Arc::new(|_| Ok(None)))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// Something approved.
#[derive(Debug, Clone)]
struct Place {
    /// As it was named, made absolute: what names in images are held against, too.
    named: PathBuf,
    /// With all links resolved: what is opened.
    real: PathBuf,
    is_folder: bool,
}

impl FolderGate {
    /// Approves of the folder that the image at `path` is in, and of what is below.
    ///
    /// # Errors
    /// What the system says about the folder.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        let gate =
            Self { places: Some(Vec::new()), options: FileOptions::new(), keys: Keys::default() };
        gate.allow(folder_of(path.as_ref()))
    }

    /// Approves of plain files anywhere, through links, as `qemu-img` does; still not of devices, FIFOs, protocols.
    #[must_use]
    pub fn plain_files() -> Self {
        Self { places: None, options: FileOptions::new(), keys: Keys::default() }
    }

    /// Approves of a file, or of a folder and what is below.
    ///
    /// # Errors
    /// What the system says about the path: it must exist.
    pub fn allow(mut self, path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let place = Place {
            named: normalize(&std::path::absolute(path)?),
            real: path.canonicalize()?,
            is_folder: path.metadata()?.is_dir(),
        };
        if let Some(places) = &mut self.places {
            places.push(place);
        }
        Ok(self)
    }

    /// How files are opened: directness, locks, and whether the data file of the image itself is opened for writing
    /// too. All others are opened for reading only, whatever the options say.
    #[must_use]
    pub fn options(mut self, options: &FileOptions) -> Self {
        let files = options.clone().create(false).truncate(false);
        self.options = files.block_device(false).character_device(false);
        self
    }

    /// Asks `keys` for the passphrases of encrypted layers; see [`Gate::key`].
    #[must_use]
    pub fn keys(
        mut self,
        keys: impl Fn(&Locked<'_>) -> Result<Option<Secret>> + Send + Sync + 'static,
    ) -> Self {
        self.keys = Keys(Arc::new(keys));
        self
    }

    /// Opens what `reference` names for writing: a backing file that the image above it is to be merged into. The same
    /// places are approved of as for reading.
    ///
    /// # Errors
    /// As [`Gate::open`].
    pub async fn open_writable(&self, reference: &Reference<'_>) -> Result<Source<DiskStorage>> {
        self.clone().open_as(reference, true).await
    }

    async fn open_as(
        mut self,
        reference: &Reference<'_>,
        writable: bool,
    ) -> Result<Source<DiskStorage>> {
        check_name(reference)?;
        let format = stated_format(reference)?;
        self.options = self.options.writable(writable);
        let folder = folder_of(reference.from).to_path_buf();
        let name = PathBuf::from(OsStr::from_bytes(reference.name));
        // Opening can wait for a disk or a network.
        let opened = unblock(move || self.open_file(&folder, &name)).await;
        let storage = match opened {
            Ok(storage) => storage,
            Err(Denied::Refused(reason)) => return Err(reference.refused(reason)),
            Err(Denied::Failed(source)) => {
                return Err(Error::Open { path: location(reference), source });
            }
        };
        let format = match format {
            Some(format) => format,
            None => probe(&storage, &location(reference)).await?,
        };
        Ok(Source { location: location(reference), ..storage.into_source(format) })
    }
}

impl Gate for FolderGate {
    type Storage = DiskStorage;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<DiskStorage>> {
        // Below the image itself nothing is written to.
        let writable = self.options.is_writable()
            && reference.kind == ReferenceKind::DataFile
            && reference.depth == 0;
        let source = self.clone().open_as(reference, writable).await?;
        Ok(Answer::Open(source))
    }

    async fn key(&self, locked: &Locked<'_>) -> Result<Option<Secret>> {
        self.keys.0(locked)
    }
}

/// Why there is no file.
enum Denied {
    Refused(String),
    Failed(io::Error),
}

impl From<io::Error> for Denied {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Errno> for Denied {
    fn from(error: Errno) -> Self {
        Self::Failed(error.into())
    }
}

impl FolderGate {
    /// Opens what a layer in `folder` calls `name`.
    fn open_file(&self, folder: &Path, name: &Path) -> std::result::Result<DiskStorage, Denied> {
        let path = folder.join(name);
        let flags = self.options.open_flags() | self.options.access();
        let Some(places) = &self.places else {
            if !std::fs::metadata(&path)?.is_file() {
                return Err(not_a_file(&path));
            }
            return self.storage(open(&path, flags, Mode::empty())?, &path);
        };
        // The layer's own folder was approved of and is where the system says it is. The name is a stranger's: it is
        // only a row of components until one of the places is found to hold it.
        let real = normalize(&folder.canonicalize()?.join(name));
        let named = normalize(&std::path::absolute(&path)?);
        let mut through_link = false;
        for place in places {
            let Some((root, below)) = place.holds(&real, &named) else { continue };
            match open_beneath(root, below, flags) {
                Ok(file) => return self.storage(file, &path),
                Err(Errno::LOOP | Errno::XDEV) => through_link = true,
                // An O_PATH handle that was not a regular file.
                Err(Errno::INVAL) => return Err(not_a_file(&path)),
                Err(error) => return Err(error.into()),
            }
        }
        let real = real.display();
        Err(Denied::Refused(match through_link {
            true => format!("a symbolic link leads to it; approve it with --allow {real}"),
            false => format!("it is outside of the image's folder; approve it with --allow {real}"),
        }))
    }

    fn storage(&self, file: OwnedFd, path: &Path) -> std::result::Result<DiskStorage, Denied> {
        if !is_file(&file)? {
            return Err(not_a_file(path));
        }
        Ok(DiskStorage::from_file(File::from(file), path, &self.options)?)
    }
}

impl Place {
    /// The folder to resolve from and the rest of the path, if this place holds the file.
    fn holds<'a>(&'a self, real: &'a Path, named: &'a Path) -> Option<(&'a Path, &'a Path)> {
        let mut pairs = [(real, &self.real), (real, &self.named), (named, &self.named)].into_iter();
        if self.is_folder {
            let below = pairs.find_map(|(path, place)| path.strip_prefix(place).ok())?;
            return Some((&self.real, below));
        }
        pairs.find(|(path, place)| path == place)?;
        Some((self.real.parent()?, Path::new(self.real.file_name()?)))
    }
}

/// Opens the regular file at `below`, a path of plain components, beneath `root` and through no symbolic link.
fn open_beneath(root: &Path, below: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let folder = open(root, FOLDER_FLAGS, Mode::empty())?;
    match beneath::open_at_once(&folder, below, flags) {
        Err(Errno::NOSYS | Errno::PERM) => open_step_by_step(folder, below, flags),
        result => result,
    }
}

#[cfg(target_os = "linux")]
const FOLDER_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
#[cfg(not(target_os = "linux"))]
const FOLDER_FLAGS: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

#[cfg(target_os = "linux")]
mod beneath {
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
    use rustix::io::Errno;

    use super::is_file;

    /// In one call of the system. Looks first: a FIFO or device would notice being opened.
    pub(super) fn open_at_once(
        folder: &OwnedFd,
        below: &Path,
        flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let look = OFlags::PATH | OFlags::CLOEXEC;
        if !is_file(openat2(folder, below, look, Mode::empty(), resolve)?)? {
            return Err(Errno::INVAL);
        }
        openat2(folder, below, flags, Mode::empty(), resolve)
    }
}

#[cfg(not(target_os = "linux"))]
mod beneath {
    use std::os::fd::OwnedFd;
    use std::path::Path;

    use rustix::fs::OFlags;
    use rustix::io::Errno;

    pub(super) fn open_at_once(
        _folder: &OwnedFd,
        _below: &Path,
        _flags: OFlags,
    ) -> rustix::io::Result<OwnedFd> {
        Err(Errno::NOSYS)
    }
}

/// The same where the system cannot do it in one call.
fn open_step_by_step(
    mut folder: OwnedFd,
    below: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let mut components = below.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else { return Err(Errno::XDEV) };
        let found = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Symlink => return Err(Errno::LOOP),
            FileType::RegularFile if components.peek().is_none() => {
                return openat(&folder, name, flags | OFlags::NOFOLLOW, Mode::empty());
            }
            FileType::Directory if components.peek().is_some() => {
                folder = openat(&folder, name, FOLDER_FLAGS | OFlags::NOFOLLOW, Mode::empty())?;
            }
            _ if components.peek().is_some() => return Err(Errno::NOTDIR),
            _ => return Err(Errno::INVAL),
        }
    }
    Err(Errno::INVAL)
}

fn is_file(file: impl AsFd) -> rustix::io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::RegularFile)
}

fn not_a_file(path: &Path) -> Denied {
    Denied::Refused(format!("'{}' is not a regular file", path.display()))
}

/// Refuses what is not the name of a plain file.
fn check_name(reference: &Reference<'_>) -> Result<()> {
    let name = reference.name;
    let reason = if name.is_empty() {
        "the image does not say which file it is"
    } else if name.contains(&0) {
        "the name contains a zero byte"
    } else if name.ends_with(b"/") {
        "the name is that of a folder"
    } else if has_protocol(name) {
        "the name has a protocol; only plain files are opened. If it is the name of a file, write it \
         as a path (./NAME) into the image, or open the file by itself"
    } else {
        return Ok(());
    };
    Err(reference.refused(reason))
}

/// Whether QEMU takes the name for something else than a file: there is a colon before any slash.
fn has_protocol(name: &[u8]) -> bool {
    name.iter().find(|byte| matches!(byte, b':' | b'/')) == Some(&b':')
}

/// The format that the image states, if this crate has it; `None` if it states none.
fn stated_format(reference: &Reference<'_>) -> Result<Option<Format>> {
    match (reference.kind, reference.format) {
        (ReferenceKind::DataFile, _) => Ok(Some(Format::Raw)),
        (ReferenceKind::BackingFile, None) => Ok(None),
        (ReferenceKind::BackingFile, Some(b"qcow2")) => Ok(Some(Format::Qcow2)),
        (ReferenceKind::BackingFile, Some(b"raw")) => Ok(Some(Format::Raw)),
        (ReferenceKind::BackingFile, Some(other)) => {
            let other = String::from_utf8_lossy(other);
            Err(reference.refused(format!("Unknown driver '{other}'")))
        }
    }
}

/// A format for a backing file whose image states none, from its first bytes, as QEMU does.
async fn probe(storage: &DiskStorage, path: &Path) -> Result<Format> {
    let StorageLimits { request_alignment, memory_alignment, .. } = Storage::limits(storage);
    let buf = Buf::aligned(512.max(request_alignment as usize), memory_alignment as usize);
    match Storage::read_at(storage, buf, 0).await {
        Ok(bytes) => Ok(detect(&bytes)),
        Err(source) => Err(Error::Open { path: path.to_path_buf(), source }),
    }
}

/// Where the named file is, as QEMU writes it: relative names in the folder of the layer that has them, which is left
/// out if it is the current one.
fn location(reference: &Reference<'_>) -> PathBuf {
    let folder = reference.from.parent().unwrap_or(Path::new(""));
    folder.join(OsStr::from_bytes(reference.name))
}

/// The folder that a file is in: "." for a name without one.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Takes `.` and `..` out of an absolute path, letter by letter: what is before a `..` is taken for a folder.
fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            _ => normal.push(component),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::{FOLDER_FLAGS, OFlags, has_protocol, normalize, open, open_step_by_step};
    use rustix::fs::Mode;
    use rustix::io::Errno;
    use std::path::Path;

    #[test]
    fn colon_before_a_slash_is_a_protocol() {
        // What path_has_protocol in QEMU's block.c says of them.
        for name in ["json:{}", "nbd:unix:/s", "file:x", "fat:rw:.", "a:b", ":"] {
            assert!(has_protocol(name.as_bytes()), "{name}");
        }
        for name in ["x", "/a:b", "./a:b", "d/nbd:x", ""] {
            assert!(!has_protocol(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn dots_are_taken_out() {
        for (path, normal) in
            [("/a/b/../c", "/a/c"), ("/../..", "/"), ("/a/./b/", "/a/b"), ("/a//b", "/a/b")]
        {
            assert_eq!(normalize(Path::new(path)), Path::new(normal));
        }
    }

    #[test]
    fn step_by_step_goes_through_no_link_and_out_of_no_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/file"), b"").unwrap();
        std::os::unix::fs::symlink("file", root.join("sub/link")).unwrap();
        std::os::unix::fs::symlink("sub", root.join("way")).unwrap();
        let walk = |below: &str| {
            let start = open(root, FOLDER_FLAGS, Mode::empty()).unwrap();
            open_step_by_step(start, Path::new(below), OFlags::RDONLY | OFlags::CLOEXEC).map(drop)
        };
        assert_eq!(walk("sub/file"), Ok(()));
        assert_eq!(walk("sub/link"), Err(Errno::LOOP));
        assert_eq!(walk("way/file"), Err(Errno::LOOP));
        assert_eq!(walk("sub/../sub/file"), Err(Errno::XDEV));
        assert_eq!(walk("/etc/passwd"), Err(Errno::XDEV));
        assert_eq!(walk("sub"), Err(Errno::INVAL));
        assert_eq!(walk("sub/file/x"), Err(Errno::NOTDIR));
        assert_eq!(walk("none"), Err(Errno::NOENT));
        assert_eq!(walk(""), Err(Errno::INVAL));
    }
}
