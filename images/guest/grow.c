/* grow DEVICE DIR
 *
 * Lets the ext4 file system on DEVICE, mounted on DIR, take the whole device: what resize2fs does with a mounted
 * one. Nothing to do is success.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/types.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>

#define EXT4_IOC_RESIZE_FS _IOW('f', 16, __u64)

static int failed(const char *what) {
    fprintf(stderr, "grow: %s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: grow DEVICE DIR\n");
        return 2;
    }
    unsigned long long bytes = 0;
    struct statfs info;
    int device = open(argv[1], O_RDONLY | O_CLOEXEC), root = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (device < 0 || ioctl(device, BLKGETSIZE64, &bytes) < 0)
        return failed(argv[1]);
    if (root < 0 || fstatfs(root, &info) < 0)
        return failed(argv[2]);
    __u64 blocks = bytes / info.f_bsize;
    if (ioctl(root, EXT4_IOC_RESIZE_FS, &blocks) < 0)
        return failed("EXT4_IOC_RESIZE_FS");
    return 0;
}
