//! Any first cluster parses or is refused; what parses and encodes again parses as the same header.

#![no_main]

use cowshed::format::Header;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The length of the file decides what lies past its end: long for some inputs, short for others.
    let file_len = if data.len() % 2 == 0 { 1 << 40 } else { data.len() as u64 };
    let _ = Header::probe_len(data);
    let _ = Header::deviations(data);
    match Header::parse_for_check(data, file_len) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(header) => {
            // What a reader tolerates a writer need not: gaps between extensions, say, which do not fit when closed.
            let Ok(bytes) = header.encode() else { return };
            let again = Header::parse_for_check(&bytes, file_len).expect("what was encoded parses");
            assert_eq!(again, header);
            assert_eq!(again.encode().expect("what was encoded encodes"), bytes);
        }
    }
});
