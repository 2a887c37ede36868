"""Load for an HTTP server: rates, and how long answers take.

    python examples/loadgen.py http://127.0.0.1:8000/ --connections 50 --duration 10
    python examples/loadgen.py http://127.0.0.1:8000/ --requests 10000 --pipeline 8 --json
    python examples/loadgen.py http://127.0.0.1:8000/ --rate 2000

Without --rate each connection asks again when it has its answer: the server sets the pace, and a
server that stops for a second is asked less in that second.  With --rate requests are due at fixed
times, whatever the server does, and a latency is counted from when its request was due: waiting for
a free connection is part of it.

Latencies are kept in buckets whose width is 1/64 of their value: memory is constant, and a
percentile is at most 1.6 % above the measured value.  At the end no request is begun; those that
are out are waited for, so that every one is either answered or counted as an error.

On a terminal the state is shown while it runs.  Exit status: 0, 1 if no answer came, 2 for
arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiounify

sys.path.insert(0, str(Path(__file__).resolve().parent))

from http_client import HttpError, Parser

if TYPE_CHECKING:
    from collections.abc import Collection

_SHOWN = (50.0, 75.0, 90.0, 99.0, 99.9)
_BARS = " ▁▂▃▄▅▆▇█"


class Histogram:
    """Microseconds, in buckets 1/64 wide."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = self.sum = self.max = 0

    @staticmethod
    def bucket(value: int) -> int:
        shift = max(0, value.bit_length() - 7)
        return (shift << 6) + (value >> shift)

    @staticmethod
    def highest(bucket: int) -> int:
        """The largest value of a bucket."""
        shift = max(0, (bucket >> 6) - 1)
        return ((bucket - (shift << 6) + 1) << shift) - 1

    def add(self, value: int) -> None:
        bucket = self.bucket(value)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self.count += 1
        self.sum += value
        self.max = max(self.max, value)

    def percentile(self, share: float) -> int:
        """A value that so many per cent do not exceed; 0 if there is none."""
        wanted, seen = share / 100 * self.count, 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return min(self.highest(bucket), self.max)
        return 0


def _columns() -> int:
    """Of the terminal, which may be made wider or narrower meanwhile; 80 if it does not say."""
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80


class Connection(asyncio.Protocol):
    """Asks as long as the run has requests for it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.out: deque[float] = deque()  # when each request that is out was due
        self.parser = Parser()
        self.transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = run.loop.create_future()
        self.last = False  # the server said that it closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.fill()

    def fill(self) -> None:
        """Send what is due, in one write, as far as the depth allows."""
        run, first = self.run, len(self.out)
        if self.transport is None or self.last:
            return
        while len(self.out) < run.depth:
            due = run.next_due(self)
            if due is None:
                break
            self.out.append(due)
        if len(self.out) > first:
            self.transport.write(run.request * (len(self.out) - first))
        elif not self.out and run.ended:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        run = self.run
        run.bytes += len(data)
        try:
            for response in self.parser.feed(data, head=run.head):
                if not self.out:
                    raise HttpError("an answer without a request")
                self.took(response.status)
                if not response.keep_alive:
                    self.last = True
                    break
        except HttpError as exc:
            self.fail("protocol", str(exc))
            return
        if self.last:
            self.fail("lost")
        else:
            self.fill()

    def took(self, status: int) -> None:
        now = self.run.loop.time()
        self.run.histogram.add(max(0, round((now - self.out.popleft()) * 1e6)))
        self.run.statuses[status] += 1

    def fail(self, kind: str, what: str = "") -> None:
        """Whatever is out will not be answered."""
        self.run.errors[kind] += len(self.out)
        self.out.clear()
        self.last = True
        if what:
            self.run.said.setdefault(kind, what)
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.run.idle.pop(self, None)
        if self.out:
            with contextlib.suppress(HttpError):
                response = self.parser.end() if exc is None else None
                if response is not None:
                    self.took(response.status)
            self.fail("lost")
        self.transport = None
        if not self.closed.done():
            self.closed.set_result(None)


class Run:
    """One measurement."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.loop = asyncio.get_running_loop()
        self.options = options
        url = urlsplit(options.url)
        self.host, self.port = url.hostname or "", url.port or 80
        self.depth: int = options.pipeline
        self.head = options.method == "HEAD"
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        fields = "".join(f"{line}\r\n" for line in options.header)
        self.request = (
            f"{options.method} {path} HTTP/1.1\r\nHost: {url.netloc.rpartition('@')[2]}\r\n"
            f"{fields}\r\n"
        ).encode()
        self.histogram = Histogram()
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.said: dict[str, str] = {}
        self.bytes = 0
        self.begun = 0  # requests
        self.ended = False
        # Connections with room, in the order in which they began to wait (a dict keeps it).
        self.idle: dict[Connection, None] = {}
        self.start = self.stop = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._over = asyncio.Event()

    def next_due(self, connection: Connection) -> float | None:
        """When the next request is (was) due; None if the connection has to wait."""
        if self.ended:
            return None
        if self.options.requests is not None and self.begun >= self.options.requests:
            self.end()
            return None
        now = self.loop.time()
        if self.options.rate is None:
            self.begun += 1
            return now
        due = self.start + self.begun / self.options.rate
        if due > now:
            self.idle[connection] = None
            if self._timer is None:
                self._timer = self.loop.call_at(due, self._tick)
            return None
        self.begun += 1
        return due

    def _tick(self) -> None:
        self._timer = None
        idle, self.idle = self.idle, {}
        for connection in idle:
            connection.fill()
            if self._timer is not None:  # nothing is due any more; the rest wait as they did
                self.idle = {c: None for c in idle if c is not connection} | self.idle
                break

    def end(self) -> None:
        """Begin no more requests."""
        if not self.ended:
            self.ended = True
            self._over.set()
            if self._timer is not None:
                self._timer.cancel()
            for connection in list(self.idle):
                self.loop.call_soon(connection.fill)

    async def _keep(self, live: set[Connection]) -> None:
        """One connection, made again when it is lost."""
        while not self.ended:
            try:
                async with asyncio.timeout(self.options.timeout):
                    _, connection = await self.loop.create_connection(
                        lambda: Connection(self), self.host, self.port
                    )
            except OSError as exc:
                self.errors["connect"] += 1
                self.said.setdefault("connect", str(exc) or "time-out")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), 0.1)
                continue
            live.add(connection)
            try:
                await connection.closed
            finally:
                live.discard(connection)
                if connection.transport is not None:
                    connection.transport.abort()
                    await connection.closed

    async def _watch(self, live: set[Connection]) -> None:
        """What is out for too long is given up; the terminal is kept up to date."""
        shown, rates, before = (
            sys.stderr.isatty() and not self.options.quiet,
            deque[int](maxlen=40),
            0,
        )
        while True:
            await asyncio.sleep(min(0.25, self.options.timeout / 4))
            now = self.loop.time()
            for connection in list(live):
                if connection.out and now - connection.out[0] > self.options.timeout:
                    connection.fail("timeout")
            if shown:
                rates.append(self.histogram.count - before)
                before = self.histogram.count
                view = self.view(now, rates, _columns())
                print(f"\r\x1b[K{view}", end="", file=sys.stderr, flush=True)

    def view(self, now: float, rates: Collection[int], columns: int) -> str:
        """One line of the terminal, with as many of the last rates as it has room for.

        One that is longer would wrap, and only its last row be cleared for the next.
        """
        top = max(rates, default=0) or 1
        line = self.line(now)[: columns - 1]
        room = columns - 1 - len(line) - 2
        bars = "".join(_BARS[8 * n // top] for n in rates)
        return f"{line}  {bars[-room:]}" if room > 0 else line

    def line(self, now: float) -> str:
        h, seconds = self.histogram, max(now - self.start, 1e-9)
        return (
            f"{seconds:6.1f} s  {h.count} answers  {h.count / seconds:.0f}/s  "
            f"p50 {h.percentile(50) / 1e3:.2f} ms  p99 {h.percentile(99) / 1e3:.2f} ms  "
            f"{sum(self.errors.values())} errors"
        )

    async def measure(self) -> None:
        self.start = self.loop.time()
        live: set[Connection] = set()
        watch = asyncio.create_task(self._watch(live))
        end = None
        if self.options.duration is not None:
            end = self.loop.call_later(self.options.duration, self.end)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.options.connections):
                    group.create_task(self._keep(live))
        finally:
            self.stop = self.loop.time()
            watch.cancel()
            if end is not None:
                end.cancel()
            await asyncio.wait([watch])
            if sys.stderr.isatty() and not self.options.quiet:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def result(self) -> dict[str, object]:
        h, seconds = self.histogram, self.stop - self.start
        return {
            "seconds": seconds,
            "requests": self.begun,
            "answers": h.count,
            "bytes": self.bytes,
            "rate": h.count / seconds,
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "errors": dict(self.errors),
            "latency_us": {
                "mean": h.sum / h.count if h.count else 0,
                "max": h.max,
                **{f"p{share:g}": h.percentile(share) for share in _SHOWN},
            },
        }

    def text(self) -> str:
        h, seconds = self.histogram, self.stop - self.start
        lines = [
            f"{h.count} answers in {seconds:.2f} s, {self.bytes} bytes",
            f"{h.count / seconds:.1f} answers/s, {self.bytes / seconds / 1e6:.2f} MB/s",
            *(f"  {share:5g} %  {h.percentile(share) / 1e3:10.3f} ms" for share in _SHOWN),
            f"    max    {h.max / 1e3:10.3f} ms",
            *(f"status {status}: {n}" for status, n in sorted(self.statuses.items())),
            *(
                f"{kind} errors: {n} {self.said.get(kind, '')}"
                for kind, n in self.errors.items()
                if n
            ),
        ]
        return "\n".join(lines)


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be more than 0, not {text}")
    return value


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="loadgen.py", description="Load for an HTTP server.")
    parser.add_argument("url", help="http://HOST[:PORT]/PATH")
    parser.add_argument("-c", "--connections", type=_number, default=10)
    parser.add_argument("-p", "--pipeline", type=_number, default=1, help="requests out at once")
    parser.add_argument("-d", "--duration", type=_positive, metavar="S", help="seconds (10)")
    parser.add_argument("-n", "--requests", type=_number, help="end after so many")
    parser.add_argument("-r", "--rate", type=_positive, help="requests a second, in all")
    parser.add_argument("-m", "--method", choices=("GET", "HEAD"), default="GET")
    parser.add_argument("-H", "--header", action="append", default=[], metavar="NAME: VALUE")
    parser.add_argument("--timeout", type=_positive, default=10.0, metavar="S", help="of one (10)")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="nothing while it runs")
    options = parser.parse_args(argv)
    try:
        url = urlsplit(options.url)
        good = url.scheme == "http" and bool(url.hostname) and (url.port or 80) > 0
    except ValueError:
        good = False
    if not good or any(c <= " " or c > "~" for c in options.url):
        parser.error(f"{options.url!r} is no http:// URL")
    for line in options.header:
        if ":" not in line or any(c < " " or c > "~" for c in line):
            parser.error(f"{line!r} is no header: NAME: VALUE")
    if options.duration is None and options.requests is None:
        options.duration = 10.0
    return options


async def main(options: argparse.Namespace) -> int:
    run = Run(options)
    run.loop.add_signal_handler(signal.SIGINT, run.end)
    await run.measure()
    print(json.dumps(run.result()) if options.json else run.text())
    if not run.histogram.count:
        print(f"loadgen: no answer: {run.said or dict(run.errors)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(aiounify.run(main(arguments())))
