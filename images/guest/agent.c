/* agent PORT CGROUP_ROOT
 *
 * The driver's hands inside the guest. It lives in the initramfs, out of the workload's sight, and takes requests on a
 * virtio-serial port, one line each:
 *
 *     0xFF NUMBER VERB [KEY=VALUE ...] '\n'        0xFF drops whatever half a request came before it
 *     NUMBER ok [KEY=VALUE ...] '\n'   or   NUMBER error TEXT '\n'
 *
 * A number that comes again is answered again, and nothing is done: whoever asks may have to ask twice to be heard.
 *
 * ping                        answers; with commands=1 where operators' commands are known, operator=1 where they are allowed
 * flush                       freezes the file systems: everything is on disk, nothing more can be written
 * sync [timeout_ms=N]         writes the disks out while everything runs, so that little is left for freeze to write; answers
 *                             with written=1, or with written=0 when that takes longer, and goes on with it
 * freeze timeout_ms=N         stops every process of the workload (cgroup freezer), then writes the disks out
 * thaw [clock_ns=N]           lets the workload run, after setting the wall clock if it is behind
 * renew clock_ns=N seed=HEX [files=1]   what must be new after a return from memory, before anything runs: wall clock,
 *                             random generator, TCP connections to the outside, the neighbours' ARP entries, token and
 *                             TLS files (from the seed disk); then thaws
 * adopt clock_ns=N seed=HEX   releases init from its barrier: the machine gets its identity
 * begin, io, end              operators' commands, where the machine was begun with them allowed: see commands.h
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/fs.h>
#include <linux/if_packet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/random.h>
#include <linux/sock_diag.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "commands.h"

#define LONGEST 16384
#define MOST_ADDRESSES 512
#define MOST_SOCKETS 8192
#define MOST_NAMESPACES 256
#define MOST_VOLUMES 8

static int port, cgroups;
static char answer[COMMANDS_REPLY];

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static const char *value_of(const char *line, const char *key) { /* the text behind " key=", up to a space */
    static char found[1024];
    char pattern[32];
    snprintf(pattern, sizeof pattern, " %s=", key);
    const char *at = strstr(line, pattern);
    if (!at)
        return NULL;
    at += strlen(pattern);
    size_t length = strcspn(at, " ");
    if (length >= sizeof found)
        return NULL;
    memcpy(found, at, length);
    found[length] = '\0';
    return found;
}

static int fail(const char *what) { /* errno is the reason */
    snprintf(answer, sizeof answer, "error %s: %s", what, strerror(errno));
    return -1;
}

/* --- the workload's cgroups: every child of the root; init and this program are in the root itself */

static int each_cgroup(int (*visit)(int directory)) {
    int copy = openat(cgroups, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), result = 0;
    DIR *list = fdopendir(copy);
    if (!list)
        return -1;
    struct dirent *entry;
    while (result == 0 && (entry = readdir(list))) {
        if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
            continue;
        int directory = openat(cgroups, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (directory < 0)
            continue; /* gone meanwhile */
        result = visit(directory);
        close(directory);
    }
    closedir(list);
    return result;
}

static int set_frozen(int directory, const char *state) {
    int file = openat(directory, "cgroup.freeze", O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return errno == ENOENT ? 0 : -1;
    int done = write(file, state, 1) == 1 ? 0 : -1;
    close(file);
    return done;
}

static int freeze_one(int directory) { return set_frozen(directory, "1"); }
static int thaw_one(int directory) { return set_frozen(directory, "0"); }

static int not_frozen_yet(int directory) {
    char text[256];
    int file = openat(directory, "cgroup.events", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    text[size > 0 ? size : 0] = '\0';
    return strstr(text, "populated 1") && !strstr(text, "frozen 1");
}

static int thaw(void) { return each_cgroup(thaw_one) ? fail("thaw") : 0; }

static int set_clock(const char *line) {
    const char *text = value_of(line, "clock_ns");
    if (!text)
        return errno = EINVAL, fail("clock_ns");
    long long ns = atoll(text);
    struct timespec t = {ns / 1000000000, ns % 1000000000}, now;
    clock_gettime(CLOCK_REALTIME, &now);
    /* What the host says is a little old when it is heard, and a request may come twice, when the workload runs
     * already: it must not see its clock go back. Only one that is far ahead is wrong. */
    long long ahead_ms = (now.tv_sec - t.tv_sec) * 1000LL + (now.tv_nsec - t.tv_nsec) / 1000000;
    if (ahead_ms >= 0 && ahead_ms < 5000)
        return 0;
    return clock_settime(CLOCK_REALTIME, &t) < 0 ? fail("the clock") : 0;
}

static void write_out_below(const char *path) { /* the file system that is mounted there */
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory >= 0) {
        syncfs(directory);
        close(directory);
    }
}

static void write_out(void) { /* what is on disks; "sync" would wait for a folder of the host's that does not answer any more */
    char path[64];
    for (int number = 0; number < MOST_VOLUMES; number++) {
        snprintf(path, sizeof path, "/run/volumes/volume%d", number);
        write_out_below(path);
    }
    write_out_below("/sysroot");
}

static int freeze(const char *line) {
    const char *limit = value_of(line, "timeout_ms");
    double begun = now_ms(), deadline = begun + (limit ? atof(limit) : 5000);
    if (each_cgroup(freeze_one))
        return fail("freeze");
    while (each_cgroup(not_frozen_yet)) {
        if (now_ms() > deadline) {
            thaw();
            errno = ETIMEDOUT;
            return fail("some processes cannot be stopped (they wait for a device)");
        }
        usleep(1000);
    }
    double frozen = now_ms();
    char boot_id[40] = "";
    int file = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (file >= 0 && read(file, boot_id, 36) != 36)
        boot_id[0] = '\0';
    close(file);
    write_out();
    snprintf(answer, sizeof answer, "ok freeze_ms=%.1f flush_ms=%.1f boot_id=%s", frozen - begun, now_ms() - frozen, boot_id);
    return 0;
}

static int sync_disks(const char *line) { /* by a child: a slow disk holds up nothing for longer than that */
    static pid_t child;
    const char *limit = value_of(line, "timeout_ms");
    double deadline = now_ms() + (limit ? atof(limit) : 1000);
    int status, written = 0;
    if (child > 0 && waitpid(child, &status, WNOHANG) != 0)
        child = 0; /* the last one has come to its end */
    if (child <= 0 && (child = fork()) == 0) {
        write_out();
        _exit(0);
    }
    if (child < 0)
        return fail("sync");
    while (!(written = waitpid(child, &status, WNOHANG) == child) && now_ms() < deadline)
        usleep(1000);
    if (written)
        child = 0;
    snprintf(answer, sizeof answer, "ok written=%d", written);
    return 0;
}

static int freeze_below(const char *path) { /* the file system that is mounted there */
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return fail(path);
    int done = ioctl(directory, FIFREEZE, 0);
    close(directory);
    return done < 0 && errno != EBUSY ? fail("flush") : 0; /* EBUSY: frozen already */
}

static int flush(void) { /* volumes too: who may only read one needs it whole */
    char path[64];
    for (int number = 0; number < MOST_VOLUMES; number++) {
        snprintf(path, sizeof path, "/run/volumes/volume%d", number);
        if (access(path, F_OK) == 0 && freeze_below(path) < 0)
            return -1;
    }
    return freeze_below("/sysroot");
}

/* --- what must be new */

static int mix_entropy(const char *line) {
    struct {
        struct rand_pool_info head;
        unsigned char bytes[64];
    } pool;
    const char *hex = value_of(line, "seed");
    if (!hex || strlen(hex) != 2 * sizeof pool.bytes)
        return errno = EINVAL, fail("seed");
    for (size_t i = 0; i < sizeof pool.bytes; i++)
        if (sscanf(hex + 2 * i, "%2hhx", &pool.bytes[i]) != 1)
            return errno = EINVAL, fail("seed");
    pool.head.entropy_count = 8 * sizeof pool.bytes;
    pool.head.buf_size = sizeof pool.bytes;
    int device = open("/dev/random", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return fail("/dev/random");
    int done = ioctl(device, RNDADDENTROPY, &pool) == 0 && ioctl(device, RNDRESEEDCRNG) == 0;
    close(device);
    memset(&pool, 0, sizeof pool);
    return done ? 0 : fail("the random generator");
}

/* --- TCP: a connection that leaves the machine has lost its peer; one within it has not */

static struct in6_addr own[MOST_ADDRESSES];
static int own_count;
static int spaces[MOST_NAMESPACES];
static int space_count;

static struct in6_addr as_ipv6(int family, const void *address) {
    struct in6_addr result = {0};
    if (family == AF_INET6) {
        memcpy(&result, address, 16);
    } else {
        result.s6_addr[10] = result.s6_addr[11] = 0xff;
        memcpy(result.s6_addr + 12, address, 4);
    }
    return result;
}

static int is_own(struct in6_addr address) {
    if (IN6_IS_ADDR_LOOPBACK(&address) || (IN6_IS_ADDR_V4MAPPED(&address) && address.s6_addr[12] == 127))
        return 1;
    for (int i = 0; i < own_count; i++)
        if (memcmp(&own[i], &address, sizeof address) == 0)
            return 1;
    return 0;
}

static void find_spaces(void) { /* one descriptor for every network namespace that some process lives in */
    static ino_t seen[MOST_NAMESPACES];
    struct dirent *entry;
    DIR *list = opendir("/proc");
    space_count = 0;
    while (list && space_count < MOST_NAMESPACES && (entry = readdir(list))) {
        char path[300];
        struct stat info;
        int known = 0;
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
            continue;
        snprintf(path, sizeof path, "/proc/%s/ns/net", entry->d_name);
        if (stat(path, &info) < 0)
            continue;
        for (int i = 0; i < space_count; i++)
            known |= seen[i] == info.st_ino;
        if (known)
            continue;
        int space = open(path, O_RDONLY | O_CLOEXEC);
        if (space < 0)
            continue;
        seen[space_count] = info.st_ino;
        spaces[space_count++] = space;
    }
    if (list)
        closedir(list);
}

static void note_own_addresses(void) {
    struct ifaddrs *all, *at;
    if (getifaddrs(&all) < 0)
        return;
    for (at = all; at && own_count < MOST_ADDRESSES; at = at->ifa_next) {
        if (!at->ifa_addr)
            continue;
        if (at->ifa_addr->sa_family == AF_INET)
            own[own_count++] = as_ipv6(AF_INET, &((struct sockaddr_in *)at->ifa_addr)->sin_addr);
        if (at->ifa_addr->sa_family == AF_INET6 && own_count < MOST_ADDRESSES)
            own[own_count++] = as_ipv6(AF_INET6, &((struct sockaddr_in6 *)at->ifa_addr)->sin6_addr);
    }
    freeifaddrs(all);
}

static int ask_sockets(int netlink, int type, int flags, int family, const struct inet_diag_sockid *id) {
    struct {
        struct nlmsghdr head;
        struct inet_diag_req_v2 body;
    } request = {.head = {.nlmsg_len = sizeof request, .nlmsg_type = type, .nlmsg_flags = NLM_F_REQUEST | flags},
                 .body = {.sdiag_family = family, .sdiag_protocol = IPPROTO_TCP}};
    request.body.idiag_states = ~((1u << TCP_LISTEN) | (1u << TCP_CLOSE) | (1u << TCP_TIME_WAIT));
    if (id)
        request.body.id = *id;
    return send(netlink, &request, sizeof request, 0) == sizeof request ? 0 : -1;
}

static int reset_family(int family) {
    static struct inet_diag_sockid found[MOST_SOCKETS];
    static char buffer[32768];
    int count = 0, ended = 0;
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (netlink < 0 || ask_sockets(netlink, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, NULL) < 0)
        ended = 1;
    while (!ended) {
        ssize_t size = recv(netlink, buffer, sizeof buffer, 0);
        if (size <= 0)
            break;
        for (struct nlmsghdr *at = (void *)buffer; NLMSG_OK(at, size); at = NLMSG_NEXT(at, size)) {
            if (at->nlmsg_type == NLMSG_DONE || at->nlmsg_type == NLMSG_ERROR) {
                ended = 1;
                break;
            }
            struct inet_diag_msg *socket_ = NLMSG_DATA(at);
            if (count < MOST_SOCKETS && !is_own(as_ipv6(family, socket_->id.idiag_dst)))
                found[count++] = socket_->id;
        }
    }
    for (int i = 0; i < count; i++)
        ask_sockets(netlink, SOCK_DESTROY, 0, family, &found[i]);
    if (netlink >= 0)
        close(netlink);
    return count;
}

static int reset_connections(void) {
    int home = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC), count = 0;
    find_spaces();
    own_count = 0;
    for (int i = 0; i < space_count; i++)
        if (setns(spaces[i], CLONE_NEWNET) == 0)
            note_own_addresses();
    for (int i = 0; i < space_count; i++) {
        if (setns(spaces[i], CLONE_NEWNET) == 0)
            count += reset_family(AF_INET) + reset_family(AF_INET6);
        close(spaces[i]);
    }
    setns(home, CLONE_NEWNET);
    close(home);
    return count;
}

static void announce(void) { /* gratuitous ARP: whoever knew this address learns where it is now */
    struct ifreq interface = {.ifr_name = "eth0"};
    struct {
        struct ether_header ether;
        struct arphdr arp;
        unsigned char from_mac[6], from[4], to_mac[6], to[4];
    } __attribute__((packed)) frame;
    int plain = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int raw = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ARP));
    struct sockaddr_ll target = {.sll_family = AF_PACKET, .sll_halen = 6, .sll_protocol = htons(ETH_P_ARP)};
    memset(&frame, 0xff, sizeof frame);
    if (raw >= 0 && ioctl(plain, SIOCGIFINDEX, &interface) == 0) {
        target.sll_ifindex = interface.ifr_ifindex;
        if (ioctl(plain, SIOCGIFHWADDR, &interface) == 0) {
            memcpy(frame.from_mac, interface.ifr_hwaddr.sa_data, 6);
            memcpy(frame.ether.ether_shost, interface.ifr_hwaddr.sa_data, 6);
        }
        if (ioctl(plain, SIOCGIFADDR, &interface) == 0) {
            struct in_addr address = ((struct sockaddr_in *)&interface.ifr_addr)->sin_addr;
            frame.ether.ether_type = htons(ETH_P_ARP);
            frame.arp = (struct arphdr){htons(ARPHRD_ETHER), htons(ETH_P_IP), 6, 4, htons(ARPOP_REQUEST)};
            memcpy(frame.from, &address, 4);
            memcpy(frame.to, &address, 4);
            sendto(raw, &frame, sizeof frame, 0, (struct sockaddr *)&target, sizeof target);
        }
    }
    close(plain);
    close(raw);
}

static int renew_files(void) {
    pid_t child = fork();
    int status = 0;
    if (child == 0) {
        execl("/bin/renew-files", "renew-files", NULL);
        _exit(127);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || status != 0)
        return errno = EIO, fail("token and TLS files");
    return 0;
}

static int renew(const char *line) {
    double begun = now_ms();
    if (set_clock(line) || mix_entropy(line))
        return -1;
    double mixed = now_ms();
    if (value_of(line, "files") && renew_files())
        return -1;
    double filed = now_ms();
    int count = reset_connections();
    announce();
    double reset = now_ms();
    if (thaw())
        return -1;
    snprintf(answer, sizeof answer, "ok clock_entropy_ms=%.1f files_ms=%.1f connections_ms=%.1f thaw_ms=%.1f connections=%d",
             mixed - begun, filed - mixed, reset - filed, now_ms() - reset, count);
    return 0;
}

static int adopt(const char *line) {
    int barrier, tries = 0;
    /* Init says that it waits just before it opens its end; a fork may be asked in between. */
    while ((barrier = open("/run/barrier", O_WRONLY | O_NONBLOCK | O_CLOEXEC)) < 0 && errno == ENXIO && tries++ < 1000)
        usleep(2000);
    if (barrier < 0)
        return fail("this machine waits at no barrier");
    int done = set_clock(line) == 0 && mix_entropy(line) == 0;
    if (done && write(barrier, "go\n", 3) != 3)
        done = fail("the barrier") == 0;
    close(barrier);
    return done ? 0 : -1;
}

/* --- requests */

static int is(const char *line, const char *verb) {
    size_t length = strlen(verb);
    return strncmp(line, verb, length) == 0 && (line[length] == ' ' || line[length] == '\0');
}

static void perform(const char *request) {
    strcpy(answer, "ok");
    if (is(request, "flush"))
        flush();
    else if (is(request, "sync"))
        sync_disks(request);
    else if (is(request, "freeze"))
        freeze(request);
    else if (is(request, "thaw")) {
        if (!value_of(request, "clock_ns") || set_clock(request) == 0)
            thaw();
    }
    else if (is(request, "renew"))
        renew(request);
    else if (is(request, "adopt"))
        adopt(request);
    else if (is(request, "begin") || is(request, "io") || is(request, "end"))
        commands_perform(request, cgroups, answer);
    else if (is(request, "ping"))
        sprintf(answer, "ok commands=1 operator=%d", commands_allowed());
    else
        strcpy(answer, "error unknown verb");
}

static void answer_to(char *line) {
    static char last[64], reply[sizeof answer + sizeof last + 8];
    char *request = strchr(line, ' ');
    if (!request || request - line >= (long)sizeof last)
        return;
    *request++ = '\0';
    if (strcmp(line, last) != 0) {
        strcpy(last, line);
        perform(request);
        snprintf(reply, sizeof reply, "%.63s %s\n", line, answer);
    }
    ssize_t size = strlen(reply);
    if (write(port, reply, size) != size)
        return; /* whoever asked has gone */
}

static void take(const char *bytes, ssize_t size) {
    static char line[LONGEST];
    static size_t have;
    static int overlong = 1; /* nothing counts before the first 0xFF */
    for (ssize_t i = 0; i < size; i++) {
        unsigned char byte = bytes[i];
        if (byte == 0xff) {
            have = 0;
            overlong = 0;
        } else if (overlong) {
            continue;
        } else if (byte == '\n') {
            line[have] = '\0';
            overlong = 1;
            answer_to(line);
            memset(line, 0, sizeof line); /* a seed was in it */
        } else if (have < sizeof line - 1) {
            line[have++] = byte;
        } else {
            overlong = 1;
        }
    }
}

int main(int argc, char **argv) {
    char bytes[LONGEST];
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (argc != 3)
        return 126;
    port = open(argv[1], O_RDWR | O_NONBLOCK | O_CLOEXEC);
    cgroups = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (port < 0 || cgroups < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, port, &event) < 0) {
        perror("agent");
        return 1;
    }
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (score >= 0 && write(score, "-1000", 5) == 5)
        close(score);
    mlockall(MCL_CURRENT | MCL_FUTURE);
    for (;;) {
        ssize_t size;
        /* Edge-triggered: while no host is connected the port reports a hang-up without end. */
        while ((size = read(port, bytes, sizeof bytes)) > 0)
            take(bytes, size);
        epoll_wait(poller, &event, 1, commands_tick());
    }
}
