// Parameters of the whole sequence of a recurrent cell. T steps, B rows, D the carry's width. Every array is contiguous
// but the weight, which has strides. csrc/cpu/scan_cells.h says what a gate is and what is saved of it.
#pragma once

#include "fastwm/params/types.h"
#include "fastwm/rssm_observe.h"

namespace fastwm {

// Products with the carry a step, each [D, D].
FASTWM_HD constexpr int64_t scan_gates(ScanCell cell) { return cell == ScanCell::lstm ? 4 : 3; }
// Numbers saved for each of the carry's.
FASTWM_HD constexpr int64_t scan_saved(ScanCell cell) {
  return cell == ScanCell::gru || cell == ScanCell::lstm ? 4 : 3;
}

struct ScanSizes {
  int64_t T, B, D;
};

struct ScanWeights {
  Weight gates;              // [gates, D, D], as a product h W reads it
  const void *scale, *bias;  // a norm's scale and shift [3D], or a GRU's bias within the reset gate [D], or null
  double eps, gate_bias;     // of the norm; added to the update gate, or to an LSTM's forget gate
  bool ijfo;                 // an LSTM's gates in TensorFlow's order
};

}  // namespace fastwm
