#include "ops/scans.h"

#include "fastwm/isa.h"

namespace fastwm {

FASTWM_CPU_KERNEL(scan_kernel, Scan)
FASTWM_CPU_KERNEL(scan_backward_kernel, ScanBackward)

}  // namespace fastwm

STABLE_TORCH_LIBRARY_IMPL(fastwm, CPU, m) {
  using namespace fastwm;
  m.impl("cell_scan", TORCH_BOX(&cell_scan<scan_kernel>));
  m.impl("cell_scan_backward", TORCH_BOX(&cell_scan_backward<scan_backward_kernel>));
}
