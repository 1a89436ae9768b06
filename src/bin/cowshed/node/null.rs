//! `null-co`: zeros of some length, and what is written to it is gone. Matches block/null.c.

use std::io;

use cowshed::storage::{Buf, SendStorage, StorageExtent, StorageExtentKind};

use crate::names::{Names, must_be_known};
use crate::size;

/// Its length where none is given, in bytes.
const LEN_BYTES_DEFAULT: u64 = 1 << 30;

/// Zeros.
#[derive(Debug, Clone)]
pub(crate) struct Null {
    len: u64,
    /// Whether it says that it is zeros.
    reads_zeroes: bool,
}

impl Null {
    /// QEMU's name for it.
    pub(crate) const DRIVER: &'static str = "null-co";

    /// What the options say, all of which it takes.
    ///
    /// # Errors
    /// One is wrong, or not known.
    pub(crate) fn from_names(mut names: Names) -> Result<Self, String> {
        let len = match names.remove("size") {
            Some(size) => size::parse(&size)
                .map_err(|_| format!("Value '{size}' is out of range for parameter 'size'"))?,
            None => LEN_BYTES_DEFAULT,
        };
        let reads_zeroes = match names.remove("read-zeroes").as_deref() {
            None | Some("off") => false,
            Some("on") => true,
            Some(_) => return Err("Parameter 'read-zeroes' expects 'on' or 'off'".into()),
        };
        must_be_known(&names, Self::DRIVER, &[])?;
        Ok(Self { len, reads_zeroes })
    }
}

impl SendStorage for Null {
    async fn read_at(&self, mut buf: Buf, _offset: u64) -> io::Result<Buf> {
        buf.fill(0);
        Ok(buf)
    }

    async fn write_at(&self, buf: Buf, _offset: u64) -> io::Result<Buf> {
        Ok(buf)
    }

    async fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    async fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    async fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn extent_at(&self, _offset: u64, len: u64) -> io::Result<StorageExtent> {
        let kind = match self.reads_zeroes {
            true => StorageExtentKind::Hole,
            false => StorageExtentKind::Data,
        };
        Ok(StorageExtent { kind, len })
    }
}
