#include "ops/lambda_return.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(lambda_return_kernel, LambdaReturn)
FASTWM_CPU_KERNEL(lambda_return_backward_kernel, LambdaReturnBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("lambda_return", TORCH_BOX(&lambda_return<lambda_return_kernel>));
  m.impl("lambda_return_backward", TORCH_BOX(&lambda_return_backward<lambda_return_backward_kernel>));
}
