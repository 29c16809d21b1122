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
  m.def("philox_bits(Tensor seed_offset, int count, int first) -> Tensor");
  m.def("philox_uniform(Tensor seed_offset, int count, int first) -> Tensor");
  m.def("philox_normal(Tensor seed_offset, int count, int first) -> Tensor");

  m.def("gru_gates(Tensor input, Tensor hidden, Tensor h) -> Tensor");
  m.def("gru_gates_backward(Tensor grad, Tensor input, Tensor hidden, Tensor h) -> (Tensor, Tensor, Tensor)");
  m.def("block_gru_gates(Tensor gates, Tensor h, int blocks, float update_bias) -> Tensor");
  m.def("block_gru_gates_backward(Tensor grad, Tensor gates, Tensor h, int blocks, float update_bias) "
        "-> (Tensor, Tensor)");
  m.def("layernorm_gru_gates(Tensor gates, Tensor weight, Tensor bias, Tensor h, float eps, float update_bias) "
        "-> (Tensor, Tensor)");
  m.def("layernorm_gru_gates_backward(Tensor grad, Tensor gates, Tensor weight, Tensor bias, Tensor h, "
        "Tensor stats, float update_bias) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("planet_gru_reset(Tensor gates, Tensor h) -> (Tensor, Tensor)");
  m.def("planet_gru_reset_backward(Tensor grad_reset_h, Tensor grad_update, Tensor gates, Tensor h) "
        "-> (Tensor, Tensor)");
  m.def("planet_gru_update(Tensor update, Tensor cand, Tensor h) -> Tensor");
  m.def("planet_gru_update_backward(Tensor grad, Tensor update, Tensor cand, Tensor h) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("lstm_gates(Tensor input, Tensor hidden, Tensor c, float forget_bias, bool ijfo) -> (Tensor, Tensor)");
  m.def("lstm_gates_backward(Tensor grad_h, Tensor grad_c, Tensor input, Tensor hidden, Tensor c, "
        "float forget_bias, bool ijfo) -> (Tensor, Tensor)");

  m.def("cell_scan(Tensor input, Tensor h, Tensor? c, Tensor weight, Tensor? scale, Tensor? bias, Tensor? is_first, "
        "int cell, float eps, float gate_bias, bool ijfo, bool save, bool bf16) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cell_scan_backward(Tensor? g_output, Tensor? g_h, Tensor? g_c, Tensor output, Tensor cells, Tensor saved, "
        "Tensor h, Tensor? c, Tensor weight, Tensor? scale, Tensor? bias, Tensor? is_first, int cell, float eps, "
        "float gate_bias, bool ijfo, bool bf16) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");

  m.def("block_gru_scan(Tensor hidden_in, Tensor is_first, Tensor h, Tensor w_carry, Tensor b_carry, Tensor n_carry, "
        "Tensor w_own, Tensor w_embeds, Tensor n_hidden, Tensor w_gates, Tensor b_gates, float update_bias, float eps, "
        "bool save, bool bf16) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("block_gru_scan_backward(Tensor g_h, Tensor is_first, Tensor h0, Tensor h, Tensor embeds, Tensor hidden, "
        "Tensor gates, Tensor w_carry, Tensor n_carry, Tensor w_own, Tensor w_embeds, Tensor n_hidden, Tensor w_gates, "
        "float eps, bool bf16) -> (Tensor, Tensor, Tensor)");
  m.def("rssm_observe(Tensor hidden_in, Tensor post_in, Tensor is_first, Tensor deter, Tensor stoch, Tensor uniform, "
        "Tensor w_deter, Tensor b_deter, Tensor n_deter, Tensor w_stoch, Tensor b_stoch, Tensor n_stoch, "
        "Tensor w_own, Tensor w_embeds, Tensor n_hidden, Tensor w_gates, Tensor b_gates, Tensor w_post, "
        "Tensor n_post, Tensor w_logits, Tensor b_logits, float unimix, float eps, bool save, bool compact, bool bf16) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("rssm_observe_backward(Tensor g_deter, Tensor g_stoch, Tensor g_logits, Tensor is_first, Tensor deter0, "
        "Tensor stoch0, Tensor deter, Tensor stoch, Tensor logits, Tensor embeds, Tensor hidden, Tensor gates, Tensor post, Tensor w_deter, "
        "Tensor n_deter, Tensor w_stoch, Tensor n_stoch, Tensor w_own, Tensor w_embeds, Tensor n_hidden, "
        "Tensor w_gates, Tensor w_post, Tensor n_post, Tensor w_logits, float unimix, float eps, bool bf16) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("gru_rssm_observe(Tensor input_in, Tensor layer_in, Tensor is_first, Tensor deter, Tensor stoch, Tensor noise, "
        "Tensor w_stoch, Tensor? scale_input, Tensor? shift_input, Tensor w_x, Tensor? b_x, Tensor w_h, Tensor? b_h, "
        "Tensor? scale_gates, Tensor? shift_gates, Tensor w_layer, Tensor? scale_layer, Tensor? shift_layer, "
        "Tensor w_stats, Tensor? b_stats, int cell, int activation, float unimix, float eps, bool save, bool bf16) "
        "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gru_rssm_observe_backward(Tensor g_deter, Tensor g_stoch, Tensor g_stats, Tensor is_first, Tensor deter0, "
        "Tensor stoch0, Tensor noise, Tensor deter, Tensor stoch, Tensor stats, Tensor input, Tensor gates, Tensor layer, "
        "Tensor w_stoch, Tensor? scale_input, Tensor? shift_input, Tensor w_x, Tensor w_h, Tensor? scale_gates, "
        "Tensor? shift_gates, Tensor w_layer, Tensor? scale_layer, Tensor? shift_layer, Tensor w_stats, int cell, "
        "int activation, float unimix, float eps, bool bf16) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("two_hot_loss(Tensor logits, Tensor target, Tensor bins, Tensor? second_target, float second_weight) "
        "-> (Tensor, Tensor)");
  m.def("two_hot_loss_backward(Tensor grad, Tensor logits, Tensor target, Tensor bins, Tensor? second_target, "
        "float second_weight, Tensor logsumexp) -> Tensor");
  m.def("two_hot_mean(Tensor logits, Tensor bins) -> (Tensor, Tensor)");
  m.def("two_hot_mean_backward(Tensor grad, Tensor logits, Tensor bins, Tensor mean, Tensor logsumexp) -> Tensor");
  m.def("laprop_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] nu, Tensor(c!)[] mu, int step, "
        "Tensor? step_at, float lr, Tensor? lr_at, Tensor? apply_at, float beta1, float beta2, float eps, float agc, float pmin, "
        "int warmup) -> ()");
  m.def("symlog(Tensor x) -> Tensor");
  m.def("symexp(Tensor x) -> Tensor");
  m.def("symlog_backward(Tensor grad, Tensor x) -> Tensor");
  m.def("symexp_backward(Tensor grad, Tensor y) -> Tensor");
  m.def("rssm_imagine(Tensor deter, Tensor stoch, Tensor uniform, Tensor noise, Tensor heads, Tensor w_deter, "
        "Tensor b_deter, Tensor n_deter, Tensor w_stoch, Tensor b_stoch, Tensor n_stoch, Tensor w_action, "
        "Tensor b_action, Tensor n_action, Tensor w_own, Tensor w_embeds, Tensor b_hidden, Tensor n_hidden, "
        "Tensor w_gates, Tensor b_gates, Tensor[] mlps, int[] save, Tensor? action, float unimix, "
        "float policy_unimix, float eps, bool bf16) -> (Tensor, Tensor, Tensor, Tensor, Tensor[])");
  m.def("mdn_rnn_imagine(Tensor z, Tensor controllers, Tensor? controller_bias, Tensor w_ih, Tensor w_hh, Tensor bias, "
        "Tensor w_out, Tensor b_out, Tensor seed_offset, int steps, int done, int reward, float temperature, bool car, "
        "float forget_bias, bool ijfo, bool trajectories, bool bf16) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gru_rssm_imagine(Tensor deter, Tensor stoch, Tensor noise, Tensor action_noise, Tensor w_action, "
        "Tensor b_input, Tensor b_layer, Tensor w_stoch, Tensor? scale_input, Tensor? shift_input, Tensor w_x, "
        "Tensor? b_x, Tensor w_h, Tensor? b_h, Tensor? scale_gates, Tensor? shift_gates, Tensor w_layer, "
        "Tensor? scale_layer, Tensor? shift_layer, Tensor w_stats, Tensor? b_stats, Tensor? action, Tensor actor, "
        "int[] layers, int[] heads, float[] scales, int cell, int activation, float unimix, float eps, bool save, "
        "bool bf16) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("gru_rssm_imagine_backward(Tensor g_deter, Tensor g_stoch, Tensor g_stats, Tensor g_action, Tensor deter0, "
        "Tensor stoch0, Tensor noise, Tensor action_noise, Tensor deter, Tensor stoch, Tensor stats, Tensor input, "
        "Tensor gates, Tensor layer, Tensor actor_pre, Tensor w_action, Tensor w_stoch, Tensor? scale_input, "
        "Tensor? shift_input, Tensor w_x, Tensor w_h, Tensor? scale_gates, Tensor? shift_gates, Tensor w_layer, "
        "Tensor? scale_layer, Tensor? shift_layer, Tensor w_stats, Tensor actor, int[] layers, int[] heads, "
        "float[] scales, int cell, int activation, float unimix, float eps, bool bf16) -> Tensor");
  m.def("linear(Tensor x, Tensor weight, Tensor? bias, bool bf16) -> Tensor");
  m.def("linear_backward(Tensor grad, Tensor x, Tensor weight, bool inputs, bool weights, bool bf16) "
        "-> (Tensor, Tensor, Tensor)");
  m.def("mlp(Tensor x, Tensor z, Tensor w, Tensor b, Tensor norm, Tensor ws, Tensor bs, Tensor norms, Tensor w_out, "
        "Tensor b_out, int activation, float eps, bool save, bool bf16) -> (Tensor, Tensor)");
  m.def("mlp_backward(Tensor grad, Tensor pre, Tensor x, Tensor z, Tensor w, Tensor b, Tensor norm, Tensor ws, "
        "Tensor bs, Tensor norms, Tensor w_out, Tensor b_out, int activation, float eps, bool inputs, bool weights, "
        "bool bf16) -> (Tensor, Tensor, Tensor)");
}
