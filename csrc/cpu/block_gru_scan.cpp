#include "ops/block_gru_scan.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(block_gru_scan_kernel, BlockGruScan)
FASTWM_CPU_KERNEL(block_gru_scan_backward_kernel, BlockGruScanBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("block_gru_scan", TORCH_BOX(&block_gru_scan<block_gru_scan_kernel>));
  m.impl("block_gru_scan_backward", TORCH_BOX(&block_gru_scan_backward<block_gru_scan_backward_kernel>));
}
