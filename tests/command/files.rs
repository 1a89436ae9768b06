//! `disk`, `ls`, `cat`, `tar`, `find` and `os`: a file that was put on a disk comes out as it was, and no name of a guest
//! reaches the terminal or leaves the folder.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::Folder;

/// Runs a tool that makes disks.
fn tool(folder: &Folder, program: &str, package: &str, args: &[&str]) {
    let out = Command::new(program).args(args).current_dir(&folder.path).output();
    let out = out.unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; `apt-get install {package}` or `cargo xtask test`")
    });
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A qcow2 image with an empty FAT partition and an ext4 one that holds a small system.
fn disk() -> Folder {
    let folder = Folder::new();
    let tree = folder.path.join("tree");
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::create_dir_all(tree.join("home/k")).unwrap();
    fs::write(tree.join("etc/os-release"), "ID=test\nVERSION_ID=1\nPRETTY_NAME='Test 1'\n")
        .unwrap();
    fs::write(tree.join("etc/hostname"), "box\n").unwrap();
    let data: Vec<u8> = (0..2_500_000u32).map(|n| (n * 7 + n / 1000) as u8).collect();
    fs::write(tree.join("home/k/Data.bin"), data).unwrap();
    fs::write(tree.join("home/k/\u{1b}]0;title\u{7}"), "x").unwrap();
    std::os::unix::fs::symlink("/home/k/Data.bin", tree.join("link")).unwrap();

    fs::File::create(folder.path.join("root.img")).unwrap().set_len(24 << 20).unwrap();
    tool(&folder, "mkfs.ext4", "e2fsprogs", &["-q", "-F", "-L", "root", "-d", "tree", "root.img"]);
    fs::File::create(folder.path.join("efi.img")).unwrap().set_len(8 << 20).unwrap();
    tool(&folder, "mkfs.vfat", "dosfstools", &["-n", "EFI", "efi.img"]);
    fs::File::create(folder.path.join("disk.raw")).unwrap().set_len(34 << 20).unwrap();
    tool(
        &folder,
        "sgdisk",
        "gdisk",
        &["--clear", "--new=1:2048:18431", "--typecode=1:ef00", "--new=2:18432:67583", "disk.raw"],
    );
    let mut bytes = folder.read("disk.raw");
    bytes[1 << 20..9 << 20].copy_from_slice(&folder.read("efi.img"));
    bytes[9 << 20..33 << 20].copy_from_slice(&folder.read("root.img"));
    fs::write(folder.path.join("disk.raw"), bytes).unwrap();
    folder.qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "disk.qcow2"]);
    folder
}

fn json(folder: &Folder, args: &[&str]) -> Value {
    serde_json::from_str(&folder.cowshed_prints(args)).unwrap()
}

#[test]
fn files_come_out_of_a_disk() {
    let folder = disk();
    let table = json(&folder, &["disk", "--output=json", "disk.qcow2"]);
    assert_eq!(table["table"], "gpt");
    assert_eq!(table["findings"].as_array().unwrap().len(), 0);
    let kinds: Vec<_> =
        table["volumes"].as_array().unwrap().iter().map(|v| v["file-system"].clone()).collect();
    assert_eq!(kinds, ["fat12", "ext4"]);
    assert_eq!(table["volumes"][1]["start"], 9 << 20);
    assert_eq!(table["volumes"][1]["label"], "root");
    let text = folder.cowshed_prints(&["disk", "disk.qcow2"]);
    assert!(text.contains("2  9 MiB  24 MiB  ext4   root   Linux file system"), "{text}");

    // The partition with a system is taken by itself.
    let names = folder.cowshed_prints(&["ls", "disk.qcow2"]);
    assert_eq!(names, "etc\nhome\nlink\nlost+found\n");
    let names = folder.cowshed_prints(&["ls", "-R", "disk.qcow2", "home"]);
    assert_eq!(names, "home:\nk\n\nhome/k:\n\\u{1b}]0;title\\u{7}\nData.bin\n");
    let long = folder.cowshed_prints(&["ls", "--long", "disk.qcow2"]);
    assert!(long.lines().any(|line| line.ends_with("link -> /home/k/Data.bin")), "{long}");
    let listed = json(&folder, &["ls", "--output=json", "disk.qcow2", "/home/k"]);
    assert_eq!(listed[1]["path"], "/home/k/Data.bin");
    assert_eq!(listed[1]["size"], 2_500_000);
    assert_eq!(folder.cowshed_prints(&["ls", "-p", "1", "disk.qcow2"]), "");

    let data = folder.read("tree/home/k/Data.bin");
    for path in ["/home/k/Data.bin", "home/k/Data.bin", "link"] {
        assert!(folder.cowshed(&["cat", "disk.qcow2", path]).stdout == data, "{path}");
    }
    let two = folder.cowshed(&["cat", "disk.raw", "etc/hostname", "etc/hostname"]);
    assert_eq!(two.stdout, b"box\nbox\n");

    let found = folder.cowshed_prints(&["find", "-n", "*.BIN", "-i", "disk.qcow2"]);
    assert_eq!(found, "/home/k/Data.bin\n");
    let none = folder.cowshed(&["find", "-n", "*.BIN", "disk.qcow2"]);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(2), 0));
    let folders = folder.cowshed_prints(&["find", "-t", "d", "disk.qcow2", "home"]);
    assert_eq!(folders, "home\nhome/k\n");

    let os = json(&folder, &["os", "--output=json", "disk.qcow2"]);
    assert_eq!(os[0]["name"], "Test 1");
    assert_eq!(os[0]["partition"], 2);
    assert_eq!(os[0]["hostname"], "box");
}

#[test]
fn folders_come_out_as_archives() {
    let folder = disk();
    folder.cowshed_prints(&["tar", "-o", "out.tar", "disk.qcow2", "/home"]);
    let piped = folder.cowshed(&["tar", "disk.qcow2", "/home"]);
    assert!(piped.stdout == folder.read("out.tar"));
    fs::create_dir(folder.path.join("out")).unwrap();
    tool(&folder, "tar", "tar", &["-xf", "out.tar", "-C", "out"]);
    assert!(folder.read("out/k/Data.bin") == folder.read("tree/home/k/Data.bin"));
    assert_eq!(fs::read_dir(folder.path.join("out/k")).unwrap().count(), 2);
}

#[test]
fn what_cannot_be_read_is_said_in_words() {
    let folder = disk();
    for (args, said) in [
        (&["cat", "disk.qcow2", "nothing"][..], "'nothing': no such file or folder"),
        (&["cat", "disk.qcow2", "/etc"], "'/etc': \"etc\" is a folder, not a regular file"),
        (&["ls", "-p", "7", "disk.qcow2"], "there is no partition 7"),
        (&["cat", "disk.qcow2"], "Expecting an image file name and a path"),
        (&["find", "-t", "x", "disk.qcow2"], "invalid type 'x': f, d or l"),
        (&["ls", "efi.img", "x"], "'x': no such file or folder"),
        (&["ls", "tree/etc/hostname"], "no file system that is known on the disk"),
    ] {
        let out = folder.cowshed(args);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(text.contains(said), "{args:?}: {text}");
    }
    folder.qemu_img(&["create", "-f", "qcow2", "empty.qcow2", "1M"]);
    assert_eq!(folder.cowshed(&["os", "empty.qcow2"]).status.code(), Some(2));
}

#[test]
fn what_is_not_read_is_named() {
    let folder = Folder::new();
    let magics: [(&str, usize, &[u8]); 4] = [
        ("XFS", 0, b"XFSB"),
        ("NTFS", 3, b"NTFS    "),
        ("exFAT", 3, b"EXFAT   "),
        ("SquashFS", 0, b"hsqs"),
    ];
    let mut names = vec!["swap", "LUKS"];
    fs::write(folder.path.join("swap.img"), vec![0; 1 << 20]).unwrap();
    tool(&folder, "mkswap", "util-linux", &["swap.img"]);
    let secret = ["--object", "secret,id=s,data=yes", "-o", "key-secret=s,iter-time=10"];
    folder.qemu_img(&[&["create", "-q", "-f", "luks"], &secret[..], &["LUKS.img", "1M"]].concat());
    for (name, offset, magic) in magics {
        let mut disk = vec![0; 1 << 20];
        disk[offset..offset + magic.len()].copy_from_slice(magic);
        fs::write(folder.path.join(format!("{name}.img")), disk).unwrap();
        names.push(name);
    }
    for name in names {
        let image = format!("{name}.img");
        let listed = folder.cowshed_prints(&["disk", "-f", "raw", &image]);
        assert!(listed.contains(&format!("[{name}]")), "{listed}");
        let listed = json(&folder, &["disk", "-f", "raw", "--output=json", &image]);
        assert_eq!(listed["volumes"][0]["not-read"], name);
        let out = folder.cowshed(&["ls", "-f", "raw", &image]);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1));
        assert!(text.contains(&format!("the disk has {name}, which cannot be read")), "{text}");
    }
}
