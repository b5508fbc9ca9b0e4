"""One optimizer step: several processes, GradCache and accumulation against the plain step; precision, clipping."""

from pathlib import Path

import pytest
import torch

from eao.config import parse_config
from eao.errors import ConfigError
from eao.model import Batch, build_model
from eao.training.loss import CombinatorialLoss
from eao.training.step import OptimizerStep, seed_torch, training_encoders

from .processes import run_together
from .steps import CASES, ROWS, make_batch, make_config, make_step, relative_error, take

STEPS = Path(__file__).with_name("steps.py")
# The requirement is 1e-5. Models are in float64 here, the loss is in float32: the order of its sums is what differs.
TOLERANCE = 1e-6
# Gradients that are 0 but for rounding, such as that of a bias before BatchNorm, relative to the largest one.
FLOOR = 1e-9


def assert_same_step(actual: dict, expected: dict, tolerance: float = TOLERANCE) -> None:
    assert actual["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert actual["terms"] == pytest.approx(expected["terms"], rel=tolerance)
    scale = max(float(g.norm()) for g in expected["gradients"].values())
    # A parameter that only embeddings without a complete clip would reach may have no gradient, or one of zero.
    for name in actual["gradients"].keys() | expected["gradients"].keys():
        a, b = (result["gradients"].get(name) for result in (actual, expected))
        if a is None or b is None:
            given = a if b is None else b
            assert not given.any(), name
        else:
            assert float((a - b).norm()) <= tolerance * float(b.norm()) + FLOOR * scale, name


def assert_same_buffers(actual: dict, expected: dict) -> None:
    for name, buffer in expected["buffers"].items():
        torch.testing.assert_close(actual["buffers"][name], buffer, rtol=TOLERANCE, atol=1e-9, msg=name)


# several processes


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, dict]:
    """The step of every case in two real processes over gloo."""
    folder = tmp_path_factory.mktemp("steps")
    for code, _, errors in run_together([str(STEPS), str(folder)]):
        assert code == 0, errors
    return {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in CASES}


def interleaved(batch: Batch, size: int) -> Batch:
    """The rows of a batch so ordered that a part of two processes' parts of `size` rows is in one piece."""
    half = ROWS // 2
    order = [r for start in range(0, half, size) for p in (0, half) for r in range(p + start, p + start + size)]
    rows = {name: x[order] if isinstance(x, torch.Tensor) else x for name, x in vars(batch).items()}
    return Batch(**rows)


@pytest.mark.parametrize("name", ["complete", "uneven", "silent", "uneven in training mode", "gradcache"])
def test_two_processes_take_the_step_of_one_with_the_whole_batch(together, name):
    alone = take({**CASES[name], "gradcache_chunk": None})
    assert_same_step(together[name], alone)
    assert_same_buffers(together[name], alone)


def test_chunks_of_two_processes_share_their_batchnorm_statistics(together):
    name = "gradcache in training mode"
    alone = take(CASES[name], batch=interleaved(make_batch("uneven"), 2), gradcache_chunk=4)
    assert_same_step(together[name], alone)
    assert_same_buffers(together[name], alone)


def test_two_processes_accumulate_as_one_does(together):
    alone = take(CASES["accumulate"], batch=interleaved(make_batch("uneven"), 2))
    assert_same_step(together["accumulate"], alone)


def test_negatives_of_the_other_process_count(together):
    half = take(CASES["complete"], batch=make_batch()[: ROWS // 2])
    # More negatives make the task harder: log 8 against log 4 at random.
    assert together["complete"]["loss"] > 1.2 * half["loss"]


# GradCache


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, ROWS, 99])
def test_gradcache_is_the_plain_step(chunk):
    plain, cached = (take(CASES["uneven"], gradcache_chunk=c) for c in (None, chunk))
    assert_same_step(cached, plain)


def test_gradcache_in_float32_is_within_the_requirement():
    config = make_config(eval_mode=True)
    results = []
    for chunk in (None, 2):
        config.trainer.gradcache_chunk = chunk
        step = make_step(config, dtype=torch.float32)
        loss, terms = step(make_batch("uneven", dtype=torch.float32), 5).read()
        gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
        results.append({"loss": loss, "terms": terms, "gradients": gradients})
    plain, cached = results
    assert cached["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    # Of all gradients as one vector: single biases are sums that cancel, and hold fewer digits in float32.
    a, b = (torch.cat([g.flatten() for g in result["gradients"].values()]) for result in (cached, plain))
    assert relative_error(a, b) < 1e-5


def chunked_oracle(step: OptimizerStep, batch: Batch, chunk: int) -> dict:
    """One graph through all chunks at once, each with the random numbers and the BatchNorm statistics of its own."""
    outputs = []
    for i, start in enumerate(range(0, len(batch), chunk)):
        seed_torch(step.config.seed, 5, 0, 0, i)
        outputs.append(step.model(batch[start : start + chunk], step.encoders))
    embeddings = {encoder: torch.cat([output[encoder] for output in outputs]) for encoder in step.encoders}
    loss, terms = step.loss(embeddings, step.model.nonempty(batch))
    loss.backward()
    return {
        "loss": loss.item(),
        "terms": {name: x.item() for name, x in terms.items()},
        "gradients": {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None},
        "buffers": dict(step.model.named_buffers()),
    }


def test_the_second_pass_has_the_dropout_and_the_statistics_of_the_first():
    config = make_config(gradcache_chunk=3)
    config.model.fusion.drop_rate = config.model.fusion.attn_drop_rate = config.model.fusion.drop_path_rate = 0.3
    step, batch = make_step(config), make_batch("uneven")
    loss, terms = step(batch, 5).read()
    gradients = {name: p.grad for name, p in step.model.named_parameters() if p.grad is not None}
    cached = {"loss": loss, "terms": terms, "gradients": gradients, "buffers": dict(step.model.named_buffers())}
    expected = chunked_oracle(make_step(config), batch, 3)
    assert_same_step(cached, expected)
    # Running statistics move once a chunk, not once a pass.
    assert_same_buffers(cached, expected)


def test_gradcache_augments_both_passes_alike():
    config = make_config(eval_mode=True, noise=0.5, token_dropout=0.3, gradcache_chunk=8)
    whole = make_step(config)
    whole(make_batch(), 5)
    # One chunk makes one pass; as two equal halves each chunk makes two, with the same gradient if they agree.
    config.trainer.gradcache_chunk = 4
    halves = make_step(config)
    halves(make_batch(), 5)
    first = make_step(config)
    outputs = [first._embed(first.model, make_batch()[i * 4 : i * 4 + 4], (5, 0, 0, i)) for i in range(2)]
    embeddings = {e: torch.cat([output[e] for output in outputs]) for e in first.encoders}
    first.loss(embeddings, first.model.nonempty(make_batch()))[0].backward()
    for (name, a), b in zip(halves.model.named_parameters(), first.model.parameters(), strict=True):
        if a.grad is not None:
            assert relative_error(a.grad, b.grad) < TOLERANCE or float(b.grad.norm()) < FLOOR, name


# accumulation, precision, clipping


def test_accumulation_averages_the_gradients_of_parts_with_negatives_of_their_own():
    batch = make_batch("uneven")
    parts = [take(CASES["uneven"], batch=batch[i * 4 : i * 4 + 4]) for i in range(2)]
    both = take(CASES["accumulate"], batch=batch)
    assert both["loss"] == pytest.approx(sum(p["loss"] for p in parts) / 2, rel=TOLERANCE)
    for name, gradient in both["gradients"].items():
        expected = sum(p["gradients"].get(name, 0) for p in parts) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_a_batch_smaller_than_its_parts_is_one_part_a_clip():
    batch = make_batch()[:3]
    loss, _ = make_step(make_config(eval_mode=True, accumulate=5))(batch, 0).read()
    assert loss == 0  # a clip alone has no negatives


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_computes_in_half_and_keeps_weights_and_loss_in_float32(precision, tolerance):
    config = make_config(eval_mode=True)
    batch = make_batch("uneven", dtype=torch.float32)
    plain, half = (half_step(config, p) for p in ("fp32", precision))
    losses = [step(batch, 5).read()[0] for step in (plain, half)]
    assert losses[0] != losses[1]
    # bf16 keeps 8 bits of a number, fp16 11; similarities are divided by 0.05.
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    expected = dict(plain.model.named_parameters())
    for name, parameter in half.model.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
        if name.endswith("_proj.fc.weight"):
            assert relative_error(parameter.grad, expected[name].grad) < 5 * tolerance, name


def half_step(config, precision: str, lr: float = 0.0, scale: float = 256.0) -> OptimizerStep:
    """With a scale that fits these gradients at once; training would come down to it from 65536 by itself."""
    seed_torch(3)
    model = build_model(config.model).train(not config.trainer.eval_mode)
    loss = CombinatorialLoss(config.loss)
    step = OptimizerStep(model, loss, torch.optim.SGD(model.parameters(), lr=lr), config, precision)
    step.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=step.scaler.is_enabled())
    return step


def test_a_gradient_that_overflows_in_fp16_skips_the_step_and_lowers_the_scale():
    step = half_step(make_config(eval_mode=True), "fp16", lr=1.0, scale=2.0**40)
    before = {name: p.detach().clone() for name, p in step.model.named_parameters()}
    loss, _ = step(make_batch(dtype=torch.float32), 0).read()
    assert 0 < loss < 100
    assert step.scaler.get_scale() == 2.0**39
    assert all(torch.equal(p, before[name]) for name, p in step.model.named_parameters())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_clipping_bounds_the_norm_of_all_gradients_together(precision):
    def length(step: OptimizerStep) -> float:
        """Of the step that the weights take."""
        before = torch.cat([p.detach().flatten() for p in step.model.parameters()])
        step(make_batch(dtype=torch.float32), 0)
        return float((torch.cat([p.detach().flatten() for p in step.model.parameters()]) - before).norm())

    free = length(half_step(make_config(eval_mode=True), precision, lr=1.0))
    clipped = length(half_step(make_config(eval_mode=True, clip_grad_norm=0.01), precision, lr=1.0))
    assert free > 0.1
    # Weights near 1 round a step of 0.01 in float32.
    assert clipped == pytest.approx(0.01, rel=1e-3)


# what is random, what is trained


def test_a_step_draws_the_same_whatever_was_drawn_before():
    config = make_config(noise=0.3, token_dropout=0.3)
    losses = []
    for draws in (0, 5):
        step = make_step(config)
        torch.rand(draws)
        losses.append(step(make_batch(), 4).read()[0])
    assert losses[0] == losses[1]
    assert make_step(config)(make_batch(), 5).read()[0] != losses[0]


def test_only_embeddings_with_a_weight_are_computed():
    config = parse_config(make_config().model_dump() | {"loss": {"weights": {"text_video": 1}}}, "the test")
    assert training_encoders(build_model(config.model), CombinatorialLoss(config.loss), config) == ("text", "video")


def test_a_model_that_fuses_no_pairs_in_training_is_given_no_pairs():
    config = make_config()
    config.model.cross_modal = False
    model = build_model(config.model)
    assert training_encoders(model, CombinatorialLoss(config.loss), config) == ("text", "video", "audio")
    config.loss = config.loss.model_validate({"weights": {"text_videoaudio": 1}})
    with pytest.raises(ConfigError, match="no weighted term"):
        training_encoders(model, CombinatorialLoss(config.loss), config)
