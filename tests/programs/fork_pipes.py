"""fork() while a loop has pipes: in a task, and in a protocol.  Argument: backend.

Each child ends with status 0 if it is refused clearly; the parent's pipes go on working.
"""

import asyncio
import gc
import os
import sys
import traceback
import warnings

import aiounify

# os.fork() in a process with threads warns from Python 3.12 on; it is what is tested
warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")

parent = os.getpid()
statuses = []


def fork():
    """True in the child."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        statuses.append(os.waitstatus_to_exitcode(status))
    return not pid


class Protocol(asyncio.Protocol):
    received = b""
    act = None

    def data_received(self, data):
        self.received += data
        if self.act:
            act, self.act = self.act, None
            act()

    def connection_lost(self, exc):
        self.lost = True


def use(reader, writer):
    """What a child may try; 0 if it does no more harm than a RuntimeError."""
    for call in (
        reader.pause_reading,
        reader.resume_reading,
        lambda: writer.write(bytes(1 << 22)),
        lambda: writer.writelines([b"a", b"b"]),
        reader.close,
        writer.write_eof,
        writer.close,
        writer.abort,
    ):
        try:
            call()
        except RuntimeError as error:
            assert "belongs to process" in str(error), error
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


async def pipes():
    loop = asyncio.get_running_loop()
    r, w = os.pipe()
    reader, protocol = await loop.connect_read_pipe(Protocol, os.fdopen(r, "rb", 0))
    writer, other = await loop.connect_write_pipe(Protocol, os.fdopen(w, "wb", 0))
    return reader, writer, protocol, other


async def until(condition):
    while not condition():  # noqa: ASYNC110 - nothing else would be told
        await asyncio.sleep(0.001)


async def main():
    # in a task, with a pair that nobody reads from in the child
    unread, unread_w, theirs, _ = await pipes()
    unread.pause_reading()
    if fork():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves them as they are
        status = use(unread, unread_w)
        del unread, unread_w, theirs
        gc.collect()
        os._exit(status)
    unread.resume_reading()
    # the child has written to the pipe, which it shares with this process
    await until(lambda: theirs.received)
    unread_w.close()
    await until(lambda: hasattr(theirs, "lost"))

    # in a protocol's method, from which the child returns into its copy of the loop
    all_pipes = [await pipes() for _ in range(5)]
    all_pipes[2][2].act = fork
    for _, writer, _, _ in all_pipes:
        writer.write(b"to all of them")
    await until(lambda: all(p.received == b"to all of them" for _, _, p, _ in all_pipes))
    for _, writer, _, _ in all_pipes:
        writer.close()
    await until(lambda: all(hasattr(p, "lost") for _, _, p, _ in all_pipes))


loop = aiounify.new_event_loop(sys.argv[1])
try:
    loop.run_until_complete(asyncio.wait_for(main(), 40))
except RuntimeError as error:
    if os.getpid() == parent:
        raise
    assert "belongs to process" in str(error), error
    os._exit(0)
except BaseException:
    traceback.print_exc()
    os._exit(1)
assert os.getpid() == parent
loop.close()
assert statuses == [0, 0], statuses
