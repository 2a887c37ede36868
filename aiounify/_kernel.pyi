"""What _kernel_build.py declares; cffi compiles it."""

from typing import Protocol

from _cffi_backend import FFI

class _Lib(Protocol):
    def aio_pidfd_open(self, pid: int, flags: int, /) -> int: ...

ffi: FFI
lib: _Lib
