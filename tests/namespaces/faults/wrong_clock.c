/* Preloaded into a node: its wall clock is as wrong as a file says that a test changes meanwhile.
 *
 * WRONG_CLOCK_FILE names the file. It holds a number of 64 bits: by how many seconds the clock is ahead. Other clocks
 * are right. libfaketime does the same, but stands still in a process whose malloc is jemalloc, which asks for the time
 * before libfaketime knows where to get it. This library needs no memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int64_t ahead(void) {
    static const int64_t right = 0;
    static const int64_t *seconds;
    const int64_t *known = __atomic_load_n(&seconds, __ATOMIC_ACQUIRE);
    if (!known) {
        const char *name = getenv("WRONG_CLOCK_FILE");
        int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
        void *map = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *known, PROT_READ, MAP_SHARED, file, 0);
        known = map == MAP_FAILED ? &right : map;
        __atomic_store_n(&seconds, known, __ATOMIC_RELEASE);
        if (file >= 0) close(file);
    }
    return __atomic_load_n(known, __ATOMIC_RELAXED);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += ahead();
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *copy) {
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_REALTIME, &now);
    if (copy) *copy = now.tv_sec;
    return now.tv_sec;
}

/* RocksDB and jemalloc wait until a time of the wall clock. The kernel has another one. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    struct timespec then = *until;
    then.tv_sec -= ahead();
    return pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &then);
}
