#include "ops/cells.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(gru_kernel, Cells)
FASTWM_CPU_KERNEL(gru_backward_kernel, Cells)
FASTWM_CPU_KERNEL(block_gru_kernel, Cells)
FASTWM_CPU_KERNEL(block_gru_backward_kernel, Cells)
FASTWM_CPU_KERNEL(planet_reset_kernel, Cells)
FASTWM_CPU_KERNEL(planet_reset_backward_kernel, Cells)
FASTWM_CPU_KERNEL(planet_update_kernel, Cells)
FASTWM_CPU_KERNEL(planet_update_backward_kernel, Cells)
FASTWM_CPU_KERNEL(lstm_kernel, Cells)
FASTWM_CPU_KERNEL(lstm_backward_kernel, Cells)
FASTWM_CPU_KERNEL(layernorm_gru_kernel, LayerNormGru)
FASTWM_CPU_KERNEL(layernorm_gru_backward_kernel, LayerNormGruBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
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
}
