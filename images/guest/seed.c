#include "seed.h"

#include <stdlib.h>
#include <string.h>

struct header { /* POSIX.1-1988, ustar */
    char name[100], mode[8], uid[8], gid[8], size[12], time[12], sum[8], type, link[100], magic[6], version[2];
    char user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};

_Static_assert(sizeof(struct header) == SEED_BLOCK, "a header is a block");

static int octal(const char *text, size_t length, size_t *value) { /* digits, then NULs or spaces to the end */
    size_t at = 0;
    for (*value = 0; at < length && text[at] >= '0' && text[at] <= '7'; at++)
        *value = *value * 8 + (size_t)(text[at] - '0'); /* 12 digits at most: 36 bits */
    if (at == 0)
        return 0;
    while (at < length && (text[at] == '\0' || text[at] == ' '))
        at++;
    return at == length;
}

static int is_sound(const struct header *header) {
    const unsigned char *bytes = (const void *)header;
    size_t sum = 0, said;
    for (size_t i = 0; i < SEED_BLOCK; i++)
        sum += i >= offsetof(struct header, sum) && i < offsetof(struct header, type) ? ' ' : bytes[i];
    return memcmp(header->magic, "ustar\0" "00", 8) == 0 && octal(header->sum, sizeof header->sum, &said) && said == sum;
}

static int join(const struct header *header, char *path) { /* -1: too long, or with a name that is none */
    size_t prefix = strnlen(header->prefix, sizeof header->prefix), name = strnlen(header->name, sizeof header->name);
    size_t length = 0, names = 0;
    if (prefix + 1 + name >= SEED_LONGEST)
        return -1;
    if (prefix > 0) {
        memcpy(path, header->prefix, prefix);
        path[prefix] = '/';
        length = prefix + 1;
    }
    memcpy(path + length, header->name, name);
    length += name;
    if (header->type == '5' && length > 0 && path[length - 1] == '/')
        length--;
    path[length] = '\0';
    for (const char *at = path;; at++) {
        size_t part = strcspn(at, "/");
        if (part == 0 || (part == 1 && at[0] == '.') || (part == 2 && at[0] == '.' && at[1] == '.') || ++names > SEED_DEEPEST)
            return -1;
        at += part;
        if (*at == '\0')
            return 0;
    }
}

static int is_ours(const char *path) {
    return strcmp(path, "init") == 0 || strcmp(path, "over") == 0 || strncmp(path, "init/", 5) == 0 ||
           strncmp(path, "over/", 5) == 0;
}

static const char *take(const char *bytes, size_t size, size_t *at, struct seed_entry *entry) { /* what is wrong, or NULL */
    const struct header *header = (const void *)(bytes + *at);
    size_t mode;
    if (!is_sound(header))
        return "a header is none";
    if (header->type != '0' && header->type != '5')
        return "an entry is neither a file nor a directory";
    if (join(header, entry->path) < 0 || !is_ours(entry->path))
        return "an entry has no valid name";
    if (!octal(header->mode, sizeof header->mode, &mode) || !octal(header->size, sizeof header->size, &entry->size))
        return "a number is none";
    entry->directory = header->type == '5';
    if (entry->directory && entry->size > 0)
        return "a directory has content";
    *at += SEED_BLOCK;
    if (entry->size > size - *at)
        return "it ends within a file";
    entry->mode = mode & 0777;
    entry->bytes = bytes + *at;
    size_t whole = (entry->size + SEED_BLOCK - 1) / SEED_BLOCK * SEED_BLOCK;
    *at += whole < size - *at ? whole : size - *at;
    return NULL;
}

int seed_read(const char *bytes, size_t size, struct seed *seed) {
    static const char nothing[SEED_BLOCK];
    *seed = (struct seed){.entries = malloc(SEED_MOST_ENTRIES * sizeof *seed->entries)};
    if (!seed->entries)
        return seed->why = "memory", 0;
    for (size_t at = 0; size - at >= SEED_BLOCK;) {
        if (memcmp(bytes + at, nothing, SEED_BLOCK) == 0)
            return 1;
        if (seed->count == SEED_MOST_ENTRIES)
            return seed->why = "it has too many entries", 0;
        seed->why = take(bytes, size, &at, &seed->entries[seed->count]);
        if (seed->why)
            return 0;
        seed->count++;
    }
    return seed->why = "it has no end", 0;
}

const struct seed_entry *seed_file(const struct seed *seed, const char *path) {
    for (size_t i = seed->count; i-- > 0;) /* the last of two is the one that stays, as tar has it */
        if (!seed->entries[i].directory && strcmp(seed->entries[i].path, path) == 0)
            return &seed->entries[i];
    return NULL;
}

int seed_line(const struct seed_entry *file, char *line, size_t room) {
    const char *end = memchr(file->bytes, '\n', file->size);
    size_t length = end ? (size_t)(end - file->bytes) : file->size;
    if (length >= room || memchr(file->bytes, '\0', length))
        return -1;
    memcpy(line, file->bytes, length);
    line[length] = '\0';
    return 0;
}

char **seed_environment(const struct seed_entry *file) {
    size_t count = 0;
    if (file->size > 0 && file->bytes[file->size - 1] != '\0')
        return NULL;
    for (size_t i = 0; i < file->size; i++)
        count += file->bytes[i] == '\0';
    char **list = calloc(count + 1, sizeof *list);
    if (!list)
        return NULL;
    count = 0;
    for (const char *at = file->bytes, *end = at + file->size; at < end; at += strlen(at) + 1)
        list[count++] = (char *)at; /* execve writes to none */
    return list;
}
