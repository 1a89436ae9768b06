//! `amend` makes of an image what `qemu-img` makes of a copy of it, with the same messages and codes; what the disk and
//! its snapshots hold stays.

use crate::Folder;

/// Runs both on copies of an image; both are the same kind of image to QEMU afterwards, and hold the same.
fn both(folder: &Folder, options: &str) {
    let theirs = folder.run(crate::qemu::qemu_img().args(["amend", "-o", options, "theirs.qcow2"]));
    let ours = folder.stand_in(&["amend", "-o", options, "ours.qcow2"]);
    let said = |bytes: &[u8]| crate::text(bytes).replace("theirs.qcow2", "ours.qcow2");
    assert_eq!(said(&ours.stdout), said(&theirs.stdout), "{options}");
    assert_eq!(said(&ours.stderr), said(&theirs.stderr), "{options}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{options}");
    assert_eq!(info(folder, "ours.qcow2"), info(folder, "theirs.qcow2"), "{options}");
    folder.qemu_img(&["compare", "-q", "ours.qcow2", "theirs.qcow2"]);
    folder.qemu_img(&["check", "-q", "ours.qcow2"]);
}

/// What `info` says of an image but for its name and what it takes.
fn info(folder: &Folder, image: &str) -> Vec<String> {
    let info = folder.qemu_img(&["info", image]);
    let kept = |line: &&str| {
        !["image", "disk size", "filename", "file length", "data file:"]
            .iter()
            .any(|it| line.trim_start().starts_with(it))
    };
    info.lines().filter(kept).map(str::to_owned).collect()
}

/// A disk with all kinds of clusters and a snapshot.
fn fill(folder: &Folder, image: &str) {
    folder.qemu_io(
        image,
        &["write -q -P 1 0 300k", "write -q -z 64k 64k", "write -q -z -u 128k 64k"],
    );
    folder.qemu_img(&["snapshot", "-c", "s", image]);
    folder.qemu_io(
        image,
        &[
            "write -q -P 2 200k 200k",
            "write -q -z 0 64k",
            "discard -q 256k 64k",
            "write -q -c -P 3 512k 64k",
        ],
    );
}

#[test]
fn options_are_changed_as_by_qemu_img() {
    for options in ["cluster_size=64k", "cluster_size=512", "cluster_size=4k,refcount_bits=64"] {
        let folder = Folder::new();
        folder.create(&["-o", options], "ours.qcow2", "1M");
        fill(&folder, "ours.qcow2");
        folder.qemu_img(&["convert", "-l", "s", "-O", "raw", "ours.qcow2", "s.raw"]);
        let snapshot = folder.read("s.raw");
        std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
        for options in [
            "refcount_bits=1",
            "refcount_bits=32,compat=0.10",
            "lazy_refcounts=on,compat=0.10",
            "refcount_bits=2",
            "refcount_bits=64",
            "refcount_bits=8",
            "lazy_refcounts=on",
            "compat=0.10",
            "compat=0.10,refcount_bits=16",
            "lazy_refcounts=on",
            "refcount_bits=8",
            "refcount_bits=16",
            "compat=1.1,lazy_refcounts=on,refcount_bits=32",
            "compat=v3",
            "lazy_refcounts=off",
            "size=2M",
            "compat=v2,refcount_bits=16",
            "size=1000",
            "size=0",
            "refcount_bits=7",
            "refcount_bits=128",
            "data_file=x",
            "data_file_raw=on",
            "data_file_raw=off",
            "backing_file=x",
            "backing_fmt=raw",
            "encrypt.state=active",
            "compat=9",
            "nonsense=1",
            "cluster_size=64k",
            "lazy_refcounts=maybe",
        ] {
            both(&folder, options);
            // QEMU reads a snapshot at the size that the disk has now. Of its own image, it has overwritten what the
            // snapshot has where zeros kept their cluster.
            folder.qemu_img(&["convert", "-l", "s", "-O", "raw", "ours.qcow2", "now.raw"]);
            let now = folder.read("now.raw");
            let tail = now.strip_prefix(&*snapshot);
            let is_kept = tail.is_some_and(|tail| tail.iter().all(|byte| *byte == 0));
            assert!(is_kept, "the snapshot after {options}");
        }
    }
}

#[test]
fn snapshots_that_do_not_say_their_size_say_it_in_version_3() {
    let folder = Folder::new();
    folder.create(&["-o", "compat=0.10"], "ours.qcow2", "1M");
    folder.qemu_img(&["snapshot", "-c", "s", "ours.qcow2"]);
    // As QEMU wrote them once: no extra data between the fixed part and the id.
    let table = usize::try_from(folder.number("ours.qcow2", 64)).unwrap();
    let old = folder.read("ours.qcow2")[table..].to_vec();
    let extra_len = usize::from(old[39]);
    let mut entry = old[..40].to_vec();
    entry[36..].fill(0);
    entry.extend(&old[40 + extra_len..]);
    entry.resize(old.len(), 0);
    folder.patch("ours.qcow2", table as u64, &entry);
    std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
    both(&folder, "compat=1.1");
}

#[test]
fn image_with_a_backing_file_loses_its_zero_clusters_to_data() {
    let folder = Folder::new();
    folder.write("base.raw", vec![5; 1 << 20]);
    folder.create(&["-b", "base.raw", "-F", "raw"], "ours.qcow2", "1M");
    fill(&folder, "ours.qcow2");
    std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
    for options in [
        "backing_file=base.raw,backing_fmt=raw",
        "backing_file=other.raw",
        "compat=0.10",
        "compat=1.1",
    ] {
        both(&folder, options);
    }
}

#[test]
fn clusters_kept_for_zeros_and_a_snapshots_data_stay_the_snapshots() {
    // qemu-img overwrites them.
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.qemu_io("image.qcow2", &["write -q -P 1 0 1M"]);
    folder.qemu_img(&["snapshot", "-c", "s", "image.qcow2"]);
    folder.qemu_io("image.qcow2", &["write -q -z 0 256k"]);
    folder.cowshed_prints(&["amend", "-o", "compat=0.10", "image.qcow2"]);
    folder.qemu_img(&["check", "-q", "image.qcow2"]);
    folder.qemu_io("image.qcow2", &["read -q -P 0 0 256k", "read -q -P 1 256k 768k"]);
    folder.qemu_img(&["snapshot", "-a", "s", "image.qcow2"]);
    folder.qemu_io("image.qcow2", &["read -q -P 1 0 1M"]);
}

#[test]
fn zeros_of_encrypted_images_and_their_passphrases_can_be_amended() {
    let folder = Folder::new();
    folder.write("base.raw", vec![5; 1 << 20]);
    let object = ["--object", "secret,id=k,data=open", "--object", "secret,id=n,data=new"];
    for format in ["aes", "luks"] {
        let options = format!("encrypt.format={format},encrypt.key-secret=k");
        let iterations = if format == "luks" { ",encrypt.iter-time=10" } else { "" };
        let options = format!("{options}{iterations}");
        let create = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", &options];
        folder.qemu_img(&[&create[..], &object, &["image.qcow2"]].concat());
        let image =
            |key: &str| format!("driver=qcow2,encrypt.key-secret={key},file.filename=image.qcow2");
        let opened = image("k");
        let io = |commands: &[&str], key: &str| {
            let commands = commands.iter().flat_map(|it| ["-c", it]);
            let mut io = crate::qemu::qemu_io();
            io.args(object).args(["--image-opts", &image(key)]).args(commands);
            let output = folder.run(&mut io);
            let said = [crate::text(&output.stdout), crate::text(&output.stderr)].concat();
            assert!(output.status.success() && !said.contains("failed"), "{said}");
        };
        io(&["write -q -P 1 0 300k", "write -q -z 64k 64k", "write -q -z -u 400k 100k"], "k");
        let with = |verb: &[&str]| {
            let arguments = [verb, &object[..], &["--image-opts", &opened]].concat();
            folder.cowshed_prints(&arguments);
        };
        with(&["snapshot", "-c", "s"]);
        io(&["write -q -z 200k 30k", "write -q -P 2 1000 100"], "k");
        with(&["amend", "-o", "compat=0.10"]);
        let now = ["read -q -P 0 64k 64k", "read -q -P 0 200k 30k", "read -q -P 0 400k 100k"];
        io(&now, "k");
        io(&["read -q -P 1 128k 72k", "read -q -P 2 1000 100", "read -q -P 5 500k 524k"], "k");
        with(&["snapshot", "-a", "s"]);
        io(&["read -q -P 1 0 64k", "read -q -P 1 128k 172k", "read -q -P 0 400k 100k"], "k");
        let check = ["check", "-q"];
        folder.qemu_img(&[&check[..], &object, &["--image-opts", &opened]].concat());

        let add = "encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10";
        if format == "aes" {
            let arguments = ["amend", "-o", add, object[0], object[1], object[2], object[3]];
            let arguments = [&arguments[..], &["--image-opts", &opened]].concat();
            let error = folder.cowshed_fails(&arguments, 1);
            assert!(error.contains("Only LUKS encryption options can be amended"), "{error}");
            continue;
        }
        with(&["amend", "-o", add]);
        io(&["read -q -P 1 0 64k"], "n");
        with(&["amend", "-o", "encrypt.state=inactive,encrypt.old-secret=n"]);
        io(&["read -q -P 1 0 64k"], "k");
        // The only one left.
        let arguments = ["amend", "-o", "encrypt.state=inactive,encrypt.old-secret=k"];
        let arguments = [&arguments[..], &object, &["--image-opts", &opened]].concat();
        let error = folder.cowshed_fails(&arguments, 1);
        assert!(error.contains("refusing operation"), "{error}");
    }
}

#[test]
fn features_that_version_2_lacks_prevent_it() {
    let folder = Folder::new();
    for options in
        ["extended_l2=on", "refcount_bits=1", "data_file=image.data", "lazy_refcounts=on"]
    {
        folder.create(&["-o", options], "ours.qcow2", "1M");
        std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
        both(&folder, "compat=0.10");
    }
    // qemu-img does it, and loses what is compressed.
    folder.create(&["-o", "compression_type=zstd"], "image.qcow2", "1M");
    let error = folder.cowshed_fails(&["amend", "-o", "compat=0.10", "image.qcow2"], 1);
    assert_eq!(error, "image.qcow2: Cannot downgrade an image with incompatible features 0x8 set");
}

#[test]
fn bitmaps_go_on_the_way_to_version_2() {
    let folder = Folder::new();
    folder.create(&[], "ours.qcow2", "1M");
    folder.qemu_img(&["bitmap", "--add", "ours.qcow2", "a"]);
    folder.qemu_img(&["bitmap", "--add", "--disable", "-g", "512", "ours.qcow2", "b"]);
    folder.qemu_io("ours.qcow2", &["write -q -P 1 0 300k"]);
    std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
    // qemu-img leaves the clusters of the bitmaps without an owner, and the header's word of them where it is; the check of
    // ours finds nothing of the kind.
    both(&folder, "compat=0.10");
    folder.cowshed_prints(&["amend", "-o", "compat=1.1", "ours.qcow2"]);
    folder.qemu_img(&["check", "-q", "ours.qcow2"]);
    assert!(!folder.qemu_img(&["info", "ours.qcow2"]).contains("bitmaps"));
    folder.qemu_img(&["bitmap", "--add", "ours.qcow2", "a"]);
}

#[test]
fn data_file_gets_another_name_and_need_not_be_raw() {
    let folder = Folder::new();
    folder.create(&["-o", "data_file=image.data,data_file_raw=on"], "ours.qcow2", "1M");
    std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
    std::fs::copy(folder.path("image.data"), folder.path("other.data")).unwrap();
    for options in
        ["data_file_raw=on", "data_file_raw=off", "data_file_raw=on", "data_file=other.data"]
    {
        both(&folder, options);
    }
    let info = folder.qemu_img(&["info", "ours.qcow2"]);
    assert!(info.contains("data file: other.data"), "{info}");
}

#[test]
fn command_line_is_that_of_qemu_img() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.write("file.raw", [0; 512]);
    for arguments in [
        &["amend", "-f", "qcow2", "-o", "help"][..],
        &["amend", "-o", "help", "image.qcow2"],
        &["amend", "-f", "raw", "-o", "help"],
        &["amend", "-o", "help"],
        &["amend", "image.qcow2"],
        &["amend", "-o", "size=2M"],
        &["amend", "-o", "size=2M", "a", "b"],
        &["amend", "-o", "size=2M", "nothing.qcow2"],
        &["amend", "-f", "raw", "-o", "size=2M", "file.raw"],
        &["amend", "-o", "size=2M", "file.raw"],
        &["amend", "-t", "nonsense", "-o", "size=2M", "image.qcow2"],
        &["amend", "-q", "-p", "--force", "-t", "none", "-o", "size=2M", "image.qcow2"],
        &["amend", "-p", "-o", "compat=1.1", "image.qcow2"],
    ] {
        folder.same(arguments);
    }
}
