#include "launch.h"
#include "ops/categorical.h"
#include "ops/cells.h"
#include "ops/lambda_return.h"
#include "ops/laprop.h"
#include "ops/norm_act.h"
#include "ops/mdn.h"
#include "ops/mdn_rnn_imagine.h"
#include "ops/philox.h"
#include "ops/rssm_observe.h"
#include "ops/scans.h"
#include "ops/symlog.h"
#include "ops/two_hot.h"

namespace fastwm {

FASTWM_CUDA_KERNEL(lambda_return_kernel, LambdaReturn)
FASTWM_CUDA_KERNEL(lambda_return_backward_kernel, LambdaReturnBackward)
FASTWM_CUDA_KERNEL(laprop_kernel, LaProp)
FASTWM_CUDA_KERNEL(norm_act_kernel, NormAct)
FASTWM_CUDA_KERNEL(norm_act_backward_kernel, NormActBackward)
FASTWM_CUDA_KERNEL(straight_through_categorical_kernel, StraightThroughCategorical)
FASTWM_CUDA_KERNEL(straight_through_categorical_backward_kernel, StraightThroughCategoricalBackward)
FASTWM_CUDA_KERNEL(categorical_kl_kernel, CategoricalKl)
FASTWM_CUDA_KERNEL(categorical_kl_backward_kernel, CategoricalKlBackward)
FASTWM_CUDA_KERNEL(categorical_entropy_kernel, CategoricalEntropy)
FASTWM_CUDA_KERNEL(categorical_entropy_backward_kernel, CategoricalEntropyBackward)
FASTWM_CUDA_KERNEL(mdn_sample_kernel, MdnSample)
FASTWM_CUDA_KERNEL(mdn_nll_kernel, MdnNll)
FASTWM_CUDA_KERNEL(mdn_nll_backward_kernel, MdnNllBackward)
FASTWM_CUDA_KERNEL(mdn_rnn_imagine_kernel, MdnRnnImagine)
FASTWM_CUDA_KERNEL(philox_kernel, PhiloxDraw)

FASTWM_CUDA_KERNEL(gru_kernel, Cells)
FASTWM_CUDA_KERNEL(gru_backward_kernel, Cells)
FASTWM_CUDA_KERNEL(block_gru_kernel, Cells)
FASTWM_CUDA_KERNEL(block_gru_backward_kernel, Cells)
FASTWM_CUDA_KERNEL(planet_reset_kernel, Cells)
FASTWM_CUDA_KERNEL(planet_reset_backward_kernel, Cells)
FASTWM_CUDA_KERNEL(planet_update_kernel, Cells)
FASTWM_CUDA_KERNEL(planet_update_backward_kernel, Cells)
FASTWM_CUDA_KERNEL(lstm_kernel, Cells)
FASTWM_CUDA_KERNEL(lstm_backward_kernel, Cells)
FASTWM_CUDA_KERNEL(layernorm_gru_kernel, LayerNormGru)
FASTWM_CUDA_KERNEL(layernorm_gru_backward_kernel, LayerNormGruBackward)
FASTWM_CUDA_KERNEL(symlog_kernel, Symlog)
FASTWM_CUDA_KERNEL(symexp_kernel, Symlog)
FASTWM_CUDA_KERNEL(symlog_backward_kernel, Symlog)
FASTWM_CUDA_KERNEL(symexp_backward_kernel, Symlog)
FASTWM_CUDA_KERNEL(two_hot_loss_kernel, TwoHotLoss)
FASTWM_CUDA_KERNEL(two_hot_loss_backward_kernel, TwoHotLossBackward)
FASTWM_CUDA_KERNEL(two_hot_mean_kernel, TwoHotMean)
FASTWM_CUDA_KERNEL(two_hot_mean_backward_kernel, TwoHotMeanBackward)
FASTWM_CUDA_KERNEL(rssm_observe_kernel, RssmObserve)
FASTWM_CUDA_KERNEL(rssm_observe_backward_kernel, RssmObserveBackward)
FASTWM_CUDA_KERNEL(scan_kernel, Scan)
FASTWM_CUDA_KERNEL(scan_backward_kernel, ScanBackward)
namespace cuda {
int64_t scan_scratch(const Scan&);
int64_t scan_backward_scratch(const ScanBackward&);
int64_t rssm_observe_scratch(const RssmObserve&);
int64_t rssm_observe_backward_scratch(const RssmObserveBackward&);
}  // namespace cuda

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CUDA, m) {
  using namespace fastwm;
  m.impl("lambda_return", TORCH_BOX(&lambda_return<lambda_return_kernel>));
  m.impl("lambda_return_backward", TORCH_BOX(&lambda_return_backward<lambda_return_backward_kernel>));
  m.impl("norm_act", TORCH_BOX(&norm_act<norm_act_kernel>));
  m.impl("norm_act_backward", TORCH_BOX(&norm_act_backward<norm_act_backward_kernel>));
  m.impl("straight_through_categorical",
         TORCH_BOX(&straight_through_categorical<straight_through_categorical_kernel>));
  m.impl("straight_through_categorical_backward",
         TORCH_BOX(&straight_through_categorical_backward<straight_through_categorical_backward_kernel>));
  m.impl("categorical_kl", TORCH_BOX(&categorical_kl<categorical_kl_kernel>));
  m.impl("categorical_kl_backward", TORCH_BOX(&categorical_kl_backward<categorical_kl_backward_kernel>));
  m.impl("categorical_entropy", TORCH_BOX(&categorical_entropy<categorical_entropy_kernel>));
  m.impl("categorical_entropy_backward",
         TORCH_BOX(&categorical_entropy_backward<categorical_entropy_backward_kernel>));
  m.impl("mdn_sample", TORCH_BOX(&mdn_sample<mdn_sample_kernel>));
  m.impl("mdn_nll", TORCH_BOX(&mdn_nll<mdn_nll_kernel>));
  m.impl("mdn_nll_backward", TORCH_BOX(&mdn_nll_backward<mdn_nll_backward_kernel>));
  m.impl("mdn_rnn_imagine", TORCH_BOX(&mdn_rnn_imagine<mdn_rnn_imagine_kernel>));
  m.impl("philox_bits", TORCH_BOX((&philox<philox_kernel, PhiloxKind::bits>)));
  m.impl("philox_uniform", TORCH_BOX((&philox<philox_kernel, PhiloxKind::uniform>)));
  m.impl("philox_normal", TORCH_BOX((&philox<philox_kernel, PhiloxKind::normal>)));
  m.impl("gru_gates", TORCH_BOX(&gru_gates<gru_kernel>));
  m.impl("gru_gates_backward", TORCH_BOX(&gru_gates_backward<gru_backward_kernel>));
  m.impl("block_gru_gates", TORCH_BOX(&block_gru_gates<block_gru_kernel>));
  m.impl("block_gru_gates_backward", TORCH_BOX(&block_gru_gates_backward<block_gru_backward_kernel>));
  m.impl("planet_gru_reset", TORCH_BOX(&planet_gru_reset<planet_reset_kernel>));
  m.impl("planet_gru_reset_backward", TORCH_BOX(&planet_gru_reset_backward<planet_reset_backward_kernel>));
  m.impl("planet_gru_update", TORCH_BOX(&planet_gru_update<planet_update_kernel>));
  m.impl("planet_gru_update_backward", TORCH_BOX(&planet_gru_update_backward<planet_update_backward_kernel>));
  m.impl("lstm_gates", TORCH_BOX(&lstm_gates<lstm_kernel>));
  m.impl("lstm_gates_backward", TORCH_BOX(&lstm_gates_backward<lstm_backward_kernel>));
  m.impl("layernorm_gru_gates", TORCH_BOX(&layernorm_gru_gates<layernorm_gru_kernel>));
  m.impl("layernorm_gru_gates_backward",
         TORCH_BOX(&layernorm_gru_gates_backward<layernorm_gru_backward_kernel>));
  m.impl("two_hot_loss", TORCH_BOX(&two_hot_loss<two_hot_loss_kernel>));
  m.impl("two_hot_loss_backward", TORCH_BOX(&two_hot_loss_backward<two_hot_loss_backward_kernel>));
  m.impl("two_hot_mean", TORCH_BOX(&two_hot_mean<two_hot_mean_kernel>));
  m.impl("two_hot_mean_backward", TORCH_BOX(&two_hot_mean_backward<two_hot_mean_backward_kernel>));
  m.impl("laprop_step_", TORCH_BOX(&laprop_step_<laprop_kernel>));
  m.impl("rssm_observe", TORCH_BOX((&rssm_observe<rssm_observe_kernel, true, cuda::rssm_observe_scratch>)));
  m.impl("rssm_observe_backward",
         TORCH_BOX((&rssm_observe_backward<rssm_observe_backward_kernel, true, cuda::rssm_observe_backward_scratch>)));
  m.impl("cell_scan", TORCH_BOX((&cell_scan<scan_kernel, cuda::scan_scratch>)));
  m.impl("cell_scan_backward", TORCH_BOX((&cell_scan_backward<scan_backward_kernel, cuda::scan_backward_scratch>)));
  m.impl("symlog", TORCH_BOX(&elementwise<symlog_kernel>));
  m.impl("symexp", TORCH_BOX(&elementwise<symexp_kernel>));
  m.impl("symlog_backward", TORCH_BOX(&elementwise_backward<symlog_backward_kernel>));
  m.impl("symexp_backward", TORCH_BOX(&elementwise_backward<symexp_backward_kernel>));
}
