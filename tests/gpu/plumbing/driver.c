// A simulated CUDA driver with one GPU: the functions of libcuda.so.1 that the program calls. Memory of
// the host stands in for that of the device, and each stream is a thread that does its work in order
// while the caller goes on, so that a buffer that is used too early shows.
//
// It is stricter than CUDA where that finds mistakes: every call needs a context that is bound to its
// thread; copies on a stream need page-locked memory; device memory holds rubbish until it is written;
// what is not freed when the context is released ends the process.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long long address;

// What CUDA gives to each thread of a kernel.
static __thread struct { unsigned x, y, z; } blockIdx, blockDim, threadIdx;
#include "kernels.cu"

enum {
    OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
    NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700,
};

static const size_t MEMORY = 1ul << 30;

// One lock for everything, and one signal for everything that changes.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static char the_context;
static int retained;
static __thread void *current;
// A fault that every later call reports.
static int fault;

// Memory: of the device, and page-locked of the host.
struct block { char *start; size_t size; int on_host; struct block *next; };
static struct block *blocks;
static size_t used;

struct event { unsigned flags; unsigned long recorded, done; double time; };

typedef void (*kernel)(struct Arguments);
enum what { COPY, FILL, FREE, LAUNCH, RECORD, WAIT };
struct op {
    enum what what;
    void *to; const void *from; size_t size; int value;
    kernel kernel; unsigned blocks, threads; struct Arguments arguments;
    struct event *event; unsigned long number;
    struct op *next;
};

struct list { struct op *first, *last; };
struct stream { struct list queue; int busy, ends; struct list *capture; pthread_t thread; };

static void append(struct list *list, struct op op) {
    struct op *it = malloc(sizeof *it);
    *it = op;
    it->next = NULL;
    if (list->last) list->last->next = it; else list->first = it;
    list->last = it;
}

static void clear(struct list *list) {
    while (list->first) {
        struct op *next = list->first->next;
        free(list->first);
        list->first = next;
    }
    list->last = NULL;
}

static double now(void) {
    struct timespec it;
    clock_gettime(CLOCK_MONOTONIC, &it);
    return it.tv_sec + it.tv_nsec / 1e9;
}

static struct block *block_of(const void *start, size_t size) {
    for (struct block *it = blocks; it; it = it->next)
        if ((const char *)start >= it->start && (const char *)start + size <= it->start + it->size)
            return it;
    return NULL;
}

static int on_device(const void *start, size_t size) {
    struct block *it = block_of(start, size);
    return it && !it->on_host;
}

static int on_host(const void *start, size_t size) {
    struct block *it = block_of(start, size);
    return it && it->on_host;
}

static void *allocate(size_t size, int is_host) {
    if (!is_host && used + size > MEMORY) return NULL;
    struct block *it = malloc(sizeof *it);
    *it = (struct block){ malloc(size ? size : 1), size, is_host, blocks };
    memset(it->start, 0xa5, size);
    blocks = it;
    if (!is_host) used += size;
    return it->start;
}

static int release(void *start) {
    for (struct block **it = &blocks; *it; it = &(*it)->next)
        if ((*it)->start == start) {
            struct block *gone = *it;
            *it = gone->next;
            if (!gone->on_host) used -= gone->size;
            memset(gone->start, 0x5a, gone->size);
            free(gone->start);
            free(gone);
            return OK;
        }
    return INVALID_VALUE;
}

// What a launch reads and writes has to be memory of the device; what it reads may be absent.
static int may_launch(const struct op *op) {
    const struct Arguments *a = &op->arguments;
    return on_device(a->out, 1) && (!a->x || on_device(a->x, 1)) && (!a->y || on_device(a->y, 1)) &&
           (!a->z || on_device(a->z, 1));
}

static void run_kernel(const struct op *op) {
    blockDim.x = op->threads;
    for (blockIdx.x = 0; blockIdx.x < op->blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < op->threads; threadIdx.x++) op->kernel(op->arguments);
}

// Called and returns with the lock held; works without it.
static void execute(struct op *op) {
    if (op->what == WAIT) {
        while (op->event->done < op->number) pthread_cond_wait(&changed, &lock);
        return;
    }
    if (fault && op->what != FREE && op->what != RECORD) return;
    int valid = op->what == COPY ? block_of(op->to, op->size) && block_of(op->from, op->size)
              : op->what == FILL ? on_device(op->to, op->size)
              : op->what == LAUNCH ? may_launch(op) : 1;
    if (!valid) {
        fault = ILLEGAL_ADDRESS;
        return;
    }
    if (op->what == FREE) {
        release(op->to);
    } else if (op->what == RECORD) {
        op->event->done = op->number;
        op->event->time = now();
    } else {
        pthread_mutex_unlock(&lock);
        if (op->what == COPY) memcpy(op->to, op->from, op->size);
        if (op->what == FILL) memset(op->to, op->value, op->size);
        if (op->what == LAUNCH) run_kernel(op);
        pthread_mutex_lock(&lock);
    }
}

static void *work(void *it) {
    struct stream *stream = it;
    pthread_mutex_lock(&lock);
    for (;;) {
        struct op *op = stream->queue.first;
        if (!op) {
            if (stream->ends) break;
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        stream->busy = 1;
        stream->queue.first = op->next;
        if (!op->next) stream->queue.last = NULL;
        execute(op);
        free(op);
        stream->busy = 0;
        pthread_cond_broadcast(&changed);
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static struct stream *start_stream(void) {
    struct stream *stream = calloc(1, sizeof *stream);
    pthread_create(&stream->thread, NULL, work, stream);
    return stream;
}

// CUDA's own stream, which callers name by a null pointer.
static struct stream *default_stream;

static struct stream *known(struct stream *stream) {
    if (stream) return stream;
    if (!default_stream) default_stream = start_stream();
    return default_stream;
}

static void drain(struct stream *stream) {
    while (stream->queue.first || stream->busy) pthread_cond_wait(&changed, &lock);
}

// Every call that needs a context begins with ENTER and ends with LEAVE.
#define ENTER \
    if (current != &the_context) return INVALID_CONTEXT; \
    pthread_mutex_lock(&lock); \
    int result = fault;
#define LEAVE \
    pthread_mutex_unlock(&lock); \
    return result;

static int queue(struct stream *stream, struct op op) {
    ENTER
    if (result == OK || op.what == FREE) {
        stream = known(stream);
        append(stream->capture ? stream->capture : &stream->queue, op);
        pthread_cond_broadcast(&changed);
    }
    LEAVE
}

// The device.

int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *version) { *version = 12090; return OK; }
int cuDeviceGetCount(int *count) { *count = 1; return OK; }
int cuDeviceGet(int *device, int index) { *device = index; return index ? INVALID_VALUE : OK; }
int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "a simulated GPU");
    return OK;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    // Compute capability 9.0, and memory pools.
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1;
    return OK;
}
int cuDeviceGetUuid(char *uuid, int device) {
    for (int i = 0; i < 16; i++) uuid[i] = i;
    return OK;
}
int cuDeviceGetUuid_v2(char *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
int cuGetErrorName(int error, const char **name) {
    *name = error == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR";
    return OK;
}
int cuGetErrorString(int error, const char **text) {
    *text = error == ILLEGAL_ADDRESS ? "an illegal memory access was encountered"
                                     : "an error of the simulated driver";
    return OK;
}

// The context.

int cuDevicePrimaryCtxRetain(void **it, int device) {
    pthread_mutex_lock(&lock);
    retained++;
    pthread_mutex_unlock(&lock);
    *it = &the_context;
    return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    pthread_mutex_lock(&lock);
    if (default_stream) drain(default_stream);
    if (--retained == 0 && blocks) {
        fprintf(stderr, "simulated driver: %zu bytes of the device were not freed\n", used);
        abort();
    }
    pthread_mutex_unlock(&lock);
    return OK;
}
int cuCtxGetCurrent(void **it) { *it = current; return OK; }
int cuCtxSetCurrent(void *it) { current = it; return OK; }
int cuMemGetInfo_v2(size_t *available, size_t *total) {
    ENTER
    *available = MEMORY - used;
    *total = MEMORY;
    LEAVE
}

// Memory.

int cuMemAllocAsync(address *it, size_t size, struct stream *stream) {
    ENTER
    if (result == OK) {
        void *start = allocate(size, 0);
        if (!start) {
            // What is being freed on the stream can be had again.
            drain(known(stream));
            start = allocate(size, 0);
        }
        if (start) *it = (address)start; else result = OUT_OF_MEMORY;
    }
    LEAVE
}
int cuMemFreeAsync(address it, struct stream *stream) {
    return queue(stream, (struct op){ .what = FREE, .to = (void *)it });
}
int cuMemHostAlloc(void **it, size_t size, unsigned flags) {
    ENTER
    if (result == OK) *it = allocate(size, 1);
    LEAVE
}
int cuMemFreeHost(void *it) {
    ENTER
    result = release(it);
    LEAVE
}
int cuMemsetD8Async(address to, unsigned char value, size_t size, struct stream *stream) {
    return queue(stream, (struct op){ .what = FILL, .to = (void *)to, .value = value, .size = size });
}

// Memory that is not page-locked is copied at once, and not on a stream.
static int copy(void *to, const void *from, size_t size, const void *host, struct stream *stream) {
    pthread_mutex_lock(&lock);
    int is_locked = on_host(host, size);
    pthread_mutex_unlock(&lock);
    if (is_locked) return queue(stream, (struct op){ .what = COPY, .to = to, .from = from, .size = size });
    if (stream) {
        fprintf(stderr, "simulated driver: a copy on a stream of memory that is not page-locked\n");
        return INVALID_VALUE;
    }
    ENTER
    if (result == OK) {
        drain(known(NULL));
        memcpy(to, from, size);
    }
    LEAVE
}
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t size, struct stream *stream) {
    return copy((void *)to, from, size, from, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t size, struct stream *stream) {
    return copy(to, (void *)from, size, to, stream);
}

// Streams and events.

int cuStreamCreate(struct stream **it, unsigned flags) {
    ENTER
    *it = start_stream();
    LEAVE
}
int cuStreamSynchronize(struct stream *stream) {
    ENTER
    drain(known(stream));
    result = fault;
    LEAVE
}
int cuStreamDestroy_v2(struct stream *stream) {
    pthread_mutex_lock(&lock);
    stream->ends = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return OK;
}
int cuEventCreate(struct event **it, unsigned flags) {
    ENTER
    *it = calloc(1, sizeof **it);
    (*it)->flags = flags;
    LEAVE
}
int cuEventDestroy_v2(struct event *event) {
    ENTER
    while (event->done < event->recorded) pthread_cond_wait(&changed, &lock);
    free(event);
    LEAVE
}
int cuEventRecord(struct event *event, struct stream *stream) {
    ENTER
    stream = known(stream);
    // Within a recorded graph nobody waits for it.
    if (!stream->capture)
        append(&stream->queue, (struct op){ .what = RECORD, .event = event, .number = ++event->recorded });
    pthread_cond_broadcast(&changed);
    result = OK;
    LEAVE
}
int cuEventSynchronize(struct event *event) {
    ENTER
    // Without the flag for blocking, the thread spins, as CUDA's does.
    while (event->done < event->recorded)
        if (event->flags & 1) {
            pthread_cond_wait(&changed, &lock);
        } else {
            pthread_mutex_unlock(&lock);
            pthread_mutex_lock(&lock);
        }
    result = fault;
    LEAVE
}
int cuEventQuery(struct event *event) {
    ENTER
    if (result == OK && event->done < event->recorded) result = NOT_READY;
    LEAVE
}
int cuEventElapsedTime(float *ms, struct event *start, struct event *end) {
    ENTER
    // 2 is the flag for events without a time.
    if ((start->flags | end->flags) & 2) result = INVALID_HANDLE;
    *ms = (end->time - start->time) * 1e3;
    LEAVE
}
int cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    if (event->recorded == event->done) return OK;
    return queue(stream, (struct op){ .what = WAIT, .event = event, .number = event->recorded });
}

// Kernels: every image of a module holds those of kernels.cu.

int cuModuleLoadData(void **module, const void *image) {
    ENTER
    Dl_info self;
    dladdr((void *)cuModuleLoadData, &self);
    *module = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    LEAVE
}
int cuModuleGetFunction(kernel *function, void *module, const char *name) {
    *function = (kernel)dlsym(module, name);
    return *function ? OK : NOT_FOUND;
}
int cuModuleUnload(void *module) { dlclose(module); return OK; }
int cuLaunchKernel(kernel function, unsigned blocks, unsigned y, unsigned z, unsigned threads, unsigned v,
                   unsigned w, unsigned shared, struct stream *stream, void **parameters, void **extra) {
    return queue(stream, (struct op){ .what = LAUNCH, .kernel = function, .blocks = blocks,
                                      .threads = threads, .arguments = *(struct Arguments *)parameters[0] });
}

// Graphs.

int cuStreamBeginCapture_v2(struct stream *stream, int mode) {
    ENTER
    stream->capture = calloc(1, sizeof *stream->capture);
    LEAVE
}
int cuStreamEndCapture(struct stream *stream, struct list **graph) {
    ENTER
    *graph = stream->capture;
    stream->capture = NULL;
    LEAVE
}
int cuGraphInstantiateWithFlags(struct list **executable, struct list *graph, unsigned long long flags) {
    *executable = calloc(1, sizeof **executable);
    for (struct op *it = graph->first; it; it = it->next) append(*executable, *it);
    return OK;
}
int cuGraphLaunch(struct list *executable, struct stream *stream) {
    int result = OK;
    for (struct op *it = executable->first; it && result == OK; it = it->next) result = queue(stream, *it);
    return result;
}
int cuGraphExecDestroy(struct list *it) { clear(it); free(it); return OK; }
int cuGraphDestroy(struct list *it) { clear(it); free(it); return OK; }
int cuCtxSynchronize(void) { return cuStreamSynchronize(NULL); }
