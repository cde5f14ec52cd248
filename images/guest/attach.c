/* attach ROOT PLACE VOLUME [UID GID]
 *
 * Lets the directory VOLUME, on which a volume or a folder of the host is mounted, be seen at ROOT/PLACE too, an absolute path
 * inside of the image. What is missing on the way is made; nothing on it may be a link, or anything else that is no directory,
 * and nothing is followed out of ROOT. The volume's own root directory becomes UID's and GID's, if it may be written.
 * While nothing of the image runs.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int failed(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static int below(int at, const char *name) { /* the directory of that name, made if need be */
    if (!strcmp(name, ".") || !strcmp(name, ".."))
        errno = EINVAL, failed(name);
    if (mkdirat(at, name, 0755) < 0 && errno != EEXIST)
        failed(name);
    int found = openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (found < 0) /* ENOTDIR, for a link too */
        failed(name);
    close(at);
    return found;
}

static void own(const char *volume, uid_t uid, gid_t gid) {
    struct stat found;
    int directory = open(volume, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (directory < 0 || fstat(directory, &found) < 0)
        failed(volume);
    if (found.st_uid == uid && found.st_gid == gid)
        return;
    if ((fchown(directory, uid, gid) < 0 || fchmod(directory, 0755) < 0) && errno != EROFS)
        failed(volume);
}

int main(int argc, char **argv) {
    char target[64], *place, *rest;
    if ((argc != 4 && argc != 6) || argv[2][0] != '/') {
        fprintf(stderr, "usage: attach ROOT PLACE VOLUME [UID GID]\n");
        return 2;
    }
    int at = open(argv[1], O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (at < 0)
        failed(argv[1]);
    place = argv[2];
    for (const char *name = strtok_r(place, "/", &rest); name; name = strtok_r(NULL, "/", &rest))
        at = below(at, name);
    if (argc == 6)
        own(argv[3], strtoul(argv[4], NULL, 10), strtoul(argv[5], NULL, 10));
    snprintf(target, sizeof target, "/proc/self/fd/%d", at);
    if (mount(argv[3], target, NULL, MS_BIND, NULL) < 0)
        failed("mount");
    return 0;
}
