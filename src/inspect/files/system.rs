//! The operating system on a volume, by the files that say it.

use super::{FileKind, FileSystem};
use crate::error::{Error, Result};
use crate::inspect::ReadAt;

/// How much of a file is looked at, in bytes.
const LOOK_BYTES_MAX: usize = 64 << 10;

/// An operating system.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct System {
    /// Its name with its version, as it calls itself: "Debian GNU/Linux 13 (trixie)".
    pub name: String,
    /// Its short name: "debian"; "windows" and "freedos" where a file tells.
    pub id: String,
    /// Its version: "13".
    pub version: String,
    /// What the computer is called.
    pub hostname: String,
    /// The versions of the kernels that are installed, in the order of their names.
    pub kernels: Vec<String>,
    /// The processor it was built for, as Linux names it: "x86_64".
    pub architecture: String,
}

/// Recognises the operating system whose root is this volume; `None` if nothing says that there is one.
///
/// # Errors
/// What reading says. Files that are damaged count as absent.
pub async fn system<R: ReadAt>(files: &FileSystem<R>) -> Result<Option<System>> {
    let mut found = System::default();
    for path in ["etc/os-release", "usr/lib/os-release"] {
        if let Some(text) = look(files, path).await? {
            read_os_release(&text, &mut found);
            break;
        }
    }
    if found.id.is_empty() {
        for (path, id, name) in [
            ("etc/alpine-release", "alpine", "Alpine Linux"),
            ("etc/debian_version", "debian", "Debian"),
            ("etc/redhat-release", "rhel", ""),
            ("bsd", "openbsd", "OpenBSD"),
            ("Windows/System32/ntoskrnl.exe", "windows", "Windows"),
            ("KERNEL.SYS", "dos", "DOS"),
            ("IO.SYS", "dos", "DOS"),
        ] {
            if let Some(text) = look(files, path).await? {
                found.id = id.to_owned();
                let line = text.lines().next().unwrap_or_default().trim();
                let is_text = path.starts_with("etc/");
                found.name = match (name.is_empty(), is_text) {
                    (true, _) => line.to_owned(),
                    (false, true) => format!("{name} {line}"),
                    (false, false) => name.to_owned(),
                };
                break;
            }
        }
    }
    if found.id.is_empty() {
        return Ok(None);
    }
    if let Some(text) = look(files, "etc/hostname").await? {
        found.hostname = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'))
            .unwrap_or_default()
            .to_owned();
    }
    found.kernels = kernels(files).await?;
    found.architecture = architecture(files).await?;
    Ok(Some(found))
}

/// The first bytes of a file as text; `None` if it is not there.
async fn look<R: ReadAt>(files: &FileSystem<R>, path: &str) -> Result<Option<String>> {
    Ok(look_bytes(files, path, LOOK_BYTES_MAX)
        .await?
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

async fn look_bytes<R: ReadAt>(
    files: &FileSystem<R>,
    path: &str,
    len_max: usize,
) -> Result<Option<Vec<u8>>> {
    let Some(file) = absent_if_damaged(files.find(path.as_bytes(), true).await)? else {
        return Ok(None);
    };
    if file.kind != FileKind::File {
        return Ok(None);
    }
    let mut bytes = vec![0; usize::try_from(file.len).map_or(len_max, |len| len.min(len_max))];
    let Some(len) = absent_if_damaged(files.read(&file, 0, &mut bytes).await)? else {
        return Ok(None);
    };
    bytes.truncate(len);
    Ok(Some(bytes))
}

/// Only a storage's failure is one of ours.
fn absent_if_damaged<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ Error::Storage { .. }) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The assignments of os-release(5).
fn read_os_release(text: &str, found: &mut System) {
    let mut pretty = String::new();
    let mut name = String::new();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once('=') else { continue };
        let value = unquote(value);
        match key {
            "ID" => found.id = value,
            "VERSION_ID" => found.version = value,
            "PRETTY_NAME" => pretty = value,
            "NAME" => name = value,
            _ => {}
        }
    }
    found.name = match (pretty.is_empty(), found.version.is_empty()) {
        (false, _) => pretty,
        (true, true) => name.clone(),
        (true, false) => format!("{name} {}", found.version),
    };
    if found.id.is_empty() {
        // os-release(5): the default.
        found.id = "linux".to_owned();
    }
}

/// A value as a shell would read it.
fn unquote(value: &str) -> String {
    let value = value.trim();
    let inner = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    let mut out = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        out.push(match character {
            '\\' => characters.next().unwrap_or('\\'),
            other => other,
        });
    }
    out
}

/// The kernels, by the folders of their modules and by their images.
async fn kernels<R: ReadAt>(files: &FileSystem<R>) -> Result<Vec<String>> {
    let mut versions = Vec::new();
    for path in ["lib/modules", "usr/lib/modules", "boot"] {
        let Some(folder) = absent_if_damaged(files.find(path.as_bytes(), true).await)? else {
            continue;
        };
        if folder.kind != FileKind::Folder {
            continue;
        }
        let entries = absent_if_damaged(files.read_dir(&folder).await)?.unwrap_or_default();
        for entry in entries {
            let name = String::from_utf8_lossy(&entry.name);
            let version = match (path, entry.kind) {
                ("boot", FileKind::File | FileKind::Symlink) => name.strip_prefix("vmlinuz-"),
                ("boot", _) => None,
                (_, FileKind::Folder) => Some(name.as_ref()),
                _ => None,
            };
            versions.extend(version.map(str::to_owned));
        }
    }
    versions.sort();
    versions.dedup();
    Ok(versions)
}

/// The processor, by the head of a program that every system has.
async fn architecture<R: ReadAt>(files: &FileSystem<R>) -> Result<String> {
    const PROGRAMS: &[&str] = &["usr/bin/env", "bin/sh", "bin/busybox", "sbin/init"];
    for path in PROGRAMS {
        let Some(head) = look_bytes(files, path, 20).await? else { continue };
        if head.len() < 20 || head[..4] != *b"\x7fELF" {
            continue;
        }
        let is_big = head[5] == 2;
        let machine = [head[18], head[19]];
        let machine =
            if is_big { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
        let name = match (machine, head[4] == 2, is_big) {
            (3, ..) => "i686",
            (8, ..) => "mips",
            (20, ..) => "ppc",
            (21, _, true) => "ppc64",
            (21, _, false) => "ppc64le",
            (22, ..) => "s390x",
            (40, ..) => "arm",
            (62, ..) => "x86_64",
            (183, ..) => "aarch64",
            (243, true, _) => "riscv64",
            (243, false, _) => "riscv32",
            (258, ..) => "loongarch64",
            _ => continue,
        };
        return Ok(name.to_owned());
    }
    Ok(String::new())
}
