// The parts of an action fit its noise, its width and the actor's outputs.
#pragma once

#include "fastwm/policy_head.h"
#include "host_check.h"

namespace fastwm {

// Where the actor does not choose there are no heads, no noise and no outputs.
inline void check_heads(const Host& host, const std::vector<PolicyHead>& heads, bool chosen, int64_t draws, int64_t A,
                        int64_t outputs) {
  int64_t drawn = 0, width = 0, wanted = 0;
  for (const PolicyHead& head : heads) {
    STD_TORCH_CHECK(0 < head.size && head.size <= A && 0 <= head.classes && head.classes <= A / head.size &&
                        (head.classes > 0) == (head.dist == PolicyDist::onehot),
                    "fastwm: ", host.op, ": heads that do not fit actions of ", A);
    drawn += head.size, width += width_of(head), wanted += outputs_of(head);
  }
  STD_TORCH_CHECK(drawn == draws && width == (chosen ? A : 0) && wanted == outputs, "fastwm: ", host.op,
                  ": expected noise of ", drawn, ", actions of ", width, " and an actor of ", wanted, " outputs, got ",
                  draws, ", ", A, " and ", outputs);
}

}  // namespace fastwm
