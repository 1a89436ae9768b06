//! What promises reject with: an `Error` with `code`, `structure` and `offset`.

use std::io;

use wasm_bindgen::JsValue;

use super::value::{object, set};
use crate::Error;
use crate::rt::Thrown;

/// The error as JavaScript's.
pub(super) fn to_js(error: Error) -> JsValue {
    let (code, structure, offset) = match &error {
        Error::Corrupt(corrupt) => (corrupt.code(), Some(corrupt.structure()), corrupt.offset()),
        Error::Unsupported(unsupported) => {
            (unsupported.code(), Some(unsupported.structure()), unsupported.offset())
        }
        Error::Storage { offset, source, .. } => (thrown_code(source), None, Some(*offset)),
        Error::Open { .. } => ("open", None, None),
        Error::Refused { .. } => ("refused", None, None),
        Error::OutOfBounds { offset, .. } => ("out-of-bounds", None, Some(*offset)),
        Error::Volume { structure, offset, .. } => ("volume", Some(*structure), Some(*offset)),
        Error::Closed => ("closed", None, None),
        Error::ReadOnly(_) => ("read-only", None, None),
        Error::Latched(_) => ("latched", None, None),
        Error::NotFound { .. } => ("not-found", None, None),
        Error::InvalidArgument(_) => ("invalid-argument", None, None),
        Error::LimitExceeded { .. } => ("limit-exceeded", None, None),
        Error::KeyRequired { .. } => ("key-required", None, None),
        Error::WrongKey => ("wrong-key", None, None),
    };
    let made = JsValue::from(js_sys::Error::new(&error.to_string()));
    set(&made, "name", "CowshedError");
    set(&made, "code", code);
    set(&made, "structure", structure);
    set(&made, "offset", offset);
    if let Error::Refused { kind, name, .. } = error {
        let reference =
            object([("kind", kind.replace(' ', "-").into()), ("name", name.as_str().into())]);
        set(&made, "reference", reference);
    }
    made
}

/// The code of what a page's reader threw, if that has one.
fn thrown_code(error: &io::Error) -> &str {
    let thrown = error.get_ref().and_then(|inner| inner.downcast_ref::<Thrown>());
    thrown.and_then(|thrown| thrown.code.as_deref()).unwrap_or("storage")
}
