// The actor of gru_rssm_imagine: lists of its layers and heads, and all parameters in one array (see ActorLayer).
#pragma once

#include "fastwm/gru_rssm_imagine.h"
#include "host_check.h"

namespace fastwm {

// The actor's parameters, all in one array (see ActorLayer), and what its lists say of its layers and heads.
class ActorArgs {
 public:
  // layers: width and whether it has a norm, for each, the outputs last; heads: distribution, size and classes;
  // scales: min_std and shift of each head. Where all are empty there is no actor: the actions are given.
  ActorArgs(const Tensor& params, const std::vector<int64_t>& layers, const std::vector<int64_t>& heads,
            const std::vector<double>& scales, int64_t Z, int64_t D, int64_t draws, int64_t A, bool given) {
    const int64_t count = layers.size() / 2, n_heads = heads.size() / 3;
    if (given) {
      STD_TORCH_CHECK(count == 0 && n_heads == 0 && params.numel() == 0 && draws == 0,
                      "fastwm: gru_rssm_imagine: expected an actor, or given actions");
      net.width = A;
      return;
    }
    STD_TORCH_CHECK(count > 0 && count <= kMaxActorLayers && layers.size() % 2 == 0 && n_heads > 0 &&
                        heads.size() % 3 == 0 && scales.size() == 2 * heads.size() / 3,
                    "fastwm: gru_rssm_imagine: expected 1 to ", kMaxActorLayers, " layers, and heads");
    ActorNet& a = net;
    a.count = count, a.n_heads = n_heads;
    const int64_t most = params.numel();  // what each layer's parameters may number, so nothing overflows
    STD_TORCH_CHECK(layers[0] <= most / Z, "fastwm: gru_rssm_imagine: layers that do not fit the actor's parameters");
    int64_t at = Z * layers[0], inputs = D;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t width = layers[2 * i];
      STD_TORCH_CHECK(0 < width && width <= most / inputs,
                      "fastwm: gru_rssm_imagine: layers that do not fit the actor's parameters");
      layers_[i] = {inputs, width, layers[2 * i + 1] != 0, at, a.pre};
      inputs = width, at = layers_[i].end(), a.pre += width;
      a.widest = width > a.widest ? width : a.widest;
    }
    int64_t outputs = 0;
    const int64_t last = layers_[count - 1].N;
    for (int64_t i = 0; i < n_heads; ++i) {
      const PolicyHead head{static_cast<PolicyDist>(heads[3 * i]), heads[3 * i + 1], heads[3 * i + 2], scales[2 * i],
                            scales[2 * i + 1]};
      STD_TORCH_CHECK(0 <= heads[3 * i] && heads[3 * i] <= 2 && head.size > 0 &&
                          (head.classes > 0) == (head.dist == PolicyDist::onehot) && head.classes >= 0 &&
                          head.size <= last && head.classes <= last / head.size,
                      "fastwm: gru_rssm_imagine: no such head");
      heads_.push_back(head);
      outputs += head.outputs(), a.draws += head.size, a.width += head.width();
    }
    STD_TORCH_CHECK(outputs == last, "fastwm: gru_rssm_imagine: outputs that do not fit the heads");
    STD_TORCH_CHECK(at == most && a.draws == draws && a.width == A, "fastwm: gru_rssm_imagine: expected actor [", at,
                    "], action_noise [T, B, ", a.draws, "] and actions of ", a.width);
    a.size = at;
    a.params = params.const_data_ptr();
    a.layers = layers_;
    a.heads = heads_.data();
  }
  ActorArgs(const ActorArgs&) = delete;

  ActorNet net{};

 private:
  ActorLayer layers_[kMaxActorLayers];
  std::vector<PolicyHead> heads_;
};

}  // namespace fastwm
