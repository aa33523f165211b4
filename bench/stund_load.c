/* What a measurement of STUN servers needs at a speed that Python does not have: loads, and the limit.
 *
 *   stund_load load 4|6 PORT SECONDS plain|classic|change|software|garbage
 *   stund_load soak 4 PORT SECONDS
 *   stund_load crowd 4 PORT SECONDS
 *   stund_load limit 4|6 PORT
 *
 * The load keeps 32 datagrams in flight from each of 8 sockets to the loopback address of the family and prints one
 * line of JSON: the replies, those that were wrong, and how long it took. Garbage is random and gets no replies: it is
 * sent as fast as the machine can, and a server's time for it is what its process has used. The limit answers with the
 * mapped address alone, in either dialect, and looks at nothing but the length and the type.
 *
 * The soak is the load of plain, classic and changed requests with one datagram in a hundred of all that a server must
 * survive. The crowd are clients that ask 15 times a second each, some of them at the address of one of two that ask
 * 25,000 times a second. Both count what they sent to the last datagram.
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

enum { SOCKETS = 8, IN_FLIGHT = 32, BATCH = 256, BYTES = 512, BUFFER = 1 << 22, LOST_MS = 100, QUIET_MS = 1000 };
enum { MEMORY_INFO = 55, DROPS = 8 }; /* of getsockopt: SO_MEMINFO, SK_MEMINFO_DROPS */

typedef struct sockaddr_in6 name_t; /* has room for either family */

static int is_ipv6;
static unsigned char packets[BATCH][BYTES];
static struct iovec pieces[BATCH];
static struct mmsghdr heads[BATCH];
static name_t names[BATCH];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static socklen_t name_bytes(void) { return is_ipv6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in); }

static void prepare(int n, int bytes, name_t *name, int step)
{
    for (int i = 0; i < n; i++) {
        pieces[i] = (struct iovec){packets[i], bytes};
        heads[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
        if (name) heads[i].msg_hdr.msg_name = name + i * step, heads[i].msg_hdr.msg_namelen = name_bytes();
    }
}

/* A loopback address: ::1, or over IPv4 127.0.0.1 and those after it. */
static name_t at(int port, int host)
{
    name_t name = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in ipv4 = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK + host)};
    if (!is_ipv6) memcpy(&name, &ipv4, sizeof ipv4);
    return name;
}

static int open_socket(int port, int host)
{
    name_t own = at(port, host);
    int size = BUFFER, fd = socket(is_ipv6 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (fd < 0 || bind(fd, (struct sockaddr *)&own, name_bytes())) perror("bind"), exit(1);
    return fd;
}

static int port_of(int fd)
{
    name_t own;
    socklen_t size = sizeof own;
    getsockname(fd, (struct sockaddr *)&own, &size);
    return ntohs(own.sin6_port); /* at the same place in both */
}

static uint32_t dropped(int fd)
{
    uint32_t info[DROPS + 1] = {0};
    socklen_t size = sizeof info;
    getsockopt(fd, SOL_SOCKET, MEMORY_INFO, info, &size);
    return info[DROPS];
}

/* ---- the limit: as much as any program can do with these two calls ---- */

static void limit(int port)
{
    int fd = open_socket(port, 0), octets = is_ipv6 ? 16 : 4, size = 28 + octets;
    for (;;) {
        prepare(BATCH, BYTES, names, 1);
        int n = recvmmsg(fd, heads, BATCH, MSG_WAITFORONE, NULL), k = 0;
        for (int i = 0; i < n; i++) {
            unsigned char *p = packets[i], *address = is_ipv6 ? (unsigned char *)&names[i].sin6_addr : (unsigned char *)&names[i] + 4;
            if (heads[i].msg_len < 20 || memcmp(p, "\0\1", 2)) continue;
            int is_modern = !memcmp(p + 4, "\x21\x12\xA4\x42", 4);
            p[0] = 1, p[1] = 1, p[2] = 0, p[3] = size - 20;
            p[20] = 0, p[21] = is_modern ? 0x20 : 1, p[22] = 0, p[23] = 4 + octets, p[24] = 0, p[25] = is_ipv6 ? 2 : 1;
            memcpy(p + 26, &names[i].sin6_port, 2), memcpy(p + 28, address, octets);
            if (is_modern) {
                p[26] ^= p[4], p[27] ^= p[5];
                for (int b = 0; b < octets; b++) p[28 + b] ^= p[4 + b];
            }
            pieces[i].iov_len = size;
            heads[k++] = heads[i];
        }
        for (int done = 0; done < k;) {
            int sent = sendmmsg(fd, heads + done, k - done, 0);
            done += sent > 0 ? sent : 1;
        }
    }
}

/* ---- the load ---- */

enum kind { PLAIN, CLASSIC, CHANGE, SOFTWARE, KINDS };

static const char *const kinds[KINDS] = {"plain", "classic", "change", "software"};
static const int sizes[KINDS] = {20, 20, 28, 40};
static uint64_t counter = 1;

/* What the port is changed for comes from another socket of the server, which nobody here looks at. */
static void write_request(unsigned char *p, enum kind kind)
{
    memcpy(p, kind == CLASSIC ? "\0\1\0\0\x0C\x1A\x55\x1C" : "\0\1\0\0\x21\x12\xA4\x42", 8);
    memcpy(p + 8, &counter, 8), memcpy(p + 16, "test", 4), p[3] = sizes[kind] - 20;
    if (kind == CHANGE) memcpy(p + 20, "\0\3\0\4\0\0\0\2", 8);
    if (kind == SOFTWARE) memcpy(p + 20, "\x80\x22\0\x10some library 1.0", 20);
    counter++;
}

static void send_all(int fd, int n)
{
    for (int done = 0; done < n;) {
        int sent = sendmmsg(fd, heads + done, n - done, 0);
        if (sent < 0 && errno != EINTR && errno != ENOBUFS) perror("sendmmsg"), exit(1);
        done += sent > 0 ? sent : 0;
    }
}

static void send_requests(int fd, name_t *to, int n, enum kind kind)
{
    prepare(n, sizes[kind], to, 0);
    for (int i = 0; i < n; i++) write_request(packets[i], kind);
    send_all(fd, n);
}

/* The mapped address is looked for in every attribute: servers put it in different places. */
static int is_right(const unsigned char *p, int bytes, int own_port, int is_classic)
{
    int is_mapped = 0, octets = is_ipv6 ? 16 : 4;
    const unsigned char *const loopback = is_ipv6 ? (const unsigned char *)&in6addr_loopback : (const unsigned char *)"\x7F\0\0\1";
    uint64_t id;
    memcpy(&id, p + 8, 8);
    if (bytes < 28 + octets || p[0] != 1 || p[1] != 1 || (p[2] << 8 | p[3]) != bytes - 20 || !id || id >= counter) return 0;
    if (memcmp(p + 4, is_classic ? "\x0C\x1A\x55\x1C" : "\x21\x12\xA4\x42", 4) || memcmp(p + 16, "test", 4)) return 0;
    for (int i = 20; i + 8 + octets <= bytes; i += 4 + (((p[i + 2] << 8 | p[i + 3]) + 3) & ~3)) {
        int kind = p[i] << 8 | p[i + 1], port = p[i + 6] << 8 | p[i + 7], same = 1;
        for (int b = 0; b < octets; b++) same &= (p[i + 8 + b] ^ (kind == 0x20 ? p[4 + b] : 0)) == loopback[b];
        if (kind == 0x20) port ^= 0x2112;
        if (kind == 0x20 || kind == 1) is_mapped |= port == own_port && same;
    }
    return is_mapped;
}

static int load(int server_port, double seconds, enum kind kind)
{
    int fds[SOCKETS], ports[SOCKETS];
    struct pollfd ready[SOCKETS];
    name_t to = at(server_port, 0);
    long replies = 0, wrong = 0, lost = 0;
    for (int s = 0; s < SOCKETS; s++) {
        fds[s] = open_socket(0, 0), ports[s] = port_of(fds[s]);
        ready[s] = (struct pollfd){.fd = fds[s], .events = POLLIN};
        send_requests(fds[s], &to, IN_FLIGHT, kind);
    }
    double start = now(), end = start + seconds;
    while (now() < end) {
        if (!poll(ready, SOCKETS, LOST_MS)) { /* all is lost: begin again */
            for (int s = 0; s < SOCKETS; s++) send_requests(fds[s], &to, IN_FLIGHT, kind);
            lost += SOCKETS * IN_FLIGHT;
            continue;
        }
        for (int s = 0; s < SOCKETS; s++) {
            if (!(ready[s].revents & POLLIN)) continue;
            prepare(IN_FLIGHT, BYTES, NULL, 0);
            int n = recvmmsg(fds[s], heads, IN_FLIGHT, MSG_DONTWAIT, NULL);
            for (int i = 0; i < n; i++) wrong += !is_right(packets[i], heads[i].msg_len, ports[s], kind == CLASSIC);
            if (n > 0) replies += n, send_requests(fds[s], &to, n, kind);
        }
    }
    printf("{\"replies\": %ld, \"wrong\": %ld, \"lost\": %ld, \"seconds\": %f}\n", replies, wrong, lost, now() - start);
    return 0;
}

static uint32_t any(void) { return (uint32_t)random() << 1 ^ (uint32_t)random(); }

static int garbage(int server_port, double seconds)
{
    int fds[SOCKETS];
    long sent = 0, answered = 0;
    name_t to = at(server_port, 0);
    for (int s = 0; s < SOCKETS; s++) fds[s] = open_socket(0, 0);
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

/* ---- the soak ---- */

enum { MOST = 65507, SEEN = 1 << 16 };

/* One of many kinds; returns its size. What an answer to it would show is an id that ends in "junk". */
static int write_garbage(unsigned char *p)
{
    static const unsigned short known[] = {0x0002, 0x0003, 0x0006, 0x0008, 0x0009, 0x0014, 0x0015, 0x001C, 0x0024, 0x0026, 0x8022, 0x8028};
    int size = 20, room = any() % 120 & ~3;
    memcpy(p, any() & 1 ? "\0\1\0\0\x21\x12\xA4\x42" : "\0\1\0\0\x0C\x1A\x55\x1C", 8);
    for (int b = 8; b < 16; b++) p[b] = any();
    memcpy(p + 16, "junk", 4);
    switch (any() % 8) {
    case 0: /* random, with bits that no STUN has */
        size = any() % 200;
        for (int b = 0; b < size; b++) p[b] = any();
        p[0] |= 0x80;
        return size;
    case 1: return any() % 20; /* cut off */
    case 2: /* more than the header says, up to all that UDP can carry */
        size = any() % 50 ? 20 + 4 * (1 + any() % 400) : MOST;
        return size;
    case 3: /* replies and indications */
        p[0] = any() & 1, p[1] = p[0] ? any() & 1 ? 0x01 : 0x11 : 0x11;
        return size;
    case 4: p[0] = any() & 0x3E, p[1] |= any() & 0xEE; break; /* of other methods and classes; 0x0101 is above */
    case 5: p[3] = any() | 1; return size;                     /* a length that is none */
    }
    /* attributes, known and not, with whatever in them; RESPONSE-PORT would send the answer elsewhere */
    for (int b = 20; b < 20 + room;) {
        int type = any() & 1 ? known[any() % (sizeof known / sizeof *known)] : 0x4000 | (any() & 0xBFFF);
        int length = any() % 24, whole = 4 + ((length + 3) & ~3);
        p[b] = type >> 8, p[b + 1] = type, p[b + 2] = 0, p[b + 3] = length;
        for (int v = 4; v < whole; v++) p[b + v] = any() % 3 ? 0 : any();
        b += whole, size = b;
    }
    p[2] = (size - 20) >> 8, p[3] = size - 20;
    return size;
}

static struct {
    long valid, junk, answers, junk_answers, wrong, twice;
} count;

/* Returns whether it answers a request, after which the next may be sent. */
static int count_reply(const unsigned char *p, int bytes, int own_port)
{
    static uint64_t seen[SEEN]; /* many more than are in flight */
    uint64_t id;
    if (bytes >= 20 && !memcmp(p + 16, "junk", 4)) {
        count.junk_answers++;
        return 0;
    }
    if (!is_right(p, bytes, own_port, p[4] == 0x0C)) {
        count.wrong++;
        return 1;
    }
    memcpy(&id, p + 8, 8);
    count.twice += seen[id % SEEN] == id;
    seen[id % SEEN] = id;
    count.answers++;
    return 1;
}

static void send_mixture(int fd, name_t *to, int n)
{
    static unsigned char room[MOST + BYTES];
    prepare(n, 20, to, 0);
    for (int i = 0; i < n; i++) {
        enum kind kind = any() % 100 ? any() & 1 ? PLAIN : CLASSIC : CHANGE;
        write_request(packets[i], kind);
        pieces[i].iov_len = sizes[kind];
    }
    send_all(fd, n), count.valid += n;
    for (int i = 0; i < n; i++) {
        if (any() % 100) continue;
        int size = write_garbage(room);
        while (sendto(fd, room, size, 0, (struct sockaddr *)to, name_bytes()) != size)
            if (errno != EINTR && errno != ENOBUFS) perror("sendto"), exit(1);
        count.junk++;
    }
}

static int soak(int server_port, double seconds)
{
    int fds[SOCKETS], ports[SOCKETS];
    long lost = 0, overrun = 0;
    double heard[SOCKETS], start = now(), end = start + seconds;
    struct pollfd ready[SOCKETS];
    name_t to = at(server_port, 0);
    for (int s = 0; s < SOCKETS; s++) {
        fds[s] = open_socket(0, 0), ports[s] = port_of(fds[s]), heard[s] = start;
        ready[s] = (struct pollfd){.fd = fds[s], .events = POLLIN};
        send_mixture(fds[s], &to, IN_FLIGHT);
    }
    while (poll(ready, SOCKETS, now() < end ? LOST_MS : QUIET_MS) || now() < end) {
        for (int s = 0; s < SOCKETS; s++) {
            double time = now();
            int n = 0;
            if (ready[s].revents & POLLIN) {
                prepare(IN_FLIGHT, BYTES, NULL, 0);
                int got = recvmmsg(fds[s], heads, IN_FLIGHT, MSG_DONTWAIT, NULL);
                for (int i = 0; i < got; i++) n += count_reply(packets[i], heads[i].msg_len, ports[s]);
            } else if (time - heard[s] > 10 * LOST_MS / 1e3 && time < end) {
                n = IN_FLIGHT, lost++; /* it would be silent for ever */
            }
            if (n > 0) heard[s] = time;
            if (n > 0 && time < end) send_mixture(fds[s], &to, n);
        }
    }
    for (int s = 0; s < SOCKETS; s++) overrun += dropped(fds[s]);
    printf("{\"sent\": %ld, \"garbage\": %ld, \"replies\": %ld, \"to_garbage\": %ld, \"wrong\": %ld, \"twice\": %ld,"
           " \"stalls\": %ld, \"overrun\": %ld, \"seconds\": %f}\n",
           count.valid, count.junk, count.answers, count.junk_answers, count.wrong, count.twice, lost, overrun, seconds);
    return 0;
}

/* ---- the crowd ---- */

enum { MODEST = 40, NEIGHBOURS = 8, FLOODERS = 2, FLOOD_PER_MS = 25, FIRST_HOST = 256 };

static int crowd(int server_port, double seconds)
{
    enum { ALL = MODEST + FLOODERS };
    const double pause = 1.0 / 15;
    long sent[ALL] = {0}, replies[ALL] = {0}, wrong = 0, overrun = 0;
    double due[ALL], start = now(), end = start + seconds;
    struct pollfd ready[ALL];
    name_t to = at(server_port, 0);
    for (int s = 0; s < ALL; s++) { /* the first neighbours share the flooders' addresses, the others have a /24 each */
        int host = s < NEIGHBOURS ? 1 + s % FLOODERS : s < MODEST ? FIRST_HOST * s : 1 + s - MODEST;
        ready[s] = (struct pollfd){.fd = open_socket(0, host), .events = POLLIN};
        due[s] = start + s * pause / MODEST;
    }
    for (int is_quiet = 0; !is_quiet;) {
        is_quiet = !poll(ready, ALL, now() < end ? 1 : QUIET_MS) && now() >= end;
        for (int s = 0; s < ALL; s++) {
            double time = now();
            if (ready[s].revents & POLLIN) {
                int n;
                while ((n = recv(ready[s].fd, packets[0], BYTES, MSG_DONTWAIT)) >= 0)
                    replies[s]++, wrong += n < 32 || packets[0][1] != 1 || memcmp(packets[0] + 16, "test", 4);
            }
            if (time < due[s] || time >= end) continue;
            int n = s < MODEST ? 1 : FLOOD_PER_MS;
            due[s] = time + (s < MODEST ? pause : 1e-3); /* who comes late does not catch up */
            send_requests(ready[s].fd, &to, n, PLAIN), sent[s] += n;
        }
    }
    long of[3][2] = {{0}}; /* neighbours, others, flooders: sent and answered */
    for (int s = 0; s < ALL; s++) {
        int group = s < NEIGHBOURS ? 0 : s < MODEST ? 1 : 2;
        of[group][0] += sent[s], of[group][1] += replies[s], overrun += dropped(ready[s].fd);
    }
    printf("{\"neighbours\": [%ld, %ld], \"others\": [%ld, %ld], \"flooders\": [%ld, %ld], \"number_of_flooders\": %d,"
           " \"wrong\": %ld, \"overrun\": %ld, \"seconds\": %f}\n",
           of[0][0], of[0][1], of[1][0], of[1][1], of[2][0], of[2][1], FLOODERS, wrong, overrun, seconds);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 4) return 2;
    is_ipv6 = !strcmp(argv[2], "6");
    int port = atoi(argv[3]);
    double seconds = argc > 4 ? atof(argv[4]) : 0;
    if (!strcmp(argv[1], "limit")) limit(port);
    if (!strcmp(argv[1], "soak")) return soak(port, seconds);
    if (!strcmp(argv[1], "crowd")) return crowd(port, seconds);
    if (argc != 6 || strcmp(argv[1], "load")) return 2;
    for (int kind = 0; kind < KINDS; kind++)
        if (!strcmp(argv[5], kinds[kind])) return load(port, seconds, kind);
    return strcmp(argv[5], "garbage") ? 2 : garbage(port, seconds);
}
