//! Why a point is suspect, in words.

use crate::store::Suspicion;
use redoubt_control::units::UtcTime;

/// Of a disk of this name. Like every reason it begins with a code.
pub(super) fn reason(suspicion: &Suspicion, disk: &str) -> String {
    let Suspicion { at, bytes, ranges, offset, .. } = suspicion;
    let at = UtcTime::from_nanoseconds(at.0);
    format!(
        "verify-difference: at {at} the replica of {disk} differed in {bytes} bytes, in {ranges} \
         ranges from {offset} on"
    )
}
