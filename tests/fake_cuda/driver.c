/* The driver, on top of the fake runtime. */
#include "fake.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>
#undef cuMemFree
#undef cuMemAlloc

CUresult cuInit(unsigned flags) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  return *device = ordinal, ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  return strncpy(name, "fake CUDA device", length), CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  return (CUresult)cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device);
}
CUresult cuDeviceTotalMem_v2(size_t *size, CUdevice device) { return *size = DEVICE_MEMORY, CUDA_SUCCESS; }
CUresult cuGetErrorName(CUresult error, const char **name) {
  return *name = error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN", CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char **text) { return cuGetErrorName(error, text); }
CUresult cuModuleLoadData(CUmodule *module, const void *image) { return *module = (CUmodule)1, CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  return *function = (CUfunction)1, CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }
/* Their many parameters do not matter, and prototypes are declared in cuda.h. */
CUresult encode_nothing(void) __asm__("cuTensorMapEncodeTiled");
CUresult encode_nothing(void) { return CUDA_SUCCESS; }
CUresult encode_no_image(void) __asm__("cuTensorMapEncodeIm2col");
CUresult encode_no_image(void) { return CUDA_SUCCESS; }

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  fake_trace("context retained");
  return *context = (CUcontext)1, CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { return fake_trace("context released"), CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent_v2(CUcontext *context) { return CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext context) { return CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return (CUresult)cudaDeviceSynchronize(); }

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) { return (CUresult)cudaMemGetInfo(free_bytes, total); }
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) { return (CUresult)cudaMalloc((void **)address, size); }
CUresult cuMemFree_v2(CUdeviceptr address) { return (CUresult)cudaFree((void *)address); }
CUresult cuMemAllocHost_v2(void **address, size_t size) { return (CUresult)cudaMallocHost(address, size); }
CUresult cuMemFreeHost(void *address) { return (CUresult)cudaFreeHost(address); }
CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t size, CUstream stream) {
  return (CUresult)cudaMemsetAsync((void *)address, value, size, stream);
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
  return (CUresult)cudaMemcpyAsync((void *)to, from, size, cudaMemcpyHostToDevice, stream);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) {
  return (CUresult)cudaMemcpyAsync(to, (void *)from, size, cudaMemcpyDeviceToHost, stream);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t size, CUstream stream) {
  return (CUresult)cudaMemcpyAsync((void *)to, (void *)from, size, cudaMemcpyDeviceToDevice, stream);
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) { return (CUresult)cudaStreamCreateWithFlags(stream, flags); }
CUresult cuStreamDestroy_v2(CUstream stream) { return (CUresult)cudaStreamDestroy(stream); }
CUresult cuStreamSynchronize(CUstream stream) { return (CUresult)cudaStreamSynchronize(stream); }
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) { return CUDA_SUCCESS; }
CUresult cuEventCreate(CUevent *event, unsigned flags) { return (CUresult)cudaEventCreateWithFlags(event, flags); }
CUresult cuEventDestroy_v2(CUevent event) { return (CUresult)cudaEventDestroy(event); }
CUresult cuEventRecord(CUevent event, CUstream stream) { return CUDA_SUCCESS; }
CUresult cuEventQuery(CUevent event) { return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent event) { return (CUresult)cudaEventSynchronize(event); }

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
  return (CUresult)cudaStreamBeginCapture(stream, (enum cudaStreamCaptureMode)mode);
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
  return (CUresult)cudaStreamEndCapture(stream, (cudaGraph_t *)graph);
}
CUresult cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
  return (CUresult)cudaGraphInstantiate((cudaGraphExec_t *)executable, (cudaGraph_t)graph, flags);
}
CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
  return (CUresult)cudaGraphLaunch((cudaGraphExec_t)executable, stream);
}
CUresult cuGraphExecDestroy(CUgraphExec executable) {
  return (CUresult)cudaGraphExecDestroy((cudaGraphExec_t)executable);
}
CUresult cuGraphDestroy(CUgraph graph) { return (CUresult)cudaGraphDestroy((cudaGraph_t)graph); }
