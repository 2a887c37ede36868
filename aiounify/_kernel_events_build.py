"""Builds aiounify._kernel_events: the ABI of event descriptors, waitid, and the signal relay.

cffi in API mode: what is declared here is compared with the kernel's headers when it is compiled,
and with what the kernel writes by tests/test_kernel_abi.py.  The relay is a signal handler in C:
Python's own says which signal came, but not who sent it.  See aiounify/signals.py for why it is a
handler and not a signalfd.  Run by setup.py; not imported at run time.
"""

from cffi import FFI

ffibuilder = FFI()

ffibuilder.cdef(
    """
    /* inotify(7), Linux 2.6.13: what Kind is made of.  Reading events, once for each, and adding
       watches, once for each directory, is in _core/inotify.pyx. */
    #define IN_ACCESS ...
    #define IN_MODIFY ...
    #define IN_ATTRIB ...
    #define IN_CLOSE_WRITE ...
    #define IN_CLOSE_NOWRITE ...
    #define IN_OPEN ...
    #define IN_MOVED_FROM ...
    #define IN_CREATE ...
    #define IN_DELETE ...
    #define IN_Q_OVERFLOW ...
    struct inotify_event {
        int wd;
        uint32_t mask, cookie, len;
        ...; /* name[] */
    };
    int au_inotify_init(void);

    /* eventfd(2), Linux 2.6.27, non-blocking and closed on exec */
    int au_eventfd(unsigned int value, int semaphore);

    /* signalfd(2), Linux 2.6.27: `signals` has bit n - 1 for signal n.  -1 makes a descriptor,
       which is non-blocking and closed on exec; another is told new signals. */
    struct signalfd_siginfo {
        uint32_t ssi_signo;
        int32_t ssi_errno, ssi_code;
        uint32_t ssi_pid, ssi_uid;
        int32_t ssi_fd;
        uint32_t ssi_tid, ssi_band, ssi_overrun, ssi_trapno;
        int32_t ssi_status, ssi_int;
        uint64_t ssi_ptr, ssi_utime, ssi_stime, ssi_addr;
        ...; /* to 128 bytes */
    };
    int au_signalfd(int fd, uint64_t signals);

    /* pidfd_open(2), Linux 5.3 */
    int au_pidfd_open(int pid);

    /* timerfd_create(2), Linux 2.6.25; a set clock is told from 3.0 on */
    int au_timerfd_create(int clock);
    int au_timerfd_set(int fd, int64_t when_ns, int told);

    /* waitid(2) with its fifth argument, which libc hides; P_PIDFD from Linux 5.4 on */
    typedef struct {
        int32_t pid, uid, code, status;
        int64_t user_us, system_us;
        int64_t counts[14]; /* of struct rusage, in its order */
    } au_exit;
    int au_waitid(int by_pidfd, int id, int peek, au_exit *found);

    typedef struct {
        int32_t signal, code, pid, uid, status, value;
    } au_signal;
    int au_signals_slot(int fd);
    void au_signals_listen(int slot, uint64_t signals);
    uint64_t au_signals_lost(int slot);
    void au_signals_leave(int slot);
    int au_signal_install(int signal, int chain);
    int au_signal_restore(int signal);
    void au_signals_forked(void);
    """
)

ffibuilder.set_source(
    "aiounify._kernel_events",
    r"""
    #include <errno.h>
    #include <sched.h>
    #include <signal.h>
    #include <stdatomic.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/eventfd.h>
    #include <sys/inotify.h>
    #include <sys/resource.h>
    #include <sys/signalfd.h>
    #include <sys/syscall.h>
    #include <sys/timerfd.h>
    #include <sys/wait.h>
    #include <unistd.h>

    #ifndef TFD_TIMER_CANCEL_ON_SET
    #define TFD_TIMER_CANCEL_ON_SET 2
    #endif

    static int au_inotify_init(void)
    {
        return inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    }

    static int au_eventfd(unsigned int value, int semaphore)
    {
        return eventfd(value, EFD_CLOEXEC | EFD_NONBLOCK | (semaphore ? EFD_SEMAPHORE : 0));
    }

    /* By number: libc keeps two signals to itself and takes a larger set. */
    static int au_signalfd(int fd, uint64_t signals)
    {
        return syscall(SYS_signalfd4, fd, &signals, sizeof(signals), SFD_CLOEXEC | SFD_NONBLOCK);
    }

    static int au_pidfd_open(int pid)
    {
    #ifdef SYS_pidfd_open
        return syscall(SYS_pidfd_open, pid, 0);
    #else
        return syscall(434, pid, 0); /* the same on every architecture */
    #endif
    }

    static int au_timerfd_create(int clock)
    {
        return timerfd_create(clock, TFD_CLOEXEC | TFD_NONBLOCK);
    }

    /* At an absolute time of the clock; a negative one disarms. */
    static int au_timerfd_set(int fd, int64_t when_ns, int told)
    {
        struct itimerspec t;
        memset(&t, 0, sizeof(t));
        if (when_ns >= 0) {
            t.it_value.tv_sec = when_ns / 1000000000;
            t.it_value.tv_nsec = when_ns % 1000000000;
            if (!when_ns)
                t.it_value.tv_nsec = 1; /* zero would disarm */
        }
        return timerfd_settime(fd, TFD_TIMER_ABSTIME | (told ? TFD_TIMER_CANCEL_ON_SET : 0), &t,
                               NULL);
    }

    typedef struct {
        int32_t pid, uid, code, status;
        int64_t user_us, system_us;
        int64_t counts[14];
    } au_exit;

    /* Without waiting: 1 and the child that has ended, 0 if it has not, -1 and errno. */
    static int au_waitid(int by_pidfd, int id, int peek, au_exit *found)
    {
        siginfo_t info;
        struct rusage used;
        memset(&info, 0, sizeof(info));
        memset(&used, 0, sizeof(used));
        int options = WEXITED | WNOHANG | (peek ? WNOWAIT : 0);
        int kind = by_pidfd ? 3 /* P_PIDFD */ : P_PID;
        while (syscall(SYS_waitid, kind, id, &info, options, &used) < 0)
            if (errno != EINTR)
                return -1;
        if (!info.si_pid)
            return 0;
        found->pid = info.si_pid;
        found->uid = (int32_t)info.si_uid;
        found->code = info.si_code;
        found->status = info.si_status;
        found->user_us = (int64_t)used.ru_utime.tv_sec * 1000000 + used.ru_utime.tv_usec;
        found->system_us = (int64_t)used.ru_stime.tv_sec * 1000000 + used.ru_stime.tv_usec;
        long *counts = &used.ru_maxrss; /* fourteen longs follow (getrusage(2)) */
        for (int i = 0; i < 14; i++)
            found->counts[i] = counts[i];
        return 1;
    }

    /* ---- signals: one handler for the process, which writes to the pipes of who listens ----

       Slots are given out with the GIL held, and read by the handler in any thread at any
       moment.  A slot's descriptor is closed only after its mask is empty and no handler that
       may have seen the old mask is still running. */

    typedef struct {
        int32_t signal, code, pid, uid, status, value;
    } au_signal;

    #define SLOTS 64
    static struct {
        atomic_int fd; /* -1: free */
        _Atomic uint64_t signals, lost;
    } slots[SLOTS];
    static atomic_int n_slots, running;
    static atomic_int owner;
    static struct sigaction before[65];
    static atomic_int chains[65];

    static void relay(int number, siginfo_t *info, void *context)
    {
        int error = errno;
        au_signal record;
        memset(&record, 0, sizeof(record));
        record.signal = number;
        record.code = info->si_code;
        /* the kernel's own, and those of timers and queues, have other fields there */
        if (info->si_code <= 0 || number == SIGCHLD) {
            if (info->si_code != SI_TIMER) {
                record.pid = info->si_pid;
                record.uid = (int32_t)info->si_uid;
            }
            if (number == SIGCHLD && info->si_code > 0)
                record.status = info->si_status;
            else if (info->si_code == SI_QUEUE || info->si_code == SI_TIMER)
                record.value = info->si_value.sival_int;
        }
        atomic_fetch_add(&running, 1);
        /* a child between vfork and exec has the parent's memory, and its pipes */
        if (getpid() == atomic_load(&owner)) {
            int n = atomic_load(&n_slots);
            for (int i = 0; i < n; i++)
                if (atomic_load(&slots[i].signals) & (uint64_t)1 << (number - 1)
                    && write(atomic_load(&slots[i].fd), &record, sizeof(record)) < 0)
                    atomic_fetch_add(&slots[i].lost, 1);
        }
        if (atomic_load(&chains[number])) {
            struct sigaction *old = &before[number];
            if (old->sa_flags & SA_SIGINFO)
                old->sa_sigaction(number, info, context);
            else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN)
                old->sa_handler(number);
        }
        atomic_fetch_sub(&running, 1);
        errno = error;
    }

    /* A slot whose signals go to this descriptor; -1 if all are taken. */
    static int au_signals_slot(int fd)
    {
        int n = atomic_load(&n_slots), i;
        atomic_store(&owner, getpid());
        for (i = 0; i < n && atomic_load(&slots[i].fd) >= 0; i++)
            ;
        if (i == SLOTS)
            return -1;
        atomic_store(&slots[i].signals, 0);
        atomic_store(&slots[i].lost, 0);
        atomic_store(&slots[i].fd, fd);
        if (i == n)
            atomic_store(&n_slots, n + 1);
        return i;
    }

    static void au_signals_listen(int slot, uint64_t signals)
    {
        atomic_store(&slots[slot].signals, signals);
    }

    static uint64_t au_signals_lost(int slot)
    {
        return atomic_load(&slots[slot].lost);
    }

    static void au_signals_leave(int slot)
    {
        atomic_store(&slots[slot].signals, 0);
        while (atomic_load(&running)) /* in other threads: in this one it has returned */
            sched_yield();
        atomic_store(&slots[slot].fd, -1);
    }

    /* Put the relay in front of the handler there is; `chain` says whether that one is called
       too.  0, or -1 and errno. */
    static int au_signal_install(int number, int chain)
    {
        struct sigaction action, old;
        if (sigaction(number, NULL, &old) < 0)
            return -1;
        if (!(old.sa_flags & SA_SIGINFO && old.sa_sigaction == relay)) {
            /* not called before the relay is there */
            atomic_store(&chains[number], 0);
            before[number] = old;
            memset(&action, 0, sizeof(action));
            action.sa_sigaction = relay;
            action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
            sigemptyset(&action.sa_mask);
            if (sigaction(number, &action, NULL) < 0)
                return -1;
        }
        atomic_store(&chains[number], chain);
        return 0;
    }

    /* Put back what was there, unless somebody has replaced the relay meanwhile. */
    static int au_signal_restore(int number)
    {
        struct sigaction now;
        if (sigaction(number, NULL, &now) < 0)
            return -1;
        if (!(now.sa_flags & SA_SIGINFO && now.sa_sigaction == relay))
            return 0;
        return sigaction(number, &before[number], NULL);
    }

    /* In a forked child: the parent's listeners are none of its business. */
    static void au_signals_forked(void)
    {
        for (int i = 0; i < SLOTS; i++) {
            atomic_store(&slots[i].signals, 0);
            atomic_store(&slots[i].fd, -1);
        }
        atomic_store(&n_slots, 0);
        atomic_store(&running, 0);
        for (int number = 1; number < 65; number++)
            au_signal_restore(number);
    }
    """,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
