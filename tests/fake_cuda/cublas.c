/* cuBLAS: objects are empty, and what would compute is only traced. */
#include "fake.h"

#include <stdlib.h>

#define OBJECT(name) \
  int name(void **made) { return *made = calloc(1, 256), 0; }
#define WORK(name) \
  int name() { return fake_trace("call " #name "%s", fake_mark(1)), 0; }
#define NOTHING(name) \
  int name() { return 0; }

OBJECT(cublasCreate_v2)

WORK(cublasDgeam)
WORK(cublasDgemmBatched)
WORK(cublasDgemmStridedBatched)
WORK(cublasDgemm_v2)
WORK(cublasGemmBatchedEx)
WORK(cublasGemmEx)
WORK(cublasGemmStridedBatchedEx)
WORK(cublasSgeam)
WORK(cublasSgemmBatched)
WORK(cublasSgemmStridedBatched)
WORK(cublasSgemm_v2)

NOTHING(cublasDestroy_v2)
NOTHING(cublasDgetrfBatched)
NOTHING(cublasDgetriBatched)
NOTHING(cublasScopy_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSgetrfBatched)
NOTHING(cublasSgetriBatched)
NOTHING(cublasSscal_v2)

int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }
const char *cublasGetStatusName(int status) { return "error of the fake CUDA"; }
const char *cublasGetStatusString(int status) { return "error of the fake CUDA"; }
