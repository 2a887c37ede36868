/* Waiting for a few futexes in the loop's own thread: the epoll set is watched by another.
 *
 * A loop that sleeps mostly for futexes blocks in futex_waitv over their words and one more,
 * the bell, which a thread rings when the epoll set becomes readable.  A wake of a word then
 * costs one switch of threads, where waiting in a thread costs two and an eventfd; what comes
 * through the set costs one more.
 *
 * The bell is 0 while the thread watches the set, and 1 from the moment it found something
 * until the loop, which has taken what there was, sleeps the next time.  Only one of the two
 * sleeps on it at a time.  The thread never touches anything but this struct, never holds the
 * GIL and takes no signals.
 */
#ifndef AIOUNIFY_FUTEX_NEAR_H
#define AIOUNIFY_FUTEX_NEAR_H

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include "spin.h"
#include "words.h"

struct near {
    int epfd, end_fd, answered;
    uint32_t bell, ended;
    pthread_t thread;
    struct spin spin;
};

static void *near_main(void *arg)
{
    struct near *s = arg;
    struct pollfd p[2] = {{s->epfd, POLLIN, 0}, {s->end_fd, POLLIN, 0}};
    for (;;) {
        if (poll(p, 2, -1) < 0)
            continue;
        if (p[1].revents)
            return NULL;
        word_store(&s->bell, 1);
        word_wake(&s->bell, 1, 0xffffffffu);
        while (word_load(&s->bell) == 1 && !word_load(&s->ended))
            word_wait(&s->bell, 1, 0xffffffffu, -1);
    }
}

/* 0, or an errno */
static int near_start(struct near *s, int epfd)
{
    pthread_attr_t attr;
    sigset_t all, before;
    int error;
    s->epfd = epfd;
    s->bell = 0;
    s->answered = 0;
    s->ended = 0;
    s->end_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->end_fd < 0)
        return errno;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 << 10);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&s->thread, &attr, near_main, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (error)
        close(s->end_fd);
    return error;
}

static void near_stop(struct near *s)
{
    uint64_t one = 1;
    word_store(&s->ended, 1); /* before the bell: the thread looks at it after ringing */
    if (write(s->end_fd, &one, 8) < 0)
        ;
    word_store(&s->bell, 0);
    word_wake(&s->bell, 1, 0xffffffffu);
    pthread_join(s->thread, NULL);
    close(s->end_fd);
}

/* Whether one of the words, or the bell, changes within a moment. */
static int near_look(struct near *s, struct au_waitv *v, unsigned n)
{
    int64_t end = spin_end();
    do {
        for (unsigned i = 0; i < n; i++)
            if (word_load((uint32_t *)(uintptr_t)v[i].uaddr) != (uint32_t)v[i].val)
                return spin_done(&s->spin, 1);
    } while (spin_on(end));
    return spin_done(&s->spin, 0);
}

/* v[0] is for the bell.  0: the set has something; else as futex_waitv. */
static int near_sleep(struct near *s, struct au_waitv *v, unsigned n, int spins)
{
    int r;
    if (word_load(&s->bell)) {
        if (!s->answered) {
            s->answered = 1;
            return 0;
        }
        word_store(&s->bell, 0);
        word_wake(&s->bell, 1, 0xffffffffu);
    }
    s->answered = 0;
    v[0] = (struct au_waitv){0, (uintptr_t)&s->bell, AU_FUTEX2_U32, 0};
    if (spin_wanted(&s->spin, spins) && near_look(s, v, n)) {
        s->answered = word_load(&s->bell);
        return s->answered ? 0 : -EAGAIN;
    }
    r = words_waitv(v, n, NULL);
    if (r == 0)
        s->answered = 1;
    return r;
}

#endif
