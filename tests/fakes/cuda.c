/* A stand-in of libcuda.so.1: the checkpoint functions with their state machine, and those of
 * virtual memory that the GPU bench needs, with their rules.
 *
 * Its device 0 bears the UUID that tests/fakes/nvml.py gives card HCP_FAKE_CUDA_CARD.
 *
 * State lies in a file named by HCP_FAKE_CUDA, mapped shared, so that a test reads and drives it
 * while another process calls. Built with -DOLD_DRIVER it lacks the checkpoint functions, as
 * drivers before 570 do.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { RUNNING, LOCKED, CHECKPOINTED, FAILED };
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3,
       INVALID_DEVICE = 101, OPERATING_SYSTEM = 304,
       ILLEGAL_STATE = 401, NOT_READY = 600 };
enum { SLOTS = 8 };

/* All int32, so that a test reads and writes it as an array. */
struct slot {
    int32_t pid;
    int32_t state;
    int32_t busy_ms;         /* calls that are under way when it is locked */
    int32_t checkpoint_code; /* result of the next checkpoint; 0: it succeeds */
    int32_t restore_code;    /* of the next restore */
    int32_t lose;            /* a failing checkpoint or restore leaves FAILED behind */
    int32_t hang_ms;         /* every call takes so long first */
    int32_t calls;
};

struct shared {
    int32_t init_code;
    int32_t version;
    int32_t inits;
    int32_t devices;
    struct slot slots[SLOTS];
};

struct lock_args {
    unsigned int timeout_ms;
    unsigned int reserved0;
    uint64_t reserved1[7];
};

static struct shared *shared;

int cuInit(unsigned int flags) {
    const char *path = getenv("HCP_FAKE_CUDA");
    int file = path == NULL ? -1 : open(path, O_RDWR);
    if (flags != 0 || file < 0) return INVALID_VALUE;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared == MAP_FAILED) return OPERATING_SYSTEM;
    shared->inits++;
    return shared->init_code;
}

int cuDriverGetVersion(int *version) {
    if (shared == NULL) return NOT_INITIALIZED;
    *version = shared->version;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    if (shared == NULL) return NOT_INITIALIZED;
    *count = shared->devices;
    return SUCCESS;
}

int cuDeviceGet(int *device, int ordinal) {
    if (shared == NULL) return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= shared->devices) return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    const char *card = getenv("HCP_FAKE_CUDA_CARD");
    if (shared == NULL || device >= shared->devices) return INVALID_DEVICE;
    memset(uuid, 0, 16);
    uuid[3] = uuid[15] = (unsigned char)(card == NULL ? 0 : atoi(card));
    uuid[6] = 0x40, uuid[8] = 0x80;
    return SUCCESS;
}

/* Virtual memory: one range and one piece of memory are enough; the order of calls is held. */
enum { GRANULE = 2 << 20 };
struct properties {
    int type, handle_types, location_type, location_id;
    void *win32;
    unsigned char flags[8];
};
struct access {
    int location_type, location_id, flags;
};
static uint64_t reserved, created, mapped, readable;

static int is_device(int type, int id) { return type == 1 && id == 0; }

int cuMemGetAllocationGranularity(size_t *unit, struct properties *wanted, int option) {
    if (option != 0 || wanted->type != 1) return INVALID_VALUE;
    if (!is_device(wanted->location_type, wanted->location_id)) return INVALID_VALUE;
    *unit = GRANULE;
    return SUCCESS;
}

int cuMemAddressReserve(uint64_t *at, size_t size, size_t align, uint64_t hint, uint64_t flags) {
    if (size == 0 || size % GRANULE != 0 || align != 0 || hint != 0 || flags != 0 || reserved != 0)
        return INVALID_VALUE;
    reserved = size;
    *at = 0x7f0000000000u;
    return SUCCESS;
}

int cuMemCreate(uint64_t *handle, size_t size, struct properties *wanted, uint64_t flags) {
    if (flags != 0 || size % GRANULE != 0 || wanted->type != 1 || wanted->win32 != NULL)
        return INVALID_VALUE;
    if (created != 0) return OUT_OF_MEMORY;
    created = size;
    *handle = 77;
    return SUCCESS;
}

int cuMemMap(uint64_t at, size_t size, size_t offset, uint64_t handle, uint64_t flags) {
    if (at != 0x7f0000000000u || size != reserved || offset != 0 || handle != 77 || flags != 0)
        return INVALID_VALUE;
    if (created != size || mapped != 0) return INVALID_VALUE;
    mapped = size;
    return SUCCESS;
}

int cuMemSetAccess(uint64_t at, size_t size, struct access *access, size_t count) {
    if (at != 0x7f0000000000u || size != mapped || count != 1 || access->flags != 3)
        return INVALID_VALUE;
    if (!is_device(access->location_type, access->location_id)) return INVALID_VALUE;
    readable = size;
    return SUCCESS;
}

int cuMemUnmap(uint64_t at, size_t size) {
    if (at != 0x7f0000000000u || size != mapped) return INVALID_VALUE;
    mapped = readable = 0;
    return SUCCESS;
}

int cuMemRelease(uint64_t handle) {
    if (handle != 77 || created == 0 || mapped != 0) return INVALID_VALUE;
    created = 0;
    return SUCCESS;
}

/* For tests: what is readable now. */
uint64_t fake_readable(void) { return readable; }

#ifndef OLD_DRIVER
static void pause_ms(int ms) {
    struct timespec wait = {ms / 1000, (ms % 1000) * 1000000L};
    nanosleep(&wait, NULL);
}

static struct slot *slot_of(int pid) {
    for (int at = 0; shared != NULL && at < SLOTS; at++)
        if (shared->slots[at].pid == pid && pid != 0) {
            struct slot *slot = &shared->slots[at];
            slot->calls++;
            if (slot->hang_ms > 0) pause_ms(slot->hang_ms);
            return slot;
        }
    return NULL;
}

int cuCheckpointProcessGetState(int pid, int *state) {
    struct slot *slot = slot_of(pid);
    if (slot == NULL) return INVALID_VALUE;
    *state = slot->state;
    return SUCCESS;
}

int cuCheckpointProcessLock(int pid, struct lock_args *args) {
    struct slot *slot = slot_of(pid);
    if (slot == NULL) return INVALID_VALUE;
    if (slot->state != RUNNING) return ILLEGAL_STATE;
    if (args != NULL) {
        if (args->reserved0 != 0) return INVALID_VALUE;
        for (int at = 0; at < 7; at++)
            if (args->reserved1[at] != 0) return INVALID_VALUE;
        if (args->timeout_ms > 0 && slot->busy_ms > (int)args->timeout_ms) {
            pause_ms((int)args->timeout_ms);
            return NOT_READY;
        }
    }
    pause_ms(slot->busy_ms);
    slot->state = LOCKED;
    return SUCCESS;
}

static int move(struct slot *slot, int from, int to, int code) {
    if (slot == NULL) return INVALID_VALUE;
    if (slot->state != from) return ILLEGAL_STATE;
    if (code != SUCCESS && slot->lose) slot->state = FAILED;
    if (code != SUCCESS) return code;
    slot->state = to;
    return SUCCESS;
}

int cuCheckpointProcessCheckpoint(int pid, void *args) {
    struct slot *slot = slot_of(pid);
    (void)args;
    return move(slot, LOCKED, CHECKPOINTED, slot == NULL ? SUCCESS : slot->checkpoint_code);
}

int cuCheckpointProcessRestore(int pid, void *args) {
    struct slot *slot = slot_of(pid);
    (void)args;
    return move(slot, CHECKPOINTED, LOCKED, slot == NULL ? SUCCESS : slot->restore_code);
}

int cuCheckpointProcessUnlock(int pid, void *args) {
    (void)args;
    return move(slot_of(pid), LOCKED, RUNNING, SUCCESS);
}
#endif
