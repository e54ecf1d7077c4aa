/* Shifts the wall clock of a program, and of what it starts, by what a shared file says.
 *
 * Preloaded (LD_PRELOAD) by clock.py, which also writes the file: one int64 of nanoseconds, under
 * $CLOCK_OFFSET. In C because it stands between Python, SQLite and the C library. Monotonic
 * clocks are left alone, as the kernel leaves them when somebody sets the time.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BILLION 1000000000

/* Mapped, and shared by all: a jump is seen at once, by every process and in the middle of it. */
static volatile int64_t *offset;

__attribute__((constructor)) static void map_offset(void)
{
    int fd = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED)
        abort();
    close(fd);
    offset = mapped;
}

static void shift(struct timespec *instant, int64_t nanoseconds)
{
    int64_t all = instant->tv_sec * (int64_t)BILLION + instant->tv_nsec + nanoseconds;
    instant->tv_sec = all / BILLION;
    instant->tv_nsec = all % BILLION;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        shift(now, *offset);
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec instant;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &instant);
    now->tv_sec = instant.tv_sec;
    now->tv_usec = instant.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec instant;
    clock_gettime(CLOCK_REALTIME, &instant);
    if (now)
        *now = instant.tv_sec;
    return instant.tv_sec;
}

/* Python 3.10 waits until a time of the wall clock, and the kernel knows only the real one. */
int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict deadline)
{
    static int (*real)(sem_t *, const struct timespec *);
    if (!real)
        real = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec shifted = *deadline;
    shift(&shifted, -*offset);
    return real(semaphore, &shifted);
}
