//! Locks on image files that QEMU understands.
//!
//! QEMU locks single bytes of an image with open-file-description locks, always shared ones, and looks whether an
//! exclusive one would be possible: byte `100 + n` is held by who uses permission `n`, byte `200 + n` by who does not
//! let others use it. So a reader keeps writers out and they keep it out, and readers share. Matches QEMU's
//! `block/file-posix.c` (`raw_apply_lock_bytes`, `raw_check_lock_bytes`); which permissions a qcow2 layer asks for was
//! read off `/proc/locks`.
//!
//! The locks are advisory and belong to the open file: they go when the storage is dropped, or the last descriptor of the
//! file is closed.

use std::fmt;
use std::path::{Path, PathBuf};

/// Which locks an opened file takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LockMode {
    /// As QEMU's qcow2 driver: no one else may write to the file or change its length while it is open.
    #[default]
    Exclusive,
    /// As QEMU's raw driver at the top of a chain: others may do what they like, but not if they forbid us.
    Shared,
    /// Reads although someone writes (`--force-share`): what is read may be inconsistent. Only for reading.
    ForceShare,
    /// None.
    Off,
}

/// Someone else uses the file in a way that the lock asked for does not go with.
///
/// It is what an [`io::Error`](std::io::Error) of kind [`ResourceBusy`](std::io::ErrorKind::ResourceBusy) from opening
/// a file holds. Its text is QEMU's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockError {
    permission: &'static str,
    /// They do not let us, or we do not let them.
    side: Side,
    path: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Theirs,
}

impl LockError {
    /// What to ask the user, as QEMU does on a second line.
    #[must_use]
    pub fn hint(&self) -> String {
        format!("Is another process using the image [{}]?", self.path.display())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Side::Ours => write!(f, "Failed to get \"{}\" lock", self.permission),
            Side::Theirs => write!(f, "Failed to get shared \"{}\" lock", self.permission),
        }
    }
}

impl std::error::Error for LockError {}

#[cfg(target_os = "linux")]
pub(super) use linux::{change, release, take};

/// Without open-file-description locks there are none that would hold between the threads of a process.
#[cfg(not(target_os = "linux"))]
pub(super) fn take(
    _file: &std::fs::File,
    _path: &Path,
    _mode: LockMode,
    _writable: bool,
) -> std::io::Result<()> {
    Ok(())
}

/// There is nothing to change.
#[cfg(not(target_os = "linux"))]
pub(super) fn change(
    _file: &std::fs::File,
    _path: &Path,
    _mode: LockMode,
    _writable: bool,
) -> std::io::Result<()> {
    Ok(())
}

/// There is nothing to give back.
#[cfg(not(target_os = "linux"))]
pub(super) fn release(_file: &std::fs::File) {}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    use super::{LockError, LockMode, Side};

    /// QEMU's permissions in the order of their bits.
    const PERMISSIONS: [&str; 4] = ["consistent read", "write", "write unchanged", "resize"];
    const CONSISTENT_READ: u8 = 1 << 0;
    const WRITE: u8 = 1 << 1;
    const RESIZE: u8 = 1 << 3;

    /// The byte of permission 0, held by who uses it.
    const HELD: i64 = 100;
    /// The byte of permission 0, held by who does not share it.
    const NOT_SHARED: i64 = 200;

    /// Takes the locks of `mode`, or says who is in the way. A file system without locks has none to take.
    pub(in crate::rt) fn take(
        file: &File,
        path: &Path,
        mode: LockMode,
        writable: bool,
    ) -> io::Result<()> {
        let (held, not_shared) = match (mode, writable) {
            (LockMode::Off, _) => return Ok(()),
            (LockMode::ForceShare, true) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "force-share=on can only be used with read-only images",
                ));
            }
            _ => permissions(mode, writable),
        };
        // First say what we do, then look at what others do: of two who come at once at least one sees the other.
        for (bits, base) in [(held, HELD), (not_shared, NOT_SHARED)] {
            for byte in bytes(bits, base) {
                match set(file, byte) {
                    Ok(()) => {}
                    Err(Errno::EINVAL | Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                        return Ok(());
                    }
                    Err(Errno::EACCES | Errno::EAGAIN) => {
                        return Err(io::Error::new(
                            io::ErrorKind::ResourceBusy,
                            format!("Failed to lock byte {byte}"),
                        ));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        check(file, path, held, NOT_SHARED, Side::Ours)?;
        check(file, path, not_shared, HELD, Side::Theirs)
    }

    /// Takes the locks of a writer for those of a reader, or the other way round, or says who is in the way of that: then they
    /// are as before. At no moment has the file less than both have in common.
    pub(in crate::rt) fn change(
        file: &File,
        path: &Path,
        mode: LockMode,
        writable: bool,
    ) -> io::Result<()> {
        let taken = take(file, path, mode, writable);
        let (keep, drop) = match taken {
            Ok(()) => (writable, !writable),
            Err(_) => (!writable, writable),
        };
        let (kept, dropped) = (permissions(mode, keep), permissions(mode, drop));
        for (bits, base) in [(dropped.0 & !kept.0, HELD), (dropped.1 & !kept.1, NOT_SHARED)] {
            for byte in bytes(bits, base) {
                // Nothing can be done about an error: the lock is kept.
                let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_UNLCK, byte)));
            }
        }
        taken
    }

    /// What a mode uses, and what it does not let others use.
    fn permissions(mode: LockMode, writable: bool) -> (u8, u8) {
        match (mode, writable) {
            (LockMode::Off, _) => (0, 0),
            (LockMode::Exclusive, false) => (CONSISTENT_READ, WRITE | RESIZE),
            (LockMode::Exclusive, true) => (CONSISTENT_READ | WRITE | RESIZE, WRITE | RESIZE),
            (LockMode::Shared, true) => (CONSISTENT_READ | WRITE, 0),
            (LockMode::Shared | LockMode::ForceShare, false) | (LockMode::ForceShare, true) => {
                (CONSISTENT_READ, 0)
            }
        }
    }

    /// Gives all locks back. The kernel would do so when it closes the file, and may be late: io_uring keeps a request's
    /// file for a while after the request is done, even when the process has ended.
    pub(in crate::rt) fn release(file: &File) {
        let mut all = lock(libc::F_UNLCK, HELD);
        all.l_len = NOT_SHARED + 4 - HELD;
        // Nothing can be done about an error; closing the file gives the locks back too.
        let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&all));
    }

    fn check(file: &File, path: &Path, bits: u8, base: i64, side: Side) -> io::Result<()> {
        for (byte, permission) in bytes(bits, base).zip(names(bits)) {
            if !is_free(file, byte)? {
                let error = LockError { permission, side, path: path.to_path_buf() };
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, error));
            }
        }
        Ok(())
    }

    fn bytes(bits: u8, base: i64) -> impl Iterator<Item = i64> {
        (0..4u8).filter(move |bit| bits & 1 << bit != 0).map(move |bit| base + i64::from(bit))
    }

    fn names(bits: u8) -> impl Iterator<Item = &'static str> {
        PERMISSIONS
            .into_iter()
            .enumerate()
            .filter(move |(bit, _)| bits & 1 << bit != 0)
            .map(|p| p.1)
    }

    fn set(file: &File, byte: i64) -> Result<(), Errno> {
        fcntl(file, FcntlArg::F_OFD_SETLK(&lock(libc::F_RDLCK, byte))).map(drop)
    }

    /// Whether an exclusive lock on the byte would be possible.
    fn is_free(file: &File, byte: i64) -> Result<bool, Errno> {
        let mut found = lock(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
        Ok(i32::from(found.l_type) == libc::F_UNLCK)
    }

    fn lock(kind: i32, byte: i64) -> libc::flock {
        libc::flock {
            // OK to cast: the kinds are 0, 1 and 2.
            #[allow(clippy::cast_possible_truncation)]
            l_type: kind as libc::c_short,
            // OK to cast: it is 0.
            #[allow(clippy::cast_possible_truncation)]
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: byte,
            l_len: 1,
            l_pid: 0,
        }
    }
}
