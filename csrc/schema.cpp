// Every operator's schema. A forward returns what its backward reads, so nothing is hidden from autograd.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastwm, m) {
  m.def("lambda_return(Tensor reward, Tensor cont, Tensor next_value, Tensor? lam, float lam_value) "
        "-> Tensor");
  m.def("lambda_return_backward(Tensor grad, Tensor cont, Tensor next_value, Tensor ret, Tensor? lam, "
        "float lam_value) -> (Tensor, Tensor, Tensor)");

  m.def("rssm_observe(Tensor hidden_in, Tensor post_in, Tensor is_first, Tensor deter, Tensor stoch, Tensor uniform, "
        "Tensor w_deter, Tensor b_deter, Tensor n_deter, Tensor w_stoch, Tensor b_stoch, Tensor n_stoch, "
        "Tensor w_own, Tensor w_embeds, Tensor n_hidden, Tensor w_gates, Tensor b_gates, Tensor w_post, "
        "Tensor n_post, Tensor w_logits, Tensor b_logits, float unimix, float eps, bool save, bool bf16) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("rssm_observe_backward(Tensor g_deter, Tensor g_stoch, Tensor g_logits, Tensor is_first, Tensor deter0, "
        "Tensor stoch0, Tensor deter, Tensor stoch, Tensor logits, Tensor embeds, Tensor hidden, Tensor gates, Tensor post, Tensor w_deter, "
        "Tensor n_deter, Tensor w_stoch, Tensor n_stoch, Tensor w_own, Tensor w_embeds, Tensor n_hidden, "
        "Tensor w_gates, Tensor w_post, Tensor n_post, Tensor w_logits, float unimix, float eps, bool bf16) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("rssm_imagine(Tensor deter, Tensor stoch, Tensor uniform, Tensor noise, Tensor heads, Tensor w_deter, "
        "Tensor b_deter, Tensor n_deter, Tensor w_stoch, Tensor b_stoch, Tensor n_stoch, Tensor w_action, "
        "Tensor b_action, Tensor n_action, Tensor w_own, Tensor w_embeds, Tensor b_hidden, Tensor n_hidden, "
        "Tensor w_gates, Tensor b_gates, Tensor w_prior, Tensor b_prior, Tensor n_prior, Tensor w_priors, "
        "Tensor b_priors, Tensor n_priors, Tensor w_logits, Tensor b_logits, Tensor w_actor, Tensor b_actor, "
        "Tensor n_actor, Tensor w_actors, Tensor b_actors, Tensor n_actors, Tensor w_out, Tensor b_out, float unimix, "
        "float policy_unimix, float eps, bool bf16) -> (Tensor, Tensor, Tensor, Tensor)");
}
