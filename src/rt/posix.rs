//! What a file can do while a thread waits for it: whole reads and writes at offsets, holes, zeroed ranges.
//!
//! Everything here blocks but [`try_read_at`], [`is_cached`], [`is_local`] and [`is_memory`]. Offsets are the storage's; what the kernel cannot express (it counts in
//! `i64`) is past the end of any file. What only Linux has stands beside what every Unix has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::storage::{Buf, StorageExtent, StorageExtentKind};

/// How many zeros are written at a time where the file system cannot zero a range.
const ZEROES_LEN_BYTES: usize = 1 << 20;

/// The offsets that a file can have.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// Reads all of `buf`; zeros past the end. With `O_DIRECT`, `alignment` is what requests are multiples of.
pub(super) fn read_at(file: &File, buf: &mut [u8], offset: u64, alignment: u32) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let at = match offset.checked_add(done as u64) {
            Some(at) if at <= OFFSET_MAX - (buf.len() - done) as u64 => at,
            _ => break,
        };
        match file.read_at(&mut buf[done..], at) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                // Only the end of the file cuts a direct read within a block; going on from there is an error.
                if !done.is_multiple_of(alignment as usize) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buf[done..].fill(0);
    Ok(())
}

/// Writes all of `buf`.
pub(super) fn write_at(file: &File, buf: &[u8], offset: u64) -> io::Result<()> {
    check_end(offset, buf.len() as u64)?;
    file.write_all_at(buf, offset)
}

/// Whether `len` bytes at `offset` end where a file may end.
pub(super) fn check_end(offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= OFFSET_MAX => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{len} bytes at {offset:#x} end past what a file can hold"),
        )),
    }
}

/// Makes a range read as zeros, by the file system if it can.
pub(super) fn write_zeroes(
    file: &File,
    offset: u64,
    len: u64,
    alignment: u32,
    memory_alignment: u32,
) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    check_end(offset, len)?;
    if sys::zero_range(file, offset, len)? {
        return Ok(());
    }
    // What lies past the end becomes zeros by taking its space or, where that cannot be asked for, by writing its last unit;
    // what lies before is written.
    let end = offset + len;
    let file_len = len_bytes(file)?;
    let unit = u64::from(alignment);
    let written_end =
        if file_len >= end { end } else { file_len.next_multiple_of(unit).clamp(offset, end) };
    // OK to cast: at most ZEROES_LEN_BYTES.
    #[allow(clippy::cast_possible_truncation)]
    let zeros = Buf::aligned(len.min(ZEROES_LEN_BYTES as u64) as usize, memory_alignment as usize);
    write_zeros(file, &zeros, offset, written_end)?;
    if written_end < end && !sys::take_space(file, written_end, end - written_end)? {
        write_zeros(file, &zeros, end - unit.min(len), end)?;
    }
    Ok(())
}

fn write_zeros(file: &File, zeros: &[u8], mut offset: u64, end: u64) -> io::Result<()> {
    while offset < end {
        // OK to cast: at most the length of `zeros`.
        #[allow(clippy::cast_possible_truncation)]
        let len = (end - offset).min(zeros.len() as u64) as usize;
        file.write_all_at(&zeros[..len], offset)?;
        offset += len as u64;
    }
    Ok(())
}

/// Gives up the space of a range; `false` if the file system cannot.
pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
    if len == 0 {
        return Ok(true);
    }
    check_end(offset, len)?;
    sys::punch_hole(file, offset, len)
}

/// What the file system knows of the run that starts at `offset`.
pub(super) fn extent_at(file: &File, offset: u64, len: u64) -> io::Result<StorageExtent> {
    let end = len_bytes(file)?;
    if offset >= end {
        return Ok(StorageExtent { kind: StorageExtentKind::Hole, len });
    }
    sys::extent_at(file, offset, len, end)
}

/// The length of a file or block device.
pub(super) fn len_bytes(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        // A device has no length but where its end is; nothing here uses the cursor.
        return Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?);
    }
    Ok(metadata.len())
}

pub(super) use sys::{direct_alignment, is_cached, is_local, is_memory, try_read_at};

/// What [`try_read_at`] found.
pub(super) enum AtOnce {
    /// The buffer is full.
    Read,
    /// It would have to wait.
    Wait,
    /// This file never answers at once.
    Never,
}

#[cfg(target_os = "linux")]
mod sys {
    use std::fs::File;
    use std::io::{self, IoSliceMut};
    use std::os::unix::fs::FileTypeExt;

    use rustix::fs::{
        AtFlags, FallocateFlags, SeekFrom, StatxFlags, fallocate, fstatfs, seek, statx,
    };
    use rustix::io::{Errno, ReadWriteFlags, preadv2};

    use super::{AtOnce, OFFSET_MAX};
    use crate::storage::{StorageExtent, StorageExtentKind};

    /// Reads all of `buf` from the page cache, or says why not. Never waits, never allocates.
    pub(in crate::rt) fn try_read_at(
        file: &File,
        buf: &mut [u8],
        offset: u64,
    ) -> io::Result<AtOnce> {
        let read = |rest: &mut [u8], at| {
            preadv2(file, &mut [IoSliceMut::new(rest)], at, ReadWriteFlags::NOWAIT)
        };
        read_at_once(buf, offset, read, || super::len_bytes(file))
    }

    /// Does the work of [`try_read_at`] by `read`, on a file whose length `len_bytes` tells.
    fn read_at_once(
        buf: &mut [u8],
        offset: u64,
        mut read: impl FnMut(&mut [u8], u64) -> rustix::io::Result<usize>,
        len_bytes: impl Fn() -> io::Result<u64>,
    ) -> io::Result<AtOnce> {
        let mut done = 0;
        while done < buf.len() {
            let at = match offset.checked_add(done as u64) {
                Some(at) if at <= OFFSET_MAX - (buf.len() - done) as u64 => at,
                _ => break,
            };
            match read(&mut buf[done..], at) {
                // A short count may be the end or the edge of what is cached; the next call tells which. Linux 5.9 and
                // 5.10 say 0 at the edge, too (preadv2(2), BUGS): only the length tells that it is the end.
                Ok(0) if len_bytes()? > at => return Ok(AtOnce::Wait),
                Ok(0) => break,
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(AtOnce::Wait),
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(AtOnce::Never),
                Err(error) => return Err(error.into()),
            }
        }
        buf[done..].fill(0);
        Ok(AtOnce::Read)
    }

    /// Whether the page that holds the byte at `offset` is cached, or past the end, or of a file system that keeps
    /// nothing elsewhere.
    pub(in crate::rt) fn is_cached(file: &File, offset: u64) -> bool {
        let mut byte = [0];
        let read = preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT);
        !matches!(read, Err(Errno::AGAIN | Errno::INTR))
    }

    /// Whether the file lies on a file system that this kernel runs by itself.
    pub(in crate::rt) fn is_local(file: &File) -> bool {
        /// The magic numbers of bcachefs, btrfs, ext2 to ext4, f2fs, overlayfs, tmpfs (and devices' files), XFS, ZFS.
        const LOCAL: [u32; 8] = [
            0xca45_1a4e,
            0x9123_683e,
            0xef53,
            0xf2f5_2010,
            0x794c_7630,
            0x0102_1994,
            0x5846_5342,
            0x2fc1_2fc1,
        ];
        // OK to cast: the numbers have 32 bits, in a field that is wider on some machines.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        fstatfs(file).is_ok_and(|found| LOCAL.contains(&(found.f_type as u32)))
    }

    /// Whether the file lies on a file system that is memory and nothing else.
    pub(in crate::rt) fn is_memory(file: &File) -> bool {
        // tmpfs. OK to cast: the numbers have 32 bits, in a field that is wider on some machines.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        fstatfs(file).is_ok_and(|found| found.f_type as u32 == 0x0102_1994)
    }

    pub(super) fn zero_range(file: &File, offset: u64, len: u64) -> io::Result<bool> {
        supported(fallocate(file, FallocateFlags::ZERO_RANGE, offset, len))
    }

    pub(super) fn take_space(file: &File, offset: u64, len: u64) -> io::Result<bool> {
        supported(fallocate(file, FallocateFlags::empty(), offset, len))
    }

    pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        supported(fallocate(file, flags, offset, len))
    }

    fn supported(result: rustix::io::Result<()>) -> io::Result<bool> {
        match result {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn extent_at(
        file: &File,
        offset: u64,
        len: u64,
        end: u64,
    ) -> io::Result<StorageExtent> {
        let run = |kind, to: u64| StorageExtent { kind, len: len.min(to - offset).max(1) };
        match seek(file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok(run(StorageExtentKind::Hole, data)),
            Ok(_) => match seek(file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok(run(StorageExtentKind::Data, hole)),
                // The file changed in between, or the file system does not know holes.
                _ => Ok(run(StorageExtentKind::Data, end)),
            },
            // No data from here to the end.
            Err(Errno::NXIO) => Ok(StorageExtent { kind: StorageExtentKind::Hole, len }),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(run(StorageExtentKind::Data, end)),
            Err(error) => Err(error.into()),
        }
    }

    /// What `O_DIRECT` asks of requests and of memory, in bytes.
    pub(in crate::rt) fn direct_alignment(file: &File) -> io::Result<(u32, u32)> {
        // Holds for every device that is not known to want more.
        const UNKNOWN: (u32, u32) = (4096, 4096);
        if file.metadata()?.file_type().is_block_device() {
            let sector = rustix::fs::ioctl_blksszget(file)?.max(512);
            return Ok((sector, sector));
        }
        let Ok(found) = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
            return Ok(UNKNOWN);
        };
        if found.stx_mask & StatxFlags::DIOALIGN.bits() == 0 {
            return Ok(UNKNOWN);
        }
        let (offset, memory) = (found.stx_dio_offset_align, found.stx_dio_mem_align);
        match offset.is_power_of_two() && memory.is_power_of_two() {
            true => Ok((offset, memory)),
            false => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the file system does not support direct I/O on this file",
            )),
        }
    }

    #[cfg(test)]
    mod tests {
        use super::{AtOnce, read_at_once};

        /// Reads 8 bytes from a file of `len` bytes of which the kernel gives 4 and then none.
        fn read_half(len: u64) -> (AtOnce, [u8; 8]) {
            let mut buf = [0xa5; 8];
            let mut counts = [4, 0].into_iter();
            let read = |rest: &mut [u8], _| {
                let count = counts.next().unwrap();
                rest[..count].fill(7);
                Ok(count)
            };
            (read_at_once(&mut buf, 100, read, || Ok(len)).unwrap(), buf)
        }

        #[test]
        fn nothing_read_before_the_end_is_not_taken_for_zeros() {
            assert!(matches!(read_half(108).0, AtOnce::Wait));
            assert!(matches!(read_half(105).0, AtOnce::Wait));
            let (at_once, buf) = read_half(104);
            assert!(matches!(at_once, AtOnce::Read));
            assert_eq!(buf, [7, 7, 7, 7, 0, 0, 0, 0]);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod sys {
    use std::fs::File;
    use std::io;

    use super::AtOnce;
    use crate::storage::{StorageExtent, StorageExtentKind};

    pub(in crate::rt) fn try_read_at(
        _file: &File,
        _buf: &mut [u8],
        _offset: u64,
    ) -> io::Result<AtOnce> {
        Ok(AtOnce::Never)
    }

    /// Never asked: nothing is local.
    pub(in crate::rt) fn is_cached(_file: &File, _offset: u64) -> bool {
        false
    }

    /// What file system it is, is not looked at here.
    pub(in crate::rt) fn is_memory(_file: &File) -> bool {
        false
    }

    pub(in crate::rt) fn is_local(_file: &File) -> bool {
        false
    }

    pub(super) fn zero_range(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn take_space(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn punch_hole(_file: &File, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(super) fn extent_at(
        _file: &File,
        offset: u64,
        len: u64,
        end: u64,
    ) -> io::Result<StorageExtent> {
        Ok(StorageExtent { kind: StorageExtentKind::Data, len: len.min(end - offset) })
    }

    pub(in crate::rt) fn direct_alignment(_file: &File) -> io::Result<(u32, u32)> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "direct I/O is not supported here"))
    }
}
