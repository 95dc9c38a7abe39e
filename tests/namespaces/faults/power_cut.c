/* Shuts a file system down as a power cut does: what its log has not on disk yet is lost. Takes a directory on it. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>

/* XFS_IOC_GOINGDOWN, and the same number for ext4 (EXT4_IOC_SHUTDOWN); linux/fs.h does not have it everywhere. */
#define GOINGDOWN _IOR('X', 125, uint32_t)
#define WITHOUT_FLUSHING_THE_LOG 2

int main(int count, char **arguments) {
    uint32_t flags = WITHOUT_FLUSHING_THE_LOG;
    int directory = count == 2 ? open(arguments[1], O_RDONLY | O_DIRECTORY) : -1;
    if (directory < 0 || ioctl(directory, GOINGDOWN, &flags) != 0) {
        perror("the file system cannot be shut down");
        return 1;
    }
    return 0;
}
