"""Mailbox: messages to a loop from other loops and threads.

    jobs = Mailbox[Job](maxsize=1000)

    async for job in jobs:                  # in the loop that receives
        ...

    jobs.put_nowait(job)                    # from any thread
    await jobs.put(job)                     # from any loop; waits while the mailbox is full
    jobs.put_blocking(job, timeout=5.0)     # from a thread without a loop

Why it exists: asyncio's queues belong to one loop, those of `queue` block a whole thread, and
`call_soon_threadsafe()` has neither a bound nor a way to wait.

How it works, and what has to be kept:

* There is no lock: each step is one operation on a deque or one function of
  `_core/mailbox.pyx`, which is atomic under the GIL.  A lock could be held by a thread that lost
  the GIL, which costs the others system calls, and by the very code that a signal handler or a
  finalizer interrupts to put something, for ever.
* Where two sides could miss each other, each first says what it did and then looks at what the
  other said.  A receiver hangs up the bell and then looks for messages; a sender adds its
  message and then looks for the bell.
* **The bell** (`_bell` holds the receiver's loop while somebody waits there) is taken by one
  sender, who calls `call_soon_threadsafe()`.  That writes to the loop's eventfd if the loop
  sleeps, and only then.  While the receiver has messages there is no bell.
* **Slots.**  A mailbox with a bound has a deque of free slots, `_room`.  A sender takes one,
  adds its message, and the receiver puts it back.  If there is none the sender stands in
  `_waiting`, and is given a slot, not served: the message is added by the sender itself when
  it goes on, so one that is cancelled has put nothing, and passes its slot on.  Nobody
  overtakes those who wait.
* **The end.**  A message that was accepted is received: whether the mailbox is closed is looked
  at in the step that adds the message, and the receiver ends when it is closed and empty.
* The receiver takes in its own loop's thread, and by take() only (see sources.py), so a
  cancelled one has lost nothing.
* The mailbox owns the messages; nothing is copied.  A loop that is closed closes the mailboxes
  that are received in it.

Not by IORING_OP_MSG_RING (Linux 5.18): docs/threads.md says why.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar

from aiounify._core.mailbox import Post
from aiounify.sources import EMPTY, current_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from aiounify.loop import EventLoop

__all__ = ["Mailbox", "MailboxClosed"]

_T = TypeVar("_T")

# The mailboxes that are received in a loop.
_received: weakref.WeakKeyDictionary[EventLoop, weakref.WeakSet[Mailbox[Any]]] = (
    weakref.WeakKeyDictionary()
)


class MailboxClosed(RuntimeError):  # noqa: N818 - named after what it says
    """Nothing can be put into this mailbox any more; what was put before is received."""


def _first(token: list[None]) -> bool:
    """True for the first of all threads that asks."""
    try:
        token.pop()
    except IndexError:
        return False
    return True


class _Sender:
    """One who waits for a slot."""

    __slots__ = ("outcome", "slot", "wake")

    def __init__(self, wake: Callable[[], object]) -> None:
        self.wake = wake
        self.outcome = [None]  # a token: the sender leaves, or a slot is given
        self.slot = [None]  # a token: who frees the slot that was given in vain


def _go_on(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _close_all(mailboxes: weakref.WeakSet[Mailbox[Any]]) -> None:
    for mailbox in list(mailboxes):
        mailbox._shut("the event loop that receives from it is closed")


class Mailbox(Post[_T]):
    """A queue of messages to one event loop from any thread.

    `maxsize` is how many messages it holds; 0 means without a bound.  It can be made anywhere.
    It belongs to the loop that first waits for a message, and to that loop alone: RuntimeError
    in another one.  Receivers need a loop of aiounify; senders do not.

    `async for message in mailbox` and `await mailbox.get()` receive, `select()` takes it as a
    source.  Several tasks of the loop may receive; each message goes to one of them.  Messages
    of one sender (a task or thread) come in the order in which they were put.

    A put is followed by a system call only if the receiving loop sleeps at that moment.
    """

    def __init__(self, maxsize: int = 0) -> None:
        if maxsize < 0:
            raise ValueError(f"maxsize is a number of messages, or 0 for no bound, not {maxsize}")
        self._maxsize = maxsize
        self._messages = deque()
        self._bell = deque()
        self._room = deque(repeat(None, maxsize)) if maxsize else None
        self._waiting = deque()
        self._closed = ""

    def __repr__(self) -> str:
        size = f"{len(self)} of {self._maxsize}" if self._maxsize else f"{len(self)}"
        return f"<{type(self).__name__} with {size} messages{' closed' * self.closed}>"

    def __len__(self) -> int:
        """How many messages are in it."""
        return len(self._messages)

    def __bool__(self) -> bool:
        return True

    @property
    def maxsize(self) -> int:
        """How many messages it holds; 0 if it has no bound."""
        return self._maxsize

    @property
    def closed(self) -> bool:
        """Whether nothing can be put any more."""
        return bool(self._closed)

    # -- sending ----------------------------------------------------------------

    async def put(self, message: _T) -> None:
        """Put a message, from any event loop; waits while the mailbox is full.

        Those who wait get room in the order in which they came.  A cancelled put has put
        nothing.  MailboxClosed, also while it waits.
        """
        if not self._take_slot():
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            sender = _Sender(partial(loop.call_soon_threadsafe, _go_on, future))
            self._line_up(sender)
            try:
                await future
            except BaseException:
                self._give_up(sender)
                raise
        self._add(message)

    def put_blocking(self, message: _T, timeout: float | None = None) -> None:
        """Put a message, from a thread without an event loop; blocks while it is full.

        TimeoutError if there was no room for `timeout` seconds: nothing was put.
        MailboxClosed, also while it waits.  RuntimeError in the thread of a running loop,
        which it would block: there it is `await put()`.
        """
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "Mailbox.put_blocking() would block the event loop of this thread: "
                "use `await mailbox.put()` or put_nowait()"
            )
        if not self._take_slot():
            given = threading.Lock()
            given.acquire()
            sender = _Sender(given.release)
            self._line_up(sender)
            wait = -1 if timeout is None else min(max(timeout, 0), threading.TIMEOUT_MAX)
            try:
                in_time = given.acquire(timeout=wait)
            except BaseException:
                self._give_up(sender)
                raise
            if not in_time and self._leave(sender):
                raise TimeoutError(f"no room in {self!r} for {timeout} s")
        self._add(message)

    def close(self) -> None:
        """Accept nothing any more, from any thread.

        What is in the mailbox is received, then iterations end.  Those who wait for room get
        MailboxClosed.  Closing twice is allowed.
        """
        self._shut("it was closed")

    def _shut(self, why: str) -> None:
        self._closed = self._closed or why
        self._ring()
        self._hand_out()

    def _refuse(self) -> None:
        raise MailboxClosed(f"cannot put into {self!r}: {self._closed}")

    def _ring(self) -> None:
        try:
            loop = self._bell.pop()
        except IndexError:
            return
        with suppress(RuntimeError):  # it is being closed, and closes this mailbox then
            loop.call_soon_threadsafe(self._fire)

    # -- slots ------------------------------------------------------------------

    def _free_slot(self) -> None:
        if self._room is not None:
            self._room.append(None)
            if self._waiting:
                self._hand_out()

    def _line_up(self, sender: _Sender) -> None:
        self._waiting.append(sender)
        self._hand_out()

    def _leave(self, sender: _Sender) -> bool:
        """Do not wait any more; False if a slot was given before."""
        if not _first(sender.outcome):
            return False
        with suppress(ValueError):  # somebody is about to see that it has left
            self._waiting.remove(sender)
        return True

    def _give_up(self, sender: _Sender) -> None:
        """Do not wait any more, and pass on a slot that was given meanwhile."""
        if not self._leave(sender) and _first(sender.slot):
            self._free_slot()

    def _hand_out(self) -> None:
        """Give free slots to those who wait; once closed all go on, to learn of it."""
        room = self._room
        if room is None:
            return
        while self._waiting and (room or self._closed):
            if not self._closed:
                try:
                    room.pop()
                except IndexError:
                    continue  # another thread was faster
            try:
                sender = self._waiting.popleft()
            except IndexError:
                room.append(None)
                continue
            if not _first(sender.outcome):
                room.append(None)
                continue
            try:
                sender.wake()
            except RuntimeError:  # its loop is closed
                if _first(sender.slot):
                    room.append(None)

    # -- receiving ----------------------------------------------------------------

    def _is_over(self) -> None:
        raise EOFError(f"no message is left in {self!r}: {self._closed}") from None

    def get_nowait(self) -> _T:
        """The next message, if there is one; in the thread of the receiving loop.

        asyncio.QueueEmpty if there is none, EOFError once the mailbox is closed and empty.
        """
        try:
            message = self.take()
        except StopAsyncIteration:
            raise EOFError(f"no message is left in {self!r}: {self._closed}") from None
        if message is EMPTY:
            raise asyncio.QueueEmpty(f"{self!r} is empty")
        return message

    def __await__(self) -> Generator[Any, Any, _T]:
        return self.__anext__().__await__()

    def _bind(self) -> None:
        loop = current_loop(self)
        owner = self._claim(loop)
        if owner is not loop:
            if self._closed:
                return
            raise RuntimeError(f"{self!r} is received in another event loop, {owner!r}")
        mailboxes = _received.get(loop)
        if mailboxes is None:
            mailboxes = _received[loop] = weakref.WeakSet()
            loop._close_with(partial(_close_all, mailboxes))
        mailboxes.add(self)
