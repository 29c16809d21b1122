// Memory for what the MLPs put out that rssm_imagine evaluates at every state.
#pragma once

#include "fastwm/rssm_imagine.h"
#include "ops/policy_heads.h"

namespace fastwm {

struct Readouts {
  std::vector<Readout> all;
  std::vector<Tensor> outs, pres;

  // save: for each net, whether its layers before their norms are kept.
  Readouts(const Host& host, const std::vector<MlpLayers>& nets, const std::vector<int64_t>& save, int64_t states,
           int64_t rows) {
    host.lengths("nets", {nets.size(), save.size()});
    STD_TORCH_CHECK(nets.size() <= kMaxReadouts, "fastwm: rssm_imagine: expected up to ", kMaxReadouts, " nets");
    const ScalarType dtype = host.like.scalar_type();
    for (size_t i = 0; i < nets.size(); ++i) {
      const MlpLayers& net = nets[i];
      STD_TORCH_CHECK(net.U >= 1, "fastwm: rssm_imagine: expected layers of width 1 or more");
      outs.push_back(host.empty(Shape(states, rows, net.O), dtype));
      pres.push_back(host.empty(Shape(save[i] ? 1 + net.L : 0, states * rows, net.U), dtype));
      all.push_back({net, outs[i].mutable_data_ptr(), save[i] ? pres[i].mutable_data_ptr() : nullptr});
    }
  }
};

}  // namespace fastwm
