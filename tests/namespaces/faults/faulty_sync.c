/* Preloaded into a node: fsync and fdatasync take longer, or fail, as a file says that a test changes meanwhile.
 *
 * FAULTY_SYNC_FILE names the file. It holds two numbers: milliseconds that every sync takes longer, and how many
 * percent of all syncs fail with EIO without having synced. Without the file nothing changes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* splitmix64, so that no lock of libc's generators is taken in a node that is near its end. */
static unsigned long draw(void) {
    static unsigned long state;
    unsigned long mixed = __atomic_add_fetch(&state, 0x9e3779b97f4a7c15UL, __ATOMIC_RELAXED);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9UL;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebUL;
    return mixed ^ (mixed >> 31);
}

static void ask(unsigned long *milliseconds, unsigned long *percent) {
    char text[64] = "";
    const char *name = getenv("FAULTY_SYNC_FILE");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        ssize_t count = read(file, text, sizeof text - 1);
        text[count > 0 ? count : 0] = 0;
        close(file);
    }
    char *rest;
    *milliseconds = strtoul(text, &rest, 10);
    *percent = strtoul(rest, NULL, 10);
}

static int faulty(long call, int descriptor) {
    unsigned long milliseconds, percent;
    ask(&milliseconds, &percent);
    struct timespec pause = {(time_t)(milliseconds / 1000), (long)(milliseconds % 1000) * 1000000L};
    while (nanosleep(&pause, &pause) != 0 && errno == EINTR) {
    }
    if (draw() % 100 < percent) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(call, descriptor);
}

int fsync(int descriptor) { return faulty(SYS_fsync, descriptor); }

int fdatasync(int descriptor) { return faulty(SYS_fdatasync, descriptor); }
