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
  m.def("two_hot_loss(Tensor logits, Tensor target, Tensor bins, Tensor? second_target, float second_weight) "
        "-> (Tensor, Tensor)");
  m.def("two_hot_loss_backward(Tensor grad, Tensor logits, Tensor target, Tensor bins, Tensor? second_target, "
        "float second_weight, Tensor logsumexp) -> Tensor");
  m.def("two_hot_mean(Tensor logits, Tensor bins) -> (Tensor, Tensor)");
  m.def("two_hot_mean_backward(Tensor grad, Tensor logits, Tensor bins, Tensor mean, Tensor logsumexp) -> Tensor");
  m.def("laprop_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] nu, Tensor(c!)[] mu, int step, "
        "Tensor? step_at, float lr, Tensor? lr_at, float beta1, float beta2, float eps, float agc, float pmin, "
        "int warmup) -> ()");
  m.def("symlog(Tensor x) -> Tensor");
  m.def("symexp(Tensor x) -> Tensor");
  m.def("symlog_backward(Tensor grad, Tensor x) -> Tensor");
  m.def("symexp_backward(Tensor grad, Tensor y) -> Tensor");
}
