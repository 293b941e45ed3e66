// The kernels compiled for AVX2, FMA and F16C.
#include "../simd/avx2.h"
// The kernels are written in the vector types of the header above.
#include "../kernels/all.h"

namespace qwenstack {

const KernelTable kAvx2Kernels = kernel_table("avx2");

}  // namespace qwenstack
