"""V, M and C by themselves: sizes, losses, and the traps that need no recording. See docs/traps.md."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from fastwm.agents.world_models.controller import Controller, squash
from fastwm.agents.world_models.rnn import learning_rate
from fastwm.agents.world_models.task import TASKS
from fastwm.nn import MDNRNN, ConvVAE, Latent
from fastwm.nn.conv_vae import kl_with_floor
from fastwm.nn.mdn_rnn import done_loss


def trained(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def test_published_sizes() -> None:
    """Published sizes."""
    assert trained(ConvVAE(32)) == 4_348_547
    assert trained(ConvVAE(64)) == 4_446_915
    assert trained(MDNRNN(32, 3, 256)) == 422_368
    assert trained(MDNRNN(64, 1, 512, restart=True, heads=("done",))) == 1_678_785
    assert Controller(32, 256, 3, "car").size == 867
    assert Controller(32, 256, 3, "car", "z").size == 99
    assert Controller(32, 256, 3, "car", "z", hidden=40).size == 1_443
    assert Controller(32, 256, 3, "car", "zch").size == 1_635
    assert Controller(64, 512, 1, "tanh", "zch", bias=False).size == 1_088


# V


def test_the_floor_is_of_each_sample() -> None:
    """KL floor."""
    assert float(kl_with_floor(torch.tensor([10.0, 40.0]), 0.5 * 32)) == 28
    mu = torch.full((1, 32), 0.5, requires_grad=True)
    kl = Latent(mu, torch.full((1, 32), -1.0)).kl()
    assert_close(kl, torch.tensor([9.886071]), atol=1e-5, rtol=0)
    floored = kl_with_floor(kl, 16)
    floored.backward()
    assert float(floored.detach()) == 16
    assert not mu.grad.any()  # type: ignore[union-attr]


def test_the_error_is_a_sum_over_the_frame() -> None:
    """Sum over the frame."""
    vae = ConvVAE(4, (4, 4, 4, 4))
    torch.nn.init.zeros_(vae.decoder[-1].weight)
    loss = vae.loss(torch.zeros(2, 64, 64, 3))
    assert float(loss.reconstruction.detach()) == 3072  # (0 - 0.5)^2 * 64 * 64 * 3


def test_the_network_gives_the_log_of_the_variance() -> None:
    """Logarithm of the variance."""
    latent = Latent(torch.zeros(1), torch.tensor([2.0]))
    assert_close(latent.sample(torch.ones(1)), torch.tensor([math.e]))


def test_negative_numbers_reach_the_first_transposed_convolution() -> None:
    """No activation before the decoder."""
    vae = ConvVAE(4, (4, 4, 4, 4))
    torch.nn.init.constant_(vae.expand.bias, -1.0)
    torch.nn.init.zeros_(vae.expand.weight)
    with torch.no_grad():
        vae.decoder[0].weight.fill_(-1.0)
    low = vae.decode_logits(torch.zeros(1, 4))
    with torch.no_grad():
        vae.expand.bias.zero_()
    assert not torch.equal(low, vae.decode_logits(torch.zeros(1, 4)))


def test_the_first_layer_is_the_transposed_convolution() -> None:
    vae = ConvVAE(4)
    torch.nn.init.normal_(vae.decoder[0].bias)
    x = torch.randn(3, 1024)
    assert_close(vae._first(x), vae.decoder[0](x[:, :, None, None]), atol=1e-5, rtol=1e-4)


def test_latents_are_drawn_anew_in_float32() -> None:
    """Fresh latents."""
    torch.manual_seed(0)
    mu, logvar = torch.randn(4).half(), torch.full((4,), -9.0).half()
    latent = Latent(mu, logvar)
    assert latent.sample().dtype == torch.float32
    assert not torch.equal(latent.sample(), latent.sample())
    mean = torch.stack([latent.sample() for _ in range(2000)]).mean(0)
    assert_close(mean, mu.float(), atol=2e-3, rtol=0)
    assert (
        float(Latent(torch.zeros(1).half(), torch.full((1,), 30.0).half()).sample(torch.ones(1))) > 1e6
    )  # no overflow


def test_frames_of_a_wrong_size_are_told() -> None:
    with pytest.raises(ValueError, match=r"expected frames \[..., 64, 64, 3\], got \[2, 3, 64, 64\]"):
        ConvVAE(4).encode(torch.zeros(2, 3, 64, 64))


# M


def test_forget_bias_and_gates() -> None:
    """Forget bias."""
    rnn = MDNRNN(1, 0, 1)
    for p in rnn.lstm.parameters():
        torch.nn.init.zeros_(p)
    rnn.requires_grad_(False)
    h, c = rnn.advance(torch.zeros(1, 1), torch.zeros(1, 0), (torch.zeros(1, 1), torch.ones(1, 1)))
    assert_close((float(c), float(h)), (0.7310585786, 0.3118562749), atol=1e-6, rtol=0)
    torch.nn.init.constant_(rnn.lstm.weight_ih_l0, 0.1)
    torch.nn.init.constant_(rnn.lstm.weight_hh_l0, 0.1)
    h, c = rnn.advance(torch.ones(1, 1), torch.zeros(1, 0), (torch.full((1, 1), 0.5), torch.full((1, 1), -0.25)))
    assert_close((float(c), float(h)), (-0.1098624686, -0.0588069643), atol=1e-6, rtol=0)


def test_a_restart_resets_its_row_alone() -> None:
    """Restart."""
    torch.manual_seed(0)
    rnn = MDNRNN(3, 1, 8)
    z, action = torch.randn(5, 2, 3), torch.randn(5, 2, 1)
    first = torch.zeros(5, 2, dtype=torch.bool)
    first[2, 1] = True
    h0 = torch.randn(2, 8, requires_grad=True)
    prediction, _ = rnn(z, action, (h0, h0), first)
    plain, _ = rnn(z, action, (h0, h0))
    assert torch.equal(prediction.hidden[:, 0], plain.hidden[:, 0])
    again, _ = rnn(z[2:, 1:], action[2:, 1:])
    assert_close(prediction.hidden[2:, 1:], again.hidden)
    (grad,) = torch.autograd.grad(prediction.hidden[2:, 1].sum(), h0, retain_graph=True)
    assert not grad.any()


def test_the_input_is_latent_action_restart() -> None:
    """Input of M."""
    rnn = MDNRNN(2, 1, 3, restart=True)
    x = rnn._inputs(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]]), torch.tensor([[True]]))
    assert x.tolist() == [[[1, 2, 3, 1]]]


def test_ends_count_ten_times_over_a_plain_mean() -> None:
    """Weight of ends."""
    loss = done_loss(torch.zeros(4, dtype=torch.float64), torch.tensor([1, 0, 0, 0]))
    assert float(loss) == pytest.approx(2.2527283, abs=1e-6)
    assert float(done_loss(torch.tensor([2.0]), torch.tensor([1]))) == pytest.approx(1.2692801, abs=1e-6)
    assert float(done_loss(torch.tensor([2.0]), torch.tensor([0]))) == pytest.approx(2.1269280, abs=1e-6)


def test_masked_steps_do_not_count() -> None:
    torch.manual_seed(0)
    rnn = MDNRNN(3, 1, 8)
    z, action = torch.randn(4, 2, 3), torch.randn(4, 2, 1)
    prediction, _ = rnn(z, action)
    mask = torch.ones(4, 2, dtype=torch.bool)
    whole = rnn.loss(prediction, z)
    assert_close(rnn.loss(prediction, z, mask=mask).latent, whole.latent)
    mask[1, 0] = False
    strange = z.clone()
    strange[1, 0] = 1000
    assert_close(rnn.loss(prediction, strange, mask=mask).latent, rnn.loss(prediction, z, mask=mask).latent)


def test_the_learning_rate_falls() -> None:
    """Falling rate."""
    assert learning_rate(0, 1e-3, 1e-5, 0.99999) == 1e-3
    assert learning_rate(1000, 1e-3, 1e-5, 0.99999) == pytest.approx(9.901493e-4, rel=1e-6)
    assert learning_rate(24_380, 1e-3, 1e-5, 0.99999) == pytest.approx(7.858070e-4, rel=1e-6)


# C


def test_zero_weights_drive_at_half_gas() -> None:
    """Gas and brake."""
    controller = Controller(2, 2, 3, "car")
    assert controller(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2)).tolist() == [[0, 0.5, 0]]
    action = squash(torch.tensor([[0.0, -20.0, -20.0], [0.0, 20.0, 20.0]]), "car")
    assert_close(action, torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]))


def test_thresholds_are_the_environments_alone() -> None:
    """Thresholds."""
    action = torch.tensor([[-0.34], [-0.33], [0.2], [0.33], [0.34]])
    assert TASKS["takecover"].env_action(action).tolist() == [2, 0, 0, 0, 1]


def test_the_car_gets_canonical_actions() -> None:
    """CarRacing's gas and brake lie in [0, 1]; the environment layer stretches [-1, 1] to that."""
    action = torch.tensor([[0.3, 0.0, 1.0]])
    assert_close(TASKS["carracing"].env_action(action), torch.tensor([[0.3, -1.0, 1.0]]))


@pytest.mark.parametrize(("features", "bias", "hidden"), [("z", True, 4), ("zh", True, 0), ("zch", False, 0)])
def test_vectors_and_layers_agree(features: str, bias: bool, hidden: int) -> None:
    torch.manual_seed(0)
    controller = Controller(3, 2, 3, "car", features, bias, hidden)  # type: ignore[arg-type]
    vectors = torch.randn(5, controller.size)
    inputs: list[Tensor] = [torch.randn(5, n) for n in (3, 2, 2)]
    many = controller.act_many(vectors, *inputs)
    for i, vector in enumerate(vectors):
        controller.load_vector(vector)
        assert torch.equal(controller.vector(), vector)
        assert_close(many[i], controller(*(x[i] for x in inputs)), atol=1e-6, rtol=1e-5)


def test_the_flat_order_is_the_originals() -> None:
    """Biases first, then the weights feature by feature."""
    controller = Controller(2, 1, 3, "car", "z")
    controller.load_vector(torch.arange(9.0))
    assert controller.layers[0].bias.tolist() == [0, 1, 2]
    assert controller.layers[0].weight.tolist() == [[3, 6], [4, 7], [5, 8]]


def test_frames_are_cropped_and_resized() -> None:
    """CarRacing: the bar of indicators (rows 84 to 95) is cut off, the rest smoothly scaled."""
    image = torch.full((1, 96, 96, 3), 100, dtype=torch.uint8)
    image[:, 84:] = 255
    frames = TASKS["carracing"].frames(image)
    assert frames.shape == (1, 64, 64, 3) and frames.dtype == torch.uint8
    assert (frames == 100).all()
    image[:, :84, ::2] = 200  # stripes of one pixel: a plain sample would show 100 and 200 alone
    smooth = TASKS["carracing"].frames(image)
    assert smooth.min() > 120 and smooth.max() < 180
    same = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert TASKS["takecover"].frames(same) is same
