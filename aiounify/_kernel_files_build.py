"""Builds aiounify._kernel_files: the kernel interface of files that is off the hot path.

cffi in API mode.  Structs and constants are declared here, since the headers that the package is
compiled with may be older than the kernel.  Run by setup.py; not imported at run time.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    /* statx(2), Linux 4.11; mount id 5.8, alignment for O_DIRECT 6.1 */
    struct statx_time {
        int64_t tv_sec;
        uint32_t tv_nsec;
        ...;
    };
    struct statx {
        uint32_t stx_mask;
        uint32_t stx_blksize;
        uint64_t stx_attributes;
        uint32_t stx_nlink;
        uint32_t stx_uid;
        uint32_t stx_gid;
        uint16_t stx_mode;
        uint64_t stx_ino;
        uint64_t stx_size;
        uint64_t stx_blocks;
        uint64_t stx_attributes_mask;
        struct statx_time stx_atime;
        struct statx_time stx_btime;
        struct statx_time stx_ctime;
        struct statx_time stx_mtime;
        uint32_t stx_rdev_major;
        uint32_t stx_rdev_minor;
        uint32_t stx_dev_major;
        uint32_t stx_dev_minor;
        uint64_t stx_mnt_id;
        uint32_t stx_dio_mem_align;
        uint32_t stx_dio_offset_align;
        ...;
    };
    #define AT_EMPTY_PATH ...
    #define AT_SYMLINK_NOFOLLOW ...
    #define STATX_BASIC 0x7ff
    #define STATX_BTIME 0x800
    #define STATX_MNT_ID 0x1000
    #define STATX_DIOALIGN 0x2000
    /* locks that belong to the open file description; fcntl(2), Linux 3.15 */
    int aio_ofd_lock(int fd, int kind, int64_t start, int64_t length);
    #define OFD_READ ...
    #define OFD_WRITE ...
    #define OFD_NONE ...
    /* whether the kernel has them; what runs per operation is in _core */
    int aio_statx(int fd, const char *path, int flags, unsigned mask, struct statx *into);
    int aio_openat2(int fd, const char *path, uint64_t flags, uint64_t mode, uint64_t resolve);
    ssize_t aio_preadv2(int fd, void *into, size_t size, int64_t offset, int flags);
    /* kernel AIO: io_submit(2) and its kin, Linux 2.6; flags of a read or write 4.13 */
    struct iocb {
        uint64_t aio_data;
        uint32_t aio_rw_flags;
        uint16_t aio_lio_opcode;
        int16_t aio_reqprio;
        uint32_t aio_fildes;
        uint64_t aio_buf;
        uint64_t aio_nbytes;
        int64_t aio_offset;
        uint32_t aio_flags;
        uint32_t aio_resfd;
        ...;
    };
    struct io_event {
        uint64_t data;
        uint64_t obj;
        int64_t res;
        int64_t res2;
    };
    #define IOCB_CMD_PREAD 0
    #define IOCB_CMD_PWRITE 1
    #define IOCB_FLAG_RESFD 1
    int aio_io_setup(unsigned entries, unsigned long *context);
    int aio_io_destroy(unsigned long context);
    int aio_io_submit(unsigned long context, long count, struct iocb **requests);
    int aio_io_getevents(unsigned long context, long at_least, long at_most,
                         struct io_event *events, int64_t timeout_ns);
    int aio_io_cancel(unsigned long context, struct iocb *request, struct io_event *event);
    #define RESOLVE_CACHED 0x20
    #define RWF_NOWAIT 0x8
    """
)

ffibuilder.set_source(
    "aiounify._kernel_files",
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef AT_EMPTY_PATH
    #define AT_EMPTY_PATH 0x1000
    #endif
    #ifndef F_OFD_SETLK
    #define F_OFD_SETLK 37
    #endif
    #define STATX_BASIC 0x7ff
    #undef STATX_BTIME
    #define STATX_BTIME 0x800
    #undef STATX_MNT_ID
    #define STATX_MNT_ID 0x1000
    #undef STATX_DIOALIGN
    #define STATX_DIOALIGN 0x2000
    #define OFD_READ F_RDLCK
    #define OFD_WRITE F_WRLCK
    #define OFD_NONE F_UNLCK

    #define statx aiounify_statx
    #define statx_time aiounify_statx_time
    struct statx_time {
        int64_t tv_sec;
        uint32_t tv_nsec;
        int32_t reserved;
    };
    struct statx {
        uint32_t stx_mask;
        uint32_t stx_blksize;
        uint64_t stx_attributes;
        uint32_t stx_nlink;
        uint32_t stx_uid;
        uint32_t stx_gid;
        uint16_t stx_mode;
        uint16_t spare0;
        uint64_t stx_ino;
        uint64_t stx_size;
        uint64_t stx_blocks;
        uint64_t stx_attributes_mask;
        struct statx_time stx_atime;
        struct statx_time stx_btime;
        struct statx_time stx_ctime;
        struct statx_time stx_mtime;
        uint32_t stx_rdev_major;
        uint32_t stx_rdev_minor;
        uint32_t stx_dev_major;
        uint32_t stx_dev_minor;
        uint64_t stx_mnt_id;
        uint32_t stx_dio_mem_align;
        uint32_t stx_dio_offset_align;
        uint64_t spare3[12];
    };

    static int aio_ofd_lock(int fd, int kind, int64_t start, int64_t length)
    {
        struct flock lock;
        memset(&lock, 0, sizeof(lock));
        lock.l_type = (short)kind;
        lock.l_whence = SEEK_SET;
        lock.l_start = start;
        lock.l_len = length;
        return fcntl(fd, F_OFD_SETLK, &lock);
    }

    #undef RESOLVE_CACHED
    #define RESOLVE_CACHED 0x20
    #undef RWF_NOWAIT
    #define RWF_NOWAIT 0x8

    /* the same number on all architectures but alpha; older headers lack it */
    #define AIO_openat2 437

    static int aio_statx(int fd, const char *path, int flags, unsigned mask, struct statx *into)
    {
    #ifdef SYS_statx
        return (int)syscall(SYS_statx, fd, path, flags, mask, into);
    #else
        errno = ENOSYS;
        return -1;
    #endif
    }

    static int aio_openat2(int fd, const char *path, uint64_t flags, uint64_t mode,
                           uint64_t resolve)
    {
        struct { uint64_t flags, mode, resolve; } how = {flags, mode, resolve};
        return (int)syscall(AIO_openat2, fd, path, &how, sizeof(how));
    }

    static ssize_t aio_preadv2(int fd, void *into, size_t size, int64_t offset, int flags)
    {
        struct iovec vector = {into, size};
        return preadv2(fd, &vector, 1, offset, flags);
    }

    #define iocb aiounify_iocb
    #define io_event aiounify_io_event
    #undef IOCB_CMD_PREAD
    #define IOCB_CMD_PREAD 0
    #undef IOCB_CMD_PWRITE
    #define IOCB_CMD_PWRITE 1
    #undef IOCB_FLAG_RESFD
    #define IOCB_FLAG_RESFD 1
    struct iocb {
        uint64_t aio_data;
    #if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        uint32_t aio_key, aio_rw_flags;
    #else
        uint32_t aio_rw_flags, aio_key;
    #endif
        uint16_t aio_lio_opcode;
        int16_t aio_reqprio;
        uint32_t aio_fildes;
        uint64_t aio_buf;
        uint64_t aio_nbytes;
        int64_t aio_offset;
        uint64_t aio_reserved2;
        uint32_t aio_flags;
        uint32_t aio_resfd;
    };
    struct io_event {
        uint64_t data;
        uint64_t obj;
        int64_t res;
        int64_t res2;
    };
    _Static_assert(sizeof(struct iocb) == 64, "iocb");
    _Static_assert(sizeof(struct io_event) == 32, "io_event");

    static int aio_io_submit(unsigned long context, long count, struct iocb **requests)
    {
        return (int)syscall(SYS_io_submit, context, count, requests);
    }

    /* timeout_ns below 0: for ever */
    static int aio_io_getevents(unsigned long context, long at_least, long at_most,
                                struct io_event *events, int64_t timeout_ns)
    {
        struct timespec timeout;
        timeout.tv_sec = timeout_ns / 1000000000;
        timeout.tv_nsec = timeout_ns % 1000000000;
        return (int)syscall(SYS_io_getevents, context, at_least, at_most, events,
                            timeout_ns < 0 ? NULL : &timeout);
    }

    static int aio_io_cancel(unsigned long context, struct iocb *request, struct io_event *event)
    {
        return (int)syscall(SYS_io_cancel, context, request, event);
    }

    static int aio_io_setup(unsigned entries, unsigned long *context)
    {
        return (int)syscall(SYS_io_setup, entries, context);
    }

    static int aio_io_destroy(unsigned long context)
    {
        return (int)syscall(SYS_io_destroy, context);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
