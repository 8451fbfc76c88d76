#!/usr/bin/env bash
# Runs a command under another kernel: a Debian machine in QEMU, emulated, with scratch disks, thrown away afterwards.
#
#   scripts/vm.sh [OPTION]... -- COMMAND [ARGUMENT]...
#     --kernel PACKAGE   Debian's kernel package (linux-image-amd64)
#     --add FILE         a file that the command needs; it lies in the command's directory; may be given several times
#     --disk SIZE        a scratch disk, as /dev/vdc, /dev/vdd, ...; may be given several times
#     --memory MIB       the machine's memory (2048)
#     --seconds N        ended by force after so long (600)
#
# The command runs as root, its output comes on standard output, its exit status is ours. The machine's tree is built once
# a kernel and kept below target/vm.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

kernel=linux-image-amd64 memory=2048 seconds=600 files=() disks=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --kernel) kernel=$2 && shift 2 ;;
        --add) files+=("$2") && shift 2 ;;
        --disk) disks+=("$2") && shift 2 ;;
        --memory) memory=$2 && shift 2 ;;
        --seconds) seconds=$2 && shift 2 ;;
        --) shift && break ;;
        *) fail "unknown argument $1; see the head of $0" ;;
    esac
done
[[ $# -gt 0 ]] || fail "no command: scripts/vm.sh [OPTION]... -- COMMAND [ARGUMENT]..."
is_root || fail "needs root: the machine's tree is unpacked with its owners"

machines=$CARGO_TARGET_DIR/vm
# What the tests run inside, and nothing that they do not.
inside=util-linux,mount,procps,kmod,fdisk,e2fsprogs,xfsprogs,btrfs-progs,fio,sqlite3,libelf1,zlib1g,libsqlite3-0
inside+=,dmsetup,lvm2,mdadm,nvme-cli,sg3-utils,iproute2

scratch=$(mktemp -d /var/tmp/redoubt-vm.XXXXXX)
trap 'rm -rf "$scratch"' EXIT

# The first process inside: mounts what a machine has, runs the command, says how it ended, and ends the machine.
write_init() {
    cat >"$1" <<'INIT'
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mountpoint -q /proc || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mountpoint -q /run || mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debugfs /sys/kernel/debug
mkdir -p /dev/shm /dev/pts /run/lock /run/payload
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
modprobe -a loop xfs btrfs ext4
ip link set lo up
mount -o ro /dev/vdb /run/payload
echo "redoubt-vm: begins"
cd /run/payload && bash ./command </dev/null 2>&1
echo "redoubt-vm: exit status $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
INIT
    chmod +x "$1"
}

build_tree() {
    local image=$machines/$kernel
    [[ -e $image.ready ]] && return
    need_packages mmdebstrap qemu-system-x86 e2fsprogs
    say "building a machine with $kernel (a minute or two, once)"
    mkdir -p "$machines"
    # shellcheck disable=SC2016 # the hook's own shell fills $1 in
    mmdebstrap --quiet --variant=minbase --include="$kernel,initramfs-tools,$inside" \
        --customize-hook='rm -rf "$1"/var/cache/apt "$1"/var/lib/apt/lists' \
        bookworm "$scratch/tree" /etc/apt/sources.list.d/debian.sources </dev/null
    write_init "$scratch/tree/sbin/redoubt-vm-init"
    cp "$(find "$scratch/tree/boot" -name 'vmlinuz-*' -print -quit)" "$image.kernel"
    cp "$(find "$scratch/tree/boot" -name 'initrd.img-*' -print -quit)" "$image.initrd"
    mke2fs -q -t ext4 -d "$scratch/tree" "$image.disk" 4G
    rm -rf "$scratch/tree"
    touch "$image.ready"
}

# A disk with the command and its files.
build_payload() {
    mkdir "$scratch/payload"
    [[ ${#files[@]} -eq 0 ]] || cp --reflink=auto "${files[@]}" "$scratch/payload/"
    printf '%q ' "$@" >"$scratch/payload/command"
    mke2fs -q -t ext4 -d "$scratch/payload" "$scratch/payload.disk" 2G
}

run() {
    local image=$machines/$kernel drives=() number=0 size
    drives+=(-drive "file=$image.disk,format=raw,if=virtio,snapshot=on")
    drives+=(-drive "file=$scratch/payload.disk,format=raw,if=virtio,readonly=on")
    for size in "${disks[@]}"; do
        truncate --size "$size" "$scratch/disk-$number"
        drives+=(-drive "file=$scratch/disk-$number,format=raw,if=virtio,discard=unmap")
        number=$((number + 1))
    done
    timeout --foreground "$seconds" qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m "$memory" \
        -nographic -no-reboot -nodefaults -serial stdio -net none "${drives[@]}" \
        -kernel "$image.kernel" -initrd "$image.initrd" \
        -append "console=ttyS0 quiet root=/dev/vda rw init=/sbin/redoubt-vm-init panic=-1" </dev/null
}

build_tree
build_payload "$@"
# What firmware, boot and power-off say is not the command's output.
run | tr -d '\r' | tee "$scratch/output" | sed -u '1,/^redoubt-vm: begins$/d; /^redoubt-vm: exit status/,$d' || true
status=$(sed -n 's/^redoubt-vm: exit status \([0-9]*\)$/\1/p' "$scratch/output" | tail -n 1)
[[ -n $status ]] || fail "the machine ended before its command did, or $seconds seconds were over"
exit "$status"
