#!/usr/bin/env bash
# The whole path in about a minute: two live disks under a database and file noise, replicated write by write;
# compared byte by byte at the end, and one earlier recovery point restored. Leaves nothing behind.
# As root on Debian 12 with Rust. REDOUBT_BIN=PATH takes a binary that is built already.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$repository"

# Name, filesystem and size of each disk; XFS takes no less than 300 MiB.
names=(first second)
filesystems=(ext4 xfs)
sizes=(320M 384M)
load_seconds=12

is_root || fail "the demonstration makes loop devices and loads BPF programs: run it as root"
need_build_packages
need_disk_packages
need_bpffs

redoubt=${REDOUBT_BIN:-}
if [[ -z $redoubt ]]; then
    say "building redoubt"
    cargo build --quiet --locked --release -p redoubt-cli
    redoubt=$CARGO_TARGET_DIR/release/redoubt
fi
[[ -x $redoubt ]] || fail "$redoubt is no program"

scratch=$(mktemp -d /var/tmp/redoubt-demo-XXXXXX)
mkdir "$scratch"/{data,state,agent,target,point}
traces >"$scratch/before"
processes=()
target() { REDOUBT_RUNTIME_DIR=$scratch/target "$redoubt" "$@"; }

# Ends one of our processes, by its id, in order; by force after ten seconds.
end_process() {
    kill -TERM "$1" 2>/dev/null || return 0
    for _ in $(seq 100); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

clean_up() {
    local status=$? item left
    trap '' INT TERM
    set +e
    touch "$scratch/stop"
    if [[ $status -ne 0 ]]; then
        for item in "$scratch"/*.log; do
            [[ ! -e $item ]] || tail -n 15 "$item" >&2
        done
    fi
    for item in "${processes[@]}"; do end_process "$item"; done
    if [[ -e $scratch/agent.out ]]; then
        REDOUBT_RUNTIME_DIR=$scratch/agent "$redoubt" agent --detach --state "$scratch/state" >&2
    fi
    # By what they stand on, not by number: a number may belong to somebody else by now.
    while read -r item; do umount "$item"; done < <(awk -v ours="$scratch/" \
        'index($2, ours) == 1 { print $2 }' /proc/mounts)
    while read -r item; do losetup --detach "$item"; done < <(losetup --noheadings --list \
        --output NAME,BACK-FILE | awk -v ours="$scratch/" 'index($2, ours) == 1 { print $1 }')
    for _ in $(seq 50); do
        left=$(new_traces "$scratch/before")
        [[ -n $left ]] || break
        sleep 0.1
    done
    rm -rf "$scratch"
    if [[ -n $left ]]; then
        printf '\n!! left behind:\n%s\n' "$left" >&2
        [[ $status -ne 0 ]] || status=1
    fi
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# wait_for WHAT SECONDS COMMAND...: until the command is content.
wait_for() {
    local what=$1 end=$((SECONDS + $2))
    shift 2
    until "$@"; do
        [[ $SECONDS -lt $end ]] || fail "$what: not in time"
        sleep 0.2
    done
}

# attach FILE: a loop device over it, in $device.
attach() {
    device=$(losetup --find --show --direct-io=on "$1")
    # Else a page changed on its way to the disk, of a file removed before it is written again, differs for ever.
    echo 1 >"/sys/block/${device##*/}/queue/stable_writes"
}

# mount_disk FILESYSTEM DEVICE DIRECTORY
mount_disk() {
    mkdir -p "$3"
    if [[ $1 == xfs ]]; then mount -t xfs -o nouuid "$2" "$3"; else mount -t "$1" "$2" "$3"; fi
}

# Row n to the first database, then row n to the second; a row counts once sqlite3 has returned.
commits() {
    local number=0 name
    while [[ ! -e $scratch/stop ]]; do
        number=$((number + 1))
        for name in "${names[@]}"; do
            sqlite3 "$scratch/$name/commits.db" "pragma synchronous = full;
                insert into commits values ($number, randomblob(1 + abs(random() % 3000)));"
            echo "$number" >"$scratch/$name.new"
            mv "$scratch/$name.new" "$scratch/$name.acknowledged"
        done
    done
}

noise() {
    local number=0 name directory
    while [[ ! -e $scratch/stop ]]; do
        number=$((number + 1))
        for name in "${names[@]}"; do
            directory=$scratch/$name/noise
            head -c $((RANDOM * 8)) /dev/urandom >"$directory/new"
            if ((number % 5 == 0)); then sync "$directory/new"; fi
            mv "$directory/new" "$directory/$((number % 50))"
            if ((number % 7 == 0)); then rm -f "$directory/$((RANDOM % 50))"; fi
        done
        sleep 0.05
    done
}

acknowledged() { cat "$scratch/$1.acknowledged"; }

# One line for all disks: state, what remains, what flows; and how many points there are.
show_status() {
    local disks points
    disks=$(target status --json | jq -r '(if type == "array" then .[0] else . end) | .machines[].disks[] |
        "\(.name): \(.state), \(.bytes_remaining / 1048576 | floor) MiB to go, " +
        "\(.sent_bytes_per_second / 1048576 | floor) MiB/s"' | paste -sd '|' | sed 's/|/ | /g')
    points=$(target points --json | jq 'if type == "array" then . else .points end | length')
    printf '%3d s   %s | %s points\n' "$((SECONDS - began))" "$disks" "$points"
}

is_streaming() {
    target status --json >"$scratch/status" && jq -e --argjson disks "${#names[@]}" \
        '(if type == "array" then .[0] else . end) | [.machines[].disks[].state] |
            length == $disks and all(. == "streaming")' "$scratch/status" >/dev/null
}

say "two disks, ${filesystems[0]} and ${filesystems[1]}, with a database and file noise on each"
devices=() device=
for index in "${!names[@]}"; do
    name=${names[index]}
    truncate -s "${sizes[index]}" "$scratch/$name.img"
    attach "$scratch/$name.img"
    devices+=("$device")
    if [[ ${filesystems[index]} == ext4 ]]; then mkfs.ext4 -q "$device"; else mkfs.xfs -q "$device"; fi
    mount_disk "${filesystems[index]}" "$device" "$scratch/$name"
    mkdir "$scratch/$name/noise"
    head -c 64M /dev/urandom >"$scratch/$name/old"
    sqlite3 "$scratch/$name/commits.db" \
        "pragma journal_mode = wal; create table commits (number integer primary key, filler blob);" >/dev/null
done
sync
commits &
processes+=($!)
noise &
processes+=($!)
workload=("${processes[@]}")
for name in "${names[@]}"; do wait_for "the first commit" 20 test -e "$scratch/$name.acknowledged"; done

say "master target and agent"
began=$SECONDS
REDOUBT_RUNTIME_DIR=$scratch/target "$redoubt" master-target --data "$scratch/data" --listen 127.0.0.1:0 \
    --point-interval 2s >"$scratch/target.out" 2>"$scratch/target.log" </dev/null &
processes+=($!)
wait_for "the master target" 30 grep -q '^listening on ' "$scratch/target.out"
target invite --data "$scratch/data" | tail -n 1 >"$scratch/token"
REDOUBT_RUNTIME_DIR=$scratch/agent "$redoubt" agent --state "$scratch/state" --token-file "$scratch/token" \
    --disk "${devices[0]}=${names[0]}" --disk "${devices[1]}=${names[1]}" \
    >"$scratch/agent.out" 2>"$scratch/agent.log" </dev/null &
processes+=($!)

say "initial sync while the workload goes on"
until is_streaming; do
    [[ $((SECONDS - began)) -lt 180 ]] || fail "initial sync did not end in three minutes"
    if grep -q '"state"' "$scratch/status"; then show_status; fi
    sleep 1
done
show_status
synced=$((SECONDS - began))

say "streaming, in the order of the writes"
earlier_rows=() early=
for ((second = 1; second <= load_seconds; second++)); do
    sleep 1
    if ((second % 3 == 0)); then show_status; fi
    if ((second == load_seconds / 2)); then
        for name in "${names[@]}"; do earlier_rows+=("$(acknowledged "$name")"); done
        early=$(target mark --label demo)
        echo "        marked $early after ${earlier_rows[0]} commits"
    fi
done

say "stopping the workload, comparing byte by byte"
touch "$scratch/stop"
for process in "${workload[@]}"; do wait "$process"; done
processes=("${processes[@]:${#workload[@]}}")
rows=$(acknowledged "${names[0]}")
sync
for name in "${names[@]}"; do wait_for "unmount of $name" 20 umount "$scratch/$name"; done
target mark --label stopped --applied >/dev/null
for index in "${!names[@]}"; do
    name=${names[index]}
    replica=$(target status --json | jq -r --arg name "$name" '(if type == "array" then .[0] else . end) |
        .machines[].disks[] | select(.name == $name) | .replica_path')
    # Past the page cache: where another mount namespace still has the file system, old buffers of its journal stand there.
    dd if="${devices[index]}" bs=1M iflag=direct status=none | cmp - "$replica" || fail "the replica of $name differs"
    echo "$name: equal, $(blockdev --getsize64 "${devices[index]}") bytes"
done
points=$(target points --json | jq 'if type == "array" then . else .points end | length')

say "copying out the earlier point $early"
restored=()
for index in "${!names[@]}"; do
    name=${names[index]}
    target copy-out --disk "$name" --point "$early" --to "$scratch/restored.img" >/dev/null
    attach "$scratch/restored.img"
    mount_disk "${filesystems[index]}" "$device" "$scratch/point"
    read -r verdict count last < <(sqlite3 -separator ' ' "$scratch/point/commits.db" \
        "select (select integrity_check from pragma_integrity_check), count(*), max(number) from commits")
    umount "$scratch/point"
    if [[ ${filesystems[index]} == ext4 ]]; then
        e2fsck -fn "$device" >/dev/null 2>&1 || fail "$name: fsck found damage in the point"
    else
        xfs_repair -n "$device" >/dev/null 2>&1 || fail "$name: xfs_repair found damage in the point"
    fi
    losetup --detach "$device"
    rm "$scratch/restored.img"
    [[ $verdict == ok ]] || fail "$name: integrity check: $verdict"
    [[ $count -eq $last ]] || fail "$name: $count rows, the last is $last: there is a hole"
    [[ $last -ge ${earlier_rows[index]} ]] ||
        fail "$name: the point ends with row $last, ${earlier_rows[index]} were acknowledged before it"
    restored+=("$last")
    echo "$name: mounts, fsck and integrity check are content, rows 1 to $last without a hole"
done
[[ ${restored[1]} -le ${restored[0]} ]] || fail "the second disk is ahead of the first"

say "summary"
cat <<END
initial sync under load   $synced s, one pass
commits                   $rows on each disk, acknowledged in turn
recovery points           $points
replica disks             equal to their sources, byte by byte
restored                  a point of mid-way: rows to ${restored[*]}; promised were ${earlier_rows[*]}
END
