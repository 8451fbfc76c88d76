//! Words before a role's command: what one role alone runs below. It starts nothing itself.

use std::ffi::OsString;
use std::path::Path;

/// Runs the role's own command below `words`, the other role's as it is.
const CHOOSE: &str = r#"
role=$1; words=$2; shift 2
if [ "$2" = "$role" ]; then exec $words "$@"; fi
exec "$@"
"#;

/// A launcher that runs one subcommand of the binary below other words; none of them has a blank.
pub fn only(subcommand: &str, words: &[String]) -> Vec<OsString> {
    let launcher = ["sh", "-c", CHOOSE, "launch", subcommand, &words.join(" ")];
    launcher.iter().map(OsString::from).collect()
}

/// A launcher that moves the wall clock of one subcommand by what stands in a file, such as `+1d`,
/// and no other clock. The file is looked at again every second.
pub fn with_clock(subcommand: &str, offset: &Path) -> Vec<OsString> {
    let library = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
        .map(|directory| Path::new(directory).join("faketime/libfaketime.so.1"))
        .into_iter()
        .find(|library| library.exists());
    let library = library.unwrap_or_else(|| "libfaketime.so.1".into());
    let words = [
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME_TIMESTAMP_FILE={}", offset.display()),
        "FAKETIME_CACHE_DURATION=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "NO_FAKE_STAT=1".to_owned(),
    ];
    only(subcommand, &words)
}
