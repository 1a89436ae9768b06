//! `snapshot` does to an image what `qemu-img` does to a copy of it, with the same messages and codes, and prints the same
//! table, in local time.

use crate::{Errors, Folder};

#[test]
fn snapshots_are_listed() {
    let folder = Folder::new();
    folder.create(&[], "image.qcow2", "1M");
    folder.same(&["snapshot", "-l", "image.qcow2"]);
    for name in ["first", "a name that is longer than its column", "K\u{e4}the"] {
        folder.qemu_img(&["snapshot", "-c", name, "image.qcow2"]);
    }
    folder.same(&["snapshot", "-l", "image.qcow2"]);
    folder.same(&["snapshot", "image.qcow2"]);
    folder.same(&["snapshot", "--list", "-U", "-q", "image.qcow2"]);
    folder.write("file.raw", "x");
    folder.same(&["snapshot", "-l", "file.raw"]);
}

/// The table without the dates.
fn table(folder: &Folder, image: &str) -> Vec<String> {
    let listed = folder.qemu_img(&["snapshot", "-l", image]);
    let cut = |line: &str| {
        line.char_indices().filter(|(at, _)| !(33..53).contains(at)).map(|(_, c)| c).collect()
    };
    listed.lines().map(cut).collect()
}

/// Runs both on copies of an image; the images must be the same to QEMU afterwards.
fn both(folder: &Folder, arguments: &[&str]) {
    let ours = [&["snapshot"], arguments, &["ours.qcow2"]].concat();
    let theirs = [&["snapshot"], arguments, &["theirs.qcow2"]].concat();
    let theirs = folder.run(crate::qemu::qemu_img().args(&theirs));
    let ours = folder.stand_in(&ours);
    let said = |bytes: &[u8]| crate::text(bytes).replace("theirs.qcow2", "ours.qcow2");
    assert_eq!(said(&ours.stdout), said(&theirs.stdout), "{arguments:?}");
    assert_eq!(said(&ours.stderr), said(&theirs.stderr), "{arguments:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{arguments:?}");
    assert_eq!(table(folder, "ours.qcow2"), table(folder, "theirs.qcow2"), "{arguments:?}");
    folder.qemu_img(&["compare", "-q", "ours.qcow2", "theirs.qcow2"]);
    folder.qemu_img(&["check", "-q", "ours.qcow2"]);
    let info = |name: &str| {
        let info = folder.qemu_img(&["info", name]);
        let kept = |line: &&str| {
            let start = line.trim_start();
            ["virtual size", "cleanly", "compat", "corrupt"].iter().any(|it| start.starts_with(it))
        };
        info.lines().filter(kept).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(info("ours.qcow2"), info("theirs.qcow2"), "{arguments:?}");
}

#[test]
fn snapshots_come_and_go_as_with_qemu_img() {
    for options in
        [&["-o", "cluster_size=512"][..], &["-o", "compat=0.10"], &["-o", "lazy_refcounts=on"]]
    {
        let folder = Folder::new();
        folder.create(options, "ours.qcow2", "1M");
        folder.qemu_io("ours.qcow2", &["write -P 1 0 700k"]);
        folder.qemu_img(&["snapshot", "-c", "old", "ours.qcow2"]);
        folder.qemu_io("ours.qcow2", &["write -P 2 100k 10k", "discard 400k 100k"]);
        std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
        for arguments in [
            &["-c", "new"][..],
            &["-c", "new"],
            &["-c", "7"],
            &["-c", "2"],
            &["-a", "1"],
            // By its ID first, and only then by its name.
            &["-a", "2"],
            // By its name alone.
            &["-d", "3"],
            &["-d", "new"],
            &["-q", "-d", "new"],
            &["-d", "new"],
            &["-a", "nothing"],
            &["-a", "old"],
            &["-d", "old"],
            &["-f", "qcow2", "-c", ""],
            &["-c", "x", "-l"],
            &["-U", "-c", "x"],
        ] {
            both(&folder, arguments);
        }
    }
}

#[test]
fn snapshot_of_a_disk_of_another_size_brings_it_back() {
    let folder = Folder::new();
    folder.create(&[], "ours.qcow2", "1M");
    folder.qemu_io("ours.qcow2", &["write -P 1 0 1M"]);
    folder.qemu_img(&["snapshot", "-c", "small", "ours.qcow2"]);
    folder.qemu_img(&["resize", "-q", "ours.qcow2", "3G"]);
    folder.qemu_io("ours.qcow2", &["write -P 2 2G 1M"]);
    folder.qemu_img(&["snapshot", "-c", "large", "ours.qcow2"]);
    std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
    for name in ["small", "large", "small"] {
        both(&folder, &["-a", name]);
    }
    // In version 2 the size stays.
    folder.create(&["-o", "compat=0.10"], "ours.qcow2", "1M");
    folder.qemu_img(&["snapshot", "-c", "s", "ours.qcow2"]);
    folder.patch("ours.qcow2", 24, &(2_u64 << 20).to_be_bytes());
    std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
    let before = folder.read("ours.qcow2");
    both(&folder, &["-a", "s"]);
    assert_eq!(folder.read("ours.qcow2"), before);
}

#[test]
fn image_with_bitmaps_does_not_go_back() {
    let folder = Folder::new();
    folder.create(&[], "ours.qcow2", "1M");
    folder.qemu_io("ours.qcow2", &["write -P 1 0 1M"]);
    folder.qemu_img(&["snapshot", "-c", "s", "ours.qcow2"]);
    folder.qemu_img(&["bitmap", "--add", "--disable", "ours.qcow2", "b"]);
    folder.qemu_io("ours.qcow2", &["write -P 2 0 64k"]);
    std::fs::copy(folder.path("ours.qcow2"), folder.path("theirs.qcow2")).unwrap();
    for arguments in [["-a", "s"], ["-a", "nothing"], ["-c", "t"], ["-d", "s"], ["-a", "t"]] {
        both(&folder, &arguments);
    }
    // Under its own name it does, and says so in the bitmaps that are enabled.
    folder.qemu_img(&["bitmap", "--add", "ours.qcow2", "enabled"]);
    folder.cowshed_prints(&["snapshot", "-a", "t", "ours.qcow2"]);
    folder.qemu_img(&["check", "-q", "ours.qcow2"]);
    let dirty = |bitmap: &str| {
        let map = ["map", "--bitmap", bitmap, "--output=json", "ours.qcow2"];
        folder.cowshed_prints(&map).contains("\"dirty\": true")
    };
    assert_eq!((dirty("enabled"), dirty("b")), (true, false));
}

#[test]
fn what_cannot_be_done_is_said_in_the_words_of_qemu_img() {
    let folder = Folder::new();
    folder.create(&["-o", "data_file=image.data"], "external.qcow2", "1M");
    folder.create(&["-o", "refcount_bits=1"], "narrow.qcow2", "1M");
    folder.qemu_io("narrow.qcow2", &["write 0 64k"]);
    folder.write("file.raw", [0; 512]);
    let narrow = folder.read("narrow.qcow2");
    for action in ["-c", "-a", "-d"] {
        folder.same(&["snapshot", action, "s", "external.qcow2"]);
        folder.same(&["snapshot", "-f", "raw", action, "s", "file.raw"]);
        folder.same(&["snapshot", action, "s", "nothing.qcow2"]);
        folder.same(&["snapshot", action, "s"]);
        folder.same(&["snapshot", action]);
        // The second of QEMU's leaves two leaked clusters; ours leaves none.
        let ours = folder.stand_in(&["snapshot", action, "s", "narrow.qcow2"]);
        assert_eq!(folder.read("narrow.qcow2"), narrow);
        let theirs =
            folder.run(crate::qemu::qemu_img().args(["snapshot", action, "s", "narrow.qcow2"]));
        assert_eq!(crate::text(&ours.stderr), crate::text(&theirs.stderr));
        assert_eq!(ours.status.code(), theirs.status.code());
        folder.write("narrow.qcow2", &narrow);
    }
    folder.compare(&["snapshot", "-c", "a", "external.qcow2", "narrow.qcow2"], Errors::Same);
    let error = folder.cowshed_fails(&["snapshot", "-c", "s", "external.qcow2"], 1);
    assert_eq!(
        error,
        "external.qcow2: header: images with an external data file have no snapshots"
    );
}

#[test]
fn vm_state_goes_with_a_snapshot() {
    let folder = Folder::new();
    folder.create(&["-o", "cluster_size=4k"], "image.qcow2", "1M");
    let io = |commands: &[&str]| {
        let mut arguments = vec!["io", "-f", "qcow2"];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        arguments.push("image.qcow2");
        let printed = folder.cowshed_prints(&arguments);
        assert!(!printed.contains("failed"), "{printed}");
    };
    io(&["write -b -q -P 7 0 300k", "write -b -q -P 9 5120 512", "write -q -P 1 0 1M"]);
    folder.qemu_io(
        "image.qcow2",
        &["read -b -P 7 0 5k", "read -b -P 9 5k 512", "read -b -P 7 5632 301568", "read -P 1 0 1M"],
    );
    folder.qemu_img(&["check", "-q", "image.qcow2"]);
    folder.qemu_img(&["snapshot", "-c", "s", "image.qcow2"]);
    io(&["write -b -q -P 3 0 8k", "read -b -q -P 3 0 8k", "read -b -q -P 7 8k 8k"]);
    folder.cowshed_prints(&["snapshot", "-a", "s", "image.qcow2"]);
    folder.qemu_io("image.qcow2", &["read -b -P 7 0 5k", "read -b -P 9 5k 512"]);
    // A disk that grows over it reads as zeros there.
    folder.cowshed_prints(&["resize", "image.qcow2", "8M"]);
    folder.qemu_io("image.qcow2", &["read -P 1 0 1M", "read -P 0 1M 7M"]);
    folder.qemu_img(&["check", "-q", "image.qcow2"]);
}
