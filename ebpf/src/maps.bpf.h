/*
 * The maps that the programs share with each other and with user space, which finds them by name.
 */
#ifndef REDOUBT_MAPS_BPF_H
#define REDOUBT_MAPS_BPF_H

#include "kernel.bpf.h"

#include <bpf/bpf_helpers.h>

#include "record.h"

struct marks {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
};

/* The array that writes mark now, by slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, REDOUBT_SLOTS);
	__type(key, __u32);
	__array(values, struct marks);
} active SEC(".maps");

/*
 * Both arrays of a slot, in a fixed order: a write that was marked before a cut may complete
 * after it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2 * REDOUBT_SLOTS);
	__type(key, __u32);
	__array(values, struct marks);
} arrays SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, REDOUBT_SLOTS);
	__type(key, __u32);
	__type(value, struct redoubt_slot);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct redoubt_settings);
} settings SEC(".maps");

/* Which completions run on this processor just now. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REDOUBT_COMPLETIONS);
	__type(key, __u32);
	__type(value, __u32);
} running SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REDOUBT_DEVICES);
	__type(key, __u32);
	__type(value, struct redoubt_device);
} devices SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024 * 1024);
} ring SEC(".maps");

#endif
