// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), for C++ and CUDA.
#pragma once

#include "fastwm/dtype.h"

namespace fastwm {

struct Philox {
  uint32_t x[4];
};

// Ten rounds of the counter under the key: four independent 32-bit words.
FASTWM_FN Philox philox4x32(Philox counter, uint32_t key0, uint32_t key1) {
  Philox c = counter;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * c.x[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * c.x[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.x[1] ^ key0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.x[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

}  // namespace fastwm
