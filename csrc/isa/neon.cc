// The kernels compiled for AArch64's NEON with the dot product instructions of Armv8.2.
#include "../simd/neon.h"
// The kernels are written in the vector types of the header above.
#include "../kernels/all.h"

namespace qwenstack {

const KernelTable kNeonKernels = kernel_table("neon");

}  // namespace qwenstack
