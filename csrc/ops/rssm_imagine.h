// The MLPs of rssm_imagine, prior, actor and readouts, as a list of tensors, and the parts of the action.
#pragma once

#include "fastwm/rssm_imagine.h"
#include "host_check.h"

namespace fastwm {

// `mlps` holds the parameters of the prior and of all readouts, of which the actor is the first where no actions are
// given; `save` whether the layers of each readout are kept for its gradient.
class ImagineNets {
 public:
  ImagineNets(const Host& host, const std::vector<Tensor>& mlps, const std::vector<int64_t>& save, const Tensor& heads_,
              const RssmSizes& n, int64_t A, int64_t draws, double eps, bool given)
      : host_(host), eps_(eps) {
    STD_TORCH_CHECK(heads_.scalar_type() == ScalarType::Long && heads_.dim() == 2 && heads_.size(1) == 2 &&
                        heads_.is_cpu() && (!given || heads_.size(0) == 0),
                    "fastwm: rssm_imagine: expected heads int64 [heads, 2] on the CPU, none beside given actions");
    kept_.push_back(dense(heads_));
    heads = static_cast<const int64_t*>(kept_.back().const_data_ptr());
    n_heads = heads_.size(0);
    int64_t drawn = 0, width = given ? A : 0, outputs = 0;
    for (int64_t i = 0; i < n_heads; ++i) {
      const ActionHead head{heads[2 * i], heads[2 * i + 1]};
      STD_TORCH_CHECK(0 < head.count && head.count <= A && 0 <= head.classes && head.classes <= A / head.count,
                      "fastwm: rssm_imagine: heads that do not fit w_action");
      drawn += head.count, width += head.width(), outputs += head.outputs();
    }
    STD_TORCH_CHECK(drawn == draws && width == A, "fastwm: rssm_imagine: expected noise [T + 1, B, ", drawn,
                    "] and actions of ", width, ", got ", draws, " and ", A);
    STD_TORCH_CHECK(mlps.size() % (1 + save.size()) == 0 && mlps.size() / (1 + save.size()) == 8 &&
                        (given || !save.empty()) && save.size() <= kMaxReadouts,
                    "fastwm: rssm_imagine: expected the tensors of the prior, the actor and up to ", kMaxReadouts - 1,
                    " other readouts");
    const Tensor* next = mlps.data();
    prior = layers(next, n.D, 0);
    STD_TORCH_CHECK(prior.O == n.Z(), "fastwm: rssm_imagine: expected a prior of ", n.Z(), " outputs, got ", prior.O);
    for (const int64_t keep : save) {
      const MlpLayers net = layers(next, n.D, n.Z());
      read.push_back(host.empty(Shape(n.T + 1, n.B, net.O), host.like.scalar_type()));
      void* y = read.back().mutable_data_ptr();
      read.push_back(host.empty(Shape(keep ? net.count() : 0, (n.T + 1) * n.B, net.U()), host.like.scalar_type()));
      readouts.push_back({net, y, keep ? read.back().mutable_data_ptr() : nullptr});
    }
    STD_TORCH_CHECK(given || readouts[0].n.O == outputs, "fastwm: rssm_imagine: expected an actor of ", outputs,
                    " outputs");
  }

  MlpLayers prior{};
  std::vector<Readout> readouts;
  std::vector<Tensor> read;  // of each readout what it puts out, and its layers before their norms
  const int64_t* heads = nullptr;
  int64_t n_heads = 0;

 private:
  // The next MLP of DenseWeights, which reads D + Z numbers: w, b, norm, ws, bs, norms, w_out, b_out.
  MlpLayers layers(const Tensor*& next, int64_t D, int64_t Z) {
    const Tensor &w = *next++, &b = *next++, &norm = *next++, &ws = *next++, &bs = *next++, &norms = *next++;
    const Tensor &w_out = *next++, &b_out = *next++;
    host_.rank(w, "w [U, D + Z]", 2, 0);
    host_.rank(ws, "ws [L, U, U]", 3, 0);
    host_.rank(w_out, "w_out [O, U]", 2, 0);
    const int64_t U = w.size(0), L = ws.size(0), O = w_out.size(0);
    STD_TORCH_CHECK(U >= 1, "fastwm: rssm_imagine: expected layers of width 1 or more");
    const ScalarType dtype = host_.like.scalar_type();
    const DenseLayers first{host_.linear(w, "w [U, D + Z]", Shape(U, D + Z), dtype),
                            keep(b, "b [U]", Shape(U)),
                            keep(norm, "norm [1, U]", Shape(1, U)),
                            1,
                            D + Z,
                            U};
    const DenseLayers rest{host_.linear(ws, "ws [L, U, U]", Shape(L, U, U), dtype),
                           keep(bs, "bs [L, U]", Shape(L, U)),
                           keep(norms, "norms [L, 1, U]", Shape(L, 1, U)),
                           L,
                           U,
                           U};
    const Weight out = host_.linear(w_out, "w_out [O, U]", Shape(O, U), dtype);
    return {first, rest, out, keep(b_out, "b_out [O]", Shape(O)), D, Z, O, 1, Activation::silu, eps_};
  }

  const void* keep(const Tensor& x, const char* text, const Shape& shape) {
    return kept_.emplace_back(host_.dense(x, text, shape, host_.like.scalar_type())).const_data_ptr();
  }

  const Host& host_;
  const double eps_;
  std::vector<Tensor> kept_;
};

}  // namespace fastwm
