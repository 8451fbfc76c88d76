#!/usr/bin/env bash
# Measures: installs the peers that are missing, builds product and harness to be fast, runs the harness.
# As root on Debian 12 with Rust; leaves nothing behind but packages, bpffs mounted, and the JSON file of `all`.
#
#   scripts/bench.sh                     all questions, about a quarter of an hour
#   scripts/bench.sh sync --rounds 5     one question; arguments go to the harness (--help tells them)
#   scripts/bench.sh --with-sshd ...     installs openssh-server first, which starts the system's own ssh server
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$repository"

# The peers over ssh need sshd's program alone, but its package also starts a server on port 22: only when asked for.
if [[ ${1:-} == --with-sshd ]]; then
    shift
    need_packages openssh-server
fi
[[ $# -gt 0 ]] || set -- all

is_root || fail "the bench makes loop devices and loads BPF programs: run it as root"
need_build_packages
need_disk_packages
need_packages blktrace gnutls-bin libnbd-bin lz4 nbdkit openssh-client qemu-utils rsync
need_bpffs

say "building"
cargo build --quiet --locked --release -p redoubt-cli -p redoubt-benches
# The product that was just built, whatever is named for tests.
unset REDOUBT_BIN
exec "$CARGO_TARGET_DIR/release/redoubt-benches" "$@"
