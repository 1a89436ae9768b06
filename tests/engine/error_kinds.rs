//! What an `Error` says, and what it becomes as `std::io::Error`: adapters hand it on to code that knows only that.

use std::error::Error as _;
use std::io;

use cowshed::Error;
use cowshed::format::Header;

fn storage() -> Error {
    let source = io::Error::new(io::ErrorKind::StorageFull, "disk full");
    Error::Storage { operation: "write", offset: 0x1_0000, len: 512, source }
}

#[test]
fn errors_say_what_was_asked_and_why_not() {
    let refused = Error::Refused {
        kind: "backing file",
        name: "/etc/passwd".to_owned(),
        reason: "absolute path".to_owned(),
    };
    let cases = [
        (storage(), "write of 512 bytes at 0x10000: disk full"),
        (refused, "backing file \"/etc/passwd\" refused: absolute path"),
        (
            Error::OutOfBounds { offset: 0x200, len: 512, size: 1000 },
            "request of 512 bytes at 0x200 reaches past the end of 1000 bytes",
        ),
        (Error::Closed, "image is closed"),
        (Error::ReadOnly("it is corrupt".to_owned()), "image is read-only: it is corrupt"),
        (Error::NotFound { what: "snapshot", name: "x".to_owned() }, "snapshot \"x\" not found"),
        (
            Error::LimitExceeded { what: "backing chain depth", value: 201, limit: 200 },
            "backing chain depth 201 exceeds the limit of 200",
        ),
    ];
    for (error, text) in cases {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn error_of_a_storage_is_the_source_and_comes_out_as_it_went_in() {
    let error = storage();
    assert_eq!(error.source().unwrap().to_string(), "disk full");
    let error = io::Error::from(error);
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (io::ErrorKind::StorageFull, "disk full")
    );
}

#[test]
fn corrupt_image_is_invalid_data_and_keeps_its_code() {
    let error = Header::parse(b"QFI\xfb", 4).unwrap_err();
    let error = io::Error::from(error);
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
    let Error::Corrupt(corrupt) = inner else { panic!("{inner:?}") };
    assert_eq!(corrupt.code(), "header-truncated");
}

#[test]
fn kinds_that_callers_act_on_have_kinds_of_their_own() {
    let kind = |error: Error| io::Error::from(error).kind();
    let not_qcow2 = Header::parse(b"MZ", 2).unwrap_err();
    assert_eq!(kind(not_qcow2), io::ErrorKind::Unsupported);
    let past_end = Error::OutOfBounds { offset: 0, len: 1, size: 0 };
    assert_eq!(kind(past_end), io::ErrorKind::InvalidInput);
    assert_eq!(kind(Error::Closed), io::ErrorKind::NotConnected);
    assert_eq!(kind(Error::ReadOnly(String::new())), io::ErrorKind::ReadOnlyFilesystem);
    let missing = Error::NotFound { what: "bitmap", name: String::new() };
    assert_eq!(kind(missing), io::ErrorKind::NotFound);
    let (name, reason) = (String::new(), String::new());
    let refused = Error::Refused { kind: "data file", name, reason };
    assert_eq!(kind(refused), io::ErrorKind::PermissionDenied);
}
