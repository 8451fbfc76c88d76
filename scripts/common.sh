#!/usr/bin/env bash
# What test.sh and demo.sh share: packages, mounts, and the list of traces that must not outlive a run.
# Sourced, never run: it changes nothing by itself.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target}
export DEBIAN_FRONTEND=noninteractive
export PATH=$PATH:$HOME/.cargo/bin:/usr/local/sbin:/usr/sbin:/sbin

say() { printf '\n== %s\n' "$*"; }

fail() {
    printf '\n!! %s\n' "$*" >&2
    exit 1
}

is_root() { [[ $(id -u) -eq 0 ]]; }

is_installed() {
    [[ $(dpkg-query --show --showformat '${db:Status-Abbrev}' "$1" 2>/dev/null) == ii* ]]
}

# need_packages NAME...: installs those that are missing; asks the archive only then.
need_packages() {
    local missing=() name
    if ! command -v dpkg-query >/dev/null; then
        printf 'not a Debian system: taking it that these are installed: %s\n' "$*"
        return
    fi
    for name in "$@"; do
        is_installed "$name" || missing+=("$name")
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    is_root || fail "missing packages, install them as root: ${missing[*]}"
    say "installing ${missing[*]}"
    apt-get -qq update </dev/null
    apt-get -qq install -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

# What the build needs beside Rust: clang for the BPF programs, libelf and zlib for libbpf.
need_build_packages() {
    need_packages gcc libc6-dev make pkg-config clang llvm libelf-dev zlib1g-dev libsqlite3-dev
    command -v cargo >/dev/null || fail "cargo is missing: install Rust 1.91 or newer"
}

# What the tests and the demonstration run beside the product.
need_disk_packages() {
    need_packages util-linux mount fdisk procps e2fsprogs xfsprogs btrfs-progs fio sqlite3 jq \
        iproute2 libfaketime
}

need_bpffs() {
    mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf ||
        fail "cannot mount bpffs on /sys/fs/bpf: is BPF compiled into this kernel?"
}

# Every loop device, mount, BPF pin and directory of ours and process of this build, a line each.
traces() {
    losetup --noheadings --list --output NAME,BACK-FILE | sed 's/^/loop device: /'
    awk '{ print "mount: " $1 " on " $2 }' /proc/mounts
    { find /sys/fs/bpf -mindepth 1 -maxdepth 1 -name 'redoubt*' 2>/dev/null || true; } | sed 's/^/BPF pin: /'
    find /var/tmp -mindepth 1 -maxdepth 1 -name 'redoubt-*' | sed 's/^/directory: /'
    local process program
    for process in /proc/[0-9]*; do
        program=$(readlink "$process/exe" 2>/dev/null) || continue
        [[ $program != "$CARGO_TARGET_DIR"/* ]] || echo "process: ${process#/proc/} $program"
    done
}

# new_traces BEFORE: the traces that are not in the file BEFORE.
new_traces() { traces | sort | comm -13 <(sort "$1") -; }
