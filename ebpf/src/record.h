/*
 * The layouts and numbers that the programs share with user space. Whatever changes here raises
 * REDOUBT_ABI: an agent adopts pinned programs only where they speak its own ABI. build.rs hands
 * every REDOUBT_ number to lib.rs.
 */
#ifndef REDOUBT_RECORD_H
#define REDOUBT_RECORD_H

#define REDOUBT_ABI 3
/* Protected disks of a machine: the log's frames carry one bit each. */
#define REDOUBT_SLOTS 64
/* Slots on one whole disk (itself, its partitions): bounds the loop that every bio pays for. */
#define REDOUBT_SLOTS_PER_DEVICE 8
/* Whole disks with at least one slot. */
#define REDOUBT_DEVICES 64
#define REDOUBT_GRANULE_SHIFT 12
/* The most data one record carries; a bio is as many records as it takes. */
#define REDOUBT_PIECE_BYTES 4096
/* The small size of record: a sector. */
#define REDOUBT_PIECE_SMALL_BYTES 512
/*
 * A bio above this share of the ring goes without its data, so that one bio can never fill
 * the ring for ever.
 */
#define REDOUBT_WHOLE_BIO_SHARE_SHIFT 4
/* The reader is woken whenever the fill passes a multiple of this share of the ring. */
#define REDOUBT_WAKE_SHARE_SHIFT 3

#define REDOUBT_KIND_SUBMITTED 1
#define REDOUBT_KIND_COMPLETED 2
#define REDOUBT_KIND_SPLIT 3

#define REDOUBT_OPERATION_WRITE 1
#define REDOUBT_OPERATION_ZEROES 2
#define REDOUBT_OPERATION_DISCARD 3

#define REDOUBT_MODE_BITMAP 0
#define REDOUBT_MODE_METADATA 1
#define REDOUBT_MODE_DATA 2

/* What the canary proved: that events come whole and in order; that their data is right, too. */
#define REDOUBT_PROVEN_ORDER 1
#define REDOUBT_PROVEN_DATA 2

/* The whole submission in one record, without data. */
#define REDOUBT_FLAG_NO_DATA 1
/* A page could not be copied: no more pieces of this bio come. */
#define REDOUBT_FLAG_UNREADABLE 2
/* The completion's status was not success. */
#define REDOUBT_FLAG_FAILED 4

/* The two completions that an interrupt may bring on top of each other. */
#define REDOUBT_COMPLETION_REQUEST 0
#define REDOUBT_COMPLETION_BIO 1
#define REDOUBT_COMPLETIONS 2

#define REDOUBT_RECORD_BYTES 48
#define REDOUBT_SLOT_BYTES 128
#define REDOUBT_DEVICE_BYTES 36
#define REDOUBT_SETTINGS_BYTES 56
#define REDOUBT_BASES_BYTES 16

/*
 *  0      1          2     3      4            8    16      24      32     40   48
 *  | kind | operation | slot | flags | piece_bytes | bio | offset | length | more | at | data
 */
struct redoubt_record {
	__u8 kind;
	__u8 operation;
	__u8 slot;
	__u8 flags;
	/* Bytes of data behind this header. */
	__u32 piece_bytes;
	/* The bio's address. */
	__u64 bio;
	/* Of the whole range, relative to the slot, in bytes. */
	__u64 offset;
	__u64 length;
	/* Submitted: where the piece stands within the range. Split: the bio that was queued. */
	__u64 more;
	/* CLOCK_MONOTONIC, nanoseconds. */
	__u64 at;
};

/*
 * What is known of one protected disk or partition, and what was counted for it. User space
 * writes the first half.
 */
struct redoubt_slot {
	__u64 start;
	__u64 length;
	__u64 diskseq;
	__u64 device_bytes;
	__u32 device;
	__u32 mode;
	/* Non-zero once the arrays stand: until then the programs pass it by. */
	__u32 present;
	__u32 unused;
	__u64 reserved[2];
	/* Events that found no room in the ring. */
	__u64 lost;
	/*
	 * Completions of which a granule was marked in neither array. Rises only once they are
	 * marked.
	 */
	__u64 unmarked;
	/* Submissions of which a page could not be copied. */
	__u64 unreadable;
	__u64 submissions;
	__u64 submitted_bytes;
	__u64 completions;
	__u64 more[2];
};

/* The slots of one whole disk, by its device number. */
struct redoubt_device {
	__u32 count;
	__u32 slots[REDOUBT_SLOTS_PER_DEVICE];
};

struct redoubt_settings {
	__u32 abi;
	/* Non-zero once everything is attached and pinned. */
	__u32 complete;
	/* Both zero: the pages cannot be found, so nothing is copied. */
	__u64 page_offset_base;
	__u64 vmemmap_base;
	__u64 ring_bytes;
	__u32 wake_shift;
	/* One of REDOUBT_PROVEN_, or zero. */
	__u32 proven;
	/* Completions on top of another, by REDOUBT_COMPLETION_, that were seen nevertheless. */
	__u64 taken_over[REDOUBT_COMPLETIONS];
};

/* In: the addresses of the kernel's two variables; out: their values. */
struct redoubt_bases {
	__u64 page_offset_base;
	__u64 vmemmap_base;
};

_Static_assert(sizeof(struct redoubt_record) == REDOUBT_RECORD_BYTES, "record");
_Static_assert(sizeof(struct redoubt_slot) == REDOUBT_SLOT_BYTES, "slot");
_Static_assert(sizeof(struct redoubt_device) == REDOUBT_DEVICE_BYTES, "device");
_Static_assert(sizeof(struct redoubt_settings) == REDOUBT_SETTINGS_BYTES, "settings");
_Static_assert(sizeof(struct redoubt_bases) == REDOUBT_BASES_BYTES, "bases");

#endif
