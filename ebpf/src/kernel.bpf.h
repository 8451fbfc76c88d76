/*
 * The few fields of the kernel's structures that the programs read. CO-RE finds their places on
 * the running kernel; the order and size here mean nothing. One shim for each named change of the
 * kernel stands at the end.
 */
#ifndef REDOUBT_KERNEL_BPF_H
#define REDOUBT_KERNEL_BPF_H

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;

#define SECTOR_SHIFT 9
/* A bio's operation is the low byte of bi_opf (REQ_OP_MASK, unchanged since 4.10). */
#define OPERATION_MASK 0xff

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_ARRAY_OF_MAPS = 12,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_F_MMAPABLE = 1U << 10,
	BPF_F_INNER_MAP = 1U << 12,
	BPF_RB_NO_WAKEUP = 1U << 0,
	BPF_RB_FORCE_WAKEUP = 1U << 1,
	BPF_RB_AVAIL_DATA = 0,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct page {
	unsigned long flags;
};

struct bio_vec {
	struct page *bv_page;
	unsigned int bv_len;
	unsigned int bv_offset;
};

struct bvec_iter {
	__u64 bi_sector;
	unsigned int bi_size;
	unsigned int bi_idx;
	unsigned int bi_bvec_done;
};

struct gendisk {
	int major;
	int first_minor;
};

struct block_device {
	struct gendisk *bd_disk;
};

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev;
	unsigned int bi_opf;
	__u8 bi_status;
	struct bvec_iter bi_iter;
	void *bi_private;
	struct bio_vec *bi_io_vec;
	/* Only with CONFIG_BLK_INLINE_ENCRYPTION. */
	void *bi_crypt_context;
};

struct request {
	struct bio *bio;
};

/* Only its name: a tracepoint argument that nothing reads. */
struct request_queue {
	int id;
};

#pragma clang attribute pop

enum req_op {
	REQ_OP_WRITE = 1,
	REQ_OP_DISCARD = 3,
	REQ_OP_SECURE_ERASE = 5,
	REQ_OP_WRITE_ZEROES = 9,
};

/* "block: rename enum req_opf to enum req_op" (6.0). */
enum req_opf {
	REQ_OP_WRITE___opf = 1,
	REQ_OP_DISCARD___opf = 3,
	REQ_OP_SECURE_ERASE___opf = 5,
	REQ_OP_WRITE_ZEROES___opf = 9,
};

#define OPERATION(name)                                                                            \
	(bpf_core_enum_value_exists(enum req_op, name) ?                                           \
		 bpf_core_enum_value(enum req_op, name) :                                          \
		 bpf_core_enum_value(enum req_opf, name##___opf))

#endif
