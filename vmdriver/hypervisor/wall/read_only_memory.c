/* Preloaded into a QEMU that maps its guest's memory from a file.
 *
 * QEMU before 8.2 opens such a file to read and write, also where it maps it privately and will never write to it. It
 * has no right to write to ours. This library has it open exactly the file that VMDRIVER_READ_ONLY_MEMORY names to
 * read only; everything else is opened as was asked. Without this library QEMU cannot open the file and ends.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *memory;

__attribute__((constructor)) static void begin(void) { memory = getenv("VMDRIVER_READ_ONLY_MEMORY"); }

static int open_file(const char *path, int flags, mode_t mode) {
    if (memory && (flags & O_ACCMODE) == O_RDWR && !strcmp(path, memory))
        flags = (flags & ~(O_ACCMODE | O_CREAT)) | O_RDONLY;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

__attribute__((visibility("default"))) int open64(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & (O_CREAT | __O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    return open_file(path, flags | O_LARGEFILE, mode);
}

/* The same on machines of 64 bits; and what callers are compiled to that are checked for a missing mode. */
__attribute__((visibility("default"), alias("open64"))) int open(const char *path, int flags, ...);
__attribute__((visibility("default"))) int __open64_2(const char *path, int flags) {
    return open_file(path, flags | O_LARGEFILE, 0);
}
__attribute__((visibility("default"), alias("__open64_2"))) int __open_2(const char *path, int flags);
