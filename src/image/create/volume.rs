//! Writing a new LUKS volume: the encryption header, and room for the payload behind it.

use std::io;

use crate::crypt::LuksArea;
use crate::error::{Error, Result};
use crate::image::options::Preallocation;
use crate::storage::Storage;

use super::sink::Sink;
use super::{SECTOR_LEN_BYTES, flush, set_len, to_usize, wipe};

/// The largest file.
const FILE_LEN_BYTES_MAX: u64 = i64::MAX as u64;

/// Makes a LUKS volume in `storage` with this encryption header and a disk of `size` bytes. It has whole sectors of 512 bytes,
/// of the last of which the file has only what `size` says.
///
/// Whatever `storage` held is lost. The disk reads as noise: nobody has written to it yet. With
/// [`Preallocation::Falloc`] and [`Preallocation::Full`] it has its space all the same. Everything is durable on return.
///
/// # Errors
/// `InvalidArgument` before anything is touched if the file would be too large; `Storage` if the storage fails, or it is a
/// device that is too small.
///
/// # Cancel safety
/// A creation that is dropped, fails or loses power leaves no volume in `storage`.
///
/// # Source
/// QEMU, block/crypto.c, `block_crypto_create_generic`.
pub async fn create_luks_volume<S: Storage>(
    storage: &S,
    area: &LuksArea,
    size: u64,
    preallocation: Preallocation,
) -> Result<()> {
    let end = size.checked_add(area.len_bytes);
    let end = end.filter(|&end| end <= FILE_LEN_BYTES_MAX).ok_or_else(too_large)?;
    let (written, payload) = (area.bytes.len() as u64, area.len_bytes);
    let is_zero = wipe(storage).await?;
    let mut sink = Sink::new(storage, is_zero);
    let (first, rest) = area.bytes.split_at(to_usize(SECTOR_LEN_BYTES));
    sink.put(rest, SECTOR_LEN_BYTES).await?;
    sink.put_zeros(written, payload - written).await?;
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => {}
        Preallocation::Falloc => sink.allocate(payload, end - payload).await?,
        Preallocation::Full => sink.write_zeros(payload, end - payload).await?,
    }
    sink.drain().await?;
    set_file_len(storage, end, is_zero).await?;
    flush(storage).await?;
    // Cancel: from here on it is a volume, whole and durable but for this sector, or none.
    sink.put(first, 0).await?;
    sink.drain().await?;
    // The request may have been longer than the file.
    set_file_len(storage, end, is_zero).await?;
    flush(storage).await
}

/// Makes a file `end` bytes long; a device must have them.
async fn set_file_len<S: Storage>(storage: &S, end: u64, is_file: bool) -> Result<()> {
    if is_file {
        return set_len(storage, end).await;
    }
    let len = storage.len().await.map_err(|error| Error::storage("length", 0, 0, error))?;
    match len < end {
        true => Err(Error::storage("set length", 0, end, io::ErrorKind::StorageFull.into())),
        false => Ok(()),
    }
}

/// QEMU's words.
fn too_large() -> Error {
    Error::InvalidArgument("The requested file size is too large".to_owned())
}
