#include "fastwm/vecmath_check.h"

namespace fastwm {

FASTWM_CPU_KERNEL(vecmath_kernel, VecmathCheck)

void vecmath_check(const VecmathCheck& p) { vecmath_kernel(p, -1); }

}  // namespace fastwm
