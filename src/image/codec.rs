//! Inflating compressed clusters: raw deflate and zstd, with contexts that are used again.
//!
//! A stream is given with its upper bound in whole sectors, so it is followed by padding or by the next stream: the
//! decoder stops when it has made a cluster, and anything left is none of its business. A stream that makes less than
//! a cluster is broken. The output is one cluster and never more, whatever the stream says of itself.
//!
//! Source: QEMU block/qcow2-threads.c, qcow2_zlib_decompress and qcow2_zstd_decompress.

use std::sync::{Arc, Mutex, PoisonError};

use crate::format::Compression;
use crate::storage::Buf;

use super::deflate::Deflater;

/// How many inflating contexts are kept for the next cluster: more than this many at once are made and dropped.
const CONTEXTS_KEPT_MAX: usize = 16;

/// Why a stream was refused, in words that complete "the stream ...".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamFault {
    /// The bytes are not a stream of the image's compression type.
    Invalid,
    /// The stream ends before it has made a cluster.
    Short,
}

/// Inflates the clusters of one image, and knows what deflates them.
pub(crate) struct Codec {
    compression: Compression,
    cluster_len: usize,
    contexts: Mutex<Vec<Context>>,
    deflater: Arc<Deflater>,
}

impl Codec {
    /// A codec for clusters of `cluster_len` bytes.
    pub(crate) fn new(compression: Compression, cluster_len: usize) -> Arc<Self> {
        Arc::new(Self {
            compression,
            cluster_len,
            contexts: Mutex::new(Vec::new()),
            deflater: Arc::new(Deflater::new(compression)),
        })
    }

    /// What makes streams of clusters.
    pub(crate) fn deflater(&self) -> &Arc<Deflater> {
        &self.deflater
    }

    /// Makes one cluster from `stream`, which may go on behind the end of the stream proper.
    pub(crate) fn inflate(&self, stream: &[u8]) -> Result<Buf, StreamFault> {
        let mut cluster = Buf::zeroed(self.cluster_len);
        let kept = self.contexts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut context = kept.unwrap_or_else(|| Context::new(self.compression));
        let result = context.inflate(stream, &mut cluster);
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if contexts.len() < CONTEXTS_KEPT_MAX {
            contexts.push(context);
        }
        drop(contexts);
        result.map(|()| cluster)
    }
}

// A few are kept for each image; boxing one would not pay.
#[allow(clippy::large_enum_variant)]
enum Context {
    Deflate(deflate_stream::Context),
    Zstd(zstd_stream::Context),
}

impl Context {
    fn new(compression: Compression) -> Self {
        match compression {
            Compression::Deflate => Self::Deflate(deflate_stream::Context::new()),
            Compression::Zstd => Self::Zstd(zstd_stream::Context::new()),
        }
    }

    fn inflate(&mut self, stream: &[u8], cluster: &mut [u8]) -> Result<(), StreamFault> {
        match self {
            Self::Deflate(context) => context.inflate(stream, cluster),
            Self::Zstd(context) => context.inflate(stream, cluster),
        }
    }
}

/// Raw deflate, and which streams are good.
mod zlib_stream {
    use super::StreamFault;
    use flate2::{Decompress, FlushDecompress};

    pub(super) struct Context(Decompress);

    impl Context {
        pub(super) fn new() -> Self {
            Self(Decompress::new(false))
        }

        pub(super) fn inflate(
            &mut self,
            stream: &[u8],
            cluster: &mut [u8],
        ) -> Result<(), StreamFault> {
            self.0.reset(false);
            // The status does not matter: a stream that has more to say than fits is as good as one that ends here.
            self.0
                .decompress(stream, cluster, FlushDecompress::Finish)
                .map_err(|_| StreamFault::Invalid)?;
            if self.0.total_out() == cluster.len() as u64 {
                Ok(())
            } else {
                Err(StreamFault::Short)
            }
        }
    }
}

#[cfg(not(all(feature = "libdeflate", not(target_family = "wasm"))))]
use zlib_stream as deflate_stream;

/// Raw deflate by libdeflate, which knows whole streams only.
#[cfg(all(feature = "libdeflate", not(target_family = "wasm")))]
mod deflate_stream {
    use super::{StreamFault, zlib_stream};
    use libdeflater::Decompressor;

    pub(super) struct Context {
        whole: Decompressor,
        /// Made for the first stream that is not one cluster exactly.
        other: Option<zlib_stream::Context>,
    }

    impl Context {
        pub(super) fn new() -> Self {
            Self { whole: Decompressor::new(), other: None }
        }

        pub(super) fn inflate(
            &mut self,
            stream: &[u8],
            cluster: &mut [u8],
        ) -> Result<(), StreamFault> {
            match self.whole.deflate_decompress(stream, cluster) {
                Ok(made) if made == cluster.len() => Ok(()),
                // What is wrong with it, or that nothing is, the other decoder tells.
                _ => self
                    .other
                    .get_or_insert_with(zlib_stream::Context::new)
                    .inflate(stream, cluster),
            }
        }
    }
}

/// zstd by its own library, which does not need a window beside the output.
#[cfg(not(target_family = "wasm"))]
mod zstd_stream {
    use super::StreamFault;
    use zstd::zstd_safe::{DCtx, find_frame_compressed_size};

    pub(super) struct Context(DCtx<'static>);

    impl Context {
        pub(super) fn new() -> Self {
            Self(DCtx::create())
        }

        pub(super) fn inflate(
            &mut self,
            mut stream: &[u8],
            cluster: &mut [u8],
        ) -> Result<(), StreamFault> {
            let mut made = 0;
            while made < cluster.len() {
                if stream.is_empty() {
                    return Err(StreamFault::Short);
                }
                let len = find_frame_compressed_size(stream).map_err(|_| StreamFault::Invalid)?;
                let frame = stream.get(..len).ok_or(StreamFault::Short)?;
                let rest = cluster.get_mut(made..).ok_or(StreamFault::Invalid)?;
                made += self.0.decompress(rest, frame).map_err(|_| StreamFault::Invalid)?;
                stream = &stream[len..];
            }
            Ok(())
        }
    }
}

/// zstd in Rust, where C does not compile.
#[cfg(target_family = "wasm")]
mod zstd_stream {
    use super::StreamFault;
    use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

    pub(super) struct Context(FrameDecoder);

    impl Context {
        pub(super) fn new() -> Self {
            Self(FrameDecoder::new())
        }

        pub(super) fn inflate(
            &mut self,
            mut stream: &[u8],
            cluster: &mut [u8],
        ) -> Result<(), StreamFault> {
            let mut made = 0;
            while made < cluster.len() {
                if stream.is_empty() {
                    return Err(StreamFault::Short);
                }
                self.0.init(&mut stream).map_err(|_| StreamFault::Invalid)?;
                while made < cluster.len() {
                    if !self.0.is_finished() {
                        self.0
                            .decode_blocks(&mut stream, BlockDecodingStrategy::UptoBlocks(1))
                            .map_err(|_| StreamFault::Invalid)?;
                    }
                    let rest = cluster.get_mut(made..).ok_or(StreamFault::Invalid)?;
                    let n =
                        std::io::Read::read(&mut self.0, rest).map_err(|_| StreamFault::Invalid)?;
                    made += n;
                    if self.0.is_finished() && n == 0 {
                        break;
                    }
                }
            }
            Ok(())
        }
    }
}
