#!/usr/bin/env bash
# Every check of the repository, from a fresh clone: style, lints, licences, both builds, the tests by tier, leaks.
# It never counts as passed what it could not run.
#
#   scripts/test.sh               style, lints, the tiers fast and root
#   scripts/test.sh --tier fast   the same with one tier only (fast needs no root; root; all)
#   scripts/test.sh --all         everything, the long runs too
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$repository"
# A failed check says what is wrong; a hundred lines of its stack do not help.
export RUST_BACKTRACE=0

tiers=(fast root)
# cargo-deny takes minutes to install: it runs where it is there already, in CI and with --all.
deny=${CI:-}
while [[ $# -gt 0 ]]; do
    case $1 in
        --all) tiers=(fast root all) deny=yes ;;
        --tier)
            [[ ${2:-} =~ ^(fast|root|all)$ ]] || fail "--tier takes fast, root or all"
            tiers=("$2")
            shift
            ;;
        *) fail "unknown argument $1; see the head of $0" ;;
    esac
    shift
done

failed=() not_run=() passed_tests=0 failed_tests=0
output=$(mktemp -d)
trap 'rm -rf "$output"' EXIT

# step NAME COMMAND...: runs it, remembers a failure, goes on.
step() {
    local name=$1
    shift
    say "$name"
    "$@" || failed+=("$name")
}

cannot_run() {
    printf '\n!! NOT RUN: %s\n' "$*" >&2
    not_run+=("$*")
}

need_cargo_tool() {
    command -v "cargo-$1" >/dev/null && return
    say "installing cargo-$1 (some minutes, once)"
    CARGO_TARGET_DIR="$output/$1" cargo install --quiet --locked "cargo-$1" </dev/null
    rm -rf "${output:?}/$1"
}

licences() {
    if [[ -n $deny ]] || command -v cargo-deny >/dev/null; then
        need_cargo_tool deny && cargo deny --log-level error --workspace check bans licenses sources
    else
        cannot_run "cargo deny: not installed (cargo install --locked cargo-deny, or --all)"
    fi
}

shell_scripts() { shellcheck --external-sources .ci/run scripts/*.sh; }

# A master target is built on machines without clang and BPF: a clang that fails proves that nobody calls it.
target_without_clang() {
    mkdir -p "$output/no-clang"
    printf '#!/bin/sh\necho "clang was called" >&2\nexit 1\n' >"$output/no-clang/clang"
    chmod +x "$output/no-clang/clang"
    local options=(--locked -p redoubt-cli --no-default-features --features target)
    if cargo tree "${options[@]}" -e normal,build --prefix none | grep -E '^libbpf'; then
        echo "the target alone depends on libbpf" >&2
        return 1
    fi
    # A directory of its own: the binary of this build must not replace the complete one.
    PATH="$output/no-clang:$PATH" CLANG="$output/no-clang/clang" \
        cargo check --quiet "${options[@]}"
}

tests() {
    local tier=$1 summary status=0
    cargo nextest run --locked --workspace --profile "$tier" --no-fail-fast --color never \
        </dev/null 2>&1 | tee "$output/$tier" || status=1
    summary=$(grep -E '^ *Summary ' "$output/$tier" | tail -n 1 || true)
    passed_tests=$((passed_tests + $(count passed "$summary")))
    failed_tests=$((failed_tests + $(count failed "$summary") + $(count 'timed out' "$summary")))
    return $status
}

# count WORD SUMMARY: the number before the word in the runner's closing line; 0 where it does not say.
count() { grep -oE "[0-9]+ $1" <<<"$2" | grep -oE '^[0-9]+' || echo 0; }

leaks() {
    local left
    # Detached loop devices and killed processes may take a moment to go.
    for _ in $(seq 50); do
        left=$(new_traces "$output/before")
        [[ -n $left ]] || return 0
        sleep 0.1
    done
    printf 'left behind:\n%s\n' "$left" >&2
    return 1
}

real_disks() {
    local tier=$1
    if ! is_root; then
        cannot_run "tier $tier: needs root (BPF programs, loop devices, mounts)"
        return
    fi
    need_disk_packages
    need_bpffs
    traces >"$output/before"
    step "tests: $tier" tests "$tier"
    step "leaks: $tier" leaks
}

report() {
    say "summary"
    local line
    for line in "${not_run[@]}"; do echo "NOT RUN: $line"; done
    for line in "${failed[@]}"; do echo "FAILED: $line"; done
    echo "tests: $passed_tests passed, $failed_tests failed"
    [[ ${#failed[@]} -eq 0 && ${#not_run[@]} -eq 0 ]]
}

need_build_packages
# groff shows the manual pages, which a test reads as `man` does.
need_packages shellcheck groff-base
need_cargo_tool nextest

step "format" cargo fmt --all --check -- --files-with-diff
step "shell scripts" shell_scripts
step "bans, licences, sources" licences
step "lints" cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
step "target without clang" target_without_clang
# The same packages, features and profile as the tests, so that nothing is built twice; makes the binary, too.
step "build" cargo build --quiet --locked --workspace --bins --tests
for tier in "${tiers[@]}"; do
    if [[ $tier == fast ]]; then step "tests: fast" tests fast; else real_disks "$tier"; fi
done
report
