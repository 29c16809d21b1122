// The actor inside a dream: what it does to a row between its products, and the derivatives.
#pragma once

#include "latent_rows.h"
#include "fastwm/policy_head.h"

namespace fastwm::FASTWM_ISA {
namespace {

// The encoded action from the outputs of all heads of `p` and their noise; unimix of the uniform is mixed into categoricals.
template <typename Params, typename T>
void policy_row(const Params& p, T unimix, const T* out, const T* noise, T* action) {
  for (int64_t i = 0; i < p.n_heads; ++i) {
    const PolicyHead& head = p.heads[i];
    for (int64_t k = 0; k < head.size; ++k) {
      if (head.dist == PolicyDist::onehot) {
        int64_t index;
        const int64_t at = k * head.classes;
        sample_row(1, head.classes, out + at, unimix, noise + k, action + at, &index);
      } else if (head.dist == PolicyDist::bounded_normal) {
        action[k] = bounded_normal(out[k], out[head.size + k], noise[k]);
      } else {
        action[k] = policy_real(head, out[k], out[head.size + k], noise[k]).action;
      }
    }
    out += outputs_of(head), noise += head.size, action += width_of(head);
  }
}

// From the action's gradient to that of the outputs. zeros and probs have room for a head's classes.
template <typename Params, typename T>
void policy_row_backward(const Params& p, const T* out, const T* noise, const T* d_action, const T* zeros, T* probs,
                         T* d_out) {
  for (int64_t i = 0; i < p.n_heads; ++i) {
    const PolicyHead& head = p.heads[i];
    for (int64_t k = 0; k < head.size; ++k) {
      if (head.dist == PolicyDist::onehot) {
        const int64_t at = k * head.classes;
        sample_row_backward(1, head.classes, out + at, T(0), d_action + at, zeros, probs, d_out + at);
      } else {
        const PolicyReal<T> x = policy_real(head, out[k], out[head.size + k], noise[k]);
        d_out[k] = d_action[k] * x.d_mean;
        d_out[head.size + k] = d_action[k] * x.d_std;
      }
    }
    out += outputs_of(head), d_out += outputs_of(head), noise += head.size, d_action += width_of(head);
  }
}

}  // namespace
}  // namespace fastwm::FASTWM_ISA
