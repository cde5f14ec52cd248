/* launch [--root DIR] ENVIRON PROGRAM [ARGUMENT...]
 *
 * Runs PROGRAM with exactly the environment in the file ENVIRON (NUL-terminated NAME=VALUE strings), so that
 * every byte of a value survives: no shell ever parses it. With --root, DIR becomes the root directory first
 * (the environment file is read before that), and the cgroup that launch runs in the root of what PROGRAM knows of
 * cgroups: /proc/self/cgroup and the mount at /sys/fs/cgroup then say the same. Exits 126 if the program cannot be run,
 * 127 if it is not there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void die(const char *what) {
    int reason = errno;
    fprintf(stderr, "launch: %s: %s\n", what, strerror(reason));
    exit(reason == ENOENT ? 127 : 126);
}

static char **read_environment(const char *path) {
    struct stat info;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &info) < 0)
        die(path);
    char *bytes = malloc(info.st_size + 1);
    char **list = calloc(info.st_size + 2, sizeof(char *));
    if (!bytes || !list)
        die("memory");
    off_t have = 0;
    while (have < info.st_size) {
        ssize_t got = read(file, bytes + have, info.st_size - have);
        if (got <= 0)
            die(path);
        have += got;
    }
    bytes[have] = '\0';
    close(file);
    size_t count = 0;
    for (char *at = bytes; at < bytes + have; at += strlen(at) + 1)
        list[count++] = at;
    return list;
}

int main(int argc, char **argv) {
    const char *root = NULL;
    int at = 1;
    if (argc > 2 && strcmp(argv[1], "--root") == 0) {
        root = argv[2];
        at = 3;
    }
    if (argc - at < 2) {
        fprintf(stderr, "usage: launch [--root DIR] ENVIRON PROGRAM [ARGUMENT...]\n");
        return 126;
    }
    char **environment = read_environment(argv[at]);
    if (root && (chroot(root) < 0 || chdir("/") < 0))
        die(root);
    if (root && unshare(CLONE_NEWCGROUP) < 0 && errno != EINVAL) /* EINVAL: a kernel without cgroup namespaces */
        die("cgroup namespace");
    setsid();
    execve(argv[at + 1], argv + at + 1, environment);
    die(argv[at + 1]);
}
