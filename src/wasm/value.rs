//! Building JavaScript's plain objects, and looking into them.

use js_sys::{Array, Object, Reflect};
use wasm_bindgen::JsValue;

use crate::error::{Error, Result};

/// The largest size of a source: JavaScript's largest safe integer.
const SIZE_MAX: u64 = (1 << 53) - 1;

/// A plain object of these properties, in this order.
pub(super) fn object<const N: usize>(properties: [(&str, JsValue); N]) -> JsValue {
    object_of(&properties)
}

fn object_of(properties: &[(&str, JsValue)]) -> JsValue {
    let object = JsValue::from(Object::new());
    for (name, value) in properties {
        set_value(&object, name, value);
    }
    object
}

/// Adds a property to an object that this module made.
pub(super) fn set(object: &JsValue, name: &str, value: impl Into<JsValue>) {
    set_value(object, name, &value.into());
}

fn set_value(object: &JsValue, name: &str, value: &JsValue) {
    // It cannot fail: the object is plain and extensible.
    let _ = Reflect::set(object, &JsValue::from_str(name), value);
}

/// The property `name`, `undefined` if there is none or `object` has no properties.
pub(super) fn get(object: &JsValue, name: &str) -> JsValue {
    Reflect::get(object, &JsValue::from_str(name)).unwrap_or(JsValue::UNDEFINED)
}

/// An array of these.
pub(super) fn array(values: impl IntoIterator<Item = JsValue>) -> JsValue {
    let array = Array::new();
    values.into_iter().for_each(|value| {
        array.push(&value);
    });
    array.into()
}

/// Bytes of an image that are text as a rule. Bytes that are not UTF-8 are replaced.
pub(super) fn text(bytes: &[u8]) -> JsValue {
    JsValue::from_str(&String::from_utf8_lossy(bytes))
}

/// The value, or `null`.
pub(super) fn or_null<T: Into<JsValue>>(value: Option<T>) -> JsValue {
    value.map_or(JsValue::NULL, Into::into)
}

/// A size or an offset where `qemu-img`'s JSON has a number: exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
pub(super) fn number(value: u64) -> JsValue {
    JsValue::from_f64(value as f64)
}

/// The size of a source: a whole number that a double holds exactly.
pub(super) fn size(value: &JsValue) -> Result<u64> {
    let number = match u64::try_from(value.clone()) {
        Ok(size) if size <= SIZE_MAX => return Ok(size),
        _ => value.as_f64(),
    };
    match number {
        // OK as lossless: whole, and within the range that is checked.
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        Some(size) if size.trunc() == size && (0.0..=SIZE_MAX as f64).contains(&size) => {
            Ok(size as u64)
        }
        _ => Err(Error::InvalidArgument(
            "the size of the source is not a whole number from 0 to 2^53 - 1".to_owned(),
        )),
    }
}
