#include "ops/gru_rssm_imagine.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(gru_rssm_imagine_kernel, GruRssmImagine)
FASTWM_CPU_KERNEL(gru_rssm_imagine_backward_kernel, GruRssmImagineBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("gru_rssm_imagine", TORCH_BOX(&gru_rssm_imagine<gru_rssm_imagine_kernel>));
  m.impl("gru_rssm_imagine_backward", TORCH_BOX(&gru_rssm_imagine_backward<gru_rssm_imagine_backward_kernel>));
}
