# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Futexes: words in memory, waiting for them in the loop, and the locks built on them.

Why it exists: a wait for a futex is an operation of the ring (FUTEX_WAIT, Linux 6.7), and
taking a free lock has to cost a compare-and-exchange, not a call through Python.  What
coroutines do with these is in `aiounify/futex.py` and `aiounify/sync/`.

A wait is a `FutexWait`.  Where the ring has the operation it is one; else threads wait for it
(`futex_thread.h`) and write their results' arrival to an eventfd, and the reactor only knows
that descriptor; or an epoll loop sleeps for them itself (`NearWords`, `futex_near.h`).
`LoopFutexes` is a loop's choice.

Rules:

* A wait holds its `Word`s, and these the memory, until its last completion.
* A wait that was woken and has nobody who still wants to know passes the wake on.
* Waits of `aiounify.sync` are looked at four times a second (PATROL): one whose word no
  longer gives a reason to sleep is ended.  So a wake that was swallowed by a process that was
  killed costs a quarter of a second at most, and nothing depends on the dead.
* A lock that is held keeps its memory mapped: the kernel walks through it when the
  thread ends.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBUF_WRITE, PyBuffer_Release, PyObject_GetBuffer
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t
from posix.unistd cimport close as c_close

import os

from aiounify._core.backlog cimport STATE_CLOSED, STATE_FORKED
from aiounify._core.epoll cimport EpollReactor, Sleeper
from aiounify._core.reactor cimport (
    EAGAIN,
    ECANCELED,
    EDGE,
    EINTR,
    EPOLLIN,
    Op,
    Reactor,
    Watched,
    errno,
)
from aiounify._core.scheduler cimport Scheduler
from aiounify._core.uring import probe


cdef extern from "<sys/eventfd.h>" nogil:
    enum:
        EFD_CLOEXEC
        EFD_NONBLOCK
    int eventfd(unsigned int initval, int flags)

cdef extern from "uring_abi.h" nogil:
    enum:
        IORING_OP_FUTEX_WAIT
        IORING_OP_FUTEX_WAITV

cdef extern from "robust.h" nogil:
    enum:
        AU_FUTEX2_U32
        QUEUE_BUSY
        QUEUE_WAIT
    struct au_waitv:
        uint64_t val
        uint64_t uaddr
        uint32_t flags
    struct lock:
        uint32_t word
        uint32_t inconsistent
    struct queue:
        lock lock
        uint32_t getters
        uint32_t putters
        uint32_t capacity
        uint32_t maxsize
    uint32_t word_load(uint32_t *w)
    void word_store(uint32_t *w, uint32_t value)
    uint32_t word_add(uint32_t *w, uint32_t n)
    uint32_t word_exchange(uint32_t *w, uint32_t value)
    uint32_t word_cas(uint32_t *w, uint32_t expected, uint32_t value)
    int word_wake(uint32_t *w, int n, uint32_t mask)
    int word_wait(uint32_t *w, uint32_t expected, uint32_t mask, int64_t timeout_ns)
    int word_requeue(uint32_t *w, int n, uint32_t *to, int move, uint32_t expected)
    uint64_t long_load(uint64_t *w)
    uint64_t long_add(uint64_t *w, uint64_t n)
    uint64_t long_cas(uint64_t *w, uint64_t expected, uint64_t value)
    const uint32_t LOCK_OWNER
    const uint32_t LOCK_DIED
    const uint32_t LOCK_WAITERS
    int robust_init()
    int robust_ready()
    int lock_try(lock *l, uint32_t bits)
    uint32_t lock_announce(lock *l)
    bint lock_mine(lock *l)
    void lock_release(lock *l)
    uint32_t queue_size(queue *q)
    uint32_t queue_room(uint32_t n)
    int queue_put(queue *q, const char *data, uint32_t n, uint32_t bits, int wait, uint32_t *seen)
    int queue_look(queue *q, uint32_t bits, int wait, uint32_t *seen, uint32_t *n)
    void queue_take(queue *q, char *to, uint32_t n)

cdef extern from "futex_thread.h" nogil:
    struct ft_group:
        pass
    struct ft_result:
        uint64_t id
        int result
    struct ft:
        int event_fd
        unsigned threads
    void ft_open(ft *f, int event_fd, int waitv)
    ft_group *ft_add(ft *f, uint64_t id, uint32_t *word, uint32_t expected, uint32_t mask)
    int ft_remove(ft *f, ft_group *g, uint64_t id)
    uint32_t *ft_take_stray(ft *f)
    size_t ft_take(ft *f, ft_result *to, size_t most)
    void ft_close(ft *f)

cdef extern from "futex_near.h" nogil:
    struct near:
        pass
    int near_start(near *s, int epfd)
    void near_stop(near *s)
    int near_sleep(near *s, au_waitv *v, unsigned n)

cdef extern from "<unistd.h>" nogil:
    int getpid()

cdef extern from "pythread.h" nogil:
    unsigned long PyThread_get_thread_ident()

cdef extern from "Python.h":
    void Py_INCREF(object)
    void Py_DECREF(object)

cdef uint32_t ALL = 0xffffffffu
cdef enum:
    WAITV_MAX = 128      # words in one FUTEX_WAITV, in the ring and outside it
    ANY = 0              # a wait the caller answers for
    UNTIL_CHANGED = 1    # patrol: over when the word is not what it was
    NEAR = 8             # words the loop's own thread waits for, at most
    WARM = 4             # results in a row that make it wait for them itself
    UNTIL_FREE = 2       # patrol: over when the lock word has no living owner
PATROL_SECONDS = 0.25

if robust_init():
    raise MemoryError("pthread_atfork")


cdef class Word:
    """A 32-bit word in a writable buffer, and atomic operations on it.

    `buffer` is anything with a writable buffer; `offset` counts bytes and must be a multiple
    of four where the memory itself is aligned.  While the object lives the buffer cannot be
    closed or resized (BufferError); release() gives it up.  BufferError for a read-only
    buffer, ValueError for a bad offset or use after release().
    """

    cdef Py_buffer view
    cdef bint viewed
    cdef Py_ssize_t pins      # waits that need the memory
    cdef uint32_t *word
    cdef readonly Py_ssize_t offset
    cdef object __weakref__

    def __cinit__(self, buffer, Py_ssize_t offset=0, *args, **kwargs):
        try:
            PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE)
        except BufferError:
            raise BufferError(
                f"a futex needs a writable, contiguous buffer, and this {type(buffer).__name__} "
                "is not one"
            ) from None
        self.viewed = True
        if offset < 0 or offset > self.view.len - 4:
            size = self.view.len
            self.let_go()
            raise ValueError(f"no 32-bit word at offset {offset} of a buffer of {size} bytes")
        if <uintptr_t>(<char *>self.view.buf + offset) % 4:
            self.let_go()
            raise ValueError(f"the word at offset {offset} is not aligned to 4 bytes")
        self.offset = offset
        self.word = <uint32_t *>(<char *>self.view.buf + offset)

    def __dealloc__(self):
        self.pins = 0
        self.let_go()

    cdef int let_go(self) except -1:
        if self.viewed and not self.pins:
            self.viewed = False
            PyBuffer_Release(&self.view)
        return 0

    cdef uint32_t *at(self) except NULL:
        if self.word == NULL:
            raise ValueError("operation on a released futex")
        return self.word

    def release(self):
        """Give the buffer up; waits that go on keep it until they are over."""
        self.word = NULL
        self.let_go()

    @property
    def released(self):
        return self.word == NULL

    @property
    def address(self):
        """Where the word is in this process."""
        return <uintptr_t>self.at()

    def load(self):
        """The value, 0 to 2**32 - 1."""
        return word_load(self.at())

    def store(self, uint32_t value):
        """Set the value; wakes nobody."""
        word_store(self.at(), value)

    def add(self, int64_t n):
        """Add n modulo 2**32 and return the value before."""
        return word_add(self.at(), <uint32_t>n)

    def exchange(self, uint32_t value):
        """Set the value and return the one before."""
        return word_exchange(self.at(), value)

    def compare_exchange(self, uint32_t expected, uint32_t value):
        """Set the value if it is `expected`; returns whether it was."""
        return word_cas(self.at(), expected, value) == expected

    def take(self):
        """Subtract one unless the value is 0; returns whether it was subtracted."""
        cdef uint32_t *word = self.at()
        cdef uint32_t now, seen = word_load(word)
        while seen:
            now = word_cas(word, seen, seen - 1)
            if now == seen:
                return True
            seen = now
        return False

    def wake(self, int n=1, *, uint32_t mask=ALL):
        """Wake up to n waiters, of those whose mask has a bit in common; how many it was.

        A system call (FUTEX_WAKE_BITSET, futex(2)), which never blocks.
        """
        cdef int r
        if n < 0 or not mask:
            raise ValueError("n must not be negative, mask not 0")
        if n == 0:
            return 0
        r = word_wake(self.at(), n, mask)
        if r < 0:
            raise OSError(-r, f"futex wake: {os.strerror(-r)}")
        if r < n and near_loops != NULL:
            r += near_wake(self.word, n - r)
        return r

    def requeue(self, Word to not None, uint32_t expected, int n=1, int move=0x7fffffff):
        """If the value is `expected`, wake n waiters and let up to `move` others wait for `to`.

        Returns how many were woken or moved; BlockingIOError if the value differs
        (FUTEX_CMP_REQUEUE, futex(2)).  Waiters moved are those of wait_blocking() and of other
        programs' FUTEX_WAIT: those of coroutines wait for their own word only.
        """
        cdef int r = word_requeue(self.at(), n, to.at(), move, expected)
        if r < 0:
            raise OSError(-r, f"futex requeue: {os.strerror(-r)}")
        return r

    def sleep(self, uint32_t expected, uint32_t mask, int64_t timeout_ns):
        """Block this thread: 0 when woken, or a negated errno.  The GIL is released."""
        cdef uint32_t *word = self.at()
        cdef int r
        with nogil:
            r = word_wait(word, expected, mask, timeout_ns)
        return r


cdef class FutexWait(Op):
    """A wait for one word or several, and the future that is told of its end.

    The future's result is the index of the word that was woken, or -1 if there was nothing to
    wait for: a word had another value, or the wait was ended by the patrol.
    """

    cdef tuple words
    cdef tuple values
    cdef uint32_t *first
    cdef uint32_t expected, mask
    cdef int patrol
    cdef au_waitv *vector
    cdef LoopFutexes home
    cdef readonly object future
    cdef dict groups          # of the threads' words: id -> (group, index)
    cdef bint near            # the loop's own thread waits for it

    def __cinit__(self):
        self.mask = ALL

    def __dealloc__(self):
        PyMem_Free(self.vector)

    cdef int prepare_one(self, Word word, uint32_t expected, uint32_t mask) except -1:
        self.words = (word,)
        self.first = word.at()
        self.expected = expected
        self.mask = mask
        self.opcode = IORING_OP_FUTEX_WAIT
        self.fd = AU_FUTEX2_U32
        self.address = <uint64_t><uintptr_t>self.first
        self.offset = expected
        self.address3 = mask
        return 0

    cdef int prepare_many(self, tuple words, tuple values) except -1:
        cdef Py_ssize_t i, n = len(words)
        self.words = words
        self.values = values
        self.opcode = IORING_OP_FUTEX_WAITV
        self.fd = 0
        self.vector = <au_waitv *>PyMem_Malloc(n * sizeof(au_waitv))
        if self.vector == NULL:
            raise MemoryError
        for i in range(n):
            self.vector[i] = au_waitv(
                <uint32_t>values[i], <uint64_t><uintptr_t>(<Word>words[i]).at(), AU_FUTEX2_U32
            )
        self.address = <uint64_t><uintptr_t>self.vector
        self.length = n
        return 0

    cdef int complete(self, int result, uint32_t flags) except -1:
        self.result = result
        return self.over(result)

    cdef int over(self, int result) except -1:
        cdef object future = self.future
        self.home.patrolled.pop(self, None)
        for word in self.words:
            (<Word>word).pins -= 1
            if (<Word>word).word == NULL:
                (<Word>word).let_go()
        if future.done():
            if result >= 0:
                self.pass_on(result)
        elif result >= 0:
            future.set_result(result)
        elif result in (-EAGAIN, -ECANCELED, -EINTR):
            future.set_result(-1)
        else:
            future.set_exception(OSError(-result, f"futex wait: {os.strerror(-result)}"))
        return 0

    cdef int pass_on(self, int index) except -1:
        cdef uint32_t *word
        if self.vector != NULL:
            word = <uint32_t *><uintptr_t>self.vector[index].uaddr
        else:
            word = self.first
        if not self.home.pass_to(word, self.mask):
            word_wake(word, 1, self.mask)
        return 0

    cdef bint stale(self) noexcept:
        if self.patrol == UNTIL_FREE:
            return not word_load(self.first) & LOCK_OWNER or word_load(self.first) & LOCK_DIED
        return word_load(self.first) != self.expected

    def give_up(self):
        """Nobody waits any more: end it, and hand on a wake that came already."""
        cdef object future = self.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None and future.result() >= 0:
            self.pass_on(future.result())
        self.home.end(self)


cdef class NearWords(Sleeper):
    """The words that an epoll loop waits for in its own thread, the last few it was asked for.

    It does while its sleeps end by futexes mostly.  A word is looked at in every turn, so that
    a loop that never sleeps notices its change; a wake in that time finds nobody in the kernel,
    as one of a thread that is just about to sleep.
    """

    cdef LoopFutexes home
    cdef EpollReactor reactor
    cdef near watch
    cdef bint on, watched, always
    cdef list ops
    cdef int score, warm, needed
    cdef uint64_t waits
    cdef unsigned long thread
    cdef int pid
    cdef PyObject *next      # of near_loops, which own nothing

    def __cinit__(self, LoopFutexes home, EpollReactor reactor, bint always):
        self.home = home
        self.reactor = reactor
        self.always = always
        self.ops = []
        self.needed = WARM

    cdef int told(self) except -1:
        """Threads had results: begin, if that is what ends the loop's sleeps."""
        self.warm = self.warm + 1 if self.reactor.n_waits - self.waits <= 2 else 0
        self.waits = self.reactor.n_waits
        if not self.on and self.warm >= self.needed:
            self.begin()
        return 0

    cdef int begin(self) except -1:
        global near_loops
        if not self.watched:
            if near_start(&self.watch, self.reactor.epfd):
                self.needed = 1 << 30
                return 0
            self.watched = True
            self.pid = os.getpid()
            self.reactor.sleeper = self
            self.thread = PyThread_get_thread_ident()
            self.next = near_loops
            near_loops = <PyObject *>self
        self.on = True
        self.score = 16
        return 0

    cdef int cease(self) except -1:
        """What comes through the set ends most sleeps: wait in threads, as before."""
        cdef FutexWait op
        self.on = False
        self.warm = 0
        self.needed = min(self.needed * 2, 1024)
        while self.ops:
            op = <FutexWait>self.ops.pop(0)
            op.near = False
            try:
                self.home.to_threads(op)
            except OSError as exc:
                op.done = True
                op.over(-exc.errno)
        return 0

    cdef int add(self, FutexWait op) except -1:
        cdef FutexWait oldest
        if len(self.ops) >= NEAR:
            oldest = <FutexWait>self.ops[0]
            self.home.to_threads(oldest)
            oldest.near = False
            del self.ops[0]
        op.near = True
        self.ops.append(op)
        return 0

    cdef int finish(self, Py_ssize_t i, int result) except -1:
        cdef FutexWait op = <FutexWait>self.ops.pop(i)
        op.near = False
        op.done = True
        op.result = result
        return op.over(result)

    cdef bint sleeps(self) noexcept:
        return len(self.ops) > 0

    cdef int look(self) except -1:
        cdef FutexWait op
        cdef Py_ssize_t i
        for i in range(len(self.ops) - 1, -1, -1):
            op = <FutexWait>self.ops[i]
            if word_load(op.first) != op.expected:
                self.finish(i, -EAGAIN)
        return 0

    cdef int sleep(self) except -1:
        cdef au_waitv[NEAR + 1] v
        cdef FutexWait op
        cdef int i, r, n = <int>len(self.ops)
        for i in range(n):
            op = <FutexWait>self.ops[i]
            v[i + 1] = au_waitv(op.expected, <uint64_t><uintptr_t>op.first, AU_FUTEX2_U32)
        with nogil:
            r = near_sleep(&self.watch, v, n + 1)
        if r > 0:
            self.score = min(self.score + 2, 16)
            self.finish(r - 1, 0)
            return False
        if r == -EAGAIN:
            self.look()
            return True
        if r == 0:
            self.score -= 1
            if self.score <= 0 and not self.always:
                self.cease()
            return True
        if r != -EINTR:
            while self.ops:
                self.finish(0, r)
        return False

    cdef int renewed(self) except -1:
        """The epoll set is another one: it needs a thread of its own."""
        with nogil:
            near_stop(&self.watch)
        if near_start(&self.watch, self.reactor.epfd):
            self.forget()
            self.needed = 1 << 30
            self.cease()
        return 0

    cdef int forget(self) noexcept:
        """Not watched any more: out of the list, and of the reactor."""
        global near_loops
        cdef PyObject **at = &near_loops
        self.watched = False
        while at[0] != NULL and at[0] != <PyObject *>self:
            at = &(<NearWords>at[0]).next
        if at[0] != NULL:
            at[0] = self.next
        if self.reactor is not None:
            self.reactor.sleeper = None
        return 0

    cdef int end(self) noexcept:
        if self.watched:
            self.forget()
            if self.pid == os.getpid():  # else there is no thread here
                with nogil:
                    near_stop(&self.watch)
        return 0

    def __dealloc__(self):
        global near_loops
        cdef PyObject **at = &near_loops
        if not self.watched:
            return
        while at[0] != NULL and at[0] != <PyObject *>self:
            at = &(<NearWords>at[0]).next
        if at[0] != NULL:
            at[0] = self.next
        if self.pid == getpid():
            with nogil:
                near_stop(&self.watch)


cdef PyObject *near_loops = NULL


cdef int near_wake(uint32_t *word, int n) except -1:
    """Wake up to n waits of this thread's loop, which is awake and so not in the kernel."""
    cdef PyObject *at = near_loops
    cdef NearWords loop
    cdef FutexWait op
    cdef Py_ssize_t i = 0
    cdef int woken = 0
    while at != NULL:
        loop = <NearWords>at
        at = loop.next
        if loop.thread != PyThread_get_thread_ident() or loop.ops is None:
            continue
        i = 0
        while woken < n and i < len(loop.ops):
            op = <FutexWait>loop.ops[i]
            if op.first != word:
                i += 1
                continue
            if loop.pid != getpid():
                break  # a fork of the process that waits
            woken += not op.future.done()
            loop.finish(i, 0 if not op.future.done() else -ECANCELED)
    return woken


cdef class LoopFutexes(Watched):
    """A loop's futex waits: in its ring, or in threads."""

    cdef Scheduler loop
    cdef Reactor reactor
    cdef readonly bint in_ring
    cdef bint has_waitv
    cdef bint closed
    cdef int event_fd
    cdef ft threads
    cdef uint64_t last_id
    cdef dict by_id           # id -> FutexWait, of the threads' words
    cdef dict patrolled       # FutexWait -> None
    cdef object patrol_timer
    cdef NearWords near       # on epoll, or None
    cdef int pid

    def __cinit__(self):
        self.event_fd = -1
        self.by_id = {}
        self.patrolled = {}

    def __init__(self, Scheduler loop, bint ring, bint waitv, object near=None):
        """`ring`, `waitv`: whether FUTEX_WAIT and futex_waitv may be used.

        `near`: whether an epoll loop's own thread waits too; None: while it is worth it.
        """
        self.loop = loop
        self.reactor = loop.reactor
        self.in_ring = (
            ring and loop.reactor.name() == "uring"
            and IORING_OP_FUTEX_WAIT in probe().ops and IORING_OP_FUTEX_WAITV in probe().ops
        )
        self.has_waitv = waitv
        self.pid = os.getpid()
        if waitv and near is not False and isinstance(self.reactor, EpollReactor):
            self.near = NearWords(self, <EpollReactor>self.reactor, near is True)
            if near:
                self.near.begin()

    @property
    def threads_used(self):
        return self.threads.threads if self.event_fd >= 0 else 0

    @property
    def in_loop(self):
        return self.near is not None and self.near.on

    def wait(self, Word word not None, uint32_t expected, uint32_t mask=ALL, int patrol=ANY):
        """Start a wait for one word."""
        cdef FutexWait op = FutexWait()
        if not mask:
            raise ValueError("mask must not be 0: nothing could wake this")
        op.prepare_one(word, expected, mask)
        op.patrol = patrol
        self.begin(op)
        if patrol:
            self.patrolled[op] = None
            if self.patrol_timer is None:
                self.patrol_timer = self.loop.call_later(PATROL_SECONDS, self.look_around)
        return op

    def wait_any(self, tuple words, tuple values):
        """Start a wait for up to 128 words."""
        cdef FutexWait op = FutexWait()
        if not 0 < len(words) <= WAITV_MAX or len(values) != len(words):
            raise ValueError("1 to 128 words, and a value for each")
        op.prepare_many(words, values)
        self.begin(op)
        return op

    cdef int begin(self, FutexWait op) except -1:
        cdef Py_ssize_t i
        if self.loop.q.state & (STATE_CLOSED | STATE_FORKED) or self.closed:
            self.loop._check_closed()
        op.home = self
        op.future = self.loop.create_future()
        for i in range(len(op.words)):
            (<Word>op.words[i]).pins += 1
        if self.in_ring:
            return self.reactor.submit(op)
        try:
            if self.near is not None and self.near.on and op.vector == NULL and op.mask == ALL:
                self.near.add(op)
            else:
                self.to_threads(op)
        except OSError:
            op.done = True
            op.future.cancel()
            op.over(-ECANCELED)
            raise
        return 0

    cdef int to_threads(self, FutexWait op) except -1:
        cdef Py_ssize_t i
        cdef ft_group *group
        if self.event_fd < 0:
            self.open_threads()
        op.groups = {}
        for i in range(len(op.words)):
            self.last_id += 1
            group = ft_add(
                &self.threads, self.last_id,
                op.first if op.vector == NULL else <uint32_t *><uintptr_t>op.vector[i].uaddr,
                op.expected if op.vector == NULL else <uint32_t>op.vector[i].val, op.mask,
            )
            if group == NULL:
                error = errno
                self.leave(op)
                raise OSError(error, f"a thread to wait for futexes: {os.strerror(error)}")
            op.groups[self.last_id] = (<uintptr_t>group, i)
            self.by_id[self.last_id] = op
        return 0

    cdef int open_threads(self) except -1:
        cdef int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if fd < 0:
            raise OSError(errno, f"eventfd: {os.strerror(errno)}")
        try:
            self.reactor.stream_open(fd, self)
            # Each write is an edge, and nobody has to read it: see the reactor's own.
            self.reactor.stream_wait(fd, self, EPOLLIN | EDGE)
        except BaseException:
            c_close(fd)
            raise
        ft_open(&self.threads, fd, self.has_waitv)
        self.event_fd = fd
        return 0

    cdef int ready(self, uint32_t events) except -1:
        cdef ft_result[64] results
        cdef size_t i, n = 64
        cdef int result
        cdef FutexWait op
        cdef uint32_t *word = ft_take_stray(&self.threads)
        while word != NULL:
            if not self.pass_to(word, ALL):
                word_wake(word, 1, ALL)
            word = ft_take_stray(&self.threads)
        while n == 64:
            n = ft_take(&self.threads, results, 64)
            for i in range(n):
                op = <FutexWait>self.by_id.pop(results[i].id, None)
                if op is None:
                    continue
                result = results[i].result
                if result == 0:
                    result = op.groups[results[i].id][1]
                del op.groups[results[i].id]
                if op.done:  # a second word of one wait
                    if result >= 0:
                        op.pass_on(result)
                    continue
                op.done = True
                op.result = result
                self.leave(op)
                op.over(result)
        if self.near is not None:
            self.near.told()
        return 0

    cdef bint pass_to(self, uint32_t *word, uint32_t mask) except -1:
        """Wake another of this loop's waits that threads wait for.

        The kernel may not know of it at this moment: a thread whose set of words
        grows leaves futex_waitv and enters it again.
        """
        cdef FutexWait op
        cdef Py_ssize_t i
        if self.near is not None:
            for i in range(len(self.near.ops)):
                op = <FutexWait>self.near.ops[i]
                if op.first == word and not op.future.done():
                    self.near.finish(i, 0)
                    return True
        for id, found in list(self.by_id.items()):
            op = <FutexWait>found
            if op.done or op.future.done() or not op.mask & mask or id not in op.groups:
                continue  # of several words, leave() has taken this one out already
            i = op.groups[id][1]
            if (op.first if op.vector == NULL
                    else <uint32_t *><uintptr_t>op.vector[i].uaddr) != word:
                continue
            self.leave(op)
            if op.groups:
                continue  # one of its words has a result already, which will be told
            op.done = True
            op.over(<int>i)
            return True
        return False

    cdef int leave(self, FutexWait op) except -1:
        """Take the words of a wait out of the threads; results that came stay to be taken."""
        for id, (group, _) in list(op.groups.items()):
            if ft_remove(&self.threads, <ft_group *><uintptr_t>group, id):
                del op.groups[id]
                self.by_id.pop(id, None)
        return 0

    cdef int end(self, FutexWait op) except -1:
        """End a wait that goes on; its future is told, or done already."""
        if op.done or self.closed:
            return 0
        if self.in_ring:
            if not self.loop.q.state & (STATE_CLOSED | STATE_FORKED):
                self.reactor.cancel(op)
            return 0
        if op.near:
            return self.near.finish(self.near.ops.index(op), -ECANCELED)
        self.leave(op)
        if not op.groups:
            op.done = True
            op.over(-ECANCELED)
        return 0

    def look_around(self):
        """The patrol: end waits whose word gives no reason to sleep any more."""
        cdef FutexWait op
        self.patrol_timer = None
        if self.closed:
            return
        for op in list(self.patrolled):
            if op.stale():
                self.end(op)
        if self.patrolled:
            self.patrol_timer = self.loop.call_later(PATROL_SECONDS, self.look_around)

    def close(self):
        """The loop closes: end the threads.  What is in the ring, the reactor cancels."""
        if self.closed:
            return
        self.closed = True
        if self.patrol_timer is not None:
            self.patrol_timer.cancel()
            self.patrol_timer = None
        if self.near is not None:
            self.near.end()
            self.near.on = False
            self.near.ops.clear()
            self.near = None  # the two refer to each other
        if self.event_fd < 0:
            return
        if self.pid == os.getpid():  # else there are no threads here
            with nogil:
                ft_close(&self.threads)
            self.reactor.stream_close(self.event_fd, self, False)
        c_close(self.event_fd)
        self.event_fd = -1
        self.by_id.clear()
        self.patrolled.clear()

    def __dealloc__(self):
        if self.event_fd >= 0 and self.pid == os.getpid():
            with nogil:
                ft_close(&self.threads)
            c_close(self.event_fd)


# -- locks -------------------------------------------------------------------------


cdef class LockWord(Word):
    """A robust lock in 64 bytes of shared memory; see robust.h.

    It belongs to the thread that took it.
    """

    cdef lock *lock_at(self) except NULL:
        return <lock *>self.at()

    def __init__(self, buffer, Py_ssize_t offset=0):
        if offset > self.view.len - 64 or <uintptr_t>self.word % 8:
            raise ValueError(f"no room for a lock at offset {offset}, aligned to 8 bytes")

    def try_lock(self, bint waited=False):
        """0: another has it; 1: taken; 2: taken, and an owner had died with it.

        `waited` says that the caller has slept for it.
        """
        cdef int r = lock_try(self.lock_at(), LOCK_WAITERS if waited else 0)
        if r < 0:
            raise OSError(-r, f"robust list: {os.strerror(-r)}")
        if r:
            Py_INCREF(self)  # mapped as long as it is held
        return r

    def announce(self):
        """What to wait for while the word stays so; 0 if the lock is free."""
        return lock_announce(self.lock_at())

    @property
    def mine(self):
        """Whether this thread holds it."""
        return lock_mine(self.lock_at())

    @property
    def held(self):
        """Whether anybody alive holds it."""
        cdef uint32_t word = word_load(self.at())
        return (word & LOCK_OWNER) != 0 and not word & LOCK_DIED

    @property
    def owner(self):
        """The thread id of the owner, 0 without one."""
        return word_load(self.at()) & LOCK_OWNER

    @property
    def inconsistent(self):
        return self.lock_at().inconsistent != 0

    def make_consistent(self):
        self.lock_at().inconsistent = 0

    def unlock(self):
        """False, and nothing done, if this thread does not hold it."""
        cdef lock *found = self.lock_at()
        if not lock_mine(found):
            return False
        lock_release(found)
        Py_DECREF(self)
        return True

    def release(self):
        if self.word != NULL and lock_mine(self.lock_at()):
            raise RuntimeError("this lock is held by the thread that closes it: release it first")
        Word.release(self)


cdef class QueueMemory(Word):
    """A bounded queue of byte messages; see robust.h.

    put() and get() answer None or bytes when done, BUSY when the queue's own lock is held by
    another, and an int to wait for when it is full or empty.
    """

    cdef queue *queue_at(self) except NULL:
        return <queue *>self.at()

    def __init__(self, buffer, Py_ssize_t offset=0):
        if offset > self.view.len - 256 or <uintptr_t>self.word % 8:
            raise ValueError(f"no room for a queue at offset {offset}, aligned to 8 bytes")

    def create(self, uint32_t capacity, uint32_t maxsize):
        self.queue_at().capacity = capacity
        self.queue_at().maxsize = maxsize

    def check(self):
        """Whether the sizes it says fit this memory."""
        cdef uint32_t n = self.queue_at().capacity
        return n >= 64 and n & (n - 1) == 0 and self.offset + 256 + n <= self.view.len

    @property
    def capacity(self):
        return self.queue_at().capacity

    @property
    def maxsize(self):
        return self.queue_at().maxsize

    @property
    def size(self):
        return queue_size(self.queue_at())

    @property
    def getters(self):
        return word_load(&self.queue_at().getters)

    @property
    def putters(self):
        return word_load(&self.queue_at().putters)

    def not_waiting_put(self):
        word_add(&self.queue_at().putters, <uint32_t>-1)

    def not_waiting_get(self):
        word_add(&self.queue_at().getters, <uint32_t>-1)

    def fits(self, size_t n):
        return n < 0x7ffffff0 and queue_room(<uint32_t>n) <= self.queue_at().capacity

    cdef object answer(self, int r, uint32_t seen):
        if r == QUEUE_BUSY:
            return BUSY
        if r == QUEUE_WAIT:
            return seen
        raise OSError(-r - 1000, f"robust list: {os.strerror(-r - 1000)}")

    def put(self, const unsigned char[::1] data, bint wait, bint waited):
        cdef uint32_t seen = 0
        cdef queue *q = self.queue_at()
        cdef Py_ssize_t n = data.shape[0]
        cdef const char *bytes = NULL
        cdef int r
        if n:
            bytes = <const char *>&data[0]
        r = queue_put(q, bytes, <uint32_t>n, LOCK_WAITERS if waited else 0, wait, &seen)
        return None if r == 0 else self.answer(r, seen)

    def get(self, bint wait, bint waited):
        cdef uint32_t seen = 0, n = 0
        cdef queue *q = self.queue_at()
        cdef int r = queue_look(q, LOCK_WAITERS if waited else 0, wait, &seen, &n)
        if r:
            return self.answer(r, seen)
        if n > q.capacity:
            lock_release(&q.lock)
            raise ValueError("the queue's memory was overwritten by something else")
        try:
            data = PyBytes_FromStringAndSize(NULL, n)
        except BaseException:
            lock_release(&q.lock)
            raise
        queue_take(q, PyBytes_AS_STRING(data), n)
        return data


class _Busy:
    """Another process is inside the queue."""


BUSY = _Busy()


# -- the C library's semaphores -----------------------------------------------------


def long_at(uintptr_t address):
    """A 64-bit word at an address; the caller answers for the memory."""
    return long_load(<uint64_t *>address)


def long_add_at(uintptr_t address, int64_t n):
    """Add to it, atomically."""
    return long_add(<uint64_t *>address, <uint64_t>n)


def memory_at(uintptr_t address, Py_ssize_t size):
    """Writable memory at an address; the caller answers for it."""
    return PyMemoryView_FromMemory(<char *>address, size, PyBUF_WRITE)


def robust_offered():
    """0 if locks are robust in this thread, else an errno."""
    return -robust_ready()
