"""The private parts of Python's library that this package leans on, in one place.

Each entry is looked up by `missing()`; tests/test_asyncio_private.py checks every one
for its presence and for the shape the code relies on, so that a Python that changes
one of them fails there, by name, and not in somebody's server.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from concurrent.futures import ThreadPoolExecutor

    class SelectorEventLoop(asyncio.SelectorEventLoop):
        """asyncio.SelectorEventLoop with those of its names that its type stubs leave out."""

        _csock: Any  # a socket, None once closed
        _default_executor: ThreadPoolExecutor | None
        _signal_handlers: dict[int, asyncio.Handle]

        def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None: ...
        def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None: ...
        def _check_callback(self, callback: object, method: str) -> None: ...
        def _check_closed(self) -> None: ...
        def _check_default_executor(self) -> None: ...
        def _check_running(self) -> None: ...
        def _check_thread(self) -> None: ...
        def _ensure_fd_no_transport(self, fd: object) -> None: ...
        async def _ensure_resolved(self, address: Any, **hints: Any) -> Any: ...
        def _set_coroutine_origin_tracking(self, enabled: bool) -> None: ...
        async def _make_subprocess_transport(
            self, *args: Any, **kwargs: Any
        ) -> asyncio.SubprocessTransport: ...
        def _make_socket_transport(self, *args: Any, **kwargs: Any) -> asyncio.Transport: ...
        async def _sendfile_native(self, *args: Any) -> int: ...
        async def _sendfile_fallback(self, *args: Any) -> int: ...
        async def _sock_sendfile_native(self, *args: Any) -> int: ...
        async def _sock_sendfile_fallback(self, *args: Any) -> int: ...
        def _start_serving(self, *args: Any, **kwargs: Any) -> None: ...

else:
    SelectorEventLoop = asyncio.SelectorEventLoop


class Private(NamedTuple):
    """One private name: where it is, and what it is needed for."""

    module: str
    name: str
    used_for: str
    until: tuple[int, int] | None = None  # the first Python without it, handled by the code


PRIVATE = (
    # asyncio: the loop's own attributes and methods, which `EventLoop` inherits
    Private("asyncio.base_events", "BaseEventLoop._check_closed", "every entry point"),
    Private("asyncio.base_events", "BaseEventLoop._check_running", "run_forever"),
    Private("asyncio.base_events", "BaseEventLoop._check_thread", "debug mode"),
    Private("asyncio.base_events", "BaseEventLoop._check_callback", "debug mode"),
    Private("asyncio.base_events", "BaseEventLoop._check_default_executor", "run_in_executor"),
    Private("asyncio.base_events", "BaseEventLoop._set_coroutine_origin_tracking", "run_forever"),
    Private("asyncio.base_events", "BaseEventLoop._asyncgen_firstiter_hook", "run_forever"),
    Private("asyncio.base_events", "BaseEventLoop._asyncgen_finalizer_hook", "run_forever"),
    Private("asyncio.base_events", "_format_handle", "reports of slow callbacks"),
    Private("asyncio.base_events", "logger", "reports of slow callbacks"),
    Private(
        "asyncio.selector_events",
        "BaseSelectorEventLoop._ensure_fd_no_transport",
        "add_priority, remove_priority, sock_recv and its kin",
    ),
    Private("asyncio.base_events", "BaseEventLoop._ensure_resolved", "sock_connect"),
    Private(
        "asyncio.selector_events",
        "BaseSelectorEventLoop._make_self_pipe",
        "the self-pipe (_ssock, _csock) that signals write to",
    ),
    Private("asyncio.selector_events", "BaseSelectorEventLoop._read_from_self", "signals"),
    Private("asyncio.unix_events", "_UnixSubprocessTransport", "child processes"),
    Private("asyncio.unix_events", "_UnixSelectorEventLoop._handle_signal", "signals"),
    Private("asyncio.unix_events", "_sighandler_noop", "telling handlers of add_signal_handler"),
    Private("asyncio.unix_events", "_UnixSelectorEventLoop._sock_sendfile_native", "sock_sendfile"),
    Private("asyncio.base_events", "BaseEventLoop._sock_sendfile_fallback", "sock_sendfile"),
    Private("asyncio.base_events", "BaseEventLoop._sendfile_fallback", "sendfile"),
    Private("asyncio.futures", "_set_result_unless_cancelled", "the end of asyncio.sleep()"),
    Private("asyncio.events", "_set_running_loop", "run_forever"),
    Private("asyncio.format_helpers", "_format_callback_source", "reports of exceptions"),
    Private("asyncio.format_helpers", "extract_stack", "debug mode"),
    Private("asyncio.events", "Handle._repr_info", "repr of handles"),
    Private("asyncio.events", "TimerHandle._repr_info", "repr of handles"),
    Private(
        "asyncio.unix_events", "ThreadedChildWatcher", "telling foreign child watchers", (3, 14)
    ),
    Private("asyncio.unix_events", "PidfdChildWatcher", "telling foreign child watchers", (3, 14)),
    Private("asyncio.streams", "StreamReader._wakeup_waiter", "received() of a stream"),
    Private("asyncio.streams", "StreamReader._maybe_resume_transport", "received() of a stream"),
    # concurrent.futures: ThreadCall stands in a pool's queue
    Private("concurrent.futures.thread", "_global_shutdown_lock", "run_in_executor"),
    Private("concurrent.futures.thread", "_shutdown", "run_in_executor"),
    Private(
        "concurrent.futures.thread",
        "ThreadPoolExecutor._adjust_thread_count",
        "run_in_executor",
    ),
)

# Assigned by asyncio's constructors; the native scheduler has properties in their place.
PROPERTIES = (
    "_closed",
    "_debug",
    "_ready",
    "_scheduled",
    "_stopping",
    "_task_factory",
    "_thread_id",
)

# Attributes of a StreamReader that received() uses.
READER_ATTRIBUTES = ("_buffer", "_eof", "_exception", "_paused", "_transport", "_waiter")

# Attributes that ThreadPoolExecutor's constructor sets and run_in_executor uses.
POOL_ATTRIBUTES = ("_broken", "_shutdown", "_shutdown_lock", "_work_queue")


def missing() -> list[str]:
    """The entries this Python does not have, as "module.name (needed for ...)"."""
    gone = []
    for entry in PRIVATE:
        if entry.until and sys.version_info >= entry.until:
            continue
        found: object = importlib.import_module(entry.module)
        for part in entry.name.split("."):
            found = getattr(found, part, None)
            if found is None:
                gone.append(f"{entry.module}.{entry.name} (needed for {entry.used_for})")
                break
    return gone
