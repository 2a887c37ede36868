"""The measured process: one loop, one row, one CPU.

`python -m aiounify.bench.worker --fd N --cpu N --loop NAME --row NAME` answers commands that come
over the socket pair until it closes.  Between commands it blocks in the kernel, so that the workers
of a row can wait on the same CPU without disturbing the one whose window it is.

* A `LoopRow` is driven from the main thread: "warm" finds how many operations fill a window,
  "window" does that many and returns the measurement, "count" does as many as it says.
* The other rows run their loop in the main thread for as long as the process lives; a second thread
  answers "sample" with the counters and "memory" with the process's size.  The runner subtracts two
  samples.

Garbage is collected before each window, and left to the interpreter's own rules within it.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import socket
import sys
import threading
import traceback

from aiounify.bench import registry
from aiounify.bench.channel import Channel, ClosedError, Measurement, Reply
from aiounify.bench.counters import Counters, memory_used
from aiounify.bench.limits import raise_open_files
from aiounify.bench.rows import ROWS, LoopRow, ServingRow

__all__ = ["main", "operations"]

# Calibration stops growing once a run is this share of a window, and scales up from there.
_ENOUGH = 0.2


def operations(n: int, seconds: float, window: float, batch: int) -> int:
    """How many operations fill the window, when n took so many seconds: a multiple of batch."""
    wanted = n * window / max(seconds, 1e-9)
    return max(1, round(wanted / batch)) * batch


class _LoopWorker:
    """Drives a `LoopRow`."""

    def __init__(self, row: LoopRow, loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
        self._row = row
        self._counters = counters
        self._run = row.prepare(loop)
        self._n = row.batch

    def warm(self, window: float) -> None:
        n = self._row.batch
        while True:
            seconds = self._measure(n)["seconds"]
            if seconds >= window * _ENOUGH:
                break
            # Doubling at least, so that a slow first run does not keep it small for ever.
            n = max(2 * n, min(operations(n, seconds, window * _ENOUGH, self._row.batch), 32 * n))
        self._n = operations(n, seconds, window, self._row.batch)

    def window(self) -> Measurement:
        gc.collect()
        return self._measure(self._n)

    def _measure(self, n: int) -> Measurement:
        before = self._counters.sample()
        own = self._run(n)
        measured = self._counters.sample().since(before, n)
        if own is not None:
            measured.update(own)
        return measured

    def serve(self, channel: Channel) -> None:
        while True:
            command = channel.command()
            try:
                if command["cmd"] == "warm":
                    self.warm(command["seconds"])
                    channel.send(Reply(ready=True))
                elif command["cmd"] == "window":
                    channel.send(Reply(measurement=self.window()))
                elif command["cmd"] == "count":
                    gc.collect()
                    channel.send(Reply(measurement=self._measure(command["count"])))
                else:
                    channel.send(Reply(failed=f"unknown command {command['cmd']!r}"))
            except (ClosedError, KeyboardInterrupt):
                raise
            except BaseException as exc:
                traceback.print_exc()
                channel.send(Reply(failed=reason(exc)))


class _ServerWorker:
    """Runs a `ServingRow`'s loop; the counters are read by a thread that sleeps otherwise."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
        self._loop = loop
        self._counters = counters

    def serve_alone(self, channel: Channel) -> None:
        """As `serve`, without a thread: valgrind lets no other thread run while one waits in
        io_uring_enter.  The loop then watches one descriptor more."""

        def answer() -> None:
            try:
                command = channel.command()
            except ClosedError:
                os._exit(0)
            if command["cmd"] == "sample":
                channel.send(Reply(sample=self._counters.sample().values()))
            else:
                gc.collect()
                channel.send(Reply(ready=True))

        self._loop.add_reader(channel.fileno(), answer)
        self._loop.run_forever()
        raise RuntimeError("the loop stopped serving")

    def serve(self, channel: Channel) -> None:
        thread = threading.Thread(target=self._answer, args=(channel,), daemon=True)
        thread.start()
        self._loop.run_forever()
        # The loop does not end by itself: the thread ends the process.
        raise RuntimeError("the loop stopped serving")

    def _answer(self, channel: Channel) -> None:
        try:
            while True:
                command = channel.command()
                if command["cmd"] in ("collect", "memory"):
                    # In the loop's own thread, where its objects expect to be freed.
                    done = threading.Event()
                    self._loop.call_soon_threadsafe(_collect, done)
                    done.wait()
                    if command["cmd"] == "memory":
                        memory, resident = memory_used()
                        channel.send(Reply(memory=memory, resident=resident))
                    else:
                        channel.send(Reply(ready=True))
                elif command["cmd"] == "sample":
                    channel.send(Reply(sample=self._counters.sample().values()))
                else:
                    channel.send(Reply(failed=f"unknown command {command['cmd']!r}"))
        except ClosedError:
            os._exit(0)


def _collect(done: threading.Event) -> None:
    gc.collect()
    done.set()


def reason(exc: BaseException) -> str:
    """One line for the table's cell."""
    text = " ".join(str(exc).split())
    name = type(exc).__name__
    return f"{name}: {text}" if text else name


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="aiounify.bench.worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--loop", required=True)
    parser.add_argument("--callgrind", help="where callgrind, which runs this process, writes")
    parser.add_argument("--row", help="without one: only see whether the loop can be had")
    options = parser.parse_args(argv)

    os.sched_setaffinity(0, {options.cpu})
    os.set_inheritable(options.fd, False)
    channel = Channel(socket.socket(fileno=options.fd))
    raise_open_files()
    counters = Counters(options.callgrind)
    try:
        chosen = registry.LOOPS[options.loop]
        loop = chosen.new()
        asyncio.set_event_loop(loop)
        ready = Reply(ready=True, version=registry.version(chosen), counters=counters.missing)
        if options.row is None:
            loop.close()
            channel.send(ready)
            return 0
        row = ROWS[options.row]
        worker: _LoopWorker | _ServerWorker
        if isinstance(row, ServingRow):
            ready["address"] = list(loop.run_until_complete(row.serve()))
            worker = _ServerWorker(loop, counters)
        else:
            if not isinstance(row, LoopRow):
                raise TypeError(f"{row.name} is no row for a worker")
            worker = _LoopWorker(row, loop, counters)
    except BaseException as exc:
        traceback.print_exc()
        channel.send(Reply(failed=reason(exc)))
        return 1
    channel.send(ready)
    with contextlib.suppress(ClosedError):
        if options.callgrind and isinstance(worker, _ServerWorker):
            worker.serve_alone(channel)
        worker.serve(channel)
    # Not loop.close() and the interpreter's end: a peer that hangs there has been measured already.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
