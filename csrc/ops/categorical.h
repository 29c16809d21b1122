// The categorical family's host side, written once: kernel(params, device) is a CPU kernel or a CUDA launch.
#pragma once

#include "fastwm/categorical.h"
#include "tensor.h"

namespace fastwm {

// Uninitialised, contiguous, of the first `dims` sizes of `like`.
inline Tensor empty_leading(const Tensor& like, int64_t dims, ScalarType dtype) {
  return empty_dense(like, like.sizes().slice(0, dims), dtype);
}

// x, contiguous, once it is known to have the first `dims` sizes of `like` and the dtype that kernels compute in.
inline Tensor dense_leading(const Tensor& x, const Tensor& like, int64_t dims, const char* name) {
  const ScalarType computed = accumulate_type(like);
  bool same = x.dim() == dims && x.scalar_type() == computed && x.device() == like.device();
  for (int64_t d = 0; same && d < dims; ++d) same = x.size(d) == like.size(d);
  STD_TORCH_CHECK(same, "fastwm: ", name, " does not fit the logits");
  return dense(x);
}

inline std::optional<Tensor> dense_leading(const std::optional<Tensor>& x, const Tensor& like, int64_t dims,
                                           const char* name) {
  if (!x) return std::nullopt;
  return dense_leading(*x, like, dims, name);
}

constexpr int64_t kMostClasses = 4096;

inline void check_logits(const Tensor& logits, int64_t dims) {
  const int64_t classes = logits.dim() < dims ? 0 : logits.size(logits.dim() - 1);
  STD_TORCH_CHECK(classes > 0 && classes <= kMostClasses, "fastwm: expected logits of 1 to 4096 classes");
  STD_TORCH_CHECK(dims < 2 || logits.size(logits.dim() - 2) > 0, "fastwm: expected at least one categorical");
}

template <auto kernel>
std::tuple<Tensor, Tensor, Tensor> straight_through_categorical(const Tensor& logits_, const Tensor& uniform_,
                                                                double unimix, bool gumbel) {
  check_logits(logits_, 1);
  const Tensor logits = dense(logits_);
  const int64_t dims = logits.dim(), classes = logits.size(dims - 1);
  const Tensor uniform = dense_leading(uniform_, logits, gumbel ? dims : dims - 1, "uniform");
  Tensor sample = empty_leading(logits, dims, accumulate_type(logits));
  Tensor index = empty_leading(logits, dims - 1, ScalarType::Long);
  Tensor log_prob = empty_leading(logits, dims, accumulate_type(logits));
  const StraightThroughCategorical p{dtype_of(logits),
                                     logits.numel() / classes,
                                     classes,
                                     logits.const_data_ptr(),
                                     uniform.const_data_ptr(),
                                     unimix,
                                     gumbel,
                                     sample.mutable_data_ptr(),
                                     static_cast<int64_t*>(index.mutable_data_ptr()),
                                     log_prob.mutable_data_ptr()};
  kernel(p, logits.get_device_index());
  return {sample, index, log_prob};
}

template <auto kernel>
Tensor straight_through_categorical_backward(const std::optional<Tensor>& d_sample_,
                                             const std::optional<Tensor>& d_log_prob_, const Tensor& logits_,
                                             const std::optional<Tensor>& uniform_, double unimix) {
  check_logits(logits_, 1);
  const Tensor logits = dense(logits_);
  const int64_t dims = logits.dim(), classes = logits.size(dims - 1);
  const std::optional<Tensor> d_sample = dense_leading(d_sample_, logits, dims, "d_sample");
  const std::optional<Tensor> d_log_prob = dense_leading(d_log_prob_, logits, dims, "d_log_prob");
  const std::optional<Tensor> uniform = dense_leading(uniform_, logits, dims, "uniform");
  Tensor d_logits = empty_dense(logits);
  const StraightThroughCategoricalBackward p{dtype_of(logits),
                                             logits.numel() / classes,
                                             classes,
                                             data_or_null(d_sample),
                                             data_or_null(d_log_prob),
                                             logits.const_data_ptr(),
                                             data_or_null(uniform),
                                             unimix,
                                             d_logits.mutable_data_ptr()};
  kernel(p, logits.get_device_index());
  return d_logits;
}

template <auto kernel>
std::tuple<Tensor, Tensor> categorical_kl(const Tensor& post_, const Tensor& prior_, double unimix,
                                          double free_nats) {
  check_logits(post_, 2);
  const Tensor post = dense(post_);
  const Tensor prior = dense_like(prior_, post, "prior_logits");
  const int64_t dims = post.dim(), classes = post.size(dims - 1), groups = post.size(dims - 2);
  Tensor dyn = empty_leading(post, dims - 2, accumulate_type(post));
  Tensor rep = empty_leading(post, dims - 2, accumulate_type(post));
  const CategoricalKl p{dtype_of(post),
                        dyn.numel(),
                        groups,
                        classes,
                        post.const_data_ptr(),
                        prior.const_data_ptr(),
                        unimix,
                        free_nats,
                        dyn.mutable_data_ptr(),
                        rep.mutable_data_ptr()};
  kernel(p, post.get_device_index());
  return {dyn, rep};
}

template <auto kernel>
std::tuple<Tensor, Tensor> categorical_kl_backward(const std::optional<Tensor>& d_dyn_,
                                                   const std::optional<Tensor>& d_rep_, const Tensor& post_,
                                                   const Tensor& prior_, const Tensor& dyn_, double unimix,
                                                   double free_nats) {
  check_logits(post_, 2);
  const Tensor post = dense(post_);
  const Tensor prior = dense_like(prior_, post, "prior_logits");
  const int64_t dims = post.dim(), classes = post.size(dims - 1), groups = post.size(dims - 2);
  const std::optional<Tensor> d_dyn = dense_leading(d_dyn_, post, dims - 2, "d_dyn");
  const std::optional<Tensor> d_rep = dense_leading(d_rep_, post, dims - 2, "d_rep");
  const Tensor dyn = dense_leading(dyn_, post, dims - 2, "dyn");
  Tensor d_post = empty_dense(post), d_prior = empty_dense(post);
  const CategoricalKlBackward p{dtype_of(post),
                                dyn.numel(),
                                groups,
                                classes,
                                data_or_null(d_dyn),
                                data_or_null(d_rep),
                                post.const_data_ptr(),
                                prior.const_data_ptr(),
                                dyn.const_data_ptr(),
                                unimix,
                                free_nats,
                                d_post.mutable_data_ptr(),
                                d_prior.mutable_data_ptr()};
  kernel(p, post.get_device_index());
  return {d_post, d_prior};
}

template <auto kernel>
Tensor categorical_entropy(const Tensor& logits_, double unimix) {
  check_logits(logits_, 1);
  const Tensor logits = dense(logits_);
  const int64_t dims = logits.dim(), classes = logits.size(dims - 1);
  Tensor entropy = empty_leading(logits, dims - 1, accumulate_type(logits));
  const CategoricalEntropy p{dtype_of(logits),        logits.numel() / classes, classes,
                             logits.const_data_ptr(), unimix,                   entropy.mutable_data_ptr()};
  kernel(p, logits.get_device_index());
  return entropy;
}

template <auto kernel>
Tensor categorical_entropy_backward(const Tensor& grad_, const Tensor& logits_, double unimix) {
  check_logits(logits_, 1);
  const Tensor logits = dense(logits_);
  const int64_t dims = logits.dim(), classes = logits.size(dims - 1);
  const Tensor grad = dense_leading(grad_, logits, dims - 1, "grad");
  Tensor d_logits = empty_dense(logits);
  const CategoricalEntropyBackward p{dtype_of(logits),      logits.numel() / classes, classes,
                                     grad.const_data_ptr(), logits.const_data_ptr(),  unimix,
                                     d_logits.mutable_data_ptr()};
  kernel(p, logits.get_device_index());
  return d_logits;
}

}  // namespace fastwm
