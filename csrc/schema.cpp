// Every operator's schema. A forward returns what its backward reads, so nothing is hidden from autograd.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastwm, m) {
  m.def("lambda_return(Tensor reward, Tensor cont, Tensor next_value, Tensor? lam, float lam_value) "
        "-> Tensor");
  m.def("lambda_return_backward(Tensor grad, Tensor cont, Tensor next_value, Tensor ret, Tensor? lam, "
        "float lam_value) -> (Tensor, Tensor, Tensor)");
  m.def("norm_act(Tensor x, Tensor weight, Tensor? bias, float eps, int activation) -> (Tensor, Tensor)");
  m.def("norm_act_backward(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor stats, int activation) "
        "-> (Tensor, Tensor)");
  m.def("straight_through_categorical(Tensor logits, Tensor uniform, float unimix, bool gumbel) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("straight_through_categorical_backward(Tensor? d_sample, Tensor? d_log_prob, Tensor logits, "
        "Tensor? uniform, float unimix) -> Tensor");
  m.def("categorical_kl(Tensor post_logits, Tensor prior_logits, float unimix, float free_nats) "
        "-> (Tensor, Tensor)");
  m.def("categorical_kl_backward(Tensor? d_dyn, Tensor? d_rep, Tensor post_logits, Tensor prior_logits, "
        "Tensor dyn, float unimix, float free_nats) -> (Tensor, Tensor)");
  m.def("categorical_entropy(Tensor logits, float unimix) -> Tensor");
  m.def("categorical_entropy_backward(Tensor grad, Tensor logits, float unimix) -> Tensor");
  m.def("mdn_sample(Tensor logits, Tensor mean, Tensor log_std, Tensor uniform, Tensor normal, "
        "float temperature) -> Tensor");
  m.def("mdn_nll(Tensor logits, Tensor mean, Tensor log_std, Tensor value) -> Tensor");
  m.def("mdn_nll_backward(Tensor grad, Tensor logits, Tensor mean, Tensor log_std, Tensor value) "
        "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("philox_bits(Tensor seed_offset, SymInt count, SymInt first) -> Tensor");
  m.def("philox_uniform(Tensor seed_offset, SymInt count, SymInt first) -> Tensor");
  m.def("philox_normal(Tensor seed_offset, SymInt count, SymInt first) -> Tensor");
}
