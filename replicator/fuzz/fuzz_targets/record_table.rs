//! Records from hostile bytes, one after the other: what decodes keeps every limit and is as long
//! as it says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redoubt_log::Record;

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    while let Ok((record, used)) = Record::decode(rest) {
        assert!(used > 0 && used <= rest.len());
        assert!(record.check().is_ok());
        assert!(record.extent().is_none_or(|(disk, _)| record.disks().contains(disk)));
        rest = &rest[used..];
    }
});
