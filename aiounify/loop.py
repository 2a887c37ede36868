"""EventLoop: asyncio's contract on the native engine.

`EventLoop` is `asyncio.SelectorEventLoop` with two things put in front of it: the
native `SocketCalls` (sock_recv and its kin) and its base `Scheduler` (run loop,
call_soon and the like, readiness) as first base class, and a reactor in place of the
selector.  Whatever is not defined here or in these is asyncio's own, with asyncio's
types and errors.

What is here runs once per loop, per run or per child process.  Every private part
of asyncio that this package leans on is listed in `_asyncio_private.py`.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import signal
import socket
import sys
import threading
import weakref
from asyncio import constants, events, sslproto, trsock
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aiounify import _debug
from aiounify._asyncio_private import SelectorEventLoop
from aiounify._core.acceptor import Acceptor
from aiounify._core.datagram import DatagramTransport
from aiounify._core.epoll import EpollReactor
from aiounify._core.sock_calls import SocketCalls, is_native_socket
from aiounify._core.socket_transport import stream_at
from aiounify._core.stream import StreamTransport
from aiounify._core.uring import UringReactor
from aiounify._selector import ReactorSelector
from aiounify.backends import OPERATION_NAMES, choose_backend, explain_forced
from aiounify.children import foreign_watcher, not_reaped, watch_child
from aiounify.executor import submit
from aiounify.pipes import NativeReadPipeTransport, NativeWritePipeTransport
from aiounify.sendfile import read_and_write, send_through_transport, send_to_socket
from aiounify.streams import is_datagram_socket, is_stream_socket

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

# seconds between two tries to connect to a unix listener that has no room
_CONNECT_AGAIN = 0.01

_loops: weakref.WeakSet[EventLoop] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # Only the descriptors that the child inherited are closed: the epoll set and the
    # ring themselves are shared with the parent, who goes on using them.
    for loop in list(_loops):
        loop._after_fork()
    _loops.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


# misc: of create_task() asyncio's stubs know the keywords of one Python version only
class EventLoop(SocketCalls, SelectorEventLoop):  # type: ignore[misc]
    """An asyncio event loop for Linux, on io_uring or epoll.

    `backend` is "auto" (io_uring if a real ring can be made, else epoll), "uring" or
    "epoll"; left out, the environment variable AIOUNIFY_BACKEND is asked, then
    "auto".  A forced backend that cannot be had raises OSError with the kernel's
    errno; "auto" never fails for that reason.  ValueError for another name.

    The loop belongs to the thread that runs it; other threads use
    call_soon_threadsafe().  It must be closed.
    """

    # False: futexes are awaited as on kernels whose ring cannot
    _futexes_in_ring = True
    # with threads: whether the loop's own may wait too; None: while it is worth it
    _futexes_near: bool | None = None
    _futexes_spin = 1

    def __init__(self, backend: str | None = None) -> None:
        self._pid = os.getpid()
        self._pidfds: dict[int, int] = {}  # of children: descriptor -> pid
        self._belongings: list[Callable[[], object]] = []
        self._clocks: dict[int, Any] = {}  # see timers.py
        self._files: Any = None  # what aiounify.files keeps for this loop
        self._reactor = self._make_reactor(choose_backend(backend), forced=backend)
        self._attach(self._reactor)
        try:
            super().__init__(ReactorSelector(self))
        except BaseException:
            self._closed = True
            self._detach()
            raise
        _loops.add(self)

    def _make_reactor(self, backend: str, forced: str | None) -> UringReactor | EpollReactor:
        if backend == "uring":
            try:
                return UringReactor(self._backlog)
            except OSError as exc:
                # The probe made a small ring; this one may still be refused (ENOMEM).
                if explain_forced(forced):
                    raise
                self._fallback_reason = str(exc)
        return EpollReactor(self._backlog)

    @property
    def backend(self) -> str:
        """The kernel interface this loop waits in: "uring" or "epoll"."""
        return self._reactor.backend

    def __repr__(self) -> str:
        return (
            f"<{self.__class__.__name__} backend={self.backend} running={self.is_running()} "
            f"closed={self.is_closed()} debug={self.get_debug()}>"
        )

    def stats(self) -> dict[str, Any]:
        """Counters since the loop was made.

        `turns` and `callbacks` of the loop; `syscalls` made by the engine; `polls`
        (looks that do not wait) and `waits`, with `wait_seconds` spent in them;
        `wakeups` from other threads; `readiness_events`, `completions`; `operations`
        by kind; `inline_hits` (operations served without a trip through the wait);
        `timers_fired`; and what is pending now: `ready`, `timers_pending`, `watched`
        (watchers of descriptors).  Reading costs one dict, counting nothing that
        could be measured.
        """
        counters = self._counters()
        counters["backend"] = self.backend
        counters["operations"] = {
            OPERATION_NAMES.get(number, str(number)): n
            for number, n in counters["operations"].items()
        }
        return counters

    # -- running --------------------------------------------------------------

    def _check_closed(self) -> None:
        if self._forked:
            _debug.check_forked(self)
        super()._check_closed()

    def _check_forked(self) -> None:
        _debug.check_forked(self)

    def run_forever(self) -> None:
        """Run until stop() is called, in this thread."""
        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        wakeup = False
        try:
            self._thread_id = threading.get_ident()
            sys.set_asyncgen_hooks(
                firstiter=self._asyncgen_firstiter_hook,
                finalizer=self._asyncgen_finalizer_hook,
            )
            events._set_running_loop(self)
            wakeup = self._listen_for_signals()
            self._turns()
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)
            if wakeup and not self._signal_handlers:
                self._restore_wakeup_fd()

    def _listen_for_signals(self) -> bool:
        """Let every signal write to the self-pipe while the loop runs.

        A signal that lands between the last look at Python's flags and the wait does
        not interrupt the wait; the byte in the pipe does.  Needed also for handlers
        set with signal.signal(), among them asyncio.Runner's for Ctrl-C.
        """
        if threading.current_thread() is not threading.main_thread():
            return False
        fd = self._csock.fileno()
        previous = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
        if previous not in (-1, fd):
            # Somebody else listens; asyncio would not take it from them either.
            signal.set_wakeup_fd(previous)
            return False
        return previous == -1

    def _restore_wakeup_fd(self) -> None:
        current = signal.set_wakeup_fd(-1)
        if self._csock is None or current != self._csock.fileno():
            signal.set_wakeup_fd(current)

    def remove_signal_handler(self, sig: int) -> bool:
        """Remove a handler set with add_signal_handler(); False if there was none."""
        removed = super().remove_signal_handler(sig)
        self._signals_again(sig)
        if removed and not self._signal_handlers and self.is_running():
            self._listen_for_signals()
        return removed

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: object) -> None:
        """Call callback(*args) in the loop when the signal arrives; main thread only."""
        super().add_signal_handler(sig, callback, *args)
        self._signals_again(sig)

    def _signals_again(self, sig: int) -> None:
        """asyncio has set its own handler: who listens by aiounify.signals goes on too."""
        if "aiounify.signals" in sys.modules:
            from aiounify.signals import stand_in_front

            stand_in_front(sig)

    def close(self) -> None:
        """Close the loop: nothing scheduled runs any more, nothing can be scheduled.

        Operations in flight are cancelled and awaited first, descriptors of the loop are
        closed, the default executor is told to shut down but not waited for.  Closing
        twice is allowed; RuntimeError while the loop runs.
        """
        super().close()
        while self._pidfds:
            fd, pid = self._pidfds.popitem()
            os.close(fd)
            not_reaped(pid)
        self._close_belongings()

    def _close_with(self, close: Callable[[], object]) -> None:
        """Call close() when the loop is closed, and in a forked child when it is forgotten.

        For what belongs to a loop and is made when it is first needed.
        """
        self._belongings.append(close)

    def _close_belongings(self) -> None:
        while self._belongings:
            self._belongings.pop()()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._close_belongings()

    # -- stream transports --------------------------------------------------------

    def _ensure_fd_no_transport(self, fd: Any) -> None:
        super()._ensure_fd_no_transport(fd)
        number = fd if isinstance(fd, int) else int(fd.fileno())
        transport = stream_at(self._reactor, number)
        if transport is not None and not transport.is_closing():
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {transport!r}")

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> asyncio.Transport:
        if not is_stream_socket(sock):
            return super()._make_socket_transport(
                sock, protocol, waiter, extra=extra, server=server
            )
        self._ensure_fd_no_transport(sock)
        return StreamTransport(self, sock, protocol, waiter, extra, server)

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        if not is_datagram_socket(sock):
            made: asyncio.DatagramTransport = super()._make_datagram_transport(  # type: ignore[misc]
                sock, protocol, address, waiter, extra
            )
            return made
        self._ensure_fd_no_transport(sock)
        return DatagramTransport(self, sock, protocol, address, waiter, extra)

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        **timeouts: Any,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(rawsock)
        # arg-type: asyncio passes None to it as well, its type stubs do not
        tls = sslproto.SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,  # type: ignore[arg-type]
            server_side,
            server_hostname,
            **timeouts,
        )
        self._make_socket_transport(rawsock, tls, extra=extra, server=server)
        transport: asyncio.Transport = tls._app_transport
        return transport

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        *timeouts: Any,
        **named: Any,
    ) -> None:
        if sslcontext or not is_stream_socket(sock):
            super()._start_serving(
                protocol_factory, sock, sslcontext, server, backlog, *timeouts, **named
            )
            return

        def out_of_resources(acceptor: Acceptor, exc: OSError, first: bool) -> None:
            # The kernel goes on reporting the socket as ready, so pause for a while.
            self._remove_reader(sock.fileno())
            self.call_later(constants.ACCEPT_RETRY_DELAY, accept_again, acceptor)
            if first:
                self.call_exception_handler(
                    {
                        "message": "socket.accept() out of system resource",
                        "exception": exc,
                        "socket": trsock.TransportSocket(sock),
                    }
                )

        def accept_again(acceptor: Acceptor) -> None:
            if sock.fileno() >= 0:  # not closed meanwhile
                self._add_reader(sock.fileno(), acceptor)

        # Accepted sockets inherit it from the listening one: a system call less for each.
        asyncio.base_events._set_nodelay(sock)  # type: ignore[attr-defined]
        self._add_reader(
            sock.fileno(),
            Acceptor(self, protocol_factory, sock, server, backlog, out_of_resources),
        )

    async def _sendfile_native(self, transp: Any, file: Any, offset: int, count: int | None) -> int:
        if type(transp) is not StreamTransport:
            return await super()._sendfile_native(transp, file, offset, count)
        return await send_through_transport(self, transp, file, offset, count)

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        if not is_native_socket(sock):
            return await super()._sock_sendfile_native(sock, file, offset, count)
        return await send_to_socket(self, sock, file, offset, count)

    async def _sendfile_fallback(
        self, transp: Any, file: Any, offset: int, count: int | None
    ) -> int:
        way = functools.partial(super()._sendfile_fallback, transp)
        return await read_and_write(way, file, offset, count)

    async def _sock_sendfile_fallback(
        self, sock: socket.socket, file: Any, offset: int, count: int | None
    ) -> int:
        way = functools.partial(super()._sock_sendfile_fallback, sock)
        return await read_and_write(way, file, offset, count)

    # -- pipes --------------------------------------------------------------------

    def _make_read_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.ReadTransport:
        return NativeReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(
        self,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.WriteTransport:
        return NativeWritePipeTransport(self, pipe, protocol, waiter, extra)

    # -- sockets in the program's hands ---------------------------------------------

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        """Connect a socket; a host name is looked up first.

        Errors of the connection are raised as OSError.  Cancelling it ends the wait; the
        kernel goes on connecting.
        """
        if not is_native_socket(sock):
            await super().sock_connect(sock, address)
            return
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        if sock.family != socket.AF_UNIX:
            found = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = found[0][4]
        while True:
            try:
                sock.connect(address)
            except (BlockingIOError, InterruptedError) as exc:
                if exc.errno != errno.EAGAIN:
                    break
            else:
                return
            # A unix listener whose backlog is full: nothing tells when there is room.
            await asyncio.sleep(_CONNECT_AGAIN)
        await self._sock_connected(sock, address)

    # -- exceptional conditions -------------------------------------------------

    def add_priority(self, fd: Any, callback: Callable[..., object], *args: object) -> None:
        """Call callback(*args) in each turn in which `fd` has an exceptional condition.

        That is POLLPRI: out-of-band data on a TCP socket, a change in a cgroup or
        sysfs attribute, a pressure trigger.  `fd` is a descriptor or has fileno().
        Level-triggered, like add_reader().  PermissionError for files that cannot be
        polled; see poll(2).
        """
        self._ensure_fd_no_transport(fd)
        self._add_priority(fd, callback, *args)

    def remove_priority(self, fd: Any) -> bool:
        """Undo add_priority(); False if there was nothing to undo."""
        self._ensure_fd_no_transport(fd)
        return self._remove_priority(fd)

    # -- threads ------------------------------------------------------------------

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Run func(*args) in a thread (or what `executor` has) and await its result.

        None is the default executor, a ThreadPoolExecutor.  Cancelling the returned
        Future before a thread took the call withdraws it; later the call runs to its
        end and its result is dropped.
        """
        self._check_closed()
        if self._debug:
            self._check_callback(func, "run_in_executor")
        if executor is None:
            executor = self._default_executor
            self._check_default_executor()
            if executor is None:
                executor = ThreadPoolExecutor(thread_name_prefix="asyncio")
                self._default_executor = executor
        if isinstance(executor, ThreadPoolExecutor):
            waiter = submit(self, executor, func, args)
            if waiter is not None:
                return waiter
        return asyncio.wrap_future(executor.submit(func, *args), loop=self)

    # -- child processes ----------------------------------------------------------

    async def _make_subprocess_transport(
        self,
        protocol: Any,
        args: Any,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: Any = None,
        **kwargs: Any,
    ) -> asyncio.SubprocessTransport:
        if foreign_watcher() is not None:
            return await super()._make_subprocess_transport(
                protocol, args, shell, stdin, stdout, stderr, bufsize, extra=extra, **kwargs
            )
        waiter = self.create_future()
        unix_events: Any = asyncio.unix_events  # its type stubs lack the name
        transport = unix_events._UnixSubprocessTransport(
            self,
            protocol,
            args,
            shell,
            stdin,
            stdout,
            stderr,
            bufsize,
            waiter=waiter,
            extra=extra,
            **kwargs,
        )
        watch_child(self, transport.get_pid(), transport._process_exited)
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            await transport._wait()
            raise
        found: asyncio.SubprocessTransport = transport
        return found
