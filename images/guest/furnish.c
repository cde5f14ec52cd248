/* furnish ROOT UID GID
 *
 * Makes an image's root directory, which nobody has checked, fit to be mounted into and written to: below it, the
 * directories that init uses are directories, and no links, FIFOs or devices; passwd and group know a user "sandbox", with
 * UID and GID where the image has none. Prints that user's "UID GID". Nothing outside of ROOT is opened, nothing that is no
 * regular file is opened at all, and none that is larger than MOST bytes: then it fails and says why.
 * Before anything is mounted below ROOT, and while nothing of the image runs.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST (1 << 20)
#define LONGEST_LINE 128

struct text {
    char *bytes; /* with room for one line more, and a NUL */
    size_t size;
    mode_t mode;
};

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int directory(int at, const char *name, const char *shown) { /* a descriptor of a real one, made if need be */
    struct stat found;
    if (fstatat(at, name, &found, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISDIR(found.st_mode) && unlinkat(at, name, 0) < 0)
        failed(shown);
    if (mkdirat(at, name, 0755) < 0 && errno != EEXIST)
        failed(shown);
    int made = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return made < 0 ? failed(shown) : made;
}

static int opened(int root, const char *path) { /* as a process of the image would find it; -1 for what is no file */
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV};
    struct stat found;
    char again[64];
    int handle = syscall(SYS_openat2, root, path, &how, sizeof how);
    if (handle < 0 && errno == ENOSYS)
        failed("openat2"); /* "not there" would hide it */
    if (handle < 0 || fstat(handle, &found) < 0 || !S_ISREG(found.st_mode))
        return -1; /* to open a FIFO may take for ever, and a device may do what it does */
    snprintf(again, sizeof again, "/proc/self/fd/%d", handle);
    int file = open(again, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        failed(path);
    close(handle);
    return file;
}

static struct text content(int root, const char *path) { /* nothing, if there is no such file */
    struct stat found;
    struct text text = {calloc(1, MOST + LONGEST_LINE), 0, 0644};
    int file = opened(root, path);
    if (!text.bytes)
        failed("memory");
    if (file < 0)
        return text;
    if (fstat(file, &found) < 0)
        failed(path);
    if (found.st_size > MOST)
        errno = EFBIG, failed(path);
    text.mode = found.st_mode & 0777;
    ssize_t got;
    while (text.size < MOST && (got = read(file, text.bytes + text.size, MOST - text.size)) != 0) {
        if (got < 0)
            failed(path);
        text.size += got;
    }
    close(file);
    return text;
}

static const char *line_of(struct text text, const char *start) { /* the first that begins so; the text may hold NULs */
    size_t length = strlen(start);
    for (const char *at = text.bytes, *end = at + text.size; at && (size_t)(end - at) >= length;) {
        if (memcmp(at, start, length) == 0)
            return at;
        at = memchr(at, '\n', end - at);
        at = at ? at + 1 : NULL;
    }
    return NULL;
}

static void add_line(int etc, const char *name, struct text text, const char *line) {
    /* Put into the file's place as a whole: through a link, nothing is written. */
    char fresh[64];
    if (text.size > 0 && text.bytes[text.size - 1] != '\n')
        text.bytes[text.size++] = '\n';
    memcpy(text.bytes + text.size, line, strlen(line));
    text.size += strlen(line);
    snprintf(fresh, sizeof fresh, ".%s.fresh", name);
    unlinkat(etc, fresh, 0);
    int file = openat(etc, fresh, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (file < 0)
        failed(name);
    for (size_t have = 0; have < text.size;) {
        ssize_t put = write(file, text.bytes + have, text.size - have);
        if (put < 0)
            failed(name);
        have += put;
    }
    if (fchmod(file, text.mode) < 0 || close(file) < 0 || renameat(etc, fresh, etc, name) < 0)
        failed(name);
}

static int number(const char **at, const char *end, unsigned long *value) { /* decimal, up to ':' */
    const char *begin = *at;
    for (*value = 0; *at < end && isdigit((unsigned char)**at) && *at - begin < 10; (*at)++)
        *value = *value * 10 + (**at - '0');
    return *at > begin && *at < end && *(*at)++ == ':' && *value < 0xffffffffUL;
}

static int owner_in(const char *line, struct text text, unsigned long *uid, unsigned long *gid) {
    const char *end = text.bytes + text.size, *stop = memchr(line, '\n', end - line);
    const char *at = line + strlen("sandbox:");
    end = stop ? stop : end;
    at = memchr(at, ':', end - at); /* behind the password */
    return at && (at++, number(&at, end, uid)) && number(&at, end, gid);
}

int main(int argc, char **argv) {
    static const char *const needed[] = {"proc", "sys", "dev", "run", "tmp", "etc", "sandbox"};
    char line[LONGEST_LINE];
    if (argc != 4) {
        fprintf(stderr, "usage: furnish ROOT UID GID\n");
        return 2;
    }
    int root = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        failed(argv[1]);
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        close(directory(root, needed[i], needed[i]));
    int etc = directory(root, "etc", "etc"), opt = directory(root, "opt", "opt");
    close(directory(opt, "openshell", "opt/openshell"));
    unsigned long uid = strtoul(argv[2], NULL, 10), gid = strtoul(argv[3], NULL, 10);
    struct text users = content(root, "etc/passwd"), groups = content(root, "etc/group");
    const char *known = line_of(users, "sandbox:");
    /* A workload that is root could undo all that the supervisor keeps from it. */
    if (known && (!owner_in(known, users, &uid, &gid) || !uid))
        errno = EINVAL, failed("etc/passwd: the user sandbox");
    if (!known && !line_of(groups, "sandbox:")) {
        snprintf(line, sizeof line, "sandbox:x:%lu:\n", gid);
        add_line(etc, "group", groups, line);
    }
    if (!known) {
        snprintf(line, sizeof line, "sandbox:x:%lu:%lu::/sandbox:/bin/sh\n", uid, gid);
        add_line(etc, "passwd", users, line);
    }
    printf("%lu %lu\n", uid, gid);
    return 0;
}
