// One thread a block of four numbers.
#include "common.cuh"

#include "fastwm/philox.h"

namespace fastwm::cuda {
namespace {

template <PhiloxKind kind>
__global__ void __launch_bounds__(kThreads) draw(PhiloxDraw p) {
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const int64_t per_stream = (p.count + 3) / 4;
  if (thread >= p.streams * per_stream) return;
  const int64_t stream = p.streams == 1 ? 0 : thread / per_stream, block = thread - stream * per_stream;
  const Philox words =
      philox_block(static_cast<uint64_t>(p.seed_offset[2 * stream]),
                   static_cast<uint64_t>(p.seed_offset[2 * stream + 1]), p.first + static_cast<uint64_t>(block));
  const Philox n = philox_numbers(words, kind);
  uint32_t* out = static_cast<uint32_t*>(p.out) + stream * p.count + 4 * block;
  if (p.count % 4 == 0) {
    *reinterpret_cast<uint4*>(out) = {n.x[0], n.x[1], n.x[2], n.x[3]};
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (4 * block + j < p.count) out[j] = n.x[j];
  }
}

}  // namespace

const char* philox_kernel(const PhiloxDraw& p, void* stream) {
  const int64_t threads = p.streams * ((p.count + 3) / 4);
  if (threads == 0) return nullptr;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (p.kind) {
    case PhiloxKind::bits: draw<PhiloxKind::bits><<<blocks_for(threads), kThreads, 0, on>>>(p); break;
    case PhiloxKind::uniform: draw<PhiloxKind::uniform><<<blocks_for(threads), kThreads, 0, on>>>(p); break;
    case PhiloxKind::normal: draw<PhiloxKind::normal><<<blocks_for(threads), kThreads, 0, on>>>(p); break;
  }
  return launch_error();
}

}  // namespace fastwm::cuda
