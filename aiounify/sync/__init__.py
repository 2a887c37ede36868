"""Synchronisation between processes, for coroutines and blocking code in any mix.

    from aiounify import sync

    lock, jobs = sync.Lock(), sync.Queue()      # before the processes start
    multiprocessing.Process(target=work, args=(lock, jobs)).start()

    async with lock:                            # in a coroutine of any of them
        ...

Why it exists: asyncio's primitives end at the process, and those of `multiprocessing` block the
thread.  These are words in shared memory that coroutines await (`aiounify.futex`) and that
threads block on.

What all have in common: they go to other processes by fork, in the arguments of a
`multiprocessing.Process` of any start method, or by name.  A method that waits is a coroutine and
has a twin `..._blocking(timeout=None)`.  Whoever waits and is cancelled or killed takes nothing,
and does not keep others from being woken.  close() gives the memory up.
"""

from aiounify.sync.barrier import Barrier, BrokenBarrierError
from aiounify.sync.condition import Condition
from aiounify.sync.event import Event
from aiounify.sync.foreign import acquire
from aiounify.sync.lock import Lock, OwnerDied
from aiounify.sync.queue import Queue
from aiounify.sync.rwlock import RWLock
from aiounify.sync.semaphore import BoundedSemaphore, Semaphore

__all__ = [
    "Barrier",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "Condition",
    "Event",
    "Lock",
    "OwnerDied",
    "Queue",
    "RWLock",
    "Semaphore",
    "acquire",
]
