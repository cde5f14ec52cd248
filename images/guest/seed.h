/* The seed disk as a list of files: a strict, bounded reader of what the driver's storage/sandboxes/seed.py writes. */
#ifndef SEED_H
#define SEED_H

#include <stddef.h>
#include <sys/types.h>

#define SEED_BLOCK 512
#define SEED_MOST (64u << 20)   /* bytes */
#define SEED_MOST_ENTRIES 4096
#define SEED_LONGEST 256        /* of a path, with its NUL */
#define SEED_DEEPEST 16         /* names in a path */

struct seed_entry {
    char path[SEED_LONGEST]; /* below the root: "init/NAME" or "over/..."; no empty name, no "." and no ".." in it */
    const char *bytes;
    size_t size;
    mode_t mode; /* rwx bits alone */
    int directory;
};

struct seed {
    struct seed_entry *entries;
    size_t count;
    const char *why; /* what is wrong, if there is */
};

/* Whether `size` bytes are a whole seed. Nothing is copied: `bytes` must stay, and entries point into them. */
int seed_read(const char *bytes, size_t size, struct seed *seed);

/* The file of that path, or NULL. */
const struct seed_entry *seed_file(const struct seed *seed, const char *path);

/* Up to its first line's end, without it; -1 when that does not fit. */
int seed_line(const struct seed_entry *file, char *line, size_t room);

/* NAME=VALUE strings, each with its NUL, as execve(2) takes them; NULL when it is nothing of that kind. */
char **seed_environment(const struct seed_entry *file);

#endif
