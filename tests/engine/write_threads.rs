//! Writers on many threads: each has ranges of its own, lying among those of the others, and reads there what it has
//! written, whatever the others do, while a cleaner works and caches are small. QEMU finds nothing wrong afterwards.

use std::sync::Arc;

use crate::support::qemu;
use crate::support::threads::beside_threads;
use async_executor::Executor;
use cowshed::image::{
    CreateOptions, Image, OpenOptions, RefuseAll, Source, WriteOptions, ZeroMode, create,
};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

const DISK_LEN: u64 = 8 << 20;
/// The ranges of a task are so long, and between two of them lie those of all others.
const STRIPE_LEN: u64 = 3 * 512;
const TASKS: u64 = 16;
const STEPS: usize = 400;

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Writes and reads the stripes of task `task`, and returns what they should read as.
async fn work(image: Arc<Image<Arc<MemoryStorage>>>, task: u64) -> Vec<(u64, Vec<u8>)> {
    let mut random = Random(task.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let stripes = DISK_LEN / STRIPE_LEN / TASKS;
    let mut model: Vec<(u64, Vec<u8>)> = (0..stripes)
        .map(|stripe| ((stripe * TASKS + task) * STRIPE_LEN, vec![0; STRIPE_LEN as usize]))
        .collect();
    for step in 0..STEPS {
        let stripe = random.below(stripes) as usize;
        let (at, bytes) = &mut model[stripe];
        let start = random.below(STRIPE_LEN);
        let end = start + 1 + random.below(STRIPE_LEN - start);
        let part = &mut bytes[start as usize..end as usize];
        match random.below(8) {
            0..=4 => {
                part.fill((step as u8) ^ (task as u8) | 1);
                image.write_at(part, *at + start).await.unwrap();
            }
            5 => {
                part.fill(0);
                let mode = if step % 2 == 0 { ZeroMode::KeepSpace } else { ZeroMode::MayUnmap };
                image.write_zeroes_at(*at + start, end - start, mode).await.unwrap();
            }
            6 => image.flush().await.unwrap(),
            _ => {
                let mut read = vec![0xee; STRIPE_LEN as usize];
                image.read_at(&mut read, *at).await.unwrap();
                assert!(read == *bytes, "task {task}, step {step}: stripe at {at:#x}");
            }
        }
    }
    model
}

#[test]
fn nobody_disturbs_the_bytes_of_another() {
    for (cluster_size, extended_l2, l2_cache_size) in
        [(4096, false, 0), (65536, false, 1 << 20), (16384, true, 8192), (512, false, 0)]
    {
        for threads in [2, 4] {
            let storage = Arc::new(MemoryStorage::new(Vec::new()));
            let mut options = CreateOptions::new(DISK_LEN);
            (options.cluster_size, options.extended_l2) = (cluster_size, extended_l2);
            block_on(create(&storage, None, &options)).unwrap();
            let mut options = OpenOptions::default();
            options.write = Some(WriteOptions::default());
            options.cache.l2_cache_size = Some(l2_cache_size);
            let source = Source::qcow2(Arc::clone(&storage), "image");
            let image = block_on(Image::open(source, &RefuseAll::new(), options)).unwrap().image;
            let image = Arc::new(image);

            let executor = Executor::new();
            let tasks: Vec<_> =
                (0..TASKS).map(|task| executor.spawn(work(Arc::clone(&image), task))).collect();
            let models = beside_threads(&executor, threads - 1, || {
                block_on(executor.run(futures::future::join_all(tasks)))
            });

            let mut disk = vec![0; DISK_LEN as usize];
            for (at, bytes) in models.into_iter().flatten() {
                let at = at as usize;
                disk[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            block_on(image.close()).unwrap();
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("image"), storage.to_vec()).unwrap();
            std::fs::write(dir.path().join("disk"), &disk).unwrap();
            qemu::img(dir.path(), ["check", "image"]);
            qemu::img(dir.path(), ["compare", "-f", "qcow2", "-F", "raw", "image", "disk"]);
        }
    }
}
