/* Waiting for futexes where the ring cannot: threads in futex_waitv.
 *
 * A loop has none until its first wait.  One thread waits for up to 127 words, and for one
 * more, its bell, which interrupts it when its set of words grows; further words have
 * further threads, since futex_waitv takes 128 words at most.  Where futex_waitv is missing
 * (before Linux 5.16), and for waits with a mask, which it does not know, a thread waits for
 * a single word and looks up every 20 ms.
 *
 * Ownership: whoever adds a word keeps its memory until it was removed or came out of
 * ft_take().  The threads touch words only under their group's lock, with the word still in
 * the group.  A word may be removed while a thread sleeps on it: a wake that then reaches
 * the thread is passed on, and also to `moved`, the word that a requeue may have moved this
 * sleep to; both are addresses only then, which the kernel looks up.  The threads never hold the GIL and take no signals.
 */
#ifndef AIOUNIFY_FUTEX_THREAD_H
#define AIOUNIFY_FUTEX_THREAD_H

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "words.h"

#define FT_WORDS 127
#define FT_STRAYS 16
#define FT_SLICE 20000000

struct ft_result {
    uint64_t id;
    int result;
};

struct ft;

struct ft_group {
    struct ft *home;
    struct ft_group *next;
    pthread_t thread;
    pthread_mutex_t lock;
    uint32_t bell;
    int n, stop, single;
    uint64_t ids[FT_WORDS];
    uint32_t *words[FT_WORDS], *moved[FT_WORDS], expected[FT_WORDS], mask;
};

struct ft {
    int event_fd, waitv;
    unsigned threads;
    size_t added; /* words in groups or results not taken: what results has room for */
    pthread_mutex_t lock;
    struct ft_result *results;
    size_t n_results, room;
    uint32_t *strays[FT_STRAYS]; /* words woken for a wait that was removed meanwhile */
    int n_strays;
    struct ft_group *groups;
};

/* The group's lock is held.  False if the word was removed meanwhile. */
static int ft_finish(struct ft_group *g, uint64_t id, int result)
{
    struct ft *home = g->home;
    uint64_t one = 1;
    int i;
    for (i = 0; i < g->n && g->ids[i] != id; i++)
        ;
    if (i == g->n)
        return 0;
    g->n--;
    g->ids[i] = g->ids[g->n];
    g->words[i] = g->words[g->n];
    g->expected[i] = g->expected[g->n];
    g->moved[i] = g->moved[g->n];
    pthread_mutex_lock(&home->lock);
    home->results[home->n_results].id = id;
    home->results[home->n_results].result = result;
    i = home->n_results++ == 0;
    pthread_mutex_unlock(&home->lock);
    if (i && write(home->event_fd, &one, 8) < 0)
        ; /* its counter is full only after 2**64 of these */
    return 1;
}

/* The loop may wait for the word elsewhere; false if it cannot be told. */
static int ft_stray(struct ft *home, uint32_t *word)
{
    uint64_t one = 1;
    int told;
    pthread_mutex_lock(&home->lock);
    told = home->n_strays < FT_STRAYS;
    if (told)
        home->strays[home->n_strays++] = word;
    pthread_mutex_unlock(&home->lock);
    return told && write(home->event_fd, &one, 8) == 8;
}

static uint32_t *ft_take_stray(struct ft *f)
{
    uint32_t *word;
    pthread_mutex_lock(&f->lock);
    word = f->n_strays ? f->strays[--f->n_strays] : NULL;
    pthread_mutex_unlock(&f->lock);
    return word;
}

static void *ft_main(void *arg)
{
    struct ft_group *g = arg;
    struct au_waitv v[FT_WORDS + 1];
    uint64_t ids[FT_WORDS];
    uint32_t *moved[FT_WORDS], bell, mask;
    int i, n, r;
    pthread_mutex_lock(&g->lock);
    while (!g->stop) {
        bell = g->bell;
        n = g->n;
        mask = g->mask;
        for (i = 0; i < n; i++) {
            v[i + 1] = (struct au_waitv){g->expected[i], (uintptr_t)g->words[i], AU_FUTEX2_U32, 0};
            ids[i] = g->ids[i];
            moved[i] = g->moved[i];
        }
        pthread_mutex_unlock(&g->lock);
        if (g->single && n) {
            r = word_wait((uint32_t *)v[1].uaddr, (uint32_t)v[1].val, mask, FT_SLICE);
            if (r == 0)
                r = 1;
        } else if (n) {
            v[0] = (struct au_waitv){bell, (uintptr_t)&g->bell, AU_FUTEX2_U32, 0};
            r = words_waitv(v, n + 1, NULL);
        } else
            r = word_wait(&g->bell, bell, 0xffffffffu, -1) ? -EINTR : 0;
        pthread_mutex_lock(&g->lock);
        if (r > 0) {
            if (!ft_finish(g, ids[r - 1], 0)) {
                /* removed meanwhile: to another who waits here, in the loop, or in the kernel */
                for (i = 0; i < g->n && (uintptr_t)g->words[i] != v[r].uaddr; i++)
                    ;
                if (i < g->n)
                    ft_finish(g, g->ids[i], 0);
                else if (g->single || !ft_stray(g->home, (uint32_t *)v[r].uaddr))
                    word_wake((uint32_t *)v[r].uaddr, 1, g->single ? mask : 0xffffffffu);
                if (moved[r - 1] != NULL)
                    word_wake(moved[r - 1], 1, g->single ? mask : 0xffffffffu);
            }
        } else if (r == -EAGAIN) {
            for (i = g->n - 1; i >= 0; i--)
                if (word_load(g->words[i]) != g->expected[i])
                    ft_finish(g, g->ids[i], -EAGAIN);
        } else if (r < 0 && r != -EINTR && r != -ETIMEDOUT) {
            while (g->n)
                ft_finish(g, g->ids[0], r);
        }
    }
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

static struct ft_group *ft_group_new(struct ft *f, int single)
{
    struct ft_group *g = calloc(1, sizeof *g);
    pthread_attr_t attr;
    sigset_t all, before;
    int error;
    if (g == NULL)
        return NULL;
    g->home = f;
    g->single = single;
    pthread_mutex_init(&g->lock, NULL);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 << 10);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&g->thread, &attr, ft_main, g);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (error) {
        free(g);
        errno = error;
        return NULL;
    }
    g->next = f->groups;
    f->groups = g;
    f->threads++;
    return g;
}

/* The group that waits for it now, or NULL with errno. */
static struct ft_group *ft_add(struct ft *f, uint64_t id, uint32_t *word, uint32_t expected,
                               uint32_t mask, uint32_t *moved)
{
    struct ft_group *g;
    int single = mask != 0xffffffffu || !f->waitv;
    if (f->added == f->room) {
        size_t room = f->room ? f->room * 2 : 128;
        struct ft_result *more;
        pthread_mutex_lock(&f->lock);
        more = realloc(f->results, room * sizeof *more);
        if (more != NULL) {
            f->results = more;
            f->room = room;
        }
        pthread_mutex_unlock(&f->lock);
        if (more == NULL) {
            errno = ENOMEM;
            return NULL;
        }
    }
    for (g = f->groups; g != NULL; g = g->next)
        /* n only falls without the loop's doing, so what is read here is good enough */
        if (g->single == single
            && __atomic_load_n(&g->n, __ATOMIC_RELAXED) < (single ? 1 : FT_WORDS))
            break;
    if (g == NULL && (g = ft_group_new(f, single)) == NULL)
        return NULL;
    pthread_mutex_lock(&g->lock);
    g->ids[g->n] = id;
    g->words[g->n] = word;
    g->expected[g->n] = expected;
    g->moved[g->n] = moved;
    g->mask = mask;
    g->n++;
    word_add(&g->bell, 1);
    pthread_mutex_unlock(&g->lock);
    f->added++;
    word_wake(&g->bell, 1, 0xffffffffu);
    return g;
}

/* True if it was still waiting; else it is among the results. */
static int ft_remove(struct ft *f, struct ft_group *g, uint64_t id)
{
    int i, found;
    pthread_mutex_lock(&g->lock);
    for (i = 0; i < g->n && g->ids[i] != id; i++)
        ;
    found = i < g->n;
    if (found) {
        g->n--;
        g->ids[i] = g->ids[g->n];
        g->words[i] = g->words[g->n];
        g->expected[i] = g->expected[g->n];
        g->moved[i] = g->moved[g->n];
        f->added--;
    }
    pthread_mutex_unlock(&g->lock);
    return found;
}

static size_t ft_take(struct ft *f, struct ft_result *to, size_t most)
{
    size_t n;
    pthread_mutex_lock(&f->lock);
    n = f->n_results < most ? f->n_results : most;
    f->n_results -= n;
    memcpy(to, f->results + f->n_results, n * sizeof *to);
    pthread_mutex_unlock(&f->lock);
    f->added -= n;
    return n;
}

static void ft_open(struct ft *f, int event_fd, int waitv)
{
    memset(f, 0, sizeof *f);
    f->event_fd = event_fd;
    f->waitv = waitv;
    pthread_mutex_init(&f->lock, NULL);
}

/* Ends the threads; results that were not taken are dropped. */
static void ft_close(struct ft *f)
{
    struct ft_group *g, *next;
    for (g = f->groups; g != NULL; g = g->next) {
        pthread_mutex_lock(&g->lock);
        g->stop = 1;
        word_add(&g->bell, 1);
        pthread_mutex_unlock(&g->lock);
        word_wake(&g->bell, 1, 0xffffffffu);
    }
    for (g = f->groups; g != NULL; g = next) {
        next = g->next;
        pthread_join(g->thread, NULL);
        free(g);
    }
    f->groups = NULL;
    free(f->results);
    f->results = NULL;
    f->n_results = f->room = f->added = 0;
}

#endif
