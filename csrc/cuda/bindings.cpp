#include "launch.h"
#include "ops/lambda_return.h"
#include "ops/laprop.h"
#include "ops/norm_act.h"
#include "ops/symlog.h"
#include "ops/two_hot.h"

namespace fastwm {

FASTWM_CUDA_KERNEL(lambda_return_kernel, LambdaReturn)
FASTWM_CUDA_KERNEL(lambda_return_backward_kernel, LambdaReturnBackward)
FASTWM_CUDA_KERNEL(laprop_kernel, LaProp)
FASTWM_CUDA_KERNEL(norm_act_kernel, NormAct)
FASTWM_CUDA_KERNEL(norm_act_backward_kernel, NormActBackward)
FASTWM_CUDA_KERNEL(symlog_kernel, Symlog)
FASTWM_CUDA_KERNEL(symexp_kernel, Symlog)
FASTWM_CUDA_KERNEL(symlog_backward_kernel, Symlog)
FASTWM_CUDA_KERNEL(symexp_backward_kernel, Symlog)
FASTWM_CUDA_KERNEL(two_hot_loss_kernel, TwoHotLoss)
FASTWM_CUDA_KERNEL(two_hot_loss_backward_kernel, TwoHotLossBackward)
FASTWM_CUDA_KERNEL(two_hot_mean_kernel, TwoHotMean)
FASTWM_CUDA_KERNEL(two_hot_mean_backward_kernel, TwoHotMeanBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CUDA, m) {
  using namespace fastwm;
  m.impl("lambda_return", TORCH_BOX(&lambda_return<lambda_return_kernel>));
  m.impl("lambda_return_backward", TORCH_BOX(&lambda_return_backward<lambda_return_backward_kernel>));
  m.impl("norm_act", TORCH_BOX(&norm_act<norm_act_kernel>));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward<norm_act_backward_kernel>));
  m.impl("two_hot_loss", TORCH_BOX(&two_hot_loss<two_hot_loss_kernel>));
  m.impl("two_hot_loss_backward", TORCH_BOX(&two_hot_loss_backward<two_hot_loss_backward_kernel>));
  m.impl("two_hot_mean", TORCH_BOX(&two_hot_mean<two_hot_mean_kernel>));
  m.impl("two_hot_mean_backward", TORCH_BOX(&two_hot_mean_backward<two_hot_mean_backward_kernel>));
  m.impl("laprop_step_", TORCH_BOX(&laprop_step_<laprop_kernel>));
  m.impl("symlog", TORCH_BOX(&elementwise<symlog_kernel>));
  m.impl("symexp", TORCH_BOX(&elementwise<symexp_kernel>));
  m.impl("symlog_backward", TORCH_BOX(&elementwise_backward<symlog_backward_kernel>));
  m.impl("symexp_backward", TORCH_BOX(&elementwise_backward<symexp_backward_kernel>));
}
