/* Records what a program writes to the files of one folder, and when it syncs them.
 *
 * Preloaded (LD_PRELOAD) by recording.py, which also reads the record. In C because it stands
 * between SQLite and the C library. Each record is one append to $POWER_RECORD, so that those of
 * several processes stay whole and in order:
 *
 *     kind (1 byte), file number (4), offset (8), length (4), data
 *
 * A write is recorded when it is done, a sync when it begins and when it is done: what was
 * recorded before a sync began, and only that, is surely on the disk once the sync is done.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

struct header {
    char kind;
    uint32_t file;
    uint64_t offset;
    uint32_t length;
} __attribute__((packed));

static int log_fd(void)
{
    static int fd = -1;
    if (fd < 0)
        fd = open(getenv("POWER_RECORD"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    return fd;
}

static void append(char kind, uint32_t file, uint64_t offset, const void *data, uint32_t length)
{
    struct header header = {kind, file, offset, length};
    struct iovec parts[2] = {{&header, sizeof header}, {(void *)data, data ? length : 0}};
    if (writev(log_fd(), parts, 2) < 0)
        abort();
}

/* The inode stands for the file: the reader looks its name up. 0 is a file that is not recorded. */
static uint32_t recorded(int fd)
{
    char link[64], path[PATH_MAX];
    struct stat found;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    const char *folder = getenv("POWER_FOLDER");
    if (!folder || strncmp(path, folder, strlen(folder)) || strstr(path, "-shm"))
        return 0;
    if (fstat(fd, &found) || !S_ISREG(found.st_mode))
        return 0;
    return (uint32_t)found.st_ino;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset)
{
    REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    ssize_t done = real(fd, data, length, offset);
    uint32_t file = done > 0 ? recorded(fd) : 0;
    if (file)
        append('w', file, offset, data, done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    return pwrite64(fd, data, length, offset);
}

ssize_t write(int fd, const void *data, size_t length)
{
    REAL(ssize_t, "write", int, const void *, size_t);
    ssize_t done = real(fd, data, length);
    uint32_t file = done > 0 ? recorded(fd) : 0;
    if (file)
        append('w', file, lseek(fd, 0, SEEK_CUR) - done, data, done);
    return done;
}

static int synced(int fd, const char *name)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    uint32_t file = recorded(fd);
    if (file)
        append('s', file, gettid(), NULL, 0);
    int done = real(fd);
    if (file && !done)
        append('S', file, gettid(), NULL, 0);
    return done;
}

int fsync(int fd) { return synced(fd, "fsync"); }

int fdatasync(int fd) { return synced(fd, "fdatasync"); }

int ftruncate64(int fd, off64_t length)
{
    REAL(int, "ftruncate64", int, off64_t);
    int done = real(fd, length);
    uint32_t file = done ? 0 : recorded(fd);
    if (file)
        append('t', file, length, NULL, 0);
    return done;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
