/* What a measurement of STUN servers needs at a speed that Python does not have: a load, and the limit.
 *
 *   stund_load load PORT SECONDS plain|classic|garbage
 *   stund_load limit PORT
 *
 * The load keeps 32 datagrams in flight from each of 8 sockets to 127.0.0.1 and prints one line of JSON: the
 * replies, those that were wrong, and how long it took. Garbage is random and gets no replies: it is sent as fast as
 * the machine can, and a server's time for it is what its process has used. The limit answers with the mapped
 * address alone, in either dialect, and looks at nothing but the length and the type.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SOCKETS = 8, IN_FLIGHT = 32, BATCH = 256, BYTES = 512, BUFFER = 1 << 22, LOST_MS = 100 };

static unsigned char packets[BATCH][BYTES];
static struct iovec pieces[BATCH];
static struct mmsghdr heads[BATCH];
static struct sockaddr_in names[BATCH];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void prepare(int n, int bytes, struct sockaddr_in *name, int step)
{
    for (int i = 0; i < n; i++) {
        pieces[i] = (struct iovec){packets[i], bytes};
        heads[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
        if (name) heads[i].msg_hdr.msg_name = name + i * step, heads[i].msg_hdr.msg_namelen = sizeof *name;
    }
}

static struct sockaddr_in at(int port)
{
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static int open_socket(int port)
{
    struct sockaddr_in own = at(port);
    int size = BUFFER, fd = socket(AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof own)) perror("bind"), exit(1);
    return fd;
}

/* ---- the limit: as much as any program can do with these two calls ---- */

static void limit(int port)
{
    int fd = open_socket(port);
    puts("ready"), fflush(stdout);
    for (;;) {
        prepare(BATCH, BYTES, names, 1);
        int n = recvmmsg(fd, heads, BATCH, MSG_WAITFORONE, NULL), k = 0;
        for (int i = 0; i < n; i++) {
            unsigned char *p = packets[i];
            if (heads[i].msg_len < 20 || memcmp(p, "\0\1", 2)) continue;
            uint32_t key = memcmp(p + 4, "\x21\x12\xA4\x42", 4) ? 0 : 0x2112A442;
            uint16_t seen_port = names[i].sin_port ^ htons(key >> 16);
            uint32_t seen_address = names[i].sin_addr.s_addr ^ htonl(key);
            p[0] = 1, p[1] = 1, p[2] = 0, p[3] = 12;
            memcpy(p + 20, key ? "\0\x20\0\x08\0\1" : "\0\1\0\x08\0\1", 6), memcpy(p + 26, &seen_port, 2), memcpy(p + 28, &seen_address, 4);
            pieces[i].iov_len = 32;
            heads[k++] = heads[i];
        }
        for (int done = 0; done < k;) {
            int sent = sendmmsg(fd, heads + done, k - done, 0);
            done += sent > 0 ? sent : 1;
        }
    }
}

/* ---- the load ---- */

static uint64_t counter = 1;

static void send_requests(int fd, struct sockaddr_in *to, int n, int is_classic)
{
    prepare(n, 20, to, 0);
    for (int i = 0; i < n; i++, counter++) {
        memcpy(packets[i], is_classic ? "\0\1\0\0\x0C\x1A\x55\x1C" : "\0\1\0\0\x21\x12\xA4\x42", 8);
        memcpy(packets[i] + 8, &counter, 8), memcpy(packets[i] + 16, "test", 4);
    }
    sendmmsg(fd, heads, n, 0);
}

/* The mapped address is looked for in every attribute: servers put it in different places. */
static int is_right(const unsigned char *p, int bytes, int own_port, int is_classic)
{
    int is_mapped = 0;
    uint64_t id;
    memcpy(&id, p + 8, 8);
    if (bytes < 32 || p[0] != 1 || p[1] != 1 || (p[2] << 8 | p[3]) != bytes - 20 || !id || id >= counter) return 0;
    if (memcmp(p + 4, is_classic ? "\x0C\x1A\x55\x1C" : "\x21\x12\xA4\x42", 4) || memcmp(p + 16, "test", 4)) return 0;
    for (int i = 20; i + 12 <= bytes; i += 4 + (((p[i + 2] << 8 | p[i + 3]) + 3) & ~3)) {
        int kind = p[i] << 8 | p[i + 1], port = p[i + 6] << 8 | p[i + 7];
        uint32_t address;
        memcpy(&address, p + i + 8, 4), address = ntohl(address);
        if (kind == 0x20) port ^= 0x2112, address ^= 0x2112A442;
        if (kind == 0x20 || kind == 1) is_mapped |= port == own_port && address == INADDR_LOOPBACK;
    }
    return is_mapped;
}

static int load(int server_port, double seconds, int is_classic)
{
    int fds[SOCKETS], ports[SOCKETS];
    struct pollfd ready[SOCKETS];
    struct sockaddr_in to = at(server_port), own;
    long replies = 0, wrong = 0, lost = 0;
    for (int s = 0; s < SOCKETS; s++) {
        socklen_t size = sizeof own;
        fds[s] = open_socket(0);
        getsockname(fds[s], (struct sockaddr *)&own, &size);
        ports[s] = ntohs(own.sin_port);
        ready[s] = (struct pollfd){.fd = fds[s], .events = POLLIN};
        send_requests(fds[s], &to, IN_FLIGHT, is_classic);
    }
    double start = now(), end = start + seconds;
    while (now() < end) {
        if (!poll(ready, SOCKETS, LOST_MS)) { /* all is lost: begin again */
            for (int s = 0; s < SOCKETS; s++) send_requests(fds[s], &to, IN_FLIGHT, is_classic);
            lost += SOCKETS * IN_FLIGHT;
            continue;
        }
        for (int s = 0; s < SOCKETS; s++) {
            if (!(ready[s].revents & POLLIN)) continue;
            prepare(IN_FLIGHT, BYTES, NULL, 0);
            int n = recvmmsg(fds[s], heads, IN_FLIGHT, MSG_DONTWAIT, NULL);
            for (int i = 0; i < n; i++) wrong += !is_right(packets[i], heads[i].msg_len, ports[s], is_classic);
            if (n > 0) replies += n, send_requests(fds[s], &to, n, is_classic);
        }
    }
    printf("{\"replies\": %ld, \"wrong\": %ld, \"lost\": %ld, \"seconds\": %f}\n", replies, wrong, lost, now() - start);
    return 0;
}

static int garbage(int server_port, double seconds)
{
    int fds[SOCKETS];
    long sent = 0, answered = 0;
    struct sockaddr_in to = at(server_port);
    for (int s = 0; s < SOCKETS; s++) fds[s] = open_socket(0);
    prepare(IN_FLIGHT, 20, &to, 0);
    double start = now(), end = start + seconds;
    for (int s = 0; now() < end; s = (s + 1) % SOCKETS) {
        for (int i = 0; i < IN_FLIGHT; i++)
            for (int b = 0; b < 20; b += 4) {
                uint32_t r = (uint32_t)random() << 1 | !b; /* never a request by chance */
                memcpy(packets[i] + b, &r, 4);
            }
        int n = sendmmsg(fds[s], heads, IN_FLIGHT, 0);
        sent += n > 0 ? n : 0;
        while (recv(fds[s], packets[0], BYTES, MSG_DONTWAIT) > 0) answered++;
    }
    printf("{\"sent\": %ld, \"replies\": %ld, \"wrong\": 0, \"seconds\": %f}\n", sent, answered, now() - start);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "limit")) limit(atoi(argv[2]));
    if (argc != 5 || strcmp(argv[1], "load")) return 2;
    if (!strcmp(argv[4], "garbage")) return garbage(atoi(argv[2]), atof(argv[3]));
    return load(atoi(argv[2]), atof(argv[3]), !strcmp(argv[4], "classic"));
}
