//! Builds a real disk image: a bootable-shaped Debian disk as qcow2, compressed, snapshotted and written to since.
//!
//! The disk has a GPT with an EFI system partition (FAT32, systemd-boot) and an ext4 root that holds a small Debian tree,
//! unpacked from the distribution's own packages by its own tools. The image is the demonstration that `cargo xtask demo`
//! shows, and the real case of the integration tests, which include this file by its path: it uses nothing but std.
//!
//! Needs `apt-get`, `dpkg-deb`, `mkfs.ext4`, `debugfs`, `mkfs.vfat`, `mcopy`, `sgdisk`, `qemu-img` and `qemu-io`; no root, no loop
//! device, no mount. The packages are kept in a cache and downloaded once.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the tree is made of: enough for a shell, few enough for a download of 16 MB.
const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "libc-bin",
    "libc6",
    "libtinfo6",
    "login",
    "mount",
    "ncurses-base",
    "passwd",
    "perl-base",
    "sed",
    "systemd-boot-efi",
    "tar",
    "tzdata",
    "util-linux",
];

/// Changes when the image would: an image in a cache is known by it.
pub(crate) const VERSION: u32 = 1;

const MIB: u64 = 1 << 20;
const EFI_START: u64 = MIB;
const EFI_LEN_BYTES: u64 = 40 * MIB;
const ROOT_START: u64 = EFI_START + EFI_LEN_BYTES;
const ROOT_LEN_BYTES: u64 = 214 * MIB;
/// The last MiB is free; the backup GPT lies in it.
const DISK_LEN_BYTES: u64 = ROOT_START + ROOT_LEN_BYTES + MIB;

/// Every program that [`build`] calls, with the Debian package that has it.
pub(crate) const TOOLS: &[(&str, &str)] = &[
    ("apt-get", "apt"),
    ("debugfs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("mcopy", "mtools"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.vfat", "dosfstools"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("sgdisk", "gdisk"),
];

/// Builds the image at `image`, replacing what is there, with `cache` as the folder that keeps downloaded packages.
///
/// The image appears under its name only when it is complete. Its snapshots are `fresh-install` and
/// `before-upgrade`; it has a persistent bitmap `since-backup`.
///
/// # Errors
///
/// A tool is missing or fails; the message names it and holds what it said.
pub(crate) fn build(image: &Path, cache: &Path) -> io::Result<()> {
    let folder = match image.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&folder)?;
    let work = folder.join(format!(".real-image-{}", std::process::id()));
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    let work = work.canonicalize()?;
    let built = build_in(&work, cache).and_then(|()| fs::rename(work.join("image.qcow2"), image));
    let removed = fs::remove_dir_all(&work);
    built.and(removed)
}

fn build_in(work: &Path, cache: &Path) -> io::Result<()> {
    let tree = work.join("tree");
    unpack(&packages(cache)?, &tree)?;
    personalize(&tree)?;

    let efi = work.join("efi.img");
    make_efi(&tree, &efi)?;
    let root = work.join("root.img");
    make_root(&tree, &root)?;

    let disk = work.join("disk.raw");
    File::create(&disk)?.set_len(DISK_LEN_BYTES)?;
    run("sgdisk", |command| {
        let (efi_end, root_end) = ((ROOT_START - 1) / 512, (ROOT_START + ROOT_LEN_BYTES - 1) / 512);
        command.arg("--clear");
        command.arg("--disk-guid=6f3a0d44-1f5b-4a52-9c1e-0c0dedc0ffee");
        command
            .args([format!("--new=1:{}:{efi_end}", EFI_START / 512), "--typecode=1:ef00".into()]);
        command.args([
            "--change-name=1:EFI system",
            "--partition-guid=1:6f3a0d44-1f5b-4a52-9c1e-000000000001",
        ]);
        command
            .args([format!("--new=2:{}:{root_end}", ROOT_START / 512), "--typecode=2:8304".into()]);
        command.args([
            "--change-name=2:Debian root",
            "--partition-guid=2:6f3a0d44-1f5b-4a52-9c1e-000000000002",
        ]);
        command.arg(&disk)
    })?;
    write_sparsely(&efi, &disk, EFI_START)?;
    write_sparsely(&root, &disk, ROOT_START)?;

    // What a life of the image leaves: a compressed base, and clusters written since, some before a snapshot.
    let image = work.join("image.qcow2");
    run("qemu-img", |command| {
        command.args(["convert", "-f", "raw", "-O", "qcow2", "-c"]).args([&disk, &image])
    })?;
    run("qemu-img", |command| command.args(["snapshot", "-c", "fresh-install"]).arg(&image))?;
    let edit = |commands: &[&str]| edit_root(work, &root, &image, commands);
    edit(&[
        "cd /home/farmer",
        "mkdir www",
        "cd www",
        "write tree/usr/bin/perl payload.bin",
        "write tree/etc/fstab fstab.txt",
    ])?;
    run("qemu-img", |command| command.args(["snapshot", "-c", "before-upgrade"]).arg(&image))?;
    run("qemu-img", |command| command.args(["bitmap", "--add"]).arg(&image).arg("since-backup"))?;
    edit(&[
        "rm /home/farmer/www/payload.bin",
        "cd /root",
        "write tree/usr/bin/bash bash.new",
        "write tree/etc/passwd passwd.new",
    ])?;
    Ok(())
}

/// Returns the packages' files, downloading into `cache` what is not there.
fn packages(cache: &Path) -> io::Result<Vec<PathBuf>> {
    let folder = cache.join("debian-packages");
    fs::create_dir_all(&folder)?;
    let find = |name: &str| -> io::Result<Option<PathBuf>> {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let file = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            if file.ends_with(".deb") && file.split('_').next() == Some(name) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    };
    let mut missing = Vec::new();
    for name in PACKAGES {
        if find(name)?.is_none() {
            missing.push(*name);
        }
    }
    if !missing.is_empty() {
        // Downloaded beside the cache and moved in: two builds at once do not see each other's halves.
        let partial = folder.join(format!(".partial-{}", std::process::id()));
        fs::create_dir_all(&partial)?;
        let download = || {
            run("apt-get", |command| command.current_dir(&partial).arg("download").args(&missing))
        };
        if let Err(first) = download() {
            // The lists of packages are missing or old; renewing them takes root.
            run("apt-get", |command| command.arg("update")).map_err(|_| {
                io::Error::other(format!("{first}\n`apt-get update`, run as root, may help"))
            })?;
            download()?;
        }
        for entry in fs::read_dir(&partial)? {
            let entry = entry?;
            fs::rename(entry.path(), folder.join(entry.file_name()))?;
        }
        fs::remove_dir_all(&partial)?;
    }
    PACKAGES
        .iter()
        .map(|name| {
            find(name)?
                .ok_or_else(|| io::Error::other(format!("apt-get downloaded no file for {name}")))
        })
        .collect()
}

fn unpack(packages: &[PathBuf], tree: &Path) -> io::Result<()> {
    for package in packages {
        run("dpkg-deb", |command| command.arg("-x").args([package, tree]))?;
    }
    // The merged /usr that Debian has, which its installer makes and not its packages.
    for name in ["bin", "sbin", "lib", "lib64"] {
        let (old, new) = (tree.join(name), tree.join("usr").join(name));
        if old.is_symlink() || !old.exists() {
            continue;
        }
        fs::create_dir_all(&new)?;
        run("cp", |command| command.arg("-a").arg(old.join(".")).arg(&new))?;
        fs::remove_dir_all(&old)?;
        std::os::unix::fs::symlink(format!("usr/{name}"), &old)?;
    }
    Ok(())
}

/// Adds what an installer would, and some files to look at.
fn personalize(tree: &Path) -> io::Result<()> {
    let files: &[(&str, &str)] = &[
        ("etc/hostname", "cowshed\n"),
        (
            "etc/fstab",
            "PARTLABEL=Debian\\040root / ext4 errors=remount-ro 0 1\nPARTLABEL=EFI\\040system /boot/efi vfat umask=0077 0 1\n",
        ),
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\nfarmer:x:1000:1000:Farmer:/home/farmer:/bin/bash\n",
        ),
        ("etc/group", "root:x:0:\nfarmer:x:1000:\n"),
        (
            "home/farmer/notes.txt",
            "Milk the cows.\nMend the fence.\nTake a snapshot before the upgrade.\n",
        ),
        ("home/farmer/Gr\u{fc}\u{df}e \u{2603}.txt", "A name beyond ASCII.\n"),
        ("home/farmer/<b>not markup.txt", "A name that a page must not believe.\n"),
        ("boot/efi/.keep", ""),
    ];
    for (name, text) in files {
        let path = tree.join(name);
        fs::create_dir_all(path.parent().unwrap_or(tree))?;
        fs::write(path, text)?;
    }
    let mut log = String::new();
    for minute in 0..20_000 {
        log.push_str(&format!(
            "Nov 22 {:02}:{:02}:00 cowshed kernel: all quiet, message {minute}\n",
            minute / 60 % 24,
            minute % 60
        ));
    }
    fs::create_dir_all(tree.join("var/log"))?;
    fs::write(tree.join("var/log/messages"), log)?;
    // A file with a hole.
    let mut sparse = File::create(tree.join("var/log/lastlog"))?;
    sparse.seek(SeekFrom::Start(24 * MIB))?;
    sparse.write_all(b"the end")?;
    Ok(())
}

fn make_efi(tree: &Path, efi: &Path) -> io::Result<()> {
    File::create(efi)?.set_len(EFI_LEN_BYTES)?;
    run("mkfs.vfat", |command| {
        command.args(["-F", "32", "-s", "1", "-i", "c0ffee00", "-n", "EFI"]).arg(efi)
    })?;
    let staged = efi.with_file_name("efi");
    for name in ["EFI/BOOT", "EFI/systemd", "loader/entries"] {
        fs::create_dir_all(staged.join(name))?;
    }
    for entry in fs::read_dir(tree.join("usr/lib/systemd/boot/efi"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(machine) = name.strip_prefix("systemd-boot") {
            fs::copy(entry.path(), staged.join("EFI/systemd").join(&name))?;
            let fallback = format!("BOOT{}", machine.to_uppercase());
            fs::copy(entry.path(), staged.join("EFI/BOOT").join(fallback))?;
        }
    }
    fs::write(staged.join("loader/loader.conf"), "default debian\ntimeout 3\n")?;
    fs::write(
        staged.join("loader/entries/debian.conf"),
        "title Debian GNU/Linux\nlinux /debian/linux\ninitrd /debian/initrd.img\noptions root=PARTLABEL=Debian\\x20root ro quiet\n",
    )?;
    run("mcopy", |command| {
        command
            .arg("-i")
            .arg(efi)
            .args(["-s", "-Q"])
            .args([staged.join("EFI"), staged.join("loader")])
            .arg("::/")
    })
}

fn make_root(tree: &Path, root: &Path) -> io::Result<()> {
    run("mkfs.ext4", |command| {
        command.args(["-q", "-F", "-L", "debian", "-U", "6f3a0d44-1f5b-4a52-9c1e-00000000e4f4"]);
        command.args(["-E", "root_owner=0:0,hash_seed=6f3a0d44-1f5b-4a52-9c1e-00000000e4f5", "-d"]);
        command.arg(tree).arg(root).arg(format!("{}k", ROOT_LEN_BYTES / 1024))
    })
}

/// Changes the root file system by debugfs's `commands` and writes what differs into the image, as a guest would.
fn edit_root(work: &Path, root: &Path, image: &Path, commands: &[&str]) -> io::Result<()> {
    const BLOCK: usize = 64 << 10;
    let script = work.join("commands");
    fs::write(&script, commands.join("\n"))?;
    let before = fs::read(root)?;
    run("debugfs", |command| command.current_dir(work).arg("-w").arg("-f").args([&script, root]))?;
    let after = fs::read(root)?;
    let mut writes = Vec::new();
    let blocks = before.chunks(BLOCK).zip(after.chunks(BLOCK)).zip((ROOT_START..).step_by(BLOCK));
    for ((old, new), offset) in blocks {
        // Page by page, so that some clusters are written in part.
        for ((old, new), sector) in
            old.chunks(4096).zip(new.chunks(4096)).zip((offset..).step_by(4096))
        {
            if old != new {
                let file = work.join(format!("changed-{sector}"));
                fs::write(&file, new)?;
                writes.push(format!("write -q -s {} {sector} {}", file.display(), new.len()));
            }
        }
    }
    for writes in writes.chunks(500) {
        run("qemu-io", |command| {
            command.args(["-f", "qcow2", "-t", "unsafe"]);
            for write in writes {
                command.args(["-c", write]);
            }
            command.arg(image)
        })?;
    }
    Ok(())
}

/// Copies the file `from` into `to` at `offset`, leaving out blocks of zeros.
fn write_sparsely(from: &Path, to: &Path, offset: u64) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut to = File::options().write(true).open(to)?;
    let mut block = vec![0; 64 << 10];
    let mut at = offset;
    loop {
        let len = from.read(&mut block)?;
        if len == 0 {
            return Ok(());
        }
        if block[..len].iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(&block[..len])?;
        }
        at += len as u64;
    }
}

/// Runs `program`, found on `PATH` or where Debian keeps what is for administrators; what it says is shown if it fails.
fn run(program: &str, arguments: impl FnOnce(&mut Command) -> &mut Command) -> io::Result<()> {
    let admin = ["/usr/sbin", "/sbin"].iter().map(|folder| Path::new(folder).join(program));
    let found = std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join(program))
        .chain(admin)
        .find(|path| path.is_file());
    let package =
        TOOLS.iter().find(|(name, _)| *name == program).map_or("coreutils", |(_, package)| package);
    let Some(path) = found else {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("{program} is not installed: `apt-get install {package}` has it"),
        ));
    };
    let mut command = Command::new(path);
    let output = arguments(command.env("LC_ALL", "C")).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // debugfs reports a failed command in words only; the first line is its version.
    let failed = program == "debugfs" && said.lines().count() > 1;
    if !output.status.success() || failed {
        let printed = String::from_utf8_lossy(&output.stdout);
        return Err(io::Error::other(format!("{program}: {}\n{printed}{said}", output.status)));
    }
    Ok(())
}
