/* cuDNN: objects are empty, and what would compute is only traced. */
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
NOTHING(cudnnBackendSetAttribute)
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

/* The graph interface asks for the results of heuristics, and what an engine needs: there is one, which needs nothing. */
enum { BACKEND_DESCRIPTOR = 15 };
int cudnnBackendCreateDescriptor(int kind, void **made) { return *made = calloc(1, 256), 0; }
int cudnnBackendGetAttribute(void *object, int name, int type, int64_t wanted, int64_t *count, void *values) {
  if (count) *count = 1;
  if (values && wanted > 0 && type != BACKEND_DESCRIPTOR) *(int32_t *)values = 0;
  return 0;
}
