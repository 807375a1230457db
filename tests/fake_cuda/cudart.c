/* The CUDA runtime on host memory: kernels compute nothing, copies copy. Device: compute capability 9.0. */
#include "fake.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define __CUDART_API_VERSION CUDART_VERSION
#include <cuda_runtime_api.h>
#undef cudaGetDeviceProperties

static int capturing;
static __thread dim3 pushed_grid, pushed_block;
static __thread size_t pushed_shared;
static __thread cudaStream_t pushed_stream;

void fake_trace(const char *format, ...) {
  static FILE *file;
  const char *path = getenv("FAKE_CUDA_TRACE");
  if (!path) return;
  if (!file) {
    file = fopen(path, "a");
    if (!file) return;
    setvbuf(file, NULL, _IOLBF, 0);
  }
  va_list arguments;
  va_start(arguments, format);
  vfprintf(file, format, arguments);
  va_end(arguments);
  fputc('\n', file);
}

int fake_capturing(void) { return capturing; }

const char *fake_mark(int allowed) {
  if (!capturing) return "";
  return allowed ? " captured" : " ILLEGAL IN CAPTURE";
}

/* Kernels by their host functions, as the provider's static initialisers register them. */
struct kernel {
  const void *host;
  const char *name;
  struct kernel *next;
};
static struct kernel *kernels[65536];

static unsigned bucket(const void *host) { return ((unsigned long)host >> 4) & 65535; }

static const char *kernel_name(const void *host) {
  for (struct kernel *found = kernels[bucket(host)]; found; found = found->next)
    if (found->host == host) return found->name;
  return "?";
}

void **__cudaRegisterFatBinary(void *binary) { return calloc(1, 64); }
void __cudaRegisterFatBinaryEnd(void **handle) {}
void __cudaUnregisterFatBinary(void **handle) {}
void __cudaRegisterVar(void **h, char *host, char *address, const char *name, int e, size_t s, int c, int g) {}
void __cudaRegisterFunction(void **h, const char *host, char *f, const char *name, int t, void *a, void *b, void *c,
                            void *d, int *w) {
  struct kernel *added = malloc(sizeof *added);
  *added = (struct kernel){host, name, kernels[bucket(host)]};
  kernels[bucket(host)] = added;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
  pushed_grid = grid, pushed_block = block, pushed_shared = shared, pushed_stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed_grid, *block = pushed_block, *shared = pushed_shared, *(cudaStream_t *)stream = pushed_stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *host) {
  *kernel = (cudaKernel_t)host;
  return cudaSuccess;
}

/* Launches */
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 grid, dim3 block, void **arguments, size_t shared, cudaStream_t s) {
  fake_trace("launch %s blocks=%u threads=%u stream=%p%s", kernel_name(k), grid.x * grid.y * grid.z,
             block.x * block.y * block.z, (void *)s, fake_mark(1));
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **a, size_t shared, cudaStream_t stream) {
  return __cudaLaunchKernel((cudaKernel_t)f, grid, block, a, shared, stream);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
  return __cudaLaunchKernel((cudaKernel_t)f, c->gridDim, c->blockDim, a, c->dynamicSmemBytes, c->stream);
}
cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 grid, dim3 block, void **a, size_t shared, cudaStream_t s) {
  return __cudaLaunchKernel((cudaKernel_t)f, grid, block, a, shared, s);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  fake_trace("hostfunc stream=%p%s", (void *)stream, fake_mark(0));
  function(data);
  return cudaSuccess;
}

/* The device */
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = 49152; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 233472; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = 65536; break;
    default: *value = 1;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *found, int device) {
  memset(found, 0, sizeof *found);
  strcpy(found->name, "fake CUDA device");
  found->major = 9, found->minor = 0, found->multiProcessorCount = 132, found->warpSize = 32;
  found->totalGlobalMem = DEVICE_MEMORY, found->l2CacheSize = 50 << 20, found->memoryPoolsSupported = 1;
  found->sharedMemPerBlock = 49152, found->sharedMemPerBlockOptin = 232448;
  found->sharedMemPerMultiprocessor = 233472, found->regsPerBlock = 65536;
  found->maxThreadsPerBlock = 1024, found->maxThreadsPerMultiProcessor = 2048;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024, found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647, found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *function) {
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = 1024, found->binaryVersion = found->ptxVersion = 90, found->numRegs = 64;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int value) { return cudaSuccess; }
cudaError_t cudaKernelSetAttributeForDevice(cudaKernel_t k, enum cudaFuncAttribute a, int v, int d) {
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) {
  return *n = 2, cudaSuccess;
}
const char *cudaGetErrorName(cudaError_t error) { return "error of the fake CUDA"; }
const char *cudaGetErrorString(cudaError_t error) { return "error of the fake CUDA"; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
static int entry_point(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned v, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  *function = (void *)entry_point;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *code, enum cudaJitOption *o, void **ov, unsigned n,
                                enum cudaLibraryOption *lo, void **lv, unsigned ln) {
  return *library = malloc(8), cudaSuccess;
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t library, const char *name) {
  return *kernel = malloc(8), cudaSuccess;
}
cudaError_t cudaLibraryUnload(cudaLibrary_t library) { return cudaSuccess; }

/* Memory: the host's. What is alive is counted by the trace, and taken off the device's where it is the device's. */
static const size_t header_size = 512;
static size_t taken;

static cudaError_t allocate(const char *what, void **address, size_t size, int on_device) {
  if (on_device && size > DEVICE_MEMORY - taken) return cudaErrorMemoryAllocation;
  char *block = aligned_alloc(512, header_size + (size + 1023) / 512 * 512);
  if (!block) return cudaErrorMemoryAllocation;
  fake_trace("%s %zu%s", what, size, fake_mark(0));
  *(size_t *)block = size;
  *address = block + header_size;
  memset(*address, 0, size < (1 << 26) ? size : 0);
  if (on_device) __atomic_add_fetch(&taken, size, __ATOMIC_RELAXED);
  return cudaSuccess;
}
static cudaError_t release(const char *what, void *address, int on_device) {
  if (!address) return cudaSuccess;
  char *block = (char *)address - header_size;
  size_t size = *(size_t *)block;
  fake_trace("%s %zu%s", what, size, fake_mark(0));
  if (on_device) __atomic_sub_fetch(&taken, size, __ATOMIC_RELAXED);
  free(block);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void **address, size_t size) { return allocate("malloc", address, size, 1); }
cudaError_t cudaMallocFromPoolAsync(void **address, size_t size, cudaMemPool_t pool, cudaStream_t stream) {
  return allocate("malloc", address, size, 1);
}
cudaError_t cudaFree(void *address) { return release("free", address, 1); }
cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) { return release("free", address, 1); }
cudaError_t cudaHostAlloc(void **address, size_t size, unsigned flags) { return allocate("pin", address, size, 0); }
cudaError_t cudaMallocHost(void **address, size_t size) { return allocate("pin", address, size, 0); }
cudaError_t cudaFreeHost(void *address) { return release("unpin", address, 0); }
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  return *free_bytes = DEVICE_MEMORY - taken, *total = DEVICE_MEMORY, cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
  return *pool = malloc(8), cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
  return *(unsigned long *)value = 0, cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr a, void *value) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t size) { return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
  memset(found, 0, sizeof *found);
  found->type = cudaMemoryTypeDevice, found->devicePointer = (void *)address;
  return cudaSuccess;
}

/* Copies. One within the device may be part of a graph; one from or to the host's memory would be replayed with
 * whatever is there by then. */
static const char *directions[] = {"host-to-host", "host-to-device", "device-to-host", "device-to-device", "default"};
cudaError_t cudaMemcpy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind) {
  fake_trace("copy %s %zu blocking%s", directions[kind], size, fake_mark(0));
  memmove(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t stream) {
  fake_trace("copy %s %zu stream=%p%s", directions[kind], size, (void *)stream,
             fake_mark(kind == cudaMemcpyDeviceToDevice));
  memmove(to, from, size);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream) {
  fake_trace("copy %s %zu stream=%p%s", directions[kind], width * height, (void *)stream,
             fake_mark(kind == cudaMemcpyDeviceToDevice));
  return cudaSuccess;
}
cudaError_t cudaMemcpyFromSymbol(void *to, const void *symbol, size_t size, size_t offset, enum cudaMemcpyKind kind) {
  memset(to, 0, size);
  return cudaSuccess;
}
cudaError_t cudaMemset(void *address, int value, size_t size) {
  fake_trace("set %zu blocking%s", size, fake_mark(0));
  memset(address, value, size);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *address, int value, size_t size, cudaStream_t stream) {
  fake_trace("set %zu stream=%p%s", size, (void *)stream, fake_mark(1));
  memset(address, value, size);
  return cudaSuccess;
}

/* Streams and events: all work is done when its call returns. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  *stream = malloc(8);
  fake_trace("stream created %p", (void *)*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  fake_trace("stream destroyed %p%s", (void *)stream, fake_mark(0));
  free(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  fake_trace("synchronize stream=%p%s", (void *)stream, fake_mark(0));
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
  fake_trace("synchronize device%s", fake_mark(0));
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) { return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  *event = malloc(8);
  fake_trace("event created");
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  fake_trace("event destroyed");
  free(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  fake_trace("synchronize event%s", fake_mark(0));
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end) { return *ms = 1, cudaSuccess; }

/* Graphs */
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
  capturing = 1;
  fake_trace("capture begins stream=%p", (void *)stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  capturing = 0;
  *graph = malloc(8);
  fake_trace("capture ends stream=%p", (void *)stream);
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  return *status = capturing, cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
  *executable = malloc(8);
  fake_trace("graph created");
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  fake_trace("graph launched stream=%p%s", (void *)stream, fake_mark(0));
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  fake_trace("graph destroyed");
  free(executable);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return free(graph), cudaSuccess; }
