// Parameters of the whole sequence of a recurrent cell. T steps, B rows, D the carry's width. Every array is contiguous
// but the weight, which has strides. csrc/cpu/scan_cells.h says what a gate is and what is saved of it.
#pragma once

#include "fastwm/params/enums.h"
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

struct Scan {
  ScanCell cell;
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the hardware has them
  ScanSizes n;
  ScanWeights w;
  const bool* is_first;         // [T, B], or null
  const void *input, *h0, *c0;  // [T, B, gates * D] [B, D] [B, D]; c0 null where the cell has none
  void *output, *h_T, *c_T;     // [T, B, D] [B, D] [B, D]
  void *cells, *saved;          // [T, B, D] [T, B, saved * D], or null where no gradient is wanted
  void* scratch;                // as many bytes as the backend asks for
};

struct ScanBackward {
  ScanCell cell;
  Dtype dtype;
  bool bf16;
  ScanSizes n;
  ScanWeights w;
  const bool* is_first;
  const void *h0, *c0, *output, *cells, *saved;
  const void *g_output, *g_h, *g_c;   // [T, B, D] [B, D] [B, D], each null where it is zero
  void *d_input, *d_h, *d_c;          // [T, B, gates * D] [B, D] [B, D]
  void *d_weight, *d_scale, *d_bias;  // [gates * D, D], and like scale and bias
  void* scratch;
};

}  // namespace fastwm
