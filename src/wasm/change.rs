//! What changes images: `createImage`, `repairImage`, and the class's writing methods.
//!
//! Who writes has a file behind an access handle: it stays the page's to close.

use js_sys::{Function, Promise, Uint8Array};
use wasm_bindgen::prelude::*;

use super::image::Image;
use super::report::{PageObserver, check_value};
use super::value::{get, number, set};
use crate::error::{Error, Result};
use crate::format::Compression;
use crate::image::check::{CheckOptions, Repair, repair_storage};
use crate::image::{CreateOptions, ZeroMode, create};
use crate::rt::{AccessHandle, AccessStorage};

/// The handle, if `source` has a handle's methods.
pub(super) fn access_handle(source: &JsValue) -> Option<AccessHandle> {
    let has = |name| get(source, name).is_function();
    (has("getSize") && has("write")).then(|| source.clone().unchecked_into())
}

/// Makes an image in a file, in place of what is there.
///
/// See `CreateOptions` in `types.d.ts`.
#[wasm_bindgen(js_name = createImage, unchecked_return_type = "Promise<void>")]
pub fn create_image(
    #[wasm_bindgen(unchecked_param_type = "AccessHandle")] handle: JsValue,
    #[wasm_bindgen(unchecked_param_type = "CreateOptions")] options: JsValue,
    #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
) -> Promise {
    super::promise(&signal, async move {
        let storage = storage(&handle)?;
        create(&storage, None, &create_options(&options)?).await?;
        Ok(JsValue::UNDEFINED)
    })
}

/// Repairs the image in a file, which nobody has open. `what` is "leaks" or "all".
#[wasm_bindgen(js_name = repairImage, unchecked_return_type = "Promise<RepairReport>")]
pub fn repair_image(
    #[wasm_bindgen(unchecked_param_type = "AccessHandle")] handle: JsValue,
    #[wasm_bindgen(unchecked_param_type = "\"leaks\" | \"all\"")] what: String,
    #[wasm_bindgen(unchecked_param_type = "(done: number, total: number) => void")]
    on_progress: JsValue,
    #[wasm_bindgen(unchecked_param_type = "(finding: CheckFinding) => void")] on_finding: JsValue,
    #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
) -> Promise {
    super::promise(&signal, async move {
        let what = match what.as_str() {
            "leaks" => Repair::Leaks,
            "all" => Repair::All,
            _ => {
                return Err(Error::InvalidArgument(
                    "what to repair is neither \"leaks\" nor \"all\"".to_owned(),
                ));
            }
        };
        let storage = storage(&handle)?;
        let function = |value: JsValue| value.dyn_into::<Function>().ok();
        let mut observer = PageObserver::new(function(on_progress), function(on_finding));
        let options = CheckOptions::default();
        let done = repair_storage(&storage, what, &options, &mut observer).await?;
        let value = check_value(JsValue::NULL, &done.check, observer);
        set(&value, "corruptions-fixed", number(done.corruptions_fixed));
        set(&value, "leaks-fixed", number(done.leaks_fixed));
        set(&value, "gave-up", done.gave_up);
        Ok(value)
    })
}

#[wasm_bindgen]
impl Image {
    /// Writes bytes to the disk at guest `offset`.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn write(
        &self,
        offset: u64,
        bytes: Uint8Array,
        compressed: bool,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        let data = bytes.to_vec();
        self.request(&signal, move |engine| async move {
            match compressed {
                true => engine.write_compressed_at(&data, offset).await?,
                false => engine.write_at(&data, offset).await?,
            }
            Ok(JsValue::UNDEFINED)
        })
    }

    /// Makes a range of the disk read as zeros.
    #[wasm_bindgen(js_name = writeZeroes, unchecked_return_type = "Promise<void>")]
    pub fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        self.request(&signal, move |engine| async move {
            engine.write_zeroes_at(offset, length, ZeroMode::MayUnmap).await?;
            Ok(JsValue::UNDEFINED)
        })
    }

    /// Says that a range of the disk is of no more use.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn discard(
        &self,
        offset: u64,
        length: u64,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        self.request(&signal, move |engine| async move {
            engine.discard_at(offset, length).await?;
            Ok(JsValue::UNDEFINED)
        })
    }

    /// Makes durable what was written before.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn flush(
        &self,
        #[wasm_bindgen(unchecked_optional_param_type = "AbortSignal")] signal: JsValue,
    ) -> Promise {
        self.request(&signal, |engine| async move {
            engine.flush().await?;
            Ok(JsValue::UNDEFINED)
        })
    }
}

fn storage(handle: &JsValue) -> Result<AccessStorage> {
    let handle = access_handle(handle)
        .ok_or_else(|| Error::InvalidArgument("the file is no access handle".to_owned()))?;
    Ok(AccessStorage::new(handle))
}

fn create_options(given: &JsValue) -> Result<CreateOptions> {
    let invalid = |what: &str| Error::InvalidArgument(format!("{what} of the new image is wrong"));
    let size = u64::try_from(get(given, "size")).map_err(|_| invalid("the size"))?;
    let mut options = CreateOptions::new(size);
    let bytes = |name| get(given, name).as_string().map(String::into_bytes);
    options.backing_file = bytes("backingName");
    options.backing_format = bytes("backingFormat");
    if let Ok(cluster_size) = u64::try_from(get(given, "clusterSize")) {
        options.cluster_size = cluster_size;
    }
    options.lazy_refcounts = get(given, "lazyRefcounts").is_truthy();
    options.extended_l2 = get(given, "extendedL2").is_truthy();
    options.compression = match get(given, "compression").as_string().as_deref() {
        None | Some("zlib") => Compression::Deflate,
        Some("zstd") => Compression::Zstd,
        Some(_) => return Err(invalid("the compression")),
    };
    options.validate()?;
    Ok(options)
}
