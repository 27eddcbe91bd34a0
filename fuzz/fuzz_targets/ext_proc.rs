//! Whatever a proxy sends to the picker, in whatever order and mode: see `drive/ext_proc.rs`.
#![no_main]

#[path = "drive/ext_proc.rs"]
mod drive;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| drive::drive(input));
