"""What _kernel_fanotify_build.py declares; cffi compiles it."""

from typing import Protocol

from _cffi_backend import FFI

class _Lib(Protocol):
    FAN_RENAME: int
    FAN_ONDIR: int
    def au_fan_init(self) -> int: ...
    def au_fan_mark(self, fd: int, mask: int, at: int, /) -> int: ...
    def au_fan_read(
        self, fd: int, buffer: FFI.CData, size: int, events: FFI.CData, room: int, /
    ) -> int: ...
    def au_handle_of(self, fd: int, handle: FFI.CData, room: int, /) -> int: ...
    def au_open_handle(self, mount_fd: int, handle: bytes, length: int, /) -> int: ...

ffi: FFI
lib: _Lib
