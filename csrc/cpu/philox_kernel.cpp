#include "fastwm/philox.h"

#include "fastwm/parallel.h"

namespace fastwm::FASTWM_ISA {
namespace {

// Blocks at a time, of however many streams: a lane a block.
constexpr int64_t kTile = 64;

// A function of its own, as GCC else breaks up the loop of `normal` before it comes to vectorise it.
template <PhiloxKind kind>
__attribute__((noinline)) void draw_tile(const uint64_t* seed, const uint64_t* offset, const uint64_t* block,
                                         uint32_t* numbers) {
#pragma omp simd
  for (int64_t i = 0; i < kTile; ++i) {
    const Philox n = philox_numbers(philox_block(seed[i], offset[i], block[i]), kind);
    numbers[4 * i] = n.x[0];
    numbers[4 * i + 1] = n.x[1];
    numbers[4 * i + 2] = n.x[2];
    numbers[4 * i + 3] = n.x[3];
  }
}

template <PhiloxKind kind>
void draw(const PhiloxDraw& p) {
  const int64_t per_stream = (p.count + 3) / 4, blocks = p.streams * per_stream;
  const int64_t tiles = (blocks + kTile - 1) / kTile;
#pragma omp parallel for schedule(static) if (tiles > 1 && 4 * blocks > kParallelElements)
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = t * kTile, width = begin + kTile < blocks ? kTile : blocks - begin;
    uint64_t seed[kTile] = {}, offset[kTile] = {}, block[kTile] = {};
    uint32_t numbers[4 * kTile];
    int64_t stream = begin / per_stream, b = begin - stream * per_stream;
    for (int64_t i = 0; i < width; ++i) {
      seed[i] = static_cast<uint64_t>(p.seed_offset[2 * stream]);
      offset[i] = static_cast<uint64_t>(p.seed_offset[2 * stream + 1]);
      block[i] = p.first + static_cast<uint64_t>(b);
      if (++b == per_stream) ++stream, b = 0;
    }
    draw_tile<kind>(seed, offset, block, numbers);
    uint32_t* all = static_cast<uint32_t*>(p.out);
    if (p.count % 4 == 0) {  // no block is cut, so the streams' numbers are end to end
      for (int64_t i = 0; i < 4 * width; ++i) all[4 * begin + i] = numbers[i];
      continue;
    }
    stream = begin / per_stream, b = begin - stream * per_stream;
    for (int64_t i = 0; i < width; ++i) {
      const int64_t left = p.count - 4 * b;
      uint32_t* out = all + stream * p.count + 4 * b;
      for (int64_t j = 0; j < 4 && j < left; ++j) out[j] = numbers[4 * i + j];
      if (++b == per_stream) ++stream, b = 0;
    }
  }
}

}  // namespace

void philox_kernel(const PhiloxDraw& p) {
  switch (p.kind) {
    case PhiloxKind::bits: return draw<PhiloxKind::bits>(p);
    case PhiloxKind::uniform: return draw<PhiloxKind::uniform>(p);
    case PhiloxKind::normal: return draw<PhiloxKind::normal>(p);
  }
}

}  // namespace fastwm::FASTWM_ISA
