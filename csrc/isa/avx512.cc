// The kernels compiled for AVX-512 with VNNI.
#include "../simd/avx512.h"
// The kernels are written in the vector types of the header above.
#include "../kernels/all.h"

namespace qwenstack {

const KernelTable kAvx512Kernels = kernel_table("avx512");

}  // namespace qwenstack
