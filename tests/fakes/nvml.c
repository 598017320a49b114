/* A libnvidia-ml.so.1 of our own: NVML as the real pynvml calls it, over state in a shared mapping.
 *
 * A test maps the same file (HCP_NVML_STATE names it) and drives the cards live: nvml.py holds the
 * mirror of `State`. Signatures and return codes follow NVIDIA's public nvml.h, version 13.
 *
 * Every call on a card goes through `enter`, in this order: it may hang (alone, or while it holds the
 * one lock of the driver, as a stuck call in the kernel does), the card may be lost, and a return
 * code may be forced for one function. -DOLD_DRIVER leaves out what older drivers do not export.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define GPUS_MAX 16
#define FIELDS_MAX 24
#define PROCESSES_MAX 8
#define LINKS_MAX 18
#define EVENTS_MAX 256
#define FORCED_MAX 32

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 25,
    UNKNOWN = 999
};
enum { FIELD_MEMORY_TEMP = 82, FIELD_NVLINK_TX = 138, FIELD_NVLINK_RX = 139, FIELD_POWER_INSTANT = 186 };
enum { TYPE_UNSIGNED_INT = 1, TYPE_UNSIGNED_LONG_LONG = 3 };
enum { CLOCK_GRAPHICS, CLOCK_SM, CLOCK_MEM, CLOCKS };

typedef struct {
    uint32_t id, ret, type, unused;
    uint64_t value;
} Field;

typedef struct {
    uint32_t pid, gpu_instance;
    uint64_t used_bytes;
} Process;

typedef struct {
    char name[96], uuid[96], bus_id[32];
    uint32_t hang, lost, delay_us, calls;
    uint32_t temp_c, memory_temp_c, slowdown_c, shutdown_c, memory_max_c;
    uint32_t power_mw, power_instant_mw, limit_mw, limit_min_mw, limit_max_mw, limit_default_mw;
    uint32_t gpu_util, memory_util;
    uint32_t clock_mhz[CLOCKS], clock_max_mhz[CLOCKS];
    uint32_t locked_gpu_mhz[2], locked_memory_mhz[2];
    uint32_t persistence, mig, remap_correctable, remap_uncorrectable, remap_pending, remap_failure;
    uint32_t links, link_active[LINKS_MAX], processes_n, fields_n, unused;
    uint64_t energy_mj, reasons, event_types;
    uint64_t memory_total, memory_reserved, memory_used;
    uint64_t ecc[2][2]; /* [corrected, uncorrected][volatile, aggregate] */
    Process processes[PROCESSES_MAX];
    Field fields[FIELDS_MAX];
} Gpu;

typedef struct {
    uint32_t gpu, gpu_instance, compute_instance, unused;
    uint64_t type, data;
} Event;

typedef struct {
    char function[56];
    int32_t gpu; /* -1: every card */
    uint32_t ret;
} Forced;

typedef struct {
    uint32_t gpus_n, setters_allowed, hang_all, hang_holds_lock;
    uint32_t lock_pid, forced_n, calls, lost_breaks_wait;
    uint64_t events_n;
    char driver[96];
    Forced forced[FORCED_MAX];
    Event events[EVENTS_MAX];
    Gpu gpu[GPUS_MAX];
} State;

typedef struct {
    uint64_t next, types[GPUS_MAX];
} EventSet;

typedef struct {
    void *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} EventData;

typedef struct {
    uint32_t id, scope;
    int64_t timestamp, latency_us;
    uint32_t type, ret;
    union {
        unsigned int u32;
        unsigned long long u64;
    } value;
} FieldValue;

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo;

static volatile State *state;
static int users;

EXPORT size_t hcp_state_bytes(void) { return sizeof(State); }

static void nap(long us) {
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&left, &left) && errno == EINTR) {
    }
}

static void copy(char *to, const volatile char *from, unsigned room) {
    snprintf(to, room, "%s", (const char *)from);
}

static int lock_is_held(void) {
    pid_t holder = (pid_t)state->lock_pid;
    return holder && !kill(holder, 0);
}

/* Block as a stuck driver does: until the test lets go, or the process is killed. */
static void maybe_hang(int gpu) {
    while (state->hang_all) nap(1000);
    if (gpu >= 0 && state->gpu[gpu].hang) {
        if (state->hang_holds_lock) state->lock_pid = (uint32_t)getpid();
        while (state->gpu[gpu].hang) nap(1000);
        if (state->lock_pid == (uint32_t)getpid()) state->lock_pid = 0;
    }
    while (lock_is_held()) nap(1000);
}

static int forced(const char *function, int gpu) {
    for (uint32_t i = 0; i < state->forced_n; i++) {
        volatile Forced *rule = &state->forced[i];
        if ((rule->gpu < 0 || rule->gpu == gpu) && !strcmp((const char *)rule->function, function))
            return (int)rule->ret;
    }
    return SUCCESS;
}

static int enter(const char *function, int gpu) {
    if (!state || !users) return UNINITIALIZED;
    if (gpu >= (int)state->gpus_n) return INVALID_ARGUMENT;
    __sync_fetch_and_add(&state->calls, 1);
    if (gpu >= 0) __sync_fetch_and_add(&state->gpu[gpu].calls, 1);
    maybe_hang(gpu);
    if (gpu >= 0 && state->gpu[gpu].delay_us) nap(state->gpu[gpu].delay_us);
    if (gpu >= 0 && state->gpu[gpu].lost) return GPU_IS_LOST;
    return forced(function, gpu);
}

#define GLOBAL()                                                                                   \
    int ret = enter(__func__, -1);                                                                 \
    if (ret) return ret
#define CARD(device)                                                                               \
    int n = (int)(intptr_t)(device)-1;                                                             \
    if (n < 0) return INVALID_ARGUMENT;                                                            \
    int ret = enter(__func__, n);                                                                  \
    if (ret) return ret;                                                                           \
    volatile Gpu *gpu = &state->gpu[n]
#define SETTER()                                                                                   \
    if (!state->setters_allowed) return NO_PERMISSION
#define READS(function, field, kind)                                                               \
    EXPORT int function(void *device, kind *value) {                                               \
        CARD(device);                                                                              \
        *value = gpu->field;                                                                       \
        return SUCCESS;                                                                            \
    }

/* --- library and handles --- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!users) {
        const char *path = getenv("HCP_NVML_STATE");
        int file = path ? open(path, O_RDWR) : -1;
        if (file < 0) return UNKNOWN;
        if (state) munmap((void *)state, sizeof(State));
        void *mapped = mmap(0, sizeof(State), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (mapped == MAP_FAILED) return UNKNOWN;
        state = mapped;
    }
    users++;
    maybe_hang(-1);
    int ret = forced("nvmlInitWithFlags", -1);
    if (ret) users--;
    return ret;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}
EXPORT const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case NO_PERMISSION: return "Insufficient Permissions";
    case NOT_SUPPORTED: return "Not Supported";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case GPU_IS_LOST: return "GPU is lost";
    case TIMEOUT: return "Timeout";
    default: return "Error";
    }
}
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned room) {
    GLOBAL();
    copy(text, state->driver, room);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    GLOBAL();
    *count = state->gpus_n;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (state && index >= state->gpus_n) return INVALID_ARGUMENT;
    int ret = enter(__func__, (int)index);
    if (!ret) *device = (void *)(intptr_t)(index + 1);
    return ret;
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    for (unsigned i = 0; state && i < state->gpus_n; i++)
        if (!strcasecmp((const char *)state->gpu[i].uuid, uuid)) {
            int ret = enter(__func__, (int)i);
            if (!ret) *device = (void *)(intptr_t)(i + 1);
            return ret;
        }
    GLOBAL();
    return NOT_FOUND;
}
EXPORT int nvmlDeviceGetIndex(void *device, unsigned *index) {
    CARD(device);
    (void)gpu;
    *index = (unsigned)n;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetName(void *device, char *text, unsigned room) {
    CARD(device);
    copy(text, gpu->name, room);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetUUID(void *device, char *text, unsigned room) {
    CARD(device);
    copy(text, gpu->uuid, room);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetPciInfo_v3(void *device, PciInfo *info) {
    CARD(device);
    memset(info, 0, sizeof *info);
    copy(info->bus_id, gpu->bus_id, sizeof info->bus_id);
    return SUCCESS;
}

/* --- telemetry --- */

static unsigned capped(volatile Gpu *gpu, unsigned power_mw) {
    return power_mw < gpu->limit_mw ? power_mw : gpu->limit_mw;
}
EXPORT int nvmlDeviceGetPowerUsage(void *device, unsigned *power_mw) {
    CARD(device);
    *power_mw = capped(gpu, gpu->power_mw);
    return SUCCESS;
}
READS(nvmlDeviceGetPowerManagementLimit, limit_mw, unsigned)
READS(nvmlDeviceGetEnforcedPowerLimit, limit_mw, unsigned)
READS(nvmlDeviceGetPowerManagementDefaultLimit, limit_default_mw, unsigned)
EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(void *device, unsigned *low, unsigned *high) {
    CARD(device);
    *low = gpu->limit_min_mw;
    *high = gpu->limit_max_mw;
    return SUCCESS;
}
READS(nvmlDeviceGetTotalEnergyConsumption, energy_mj, unsigned long long)
EXPORT int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *temp_c) {
    CARD(device);
    if (sensor) return INVALID_ARGUMENT;
    *temp_c = gpu->temp_c;
    return SUCCESS;
}
#ifndef OLD_DRIVER
EXPORT int nvmlDeviceGetTemperatureV(void *device, void *info) {
    struct {
        unsigned version;
        int sensor, temp_c;
    } *asked = info;
    CARD(device);
    if (asked->version != 0x0100000c) return VERSION_MISMATCH;
    if (asked->sensor) return INVALID_ARGUMENT;
    asked->temp_c = (int)gpu->temp_c;
    return SUCCESS;
}
#endif
EXPORT int nvmlDeviceGetTemperatureThreshold(void *device, int kind, unsigned *temp_c) {
    CARD(device);
    if (kind < 0 || kind > 2) return NOT_SUPPORTED;
    *temp_c = kind == 0 ? gpu->shutdown_c : kind == 1 ? gpu->slowdown_c : gpu->memory_max_c;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) {
    CARD(device);
    if (gpu->mig) return NOT_SUPPORTED;
    rates[0] = gpu->gpu_util;
    rates[1] = gpu->memory_util;
    return SUCCESS;
}
#ifndef OLD_DRIVER
EXPORT int nvmlDeviceGetMemoryInfo_v2(void *device, void *info) {
    struct {
        unsigned version;
        unsigned long long total, reserved, free, used;
    } *memory = info;
    CARD(device);
    if (memory->version != 0x02000028) return VERSION_MISMATCH;
    memory->total = gpu->memory_total;
    memory->reserved = gpu->memory_reserved;
    memory->used = gpu->memory_used;
    memory->free = gpu->memory_total - gpu->memory_reserved - gpu->memory_used;
    return SUCCESS;
}
#endif
EXPORT int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    CARD(device);
    /* version 1 counts what is reserved as used */
    memory[0] = gpu->memory_total;
    memory[2] = gpu->memory_reserved + gpu->memory_used;
    memory[1] = memory[0] - memory[2];
    return SUCCESS;
}
EXPORT int nvmlDeviceGetClockInfo(void *device, unsigned kind, unsigned *mhz) {
    CARD(device);
    if (kind >= CLOCKS) return INVALID_ARGUMENT;
    *mhz = gpu->clock_mhz[kind];
    return SUCCESS;
}
EXPORT int nvmlDeviceGetMaxClockInfo(void *device, unsigned kind, unsigned *mhz) {
    CARD(device);
    if (kind >= CLOCKS) return INVALID_ARGUMENT;
    *mhz = gpu->clock_max_mhz[kind];
    return SUCCESS;
}
#ifndef OLD_DRIVER
READS(nvmlDeviceGetCurrentClocksEventReasons, reasons, unsigned long long)
#endif
READS(nvmlDeviceGetCurrentClocksThrottleReasons, reasons, unsigned long long)
EXPORT int nvmlDeviceGetTotalEccErrors(void *device, unsigned kind, unsigned counter,
                                       unsigned long long *count) {
    CARD(device);
    if (kind > 1 || counter > 1) return INVALID_ARGUMENT;
    *count = gpu->ecc[kind][counter];
    return SUCCESS;
}
#ifndef OLD_DRIVER
EXPORT int nvmlDeviceGetRemappedRows(void *device, unsigned *correctable, unsigned *uncorrectable,
                                     unsigned *pending, unsigned *failure) {
    CARD(device);
    *correctable = gpu->remap_correctable;
    *uncorrectable = gpu->remap_uncorrectable;
    *pending = gpu->remap_pending;
    *failure = gpu->remap_failure;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    CARD(device);
    *current = *pending = gpu->mig;
    return SUCCESS;
}
#endif
EXPORT int nvmlDeviceGetNvLinkState(void *device, unsigned link, unsigned *active) {
    CARD(device);
    if (link >= gpu->links || link >= LINKS_MAX) return INVALID_ARGUMENT;
    *active = gpu->link_active[link];
    return SUCCESS;
}
READS(nvmlDeviceGetPersistenceMode, persistence, unsigned)

static void fill(volatile Gpu *gpu, FieldValue *value) {
    value->ret = NOT_SUPPORTED;
    value->latency_us = 0;
    for (uint32_t i = 0; i < gpu->fields_n; i++) {
        volatile Field *field = &gpu->fields[i];
        if (field->id != value->id) continue;
        value->ret = field->ret;
        value->type = field->type;
        value->value.u64 = 0;
        if (field->type == TYPE_UNSIGNED_LONG_LONG) value->value.u64 = field->value;
        else value->value.u32 = (unsigned)field->value;
        /* per link, unless the scope says all of them */
        if ((field->id == FIELD_NVLINK_TX || field->id == FIELD_NVLINK_RX) && value->scope != ~0u)
            value->value.u64 = gpu->links ? field->value / gpu->links : 0;
        if (field->id == FIELD_POWER_INSTANT) value->value.u32 = capped(gpu, gpu->power_instant_mw);
        if (field->id == FIELD_MEMORY_TEMP) value->value.u32 = gpu->memory_temp_c;
        return;
    }
}
EXPORT int nvmlDeviceGetFieldValues(void *device, int count, FieldValue *values) {
    CARD(device);
    if (count < 1) return INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) fill(gpu, &values[i]);
    return SUCCESS;
}

typedef struct {
    unsigned pid;
    unsigned long long used_bytes;
    unsigned gpu_instance, compute_instance;
} ProcessInfo;
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, ProcessInfo *info) {
    CARD(device);
    unsigned room = *count;
    *count = gpu->processes_n;
    if (room < gpu->processes_n) return INSUFFICIENT_SIZE;
    for (unsigned i = 0; i < gpu->processes_n; i++)
        info[i] = (ProcessInfo){gpu->processes[i].pid, gpu->processes[i].used_bytes,
                                gpu->processes[i].gpu_instance, 0xffffffffu};
    return SUCCESS;
}

/* --- events --- */

READS(nvmlDeviceGetSupportedEventTypes, event_types, unsigned long long)
EXPORT int nvmlEventSetCreate(EventSet **set) {
    GLOBAL();
    *set = calloc(1, sizeof **set);
    if (!*set) return UNKNOWN;
    (*set)->next = state->events_n;
    return SUCCESS;
}
EXPORT int nvmlDeviceRegisterEvents(void *device, unsigned long long types, EventSet *set) {
    CARD(device);
    if (types & ~gpu->event_types) return NOT_SUPPORTED;
    set->types[n] |= types;
    return SUCCESS;
}
EXPORT int nvmlEventSetWait_v2(EventSet *set, EventData *data, unsigned timeout_ms) {
    GLOBAL();
    for (unsigned waited_ms = 0;; waited_ms++) {
        for (int i = 0; state->lost_breaks_wait && i < GPUS_MAX; i++)
            if (set->types[i] && state->gpu[i].lost) return GPU_IS_LOST;
        while (set->next < state->events_n) {
            volatile Event *event = &state->events[set->next++ % EVENTS_MAX];
            if (!(set->types[event->gpu] & event->type)) continue;
            *data = (EventData){(void *)(intptr_t)(event->gpu + 1), event->type, event->data,
                                event->gpu_instance, event->compute_instance};
            return SUCCESS;
        }
        if (waited_ms >= timeout_ms) return TIMEOUT;
        nap(1000);
    }
}
EXPORT int nvmlEventSetFree(EventSet *set) {
    free(set);
    return SUCCESS;
}

/* --- setters: root alone, and the card's own ranges --- */

EXPORT int nvmlDeviceSetPowerManagementLimit(void *device, unsigned limit_mw) {
    CARD(device);
    SETTER();
    if (limit_mw < gpu->limit_min_mw || limit_mw > gpu->limit_max_mw) return INVALID_ARGUMENT;
    gpu->limit_mw = limit_mw;
    return SUCCESS;
}
static int lock_clocks(volatile uint32_t *locked, unsigned low, unsigned high, unsigned top) {
    if (low > high || high > top) return INVALID_ARGUMENT;
    locked[0] = low;
    locked[1] = high;
    return SUCCESS;
}
EXPORT int nvmlDeviceSetGpuLockedClocks(void *device, unsigned low, unsigned high) {
    CARD(device);
    SETTER();
    return lock_clocks(gpu->locked_gpu_mhz, low, high, gpu->clock_max_mhz[CLOCK_GRAPHICS]);
}
EXPORT int nvmlDeviceSetMemoryLockedClocks(void *device, unsigned low, unsigned high) {
    CARD(device);
    SETTER();
    return lock_clocks(gpu->locked_memory_mhz, low, high, gpu->clock_max_mhz[CLOCK_MEM]);
}
EXPORT int nvmlDeviceResetGpuLockedClocks(void *device) {
    CARD(device);
    SETTER();
    gpu->locked_gpu_mhz[0] = gpu->locked_gpu_mhz[1] = 0;
    return SUCCESS;
}
EXPORT int nvmlDeviceResetMemoryLockedClocks(void *device) {
    CARD(device);
    SETTER();
    gpu->locked_memory_mhz[0] = gpu->locked_memory_mhz[1] = 0;
    return SUCCESS;
}
EXPORT int nvmlDeviceSetPersistenceMode(void *device, unsigned on) {
    CARD(device);
    SETTER();
    if (on > 1) return INVALID_ARGUMENT;
    gpu->persistence = on;
    return SUCCESS;
}
