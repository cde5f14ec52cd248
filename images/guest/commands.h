/* Operators' commands in the guest, for the agent. */
#ifndef COMMANDS_H
#define COMMANDS_H

#include <stddef.h>

#define COMMANDS_REPLY 16384 /* bytes of the longest answer, with its NUL */

/* Whether the machine was begun with them allowed. */
int commands_allowed(void);

/* begin id=ID argv=BASE64 [root=1] [rows=N columns=N] [term=NAME]
 *     Runs a program, its words ended by a NUL each, below the image's root, in a cgroup of its own: as the image's user
 *     "sandbox", who gets no further rights, or as root. With rows and columns on a terminal of its own.
 * io id=ID seq=N room=N [in=BASE64] [eof=1] [rows=N columns=N]
 *     Gives it input, and answers "ok taken=N out=BASE64 err=BASE64 [code=N]": up to `room` bytes of what it has written
 *     on each way, and how it ended, once it has and that is all. seq grows by one; the last one again is answered again,
 *     and nothing is done.
 * end id=ID
 *     It is told to end (SIGTERM, SIGHUP), and killed a moment later with all that it has begun.
 *
 * Writes an answer without a line's end. `cgroups`: descriptor of the cgroups' root. */
void commands_perform(const char *request, int cgroups, char *answer);

/* To be called now and then: ends what nobody has asked for in a while. Milliseconds until it should be called again at
 * the latest, -1 for no need. */
int commands_tick(void);

#endif
