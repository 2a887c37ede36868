# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""A write and the fdatasync that makes it durable, as one request.

Why it exists: whoever promises that something is on the disk writes and then syncs.  As two awaited
operations that is two turns of the loop.  In the ring they are one submission, linked: the kernel
starts the sync when the write has succeeded.  In a thread they are one job.

Rules:

* The sync is the operation that is awaited.  It owns the write, which owns the data's buffers.
* A write that was short ends the chain, and so does one that failed: nothing is synced then, the sync's
  result is -ECANCELED, and whoever asked goes on with the rest.
* Each of the two has its own result: that of a sync which failed must not be taken for that of a
  write that may be tried again (fsync(2): the kernel forgets which pages it could not write).
* It is never cancelled: to know what is in the file, one has to wait for its end.
"""

from libc.stdint cimport int64_t, uint32_t

from aiounify._core.file_op cimport ChainPart, FileOp, set_writev
from aiounify._core.reactor cimport ECANCELED
from aiounify._core.scheduler cimport Scheduler


cdef enum:
    WRITEV = 2
    FSYNC = 3
    FSYNC_DATASYNC = 1
    WRITE = 23
    MOST = 0x7ffff000    # bytes in one call, Linux's limit


cdef class DurableWrite(FileOp):
    """Write buffers at an offset, without the first `skip` bytes, then fdatasync.

    At most 1024 buffers and 2 GiB - 4 KiB in one go.  `result` is what fdatasync gave, `written`
    what was written or a negated errno.
    """

    cdef ChainPart write
    cdef int parts
    cdef readonly int64_t length_asked

    def __init__(self, int fd, buffers, int64_t offset, int64_t skip=0):
        cdef uint32_t i, n
        FileOp.__init__(self, FSYNC, fd, 0, 0, FSYNC_DATASYNC)
        self.result = -ECANCELED
        self.write = ChainPart(WRITEV, fd, 0, offset)
        set_writev(self.write, buffers, skip, MOST)
        n = 1 if self.write.opcode == WRITE else self.write.length
        for i in range(n):
            self.length_asked += self.write.vectors[i].iov_len

    @property
    def written(self):
        return self.write.result

    @property
    def ended(self):
        """True when both have; the results are valid then."""
        return self.parts == 2

    cdef int complete(self, int result, uint32_t flags) except -1:
        self.result = result
        return self.part_ended()

    cdef int part_ended(self) except -1:
        self.parts += 1
        if self.parts == 2:
            self.deliver()
        return 0

    def execute(self):
        """Both system calls, in a thread.  Returns and keeps the result of the sync."""
        self.write.execute()
        if self.write.result == self.length_asked:
            FileOp.execute(self)
        self.parts = 2
        return self.result


def start_durable(files, DurableWrite op):
    """Begin; the future has the result of the sync, or -ECANCELED if there was none."""
    cdef Scheduler loop = <Scheduler?>files.loop
    loop._check_closed()
    waiter = loop.create_future()
    op.waiter = waiter
    if FSYNC in files.ops and op.write.opcode in files.ops:
        op.write.owner = op
        op.write.linked = op
        loop.reactor.submit(op.write)
    else:
        files.in_thread(op)
    return waiter
