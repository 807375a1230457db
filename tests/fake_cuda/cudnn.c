/* cuDNN: objects hold what workspaces depend on, and what would compute is only traced. */
#include "fake.h"

#include <stdint.h>
#include <stdlib.h>

#define OBJECT(name) \
  int name(void **made) { return *made = calloc(1, 256), 0; }
#define WORK(name) \
  int name() { return fake_trace("call " #name "%s", fake_mark(1)), 0; }
#define NOTHING(name) \
  int name() { return 0; }

OBJECT(cudnnCreate)
OBJECT(cudnnCreateActivationDescriptor)
OBJECT(cudnnCreateConvolutionDescriptor)
OBJECT(cudnnCreateDropoutDescriptor)
OBJECT(cudnnCreateFilterDescriptor)
OBJECT(cudnnCreateLRNDescriptor)
OBJECT(cudnnCreatePoolingDescriptor)
OBJECT(cudnnCreateRNNDataDescriptor)
OBJECT(cudnnCreateRNNDescriptor)
OBJECT(cudnnCreateReduceTensorDescriptor)
OBJECT(cudnnCreateTensorDescriptor)

WORK(cudnnActivationForward)
WORK(cudnnBackendExecute)
WORK(cudnnBatchNormalizationForwardInference)
WORK(cudnnBatchNormalizationForwardTraining)
WORK(cudnnConvolutionBiasActivationForward)
WORK(cudnnConvolutionForward)
WORK(cudnnFindConvolutionForwardAlgorithmEx)
WORK(cudnnGetConvolutionForwardAlgorithm_v7)
WORK(cudnnGetConvolutionForwardWorkspaceSize)
WORK(cudnnLRNCrossChannelForward)
WORK(cudnnPoolingForward)
WORK(cudnnRNNForward)
WORK(cudnnReduceTensor)
WORK(cudnnSoftmaxForward)

NOTHING(cudnnAddTensor)
NOTHING(cudnnBackendDestroyDescriptor)
NOTHING(cudnnBackendFinalize)
NOTHING(cudnnDeriveBNTensorDescriptor)
NOTHING(cudnnDestroy)
NOTHING(cudnnDestroyActivationDescriptor)
NOTHING(cudnnDestroyConvolutionDescriptor)
NOTHING(cudnnDestroyDropoutDescriptor)
NOTHING(cudnnDestroyFilterDescriptor)
NOTHING(cudnnDestroyLRNDescriptor)
NOTHING(cudnnDestroyPoolingDescriptor)
NOTHING(cudnnDestroyRNNDataDescriptor)
NOTHING(cudnnDestroyRNNDescriptor)
NOTHING(cudnnDestroyReduceTensorDescriptor)
NOTHING(cudnnDestroyTensorDescriptor)
NOTHING(cudnnDropoutGetStatesSize)
NOTHING(cudnnGetLastErrorString)
NOTHING(cudnnGetRNNTempSpaceSizes)
NOTHING(cudnnGetRNNWeightParams)
NOTHING(cudnnGetStream)
NOTHING(cudnnGetTensorNdDescriptor)
NOTHING(cudnnSetActivationDescriptor)
NOTHING(cudnnSetConvolutionGroupCount)
NOTHING(cudnnSetConvolutionMathType)
NOTHING(cudnnSetConvolutionNdDescriptor)
NOTHING(cudnnSetDropoutDescriptor)
NOTHING(cudnnSetFilterNdDescriptor)
NOTHING(cudnnSetLRNDescriptor)
NOTHING(cudnnSetPoolingNdDescriptor)
NOTHING(cudnnSetRNNDataDescriptor)
NOTHING(cudnnSetRNNDescriptor_v8)
NOTHING(cudnnSetReduceTensorDescriptor)
NOTHING(cudnnSetStream)
NOTHING(cudnnSetTensorNdDescriptor)

const char *cudnnGetErrorString(int status) { return "error of the fake CUDA"; }
int cudnnGetReductionIndicesSize(void *handle, void *reduction, void *a, void *c, size_t *size) { return *size = 1024, 0; }
int cudnnGetReductionWorkspaceSize(void *handle, void *reduction, void *a, void *c, size_t *size) {
  return *size = 1024, 0;
}
size_t cudnnGetVersion(void) { return 91500; }

/* The graph interface asks for the results of heuristics, and for the workspace of a plan. There is one engine. It takes
 * what the real ones take for convolutions of channels first on compute capability 9.0: input and weights once more,
 * with channels last (cuDNN 9.28's heuristics, without a device: bench/results/gpu.md). A graph has one convolution, and
 * is planned before the next is described. Numbers are those of cudnn_graph.h. */
enum { BACKEND_DESCRIPTOR = 15 };
enum { PLAN_WORKSPACE = 402, CONVOLUTION_W = 703, CONVOLUTION_X = 704, TENSOR_TYPE = 901, TENSOR_DIMENSIONS = 902 };
enum { DATA_FLOAT = 0, DATA_DOUBLE = 1, DATA_INT32 = 4 };
struct descriptor {
  int64_t elements, element_size;
};
static __thread int64_t input_size, weights_size;

int cudnnBackendCreateDescriptor(int kind, void **made) { return *made = calloc(1, 256), 0; }
int cudnnBackendSetAttribute(struct descriptor *object, int name, int type, int64_t count, const void *values) {
  if (name == TENSOR_TYPE) {
    int data = *(const int *)values;
    object->element_size = data == DATA_DOUBLE ? 8 : data == DATA_FLOAT || data == DATA_INT32 ? 4 : 2;
  } else if (name == TENSOR_DIMENSIONS) {
    object->elements = 1;
    for (int64_t i = 0; i < count; i++) object->elements *= ((const int64_t *)values)[i];
  } else if (name == CONVOLUTION_X || name == CONVOLUTION_W) {
    const struct descriptor *tensor = *(struct descriptor *const *)values;
    *(name == CONVOLUTION_X ? &input_size : &weights_size) = tensor->elements * tensor->element_size;
  }
  return 0;
}
int cudnnBackendGetAttribute(void *object, int name, int type, int64_t wanted, int64_t *count, void *values) {
  if (count) *count = 1;
  if (!values || wanted <= 0) return 0;
  if (name == PLAN_WORKSPACE)
    *(int64_t *)values = input_size + weights_size;
  else if (type != BACKEND_DESCRIPTOR)
    *(int32_t *)values = 0;
  return 0;
}
