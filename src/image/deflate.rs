//! Compressing clusters: raw deflate and zstd, with contexts that are used again.
//!
//! A stream is worth having only if it is shorter than the cluster; what is not is stored as it is.
//!
//! # Deflate
//!
//! A match must not lie further back than 4 KiB: readers such as QEMU inflate with a window of 12 bits. QEMU's own one
//! happens to accept more when a stream is inflated in one call, others do not. That leaves out libdeflate, whose window
//! is always 32 KiB. zlib-rs keeps to the window, but only at level 9 finds matches of three bytes and makes streams as
//! short as those of zlib at the level that QEMU uses. An encoder for this window alone needs no sliding, has tables that
//! stay in a processor's first caches, and is what [`encoder`] is:
//!
//! | clusters of 64 KiB | zlib 6 (QEMU) | zlib-rs 6 | zlib-rs 9 | here |
//! |---|---|---|---|---|
//! | text of random words | 58.4 %, 44 MiB/s | 55.6 %, 89 MiB/s | 58.4 %, 70 MiB/s | 57.9 %, 91 MiB/s |
//! | shared libraries | 41.9 %, 33 MiB/s | 43.5 %, 90 MiB/s | 41.8 %, 50 MiB/s | 41.8 %, 87 MiB/s |
//! | /usr/share, /usr/include | 69.6 %, 60 MiB/s | 69.6 %, 106 MiB/s | 69.5 %, 80 MiB/s | 69.0 %, 110 MiB/s |
//!
//! # zstd
//!
//! The library's default level, as QEMU. On wasm32, where C does not compile, there is no encoder: clusters are stored as
//! they are, which is as good an image.
//!
//! Source: QEMU block/qcow2-threads.c, qcow2_zlib_compress and qcow2_zstd_compress.

// OK to cast: slots, lengths, distances and symbols have at most 16 bits.
#[allow(clippy::cast_possible_truncation)]
mod block;
#[allow(clippy::cast_possible_truncation)]
mod encoder;
#[allow(clippy::cast_possible_truncation)]
mod prefix;

use std::sync::{Arc, Mutex, PoisonError};

use crate::format::Compression;
use crate::storage::Buf;
use crate::workers::{Workers, offload};

/// How many contexts are kept for the next cluster: more than this many at once are made and dropped.
const CONTEXTS_KEPT_MAX: usize = 16;

/// Compresses the clusters of one image.
pub(crate) struct Deflater {
    compression: Compression,
    contexts: Mutex<Vec<Context>>,
}

struct Context {
    encoder: Encoder,
    /// Where streams are made before it is known how long they are.
    stream: Vec<u8>,
}

// A few are kept for each image; boxing one would not pay.
#[allow(clippy::large_enum_variant)]
enum Encoder {
    Deflate(encoder::Encoder),
    Zstd(zstd_stream::Encoder),
}

impl Deflater {
    /// One for streams of this kind. It costs nothing until it is used.
    pub(crate) fn new(compression: Compression) -> Self {
        Self { compression, contexts: Mutex::default() }
    }

    /// A stream that makes `cluster`; `None` if there is none that is shorter.
    pub(crate) fn deflate(&self, cluster: &[u8]) -> Option<Buf> {
        let kept = self.contexts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut context = kept.unwrap_or_else(|| Context::new(self.compression));
        let stream = context.deflate(cluster);
        let mut contexts = self.contexts.lock().unwrap_or_else(PoisonError::into_inner);
        if contexts.len() < CONTEXTS_KEPT_MAX {
            contexts.push(context);
        }
        stream
    }

    /// The same on `workers`, or here without any. Gives the cluster back.
    ///
    /// # Cancel safety
    /// Dropping it has no effect.
    pub(crate) async fn deflate_by(
        self: &Arc<Self>,
        workers: Option<&Arc<dyn Workers>>,
        cluster: Buf,
    ) -> (Buf, Option<Buf>) {
        let Some(workers) = workers else {
            let stream = self.deflate(&cluster);
            return (cluster, stream);
        };
        let this = Arc::clone(self);
        offload(&**workers, move || {
            let stream = this.deflate(&cluster);
            (cluster, stream)
        })
        .await
    }
}

impl Context {
    fn new(compression: Compression) -> Self {
        let encoder = match compression {
            Compression::Deflate => Encoder::Deflate(encoder::Encoder::new()),
            Compression::Zstd => Encoder::Zstd(zstd_stream::Encoder::new()),
        };
        Self { encoder, stream: Vec::new() }
    }

    fn deflate(&mut self, cluster: &[u8]) -> Option<Buf> {
        // With room for a stream that is too long: an encoder that runs out of it stops somewhere.
        self.stream.resize(cluster.len() + cluster.len() / 8 + 1024, 0);
        let len = match &mut self.encoder {
            Encoder::Deflate(encoder) => encoder.deflate(cluster, &mut self.stream)?,
            Encoder::Zstd(encoder) => encoder.deflate(cluster, &mut self.stream)?,
        };
        if len >= cluster.len() {
            return None;
        }
        let mut stream = Buf::zeroed(len);
        stream.copy_from_slice(&self.stream[..len]);
        Some(stream)
    }
}

/// zstd by its own library.
#[cfg(not(target_family = "wasm"))]
mod zstd_stream {
    use zstd::zstd_safe::CCtx;

    pub(super) struct Encoder(CCtx<'static>);

    impl Encoder {
        pub(super) fn new() -> Self {
            Self(CCtx::create())
        }

        pub(super) fn deflate(&mut self, cluster: &[u8], stream: &mut [u8]) -> Option<usize> {
            // A context begins anew with each frame, at its default level.
            self.0.compress2(stream, cluster).ok()
        }
    }
}

/// No zstd encoder: see the head.
#[cfg(target_family = "wasm")]
mod zstd_stream {
    pub(super) struct Encoder;

    impl Encoder {
        pub(super) fn new() -> Self {
            Self
        }

        pub(super) fn deflate(&mut self, _cluster: &[u8], _stream: &mut [u8]) -> Option<usize> {
            None
        }
    }
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation)]
mod tests {
    use std::sync::Arc;

    use super::{Compression, Deflater, Workers};
    use crate::image::codec::Codec;
    use crate::storage::Buf;

    /// Words of a small language: compressible, at every distance.
    fn words(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut text = Vec::new();
        while text.len() < len {
            let word = random() % 4096;
            text.extend_from_slice(format!("{:x} ", word * 0x9e37_79b9).as_bytes());
        }
        text.truncate(len);
        text
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        };
        (0..len).map(step).collect()
    }

    #[test]
    fn streams_make_the_cluster_again_and_are_shorter() {
        for compression in [Compression::Deflate, Compression::Zstd] {
            for bits in 9..=21 {
                let len = 1 << bits;
                let deflater = Deflater::new(compression);
                let codec = Codec::new(compression, len);
                let mut half = words(len, 3);
                half[len / 2..].fill(0);
                for cluster in [vec![0; len], vec![7; len], words(len, 1), words(len, 2), half] {
                    let stream = deflater.deflate(&cluster).unwrap();
                    assert!(stream.len() < len);
                    // Followed by what follows in the file.
                    let mut padded = stream.to_vec();
                    padded.resize(stream.len().next_multiple_of(512), 0xa5);
                    assert!(
                        codec.inflate(&padded).unwrap()[..] == cluster,
                        "{compression:?} {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_compressed_is_left_alone() {
        for compression in [Compression::Deflate, Compression::Zstd] {
            let deflater = Deflater::new(compression);
            for len in [512, 65536, 2 << 20] {
                assert!(deflater.deflate(&noise(len)).is_none(), "{compression:?} {len}");
                // And the context is as good as new.
                let codec = Codec::new(compression, len);
                let stream = deflater.deflate(&words(len, 9)).unwrap();
                assert!(codec.inflate(&stream).unwrap()[..] == words(len, 9));
            }
        }
    }

    #[test]
    fn no_match_reaches_back_further_than_qemus_window() {
        // What repeats does so just beyond the window: there is next to nothing to gain.
        for distance in [4097, 5000, 8192, 16384, 32768] {
            let mut cluster = noise(1 << 16);
            cluster.copy_within(..(1 << 16) - distance, distance);
            let len =
                Deflater::new(Compression::Deflate).deflate(&cluster).map_or(65536, |s| s.len());
            assert!(len > 65000, "{distance}: {len}");
        }
        // And just within it.
        let mut cluster = noise(1 << 16);
        for at in 4096..1 << 16 {
            cluster[at] = cluster[at - 4096];
        }
        assert!(Deflater::new(Compression::Deflate).deflate(&cluster).unwrap().len() < 6000);
    }

    // The decoder of the browser has no window of another size.
    #[cfg(not(target_family = "wasm"))]
    #[test]
    fn reader_with_qemus_window_and_no_more_inflates_in_small_steps() {
        use flate2::{Decompress, FlushDecompress, Status};
        for seed in 1..20 {
            let mut cluster = words(1 << 16, seed);
            let noisy = 3000 * seed as usize % 60000;
            cluster[noisy..noisy + 3000].copy_from_slice(&noise(3000));
            let stream = Deflater::new(Compression::Deflate).deflate(&cluster).unwrap();
            // Given a few bytes of room at a time, it has nothing of what it made but its window.
            let mut reader = Decompress::new_with_window_bits(false, 12);
            let (mut made, mut step) = (Vec::new(), [0; 61]);
            loop {
                let (from, before) = (reader.total_in() as usize, reader.total_out());
                let result = reader.decompress(&stream[from..], &mut step, FlushDecompress::None);
                made.extend_from_slice(&step[..(reader.total_out() - before) as usize]);
                if result.unwrap() == Status::StreamEnd {
                    break;
                }
            }
            assert!(made == cluster, "seed {seed}");
            assert_eq!(reader.total_in(), stream.len() as u64);
        }
    }

    #[test]
    fn workers_give_the_same_stream_and_the_cluster_back() {
        struct AtOnce;
        impl Workers for AtOnce {
            fn execute(&self, job: Box<dyn FnOnce() + Send>) {
                job();
            }
            fn parallelism(&self) -> usize {
                1
            }
        }
        let workers: Arc<dyn Workers> = Arc::new(AtOnce);
        let deflater = Arc::new(Deflater::new(Compression::Zstd));
        let mut cluster = Buf::zeroed(65536);
        cluster.copy_from_slice(&words(65536, 5));
        let here = deflater.deflate(&cluster).unwrap();
        let (back, there) =
            futures::executor::block_on(deflater.deflate_by(Some(&workers), cluster));
        assert_eq!(there.unwrap()[..], here[..]);
        assert!(back[..] == words(65536, 5));
    }
}
