// The kernels compiled for any processor; the specification.
#include "../simd/scalar.h"
// The kernels are written in the vector types of the header above.
#include "../kernels/all.h"

namespace qwenstack {

const KernelTable kScalarKernels = kernel_table("scalar");

}  // namespace qwenstack
