//! `openDisk` and the class `Disk`: partitions, file systems and their files.

use std::cell::RefCell;
use std::rc::Rc;

use js_sys::{Promise, Uint8Array};
use wasm_bindgen::prelude::*;

use super::value::{array, get, object, or_null, size, text};
use crate::error::{Error, Result};
use crate::inspect::files::archive::{self, Piece};
use crate::inspect::files::system::{System, system};
use crate::inspect::files::walk::{self, Found, Unread};
use crate::inspect::files::{Entry, FileKind, FileSystem};
use crate::inspect::partitions::{Partition, Partitions};
use crate::inspect::{self, StorageBytes, Window};
use crate::rt::{BlobStorage, Reader};

/// The longest read that one call answers, in bytes.
const READ_LEN_BYTES_MAX: u32 = 64 << 20;

type Volume = inspect::Volume<StorageBytes<Rc<BlobStorage>>>;
type Files = FileSystem<Window<StorageBytes<Rc<BlobStorage>>>>;

/// A disk: its partitions and the files on them.
#[wasm_bindgen]
pub struct Disk {
    table: Partitions,
    volumes: Rc<Vec<Volume>>,
}

/// Finds the volumes of a disk that `source`, of the type `{ size, read(offset, length, signal) }`, reads.
#[wasm_bindgen(js_name = openDisk)]
pub fn open_disk(source: JsValue, signal: JsValue) -> Promise {
    super::promise(&signal, async move {
        let len = size(&get(&source, "size"))?;
        let reader = source.unchecked_into::<Reader>();
        let bytes = StorageBytes::new(Rc::new(BlobStorage::from_reader(reader, len))).await?;
        let (table, volumes) = inspect::volumes(bytes).await?;
        Ok(Disk { table, volumes: Rc::new(volumes) }.into())
    })
}

#[wasm_bindgen]
impl Disk {
    /// The kind of partition table and what is wrong with it.
    pub fn table(&self) -> JsValue {
        object([
            ("table", self.table.table.name().into()),
            ("findings", array(self.table.findings.iter().map(|one| one.as_str().into()))),
        ])
    }

    /// The volumes, in the order of their indices.
    pub fn volumes(&self) -> JsValue {
        array(self.volumes.iter().map(volume))
    }

    /// The operating system on a volume, or null.
    pub fn system(&self, index: usize, signal: JsValue) -> Promise {
        self.request(index, &signal, async move |files: &Files| {
            Ok(or_null(system(files).await?.as_ref().map(operating_system)))
        })
    }

    /// What a path names.
    pub fn find(&self, index: usize, path: Vec<u8>, follow: bool, signal: JsValue) -> Promise {
        self.request(index, &signal, async move |files: &Files| {
            let found = files.find(&path, follow).await?;
            Ok(entry(files, &found).await)
        })
    }

    /// What is in a folder, in the order on disk.
    pub fn list(&self, index: usize, path: Vec<u8>, signal: JsValue) -> Promise {
        self.request(index, &signal, async move |files: &Files| {
            let folder = files.find(&path, true).await?;
            let list = js_sys::Array::new();
            for found in files.read_dir(&folder).await? {
                list.push(&entry(files, &found).await);
            }
            Ok(list.into())
        })
    }

    /// Reads up to `length` bytes of a file; fewer at its end.
    pub fn read(
        &self,
        index: usize,
        path: Vec<u8>,
        offset: u64,
        length: u32,
        signal: JsValue,
    ) -> Promise {
        self.request(index, &signal, async move |files: &Files| {
            let file = files.find(&path, true).await?;
            let mut buf = vec![0; length.min(READ_LEN_BYTES_MAX) as usize];
            let len = files.read(&file, offset, &mut buf).await?;
            Ok(Uint8Array::from(&buf[..len]).into())
        })
    }

    /// A walk through everything below a path.
    pub fn walk(&self, index: usize, path: Vec<u8>, signal: JsValue) -> Promise {
        let volumes = Rc::clone(&self.volumes);
        self.request(index, &signal, async move |files: &Files| {
            let top = files.find(&path, true).await?;
            let walk = RefCell::new(Some(walk::Walk::new(top, path)));
            Ok(Walk { volumes, index, walk: Rc::new(walk) }.into())
        })
    }

    /// What a path names as a tar archive.
    pub fn archive(&self, index: usize, path: Vec<u8>, signal: JsValue) -> Promise {
        let volumes = Rc::clone(&self.volumes);
        self.request(index, &signal, async move |files: &Files| {
            let archive = archive::Archive::new(files.find(&path, true).await?);
            Ok(Archive { volumes, index, archive: Rc::new(RefCell::new(Some(archive))) }.into())
        })
    }

    /// Runs a request of a volume's file system.
    fn request(
        &self,
        index: usize,
        signal: &JsValue,
        request: impl AsyncFnOnce(&Files) -> Result<JsValue> + 'static,
    ) -> Promise {
        let volumes = Rc::clone(&self.volumes);
        super::promise(signal, async move { request(files(&volumes, index)?).await })
    }
}

/// A walk that goes on from call to call.
#[wasm_bindgen]
pub struct Walk {
    volumes: Rc<Vec<Volume>>,
    index: usize,
    /// Taken by the call that is under way; one that is given up ends the walk.
    walk: Rc<RefCell<Option<walk::Walk>>>,
}

#[wasm_bindgen]
impl Walk {
    /// The next entries, at most `max`; none at the end. A folder that cannot be read comes with its `problem`.
    pub fn next(&self, max: usize, signal: JsValue) -> Promise {
        let (volumes, index, held) = (Rc::clone(&self.volumes), self.index, Rc::clone(&self.walk));
        super::promise(&signal, async move {
            let files = files(&volumes, index)?;
            let Some(mut walk) = held.take() else { return Ok(array([])) };
            let list = js_sys::Array::new();
            while (list.length() as usize) < max {
                match walk.next(files).await {
                    Some(Ok(Found { entry: found, path, .. })) => {
                        let value = entry(files, &found).await;
                        super::value::set(&value, "path", Uint8Array::from(&path[..]));
                        list.push(&value);
                    }
                    Some(Err(Unread { error: error @ Error::Storage { .. }, .. })) => {
                        return Err(error);
                    }
                    Some(Err(Unread { path, error })) => {
                        list.push(&object([
                            ("path", Uint8Array::from(&path[..]).into()),
                            ("unread", error.to_string().into()),
                        ]));
                    }
                    None => return Ok(list.into()),
                }
            }
            held.replace(Some(walk));
            Ok(list.into())
        })
    }
}

/// An archive that comes piece by piece.
#[wasm_bindgen]
pub struct Archive {
    volumes: Rc<Vec<Volume>>,
    index: usize,
    /// Taken by the call that is under way; one that is given up ends the archive.
    archive: Rc<RefCell<Option<archive::Archive>>>,
}

#[wasm_bindgen]
impl Archive {
    /// The next bytes, or what is said of something that is not among them; null at the end.
    pub fn next(&self, signal: JsValue) -> Promise {
        let (volumes, index, held) =
            (Rc::clone(&self.volumes), self.index, Rc::clone(&self.archive));
        super::promise(&signal, async move {
            let Some(mut archive) = held.take() else { return Ok(JsValue::NULL) };
            let mut bytes = Vec::new();
            let piece = archive.next(files(&volumes, index)?, &mut bytes).await?;
            let fault = |path: Vec<u8>, said: String, damaged: bool| {
                object([("path", text(&path)), ("text", said.into()), ("damaged", damaged.into())])
            };
            let value = match piece {
                None => return Ok(JsValue::NULL),
                Some(Piece::Bytes) => Uint8Array::from(&bytes[..]).into(),
                Some(Piece::LeftOut { path, text }) => fault(path, text, false),
                Some(Piece::Damaged { path, text }) => fault(path, text, true),
            };
            held.replace(Some(archive));
            Ok(value)
        })
    }
}

/// The file system of a volume.
fn files(volumes: &[Volume], index: usize) -> Result<&Files> {
    volumes
        .get(index)
        .and_then(|volume| volume.files.as_ref())
        .ok_or_else(|| Error::NotFound { what: "file system", name: format!("volume {index}") })
}

fn volume(volume: &Volume) -> JsValue {
    let files = volume.files.as_ref().map(|files| {
        object([
            ("kind", files.kind().into()),
            ("label", text(files.label())),
            ("uuid", or_null(files.uuid())),
        ])
    });
    object([
        ("start", volume.start.into()),
        ("length", volume.len.into()),
        ("partition", or_null(volume.partition.as_ref().map(partition))),
        ("files", or_null(files)),
        ("problem", or_null(volume.problem.as_ref().map(ToString::to_string))),
        ("foreign", or_null(volume.foreign)),
    ])
}

fn partition(partition: &Partition) -> JsValue {
    object([
        ("number", partition.number.into()),
        ("type", partition.kind.to_string().into()),
        ("typeName", or_null(partition.kind.name())),
        ("name", partition.name.as_str().into()),
        ("uuid", or_null(partition.uuid.as_deref())),
        ("bootable", partition.bootable.into()),
    ])
}

/// An entry. The target of a link that is damaged is null.
async fn entry(files: &Files, entry: &Entry) -> JsValue {
    let target = match entry.kind {
        FileKind::Symlink => files.read_link(entry).await.ok(),
        _ => None,
    };
    // Seconds of a 34-bit time at most, or of FAT's: exact.
    #[allow(clippy::cast_precision_loss)]
    let modified = entry.modified.map(|seconds| seconds as f64);
    object([
        ("name", text(&entry.name)),
        ("nameBytes", Uint8Array::from(&entry.name[..]).into()),
        ("kind", entry.kind.name().into()),
        ("size", entry.len.into()),
        ("mode", or_null(entry.mode)),
        ("modeText", entry.mode_text().into()),
        ("user", or_null(entry.owner.map(|owner| owner.user))),
        ("group", or_null(entry.owner.map(|owner| owner.group))),
        ("modified", or_null(modified)),
        ("target", or_null(target.as_deref().map(text))),
        ("problem", or_null(entry.problem.as_deref())),
        ("hasPlainName", entry.has_plain_name().into()),
    ])
}

fn operating_system(system: &System) -> JsValue {
    object([
        ("name", system.name.as_str().into()),
        ("id", system.id.as_str().into()),
        ("version", system.version.as_str().into()),
        ("hostname", system.hostname.as_str().into()),
        ("kernels", array(system.kernels.iter().map(|one| one.as_str().into()))),
        ("architecture", system.architecture.as_str().into()),
    ])
}
