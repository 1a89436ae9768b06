//! The fear: that a file comes out of a disk otherwise than it went in, or that a disk made to harm does.
//!
//! Trees are put on volumes by the systems' own tools (`mkfs.ext4`, `mcopy`, `xorriso`) and read back through the library:
//! names, kinds, modes, links and bytes. Then the volumes are damaged, at random and by design.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::data::Choices;
use cowshed::Error;
use cowshed::inspect::files::{Entry, FileKind, FileSystem, system, tar};
use cowshed::inspect::{ReadAt, StorageBytes, Window};
use cowshed::storage::MemoryStorage;
use futures::executor::block_on;

/// Runs a tool, or fails with what it said or how to install it.
fn tool(program: &str, package: &str, args: &[&str], dir: &Path) {
    let out = Command::new(program).args(args).current_dir(dir).env("LC_ALL", "C.UTF-8").output();
    let out = out.unwrap_or_else(|error| {
        panic!("cannot run {program}: {error}; `apt-get install {package}` or `cargo xtask test` brings it")
    });
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// What a file is, for comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kept {
    File(Vec<u8>),
    Folder,
    Link(Vec<u8>),
}

/// Paths and what lies there.
type Tree = BTreeMap<Vec<u8>, Kept>;

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Choices::new(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

/// A tree with what file systems tell apart. `hostile` adds names that only those with byte names can hold.
fn make_tree(root: &Path, hostile: bool) -> Tree {
    let mut tree = Tree::new();
    let mut put = |path: &[u8], kept: Kept| {
        let at = root.join(OsStr::from_bytes(path));
        match &kept {
            Kept::File(bytes) => fs::write(at, bytes).unwrap(),
            Kept::Folder => fs::create_dir(at).unwrap(),
            Kept::Link(target) => symlink(OsStr::from_bytes(target), at).unwrap(),
        }
        tree.insert(path.to_vec(), kept);
    };
    put(b"etc", Kept::Folder);
    put(b"etc/os-release", Kept::File(b"ID=test\nPRETTY_NAME=\"Test \\\"1\\\"\"\n".to_vec()));
    put(b"etc/hostname", Kept::File(b"# a comment\nbox\n".to_vec()));
    put(b"lib", Kept::Folder);
    put(b"lib/modules", Kept::Folder);
    put(b"lib/modules/6.1.0-1-amd64", Kept::Folder);
    put(b"empty", Kept::File(Vec::new()));
    put(b"one", Kept::File(vec![7]));
    put(b"big.bin", Kept::File(bytes(1, 3_000_001)));
    put(b"deep", Kept::Folder);
    put(b"deep/er", Kept::Folder);
    put(b"deep/er/still", Kept::Folder);
    put(b"deep/er/still/end.txt", Kept::File(b"the end\n".to_vec()));
    put(
        "A name longer than eight and three, with \u{e4}\u{4e2d}.text".as_bytes(),
        Kept::File(vec![1; 700]),
    );
    put(b"many", Kept::Folder);
    for number in 0..200 {
        let name = format!("many/file-with-a-number-{number}.txt");
        put(name.as_bytes(), Kept::File(format!("{number}").into_bytes()));
    }
    if hostile {
        put(b"link", Kept::Link(b"deep/er/still/end.txt".to_vec()));
        put(b"absolute", Kept::Link(b"/deep/er".to_vec()));
        put(b"above", Kept::Link(b"../../../../etc/hostname".to_vec()));
        put(b"loop", Kept::Link(b"loop".to_vec()));
        put(b"dangling", Kept::Link(b"nowhere/at/all".to_vec()));
        put(b"deep/back", Kept::Link(b"../one".to_vec()));
        put(b"long-link", Kept::Link(vec![b'x'; 200]));
        put(b"esc\x1b[31m\nname", Kept::File(b"red".to_vec()));
        put(b"not utf8 \xff\xfe", Kept::File(b"bytes".to_vec()));
        put(b"back\\slash", Kept::File(b"slash".to_vec()));
        fs::set_permissions(root.join("one"), fs::Permissions::from_mode(0o4751)).unwrap();
    }
    tree
}

type Disk = Vec<u8>;

fn ext(dir: &Path, kind: &str, block: &str) -> Disk {
    let name = format!("{kind}-{block}.img");
    fs::File::create(dir.join(&name)).unwrap().set_len(24 << 20).unwrap();
    let args = ["-q", "-F", "-L", "label of it", "-b", block, "-d", "tree", &name];
    tool(&format!("mkfs.{kind}"), "e2fsprogs", &args, dir);
    fs::read(dir.join(name)).unwrap()
}

fn fat(dir: &Path, width: &str, len: u64) -> Disk {
    let name = format!("fat{width}.img");
    fs::File::create(dir.join(&name)).unwrap().set_len(len).unwrap();
    tool("mkfs.vfat", "dosfstools", &["-F", width, "-n", "LABEL", &name], dir);
    let mut args = vec!["-s".to_owned(), "-Q".to_owned(), "-i".to_owned(), name.clone()];
    let tree = fs::read_dir(dir.join("tree")).unwrap();
    args.extend(tree.map(|entry| format!("tree/{}", entry.unwrap().file_name().display())));
    args.push("::/".to_owned());
    tool("mcopy", "mtools", &args.iter().map(String::as_str).collect::<Vec<_>>(), dir);
    fs::read(dir.join(name)).unwrap()
}

fn iso(dir: &Path, name: &str, options: &[&str]) -> Disk {
    let mut args = vec!["-as", "mkisofs", "-quiet", "-V", "LABEL"];
    args.extend(options);
    args.extend(["-o", name, "tree"]);
    tool("xorriso", "xorriso", &args, dir);
    fs::read(dir.join(name)).unwrap()
}

/// Opens a disk in memory and runs `check` with its files.
fn with_files<T>(
    disk: Disk,
    check: impl AsyncFnOnce(&FileSystem<&StorageBytes<&MemoryStorage>>) -> T,
) -> T {
    let storage = MemoryStorage::new(disk);
    block_on(async {
        let volume = StorageBytes::new(&storage).await.unwrap();
        let files = FileSystem::open(&volume).await.unwrap().expect("a known file system");
        check(&files).await
    })
}

/// Everything on a volume.
async fn read_tree<R: ReadAt>(
    files: &FileSystem<R>,
) -> Result<(Tree, Vec<(Vec<u8>, Entry)>), Error> {
    let mut tree = Tree::new();
    let mut all = Vec::new();
    let mut rest = vec![(files.root().await?, Vec::new())];
    while let Some((folder, path)) = rest.pop() {
        for entry in files.read_dir(&folder).await? {
            let mut at: Vec<u8> = path.clone();
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(&entry.name);
            let kept = match entry.kind {
                FileKind::File => Kept::File(read_all(files, &entry).await?),
                FileKind::Folder => Kept::Folder,
                FileKind::Symlink => Kept::Link(files.read_link(&entry).await?),
                other => panic!("{other:?}"),
            };
            tree.insert(at.clone(), kept);
            all.push((at.clone(), entry.clone()));
            if entry.kind == FileKind::Folder {
                assert!(all.len() < 100_000, "a tree that does not end");
                rest.push((entry, at));
            }
        }
    }
    tree.remove(b"lost+found".as_slice());
    Ok((tree, all))
}

async fn read_all<R: ReadAt>(files: &FileSystem<R>, file: &Entry) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // Neither a block nor a part of one.
    let mut piece = vec![0; 70_001];
    loop {
        let len = files.read(file, bytes.len() as u64, &mut piece).await?;
        if len == 0 {
            assert_eq!(bytes.len() as u64, file.len);
            return Ok(bytes);
        }
        bytes.extend_from_slice(&piece[..len]);
    }
}

fn assert_same(what: &str, expected: &Tree, actual: &Tree) {
    let names = |tree: &Tree| -> Vec<String> {
        tree.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    };
    assert_eq!(names(expected), names(actual), "{what}");
    for (path, kept) in expected {
        assert!(kept == &actual[path], "{what}: {} differs", String::from_utf8_lossy(path));
    }
}

#[test]
fn trees_come_back_from_ext_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let expected = make_tree(&dir.path().join("tree"), true);
    for (kind, block) in [("ext2", "1024"), ("ext3", "2048"), ("ext4", "4096"), ("ext4", "1024")] {
        let disk = ext(dir.path(), kind, block);
        with_files(disk, async |files| {
            assert_eq!(files.kind(), kind);
            assert_eq!(files.label(), b"label of it");
            assert_eq!(files.uuid().unwrap().len(), 36);
            let (tree, all) = read_tree(files).await.unwrap();
            assert_same(kind, &expected, &tree);
            for (path, entry) in all.iter().filter(|(path, _)| path != b"lost+found") {
                let meta = dir
                    .path()
                    .join("tree")
                    .join(OsStr::from_bytes(path))
                    .symlink_metadata()
                    .unwrap();
                let mode = u32::from(entry.mode.unwrap());
                assert_eq!(mode, meta.mode() & 0o7777, "{}", String::from_utf8_lossy(path));
                assert_eq!(entry.modified, Some(meta.mtime()));
                assert_eq!(entry.owner.unwrap().user, meta.uid());
            }
            let one = files.find(b"/one", true).await.unwrap();
            assert_eq!(one.mode_text(), "-rwsr-x--x");
        });
    }
}

#[test]
fn trees_come_back_from_fat_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let expected = make_tree(&dir.path().join("tree"), false);
    for (width, len) in [("12", 7 << 20), ("16", 20 << 20), ("32", 40 << 20)] {
        let disk = fat(dir.path(), width, len);
        with_files(disk, async |files| {
            assert_eq!(files.kind(), format!("fat{width}"));
            assert_eq!(files.label(), b"LABEL");
            let (tree, _) = read_tree(files).await.unwrap();
            assert_same(width, &expected, &tree);
            // Names have no case there.
            let end = files.find(b"DEEP/ER/Still/END.TXT", true).await.unwrap();
            assert_eq!(read_all(files, &end).await.unwrap(), b"the end\n");
        });
    }
}

#[test]
fn trees_come_back_from_iso_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let expected = make_tree(&dir.path().join("tree"), true);
    with_files(iso(dir.path(), "rr.iso", &["-R", "-J"]), async |files| {
        assert_eq!(files.kind(), "iso9660");
        assert_eq!(files.label(), b"LABEL");
        let (tree, all) = read_tree(files).await.unwrap();
        assert_same("Rock Ridge", &expected, &tree);
        for (path, entry) in &all {
            let meta =
                dir.path().join("tree").join(OsStr::from_bytes(path)).symlink_metadata().unwrap();
            assert_eq!(entry.modified, Some(meta.mtime()), "{}", String::from_utf8_lossy(path));
        }
    });

    let plain = tempfile::tempdir().unwrap();
    fs::create_dir(plain.path().join("tree")).unwrap();
    let expected = make_tree(&plain.path().join("tree"), false);
    // xorriso writes Rock Ridge unless it is told not to.
    with_files(iso(plain.path(), "joliet.iso", &["--norock", "-J"]), async |files| {
        let (tree, _) = read_tree(files).await.unwrap();
        assert_same("Joliet", &expected, &tree);
    });
    with_files(iso(plain.path(), "plain.iso", &["--norock"]), async |files| {
        let end = files.find(b"deep/er/still/end.txt", true).await.unwrap();
        assert_eq!(end.name, b"END.TXT");
        assert_eq!(read_all(files, &end).await.unwrap(), b"the end\n");
    });
}

#[test]
fn paths_are_followed_within_the_volume_and_no_further() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    make_tree(&dir.path().join("tree"), true);
    for disk in [ext(dir.path(), "ext4", "4096"), iso(dir.path(), "rr.iso", &["-R"])] {
        with_files(disk, async |files| {
            for (path, target) in [
                (&b"link"[..], &b"end.txt"[..]),
                (b"/absolute/still/end.txt", b"end.txt"),
                (b"above", b"hostname"),
                (b"deep/back", b"one"),
                (b"deep/../../../one", b"one"),
                (b"absolute/../back", b"one"),
            ] {
                let found = files.find(path, true).await.unwrap();
                assert_eq!(found.name, target, "{}", String::from_utf8_lossy(path));
            }
            let link = files.find(b"above", false).await.unwrap();
            assert_eq!(link.kind, FileKind::Symlink);
            let error = files.find(b"loop", true).await.unwrap_err();
            assert!(matches!(error, Error::LimitExceeded { limit: 40, .. }), "{error}");
            let error = files.find(b"dangling", true).await.unwrap_err();
            assert!(matches!(error, Error::NotFound { .. }), "{error}");
            let error = files.find(b"one/more", true).await.unwrap_err();
            assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
            let one = files.find(b"one", true).await.unwrap();
            assert!(matches!(files.read_dir(&one).await, Err(Error::InvalidArgument(_))));
            assert!(matches!(files.read_link(&one).await, Err(Error::InvalidArgument(_))));
            let root = files.root().await.unwrap();
            assert!(matches!(
                files.read(&root, 0, &mut [0; 1]).await,
                Err(Error::InvalidArgument(_))
            ));

            let found = system::system(files).await.unwrap().unwrap();
            assert_eq!((found.name.as_str(), found.id.as_str()), ("Test \"1\"", "test"));
            assert_eq!(found.hostname, "box");
            assert_eq!(found.kernels, ["6.1.0-1-amd64"]);
        });
    }
}

#[test]
fn archives_extract_to_the_same_tree() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("tree");
    fs::create_dir(&root).unwrap();
    let mut expected = make_tree(&root, true);
    // Longer than a header's two fields, and than a path may be for a link in it.
    let long = "d".repeat(120);
    let mut path = String::new();
    for _ in 0..3 {
        path = if path.is_empty() { long.clone() } else { format!("{path}/{long}") };
        fs::create_dir(root.join(&path)).unwrap();
        expected.insert(path.clone().into_bytes(), Kept::Folder);
    }
    let path = format!("{path}/file");
    fs::write(root.join(&path), b"far down").unwrap();
    expected.insert(path.into_bytes(), Kept::File(b"far down".to_vec()));
    // What cannot be a file's name everywhere is not for archives.
    expected.remove(b"back\\slash".as_slice());

    let mut archive = Vec::new();
    with_files(ext(dir.path(), "ext4", "4096"), async |files| {
        for (path, entry) in read_tree(files).await.unwrap().1 {
            if !entry.has_plain_name() {
                assert_eq!(entry.name, b"back\\slash");
                assert!(matches!(tar::header(&entry, &path, None), Err(Error::InvalidArgument(_))));
                continue;
            }
            let link = match entry.kind {
                FileKind::Symlink => Some(files.read_link(&entry).await.unwrap()),
                _ => None,
            };
            archive.extend(tar::header(&entry, &path, link.as_deref()).unwrap().unwrap());
            if entry.kind == FileKind::File {
                archive.extend(read_all(files, &entry).await.unwrap());
                archive.resize(archive.len() + tar::padding(entry.len), 0);
            }
        }
        let one = files.find(b"one", true).await.unwrap();
        for bad in ["/etc/passwd", "a/../b", "..", "a//b", "", "a/./b", "a\0b"] {
            let refused = tar::header(&one, bad.as_bytes(), None);
            assert!(matches!(refused, Err(Error::InvalidArgument(_))), "{bad:?}");
        }
    });
    archive.resize(archive.len() + tar::END_BYTES, 0);
    fs::write(dir.path().join("out.tar"), archive).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    tool("tar", "tar", &["-xpf", "../out.tar"], &out);
    for (path, kept) in &expected {
        let at = out.join(OsStr::from_bytes(path));
        let shown = String::from_utf8_lossy(path);
        let meta = at.symlink_metadata().unwrap_or_else(|error| panic!("{shown}: {error}"));
        match kept {
            Kept::File(bytes) => assert!(&fs::read(&at).unwrap() == bytes, "{shown} differs"),
            Kept::Folder => assert!(meta.is_dir(), "{shown}"),
            Kept::Link(target) => {
                assert_eq!(fs::read_link(&at).unwrap().as_os_str().as_bytes(), target);
            }
        }
        let before = root.join(OsStr::from_bytes(path)).symlink_metadata().unwrap();
        assert_eq!(meta.mode(), before.mode(), "{shown}");
        if !meta.is_dir() {
            assert_eq!(meta.mtime(), before.mtime(), "{shown}");
        }
    }
}

#[test]
fn volume_within_a_disk_is_a_disk_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    let expected = make_tree(&dir.path().join("tree"), true);
    let volume = ext(dir.path(), "ext4", "4096");
    let len = volume.len() as u64;
    let mut disk = bytes(9, 1 << 20);
    disk.extend(volume);
    disk.extend(bytes(8, 1 << 20));
    let storage = MemoryStorage::new(disk);
    block_on(async {
        let disk = StorageBytes::new(&storage).await.unwrap();
        assert!(FileSystem::open(&disk).await.unwrap().is_none());
        let window = Window::new(&disk, 1 << 20, len);
        assert_eq!((window.start(), window.len()), (1 << 20, len));
        let mut past = [0; 2];
        assert!(matches!(window.read_at(&mut past, len - 1).await, Err(Error::OutOfBounds { .. })));
        let files = FileSystem::open(window).await.unwrap().unwrap();
        assert_same("window", &expected, &read_tree(&files).await.unwrap().0);
    });
}

/// Opens and reads all that a damaged disk lets be read; errors are fine, panics and endless walks are not.
fn survive(disk: Disk) {
    let storage = MemoryStorage::new(disk);
    block_on(async {
        let volume = StorageBytes::new(&storage).await.unwrap();
        let Ok(Some(files)) = FileSystem::open(&volume).await else { return };
        let _ = system::system(&files).await;
        let Ok(root) = files.root().await else { return };
        let mut rest = vec![(root, 0)];
        let mut steps = 0;
        let mut piece = vec![0; 100_000];
        while let Some((folder, depth)) = rest.pop() {
            for entry in files.read_dir(&folder).await.unwrap_or_default() {
                steps += 1;
                if steps > 2000 {
                    return;
                }
                match entry.kind {
                    FileKind::File => {
                        let _ = files.read(&entry, 0, &mut piece).await;
                        let _ = files.read(&entry, entry.len / 2, &mut piece).await;
                    }
                    FileKind::Symlink => drop(files.read_link(&entry).await),
                    FileKind::Folder if depth < 8 => rest.push((entry, depth + 1)),
                    _ => {}
                }
            }
        }
    });
}

#[test]
fn damaged_volumes_are_read_as_far_as_they_can_be() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    make_tree(&dir.path().join("tree"), false);
    let disks = [
        ext(dir.path(), "ext2", "1024"),
        ext(dir.path(), "ext4", "4096"),
        fat(dir.path(), "12", 7 << 20),
        fat(dir.path(), "16", 20 << 20),
        fat(dir.path(), "32", 40 << 20),
        iso(dir.path(), "rr.iso", &["-R", "-J"]),
        iso(dir.path(), "joliet.iso", &["--norock", "-J"]),
    ];
    let seeds = std::env::var("COWSHED_DISK_SEEDS").map_or(15, |text| text.parse().unwrap());
    for (number, disk) in disks.iter().enumerate() {
        // Where metadata lies: sectors that hold something within the first MiB, and a few others.
        let used: Vec<usize> = (0..disk.len() / 512)
            .filter(|sector| disk[sector * 512..][..512].iter().any(|byte| *byte != 0))
            .collect();
        let early = used.iter().filter(|sector| **sector < 2048).count().max(1);
        for seed in 0..seeds {
            println!("disk {number}, seed {seed}");
            let mut random = Choices::new(seed);
            let mut damaged = disk.clone();
            for _ in 0..random.between(1, 40) {
                let among = if random.below(4) > 0 { early } else { used.len() };
                let sector = used[random.below(among as u64) as usize];
                let at = sector * 512 + random.below(512) as usize;
                match random.below(3) {
                    0 => damaged[at] = random.next() as u8,
                    1 => damaged[at] ^= 1 << random.below(8),
                    _ => {
                        let end = (at + 4).min(damaged.len());
                        damaged[at..end].fill(0xff);
                    }
                }
            }
            if random.below(8) == 0 {
                damaged.truncate(random.below(disk.len() as u64) as usize);
            }
            survive(damaged);
        }
    }
}

#[test]
fn chain_of_clusters_that_loops_ends() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("tree")).unwrap();
    make_tree(&dir.path().join("tree"), false);
    let mut disk = fat(dir.path(), "16", 20 << 20);
    // Every cluster is followed by cluster 2.
    let (reserved, fat_sectors) = (disk[14] as usize, disk[22] as usize);
    let fat = reserved * 512..(reserved + fat_sectors) * 512;
    for entry in disk[fat].chunks_exact_mut(2) {
        entry.copy_from_slice(&[2, 0]);
    }
    survive(disk);
}
