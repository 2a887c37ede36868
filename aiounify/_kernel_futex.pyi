"""What _kernel_futex_build.py declares; cffi compiles it."""

from typing import Protocol

from _cffi_backend import FFI

class _Lib(Protocol):
    FX_RELAXED: int
    FX_ACQUIRE: int
    FX_RELEASE: int
    FX_ACQ_REL: int
    FX_SEQ_CST: int
    FUTEX_OP_SET: int
    FUTEX_OP_ADD: int
    FUTEX_OP_OR: int
    FUTEX_OP_ANDN: int
    FUTEX_OP_XOR: int
    FUTEX_OP_CMP_EQ: int
    FUTEX_OP_CMP_NE: int
    FUTEX_OP_CMP_LT: int
    FUTEX_OP_CMP_LE: int
    FUTEX_OP_CMP_GT: int
    FUTEX_OP_CMP_GE: int
    FUTEX2_SIZE_U32: int
    FUTEX_WAITV_MAX: int
    FUTEX_WAITERS: int
    FUTEX_OWNER_DIED: int
    FUTEX_TID_MASK: int
    def fx_load(self, word: FFI.CData, order: int, /) -> int: ...
    def fx_store(self, word: FFI.CData, value: int, order: int, /) -> None: ...
    def fx_add(self, word: FFI.CData, n: int, order: int, /) -> int: ...
    def fx_or(self, word: FFI.CData, bits: int, order: int, /) -> int: ...
    def fx_exchange(self, word: FFI.CData, value: int, order: int, /) -> int: ...
    def fx_compare_exchange(
        self, word: FFI.CData, expected: FFI.CData, value: int, success: int, failure: int, /
    ) -> int: ...
    def fx_wait_bitset(
        self, word: FFI.CData, expected: int, deadline: int, mask: int, /
    ) -> int: ...
    def fx_wake_bitset(self, word: FFI.CData, n: int, mask: int, /) -> int: ...
    def fx_cmp_requeue(
        self, word: FFI.CData, n: int, move: int, to: FFI.CData, expected: int, /
    ) -> int: ...
    def fx_wake_op(
        self, word: FFI.CData, n: int, other: FFI.CData, m: int, operation: int, /
    ) -> int: ...
    def fx_operation(self, change: int, by: int, comparison: int, with_: int, /) -> int: ...
    def fx_waitv(self, words: FFI.CData, n: int, deadline: int, /) -> int: ...
    def fx_get_robust_list(self, thread: int, head: FFI.CData, size: FFI.CData, /) -> int: ...

ffi: FFI
lib: _Lib
