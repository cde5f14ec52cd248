/* Loaded into the driver before libvirt's QEMU driver, so that this is what that one finds for the names below.
 *
 * What a QEMU says on its monitor is JSON. libvirt reads it inside this process, and a QEMU that was taken over says
 * what it likes: libvirt 9.0 follows a null pointer where an event has no data, or not all of it, and runs out of its
 * stack where something is nested without end. Here a value that is not there has nothing in it, a value of another
 * kind has no elements, an event that is not whole, or of no use, is one that nobody knows, and what is nested or
 * repeated without measure is no JSON. All else is done by libvirt's own functions.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#define SHOWN __attribute__((visibility("default")))
#define VIR_JSON_TYPE_NULL 5

/* More than a disk of 200 layers, each within the one above it, or QEMU's whole schema takes. Each key of an object is
 * compared with all before it.
 */
#define DEEPEST 1024
#define MOST_KEYS 4096
#define MOST_VALUES 131072

/* libvirt's functions that take a value: what is given back where there is none. libvirt's own pass their arguments
 * and results in registers, of which a function that knows fewer of them leaves the others alone.
 */
#define FUNCTIONS(F)                                                                                                   \
    F(virJSONValueArrayForeachSteal, -1)                                                                               \
    F(virJSONValueArrayGet, 0)                                                                                         \
    F(virJSONValueArraySteal, 0)                                                                                       \
    F(virJSONValueCopy, 0)                                                                                             \
    F(virJSONValueGetArrayAsBitmap, -1)                                                                                \
    F(virJSONValueGetBoolean, -1)                                                                                      \
    F(virJSONValueGetNumberDouble, -1)                                                                                 \
    F(virJSONValueGetNumberInt, -1)                                                                                    \
    F(virJSONValueGetNumberLong, -1)                                                                                   \
    F(virJSONValueGetNumberString, 0)                                                                                  \
    F(virJSONValueGetNumberUint, -1)                                                                                   \
    F(virJSONValueGetNumberUlong, -1)                                                                                  \
    F(virJSONValueGetString, 0)                                                                                        \
    F(virJSONValueGetType, VIR_JSON_TYPE_NULL)                                                                         \
    F(virJSONValueIsArray, 0)                                                                                          \
    F(virJSONValueIsNull, 1)                                                                                           \
    F(virJSONValueIsObject, 0)                                                                                         \
    F(virJSONValueObjectForeachKeyValue, -1)                                                                           \
    F(virJSONValueObjectGet, 0)                                                                                        \
    F(virJSONValueObjectGetArray, 0)                                                                                   \
    F(virJSONValueObjectGetBoolean, -1)                                                                                \
    F(virJSONValueObjectGetByType, 0)                                                                                  \
    F(virJSONValueObjectGetKey, 0)                                                                                     \
    F(virJSONValueObjectGetNumberDouble, -1)                                                                           \
    F(virJSONValueObjectGetNumberInt, -1)                                                                              \
    F(virJSONValueObjectGetNumberLong, -1)                                                                             \
    F(virJSONValueObjectGetNumberUint, -1)                                                                             \
    F(virJSONValueObjectGetNumberUlong, -1)                                                                            \
    F(virJSONValueObjectGetObject, 0)                                                                                  \
    F(virJSONValueObjectGetString, 0)                                                                                  \
    F(virJSONValueObjectGetStringOrNumber, 0)                                                                          \
    F(virJSONValueObjectGetValue, 0)                                                                                   \
    F(virJSONValueObjectHasKey, 0)                                                                                     \
    F(virJSONValueObjectKeysNumber, -1)                                                                                \
    F(virJSONValueObjectRemoveKey, -1)                                                                                 \
    F(virJSONValueObjectStealArray, 0)                                                                                 \
    F(virJSONValueObjectStealObject, 0)                                                                                \
    F(virJSONValueToBuffer, -1)                                                                                        \
    F(virJSONValueToString, 0)

typedef long function(void *value, void *second, void *third, void *fourth);

#define DEFINE(name, absent)                                                                                           \
    static function *libvirts_##name;                                                                                  \
    SHOWN long name(void *value, void *second, void *third, void *fourth) {                                            \
        return value && libvirts_##name ? libvirts_##name(value, second, third, fourth) : (absent);                    \
    }
FUNCTIONS(DEFINE)

/* These take any value for an array. */
static function *libvirts_virJSONValueArraySize, *libvirts_virJSONValueArrayToStringList;
static function *libvirts_virJSONValueArrayConcat;

/* Of a bool only the lowest byte is said. */
static bool is_array(void *value) { return value && (unsigned char)virJSONValueIsArray(value, NULL, NULL, NULL); }

SHOWN size_t virJSONValueArraySize(void *value) {
    if (!is_array(value) || !libvirts_virJSONValueArraySize)
        return 0;
    return (size_t)libvirts_virJSONValueArraySize(value, NULL, NULL, NULL);
}

SHOWN void *virJSONValueArrayToStringList(void *value) {
    if (!is_array(value) || !libvirts_virJSONValueArrayToStringList)
        return NULL;
    return (void *)libvirts_virJSONValueArrayToStringList(value, NULL, NULL, NULL);
}

SHOWN int virJSONValueArrayConcat(void *value, void *more) {
    if (!value || !more || !libvirts_virJSONValueArrayConcat)
        return -1;
    return (int)libvirts_virJSONValueArrayConcat(value, more, NULL, NULL);
}

/* Commas are counted wherever they are: not every parser takes the same for a string. */
static bool has_measure(const char *text) {
    unsigned keys[DEEPEST], values = 0, depth = 0;
    bool quoted = false;
    for (; *text; text++) {
        if (*text == ',' && ++values > MOST_VALUES)
            return false;
        if (quoted) {
            if (*text == '\\' && text[1])
                text++;
            else if (*text == '"')
                quoted = false;
        } else if (*text == '"') {
            quoted = true;
        } else if (*text == '{' || *text == '[') {
            if (depth == DEEPEST)
                return false;
            keys[depth++] = 0;
        } else if (*text == '}' || *text == ']') {
            depth -= depth > 0;
        } else if (*text == ':' && depth && ++keys[depth - 1] > MOST_KEYS) {
            return false;
        }
    }
    return true;
}

/* What libvirt has to be told of our machines, and the strings that each event has (QEMU's qapi): libvirt 9.0 follows
 * those of some without looking. MIGRATION_PASS has a number.
 */
static const struct {
    const char *name, *strings[4];
} events[] = {
    {"BLOCK_IO_ERROR", {"device", "operation", "action", "reason"}},
    {"DEVICE_DELETED", {"path", "device"}},
    {"GUEST_PANICKED", {"action"}},
    {"JOB_STATUS_CHANGE", {"id", "status"}},
    {"MIGRATION", {"status"}},
    {"MIGRATION_PASS", {NULL}},
    {"POWERDOWN", {NULL}},
    {"RESET", {NULL}},
    {"RESUME", {NULL}},
    {"SHUTDOWN", {NULL}},
    {"STOP", {NULL}},
    {"SUSPEND", {NULL}},
    {"SUSPEND_DISK", {NULL}},
    {"VSERPORT_CHANGE", {"id"}},
    {"WAKEUP", {NULL}},
};

static void *get(void *value, const char *key) {
    return value ? (void *)libvirts_virJSONValueObjectGet(value, (void *)key, NULL, NULL) : NULL;
}

static const char *string_of(void *value, const char *key) {
    void *found = get(value, key);
    return found ? (const char *)libvirts_virJSONValueGetString(found, NULL, NULL, NULL) : NULL;
}

/* Whether that is one of these events, and whole. */
static bool is_known(void *event) {
    const char *name = string_of(event, "event");
    void *data = get(event, "data");
    for (size_t i = 0; name && i < sizeof events / sizeof *events; i++) {
        if (strcmp(events[i].name, name))
            continue;
        for (size_t n = 0; n < 4 && events[i].strings[n]; n++)
            if (!string_of(data, events[i].strings[n]))
                return false;
        return true;
    }
    return false;
}

static function *libvirts_virJSONValueFromString, *libvirts_virJSONValueFree;

SHOWN void *virJSONValueFromString(const char *text) {
    if (!text || !libvirts_virJSONValueFromString)
        return NULL;
    if (!has_measure(text))
        text = "(nested too deeply, or too many values)"; /* libvirt's error quotes it */
    void *value = (void *)libvirts_virJSONValueFromString((void *)text, NULL, NULL, NULL);
    if (!get(value, "event") || is_known(value))
        return value;
    libvirts_virJSONValueFree(value, NULL, NULL, NULL);
    return (void *)libvirts_virJSONValueFromString((void *)"{\"event\": \"IGNORED\"}", NULL, NULL, NULL);
}

/* Whether who looks for that name finds what is in this library. Its own pointers to it are found in the same way. */
static bool is_found_here(const char *name) {
    void *found = dlsym(RTLD_DEFAULT, name);
    Dl_info there, here;
    return found && dladdr(found, &there) && dladdr((void *)has_measure, &here) && there.dli_fbase == here.dli_fbase;
}

/* Find libvirt's functions. Why this does nothing, or "". What one release does not have, it does not call. */
SHOWN const char *vmdriver_begin(void) {
    void *libvirt = dlopen("libvirt.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!libvirt)
        return dlerror();
#define FIND(name, absent) libvirts_##name = (function *)dlsym(libvirt, #name);
    FUNCTIONS(FIND)
    FIND(virJSONValueArraySize, 0)
    FIND(virJSONValueArrayToStringList, 0)
    FIND(virJSONValueArrayConcat, 0)
    FIND(virJSONValueFromString, 0)
    FIND(virJSONValueFree, 0)
    if (!libvirts_virJSONValueFromString || !libvirts_virJSONValueFree || !libvirts_virJSONValueObjectGet ||
        !libvirts_virJSONValueGetString || !libvirts_virJSONValueIsArray || !libvirts_virJSONValueArraySize)
        return "libvirt has other names for reading JSON";
    if (!is_found_here("virJSONValueObjectGet") || !is_found_here("virJSONValueFromString"))
        return "libvirt's QEMU driver was loaded before it";
    return "";
}
