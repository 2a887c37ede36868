"""One client's connection: requests in, answers out, in order, within time.

Rules:

* The way of a request that was answered before, byte for byte the same, has three steps and no
  task: look the received bytes up, drain the file changes, write.  Draining comes after the bytes
  were received, and that is what makes the answer accurate: the kernel queues a change before the
  system call that makes it returns, so a request that was sent afterwards finds it in the queue.
* A file that was sent before is sent in the same way, as far as the client takes it and it is in
  memory, with its header in front; only what has to wait is left to a task.
* Everything else is answered by a task, one at a time for a connection.  What the client sends
  meanwhile stays in the buffer, and from a size on in the kernel.
* There is no timer for each connection: once a second `check()` looks at all.
* A connection that is ended by us while the client may still be sending is first shut down
  one way and read to its end for a while (`_end`): a close with unread bytes in the kernel is a
  reset, and a reset takes the answer away from the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from time import perf_counter
from typing import TYPE_CHECKING, Any

from . import answers
from .answers import Answer, Ready
from .parsing import ChunkedBody, HeadParser, SizedBody
from .request import BadRequest, Request

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Connection"]

_READ_AHEAD = 64 * 1024  # of requests that wait for their turn
_LINGER = 2.0  # seconds in which a client may still send after the last answer
_PIECE = 256 * 1024  # where a file is read and written instead of sent by the kernel
_WARM = 1.0  # seconds for which a file that was sent is taken to be in memory
_NEVER = float("inf")


class _File:
    """What loop.sendfile() wants: an object with a descriptor."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd


class Known:
    """A request that was answered before, and may be answered the same way again."""

    __slots__ = ("ready", "request", "said")

    def __init__(self, request: Request, ready: Ready, said: tuple[str, str]) -> None:
        self.request = request
        self.ready = ready
        self.said = said  # what the access log says of it


class Connection(asyncio.Protocol):
    """The protocol of a connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: Any = None
        self._buffer = bytearray()
        self._heads = HeadParser(server.options)
        self._request: Request | None = None  # whose body is awaited
        self._body: SizedBody | ChunkedBody | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle = True  # nothing buffered, nothing being answered, room to write
        self._full: asyncio.Future[None] | bool = False  # the client does not take its answers
        self._reading = True
        self._began = False  # the buffer has the beginning of a header
        self._ending = False  # no further request is answered
        self._end_of_input = False
        self._deadline = _NEVER
        self._acked = -1.0  # not looked at yet
        self._acked_at = 0.0
        self.client = ""

    # -- what the transport calls ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if peer else ""
        self._deadline = server.now + server.options.request_timeout
        server.connections.add(self)
        server.counts.connections += 1
        count = server.clients[self.client] = server.clients.get(self.client, 0) + 1
        if server.stopping:  # accepted before, and told only now
            self._idle = False
            self._ending = True
            transport.close()
        elif count > server.options.connections_per_client:
            self._idle = False
            self._refuse(BadRequest(503, "too many connections from this address"))

    def connection_lost(self, exc: Exception | None) -> None:
        server = self._server
        server.gone(self)
        count = server.clients.pop(self.client, 1) - 1
        if count:
            server.clients[self.client] = count
        self._idle = False
        self._ending = True
        if isinstance(self._full, asyncio.Future) and not self._full.done():
            self._full.cancel()
        if self._task is not None:
            server.counts.aborted += 1
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self._idle:
            server = self._server
            known = server.known.get(data)
            if known is not None:
                ready = known.ready
                if (
                    server.drain() == ready.generation
                    and (ready.check is None or ready.check.valid)
                    and (not ready.answer.pieces or self._send_at_once(known))
                ):
                    if ready.answer.pieces:
                        return
                    counts = server.counts
                    began = 0.0 if counts.hits & 63 else perf_counter()
                    date = server.date
                    self._transport.write(ready.whole if ready.date is date else ready.at(date))
                    self._deadline = server.idle_deadline
                    counts.hits += 1
                    if began:
                        counts.took(perf_counter() - began, 64)
                    if server.log is not None:
                        server.log.hit(self.client, known)
                    return
        if self._ending:
            return  # read, so that the answer arrives
        self._buffer += data
        self._idle = False
        if self._task is None and not self._full:
            self._go_on()
        elif len(self._buffer) > _READ_AHEAD:
            self._pause()

    def eof_received(self) -> bool:
        self._end_of_input = True
        # if not, the transport closes itself when what was written is sent
        return self._task is not None and self._transport.get_extra_info("sslcontext") is None

    def pause_writing(self) -> None:
        self._full = True
        self._idle = False

    def resume_writing(self) -> None:
        full, self._full = self._full, False
        if isinstance(full, asyncio.Future):
            if not full.done():
                full.set_result(None)
        elif self._task is None and not self._ending:
            self._go_on()

    # -- reading requests --------------------------------------------------------------

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def _go_on(self) -> None:
        """Answer what is in the buffer, until something has to be waited for."""
        try:
            while self._task is None and not self._full and not self._ending:
                if not self._next():
                    break
        except BadRequest as refusal:
            self._refuse(refusal)
        if not self._reading and self._task is None and not self._full:
            self._reading = True
            self._transport.resume_reading()

    def _next(self) -> bool:
        """Take one step; False if more bytes are needed."""
        server, buffer = self._server, self._buffer
        if self._body is not None:
            if not self._body.feed(buffer):
                return self._wait()
            request = self._request
            assert request is not None
            request.body = self._body.value()
            self._body = self._request = None
            self._begin(request)
            return True
        while buffer.startswith(b"\r\n"):  # RFC 9112, 2.2
            del buffer[:2]
        if not buffer:
            if self._end_of_input or server.stopping:
                self._end()
            else:
                self._idle = True
                self._deadline = server.idle_deadline
            return False
        end = self._heads.end(buffer)
        if not end:
            if not self._began:
                self._began = True
                self._deadline = server.now + server.options.request_timeout
            return self._wait()
        self._began = False
        head = bytes(buffer[:end])
        del buffer[:end]
        self._deadline = _NEVER
        known = server.known.get(head)
        if known is not None:
            if server.still(known.ready):
                self._give(known)
                return True
            server.forget(head)
        request = self._heads.parse(head)
        if request.chunked:
            self._body = ChunkedBody(server.options.body_limit)
        elif request.length:
            self._body = SizedBody(request.length)
        if self._body is None:
            self._begin(request)
        else:
            self._request = request
            self._deadline = server.now + server.options.request_timeout
            if request.continues and not buffer:
                if not server.takes_body(request):
                    raise BadRequest(405, "only pages with post() take a body")
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _wait(self) -> bool:
        """More bytes are needed, and will they come?"""
        if self._end_of_input:
            self._transport.close()
            self._ending = True
        return False

    # -- answering ---------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        self._start(self._answer(request))

    def _start(self, work: Any) -> None:
        self._deadline = _NEVER
        self._acked_at = self._server.now
        self._task = self._server.loop.create_task(work)

    def _give(self, known: Known) -> None:
        """Answer from memory: at once, or by a task if that has to wait."""
        server = self._server
        if known.ready.answer.pieces:
            if not self._send_at_once(known):
                server.counts.hits += 1
                self._start_holding(known, None)
            return
        server.counts.hits += 1
        self._transport.write(known.ready.at(server.date))
        if server.log is not None:
            server.log.hit(self.client, known)

    def _send_at_once(self, known: Known) -> bool:
        """Send a file, and let a task send what has to wait; False if nothing was sent."""
        server, ready = self._server, known.ready
        answer, now = ready.answer, server.now
        if not server.sends_files or len(answer.pieces) > 1 or known.request.method == "HEAD":
            return False
        begin, end = answer.pieces[0]
        assert isinstance(begin, int)
        counts = server.counts
        began = 0.0 if counts.hits & 63 else perf_counter()
        sent = self._transport.try_sendfile(
            ready.at(server.date), answer.fd, begin, end - begin, now >= answer.warm_until
        )
        if sent < 0:
            return False
        counts.hits += 1
        if sent < end - begin:
            if not self._transport.is_closing():
                self._idle = False
                self._start_holding(known, begin + sent)
            return True
        if now >= answer.warm_until:
            answer.warm_until = now + _WARM
        self._deadline = server.idle_deadline
        if began:
            counts.took(perf_counter() - began, 64)
        if server.log is not None:
            server.log.hit(self.client, known)
        return True

    def _start_holding(self, known: Known, at: int | None) -> None:
        """Let a task give what is known, which begins later: the descriptor is kept from now on."""
        held = known.ready.answer.held
        assert held is not None
        held.acquire()
        self._start(self._finish(known.request, known.ready.answer, known.ready, at))
        assert self._task is not None
        self._task.add_done_callback(lambda _: held.release())

    async def _answer(self, request: Request) -> None:
        server = self._server
        began = server.loop.time()
        try:
            answer = await server.answer(request)
        except BadRequest as refusal:
            answer = answers.error(refusal.status, str(refusal))
        except asyncio.CancelledError:
            raise
        except Exception:
            server.errors.exception("%s %r", request.method, request.path)
            answer = answers.error(500, "the server failed")
        server.counts.answered(answer.status, server.loop.time() - began)
        await self._finish(request, answer, None)

    async def _finish(
        self, request: Request, answer: Answer, ready: Ready | None, at: int | None = None
    ) -> None:
        """Send an answer, and go on with the next request.

        `at`: the header was sent, and the file that is its body up to there.
        """
        server = self._server
        body = request.method != "HEAD"
        keep = request.keep_alive and not answer.close and not server.stopping
        held = answer.held if body else None
        if held is not None:
            held.acquire()
        try:
            if ready is None:
                connection = "close" if not keep else "keep-alive" * (request.version == "1.0")
                if answer.stream is not None:
                    keep = await self._stream(request, answer, keep)
                    sent = 0
                else:
                    ready = answer.ready.get((body, connection))
                    if ready is None:
                        ready = Ready(answer, body, connection)
                        if answer.lasting:
                            answer.ready[body, connection] = ready
                    if answer.lasting and keep:  # so that what is known never ends a connection
                        server.remember(request, ready)
            if ready is not None:
                pieces = answer.pieces
                if at is None:
                    await self._room()
                    self._transport.write(ready.at(server.date))
                else:
                    pieces = [(at, answer.pieces[0][1])]
                sent = answer.length if body else 0
                if body:
                    for piece in pieces:
                        if isinstance(piece, bytes):
                            self._transport.write(piece)
                        elif not await self._send(answer.fd, *piece):
                            keep = False
                            break
        except (ConnectionError, asyncio.CancelledError):
            self._task = None
            self._transport.abort()
            return
        except Exception:
            server.errors.exception("sending %r", request.path)
            self._task = None
            self._transport.abort()
            return
        finally:
            if held is not None:
                held.release()
        if server.log is not None:
            server.log.add(self.client, request, answer.status, sent)
        self._task = None
        if keep:
            self._go_on()
        else:
            self._end()

    async def _room(self) -> None:
        """Wait until the client has taken most of what was written."""
        while self._full:
            if self._full is True:
                self._full = self._server.loop.create_future()
            assert isinstance(self._full, asyncio.Future)
            await self._full

    async def _send(self, fd: int, begin: int, end: int) -> bool:
        """Send a piece of a file; False, with the connection gone, if there is less of it."""
        server = self._server
        if server.sends_files:
            file: Any = _File(fd)
            try:
                sent = await server.loop.sendfile(
                    self._transport, file, begin, end - begin, fallback=False
                )
            except asyncio.SendfileNotAvailableError as exc:
                # asyncio's word for an error before the first byte; a client that has gone is one
                if isinstance(exc.__cause__, ConnectionError):
                    raise exc.__cause__ from None
                raise
        else:
            sent = 0
            while sent < end - begin:
                size = min(_PIECE, end - begin - sent)
                data = await server.loop.run_in_executor(None, os.pread, fd, size, begin + sent)
                if not data:
                    break
                self._transport.write(data)
                sent += len(data)
                await self._room()
                if self._transport.is_closing():
                    raise ConnectionAbortedError
        if sent == end - begin:
            return True
        # the length was said; that it is not true can only be shown by breaking off
        server.errors.warning("a file shrank while it was sent to %s", self.client)
        self._transport.abort()
        return False

    async def _stream(self, request: Request, answer: Answer, keep: bool) -> bool:
        """Send parts as they come; whether the connection can be kept."""
        assert answer.stream is not None
        chunked = request.version == "1.1"
        keep = keep and chunked
        tail = (
            answer.tail
            + b"\r\nTransfer-Encoding: chunked" * chunked
            + b"\r\nConnection: close" * (not keep)
        )
        self._transport.write(answer.head + self._server.date + tail + b"\r\n\r\n")
        if request.method == "HEAD":
            return keep
        async with contextlib.aclosing(answer.stream) as parts:
            async for part in parts:
                await self._room()
                self._transport.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
        if chunked:
            self._transport.write(b"0\r\n\r\n")
        return keep

    # -- ending ------------------------------------------------------------------------

    def _refuse(self, refusal: BadRequest) -> None:
        """Answer what cannot be answered otherwise, and end the connection."""
        server = self._server
        answer = answers.error(refusal.status, str(refusal))
        server.counts.answered(refusal.status, 0.0)
        server.counts.refused += 1
        server.errors.info("%s from %s: %s", refusal.status, self.client, refusal)
        self._transport.write(Ready(answer, True, "close").at(server.date))
        if server.log is not None:
            server.log.refused(self.client, refusal.status, answer.length)
        self._end()

    def _end(self) -> None:
        """No more answers: shut down one way, then close when the client has, or soon."""
        self._ending = True
        self._idle = False
        transport = self._transport
        if self._end_of_input or transport.is_closing() or not transport.can_write_eof():
            transport.close()
            return
        self._buffer.clear()
        transport.write_eof()
        self._deadline = self._server.now + _LINGER
        if not self._reading:
            self._reading = True
            transport.resume_reading()

    def stop(self) -> None:
        """The server stops: end at once if nothing is being answered."""
        if self._task is None and (self._idle or not self._buffer) and self._body is None:
            self._ending = True
            self._idle = False
            self._transport.close()

    def abort(self) -> None:
        """End whatever happens."""
        self._transport.abort()

    def check(self, now: float) -> None:
        """Once a second: is the client in time?"""
        if self._transport.get_write_buffer_size() or self._task is not None:
            acked = self._progress()
            if acked != self._acked:
                self._acked, self._acked_at = acked, now
            elif now - self._acked_at > self._patience():
                self._server.counts.timeouts += 1
                self._server.errors.info("%s does not take its answer", self.client)
                self._transport.abort()
            return
        if now < self._deadline:
            return
        if self._ending:
            self._transport.abort()
            return
        self._server.counts.timeouts += 1
        if self._idle:
            self._ending = True
            self._idle = False
            self._transport.close()
        else:
            self._refuse(BadRequest(408, "the request took too long"))

    def _patience(self) -> float:
        """How long nothing may move: a page that is built moves nothing either."""
        options = self._server.options
        building = self._task is not None and not self._transport.get_write_buffer_size()
        return options.send_timeout + options.build_timeout * building

    def _progress(self) -> float:
        """Bytes that the client's kernel has acknowledged: tcpi_bytes_acked, Linux 4.1."""
        sock = self._transport.get_extra_info("socket")
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)
            return float(struct.unpack_from("Q", info, 120)[0])
        except (OSError, AttributeError, struct.error):
            return max(self._acked, 0.0)
