#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portcullis::fuzzing::network_security_group(bytes));
