//! Building JavaScript's plain objects.

use js_sys::{Array, Object, Reflect};
use wasm_bindgen::JsValue;

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
