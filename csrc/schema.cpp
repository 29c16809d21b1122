// Every operator's schema. A forward returns what its backward reads, so nothing is hidden from autograd.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fastwm, m) {
  m.def("lambda_return(Tensor reward, Tensor cont, Tensor next_value, Tensor? lam, float lam_value) "
        "-> Tensor");
  m.def("lambda_return_backward(Tensor grad, Tensor cont, Tensor next_value, Tensor ret, Tensor? lam, "
        "float lam_value) -> (Tensor, Tensor, Tensor)");

  m.def("gru_gates(Tensor input, Tensor hidden, Tensor h) -> Tensor");
  m.def("gru_gates_backward(Tensor grad, Tensor input, Tensor hidden, Tensor h) -> (Tensor, Tensor, Tensor)");
  m.def("block_gru_gates(Tensor gates, Tensor h, SymInt blocks, float update_bias) -> Tensor");
  m.def("block_gru_gates_backward(Tensor grad, Tensor gates, Tensor h, SymInt blocks, float update_bias) "
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
}
