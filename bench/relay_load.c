/* What a measurement of relays needs at a speed that Python does not have: a load, and a relay without any check.
 *
 *   relay_load load RATE SECONDS < ports     each line: PORT_OF_A RELAY_FOR_A PORT_OF_B RELAY_FOR_B
 *   relay_load load RATE SECONDS A RELAY B NETWORK_OF_A NETWORK_OF_B < ports
 *   relay_load relay < ports                 the same lines; it relays until standard input or the process ends
 *
 * Everything is on 127.0.0.1 unless the addresses are said, and the network namespaces of A and B. The load is 172-byte RTP both ways, RATE packets a second in all, with the time of
 * sending in the payload. It prints one line of JSON: what was sent, what came, and how long it took.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = 172, BATCH = 32, MOST = 4096, BUFFER = 1 << 22, SETTLE_NS = 300000000, PAUSE_NS = 200000 };

struct end { int fd; struct sockaddr_in to; uint32_t ssrc; uint16_t sequence; uint32_t timestamp; int out; };

static struct end ends[MOST];
static int count;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static const char *address_of_a = "127.0.0.1", *relay_address = "127.0.0.1", *address_of_b = "127.0.0.1";

static struct sockaddr_in at(const char *address, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &a.sin_addr);
    return a;
}

static void enter(const char *network)
{
    int file = open(network, O_RDONLY);
    if (file < 0 || setns(file, CLONE_NEWNET)) {
        fprintf(stderr, "%s: %s\n", network, strerror(errno));
        exit(1);
    }
    close(file);
}

static void open_end(const char *address, int own, const char *relay, int to)
{
    struct sockaddr_in a = at(address, own);
    int size = BUFFER, fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    if (fd < 0 || count >= MOST || bind(fd, (struct sockaddr *)&a, sizeof a)) {
        fprintf(stderr, "port %d: %s\n", own, strerror(errno));
        exit(1);
    }
    uint32_t ssrc = (uint32_t)now_ns() + count;
    ends[count] = (struct end){.fd = fd, .to = at(relay, to), .ssrc = ssrc, .timestamp = 160, .out = count ^ 1};
    count++;
}

static int watch_all(void)
{
    int watch = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = i};
        epoll_ctl(watch, EPOLL_CTL_ADD, ends[i].fd, &e);
    }
    return watch;
}

static char packets[BATCH][2048];
static struct iovec pieces[BATCH];
static struct mmsghdr heads[BATCH];

static void prepare(int n, struct sockaddr_in *to, int length)
{
    for (int i = 0; i < n; i++) {
        pieces[i] = (struct iovec){packets[i], length};
        heads[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
        if (to) heads[i].msg_hdr.msg_name = to, heads[i].msg_hdr.msg_namelen = sizeof *to;
    }
}

static int send_some(struct end *e, int n)
{
    int64_t t = now_ns();
    prepare(n, &e->to, BYTES);
    for (int i = 0; i < n; i++) {
        unsigned char *p = (unsigned char *)packets[i];
        uint16_t s = htons(e->sequence++);
        uint32_t ts = htonl(e->timestamp), ssrc = htonl(e->ssrc);
        e->timestamp += 160;
        p[0] = 0x80, p[1] = 0;
        memcpy(p + 2, &s, 2), memcpy(p + 4, &ts, 4), memcpy(p + 8, &ssrc, 4), memcpy(p + 12, &t, 8);
    }
    int done = sendmmsg(e->fd, heads, n, 0);
    return done < 0 ? 0 : done;
}

static int64_t *delays;
static int64_t received, most_delays;

static void receive_all(int watch)
{
    struct epoll_event ready[256];
    int n = epoll_wait(watch, ready, 256, 0);
    for (int i = 0; i < n; i++) {
        prepare(BATCH, NULL, sizeof packets[0]);
        int got = recvmmsg(ends[ready[i].data.u32].fd, heads, BATCH, 0, NULL);
        int64_t t = now_ns(), sent;
        for (int k = 0; k < got; k++) {
            if (heads[k].msg_len != BYTES) continue;
            memcpy(&sent, packets[k] + 12, 8);
            if (received < most_delays) delays[received] = t - sent;
            received++;
        }
    }
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int load(double rate, double seconds)
{
    int watch = watch_all(), next = 0;
    int64_t wanted = rate * seconds, sent = 0, start = now_ns();
    most_delays = wanted;
    delays = malloc(sizeof *delays * (wanted + 1));
    while (sent < wanted) {
        int64_t due = (now_ns() - start) * rate / 1e9, left = (due < wanted ? due : wanted) - sent;
        while (left > 0) {
            int n = left / count;
            n = n < 1 ? 1 : n > BATCH ? BATCH : n;
            sent += send_some(&ends[next], n);
            left -= n;
            next = (next + 1) % count;
            if (next % 64 == 0) receive_all(watch);
        }
        struct pollfd arrivals = {.fd = watch, .events = POLLIN};
        ppoll(&arrivals, 1, &(struct timespec){.tv_nsec = PAUSE_NS}, NULL);
        receive_all(watch);
    }
    int64_t took = now_ns() - start, end = now_ns() + SETTLE_NS;
    while (now_ns() < end) receive_all(watch);
    int64_t n = received < most_delays ? received : most_delays;
    qsort(delays, n, sizeof *delays, ascending);
    printf("{\"sent\": %lld, \"received\": %lld, \"seconds\": %f, \"p50_us\": %f, \"p99_us\": %f}\n", (long long)sent,
           (long long)received, took / 1e9, n ? delays[n / 2] / 1e3 : -1, n ? delays[n * 99 / 100] / 1e3 : -1);
    return 0;
}

static void relay(void)
{
    int watch = watch_all();
    char packet[2048];
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event ready[256];
        int n = epoll_wait(watch, ready, 256, -1);
        for (int i = 0; i < n; i++) {
            struct end *e = &ends[ready[i].data.u32], *out = &ends[e->out];
            for (int k = 0; k < BATCH; k++) {
                ssize_t length = recv(e->fd, packet, sizeof packet, 0);
                if (length < 0) break;
                sendto(out->fd, packet, length, 0, (struct sockaddr *)&out->to, sizeof out->to);
            }
        }
    }
}

int main(int argc, char **argv)
{
    int a, for_a, b, for_b, is_far = argc == 9, is_load = (argc == 4 || is_far) && !strcmp(argv[1], "load");
    if (!is_load && !(argc == 2 && !strcmp(argv[1], "relay"))) return 2;
    if (is_far) address_of_a = argv[4], relay_address = argv[5], address_of_b = argv[6];
    while (scanf("%d %d %d %d", &a, &for_a, &b, &for_b) == 4) {
        if (!is_load) {
            open_end(relay_address, for_a, address_of_a, a), open_end(relay_address, for_b, address_of_b, b);
            continue;
        }
        if (is_far) enter(argv[7]);
        open_end(address_of_a, a, relay_address, for_a);
        if (is_far) enter(argv[8]);
        open_end(address_of_b, b, relay_address, for_b);
    }
    if (is_load) return load(atof(argv[2]), atof(argv[3]));
    relay();
}
