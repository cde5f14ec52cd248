/* become ROOT SEED_DISK STATUS_DISK STAMPS [barrier]
 *
 * What becomes the supervisor: it gives the machine what it is to be (files, address, name, limits), runs the drop-ins and
 * then the supervisor, all of that from one read of the seed disk and without a program in between: each one that is run
 * costs a fork some milliseconds, and memory that it had shared with its template.
 *
 * With "barrier" it first says that it waits, and goes on when the agent opens /run/barrier: a template's memory is
 * captured there, so that in a fork it is already running. It is in the workload's cgroup from the beginning.
 * STATUS_DISK: where it says what init says there; "": nowhere. STAMPS: what init has said of the time so far.
 *
 * What is wrong before the supervisor runs is in /run/failed afterwards. ROOT is the image's root directory, furnished and
 * mounted; whatever its files are, nothing is written through a link.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "seed.h"

#define PART (64u << 10)     /* bytes that are read at once: of most seeds that is all */
#define RECORD 4096          /* bytes of the status disk's record */
#define LONGEST 320          /* of a line that the seed gives */
#define SUPERVISOR "/opt/openshell/bin/openshell-sandbox"
#define DROP_INS "over/opt/openshell/init.d"
#define CGROUP "/run/cgroup/workload"

static int run_folder, status_disk = -1;
static char stamps[256];

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void fail(const char *format, ...) {
    va_list values;
    va_start(values, format);
    int file = openat(run_folder, "failed", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    vdprintf(file < 0 ? STDERR_FILENO : file, format, values);
    va_end(values);
    _exit(1);
}

/* --- what init says on the status disk */

static void stamp(const char *name) {
    struct timespec now;
    size_t length = strlen(stamps);
    clock_gettime(CLOCK_BOOTTIME, &now);
    snprintf(stamps + length, sizeof stamps - length, "%s%s=%lld.%03ld", length ? " " : "", name, (long long)now.tv_sec,
             now.tv_nsec / 1000000);
}

static void report(const char *phase) { /* the record is one block: it is replaced as a whole or not at all */
    static char record[RECORD] __attribute__((aligned(RECORD)));
    memset(record, 0, sizeof record);
    snprintf(record, sizeof record, "phase=%s\n%s\n", phase, stamps);
    if (status_disk >= 0 && pwrite(status_disk, record, sizeof record, 0) != sizeof record)
        dprintf(STDERR_FILENO, "become: the status disk: %s\n", strerror(errno));
}

/* --- the barrier */

static void wait_at_barrier(void) {
    char byte;
    if (mkfifoat(run_folder, "barrier", 0600) < 0)
        fail("the barrier cannot be made: %s", strerror(errno));
    report("waiting");
    int barrier = openat(run_folder, "barrier", O_RDONLY | O_CLOEXEC);
    if (barrier < 0 || read(barrier, &byte, 1) != 1)
        fail("the barrier was not opened");
    close(barrier);
    stamps[0] = '\0'; /* they were the template's */
    stamp("adopted");
}

/* --- the seed */

static int may_end(const char *bytes, size_t size) { /* whether an archive can have ended: with a block of zeros */
    static const char nothing[SEED_BLOCK];
    return memcmp(bytes + size - SEED_BLOCK, nothing, SEED_BLOCK) == 0;
}

static void read_seed(int disk, struct seed *seed) {
    off_t end = lseek(disk, 0, SEEK_END);
    size_t size = end < 0 ? 0 : (size_t)end;
    if (size < PART || size > SEED_MOST || size % PART)
        fail("the seed disk has no size that a seed has");
    /* Directly: a template has seen the disk as it was, and what is secret in it is kept in no cache. */
    char *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED)
        fail("the seed disk cannot be read: %s", strerror(errno));
    for (size_t have = 0; have < size;) {
        if (pread(disk, bytes + have, PART, (off_t)have) != PART)
            fail("the seed disk cannot be read: %s", strerror(errno));
        have += PART;
        if (have < size && !may_end(bytes, have))
            continue;
        if (seed_read(bytes, have, seed))
            return;
        free(seed->entries);
    }
    fail("the seed disk cannot be read: %s", seed->why);
}

static const struct seed_entry *needed(const struct seed *seed, const char *path) {
    const struct seed_entry *found = seed_file(seed, path);
    if (!found)
        fail("the seed disk cannot be read: %s is missing", path);
    return found;
}

static int line_of(const struct seed *seed, const char *path, char *line) { /* whether it is there */
    const struct seed_entry *found = seed_file(seed, path);
    if (found && seed_line(found, line, LONGEST) < 0)
        fail("the seed disk cannot be read: %s", path);
    return found != NULL;
}

/* --- files: into the place of links, never through them */

static int open_folder(int root, const char *path, mode_t mode) { /* that directory below it, made if need be */
    char rest[SEED_LONGEST], *save = NULL;
    int at = fcntl(root, F_DUPFD_CLOEXEC, 0);
    strcpy(rest, path);
    for (char *name = strtok_r(rest, "/", &save); name && at >= 0; name = strtok_r(NULL, "/", &save)) {
        if (mkdirat(at, name, mode) < 0 && errno != EEXIST)
            return -1;
        int next = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        close(at);
        at = next;
    }
    return at;
}

static int put(int folder, const char *name, const struct seed_entry *entry) {
    if (unlinkat(folder, name, 0) < 0 && errno != ENOENT)
        return -1;
    int file = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    for (size_t have = 0; file >= 0 && have < entry->size;) {
        ssize_t done = write(file, entry->bytes + have, entry->size - have);
        if (done < 0)
            return -1;
        have += done;
    }
    return file < 0 || fchmod(file, entry->mode) < 0 ? -1 : close(file);
}

static int deliver(int root, const struct seed_entry *entry) {
    char path[SEED_LONGEST];
    strcpy(path, entry->path + strlen("over/"));
    if (entry->directory) {
        int made = open_folder(root, path, 0755);
        return made < 0 || fchmod(made, entry->mode) < 0 ? -1 : close(made);
    }
    char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (slash)
        *slash = '\0';
    int folder = open_folder(root, slash ? path : "", 0755);
    return folder < 0 || put(folder, name, entry) < 0 ? -1 : close(folder);
}

static void deliver_files(int root, const struct seed *seed) {
    for (size_t i = 0; i < seed->count; i++)
        if (strncmp(seed->entries[i].path, "over/", 5) == 0 && deliver(root, &seed->entries[i]) < 0)
            fail("the seed cannot be copied into the guest: %s: %s", seed->entries[i].path, strerror(errno));
}

static void show_own_uuid(const struct seed *seed) { /* a fork's firmware tables are its template's */
    static const char shown[] = "sys/devices/virtual/dmi/id/product_uuid";
    const struct seed_entry *uuid = seed_file(seed, "init/uuid");
    if (!uuid || access(shown, F_OK) < 0)
        return;
    if (put(run_folder, "uuid", uuid) < 0 || mount("/run/uuid", shown, NULL, MS_BIND, NULL) < 0)
        fail("the machine's uuid cannot be shown: %s", strerror(errno));
}

static void limit_workload(const struct seed *seed) { /* a fork has its own limit, not its template's */
    char line[LONGEST];
    if (!line_of(seed, "init/pids-max", line) || access(CGROUP "/pids.max", F_OK) < 0)
        return;
    int file = open(CGROUP "/pids.max", O_WRONLY | O_CLOEXEC);
    if (strspn(line, "0123456789") != strlen(line) || file < 0 || write(file, line, strlen(line)) != (ssize_t)strlen(line))
        fail("the number of processes cannot be limited");
    close(file);
}

/* --- the network, as `ip link set eth0 address MAC up; ip addr add ADDRESS dev eth0; ip route add default via GATEWAY`
 * and, where the seed has IPv6, `ip addr add ADDRESS6/128 dev eth0 nodad; ip neigh replace GATEWAY6 lladdr ITS_MAC dev eth0;
 * ip route add default via GATEWAY6 dev eth0 onlink` */

struct request {
    struct nlmsghdr head;
    char rest[256];
};

static void add(struct request *request, int type, const void *value, size_t size) {
    struct rtattr *attribute = (void *)((char *)request + NLMSG_ALIGN(request->head.nlmsg_len));
    attribute->rta_type = type;
    attribute->rta_len = RTA_LENGTH(size);
    memcpy(RTA_DATA(attribute), value, size);
    request->head.nlmsg_len = NLMSG_ALIGN(request->head.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
}

static struct request begun(int type, int flags, const void *body, size_t size) {
    struct request request = {.head = {.nlmsg_len = NLMSG_LENGTH(size), .nlmsg_type = type}};
    request.head.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    memcpy(NLMSG_DATA(&request.head), body, size);
    return request;
}

static void ask(int netlink, struct request *request, const char *what) {
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char more[512]; /* the request comes back with an error */
    } answer;
    if (send(netlink, request, request->head.nlmsg_len, 0) < 0 || recv(netlink, &answer, sizeof answer, 0) < 0)
        fail("the network cannot be set up: %s: %s", what, strerror(errno));
    if (answer.head.nlmsg_type != NLMSG_ERROR || answer.error.error != 0)
        fail("the network cannot be set up: %s: %s", what, strerror(-answer.error.error));
}

static void parse_mac(const char *text, unsigned char mac[6]) {
    char again[18];
    if (sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) == 6) {
        snprintf(again, sizeof again, "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
        if (strcmp(again, text) == 0)
            return;
    }
    fail("the network cannot be set up: %s is no address of a card", text);
}

static void parse_address(char *text, struct in_addr *address, unsigned char *bits) { /* A.B.C.D/BITS */
    char *slash = strchr(text, '/'), *end = NULL;
    long found = -1;
    if (slash) {
        *slash = '\0';
        found = slash[1] >= '0' && slash[1] <= '9' ? strtol(slash + 1, &end, 10) : -1;
    }
    if (found < 0 || found > 32 || *end != '\0' || inet_pton(AF_INET, text, address) != 1)
        fail("the network cannot be set up: %s is no address", text);
    *bits = (unsigned char)found;
}

/* IPv6 is as given, and nothing of it is learnt or asked for: not from routers, nor who has the gateway's address. */

static void set_ipv6(const char *name, const char *value) {
    char path[96];
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/eth0/%s", name);
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, value, strlen(value)) < 0)
        dprintf(STDERR_FILENO, "become: %s: %s\n", path, strerror(errno)); /* nobody on the link says anything anyway */
    if (file >= 0)
        close(file);
}

static int has_ipv6(const struct seed *seed) { /* somebody else's kernel may have none: the machine does without */
    int found = seed_file(seed, "init/address6") != NULL;
    if (found && access("/proc/sys/net/ipv6", F_OK) < 0 && access("/proc/sys/net", F_OK) == 0) {
        dprintf(STDERR_FILENO, "become: this kernel has no IPv6\n");
        return 0;
    }
    return found;
}

static void set_up_ipv6(const struct seed *seed, int netlink, int index) {
    char address_text[LONGEST], gateway_text[LONGEST];
    unsigned char mac[6];
    struct in6_addr address, gateway;
    line_of(seed, "init/address6", address_text);
    if (!line_of(seed, "init/gateway6", gateway_text))
        fail("the network cannot be set up: the seed has an IPv6 address alone");
    char *space = strchr(gateway_text, ' ');
    if (!space)
        fail("the network cannot be set up: %s is no gateway", gateway_text);
    *space = '\0';
    parse_mac(space + 1, mac);
    if (inet_pton(AF_INET6, address_text, &address) != 1 || inet_pton(AF_INET6, gateway_text, &gateway) != 1)
        fail("the network cannot be set up: %s or %s is no IPv6 address", address_text, gateway_text);
    struct ifaddrmsg own = {.ifa_family = AF_INET6, .ifa_prefixlen = 128, .ifa_index = (unsigned)index};
    own.ifa_flags = IFA_F_NODAD; /* it can be used at once */
    struct request request = begun(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &own, sizeof own);
    add(&request, IFA_LOCAL, &address, sizeof address);
    add(&request, IFA_ADDRESS, &address, sizeof address);
    ask(netlink, &request, "its IPv6 address");
    struct ndmsg near = {.ndm_family = AF_INET6, .ndm_ifindex = index, .ndm_state = NUD_PERMANENT};
    request = begun(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &near, sizeof near);
    add(&request, NDA_DST, &gateway, sizeof gateway);
    add(&request, NDA_LLADDR, mac, sizeof mac);
    ask(netlink, &request, "the IPv6 gateway");
    struct rtmsg route = {.rtm_family = AF_INET6, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT, .rtm_type = RTN_UNICAST};
    route.rtm_flags = RTNH_F_ONLINK;
    request = begun(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route, sizeof route);
    add(&request, RTA_GATEWAY, &gateway, sizeof gateway);
    add(&request, RTA_OIF, &index, sizeof index);
    ask(netlink, &request, "the IPv6 default route");
}

static void set_up_network(const struct seed *seed) {
    char mac_text[LONGEST], address_text[LONGEST], gateway_text[LONGEST];
    unsigned char mac[6], bits;
    struct in_addr address, gateway;
    if (!line_of(seed, "init/address", address_text))
        return;
    if (!line_of(seed, "init/mac", mac_text) || !line_of(seed, "init/gateway", gateway_text))
        fail("the network cannot be set up: the seed has an address alone");
    parse_mac(mac_text, mac);
    parse_address(address_text, &address, &bits);
    if (inet_pton(AF_INET, gateway_text, &gateway) != 1)
        fail("the network cannot be set up: %s is no address", gateway_text);
    int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), index = (int)if_nametoindex("eth0");
    if (netlink < 0 || index == 0)
        fail("the network cannot be set up: eth0: %s", strerror(errno));
    int ipv6 = has_ipv6(seed);
    if (ipv6) {
        set_ipv6("accept_ra", "0");
        set_ipv6("accept_redirects", "0");
        set_ipv6("router_solicitations", "0");
    }
    /* The address of a fork's network card is its template's until here. */
    struct ifinfomsg link = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    struct request request = begun(RTM_NEWLINK, 0, &link, sizeof link);
    add(&request, IFLA_ADDRESS, mac, sizeof mac);
    ask(netlink, &request, "eth0");
    struct ifaddrmsg own = {.ifa_family = AF_INET, .ifa_prefixlen = bits, .ifa_index = (unsigned)index};
    request = begun(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &own, sizeof own);
    add(&request, IFA_LOCAL, &address, sizeof address);
    add(&request, IFA_ADDRESS, &address, sizeof address);
    ask(netlink, &request, "its address");
    struct rtmsg route = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT, .rtm_type = RTN_UNICAST};
    request = begun(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &route, sizeof route);
    add(&request, RTA_GATEWAY, &gateway, sizeof gateway);
    ask(netlink, &request, "the default route");
    if (ipv6)
        set_up_ipv6(seed, netlink, index);
    close(netlink);
}

static void set_hostname(const struct seed *seed) {
    char line[LONGEST];
    if (line_of(seed, "over/etc/hostname", line) && sethostname(line, strlen(line)) < 0)
        fail("the host's name cannot be set: %s", strerror(errno));
}

/* --- programs */

static int not_run(const char *program, char *const *words, char **environment) { /* returns where it cannot be run */
    execve(program, words, environment);
    int reason = errno;
    dprintf(STDERR_FILENO, "become: %s: %s\n", program, strerror(reason));
    return reason == ENOENT ? 127 : 126; /* as a shell says it */
}

static int run(const char *program, char **environment) { /* its status, as a shell has it */
    int status;
    pid_t child = fork();
    if (child == 0) {
        char *const words[] = {(char *)program, NULL};
        setsid();
        signal(SIGINT, SIG_DFL); /* not as those whom a shell has put into the background */
        signal(SIGQUIT, SIG_DFL);
        _exit(not_run(program, words, environment));
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        fail("%s cannot be run: %s", program, strerror(errno));
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void run_drop_ins(const struct seed *seed) { /* only what the manifest names; the first failure ends the machine */
    const struct seed_entry *manifest = seed_file(seed, DROP_INS ".manifest");
    if (!manifest || manifest->size == 0)
        return;
    char **environment = seed_environment(needed(seed, "init/drop-in-environ"));
    const char *at = manifest->bytes, *end = at + manifest->size;
    if (!environment)
        fail("the seed disk cannot be read: the drop-ins' environment");
    while (at < end) {
        char name[LONGEST], program[LONGEST * 2];
        const char *stop = memchr(at, '\n', end - at);
        struct seed_entry line = {.bytes = at, .size = (stop ? stop : end) - at};
        if (seed_line(&line, name, sizeof name) < 0 || !*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
            fail("an init drop-in has no valid name");
        snprintf(program, sizeof program, DROP_INS "/%s", name);
        const struct seed_entry *found = seed_file(seed, program);
        if (!found || !(found->mode & 0111))
            fail("init drop-in '%s' is missing or not executable", name);
        snprintf(program, sizeof program, "/sysroot/%s/%s", DROP_INS + strlen("over/"), name);
        int status = run(program, environment);
        if (status != 0)
            fail("init drop-in '%s' failed with status %d", name, status);
        at = stop ? stop + 1 : end;
    }
}

static void allow_operators(const struct seed *seed) { /* the agent looks for it; this process becomes the supervisor */
    if (!seed_file(seed, "init/operator-exec"))
        return;
    int file = openat(run_folder, "operator", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
    if (file < 0 || dprintf(file, "%d\n", (int)getpid()) < 0)
        fail("operators' commands cannot be allowed: %s", strerror(errno));
    close(file);
}

static void enter_image(void) { /* not "in a chroot" as the kernel sees it: user namespaces keep working */
    if (mount(".", "/", NULL, MS_MOVE, NULL) < 0)
        fail("the root file system cannot be moved into place: %s", strerror(errno));
    if (chroot(".") < 0 || chdir("/") < 0)
        fail("the image's root cannot be entered: %s", strerror(errno));
    /* The cgroup that it is in becomes the root of what it knows of them. */
    if (unshare(CLONE_NEWCGROUP) < 0 && errno != EINVAL) /* EINVAL: a kernel without cgroup namespaces */
        fail("no cgroup namespace: %s", strerror(errno));
}

int main(int argc, char **argv) {
    struct seed seed;
    if (argc < 5 || argc > 6) {
        fprintf(stderr, "usage: become ROOT SEED_DISK STATUS_DISK STAMPS [barrier]\n");
        return 2;
    }
    run_folder = open("/run", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int root = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int seed_disk = open(argv[2], O_RDONLY | O_DIRECT | O_CLOEXEC);
    status_disk = *argv[3] ? open(argv[3], O_WRONLY | O_DIRECT | O_CLOEXEC) : -1;
    snprintf(stamps, sizeof stamps, "%s", argv[4]);
    if (run_folder < 0 || root < 0 || seed_disk < 0 || fchdir(root) < 0)
        fail("what the machine is to be cannot be opened: %s", strerror(errno));
    if (argc == 6)
        wait_at_barrier();
    read_seed(seed_disk, &seed);
    char **environment = seed_environment(needed(&seed, "init/environ"));
    if (!environment)
        fail("the seed disk cannot be read: the supervisor's environment");
    deliver_files(root, &seed);
    show_own_uuid(&seed);
    set_hostname(&seed);
    set_up_network(&seed);
    limit_workload(&seed);
    run_drop_ins(&seed);
    allow_operators(&seed);
    enter_image();
    char *const words[] = {SUPERVISOR, "--workdir", "/sandbox", NULL};
    setsid();
    stamp("supervisor");
    report("started");
    return not_run(SUPERVISOR, words, environment);
}
