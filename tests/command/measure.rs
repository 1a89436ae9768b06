//! `measure` computes what `qemu-img measure` does.

use crate::Folder;

#[test]
fn sizes_are_measured_as_qemu_img_does() {
    let folder = Folder::new();
    let sizes = ["0", "1", "512", "64k", "1M", "1.5G", "8T", "63P"];
    for size in sizes {
        folder.same(&["measure", "--size", size]);
        folder.same(&["measure", "-O", "qcow2", "--size", size]);
        folder.same(&["measure", "-O", "qcow2", "--output=json", "--size", size]);
        for options in [
            "cluster_size=512",
            "cluster_size=2M",
            "cluster_size=4k,refcount_bits=1",
            "refcount_bits=64",
            "extended_l2=on",
            "extended_l2=on,cluster_size=16k",
            "compat=0.10",
            "preallocation=metadata",
            "preallocation=falloc",
            "preallocation=full,cluster_size=32k",
            "backing_file=base",
            "compat=0.10,extended_l2=on",
            "size=5M",
            "lazy_refcounts=on,data_file=x",
        ] {
            folder.same(&["measure", "-O", "qcow2", "-o", options, "--size", size]);
        }
    }
}

#[test]
fn images_are_measured_as_qemu_img_does() {
    let folder = Folder::new();
    folder.create(&[], "empty.qcow2", "1G");
    folder.create(&["-o", "cluster_size=4k"], "sparse.qcow2", "100M");
    let writes =
        ["write 5k 1k", "write 1M 70k", "write -z 2M 1M", "write -c 4M 64k", "write 99M 1M"];
    folder.qemu_io("sparse.qcow2", &writes);
    folder.qemu_img(&["snapshot", "-c", "before", "sparse.qcow2"]);
    folder.qemu_io("sparse.qcow2", &["write 10M 10M"]);
    folder.create(&["-o", "preallocation=full"], "full.qcow2", "5M");
    folder.create(&["-o", "preallocation=metadata"], "metadata.qcow2", "5M");
    folder.create(&["-o", "compat=0.10"], "v2.qcow2", "5M");
    folder.create(&["-b", "sparse.qcow2", "-F", "qcow2"], "overlay.qcow2", "120M");
    folder.qemu_io("overlay.qcow2", &["write 110M 1000", "write -z 1M 8k"]);
    folder.create(&["-o", "extended_l2=on"], "extended.qcow2", "5M");
    folder.qemu_io("extended.qcow2", &["write 3k 1k", "write 1M 200k"]);
    folder.create(&[], "bitmaps.qcow2", "300M");
    folder.qemu_img(&["bitmap", "--add", "bitmaps.qcow2", "one"]);
    folder.qemu_img(&["bitmap", "--add", "-g", "512", "bitmaps.qcow2", "another-one"]);
    folder.write("dense.raw", vec![1; 1_000_000]);
    folder.write("sparse.raw", vec![1; 10_000]);
    let file = std::fs::File::options().write(true).open(folder.path("sparse.raw")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[1; 5000], 3_000_000).unwrap();
    file.set_len(50_000_123).unwrap();
    for image in [
        "empty.qcow2",
        "sparse.qcow2",
        "full.qcow2",
        "metadata.qcow2",
        "v2.qcow2",
        "overlay.qcow2",
        "extended.qcow2",
        "bitmaps.qcow2",
        "dense.raw",
        "sparse.raw",
    ] {
        folder.same(&["measure", image]);
        folder.same(&["measure", "--output=json", "-O", "qcow2", image]);
        for options in [
            "cluster_size=512",
            "cluster_size=2M",
            "extended_l2=on",
            "compat=0.10",
            "preallocation=metadata",
            "preallocation=full",
            "backing_file=base",
            "size=3T",
        ] {
            folder.same(&["measure", "-O", "qcow2", "-o", options, image]);
        }
    }
    folder.same(&["measure", "-O", "qcow2", "-f", "raw", "empty.qcow2"]);
    folder.same(&["measure", "-O", "qcow2", "-l", "before", "sparse.qcow2"]);
    folder.same(&["measure", "-O", "qcow2", "-l", "snapshot.id=1", "sparse.qcow2"]);
}

#[test]
fn wrong_arguments_get_the_words_of_qemu_img() {
    let folder = Folder::new();
    folder.create(&[], "a.qcow2", "1G");
    for arguments in [
        &[][..],
        &["--size", "1M", "a", "b"],
        &["--size", "1M", "a.qcow2"],
        &["a", "b"],
        &["-f", "raw"],
        &["-l", "x"],
        &["-O", "nonsense", "--size", "1M"],
        &["-O", "qcow2", "--size", "abc"],
        &["-O", "qcow2", "--size", "8E"],
        &["-O", "qcow2", "--size", "7E"],
        &["-O", "qcow2", "--size", "1M", "-o", ""],
        &["-O", "qcow2", "--size", "1M", "-o", "compat=v2"],
        &["-O", "qcow2", "--size", "1M", "-o", "cluster_size=abc"],
        &["-O", "qcow2", "--size", "1M", "-o", "cluster_size=100"],
        &["-O", "qcow2", "--size", "1M", "-o", "help"],
        &["-O", "qcow2", "--size", "1M", "-o", "nonsense=1"],
        &["-O", "qcow2", "--size", "1M", "-o", "refcount_bits=3"],
        &["-O", "qcow2", "--size", "1M", "-o", "compat=0.10,refcount_bits=8"],
        &["-O", "qcow2", "--size", "1M", "-o", "preallocation=some"],
        &["-O", "raw", "--size", "1M", "-o", "preallocation=some"],
        &["-O", "qcow2", "missing"],
        &["-O", "qcow2", "-l", "x", "a.qcow2"],
        &["--output=xml", "--size", "1"],
        &["--size"],
    ] {
        folder.same(&[&["measure"], arguments].concat());
    }
}
