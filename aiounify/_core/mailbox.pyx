# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The steps of a mailbox that run once per message; see aiounify/mailbox.py.

Why it exists: a message takes a slot, a place in the queue and a look at the bell on one side, and
the reverse on the other.  In Python that was more than asyncio's queue costs.

Rule: what stands in one function here is one step for all other threads, because none of it runs
Python code or gives the GIL away.  So whether a mailbox is closed is looked at in the same step
in which the message is added, and who rings sees every message before the bell.
"""

import asyncio

from aiounify._core.sources cimport Source, empty

from aiounify._core.sources import taking

cdef object _get_running_loop = asyncio._get_running_loop
cdef object _sleep = asyncio.sleep
cdef object _QueueFull = asyncio.QueueFull

cdef enum:
    STREAK = 64    # messages received in a row before the loop gets a turn


cdef class Post(Source):
    """Base of aiounify.mailbox.Mailbox."""

    cdef public object _messages   # a deque
    cdef public object _bell       # a deque with the receiver's loop, while somebody waits
    cdef public object _room       # a deque of free slots; None: there is no bound
    cdef public object _waiting    # a deque of those who wait for a slot
    cdef public str _closed        # "", or why nothing can be put any more
    cdef object owner
    cdef unsigned streak

    # -- sending ------------------------------------------------------------------

    def put_nowait(self, message):
        """Put a message, from any thread or signal handler.

        asyncio.QueueFull if there is no room, or if others wait for it; MailboxClosed.
        """
        if self._room is not None and not self._take_slot():
            raise _QueueFull(f"{self!r} is full")
        self._add(message)

    cpdef bint _take_slot(self) except -1:
        if self._room is None or self._closed:
            return True
        if self._waiting or not self._room:
            return False
        self._room.pop()
        return True

    cpdef object _add(self, message):
        """Add a message, a slot having been taken for it."""
        if self._closed:
            self._refuse()
        self._messages.append(message)
        if self._bell:
            self._ring()

    # -- receiving ----------------------------------------------------------------

    cpdef object _claim(self, loop):
        """Make it the loop's, if it is nobody's; whose it is."""
        if self.owner is None:
            self.owner = loop
        return self.owner

    cpdef object take(self):
        """A message that is there, or EMPTY; see aiounify.sources."""
        cdef object message
        if self._messages:
            message = self._messages.popleft()
            if self._room is not None:
                self._room.append(None)
                if self._waiting:
                    self._hand_out()
            return message
        if self._closed:
            raise StopAsyncIteration
        return empty

    cpdef object _begin(self):
        self.streak = 0
        self._bell.append(self.loop)
        if self._messages or self._closed:
            self._bell.clear()
            self._fire()

    cpdef object _withdraw(self):
        self._bell.clear()

    cpdef object arm(self, object ready):
        if self.owner is None or self.owner is not _get_running_loop():
            self._bind()
        Source.arm(self, ready)

    async def get(self):
        """The next message.

        A cancelled get has taken nothing.  EOFError once the mailbox is closed and empty.
        """
        cdef object message
        if self.owner is None or self.owner is not _get_running_loop():
            self._bind()
        self.streak += 1
        if self.streak >= STREAK:
            # other threads may fill it as fast as it is emptied
            self.streak = 0
            await _sleep(0)
        try:
            message = self.take()
            if message is empty:
                message = await taking(self)
        except StopAsyncIteration:
            self._is_over()
        return message

    def __aiter__(self):
        return self

    def __anext__(self):
        if self.owner is None or self.owner is not _get_running_loop():
            self._bind()
        self.streak += 1
        return taking(self) if self.streak < STREAK else self._next_turn()

    async def _next_turn(self):
        self.streak = 0
        await _sleep(0)
        return await taking(self)
