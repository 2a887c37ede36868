"""Group commit, the answer to a full or failing disk, and the rewriting of the log.

One task writes, one group at a time.  While a group is being written and synced, the commands of
all connections gather in the next.  Replies that tell of a change, or of data that are not on the
disk yet, wait for their group.

* `always`: a group is done when write and fdatasync are, which are one request.
* `everysec`: when it is written; once a second there is an fdatasync.  `no`: the kernel syncs
  when it likes.

When writing fails (disk full, quota) the group and the one behind it are taken back, their
replies become errors, and the file is cut to its last whole batch.  Writes are refused for a
second, then the next one tries again.  When a sync fails nothing more is written to that file,
for the kernel reports such an error once and a second fsync proves nothing: writes are refused
until the log is rewritten to a new file (BGREWRITEAOF) or the server is started again.

Rewriting: values are copied to a new file in slices while writing goes on; then what was logged
meanwhile is copied behind them; at last, between two groups, the rest.  The new file is synced
before it gets the old one's name, and the directory after that.  The old log stays valid until
then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kvstore import log
from kvstore.disk import Disk, SyncError, sync_directory
from kvstore.store import Group, Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["POLICIES", "Committer"]

POLICIES = ("always", "everysec", "no")

_RETRY = 1.0  # seconds for which writes are refused after a failure
_SLICE = 1 << 20  # bytes of one step of a rewrite
_LATE = 2.0  # seconds after which writing waits for a slow fdatasync

_logger = logging.getLogger("kvstore")


class _Barrier:
    """Waits in a group like a connection."""

    def __init__(self) -> None:
        self.future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def released(self, replies: list[bytes]) -> None:
        if not self.future.done():
            self.future.set_result(True)

    def refused(self, replies: list[bytes], about_data: list[int], why: str) -> None:
        if not self.future.done():
            self.future.set_result(False)


class Committer:
    """Writes the groups of a store to the log in a directory."""

    def __init__(self, store: Store, directory: Path, policy: str = "always") -> None:
        self.store = store
        self.path = directory / "kvstore.log"
        self.policy = policy
        #: The group under way.
        self.flying: Group | None = None
        #: Why writes are refused, and whether time helps.
        self.trouble = ""
        self.lasting = False
        self.rewriting = False
        self.last_rewrite = "ok"
        #: Bytes of the log, and how many of them are known to be on the disk.
        self.end = self.synced = 0
        #: Of the log after the last rewrite.
        self.base_size = 0
        self.groups = self.failures = 0
        self._fd = -1
        self._salt = b""
        self._sequence = 0
        self._disk = Disk()
        self._idle: asyncio.Future[None] | None = None
        self._between: Callable[[], Awaitable[None]] | None = None
        self._closing = False
        self._failed_at = 0.0
        self._syncing: asyncio.Task[None] | None = None
        self._synced_at = time.monotonic()
        self._rewrite: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None

    # -- opening and closing

    def open(self, *, lossy: bool = False) -> int:
        """Read the log, or make one; bytes of a torn tail that were cut off.

        Blocks; for the start.  log.CorruptError if data are lost: with `lossy`, the log ends there
        and the rest is kept in a file beside it.
        """
        with contextlib.suppress(FileNotFoundError):
            self._new_path().unlink()  # a rewrite that did not come to its end
        if not self.path.exists():
            self._make()
            return 0
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return self._recover(lossy)
        except BaseException:
            os.close(self._fd)
            raise

    def _recover(self, lossy: bool) -> int:
        torn = 0
        for payload, found in log.read(self._fd, lossy=lossy):
            self.store.replay(log.changes(payload))
            self._salt, self.end, self._sequence, torn = found
        self.store.replayed()
        if torn:
            if lossy:
                aside = self.path.with_suffix(f".damaged-{int(time.time())}")
                aside.write_bytes(self.path.read_bytes()[self.end :])
            os.ftruncate(self._fd, self.end)
        # what was read may be in the page cache only, and is about to be answered for
        os.fdatasync(self._fd)
        self.synced = self.base_size = self.end
        return torn

    def _make(self) -> None:
        head, self._salt = log.new_head()
        fd = os.open(self._new_path(), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, head)
            os.fdatasync(fd)
            self._new_path().rename(self.path)
            sync_directory(self.path.parent)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.end = self.synced = self.base_size = len(head)

    def start(self) -> None:
        """Begin to write."""
        self._task = asyncio.create_task(self._run())
        self._ticker = asyncio.create_task(self._tick())

    @property
    def task(self) -> asyncio.Task[None]:
        """The task that writes; it ends by close(), or by an error that is a bug."""
        assert self._task is not None
        return self._task

    async def close(self) -> None:
        """Write what is gathered, say in the log that all of it is on the disk, and close it."""
        for task in (self._rewrite, self._ticker):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._closing = True
        self.wake()
        if self._task is not None:
            await self._task
        if self._syncing is not None:
            await self._syncing
        if not self.lasting:
            try:
                if self.synced < self.end:
                    await self._disk.sync(self._fd)
                await self._write(b"", durable=True)
            except OSError as exc:
                _logger.error("the log could not be closed well: %s", exc)
        os.close(self._fd)
        self._fd = -1

    # -- groups

    def wake(self) -> None:
        """Something was gathered: it is written in the next turn, with all that this one brings."""
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def refusal(self) -> str:
        """Why a write cannot be taken now, or ""."""
        if self.trouble and not self.lasting and time.monotonic() - self._failed_at >= _RETRY:
            self.trouble = ""  # the next group finds out
        return self.trouble

    async def _run(self) -> None:
        store = self.store
        while True:
            if self._between is not None:
                between, self._between = self._between, None
                await between()
            if not store.group.records:
                if store.group.waiters:
                    self._release(self._next_group())
                    continue
                if self._closing:
                    return
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
                self._idle = None
                continue
            group = self.flying = self._next_group()
            try:
                if self.lasting:
                    raise SyncError(5, self.trouble)
                await self._slow_sync()
                await self._write(b"".join(group.records), durable=self.policy == "always")
            except OSError as exc:
                self.flying = None  # whoever is told may ask again at once
                self._take_back(group, exc)
            else:
                self.flying = None
                self.groups += 1
                self._release(group)

    def _next_group(self) -> Group:
        group = self.store.group
        self.store.group = Group(group.number + 1)
        return group

    async def _write(self, payload: bytes, *, durable: bool) -> None:
        data = log.batch(self._salt, self._sequence + 1, self.synced, payload)
        await self._disk.append(self._fd, data, self.end, durable=durable)
        self._sequence += 1
        self.end += len(data)
        if durable:
            self.synced = self.end

    @staticmethod
    def _release(group: Group) -> None:
        for who, replies, _ in group.waiters:
            who.released(replies)

    def _take_back(self, group: Group, exc: OSError) -> None:
        later = self._next_group()
        self.store.undo(later)
        self.store.undo(group)
        self.failures += 1
        self._failed_at = time.monotonic()
        if self.lasting:
            pass
        elif isinstance(exc, SyncError):
            self._give_up(f"syncing the log failed ({exc.strerror})")
        else:
            self.trouble = f"writing to the log failed ({exc.strerror})"
            _logger.error("%s; writes are refused", self.trouble)
            try:
                os.ftruncate(self._fd, self.end)
            except OSError as error:
                self._give_up(f"{self.trouble}, and it could not be cut ({error.strerror})")
        for who, replies, about_data in (*group.waiters, *later.waiters):
            who.refused(replies, about_data, self.trouble)

    def _give_up(self, why: str) -> None:
        self.trouble, self.lasting = why, True
        _logger.critical(
            "%s: what is on the disk is not known; "
            "writes are refused until BGREWRITEAOF or a restart",
            why,
        )

    # -- policies other than always

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            if self.policy == "everysec" and self.synced < self.end and self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
                self._syncing.add_done_callback(self._sync_ended)

    async def _sync(self) -> None:
        fd, end = self._fd, self.end
        try:
            await self._disk.sync(fd)
        except SyncError as exc:
            self._give_up(f"syncing the log failed ({exc.strerror})")
        else:
            self.synced = max(self.synced, end)
            self._synced_at = time.monotonic()

    def _sync_ended(self, task: asyncio.Task[None]) -> None:
        self._syncing = None

    async def _slow_sync(self) -> None:
        if self._syncing is not None and time.monotonic() - self._synced_at > _LATE:
            await asyncio.wait([self._syncing])

    # -- rewriting

    def _new_path(self) -> Path:
        return self.path.with_suffix(".new")

    def rewrite(self) -> bool:
        """Begin to rewrite the log; False if that is under way."""
        if self.rewriting:
            return False
        self.rewriting = True
        self._rewrite = asyncio.create_task(self._rewriting())
        return True

    async def _barrier(self) -> bool:
        """Wait until all that was gathered is written; False if it was taken back."""
        barrier = _Barrier()
        self.store.group.waiters.append((barrier, [], []))
        self.wake()
        return await barrier.future

    async def _rewriting(self) -> None:
        new = _NewLog(self._new_path(), self._disk)
        try:
            self.store.whole = True
            # changes that are not whole values are behind us then
            if not await self._barrier() and not self.lasting:
                raise OSError(5, self.trouble)
            failures, place = self.failures, self.end
            new.open()
            for keys in _slices(list(self.store.data)):
                await new.values(self.store, keys)
            # what the copies may contain is in the log, or was taken back
            await self._barrier()
            while self.end - place > _SLICE:
                place = await new.copy(self._fd, place, self.end)
            switched = asyncio.get_running_loop().create_future()

            async def switch() -> None:
                try:
                    if self.failures != failures:
                        raise OSError(5, "changes were taken back meanwhile")
                    await self._switch(new, place)
                except OSError as exc:
                    switched.set_exception(exc)
                else:
                    switched.set_result(None)

            self._between = switch
            self.wake()
            try:
                await asyncio.shield(switched)
            except asyncio.CancelledError:
                if self._between is None:  # it has begun
                    with contextlib.suppress(OSError):
                        await switched
                raise
        except OSError as exc:
            self.last_rewrite = f"err: {exc.strerror}"
            _logger.error("rewriting the log failed: %s; the old one goes on", exc)
        else:
            self.last_rewrite = "ok"
        finally:
            self._between = None
            new.drop()
            self.store.whole = False
            self.rewriting = False

    async def _switch(self, new: _NewLog, place: int) -> None:
        """Between two groups: nothing is being written."""
        if self._syncing is not None:
            await asyncio.wait([self._syncing])
        await new.copy(self._fd, place, self.end)
        await self._disk.sync(new.fd)
        loop = asyncio.get_running_loop()
        new.installed = True
        try:
            await loop.run_in_executor(None, new.install, self.path)
        except SyncError as exc:
            self._give_up(f"the new log's name could not be synced ({exc.strerror})")
            raise
        except OSError:
            new.installed = False
            raise
        os.close(self._fd)
        self._fd, self._salt, self._sequence = new.fd, new.salt, new.sequence
        self.end = self.synced = self.base_size = new.end
        self.trouble, self.lasting = "", False


def _slices(keys: list[bytes]) -> list[list[bytes]]:
    return [keys[i : i + 512] for i in range(0, len(keys), 512)]


class _NewLog:
    """The file that is to replace the log."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self.fd = -1
        self.salt = b""
        self.sequence = 0
        self.end = 0
        self.installed = False
        self._disk = disk

    def open(self) -> None:
        head, self.salt = log.new_head()
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(self.fd, head)
        self.end = len(head)

    async def values(self, store: Store, keys: list[bytes]) -> None:
        """Copy what these keys have now, in batches of about a slice."""
        records: list[bytes] = []
        size = 0
        for key in keys:
            value = store.get(key)
            if value is None:
                continue
            records.append(log.change(log.SET, key, value, store.expiry(key)))
            size += len(records[-1])
            if size >= _SLICE:
                await self._write(b"".join(records))
                records, size = [], 0
        if records:
            await self._write(b"".join(records))

    async def copy(self, fd: int, place: int, end: int) -> int:
        """Copy the batches of the old log between two places; returns the second."""
        for payload, found in log.read(fd, start=place, size=end):
            if len(payload):
                await self._write(bytes(payload))
            place = found.end
        return place

    async def _write(self, payload: bytes) -> None:
        data = log.batch(self.salt, self.sequence + 1, 0, payload)
        await self._disk.append(self.fd, data, self.end, durable=False)
        self.sequence += 1
        self.end += len(data)

    def install(self, path: Path) -> None:
        """Give it the log's name; blocks.  SyncError if only the last step failed."""
        self.path.rename(path)
        sync_directory(path.parent)

    def drop(self) -> None:
        """Remove it, unless it is the log now."""
        if self.fd >= 0 and not self.installed:
            os.close(self.fd)
            with contextlib.suppress(OSError):
                self.path.unlink()
