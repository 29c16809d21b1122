#include "ops/categorical.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(straight_through_categorical_kernel, StraightThroughCategorical)
FASTWM_CPU_KERNEL(straight_through_categorical_backward_kernel, StraightThroughCategoricalBackward)
FASTWM_CPU_KERNEL(categorical_kl_kernel, CategoricalKl)
FASTWM_CPU_KERNEL(categorical_kl_backward_kernel, CategoricalKlBackward)
FASTWM_CPU_KERNEL(categorical_entropy_kernel, CategoricalEntropy)
FASTWM_CPU_KERNEL(categorical_entropy_backward_kernel, CategoricalEntropyBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("straight_through_categorical",
         TORCH_BOX(&straight_through_categorical<straight_through_categorical_kernel>));
  m.impl("straight_through_categorical_backward",
         TORCH_BOX(&straight_through_categorical_backward<straight_through_categorical_backward_kernel>));
  m.impl("categorical_kl", TORCH_BOX(&categorical_kl<categorical_kl_kernel>));
  m.impl("categorical_kl_backward", TORCH_BOX(&categorical_kl_backward<categorical_kl_backward_kernel>));
  m.impl("categorical_entropy", TORCH_BOX(&categorical_entropy<categorical_entropy_kernel>));
  m.impl("categorical_entropy_backward",
         TORCH_BOX(&categorical_entropy_backward<categorical_entropy_backward_kernel>));
}
