//! `openImage`: what the page passes in, and the gate that asks the page for what an image names.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use js_sys::{Function, Promise, Uint8Array};
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{Blob, File};

use super::image::{Image, Stores};
use super::value::{get, object, or_null, size, text};
#[cfg(feature = "encryption")]
use crate::crypt::Secret;
use crate::error::{Error, Result};
use crate::image::{
    self, Answer, Format, Gate, Identity, OpenOptions, Reference, ReferenceKind, SnapshotSelector,
    Source, detect,
};
#[cfg(feature = "encryption")]
use crate::image::{Derivation, Locked};
use crate::rt::{BlobStorage, JsTimer, Uint8ArrayStorage};
use crate::storage::{Buf, LocalBoxStorage, Storage};

/// Opens an image.
///
/// See `OpenOptions` in `types.d.ts`.
#[wasm_bindgen(js_name = openImage, unchecked_return_type = "Promise<Image>")]
pub fn open_image(
    #[wasm_bindgen(unchecked_param_type = "ImageSource")] source: JsValue,
    #[wasm_bindgen(unchecked_optional_param_type = "OpenOptions")] options: JsValue,
) -> Promise {
    let signal = get(&options, "signal");
    super::promise(&signal, async move { Ok(open(source, &options).await?.into()) })
}

/// Judges an image without opening it, and nothing that it names: also one that cannot be opened.
///
/// See `JudgeOptions` in `types.d.ts`.
#[wasm_bindgen(js_name = judgeImage, unchecked_return_type = "Promise<Verdict>")]
pub fn judge_image(
    #[wasm_bindgen(unchecked_param_type = "ImageSource")] source: JsValue,
    #[wasm_bindgen(unchecked_optional_param_type = "JudgeOptions")] options: JsValue,
) -> Promise {
    let signal = get(&options, "signal");
    super::promise(&signal, async move {
        let format = format(&get(&options, "format"))?;
        let source = Opener::default().source(Given { source, name: None, format }, None).await?;
        super::report::judge_source(&source).await
    })
}

async fn open(source: JsValue, options: &JsValue) -> Result<Image> {
    let opener = Rc::new(Opener::default());
    let given = Given {
        name: get(options, "name").as_string(),
        format: format(&get(options, "format"))?,
        source,
    };
    let guessed = given.format.is_none();
    let source = opener.source(given, None).await?;
    let function = |name| get(options, name).dyn_into().ok();
    let gate = PageGate {
        resolve: function("resolve"),
        #[cfg(feature = "encryption")]
        passphrase: function("passphrase"),
        #[cfg(feature = "encryption")]
        derive: function("derive"),
        opener: Rc::clone(&opener),
    };
    let snapshot = get(options, "snapshot").as_string();
    let settings = OpenOptions {
        snapshot: snapshot.map(|word| SnapshotSelector::IdOrName(word.into_bytes())),
        #[cfg(feature = "write")]
        write: get(options, "writable").is_truthy().then(crate::image::WriteOptions::default),
        ..OpenOptions::default()
    };
    let format = source.format;
    let opened = image::Image::open(source, &gate, settings).await?;
    // Bitmaps that cannot be read do not keep the image from being read; the verdict and the check say what is wrong.
    let bitmaps = opened.image.load_bitmaps().await.unwrap_or_default();
    if let Some(cleaner) = opened.cleaner {
        super::EXECUTOR.with(|executor| executor.spawn(cleaner.run(JsTimer)).detach());
    }
    Ok(Image::new(opened.image, format, guessed, bitmaps, opener.stores.take()))
}

/// A source as the page gives it.
struct Given {
    source: JsValue,
    name: Option<String>,
    format: Option<Format>,
}

/// Makes storages of what the page gives, and remembers them.
#[derive(Default)]
struct Opener {
    /// What was opened, to find the same object in a chain twice.
    seen: RefCell<Vec<JsValue>>,
    stores: RefCell<Stores>,
}

impl Opener {
    /// The source of a layer. Without a format of the page's choice it is `stated`, or what the first bytes suggest: the
    /// page has just had the person pick it.
    async fn source(
        &self,
        given: Given,
        stated: Option<Format>,
    ) -> Result<Source<LocalBoxStorage>> {
        let Given { source, name, format } = given;
        let identity = self.identity(&source);
        let own_name = source.dyn_ref::<File>().map(File::name);
        let storage = if let Some(blob) = source.dyn_ref::<Blob>() {
            let storage = BlobStorage::new(blob.clone());
            self.stores.borrow_mut().blobs.push(storage.clone());
            LocalBoxStorage::new(storage)
        } else if let Some(bytes) = source.dyn_ref::<Uint8Array>() {
            LocalBoxStorage::new(Uint8ArrayStorage::new(bytes.clone()))
        } else if let Some(storage) = writable(&source) {
            storage
        } else if get(&source, "read").is_function() {
            let len = size(&get(&source, "size"))?;
            let storage = BlobStorage::from_reader(source.unchecked_into(), len);
            self.stores.borrow_mut().blobs.push(storage.clone());
            LocalBoxStorage::new(storage)
        } else {
            return Err(Error::InvalidArgument(
                "source is neither a Blob, nor a Uint8Array, nor an object with size and read"
                    .to_owned(),
            ));
        };
        let format = match format.or(stated) {
            Some(format) => format,
            None => {
                let failed = |error| Error::storage("read", 0, 8, error);
                detect(&storage.read_at(Buf::zeroed(8), 0).await.map_err(failed)?)
            }
        };
        let location = PathBuf::from(name.or(own_name).unwrap_or_else(|| "image".to_owned()));
        Ok(Source { storage, format, location, identity: Some(identity) })
    }

    /// Tells objects apart: the same object has the same identity.
    fn identity(&self, source: &JsValue) -> Identity {
        let mut seen = self.seen.borrow_mut();
        let at = seen.iter().position(|other| js_sys::Object::is(other, source));
        let at = at.unwrap_or_else(|| {
            seen.push(source.clone());
            seen.len() - 1
        });
        Identity(0, at as u64)
    }
}

/// A file that can be written, if the source is one.
#[cfg(feature = "write")]
fn writable(source: &JsValue) -> Option<LocalBoxStorage> {
    let handle = super::change::access_handle(source)?;
    Some(LocalBoxStorage::new(crate::rt::AccessStorage::new(handle)))
}

#[cfg(not(feature = "write"))]
fn writable(_source: &JsValue) -> Option<LocalBoxStorage> {
    None
}

/// Asks the page for what an image names: calls `resolve`, or refuses if there is none.
struct PageGate {
    resolve: Option<Function>,
    #[cfg(feature = "encryption")]
    passphrase: Option<Function>,
    #[cfg(feature = "encryption")]
    derive: Option<Function>,
    opener: Rc<Opener>,
}

impl Gate for PageGate {
    type Storage = LocalBoxStorage;

    async fn open(&self, reference: &Reference<'_>) -> Result<Answer<LocalBoxStorage>> {
        let Some(resolve) = &self.resolve else {
            return Err(reference.refused("no file was given for it"));
        };
        let question = question(reference);
        let failed = |thrown: JsValue| {
            let message = get(&thrown, "message").as_string();
            reference.refused(message.unwrap_or_else(|| format!("{thrown:?}")))
        };
        let answer = resolve.call1(&JsValue::NULL, &question).map_err(failed)?;
        let answer = JsFuture::from(Promise::resolve(&answer)).await.map_err(failed)?;
        if answer.is_null() || answer.is_undefined() {
            return Err(reference.refused("no file was given for it"));
        }
        if answer.as_string().as_deref() == Some("zeros") {
            return Ok(Answer::Zeros);
        }
        let given = Given {
            source: get(&answer, "source"),
            name: get(&answer, "name")
                .as_string()
                .or_else(|| Some(String::from_utf8_lossy(reference.name).into_owned())),
            format: format(&get(&answer, "format"))?,
        };
        let stated = match reference.kind {
            ReferenceKind::DataFile => Some(Format::Raw),
            ReferenceKind::BackingFile => match reference.format {
                Some(b"qcow2") => Some(Format::Qcow2),
                Some(b"raw") => Some(Format::Raw),
                _ => None,
            },
        };
        Ok(Answer::Open(self.opener.source(given, stated).await?))
    }

    #[cfg(feature = "encryption")]
    async fn key(&self, locked: &Locked<'_>) -> Result<Option<Secret>> {
        let Some(passphrase) = &self.passphrase else { return Ok(None) };
        let question = object([
            ("name", location(locked.location)),
            ("depth", JsValue::from_f64(locked.depth as f64)),
            ("method", locked.method.into()),
        ]);
        Ok(secret(&ask(passphrase, &question).await?))
    }

    #[cfg(feature = "encryption")]
    async fn derive(&self, derivation: &Derivation<'_>) -> Result<Option<Secret>> {
        let Some(derive) = &self.derive else { return Ok(None) };
        let question = object([
            ("hash", derivation.hash.into()),
            ("password", Uint8Array::from(derivation.password).into()),
            ("salt", Uint8Array::from(derivation.salt).into()),
            ("iterations", derivation.iterations.into()),
            ("length", JsValue::from_f64(derivation.len as f64)),
        ]);
        Ok(secret(&ask(derive, &question).await?))
    }
}

/// Calls a function of the page's and waits for what it gives.
#[cfg(feature = "encryption")]
async fn ask(function: &Function, question: &JsValue) -> Result<JsValue> {
    let failed = |thrown: JsValue| {
        let message = get(&thrown, "message").as_string();
        Error::InvalidArgument(message.unwrap_or_else(|| format!("{thrown:?}")))
    };
    let answer = function.call1(&JsValue::NULL, question).map_err(failed)?;
    JsFuture::from(Promise::resolve(&answer)).await.map_err(failed)
}

/// A secret of the page's: text or bytes; `None` if it gave none.
#[cfg(feature = "encryption")]
fn secret(value: &JsValue) -> Option<Secret> {
    let bytes = value.dyn_ref::<Uint8Array>().map(Uint8Array::to_vec);
    bytes.or_else(|| value.as_string().map(String::into_bytes)).map(Secret::new)
}

/// What the page is asked.
fn question(reference: &Reference<'_>) -> JsValue {
    let kind = match reference.kind {
        ReferenceKind::BackingFile => "backing-file",
        ReferenceKind::DataFile => "data-file",
    };
    object([
        ("kind", kind.into()),
        ("name", text(reference.name)),
        ("format", or_null(reference.format.map(text))),
        ("depth", JsValue::from_f64(reference.depth as f64)),
        ("from", location(reference.from)),
    ])
}

/// A location: the page's own names, so always text.
pub(super) fn location(path: &Path) -> JsValue {
    JsValue::from_str(&path.to_string_lossy())
}

fn format(value: &JsValue) -> Result<Option<Format>> {
    if value.is_undefined() || value.is_null() {
        return Ok(None);
    }
    match value.as_string().as_deref() {
        Some("qcow2") => Ok(Some(Format::Qcow2)),
        Some("raw") => Ok(Some(Format::Raw)),
        _ => Err(Error::InvalidArgument("format is neither \"qcow2\" nor \"raw\"".to_owned())),
    }
}
