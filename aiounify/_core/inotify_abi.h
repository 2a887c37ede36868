/* What the kernel calls an inotify event, a directory entry and the time of a change:
   declared here once, for the modules that read them (inotify(7), getdents(2), stat(2)). */

#ifndef AIOUNIFY_INOTIFY_ABI_H
#define AIOUNIFY_INOTIFY_ABI_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct aio_dirent {
    uint64_t d_ino;
    int64_t d_off;
    unsigned short d_reclen;
    unsigned char d_type;
    char d_name[];
};
static long aio_getdents(int fd, void *buffer, unsigned long size)
{
    return syscall(SYS_getdents64, fd, buffer, size);
}
static int64_t aio_coarse_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME_COARSE, &t);   /* what ctime is taken from */
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
#define aio_set_errno(value) (errno = (value))
static int64_t aio_ctime_ns(const struct stat *s)
{
    return (int64_t)s->st_ctim.tv_sec * 1000000000 + s->st_ctim.tv_nsec;
}

#endif
