#include "launch.h"
#include "ops/lambda_return.h"

namespace fastwm {

FASTWM_CUDA_KERNEL(lambda_return_kernel, LambdaReturn)
FASTWM_CUDA_KERNEL(lambda_return_backward_kernel, LambdaReturnBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CUDA, m) {
  using namespace fastwm;
  m.impl("lambda_return", TORCH_BOX(&lambda_return<lambda_return_kernel>));
  m.impl("lambda_return_backward", TORCH_BOX(&lambda_return_backward<lambda_return_backward_kernel>));
}
