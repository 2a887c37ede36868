/* A look around before the sleep: whether what a loop is about to sleep for comes at once.
 *
 * Going to sleep and being woken on another CPU costs far more than an answer from there takes
 * (Linux 6.18, 2 virtual CPUs, ping-pong in C: 25 us of CPU time and 300 us a round trip; 0.6 us
 * and 5 us with a look around).  So a loop that waits for futexes looks for SPIN_NS first, as long
 * as two of three looks are worth it; after that it sleeps at once, 4 to 1024 times, before it
 * tries again.  With one CPU whoever would answer cannot run meanwhile, so it never looks.
 */
#ifndef AIOUNIFY_SPIN_H
#define AIOUNIFY_SPIN_H

#include <stdint.h>
#include <time.h>
#include <unistd.h>

#define SPIN_NS 20000
#define SPIN_MAX_PAUSE 1024

struct spin {
    int off, score;
    unsigned skip, pause;
};

static inline void cpu_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

static void spin_start(struct spin *s)
{
    /* those of the machine, not of this thread: who answers may be bound to another one */
    s->off = sysconf(_SC_NPROCESSORS_ONLN) == 1;
    s->score = 8;
    s->skip = 0;
    s->pause = 4;
}

/* `spins`: 0 never, 1 while it is worth it, 2 always */
static inline int spin_wanted(struct spin *s, int spins)
{
    if (spins != 1)
        return spins;
    if (!s->pause)
        spin_start(s); /* the first time */
    if (s->off)
        return 0;
    if (s->skip) {
        s->skip--;
        return 0;
    }
    return 1;
}

static inline int64_t spin_end(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec + SPIN_NS;
}

/* Some instructions' time; false once the end has come. */
static inline int spin_on(int64_t end)
{
    struct timespec t;
    for (int i = 0; i < 8; i++)
        cpu_pause();
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec < end;
}

static inline int spin_done(struct spin *s, int found)
{
    if (found) {
        if (s->score < 8)
            s->score++;
        s->pause = 4;
    } else if ((s->score -= 2) < 0) {
        s->skip = s->pause;
        if (s->pause < SPIN_MAX_PAUSE)
            s->pause *= 2;
        s->score = 4;
    }
    return found;
}

#endif
