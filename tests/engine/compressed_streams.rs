//! The fear: compressed clusters that only this engine can read.
//!
//! Clusters of every kind are written compressed, and QEMU reads the disk back and checks the image.

use crate::support::qemu::{qemu_img, run};
use cowshed::image::{Format, Image, OpenOptions, RefuseAll, WriteOptions};
use cowshed::rt::{FileOptions, block_on, open_storage};

/// A disk of clusters that compress well, badly, partly, and not at all.
fn disk(clusters: usize, cluster_len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut disk = Vec::new();
    for cluster in 0..clusters {
        let end = (cluster + 1) * cluster_len;
        match cluster % 5 {
            0 => disk.resize(end, cluster as u8 + 1),
            1 => disk.resize_with(end, || random().to_be_bytes()[0]),
            2 => disk.resize_with(end, || b"etaoin shrdlu"[(random() >> 40) as usize % 13]),
            3 => {
                disk.resize_with(end - cluster_len / 3, || random().to_be_bytes()[0]);
                let from = disk.len() - cluster_len / 3;
                disk.extend_from_within(from..from + cluster_len / 3);
                disk.resize(end, 7);
            }
            _ => {
                while disk.len() < end {
                    disk.extend_from_slice(
                        format!("{:x} ", random() % 4096 * 0x9e37_79b9).as_bytes(),
                    );
                }
                disk.truncate(end);
            }
        }
    }
    disk
}

#[test]
fn qemu_reads_clusters_that_were_written_compressed() {
    for compression in ["zlib", "zstd"] {
        for cluster_len in [512, 4096, 65536, 2 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("disk.qcow2");
            let raw = folder.path().join("disk.raw");
            let disk = disk(if cluster_len > 65536 { 6 } else { 60 }, cluster_len);
            let options = format!("cluster_size={cluster_len},compression_type={compression}");
            let create = ["create", "-q", "-f", "qcow2", "-o", &options];
            run(qemu_img().args(create).arg(&path).arg(disk.len().to_string()));
            block_on(async {
                let storage = open_storage(&path, &FileOptions::new().writable(true)).unwrap();
                let source = storage.into_source(Format::Qcow2);
                let mut options = OpenOptions::default();
                options.write = Some(WriteOptions::default());
                let image = Image::open(source, &RefuseAll::new(), options).await.unwrap().image;
                for (index, cluster) in disk.chunks(cluster_len).enumerate() {
                    let offset = (index * cluster_len) as u64;
                    image.write_compressed_at(cluster, offset).await.unwrap();
                }
                image.close().await.unwrap();
            });
            run(qemu_img().args(["check", "-q", "-f", "qcow2"]).arg(&path));
            run(qemu_img().args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&path).arg(&raw));
            assert!(std::fs::read(&raw).unwrap() == disk, "{compression}, {cluster_len}");
            let len = std::fs::metadata(&path).unwrap().len();
            assert!(
                cluster_len != 65536 || len < disk.len() as u64 * 9 / 10,
                "{compression}: nothing is compressed"
            );
        }
    }
}
