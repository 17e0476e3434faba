/* Stands between a process and its C library (LD_PRELOAD): counts the calls that change what is
   in a folder, and fails one of them, writes half, or kills the process there. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum mode { COUNT, FAIL, FULL, SHORT, KILL_BEFORE, KILL_AFTER };
#define MAX_FILES 65536

static char folder[4096];
static unsigned char watched[MAX_FILES];
static long calls, fault_at = -1;
static int fault_mode, fault_error, log_file = -1;

/* Called by Python. Counting begins anew. */
void fault_arm(const char *in_folder, long at, int mode, int error, int log)
{
    fault_at = at, fault_mode = mode, fault_error = error, log_file = log, calls = 0;
    snprintf(folder, sizeof folder, "%s", in_folder);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int is_inside(int directory, const char *path)
{
    if (!folder[0])
        return 0;
    if (path[0] == '/')
        return !strncmp(path, folder, strlen(folder));
    return directory >= 0 && directory < MAX_FILES && watched[directory];
}

static int is_open_inside(int file) { return file >= 0 && file < MAX_FILES && watched[file]; }

/* Note a call; return its number, or -2 if it is to fail. */
static long begin(const char *kind, const char *path)
{
    long here = __atomic_fetch_add(&calls, 1, __ATOMIC_SEQ_CST);
    if (log_file >= 0) {
        char line[4400];
        int length = snprintf(line, sizeof line, "%s %s\n", kind, path);
        if (REAL(write)(log_file, line, length) < 0)
            die();
    }
    int takes_space = !strcmp(kind, "create") || !strcmp(kind, "write") || !strcmp(kind, "mkdir");
    if ((fault_mode == FAIL && here == fault_at)
        || (fault_mode == FULL && here >= fault_at && takes_space)) {
        errno = fault_error;
        return -2;
    }
    if (fault_mode == KILL_BEFORE && here == fault_at)
        die();
    return here;
}

static void end(long here)
{
    int error = errno;
    if (fault_mode == KILL_AFTER && here == fault_at)
        die();
    errno = error;
}

static int note_file(int file, int inside)
{
    if (file >= 0 && file < MAX_FILES)
        watched[file] = inside;
    return file;
}

#define OPEN(name, directory, call)                                                            \
    {                                                                                          \
        va_list more;                                                                          \
        va_start(more, flags);                                                                 \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;              \
        va_end(more);                                                                          \
        if (!is_inside(directory, path))                                                       \
            return note_file(call, 0);                                                         \
        long here = begin(flags & O_CREAT ? "create" : "open", path);                          \
        if (here == -2)                                                                        \
            return -1;                                                                         \
        int file = note_file(call, 1);                                                         \
        end(here);                                                                             \
        return file;                                                                           \
    }

int open(const char *path, int flags, ...) OPEN(open, -1, REAL(open)(path, flags, mode))
int open64(const char *path, int flags, ...) OPEN(open64, -1, REAL(open64)(path, flags, mode))
int openat(int at, const char *path, int flags, ...)
    OPEN(openat, at, REAL(openat)(at, path, flags, mode))
int openat64(int at, const char *path, int flags, ...)
    OPEN(openat64, at, REAL(openat64)(at, path, flags, mode))

#define FOPEN(name)                                                                            \
    FILE *name(const char *path, const char *how)                                              \
    {                                                                                          \
        if (!is_inside(-1, path))                                                              \
            return REAL(name)(path, how);                                                      \
        long here = begin(how[0] == 'r' ? "open" : "create", path);                            \
        if (here == -2)                                                                        \
            return NULL;                                                                       \
        FILE *file = REAL(name)(path, how);                                                    \
        if (file)                                                                              \
            note_file(fileno(file), 1);                                                        \
        end(here);                                                                             \
        return file;                                                                           \
    }
FOPEN(fopen)
FOPEN(fopen64)

int close(int file)
{
    note_file(file, 0);
    return REAL(close)(file);
}

#define WRITE(name, parameters, half, call)                                                    \
    ssize_t name parameters                                                                    \
    {                                                                                          \
        if (!is_open_inside(file))                                                             \
            return call;                                                                       \
        long here = begin("write", #name);                                                     \
        if (here == -2)                                                                        \
            return -1;                                                                         \
        if (fault_mode == SHORT && here == fault_at)                                           \
            half;                                                                              \
        ssize_t written = call;                                                                \
        end(here);                                                                             \
        return written;                                                                        \
    }
WRITE(write, (int file, const void *data, size_t size), size = (size + 1) / 2,
      REAL(write)(file, data, size))
WRITE(pwrite, (int file, const void *data, size_t size, off_t at), size = (size + 1) / 2,
      REAL(pwrite)(file, data, size, at))
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t at), size = (size + 1) / 2,
      REAL(pwrite64)(file, data, size, at))
WRITE(writev, (int file, const struct iovec *parts, int count), count = (count + 1) / 2,
      REAL(writev)(file, parts, count))

#define ON_FILE(name, kind, parameters, ...)                                                   \
    int name parameters                                                                        \
    {                                                                                          \
        if (!is_open_inside(file))                                                             \
            return REAL(name)(__VA_ARGS__);                                                    \
        long here = begin(kind, #name);                                                        \
        if (here == -2)                                                                        \
            return -1;                                                                         \
        int result = REAL(name)(__VA_ARGS__);                                                  \
        end(here);                                                                             \
        return result;                                                                         \
    }
ON_FILE(fsync, "sync", (int file), file)
ON_FILE(fdatasync, "sync", (int file), file)
ON_FILE(ftruncate, "write", (int file, off_t size), file, size)
ON_FILE(ftruncate64, "write", (int file, off64_t size), file, size)

#define ON_PATH(name, kind, directory, parameters, ...)                                        \
    int name parameters                                                                        \
    {                                                                                          \
        if (!is_inside(directory, path))                                                       \
            return REAL(name)(__VA_ARGS__);                                                    \
        long here = begin(kind, path);                                                         \
        if (here == -2)                                                                        \
            return -1;                                                                         \
        int result = REAL(name)(__VA_ARGS__);                                                  \
        end(here);                                                                             \
        return result;                                                                         \
    }
ON_PATH(rename, "rename", -1, (const char *path, const char *to), path, to)
ON_PATH(renameat, "rename", at, (int at, const char *path, int to_at, const char *to), at, path,
        to_at, to)
ON_PATH(renameat2, "rename", at,
        (int at, const char *path, int to_at, const char *to, unsigned int flags), at, path, to_at,
        to, flags)
ON_PATH(unlink, "remove", -1, (const char *path), path)
ON_PATH(unlinkat, "remove", at, (int at, const char *path, int flags), at, path, flags)
ON_PATH(rmdir, "remove", -1, (const char *path), path)
ON_PATH(mkdir, "mkdir", -1, (const char *path, mode_t mode), path, mode)
ON_PATH(mkdirat, "mkdir", at, (int at, const char *path, mode_t mode), at, path, mode)
ON_PATH(chmod, "chmod", -1, (const char *path, mode_t mode), path, mode)
