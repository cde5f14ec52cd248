/* Begins QEMU in its machine's box, as the program of the shell's beside this one (boxed-qemu) does, which says why each step
 * is there. Where this host has a compiler, machines are begun by this one: of the programs that the other begins on the
 * way, only bwrap and the shell that holds the box open are left.
 *
 * vmdriver compiles it once for each version of this text, and writes it into the state directory with its settings filled
 * in (hypervisor/wall/boxes.py). It is static, so that nothing is loaded for it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#error "the filter of system calls is not known for this machine"
#endif

#define IO_URING_SETUP 425
#define MOST_RULES 4096
#define LONGEST_PATH 4096
#define ARGUMENTS 3
#define SAYS 4
#define HELD 5
#define FREE 10 /* descriptors from here on are none of these */

/* Three texts, each with its end, and QEMU's identity. Not static: the compiler believes what it sees of those. */
char settings[16384] = "@vmdriver-settings@";

static const char *emulator, *boxes, *bwrap;
static const char *name, *key, *filter = "";

__attribute__((noreturn, format(printf, 1, 2))) static void refuse(const char *format, ...) {
    char text[1024];
    va_list rest;
    va_start(rest, format);
    vsnprintf(text, sizeof text, format, rest);
    va_end(rest);
    dprintf(2, "boxed-qemu: %s\n", text);
    exit(1);
}

static void *must(void *memory) {
    if (!memory)
        refuse("there is no memory");
    return memory;
}

static char *cut(const char *text, size_t length) { return must(strndup(text, length)); }

static char *joined(const char *first, const char *between, const char *last) {
    char *text;
    if (asprintf(&text, "%s%s%s", first, between, last) < 0)
        refuse("there is no memory");
    return text;
}

static bool begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }

static void read_settings(void) {
    emulator = settings;
    boxes = emulator + strlen(emulator) + 1;
    bwrap = boxes + strlen(boxes) + 1;
    if (*emulator != '/' || *boxes != '/' || *bwrap != '/')
        refuse("it has no settings");
}

static void note_key(const char *object) {
    static const char id[] = "\"id\":\"masterKey0\"", file[] = "\"file\":\"";
    const char *at = strstr(object, id), *found = NULL;
    while (at && (at = strstr(at, file)))
        found = at += sizeof file - 1;
    if (found)
        key = cut(found, strcspn(found, "\""));
}

/* Whose QEMU it is, libvirt's key for it, and the filter that it puts on itself. */
static void read_words(char **words) {
    const char *option = "";
    for (; *words; option = *words++) {
        if (!strcmp(option, "-name") && begins(*words, "guest="))
            name = cut(*words + 6, strcspn(*words + 6, ","));
        else if (!strcmp(option, "-object"))
            note_key(*words);
        else if (!strcmp(option, "-sandbox"))
            filter = *words;
    }
}

static unsigned long long number(const char *text) {
    char *end;
    errno = 0;
    unsigned long long found = strtoull(text, &end, 10);
    if (errno || !*text || *end || *text < '0' || *text > '9')
        refuse("%s is no number", text);
    return found;
}

/* In the units of the shell's ulimit. A limit that is lower already stays. */
static void limit(char letter, const char *text) {
    static const struct {
        char letter;
        int kind;
        rlim_t unit;
    } kinds[] = {
        {'c', RLIMIT_CORE, 512},
        {'f', RLIMIT_FSIZE, 512},
        {'l', RLIMIT_MEMLOCK, 1024},
        {'n', RLIMIT_NOFILE, 1},
        {'p', RLIMIT_NPROC, 1},
        {'v', RLIMIT_AS, 1024},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (kinds[i].letter != letter)
            continue;
        rlim_t most = number(text) * kinds[i].unit;
        struct rlimit now, wanted = {most, most};
        if (getrlimit(kinds[i].kind, &now))
            refuse("the limit -%c is not known: %s", letter, strerror(errno));
        if (now.rlim_max < most && now.rlim_max != RLIM_INFINITY)
            return;
        if (setrlimit(kinds[i].kind, &wanted))
            refuse("the limit -%c %s cannot be set: %s", letter, text, strerror(errno));
        return;
    }
    refuse("what does -%c mean?", letter);
}

/* At most `size` - 1 bytes, with an end. False: it cannot be read, or is longer. */
static bool read_file(const char *path, char *text, size_t size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return false;
    size_t length = 0;
    ssize_t more = 0;
    while (length < size && (more = read(file, text + length, size - length)) > 0)
        length += (size_t)more;
    close(file);
    if (more < 0 || length == size)
        return false;
    text[length] = 0;
    return true;
}

static void die_before(const char *text) {
    static const char path[] = "/proc/self/oom_score_adj";
    char now[32];
    if (!read_file(path, now, sizeof now))
        refuse("oom_score_adj cannot be read");
    if (strtoll(now, NULL, 10) >= (long long)number(text))
        return;
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0 || write(file, text, strlen(text)) < 0)
        refuse("oom_score_adj cannot be set");
    close(file);
}

static void check_filter(void) {
    static const char *const words[] = {
        "on", "elevateprivileges=deny", "obsolete=deny", "resourcecontrol=deny", "spawn=deny",
    };
    char *said = joined(",", filter, ",");
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strstr(said, joined(",", words[i], ",")))
            refuse("libvirt does not have QEMU filter its system calls (%s): set seccomp_sandbox = 1 in qemu.conf",
                   words[i]);
}

struct wanted {
    bool boxed, apart, filtered;
};

static struct wanted obey_rules(void) {
    static char text[MOST_RULES];
    struct wanted wanted = {.boxed = true};
    char *path = joined(boxes, "/", joined(name, ".rules", "")), *line = text;
    if (!read_file(path, text, sizeof text))
        refuse("there is no box for %s: vmdriver makes one when it starts a machine", name);
    while (*line) {
        char *end = strchr(line, '\n');
        if (!end)
            refuse("the rules of %s have no end", name);
        *end = 0;
        char *value = strchrnul(line, ' ');
        if (*value)
            *value++ = 0;
        if (*line == '-' && line[1] && !line[2])
            limit(line[1], value);
        else if (!strcmp(line, "die-before"))
            die_before(value);
        else if (!strcmp(line, "filtered"))
            check_filter(), wanted.filtered = true;
        else if (!strcmp(line, "unboxed"))
            wanted.boxed = false;
        else if (!strcmp(line, "apart"))
            wanted.apart = true;
        else
            refuse("what does %s mean?", line);
        line = end + 1;
    }
    return wanted;
}

/* QEMU locks, and heeds locks on, only what it may write. */
static void unlock_shared(char **words) {
    static const char file[] = "{\"driver\":\"file\",\"filename\":\"";
    for (; *words; words++) {
        if (strcmp(words[0], "-blockdev") || !words[1] || !begins(words[1], file) || strstr(words[1], "\"locking\""))
            continue;
        const char *path = words[1] + sizeof file - 1;
        path = cut(path, strcspn(path, "\""));
        if (*path && faccessat(AT_FDCWD, path, W_OK, AT_EACCESS))
            words[1] = joined("{\"locking\":\"off\",", words[1] + 1, "");
    }
}

/* No program that it executes gets more than it has; and if `filtered`, no kinds of sockets but local ones, IPv4, IPv6 and
 * netlink, and no io_uring: the filter of the shell's program, instruction for instruction.
 */
static void narrow(bool filtered) {
    static struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 11),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 9, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, IO_URING_SETUP, 9, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 6),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1, 4, 0),  /* AF_UNIX */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 2, 3, 0),  /* AF_INET */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 10, 2, 0), /* AF_INET6 */
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 16, 1, 0), /* AF_NETLINK */
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
    };
    struct sock_fprog whole = {sizeof program / sizeof *program, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        refuse("it may get new privileges: %s", strerror(errno));
    if (filtered && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole, 0, 0))
        refuse("no filter of system calls: %s", strerror(errno));
}

/* Have `from` be the descriptor `to` of a program that is begun. */
static void put(int from, int to) {
    if (from < 0 || dup2(from, to) < 0)
        _exit(1);
}

/* bwrap's child is in the box and holds it open as long as nobody has closed the other end of HELD; it says on SAYS who it
 * is. Nobody may make user namespaces in there. It has none of QEMU's descriptors.
 */
__attribute__((noreturn)) static void be_bwrap(int says, int held) {
    static char script[] = "[ ! -e /user-namespaces ] || echo 0 >/user-namespaces || exit 1; echo $$ >&4; exec 4>&-; read -r end <&5";
    char *words[24], **next = words;
    int arguments = fcntl(open(joined(boxes, "/", name), O_RDONLY | O_CLOEXEC), F_DUPFD_CLOEXEC, FREE);
    int nothing = fcntl(open("/dev/null", O_RDWR | O_CLOEXEC), F_DUPFD_CLOEXEC, FREE);
    says = fcntl(says, F_DUPFD_CLOEXEC, FREE);
    held = fcntl(held, F_DUPFD_CLOEXEC, FREE);
    put(nothing, 0);
    put(nothing, 1);
    put(arguments, ARGUMENTS);
    put(says, SAYS);
    put(held, HELD);
    syscall(SYS_close_range, HELD + 1, ~0U, 0); /* a kernel before 5.9 has none */
    *next++ = (char *)bwrap;
    *next++ = "--args";
    *next++ = "3";
    if (key) {
        const char *last = strrchr(key, '/');
        char *more[] = {"--perms", "0111", "--dir", last ? cut(key, (size_t)(last - key)) : (char *)key,
                        "--ro-bind", (char *)key, (char *)key};
        memcpy(next, more, sizeof more);
        next += sizeof more / sizeof *more;
    }
    char *rest[] = {"--remount-ro", "/", "--", "/bin/sh", "-c", script, NULL};
    memcpy(next, rest, sizeof rest);
    execv(bwrap, words);
    _exit(1);
}

/* Who holds the box open, as a text; `held` is what is closed to end it. */
static char *begin_holder(int *held) {
    static char said[32];
    int says[2], holds[2];
    if (pipe2(says, O_CLOEXEC) || pipe2(holds, O_CLOEXEC))
        refuse("no pipe: %s", strerror(errno));
    pid_t between = fork();
    if (between < 0)
        refuse("no process: %s", strerror(errno));
    if (!between) {
        if (fork()) /* what is begun here is no child of QEMU's */
            _exit(0);
        be_bwrap(says[1], holds[0]);
    }
    while (waitpid(between, NULL, 0) < 0 && errno == EINTR)
        ;
    close(says[1]);
    close(holds[0]);
    *held = holds[1];
    size_t length = 0;
    ssize_t more;
    while (length < sizeof said - 1 && (more = read(says[0], said + length, sizeof said - 1 - length)) != 0) {
        if (more < 0 && errno != EINTR)
            break;
        length += more > 0 ? (size_t)more : 0;
    }
    close(says[0]);
    said[length] = 0;
    said[strcspn(said, "\n")] = 0;
    if (!*said || strspn(said, "0123456789") != strlen(said))
        refuse("the box of %s could not be made", name);
    return said;
}

/* This process goes into the box: QEMU is the process that libvirt knows. The owner of a user namespace may. */
static void enter_box(bool apart) {
    static const struct {
        const char *file;
        int kind;
    } kinds[] = {
        {"user", CLONE_NEWUSER}, {"mnt", CLONE_NEWNS},        {"ipc", CLONE_NEWIPC},
        {"uts", CLONE_NEWUTS},   {"cgroup", CLONE_NEWCGROUP}, {"net", CLONE_NEWNET},
    };
    enum { COUNT = sizeof kinds / sizeof *kinds };
    int files[COUNT], held, count = apart ? COUNT : COUNT - 1;
    char *holder = begin_holder(&held);
    for (int i = 0; i < count; i++) {
        files[i] = open(joined("/proc/", holder, joined("/ns/", kinds[i].file, "")), O_RDONLY | O_CLOEXEC);
        if (files[i] < 0)
            refuse("the box of %s is not open: %s", name, strerror(errno));
    }
    for (int i = 0; i < count; i++) {
        if (setns(files[i], kinds[i].kind))
            refuse("the box of %s cannot be entered (%s): %s", name, kinds[i].file, strerror(errno));
        close(files[i]);
    }
    close(held);
}

int main(int count, char **words) {
    umask(077);
    read_settings();
    if (count < 1)
        refuse("it has no name of its own");
    read_words(words + 1);
    words[0] = (char *)emulator;
    if (name) { /* else it is no machine: libvirt asks QEMU what it can do */
        if (strchr(name, '/') || *name == '.' || !*name)
            refuse("%s is no machine's name", name);
        struct wanted wanted = obey_rules();
        /* Beyond the file size QEMU is told of an error, as on a full disk, instead of being killed. */
        signal(SIGXFSZ, SIG_IGN);
        unlock_shared(words);
        if (wanted.boxed)
            enter_box(wanted.apart);
        narrow(wanted.filtered);
    }
    execv(emulator, words);
    refuse("%s: %s", emulator, strerror(errno));
}
