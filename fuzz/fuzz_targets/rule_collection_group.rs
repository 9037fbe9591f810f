#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| portcullis::fuzzing::rule_collection_group(bytes));
