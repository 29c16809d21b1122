#include "launch.h"
#include "ops/lambda_return.h"
#include "ops/mdn.h"
#include "ops/philox.h"

namespace fastwm {

FASTWM_CUDA_KERNEL(lambda_return_kernel, LambdaReturn)
FASTWM_CUDA_KERNEL(lambda_return_backward_kernel, LambdaReturnBackward)
FASTWM_CUDA_KERNEL(mdn_sample_kernel, MdnSample)
FASTWM_CUDA_KERNEL(mdn_nll_kernel, MdnNll)
FASTWM_CUDA_KERNEL(mdn_nll_backward_kernel, MdnNllBackward)
FASTWM_CUDA_KERNEL(philox_kernel, PhiloxDraw)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CUDA, m) {
  using namespace fastwm;
  m.impl("lambda_return", TORCH_BOX(&lambda_return<lambda_return_kernel>));
  m.impl("lambda_return_backward", TORCH_BOX(&lambda_return_backward<lambda_return_backward_kernel>));
  m.impl("mdn_sample", TORCH_BOX(&mdn_sample<mdn_sample_kernel>));
  m.impl("mdn_nll", TORCH_BOX(&mdn_nll<mdn_nll_kernel>));
  m.impl("mdn_nll_backward", TORCH_BOX(&mdn_nll_backward<mdn_nll_backward_kernel>));
  m.impl("philox_bits", TORCH_BOX((&philox<philox_kernel, PhiloxKind::bits>)));
  m.impl("philox_uniform", TORCH_BOX((&philox<philox_kernel, PhiloxKind::uniform>)));
  m.impl("philox_normal", TORCH_BOX((&philox<philox_kernel, PhiloxKind::normal>)));
}
