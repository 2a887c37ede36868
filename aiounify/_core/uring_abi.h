/* The kernel's io_uring interface, declared once, so that the package builds where
 * the installed kernel headers are older than the running kernel.
 * Source: include/uapi/linux/io_uring.h of Linux, io_uring_setup(2), io_uring_enter(2).
 */
#ifndef AIOUNIFY_URING_ABI_H
#define AIOUNIFY_URING_ABI_H

#include <stdint.h>

/* the same numbers on every architecture that CPython runs on, but alpha */
#define NR_io_uring_setup 425
#define NR_io_uring_enter 426
#define NR_io_uring_register 427

/* io_uring_setup flags */
enum {
    IORING_SETUP_CQSIZE = 1u << 3,
    IORING_SETUP_R_DISABLED = 1u << 6,
    IORING_SETUP_SUBMIT_ALL = 1u << 7,     /* 5.18 */
    IORING_SETUP_COOP_TASKRUN = 1u << 8,   /* 5.19 */
    IORING_SETUP_TASKRUN_FLAG = 1u << 9,   /* 5.19 */
    IORING_SETUP_SINGLE_ISSUER = 1u << 12, /* 6.0 */
    IORING_SETUP_DEFER_TASKRUN = 1u << 13, /* 6.1 */
    IORING_SETUP_NO_SQARRAY = 1u << 16,    /* 6.6 */
};

/* features */
enum {
    IORING_FEAT_SINGLE_MMAP = 1u << 0,
    IORING_FEAT_NODROP = 1u << 1,
    IORING_FEAT_EXT_ARG = 1u << 8,
    IORING_FEAT_NO_IOWAIT = 1u << 17, /* 6.15 */
};

/* io_uring_enter flags */
enum {
    IORING_ENTER_GETEVENTS = 1u << 0,
    IORING_ENTER_EXT_ARG = 1u << 3,
    IORING_ENTER_REGISTERED_RING = 1u << 4, /* 5.18 */
    IORING_ENTER_ABS_TIMER = 1u << 5,       /* 6.12 */
    IORING_ENTER_NO_IOWAIT = 1u << 7,       /* 6.15 */
};

/* io_uring_register opcodes */
enum {
    IORING_REGISTER_PROBE = 8,
    IORING_REGISTER_ENABLE_RINGS = 12,
    IORING_REGISTER_FILES2 = 13,
    IORING_REGISTER_RING_FDS = 20,
    IORING_UNREGISTER_RING_FDS = 21,
    IORING_REGISTER_PBUF_RING = 22, /* 5.19 */
};

/* flags in the submission ring */
enum {
    IORING_SQ_CQ_OVERFLOW = 1u << 1,
    IORING_SQ_TASKRUN = 1u << 2,
};

/* flags of a completion */
enum {
    IORING_CQE_F_BUFFER = 1u << 0,
    IORING_CQE_F_MORE = 1u << 1,
};

enum {
    IOSQE_FIXED_FILE = 1u << 0,
    IOSQE_IO_LINK = 1u << 2,
    IOSQE_IO_HARDLINK = 1u << 3,
    IOSQE_ASYNC = 1u << 4,
    IOSQE_BUFFER_SELECT = 1u << 5,
    IORING_CQE_BUFFER_SHIFT = 16,
    IORING_RECV_MULTISHOT = 1u << 1, /* in ioprio; 6.0 */
};

/* operations */
enum {
    IORING_OP_NOP = 0,
    IORING_OP_POLL_ADD = 6,
    IORING_OP_POLL_REMOVE = 7,
    IORING_OP_ACCEPT = 13,
    IORING_OP_ASYNC_CANCEL = 14,
    IORING_OP_READ = 22,
    IORING_OP_WRITE = 23,
    IORING_OP_STATX = 21,
    IORING_OP_OPENAT2 = 28,
    IORING_OP_SEND = 26,
    IORING_OP_RECV = 27,
    IORING_OP_SPLICE = 30,
    IORING_OP_READ_MULTISHOT = 49, /* 6.7 */
    IORING_OP_WAITID = 50,         /* 6.7 */
    IORING_OP_FUTEX_WAIT = 51,     /* 6.7 */
    IORING_OP_FUTEX_WAKE = 52,
    IORING_OP_FUTEX_WAITV = 53,
    IORING_OP_EPOLL_WAIT = 59,     /* 6.15 */
};

/* flags of IORING_OP_ASYNC_CANCEL */
enum {
    IORING_ASYNC_CANCEL_ALL = 1u << 0,
    IORING_ASYNC_CANCEL_ANY = 1u << 2,
};

struct au_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio;
    int32_t fd;
    uint64_t off;
    uint64_t addr;
    uint32_t len;
    uint32_t op_flags;
    uint64_t user_data;
    uint16_t buf_index;
    uint16_t personality;
    int32_t splice_fd_in;
    uint64_t addr3;
    uint64_t pad;
};

struct au_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags;
};

struct au_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};

struct au_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};

struct au_uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd;
    uint32_t resv[3];
    struct au_sq_offsets sq_off;
    struct au_cq_offsets cq_off;
};

struct au_timespec {
    int64_t tv_sec, tv_nsec;
};

struct au_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz, min_wait_usec;
    uint64_t ts;
};

struct au_probe_op {
    uint8_t op, resv;
    uint16_t flags;
    uint32_t resv2;
};

struct au_probe {
    uint8_t last_op, ops_len;
    uint16_t resv;
    uint32_t resv2[3];
    struct au_probe_op ops[64];
};

struct au_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t tail; /* of entry 0: the tail of the ring */
};

struct au_buf_reg {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid, flags;
    uint64_t resv[3];
};

#define IORING_RSRC_REGISTER_SPARSE 1u /* 5.19 */

struct au_rsrc_register {
    uint32_t count, flags;
    uint64_t resv2, data, tags;
};

struct au_rsrc_update {
    uint32_t offset, resv;
    uint64_t data;
};

_Static_assert(sizeof(struct au_sqe) == 64, "sqe");
_Static_assert(sizeof(struct au_cqe) == 16, "cqe");
_Static_assert(sizeof(struct au_uring_params) == 120, "params");

#endif
