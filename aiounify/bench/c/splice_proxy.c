/* A TCP proxy in C: one thread, epoll edge by edge, and splice() through a pipe for each direction.
 *
 *     splice_proxy PORT TARGET_PORT      both on 127.0.0.1
 *
 * The reference for the example proxy: what a proxy costs that does nothing but move bytes.  It has
 * no limits, no time-outs and no HTTP.  The end of one direction is passed on and leaves the other
 * alone; a connection that fails ends both.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIPE_SIZE (256 * 1024)
#define FLAGS (SPLICE_F_MOVE | SPLICE_F_NONBLOCK)

struct connection;

/* A socket, and the direction that begins here. */
struct end {
    struct connection *connection;
    struct end *other;
    int fd, pipe[2];
    size_t pending; /* in the pipe */
    int ended, shut;
};

struct connection {
    struct end client, target;
    int failed;
    struct connection *next_dead;
};

static int set;
static struct sockaddr_in to;
static struct connection *dead; /* freed when all events of a turn were taken */

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void set_nodelay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static struct sockaddr_in local(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static void close_end(struct end *end)
{
    close(end->fd);
    if (end->pipe[0] >= 0) {
        close(end->pipe[0]);
        close(end->pipe[1]);
    }
}

static void end_connection(struct connection *c)
{
    if (c->failed == 2)
        return;
    c->failed = 2;
    close_end(&c->client);
    close_end(&c->target);
    c->next_dead = dead;
    dead = c;
}

/* Move what is there from an end to the other, until one of them blocks. */
static void pump(struct end *from)
{
    struct connection *c = from->connection;
    for (;;) {
        ssize_t n;
        if (from->pending) {
            n = splice(from->pipe[0], NULL, from->other->fd, NULL, from->pending, FLAGS);
            if (n > 0) {
                from->pending -= (size_t)n;
                continue;
            }
        } else if (from->ended) {
            if (!from->shut) {
                from->shut = 1;
                shutdown(from->other->fd, SHUT_WR);
            }
            return;
        } else {
            n = splice(from->fd, NULL, from->pipe[1], NULL, PIPE_SIZE, FLAGS);
            if (n > 0) {
                from->pending = (size_t)n;
                continue;
            }
            if (n == 0) {
                from->ended = 1;
                continue;
            }
        }
        if (errno != EAGAIN && errno != EINTR && errno != ENOTCONN)
            c->failed = 1;
        if (errno != EINTR)
            return;
    }
}

static void watch(struct end *end)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    event.data.ptr = end;
    if (epoll_ctl(set, EPOLL_CTL_ADD, end->fd, &event) < 0)
        fail("epoll_ctl");
}

static void make_end(struct end *end, struct connection *c, struct end *other, int fd)
{
    end->connection = c;
    end->other = other;
    end->fd = fd;
    end->pipe[0] = end->pipe[1] = -1;
    if (pipe2(end->pipe, O_CLOEXEC | O_NONBLOCK) < 0)
        fail("pipe2");
    fcntl(end->pipe[1], F_SETPIPE_SZ, PIPE_SIZE);
    set_nodelay(fd);
}

static void accept_all(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        int target = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (!c || target < 0)
            fail("socket");
        if (connect(target, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
            fail("connect");
        make_end(&c->client, c, &c->target, fd);
        make_end(&c->target, c, &c->client, target);
        watch(&c->client);
        watch(&c->target);
    }
}

int main(int argc, char **argv)
{
    int on = 1, listener, n;
    struct sockaddr_in here;
    struct epoll_event event = {.events = EPOLLIN}, events[256];
    if (argc != 3) {
        fprintf(stderr, "usage: splice_proxy PORT TARGET_PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    here = local(atoi(argv[1]));
    to = local(atoi(argv[2]));
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 1024) < 0)
        fail("bind");
    if ((set = epoll_create1(EPOLL_CLOEXEC)) < 0)
        fail("epoll_create1");
    epoll_ctl(set, EPOLL_CTL_ADD, listener, &event); /* data: NULL */
    for (;;) {
        n = epoll_wait(set, events, 256, -1);
        for (int i = 0; i < n; i++) {
            struct end *end = events[i].data.ptr;
            if (!end) {
                accept_all(listener);
                continue;
            }
            struct connection *c = end->connection;
            if (c->failed == 2)
                continue; /* closed by an event of this turn */
            if (events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                pump(end);
            if (events[i].events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
                pump(end->other);
            if (c->failed || (c->client.shut && c->target.shut))
                end_connection(c);
        }
        while (dead) {
            struct connection *next = dead->next_dead;
            free(dead);
            dead = next;
        }
    }
}
