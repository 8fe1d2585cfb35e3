// SPDX-License-Identifier: GPL-2.0 OR MIT
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let target = neonsan_fuzz::targets::Target::find("client-receiver").expect("it exists");
    (target.run)(bytes);
});
