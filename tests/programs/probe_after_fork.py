"""What the kernel allows is asked again in a child, which may be under a filter."""

import errno
import os

import seccomp

import aiounify

first = aiounify.features()["io_uring"].on
pid = os.fork()
if not pid:
    seccomp.refuse(seccomp.IO_URING, errno.EPERM)
    ok = not aiounify.features()["io_uring"].on
    loop = aiounify.new_event_loop()
    ok = ok and loop.backend == "epoll"
    loop.close()
    os._exit(0 if ok else 1)
_, status = os.waitpid(pid, 0)
assert status == 0
assert aiounify.features()["io_uring"].on is first
