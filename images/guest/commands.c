#define _GNU_SOURCE
#include "commands.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MOST 4              /* at a time */
#define ROOM 4096           /* bytes of output, of each way, in one answer */
#define INPUT 8192          /* bytes of input, and of a program's words, in one request */
#define MOST_WORDS 256
#ifndef UNHEARD_MS
#define UNHEARD_MS 20000.0 /* then whoever asked has gone */
#endif
#define GRACE_MS 1000.0     /* between being told to end and being killed; and for what is left of the output */
#define TICK_MS 250
#define PIDS "512\n"
#define ALLOWED "/run/operator"    /* "PID": of what has become the supervisor */
#define USER "/run/sandbox-user"   /* "UID GID" */

struct command {
    char id[64]; /* "": free */
    pid_t pid;
    int in, out, err, terminal; /* -1: closed */
    int group;                  /* its cgroup's directory, or -1 */
    char group_name[32];
    int ended, status;
    double ended_ms, heard_ms, kill_ms; /* kill_ms 0: it goes on */
    unsigned long seq;
    char reply[COMMANDS_REPLY];
};

static struct command all[MOST];
static int home = -1; /* the cgroups' root */

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

/* --- requests: KEY=VALUE, separated by spaces */

static const char *value(const char *request, const char *key, size_t *length) { /* NULL: it has none */
    size_t size = strlen(key);
    for (const char *at = request; (at = strchr(at, ' '));) {
        at++;
        if (strncmp(at, key, size) == 0 && at[size] == '=') {
            *length = strcspn(at + size + 1, " ");
            return at + size + 1;
        }
    }
    return NULL;
}

static long number(const char *request, const char *key, long most) { /* -1: none, or none from 0 to `most` */
    size_t length;
    const char *text = value(request, key, &length);
    char *end;
    if (!text || length == 0 || length > 9 || text[0] < '0' || text[0] > '9')
        return -1;
    long found = strtol(text, &end, 10);
    return end == text + length && found <= most ? found : -1;
}

static int word(const char *request, const char *key, char *text, size_t room) { /* 0: none that is one */
    size_t length;
    const char *at = value(request, key, &length);
    if (!at || length == 0 || length >= room)
        return 0;
    for (size_t i = 0; i < length; i++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-", at[i]))
            return 0;
    memcpy(text, at, length);
    text[length] = '\0';
    return 1;
}

static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static ssize_t decoded(const char *request, const char *key, unsigned char *bytes, size_t room) { /* 0: none; -1: none that is one */
    size_t length, size = 0;
    const char *text = value(request, key, &length);
    if (!text)
        return 0;
    if (length % 4)
        return -1;
    for (size_t i = 0; i < length; i += 4) {
        unsigned bits = 0, padding = 0;
        for (size_t j = 0; j < 4; j++) {
            const char *digit = text[i + j] == '=' ? NULL : strchr(digits, text[i + j]);
            if (!digit && (text[i + j] != '=' || j < 2 || i + 4 != length))
                return -1;
            if (digit && padding)
                return -1;
            padding += !digit;
            bits = bits << 6 | (digit ? (unsigned)(digit - digits) : 0);
        }
        for (size_t j = 0; j < 3 - padding; j++) {
            if (size == room)
                return -1;
            bytes[size++] = bits >> (16 - 8 * j) & 0xff;
        }
    }
    return size;
}

static char *encode(char *at, const unsigned char *bytes, size_t size) { /* where it ends */
    for (size_t i = 0; i < size; i += 3) {
        unsigned bits = bytes[i] << 16 | (i + 1 < size ? bytes[i + 1] << 8 : 0) | (i + 2 < size ? bytes[i + 2] : 0);
        *at++ = digits[bits >> 18 & 63];
        *at++ = digits[bits >> 12 & 63];
        *at++ = i + 1 < size ? digits[bits >> 6 & 63] : '=';
        *at++ = i + 2 < size ? digits[bits & 63] : '=';
    }
    *at = '\0';
    return at;
}

static void refuse(char *answer, const char *what) { snprintf(answer, COMMANDS_REPLY, "error %s", what); }

/* --- what it runs in */

int commands_allowed(void) { return access(ALLOWED, F_OK) == 0; }

static int read_line(const char *path, char *text, size_t room) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, text, room - 1);
    if (file >= 0)
        close(file);
    text[size > 0 ? size : 0] = '\0';
    return size > 0;
}

static void put(int folder, const char *name, const char *text) {
    int file = openat(folder, name, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return;
    if (write(file, text, strlen(text)) < 0)
        errno = 0; /* a kernel without that controller, or it is gone */
    close(file);
}

static void make_group(struct command *command, int index) {
    snprintf(command->group_name, sizeof command->group_name, "operator-%d", index);
    if (mkdirat(home, command->group_name, 0755) < 0 && errno != EEXIST) {
        command->group = -1;
        return;
    }
    command->group = openat(home, command->group_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (command->group >= 0)
        put(command->group, "pids.max", PIDS);
}

static void kill_all(struct command *command) { /* cgroup.kill needs Linux 5.14 */
    if (command->group >= 0)
        put(command->group, "cgroup.kill", "1");
    if (!command->ended)
        kill(-command->pid, SIGKILL);
}

static void shut(int *file) {
    if (*file >= 0)
        close(*file);
    *file = -1;
}

static void fail_child(const char *what) __attribute__((noreturn));

static void fail_child(const char *what) {
    dprintf(STDERR_FILENO, "%s: %s\n", what, strerror(errno));
    _exit(errno == ENOENT ? 127 : 126); /* as a shell says it */
}

static void enter_image(void) { /* where the supervisor is, not "in a chroot" as the kernel sees it */
    char text[32], path[64];
    if (!read_line(ALLOWED, text, sizeof text))
        fail_child("the supervisor");
    long pid = strtol(text, NULL, 10);
    snprintf(path, sizeof path, "/proc/%ld/root", pid);
    int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    snprintf(path, sizeof path, "/proc/%ld/ns/mnt", pid);
    int mounts = open(path, O_RDONLY | O_CLOEXEC);
    if (root < 0 || mounts < 0 || setns(mounts, CLONE_NEWNS) < 0 || fchdir(root) < 0 || chroot(".") < 0)
        fail_child("the image's root");
    if (chdir("/sandbox") < 0 && chdir("/") < 0)
        fail_child("/");
}

static void become_user(int as_root, const char *term) {
    char text[64];
    unsigned uid = 0, gid = 0;
    clearenv();
    if (!as_root) {
        if (!read_line(USER, text, sizeof text) || sscanf(text, "%u %u", &uid, &gid) != 2 || uid == 0)
            errno = EPERM, fail_child("the user sandbox");
    }
    enter_image();
    if (!as_root) {
        gid_t groups[1] = {gid};
        for (int i = 0; i < 3; i++) /* it may open them once more, as /dev/stderr or by its terminal's name */
            if (fchown(i, uid, -1) < 0)
                fail_child("the user sandbox");
        if (setgroups(1, groups) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0 ||
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
            fail_child("the user sandbox");
    }
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    setenv("HOME", as_root ? "/root" : "/sandbox", 1);
    setenv("USER", as_root ? "root" : "sandbox", 1);
    setenv("LANG", "C.UTF-8", 1);
    if (*term)
        setenv("TERM", term, 1);
}

static void run_child(const struct command *command, char *const *words, const int *ends, int as_root, const char *term)
    __attribute__((noreturn));

static void run_child(const struct command *command, char *const *words, const int *ends, int as_root, const char *term) {
    const struct rlimit none = {0, 0};
    for (int signal_ = 1; signal_ < NSIG; signal_++)
        signal(signal_, SIG_DFL);
    for (int i = 0; i < 3; i++)
        if (dup2(ends[i], i) < 0)
            _exit(126);
    if (command->group >= 0) /* before anything else: whatever it begins is in there too */
        put(command->group, "cgroup.procs", "0");
    int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (score < 0 || write(score, "0", 1) != 1)
        fail_child("oom_score_adj");
    if (setsid() < 0 || (command->terminal >= 0 && ioctl(0, TIOCSCTTY, 0) < 0))
        fail_child("the terminal");
    setrlimit(RLIMIT_CORE, &none);
    umask(022);
    become_user(as_root, term);
    if (close_range(3, ~0U, 0) < 0 && errno != ENOSYS) /* all of the agent's have O_CLOEXEC besides */
        fail_child("open files");
    execvp(words[0], words);
    fail_child(words[0]);
}

/* --- one command, from its beginning to its end */

static struct command *find(const char *request) {
    char id[64];
    if (!word(request, "id", id, sizeof id))
        return NULL;
    for (int i = 0; i < MOST; i++)
        if (all[i].id[0] && strcmp(all[i].id, id) == 0)
            return &all[i];
    return NULL;
}

static int set_window(const char *request, int terminal) { /* whether it says one */
    long rows = number(request, "rows", 9999), columns = number(request, "columns", 9999);
    struct winsize size = {.ws_row = rows > 0 ? rows : 24, .ws_col = columns > 0 ? columns : 80};
    if (rows < 0 || columns < 0)
        return 0;
    if (terminal >= 0)
        ioctl(terminal, TIOCSWINSZ, &size);
    return 1;
}

static int open_terminal(struct command *command, int *ends) { /* -1: errno is the reason */
    int unlocked = 0;
    command->terminal = open("/sysroot/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (command->terminal < 0 || ioctl(command->terminal, TIOCSPTLCK, &unlocked) < 0)
        return -1;
    command->in = command->out = command->terminal;
    ends[0] = ends[1] = ends[2] = ioctl(command->terminal, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return ends[0] < 0 ? -1 : 0;
}

static int open_pipes(struct command *command, int *ends) {
    int *const ours[3] = {&command->in, &command->out, &command->err};
    for (int i = 0; i < 3; i++) {
        int pair[2];
        if (pipe2(pair, O_CLOEXEC) < 0)
            return -1;
        *ours[i] = pair[i == 0];
        ends[i] = pair[i != 0];
        fcntl(*ours[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
}

static void close_ends(int *ends) { /* on a terminal they are one */
    for (int i = 2; i >= 0; i--) {
        if (i > 0 && ends[i] == ends[0])
            ends[i] = -1;
        shut(&ends[i]);
    }
}

static void close_ways(struct command *command) {
    if (command->terminal >= 0) {
        shut(&command->terminal);
        command->in = command->out = -1;
    }
    shut(&command->in);
    shut(&command->out);
    shut(&command->err);
}

static void forget(struct command *command) {
    close_ways(command);
    shut(&command->group);
    unlinkat(home, command->group_name, AT_REMOVEDIR); /* fails while something of it is left: it is used again */
    memset(command, 0, sizeof *command);
}

static int split(unsigned char *bytes, ssize_t size, char **words) { /* how many */
    int count = 0;
    for (ssize_t at = 0; at < size; at += strlen((char *)bytes + at) + 1) {
        if (count == MOST_WORDS)
            return 0;
        words[count++] = (char *)bytes + at;
    }
    words[count] = NULL;
    return count;
}

static void begin(const char *request, char *answer) {
    static unsigned char bytes[INPUT + 1];
    char *words[MOST_WORDS + 1], term[32] = "";
    int ends[3] = {-1, -1, -1}, index = 0;
    ssize_t size = decoded(request, "argv", bytes, INPUT);
    if (find(request))
        return; /* it was heard twice */
    while (index < MOST && all[index].id[0])
        index++;
    if (index == MOST)
        return refuse(answer, "so many commands run already");
    if (size <= 0 || bytes[size - 1] != '\0' || !bytes[0] || !split(bytes, size, words))
        return refuse(answer, "its words are none");
    struct command *command = &all[index];
    memset(command, 0, sizeof *command);
    command->in = command->out = command->err = command->terminal = command->group = -1;
    if (!word(request, "id", command->id, sizeof command->id))
        return refuse(answer, "it has no id");
    word(request, "term", term, sizeof term);
    int on_terminal = number(request, "rows", 9999) >= 0;
    make_group(command, index);
    if ((on_terminal ? open_terminal : open_pipes)(command, ends) < 0) {
        refuse(answer, "no pipe or terminal can be had");
        close_ends(ends);
        return forget(command);
    }
    set_window(request, command->terminal);
    command->heard_ms = now_ms();
    command->pid = fork();
    if (command->pid == 0)
        run_child(command, words, ends, number(request, "root", 1) == 1, term);
    close_ends(ends);
    if (command->pid < 0) {
        refuse(answer, "no process can be had");
        forget(command);
    }
}

static void look(struct command *command) { /* whether its first process has ended; what it began goes with it */
    int status;
    if (command->ended || waitpid(command->pid, &status, WNOHANG) != command->pid)
        return;
    command->ended = 1;
    command->ended_ms = now_ms();
    command->status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    kill_all(command);
}

static ssize_t give(struct command *command, const unsigned char *bytes, ssize_t size) { /* how much is taken */
    if (command->in < 0)
        return size; /* it hears nothing any more */
    ssize_t done = write(command->in, bytes, size);
    if (done >= 0)
        return done;
    if (errno == EAGAIN || errno == EINTR)
        return 0;
    if (command->in != command->terminal)
        shut(&command->in);
    return size;
}

static size_t take(struct command *command, int *way, unsigned char *bytes, size_t room) {
    if (*way < 0 || room == 0)
        return 0;
    ssize_t size = read(*way, bytes, room);
    if (size > 0)
        return size;
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (*way == command->terminal)
        *way = -1; /* the terminal itself is closed at the end */
    else
        shut(way);
    return 0;
}

static void exchange(struct command *command, const char *request, char *answer) {
    static unsigned char bytes[INPUT];
    unsigned char output[ROOM];
    long seq = number(request, "seq", 999999999), room = number(request, "room", ROOM);
    command->heard_ms = now_ms();
    if (seq >= 0 && (unsigned long)seq == command->seq && seq > 0) {
        memcpy(answer, command->reply, COMMANDS_REPLY);
        return;
    }
    ssize_t size = decoded(request, "in", bytes, sizeof bytes);
    if (seq < 0 || (unsigned long)seq != command->seq + 1 || size < 0 || room < 0)
        return refuse(answer, "that is no exchange");
    set_window(request, command->terminal);
    ssize_t taken = size > 0 ? give(command, bytes, size) : 0;
    if (number(request, "eof", 1) == 1 && taken == size && command->in >= 0 && command->terminal < 0)
        shut(&command->in);
    look(command);
    char *at = answer + sprintf(answer, "ok taken=%zd out=", taken);
    size_t said = take(command, &command->out, output, room);
    at = encode(at, output, said);
    at += sprintf(at, " err=");
    size_t complained = take(command, &command->err, output, room);
    at = encode(at, output, complained);
    int silent = command->out < 0 && command->err < 0;
    int late = now_ms() > command->ended_ms + GRACE_MS && said + complained == 0; /* who holds its ways is no child of its */
    if (command->ended && room > 0 && (silent || late))
        sprintf(at, " code=%d", command->status);
    command->seq = seq;
    memcpy(command->reply, answer, COMMANDS_REPLY);
}

static void end(struct command *command) {
    if (command->kill_ms > 0)
        return;
    close_ways(command); /* a terminal hangs up */
    if (!command->ended) {
        kill(-command->pid, SIGTERM);
        kill(-command->pid, SIGHUP);
        kill(-command->pid, SIGCONT);
    }
    command->kill_ms = now_ms() + GRACE_MS;
}

int commands_tick(void) {
    int some = 0;
    for (int i = 0; i < MOST; i++) {
        struct command *command = &all[i];
        if (!command->id[0])
            continue;
        look(command);
        if (now_ms() > command->heard_ms + UNHEARD_MS)
            end(command);
        if (command->kill_ms > 0 && (command->ended || now_ms() > command->kill_ms)) {
            kill_all(command);
            look(command);
            if (command->ended) {
                forget(command);
                continue;
            }
        }
        some = 1;
    }
    return some ? TICK_MS : -1;
}

void commands_perform(const char *request, int cgroups, char *answer) {
    int begins = strncmp(request, "begin ", 6) == 0;
    home = cgroups;
    signal(SIGPIPE, SIG_IGN);
    commands_tick();
    if (!commands_allowed())
        return refuse(answer, "this machine was begun without operators' commands");
    if (begins)
        return begin(request, answer);
    struct command *command = find(request);
    if (!command)
        return refuse(answer, "there is no such command");
    if (strncmp(request, "end ", 4) == 0)
        return end(command);
    if (command->kill_ms > 0)
        return refuse(answer, "there is no such command"); /* it is going */
    exchange(command, request, answer);
}
