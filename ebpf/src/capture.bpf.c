// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * Watches every write of the protected disks: marks its granules first, then puts an event into
 * the ring. It decides nothing, waits for nothing and changes nothing in the kernel; what finds
 * no room is counted, and stays marked.
 *
 * Kernel addresses are scalars in every loop: a typed pointer that advances never converges in
 * the verifier.
 */
#include "kernel.bpf.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "maps.bpf.h"
#include "record.h"

/* The bpf_loop bound; a bio (at most 4 GiB) never needs as much. */
#define LOOP_LIMIT (1U << 23)
/* Bios of one request: each is at least one of its segments, which the kernel counts in 16 bits. */
#define REQUEST_BIO_LIMIT 65536U

/* One submission on its way into the ring, piece by piece. */
struct copying {
	/* The header of the next piece; `more` is how far the copy has come. */
	struct redoubt_record head;
	__u64 page_offset_base;
	__u64 vmemmap_base;
	/* Address of the bio vector after the current one. */
	__u64 vector;
	/* Address of the next byte, and how many follow it in the current vector. */
	__u64 address;
	__u64 left;
	/* Bytes of the first vector that are not the bio's. */
	__u64 skip;
	__u64 fill;
	__u32 wake_shift;
	__u32 outcome;
};

enum outcome { COPY_GOES_ON, COPY_ENDED, COPY_LOST, COPY_UNREADABLE, COPY_VECTORS_END };

struct marking {
	__u64 first;
	__u64 last;
	__u32 slot;
	/* A completion's granules must be marked already. */
	__u16 completed;
	/* One was not. */
	__u16 unmarked;
};

struct walk {
	__u64 bio;
	__u64 left;
	__u32 flags;
	__u32 ended;
};

static __always_inline __u64 operation_of(__u32 flags)
{
	__u32 operation = flags & OPERATION_MASK;

	if (operation == OPERATION(REQ_OP_WRITE))
		return REDOUBT_OPERATION_WRITE;
	if (operation == OPERATION(REQ_OP_WRITE_ZEROES))
		return REDOUBT_OPERATION_ZEROES;
	if (operation == OPERATION(REQ_OP_DISCARD) || operation == OPERATION(REQ_OP_SECURE_ERASE))
		return REDOUBT_OPERATION_DISCARD;
	return 0;
}

static __always_inline __u64 fill_of_ring(void)
{
	return bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA);
}

/*
 * Each event compares the fill before and after itself, so whoever passes a multiple of the share
 * sees it, however many processors fill the ring at once.
 */
static __always_inline __u64 wake_flags(__u64 before, __u32 shift)
{
	shift &= 63;
	return (fill_of_ring() >> shift) > (before >> shift) ? BPF_RB_FORCE_WAKEUP :
							       BPF_RB_NO_WAKEUP;
}

/*
 * Fully ordered (the result is used), so no later event can stand in the ring before the
 * loss is counted.
 */
static __always_inline __u64 count_in_order(__u64 *counter)
{
	return __sync_fetch_and_add(counter, 1);
}

/* One word of the given one of the slot's arrays. */
static __noinline __u64 marks_of(__u32 array, __u32 key)
{
	__u64 *word;
	void *map;

	map = bpf_map_lookup_elem(&arrays, &array);
	if (!map)
		return 0;
	word = bpf_map_lookup_elem(map, &key);
	return word ? *word : 0;
}

/*
 * Sets the bits of one word that lie between two granules; the number of the word counts
 * from the first's.
 */
static int mark_word(__u32 number, void *context)
{
	struct marking *marking = context;
	__u32 slot = marking->slot;
	__u64 first = marking->first, last = marking->last;
	__u64 wanted = (first >> 6) + number;
	__u32 key = wanted;
	__u64 from = wanted == first >> 6 ? first & 63 : 0;
	__u64 to = wanted == last >> 6 ? last & 63 : 63;
	__u64 mask = (~0ULL >> (63 - (to - from))) << from;
	__u64 *word;
	void *map;

	map = bpf_map_lookup_elem(&active, &slot);
	if (!map)
		return 1;
	word = bpf_map_lookup_elem(map, &key);
	if (!word)
		return 1;
	/* A set bit is not written again: hot blocks would fight for the cache line. */
	if ((*word & mask) == mask)
		return 0;
	/* What was marked before a cut stands in the other array. */
	if (marking->completed &&
	    ((marks_of(2 * slot, key) | marks_of(2 * slot + 1, key)) & mask) != mask)
		marking->unmarked = 1;
	__sync_fetch_and_or(word, mask);
	return 0;
}

static __noinline int mark(struct marking *marking)
{
	__u64 words = (marking->last >> 6) - (marking->first >> 6) + 1;

	if (words == 1)
		return mark_word(0, marking);
	bpf_loop(words < LOOP_LIMIT ? words : LOOP_LIMIT, mark_word, marking, 0);
	return 0;
}

/* Steps to the bio's next vector. */
static __noinline int next_vector(struct copying *copying)
{
	struct bio_vec *vector = (void *)copying->vector;
	__u64 page, offset, length;

	page = (__u64)BPF_CORE_READ(vector, bv_page);
	offset = BPF_CORE_READ(vector, bv_offset);
	length = BPF_CORE_READ(vector, bv_len);
	if (!page || length <= copying->skip)
		return 1;
	copying->address = copying->page_offset_base + offset + copying->skip +
			   (page - copying->vmemmap_base) / bpf_core_type_size(struct page) * 4096;
	copying->left = length - copying->skip;
	copying->skip = 0;
	copying->vector += bpf_core_type_size(struct bio_vec);
	return 0;
}

/* Puts one piece into the ring. Records have fixed sizes: the verifier wants a constant. */
#define DEFINE_PUT_PIECE(name, SIZE)                                                               \
	static __noinline int name(struct copying *copying, __u64 bytes)                           \
	{                                                                                          \
		struct {                                                                           \
			struct redoubt_record head;                                                \
			__u8 data[SIZE];                                                           \
		} *place;                                                                          \
		__u64 flags = BPF_RB_NO_WAKEUP;                                                    \
		int outcome = COPY_GOES_ON;                                                        \
                                                                                                   \
		place = bpf_ringbuf_reserve(&ring, sizeof(*place), 0);                             \
		if (!place)                                                                        \
			return COPY_LOST;                                                          \
		barrier_var(bytes);                                                                \
		if (bytes > SIZE)                                                                  \
			bytes = SIZE;                                                              \
		place->head = copying->head;                                                       \
		place->head.piece_bytes = bytes;                                                   \
		if (bpf_probe_read_kernel(place->data, bytes, (void *)copying->address)) {         \
			place->head.flags |= REDOUBT_FLAG_UNREADABLE;                              \
			outcome = COPY_UNREADABLE;                                                 \
		} else if (copying->head.more + bytes >= copying->head.length) {                   \
			outcome = COPY_ENDED;                                                      \
		}                                                                                  \
		if (outcome != COPY_GOES_ON)                                                       \
			flags = wake_flags(copying->fill, copying->wake_shift);                    \
		bpf_ringbuf_submit(place, flags);                                                  \
		return outcome;                                                                    \
	}

DEFINE_PUT_PIECE(put_small_piece, REDOUBT_PIECE_SMALL_BYTES)
DEFINE_PUT_PIECE(put_piece, REDOUBT_PIECE_BYTES)

/*
 * A piece never crosses the end of a vector; vectors span pages, which the direct map holds
 * one after the other.
 */
static int copy_piece(__u32 number, void *context)
{
	struct copying *copying = context;
	__u64 bytes = copying->head.length - copying->head.more;
	int outcome;

	if (!copying->left && next_vector(copying)) {
		copying->outcome = COPY_VECTORS_END;
		return 1;
	}
	if (bytes > copying->left)
		bytes = copying->left;
	if (bytes > REDOUBT_PIECE_BYTES)
		bytes = REDOUBT_PIECE_BYTES;
	if (bytes <= REDOUBT_PIECE_SMALL_BYTES)
		outcome = put_small_piece(copying, bytes);
	else
		outcome = put_piece(copying, bytes);
	copying->outcome = outcome;
	copying->head.more += bytes;
	copying->address += bytes;
	copying->left -= bytes;
	return outcome != COPY_GOES_ON;
}

/* Puts an event without data into the ring; false where there is no room. */
static __noinline int put_event(const struct redoubt_record *event, __u32 wake_shift)
{
	__u64 before = fill_of_ring();
	struct redoubt_record *place;

	place = bpf_ringbuf_reserve(&ring, sizeof(*place), 0);
	if (!place)
		return 0;
	*place = *event;
	bpf_ringbuf_submit(place, wake_flags(before, wake_shift));
	return 1;
}

/* Puts a submission with its data into the ring, as many records as it has pieces. */
static __noinline int put_data(const struct redoubt_record *event, __u64 bio_address,
			       const struct redoubt_settings *now)
{
	struct bio *bio = (void *)bio_address;
	struct copying copying = {
		.head = *event,
		.page_offset_base = now->page_offset_base,
		.vmemmap_base = now->vmemmap_base,
		.skip = BPF_CORE_READ(bio, bi_iter.bi_bvec_done),
		.vector = (__u64)BPF_CORE_READ(bio, bi_io_vec) +
			  (__u64)BPF_CORE_READ(bio, bi_iter.bi_idx) *
				  bpf_core_type_size(struct bio_vec),
		.fill = fill_of_ring(),
		.wake_shift = now->wake_shift,
		.outcome = COPY_LOST,
	};

	bpf_loop(LOOP_LIMIT, copy_piece, &copying, 0);
	/* The vectors ended early: nothing says so in the ring yet. */
	if (copying.outcome == COPY_VECTORS_END) {
		copying.head.flags |= REDOUBT_FLAG_UNREADABLE;
		if (put_event(&copying.head, copying.wake_shift))
			return COPY_UNREADABLE;
		return COPY_LOST;
	}
	return copying.outcome;
}

/* Whether the page is what the disk will hold: with inline encryption it is not. */
static __always_inline bool is_plain(__u64 bio_address)
{
	struct bio *bio = (void *)bio_address;

	if (!bpf_core_field_exists(bio->bi_crypt_context))
		return 1;
	return !BPF_CORE_READ(bio, bi_crypt_context);
}

static __noinline int put_submission(struct redoubt_record *event, struct redoubt_slot *slot,
				     bool whole)
{
	struct redoubt_settings *now;
	__u32 zero = 0;
	int outcome;

	now = bpf_map_lookup_elem(&settings, &zero);
	if (!now)
		return 0;
	__sync_fetch_and_add(&slot->submissions, 1);
	__sync_fetch_and_add(&slot->submitted_bytes, event->length);
	if (slot->mode == REDOUBT_MODE_DATA && event->operation == REDOUBT_OPERATION_WRITE &&
	    whole && now->page_offset_base && is_plain(event->bio) &&
	    event->length <= now->ring_bytes >> REDOUBT_WHOLE_BIO_SHARE_SHIFT) {
		outcome = put_data(event, event->bio, now);
		if (outcome == COPY_UNREADABLE)
			__sync_fetch_and_add(&slot->unreadable, 1);
		return outcome != COPY_LOST;
	}
	event->flags |= REDOUBT_FLAG_NO_DATA;
	return put_event(event, now->wake_shift);
}

static __noinline int put_completion(struct redoubt_record *event, struct redoubt_slot *slot)
{
	struct redoubt_settings *now;
	__u32 zero = 0;

	now = bpf_map_lookup_elem(&settings, &zero);
	if (!now)
		return 0;
	return put_event(event, now->wake_shift);
}

/*
 * Completions and splits of one slot, submissions too: mark first, then capture. Global: the
 * verifier takes it once, instead of once for each slot of each bio of each loop that calls it.
 */
__noinline int at_slot(__u32 index, const struct redoubt_record *seen)
{
	struct redoubt_record event;
	struct marking marking = { .slot = index };
	__u64 start, end, slot_end;
	struct redoubt_slot *slot;
	int put;

	/* Never so; the verifier knows nothing of the callers. */
	if (!seen)
		return 0;
	event = *seen;
	slot = bpf_map_lookup_elem(&slots, &index);
	if (!slot || !slot->present)
		return 0;
	slot_end = slot->start + slot->length;
	start = seen->offset > slot->start ? seen->offset : slot->start;
	end = seen->offset + seen->length < slot_end ? seen->offset + seen->length : slot_end;
	if (start >= end)
		return 0;
	event.slot = index;
	event.offset = start - slot->start;
	event.length = end - start;
	marking.first = event.offset >> REDOUBT_GRANULE_SHIFT;
	marking.last = (event.offset + event.length - 1) >> REDOUBT_GRANULE_SHIFT;
	if (seen->kind == REDOUBT_KIND_COMPLETED) {
		__sync_fetch_and_add(&slot->completions, 1);
		marking.completed = 1;
	}
	mark(&marking);
	/* Whoever sees the count sees the marks. */
	if (marking.unmarked && count_in_order(&slot->unmarked) == ~0ULL)
		return 1;
	if (slot->mode == REDOUBT_MODE_BITMAP)
		return 0;
	if (seen->kind == REDOUBT_KIND_SUBMITTED)
		put = put_submission(&event, slot, event.length == seen->length);
	else
		put = put_completion(&event, slot);
	if (!put && count_in_order(&slot->lost) == ~0ULL)
		return 1;
	return 0;
}

static __always_inline __u32 device_of(struct bio *bio)
{
	struct gendisk *disk = BPF_CORE_READ(bio, bi_bdev, bd_disk);

	return (__u32)BPF_CORE_READ(disk, major) << 20 | (__u32)BPF_CORE_READ(disk, first_minor);
}

static __always_inline void at_device(struct redoubt_device *device, struct redoubt_record *seen)
{
	__u32 i;

	seen->at = bpf_ktime_get_ns();
	for (i = 0; i < REDOUBT_SLOTS_PER_DEVICE; i++) {
		if (i >= device->count)
			break;
		at_slot(device->slots[i], seen);
	}
}

/*
 * Fills the event from the bio's current range; the device's slots, or nothing where the bio
 * is none of ours.
 */
static __noinline struct redoubt_device *look_up(__u64 bio_address, struct redoubt_record *seen)
{
	struct bio *bio = (void *)bio_address;
	__u32 device;

	seen->operation = operation_of(BPF_CORE_READ(bio, bi_opf));
	if (!seen->operation)
		return 0;
	/* An empty flush is a write of length 0 at sector 0: it changes nothing. */
	seen->length = BPF_CORE_READ(bio, bi_iter.bi_size);
	if (!seen->length)
		return 0;
	device = device_of(bio);
	seen->bio = bio_address;
	seen->offset = BPF_CORE_READ(bio, bi_iter.bi_sector) << SECTOR_SHIFT;
	return bpf_map_lookup_elem(&devices, &device);
}

/* A tracepoint's argument as a plain number. */
static __always_inline __u64 argument(const void *context, __u32 index)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, sizeof(value), context + index * sizeof(value));
	return value;
}

SEC("tp_btf/block_bio_queue")
int submitted(void *context)
{
	struct redoubt_record seen = { .kind = REDOUBT_KIND_SUBMITTED };
	struct redoubt_device *device;

	device = look_up(argument(context, 0), &seen);
	if (device)
		at_device(device, &seen);
	return 0;
}

SEC("tp_btf/block_split")
int split(void *context)
{
	struct redoubt_record seen = { .kind = REDOUBT_KIND_SPLIT };
	struct redoubt_device *device;
	struct bio *bio;

	bio = (void *)argument(context, 0);
	device = look_up((__u64)bio, &seen);
	if (!device)
		return 0;
	seen.more = (__u64)BPF_CORE_READ(bio, bi_private);
	at_device(device, &seen);
	return 0;
}

/*
 * The kernel skips a program that runs on the same processor already: an interrupt that completes
 * a write on top of another's completion would go unseen. So each completion has two programs, one
 * attached behind the other. The first says while it runs that it does; the second finds that only
 * in an interrupt on top of the first, where the first was skipped, and does its work.
 */
static __always_inline volatile __u32 *first_of(__u32 completion)
{
	return bpf_map_lookup_elem(&running, &completion);
}

/* Counted: what the first was skipped for, and the second did not take over, is missed. */
static __always_inline bool takes_over(__u32 completion)
{
	volatile __u32 *first = first_of(completion);
	struct redoubt_settings *now;
	__u32 zero = 0;

	if (!first || !*first)
		return 0;
	now = bpf_map_lookup_elem(&settings, &zero);
	if (!now)
		return 0;
	__sync_fetch_and_add(&now->taken_over[completion], 1);
	return 1;
}

static __always_inline int bio_ends(const void *context)
{
	struct redoubt_record seen = { .kind = REDOUBT_KIND_COMPLETED };
	struct redoubt_device *device;
	struct bio *bio;

	bio = (void *)argument(context, 1);
	device = look_up((__u64)bio, &seen);
	if (!device)
		return 0;
	if (BPF_CORE_READ(bio, bi_status))
		seen.flags = REDOUBT_FLAG_FAILED;
	at_device(device, &seen);
	return 0;
}

static int complete_bio(__u32 number, void *context)
{
	struct redoubt_record seen = { .kind = REDOUBT_KIND_COMPLETED };
	struct walk *walk = context;
	struct redoubt_device *device;
	__u64 bio_address = walk->bio;
	__u64 left = walk->left;
	struct bio *bio = (void *)bio_address;

	if (!bio_address || !left) {
		walk->ended = 1;
		return 1;
	}
	device = look_up(bio_address, &seen);
	if (!device) {
		walk->ended = 1;
		return 1;
	}
	if (seen.length > left)
		seen.length = left;
	seen.flags = walk->flags;
	walk->left = left - seen.length;
	walk->bio = (__u64)BPF_CORE_READ(bio, bi_next);
	at_device(device, &seen);
	return 0;
}

static __always_inline int request_ends(const void *context)
{
	struct request *request = (void *)argument(context, 0);
	struct walk walk = {
		.left = (__u32)argument(context, 2),
		.flags = (__u32)argument(context, 1) ? REDOUBT_FLAG_FAILED : 0,
	};

	/* The second completion of a flush. */
	if (!walk.left)
		return 0;
	walk.bio = (__u64)BPF_CORE_READ(request, bio);
	bpf_loop(REQUEST_BIO_LIMIT, complete_bio, &walk, 0);
	return 0;
}

#define DEFINE_COMPLETION(name, tracepoint, completion, ends)                                      \
	SEC(tracepoint)                                                                            \
	int name(void *context)                                                                    \
	{                                                                                          \
		volatile __u32 *first = first_of(completion);                                      \
                                                                                                   \
		if (!first)                                                                        \
			return 0;                                                                  \
		*first = 1;                                                                        \
		ends(context);                                                                     \
		*first = 0;                                                                        \
		return 0;                                                                          \
	}                                                                                          \
                                                                                                   \
	SEC(tracepoint)                                                                            \
	int name##_nested(void *context)                                                           \
	{                                                                                          \
		if (takes_over(completion))                                                        \
			ends(context);                                                             \
		return 0;                                                                          \
	}

/*
 * A bio that ends without a request: on bio-based disks all, elsewhere one that must not
 * wait (REQ_NOWAIT).
 */
DEFINE_COMPLETION(bio_completed, "tp_btf/block_bio_complete", REDOUBT_COMPLETION_BIO, bio_ends)

/*
 * A request ends as a whole or in part: the bios in its front do, in their order, `bytes` of
 * them.
 */
DEFINE_COMPLETION(request_completed, "tp_btf/block_rq_complete", REDOUBT_COMPLETION_REQUEST,
		  request_ends)

/* Run by user space, once, before anything is attached. */
SEC("syscall")
int read_bases(struct redoubt_bases *bases)
{
	__u64 page_offset_base = 0, vmemmap_base = 0;

	if (bpf_probe_read_kernel(&page_offset_base, sizeof(page_offset_base),
				  (void *)bases->page_offset_base))
		return 1;
	if (bpf_probe_read_kernel(&vmemmap_base, sizeof(vmemmap_base),
				  (void *)bases->vmemmap_base))
		return 1;
	bases->page_offset_base = page_offset_base;
	bases->vmemmap_base = vmemmap_base;
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
