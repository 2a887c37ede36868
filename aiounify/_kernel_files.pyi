"""What _kernel_files_build.py declares; cffi compiles it."""

from typing import Protocol

from _cffi_backend import FFI

class _Lib(Protocol):
    AT_EMPTY_PATH: int
    AT_SYMLINK_NOFOLLOW: int
    STATX_BASIC: int
    STATX_BTIME: int
    STATX_MNT_ID: int
    STATX_DIOALIGN: int
    OFD_READ: int
    OFD_WRITE: int
    OFD_NONE: int
    RESOLVE_CACHED: int
    RWF_NOWAIT: int
    IOCB_CMD_PREAD: int
    IOCB_CMD_PWRITE: int
    IOCB_FLAG_RESFD: int
    def aio_ofd_lock(self, fd: int, kind: int, start: int, length: int, /) -> int: ...
    def aio_statx(self, fd: int, path: bytes, flags: int, mask: int, into: FFI.CData, /) -> int: ...
    def aio_openat2(self, fd: int, path: bytes, flags: int, mode: int, resolve: int, /) -> int: ...
    def aio_preadv2(
        self, fd: int, into: FFI.CData, size: int, offset: int, flags: int, /
    ) -> int: ...
    def aio_io_setup(self, entries: int, context: FFI.CData, /) -> int: ...
    def aio_io_destroy(self, context: int, /) -> int: ...
    def aio_io_submit(self, context: int, count: int, requests: FFI.CData, /) -> int: ...
    def aio_io_getevents(
        self, context: int, at_least: int, at_most: int, events: FFI.CData, timeout_ns: int, /
    ) -> int: ...
    def aio_io_cancel(self, context: int, request: FFI.CData, event: FFI.CData, /) -> int: ...

ffi: FFI
lib: _Lib
