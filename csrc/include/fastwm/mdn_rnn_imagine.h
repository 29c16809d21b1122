// Parameters of World Models' dreams: LSTM, mixture and linear controllers. N dreams, P controllers of A actions and
// F features, Z latents, H units, K components, I inputs of the LSTM. Everything but the weights is contiguous.
#pragma once

#include "fastwm/rssm_observe.h"

namespace fastwm {

struct MdnRnnImagine {
  Dtype dtype;
  bool bf16;  // products in bfloat16, where the CPU has them
  int64_t N, P, A, F, Z, H, K, I, steps;
  const void* z0;                             // [N, Z]
  const void *controllers, *controller_bias;  // [P, A, F], [P, A] or null
  Weight ih, hh;                              // [I, 4H] [H, 4H]
  const void* bias;                           // [4H]
  Weight out;                                 // [H, extra + 3 Z K]
  const void* out_bias;
  const int64_t* seed_offset;   // [N, 2]
  int64_t extra, done, reward;  // outputs before the mixtures, and which they are, or -1
  double temperature, forget_bias;
  bool car, ijfo;
  int64_t* lengths;  // [N]
  void* returns;     // [N]
  void *z, *action;  // [steps, N, Z] [steps, N, A], zeros; or null
  bool* ended;       // [steps, N], likewise
};

}  // namespace fastwm
