"""Builds aiounify._kernel_fanotify: events of a whole file system, and names for its handles.

cffi in API mode.  The declarations of linux/fanotify.h are repeated here, because FAN_RENAME is
missing in the headers of most machines that have it in the kernel.  One read is parsed by one
call, into records that lead into the buffer.  Run by setup.py; not imported at run time.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    /* Where the parts of an event are in the buffer that was read: the directory, the name in it
       and what has that name; of a rename also the old directory and name.  Directories and files
       are told by handle: type and bytes of a struct file_handle.  Lengths are 0 where there is
       nothing. */
    typedef struct {
        uint64_t mask;
        uint32_t dir, dir_len, name, name_len;
        uint32_t old_dir, old_dir_len, old_name, old_name_len;
        uint32_t child, child_len;
    } au_fan_event;

    /* Linux 5.17 */
    #define FAN_RENAME ...
    #define FAN_ONDIR ...

    int au_fan_init(void);
    int au_fan_mark(int fd, uint64_t mask, int at);
    int au_fan_read(int fd, char *buffer, int size, au_fan_event *events, int room);

    /* name_to_handle_at(2) and open_by_handle_at(2), Linux 2.6.39 */
    int au_handle_of(int fd, char *handle, int room);
    int au_open_handle(int mount_fd, const char *handle, int length);
    """
)

ffibuilder.set_source(
    "aiounify._kernel_fanotify",
    r"""
    #include <errno.h>
    #include <fcntl.h>
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* linux/fanotify.h; Linux 5.9 where nothing is said */
    #undef FAN_RENAME
    #define FAN_RENAME 0x10000000 /* 5.17 */
    #undef FAN_ONDIR
    #define FAN_ONDIR 0x40000000
    #define CLASS_NOTIF 0x0
    #define CLOEXEC 0x1
    #define NONBLOCK 0x2
    #define REPORT_FID 0x200 /* 5.1 */
    #define REPORT_DIR_FID 0x400
    #define REPORT_NAME 0x800
    #define REPORT_TARGET_FID 0x1000 /* 5.17 */
    #define MARK_ADD 0x1
    #define MARK_FILESYSTEM 0x100 /* 4.20 */
    #define INFO_FID 1
    #define INFO_DFID_NAME 2
    #define INFO_OLD_DFID_NAME 10 /* 5.17 */
    #define INFO_NEW_DFID_NAME 12 /* 5.17 */

    struct metadata {
        uint32_t length;
        uint8_t version, reserved;
        uint16_t metadata_length;
        uint64_t mask;
        int32_t fd, pid;
    };
    struct info { /* a struct file_handle and a name follow */
        uint8_t type, pad;
        uint16_t length;
        int32_t fsid[2];
        uint32_t handle_bytes;
        int32_t handle_type;
    };

    typedef struct {
        uint64_t mask;
        uint32_t dir, dir_len, name, name_len;
        uint32_t old_dir, old_dir_len, old_name, old_name_len;
        uint32_t child, child_len;
    } au_fan_event;

    static int au_fan_init(void)
    {
        return syscall(SYS_fanotify_init, CLASS_NOTIF | CLOEXEC | NONBLOCK | REPORT_FID
                       | REPORT_DIR_FID | REPORT_NAME | REPORT_TARGET_FID, O_RDONLY | O_CLOEXEC);
    }

    /* The whole file system of the directory that `at` is open at. */
    static int au_fan_mark(int fd, uint64_t mask, int at)
    {
    #if UINTPTR_MAX > 0xffffffff
        return syscall(SYS_fanotify_mark, fd, MARK_ADD | MARK_FILESYSTEM, mask, at, NULL);
    #else
        union { uint64_t whole; uint32_t half[2]; } m = { .whole = mask };
        return syscall(SYS_fanotify_mark, fd, MARK_ADD | MARK_FILESYSTEM, m.half[0], m.half[1], at,
                       NULL);
    #endif
    }

    /* Read once: how many events, 0 if there are none, -1 and errno.  Every event takes at least
       the size of its metadata, so size / 24 records are room enough. */
    static int au_fan_read(int fd, char *buffer, int size, au_fan_event *events, int room)
    {
        ssize_t n;
        do
            n = read(fd, buffer, size);
        while (n < 0 && errno == EINTR);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        int count = 0;
        struct metadata m;
        struct info info;
        for (ssize_t at = 0; at + (ssize_t)sizeof(m) <= n && count < room; at += m.length) {
            memcpy(&m, buffer + at, sizeof(m));
            if (m.length < sizeof(m) || at + m.length > n)
                break;
            au_fan_event *e = &events[count++];
            memset(e, 0, sizeof(*e));
            e->mask = m.mask;
            if (m.fd >= 0) /* none is asked for */
                close(m.fd);
            ssize_t end = at + m.length;
            for (ssize_t i = at + m.metadata_length; i + (ssize_t)sizeof(info) <= end;
                 i += info.length) {
                memcpy(&info, buffer + i, sizeof(info));
                if (info.length < sizeof(info) || i + info.length > end)
                    break;
                uint32_t handle = i + offsetof(struct info, handle_type);
                uint32_t handle_len = sizeof(info.handle_type) + info.handle_bytes;
                uint32_t name = handle + handle_len;
                uint32_t after = i + info.length;
                if (name > after)
                    break;
                uint32_t name_len = strnlen(buffer + name, after - name);
                if (info.type == INFO_FID) {
                    e->child = handle;
                    e->child_len = handle_len;
                } else if (info.type == INFO_OLD_DFID_NAME) {
                    e->old_dir = handle;
                    e->old_dir_len = handle_len;
                    e->old_name = name;
                    e->old_name_len = name_len;
                } else if (info.type == INFO_DFID_NAME || info.type == INFO_NEW_DFID_NAME) {
                    e->dir = handle;
                    e->dir_len = handle_len;
                    e->name = name;
                    e->name_len = name_len;
                }
            }
        }
        return count;
    }

    struct handle {
        uint32_t bytes;
        int32_t type;
        char data[128]; /* MAX_HANDLE_SZ */
    };

    /* The key of what fd is open at; its length, or -1 and errno. */
    static int au_handle_of(int fd, char *handle, int room)
    {
        struct handle h = { .bytes = sizeof(h.data) };
        int mount;
        if (syscall(SYS_name_to_handle_at, fd, "", &h, &mount, AT_EMPTY_PATH) < 0)
            return -1;
        int length = sizeof(h.type) + h.bytes;
        if (length > room) {
            errno = EOVERFLOW;
            return -1;
        }
        memcpy(handle, &h.type, length);
        return length;
    }

    static int au_open_handle(int mount_fd, const char *handle, int length)
    {
        struct handle h = { .bytes = length - sizeof(h.type) };
        if (length < (int)sizeof(h.type) || h.bytes > sizeof(h.data)) {
            errno = EINVAL;
            return -1;
        }
        memcpy(&h.type, handle, length);
        return syscall(SYS_open_by_handle_at, mount_fd, &h, O_PATH | O_CLOEXEC);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
