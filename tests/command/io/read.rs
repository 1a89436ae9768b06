//! What reads, shows and measures.

use super::Pair;

/// qcow2 images of two layers and a raw one.
fn images() -> Pair {
    Pair::new(|folder| {
        folder.create(&[], "a.qcow2", "1M");
        folder
            .qemu_io("a.qcow2", &["write -P 65 64k 65k", "write -P 48 0 1k", "write -z 512k 64k"]);
        folder.create(&["-b", "a.qcow2", "-F", "qcow2"], "top.qcow2", "3M");
        folder.qemu_io("top.qcow2", &["write -P 7 128k 64k", "write 2M 64k"]);
        folder.write("a.raw", (0..=255).cycle().take(100_000).collect::<Vec<u8>>());
    })
}

#[test]
fn bytes_are_read_compared_and_shown() {
    let pair = images();
    pair.same_commands(
        &["-r", "a.qcow2"],
        &[
            "read 0 64k",
            "r 65k 1",
            "read -v 1000 50",
            "read -v 64k 40",
            "read -P 48 0 1k",
            "read -P 1 0 512",
            "read -P 48 -s 10 -l 20 0 2k",
            "read -P 0x30 -s 1000 0 1024",
            "read -P 060 -l 1025 0 2k",
            "read -C 0 1k",
            "read -q 0 1k",
            "read -qP 3 0 1k",
            "read -p 0 1k",
            "readv -v 64k 16 20 0",
            "readv -P 65 64k 1k 2k",
            "readv -P 66 64k 1k 2k",
            "readv -C 0 1 2 3",
            "read 1M 0",
            "read 0 1M",
        ],
    );
    pair.same_commands(
        &["-f", "raw", "-r", "a.raw"],
        &["read -v 0 256", "read 99999 1", "read -v 99990 20"],
    );
}

#[test]
fn backing_files_shine_through_and_are_not_allocated() {
    let pair = images();
    let commands = [
        "map",
        "alloc 0",
        "alloc 0 3M",
        "alloc 100k 100k",
        "read -P 7 128k 64k",
        "read -P 65 64k 64k",
        "read -P 0 1M 1M",
        "length",
        "info",
    ];
    pair.same_commands(&["-r", "top.qcow2"], &commands);
    pair.same_commands(&["-r", "a.qcow2"], &commands);
    pair.same_commands(&["-r", "-f", "raw", "a.raw"], &commands);
}

#[test]
fn allocation_ends_with_the_disk() {
    let pair = images();
    let commands = ["alloc 0 2M", "a 1M", "alloc 3M", "alloc 1048575", "alloc 5 10", "alloc 7E 1E"];
    pair.same_commands(&["-r", "a.qcow2"], &commands);
}

#[test]
fn info_shows_what_every_kind_of_image_has() {
    let pair = Pair::new(|folder| {
        folder.create(&["-o", "compat=0.10"], "v2.qcow2", "5G");
        folder.create(
            &["-o", "cluster_size=4k,extended_l2=off,lazy_refcounts=on"],
            "small.qcow2",
            "100M",
        );
        folder.create(&["-o", "extended_l2=on,compression_type=zstd"], "extended.qcow2", "1T");
        folder.create(&["-o", "refcount_bits=1"], "bits.qcow2", "0");
        folder.create(&[], "bitmaps.qcow2", "1M");
        folder.qemu_img(&["bitmap", "--add", "bitmaps.qcow2", "one"]);
    });
    for image in ["v2.qcow2", "small.qcow2", "extended.qcow2", "bits.qcow2", "bitmaps.qcow2"] {
        pair.same_commands(&["-r", image], &["info", "i", "length", "map"]);
    }
}

#[test]
fn ranges_outside_of_the_disk_fail() {
    let pair = images();
    pair.same_commands(
        &["-r", "a.qcow2"],
        &["read 0 2M", "read 2M 0", "readv 0 2M", "read 7E 1", "readv 1M 1"],
    );
    pair.same_commands(&["-r", "a.qcow2"], &["aio_read 0 2M", "aio_flush", "aio_read 1M 1"]);
}

#[test]
fn vm_state_is_read() {
    let pair = Pair::new(|folder| {
        folder.create(&[], "a.qcow2", "1M");
        folder.qemu_io("a.qcow2", &["write -P 5 -b 0 128k"]);
        folder.write("a.raw", [0; 1024]);
    });
    let commands =
        ["read -b -P 5 0 128k", "read -b -P 0 128k 64k", "read -bv 0 512", "read -b 8G 512"];
    pair.same_commands(&["-r", "a.qcow2"], &commands);
    pair.same_commands(&["-r", "-f", "raw", "a.raw"], &["read -b 0 512"]);
    pair.same_commands(&["-r", "a.qcow2"], &["read -b 1 512", "read -b 0 1", "read -br 0 512"]);
}

#[test]
fn background_reads_report_when_they_are_done() {
    let pair = images();
    for commands in [
        &["aio_read -P 48 0 1k", "aio_flush"][..],
        &["aio_read -v 64k 16 16", "aio_flush", "length"],
        &["aio_read -P 1 0 32", "aio_flush"],
        &["aio_read -q 0 5", "aio_flush", "aio_read -C 0 5"],
        &["aio_read -i 0 1k", "aio_read -qP 3 0 1k"],
        // Closing and quitting wait.
        &["aio_read 64k 64k", "close", "length"],
        &["aio_read 64k 64k", "quit", "length"],
        &["aio_read 64k 64k"],
    ] {
        pair.same_commands(&["-r", "a.qcow2"], commands);
    }
}
