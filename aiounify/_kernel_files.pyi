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
    def aio_ofd_lock(self, fd: int, kind: int, start: int, length: int, /) -> int: ...

ffi: FFI
lib: _Lib
