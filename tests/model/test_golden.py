"""Every variant against the authors' implementation: outputs, tokens, losses, gradients, optimisation."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from eao.errors import ConfigError
from eao.model import Batch, build_model
from eao.model.audio import DAVEnet
from eao.training.loss import CombinatorialLoss

MODELS = json.loads((Path(__file__).parents[1] / "golden" / "models" / "cases.json").read_text(encoding="utf-8"))[
    "cases"
]
TRAINED = json.loads((Path(__file__).parents[1] / "golden" / "train" / "cases.json").read_text(encoding="utf-8"))
WITH_GRADIENTS = [name for name, case in MODELS.items() if "grad_eval" in case]
FUSION = [name for name in MODELS if not name.startswith("avlnet")]


def close(actual, expected, noise=0.0):
    # Twenty times the reference's own float32 error against float64, and never less than a few units in the last place.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=max(1e-5, 20 * noise))


def loss_config(golden, args):
    return golden.small_config({"arch": MODELS["tva_individual"]["arch"]}, args).loss


@pytest.mark.parametrize("case", MODELS)
def test_state_dict_has_the_authors_keys(golden, case):
    assert len(golden.small_model(case).state_dict()) == MODELS[case]["n_state_keys"]


@pytest.mark.parametrize("case", MODELS)
def test_outputs_with_and_without_forced_pairs(golden, case):
    model, stored = golden.small_model(case), golden.tensors(f"models/{case}.safetensors")
    batch = golden.case_batch(case, stored)
    for name in ("out0", "out1"):
        expected = golden.embeddings(golden.section(stored, name))
        with torch.no_grad():
            actual = model(batch) if name == "out0" else model(batch, list(expected))
        assert set(actual) == set(expected)
        for encoder, value in expected.items():
            short = {v: k for k, v in golden.EMBEDDINGS.items()}[encoder]
            close(actual[encoder], value, MODELS[case]["noise"].get(name, {}).get(f"{short}_embed", 0.0))


@pytest.mark.parametrize("case", MODELS)
def test_flags_of_present_modalities(golden, case):
    stored = golden.tensors(f"models/{case}.safetensors")
    actual = golden.small_model(case).nonempty(golden.case_batch(case, stored))
    expected = golden.flags(golden.section(stored, "out0"))
    assert {m: x.tolist() for m, x in actual.items()} == {m: x.tolist() for m, x in expected.items()}


@pytest.mark.parametrize("case", FUSION)
def test_tokens_before_fusion(golden, case):
    model, stored = golden.small_model(case), golden.tensors(f"models/{case}.safetensors")
    batch = golden.case_batch(case, stored)
    for modality in ("text", "video", "audio"):
        with torch.no_grad():
            tokens = model.tokens(batch, modality)
        mask = stored[f"mid.{modality}.attention_mask"].bool()
        assert torch.equal(tokens.mask, mask)
        expected = stored[f"mid.{modality}.all_tokens"]
        if model.config.use_positional_emb:
            expected = expected + model.get_parameter(f"{modality}_pos_embed")  # stored before they are added
        close(tokens.x[mask], expected[mask])


@pytest.mark.parametrize("case", MODELS)
def test_audio_network(golden, case):
    stored = golden.tensors(f"models/{case}.safetensors")
    model = golden.small_model(case)
    davenet = model.DAVEnet if case.startswith("avlnet") else model.davenet
    with torch.no_grad():
        close(davenet(golden.case_batch(case, stored).audio), stored["mid.davenet"])


@pytest.mark.parametrize("case", FUSION)
def test_second_call_depends_on_masks_alone(golden, case):
    """The original filled empty masks in the caller's tensors; ours leaves them, and given the filled ones agrees."""
    model, stored = golden.small_model(case), golden.tensors(f"models/{case}.safetensors")
    batch = golden.case_batch(case, stored)
    before = {name: x.clone() for name, x in vars(batch).items() if isinstance(x, torch.Tensor)}
    with torch.no_grad():
        first, again = model(batch), model(batch)
    for name, x in before.items():
        assert torch.equal(getattr(batch, name), x), f"{name} was changed"
    for encoder, x in first.items():
        assert torch.equal(x, again[encoder])
    for name, x in golden.section(stored, "mutated").items():
        setattr(batch, name, x.bool())
    second = golden.section(stored, "out0_second_call")
    with torch.no_grad():
        actual = model(batch)
    for encoder, x in golden.embeddings(second).items():
        close(actual[encoder], x)
    for modality, x in golden.flags(second).items():
        assert torch.equal(model.nonempty(batch)[modality], x)


@pytest.mark.parametrize("case", MODELS)
def test_loss_values(golden, case):
    stored = golden.tensors(f"models/{case}.safetensors")
    for name, losses in MODELS[case]["loss"].items():
        outputs = golden.section(stored, name)
        embeddings, present = golden.embeddings(outputs), golden.flags(outputs)
        for expected in losses.values():
            total, terms = CombinatorialLoss(loss_config(golden, expected["args"]))(embeddings, present)
            assert total.item() == pytest.approx(expected["loss"], rel=2e-5)
            values = {golden.TERMS[term]: value for term, value in expected["terms"].items()}
            assert {k: v.item() for k, v in terms.items()} == pytest.approx(values, rel=2e-5)
        for impossible in MODELS[case]["loss_errors"][name].values():
            with pytest.raises(ConfigError):
                CombinatorialLoss(loss_config(golden, impossible["args"]))(embeddings, present)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", WITH_GRADIENTS)
def test_gradients(golden, case, mode):
    stored = golden.tensors(f"models/{case}.safetensors")
    model = golden.small_model(case).train(mode == "train")
    batch, expected = golden.case_batch(case, stored), MODELS[case][f"grad_{mode}"]
    embeddings = model(batch)
    loss, _ = CombinatorialLoss(loss_config(golden, expected["args"]))(embeddings, model.nonempty(batch))
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-4)
    gradients = {key: p.grad for key, p in model.named_parameters()}
    assert sorted(key for key, grad in gradients.items() if grad is None) == sorted(expected["no_grad"])
    # Gradients of parameters that act through the audio network's BatchNorm cancel almost wholly in train mode.
    atol = 1e-5 if mode == "eval" else 1e-4
    for key, value in golden.section(stored, f"grad_{mode}").items():
        golden.assert_same_digest(key, gradients[key], value, rtol=1e-4, atol=atol)
    if mode == "train":
        for encoder, value in golden.embeddings(golden.section(stored, "out0_train")).items():
            torch.testing.assert_close(embeddings[encoder], value, rtol=1e-4, atol=1e-4)
        buffers = dict(model.named_buffers())
        for key, value in golden.section(stored, "buffers_after_train").items():
            torch.testing.assert_close(buffers[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", TRAINED)
def test_optimisation_trajectory(golden, case):
    description = TRAINED[case]
    config = golden.small_config(description, description["loss"])
    model = build_model(config.model)
    model.load_state_dict(golden.weights(model, 777))
    stored = golden.tensors("train/batches.safetensors")
    batches = [golden.as_batch(golden.section(stored, str(i))) for i in range(3)]
    loss_function = CombinatorialLoss(config.loss)
    optimizer_class = getattr(torch.optim, description["optimizer"]["type"])
    optimizer = optimizer_class(model.parameters(), **description["optimizer"]["args"])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    model.train()
    for i, expected in enumerate(description["steps"]):
        batch = batches[i % 3]
        loss, _ = loss_function(model(batch), model.nonempty(batch))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        # Rounding grows from step to step, since each starts from the last one's weights.
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-4 * 2**i)
        assert norm.item() == pytest.approx(expected["grad_norm"], rel=2e-3 * 2**i)
        optimizer.step()
        if i % 2:
            schedule.step()
    state = model.state_dict()
    for key, value in golden.section(golden.tensors(f"train/{case}.safetensors"), "final").items():
        if value.dtype == torch.int64:
            assert torch.equal(state[key], value)
        elif not (key.endswith("qkv.bias") and optimizer_class is torch.optim.Adam):
            # A bias on all keys alike changes no attention weight: its gradient is rounding, which Adam scales up.
            golden.assert_same_digest(key, state[key], value, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "version"), [("davenet_v1_T100", "v1"), pytest.param("davenet_v2_T256", "v2", marks=pytest.mark.slow)]
)
def test_audio_network_at_published_size(golden, case, version):
    with torch.device("meta"):
        davenet = DAVEnet(golden.Config(model={"audio": {"version": version}}).model.audio)
    state = {key: golden.weight(key, tuple(x.shape), 5) for key, x in davenet.state_dict().items()}
    davenet.load_state_dict(state, assign=True)
    frames = int(case.rpartition("T")[2])
    x = random_input(case, (2, 40, frames))
    x[1, :, frames // 2 :] = 0
    with torch.no_grad():
        close(davenet.eval()(x), golden.tensors(f"full/{case}.safetensors")["out"])


@pytest.mark.slow
def test_model_at_published_size(golden):
    """Width 1024, depth 4 and the full audio network: 484 million parameters."""
    case = "full_1024_d4"
    config = golden.translate_config({"arch": golden.cases("full")[case]["arch"]}).config
    with torch.device("meta"):
        model = build_model(config.model)
    model.load_state_dict(golden.weights(model, 5), assign=True)
    ones = {"text_mask": (3, 20), "video_mask": (3, 48), "audio_mask": (3, 3072)}
    batch = Batch(**{name: torch.ones(shape, dtype=torch.bool) for name, shape in ones.items()})
    batch.text = random_input("text", (3, 20, 300))
    batch.video = torch.nn.functional.normalize(random_input("video", (3, 48, 4096)), dim=-1)
    batch.audio = random_input("audio", (3, 40, 3072))
    batch.text_mask[1, 7:] = batch.video_mask[1, 30:] = batch.audio_mask[1, 2000:] = False
    batch.audio[1, :, 2000:] = batch.audio[2] = 0
    batch.audio_mask[2] = batch.text_mask[2, 1:] = False
    expected = golden.tensors(f"full/{case}.safetensors")
    with torch.no_grad():
        actual = model.eval()(batch, list(golden.embeddings(expected)))
    for encoder, value in golden.embeddings(expected).items():
        torch.testing.assert_close(actual[encoder], value, rtol=1e-4, atol=1e-4)


def random_input(name, shape):
    """The inputs of the published-size cases, seeded by the case's or the tensor's name."""
    random = np.random.RandomState(zlib.crc32(name.encode()) ^ 11)
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))
