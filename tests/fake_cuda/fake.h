/* What the libraries of the fake CUDA share: one trace of everything that would reach a GPU, and whether it is captured.
 *
 * FAKE_CUDA_TRACE names a file. It gets a line for each launch (with the kernel's name), library call, copy, allocation,
 * synchronisation, capture and graph. Lines of a capture end in "captured"; what a capture must not do ends in
 * "ILLEGAL IN CAPTURE". */
#include <stddef.h>

#define DEVICE_MEMORY (80ul << 30)

void fake_trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
int fake_capturing(void);
const char *fake_mark(int allowed_in_capture);
