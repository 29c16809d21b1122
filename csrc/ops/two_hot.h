// The two-hot categorical: the host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include "fastwm/two_hot.h"
#include "tensor.h"

namespace fastwm {

// logits [..., K] and what belongs to them, checked.
struct TwoHotInputs {
  Tensor logits, edges;
  ScalarType wide;
  std::vector<int64_t> batch;  // the sizes of logits without the last
  int64_t rows = 1, bins;

  TwoHotInputs(const Tensor& logits_, const Tensor& edges_)
      : logits(dense(logits_)), wide(accumulate_type(logits_)), bins(logits_.dim() > 0 ? logits_.size(-1) : 0) {
    STD_TORCH_CHECK(bins % 2 == 1, "fastwm: expected logits [..., K] with an odd K");
    edges = dense_as(edges_, {&bins, 1}, wide, logits, "bins");
    for (int64_t d = 0; d + 1 < logits.dim(); ++d) batch.push_back(logits.size(d)), rows *= logits.size(d);
  }

  Tensor row_values(const Tensor& x, const char* name) const { return dense_as(x, batch, wide, logits, name); }
  std::optional<Tensor> row_values(const std::optional<Tensor>& x, const char* name) const {
    if (!x) return std::nullopt;
    return row_values(*x, name);
  }
  Tensor new_row_values() const { return empty_dense(logits, batch, wide); }
};

template <auto kernel>
std::tuple<Tensor, Tensor> two_hot_loss(const Tensor& logits, const Tensor& target_, const Tensor& bins,
                                        const std::optional<Tensor>& second_, double second_weight) {
  const TwoHotInputs in(logits, bins);
  const Tensor target = in.row_values(target_, "target");
  const std::optional<Tensor> second = in.row_values(second_, "second_target");
  Tensor loss = in.new_row_values(), logsumexp = in.new_row_values();
  const TwoHotLoss p{dtype_of(in.logits),
                     in.rows,
                     in.bins,
                     in.logits.const_data_ptr(),
                     in.edges.const_data_ptr(),
                     {target.const_data_ptr(), data_or_null(second)},
                     {1.0, second_weight},
                     loss.mutable_data_ptr(),
                     logsumexp.mutable_data_ptr()};
  kernel(p, in.logits.get_device_index());
  return {loss, logsumexp};
}

template <auto kernel>
Tensor two_hot_loss_backward(const Tensor& grad_, const Tensor& logits, const Tensor& target_, const Tensor& bins,
                             const std::optional<Tensor>& second_, double second_weight, const Tensor& logsumexp_) {
  const TwoHotInputs in(logits, bins);
  const Tensor target = in.row_values(target_, "target");
  const std::optional<Tensor> second = in.row_values(second_, "second_target");
  const Tensor grad = in.row_values(grad_, "grad"), logsumexp = in.row_values(logsumexp_, "logsumexp");
  Tensor d_logits = empty_dense(in.logits);
  const TwoHotLossBackward p{dtype_of(in.logits),
                             in.rows,
                             in.bins,
                             in.logits.const_data_ptr(),
                             in.edges.const_data_ptr(),
                             {target.const_data_ptr(), data_or_null(second)},
                             {1.0, second_weight},
                             grad.const_data_ptr(),
                             logsumexp.const_data_ptr(),
                             d_logits.mutable_data_ptr()};
  kernel(p, in.logits.get_device_index());
  return d_logits;
}

template <auto kernel>
std::tuple<Tensor, Tensor> two_hot_mean(const Tensor& logits, const Tensor& bins) {
  const TwoHotInputs in(logits, bins);
  Tensor mean = in.new_row_values(), logsumexp = in.new_row_values();
  const TwoHotMean p{dtype_of(in.logits),
                     in.rows,
                     in.bins,
                     in.logits.const_data_ptr(),
                     in.edges.const_data_ptr(),
                     mean.mutable_data_ptr(),
                     logsumexp.mutable_data_ptr()};
  kernel(p, in.logits.get_device_index());
  return {mean, logsumexp};
}

template <auto kernel>
Tensor two_hot_mean_backward(const Tensor& grad_, const Tensor& logits, const Tensor& bins, const Tensor& mean_,
                             const Tensor& logsumexp_) {
  const TwoHotInputs in(logits, bins);
  const Tensor grad = in.row_values(grad_, "grad"), mean = in.row_values(mean_, "mean");
  const Tensor logsumexp = in.row_values(logsumexp_, "logsumexp");
  Tensor d_logits = empty_dense(in.logits);
  const TwoHotMeanBackward p{dtype_of(in.logits),
                             in.rows,
                             in.bins,
                             in.logits.const_data_ptr(),
                             in.edges.const_data_ptr(),
                             grad.const_data_ptr(),
                             mean.const_data_ptr(),
                             logsumexp.const_data_ptr(),
                             d_logits.mutable_data_ptr()};
  kernel(p, in.logits.get_device_index());
  return d_logits;
}

}  // namespace fastwm
