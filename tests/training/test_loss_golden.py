"""The combinatorial loss and its gradients against the authors' implementation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eao.config import LossConfig
from eao.errors import ConfigError
from eao.kernels.contrastive import normalize
from eao.training.loss import TERMS, CombinatorialLoss

GOLDEN = Path(__file__).parents[1] / "golden" / "data"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "losses.json").read_text())["cases"]}
# The case "bare_on_S" has similarities in place of embeddings, which nothing here takes; the others cover its formula.
VALUES = [name for name, case in CASES.items() if "loss" in case]
ENCODERS = {
    "text": "text",
    "video": "video",
    "audio": "audio",
    "tv": "text-video",
    "ta": "text-audio",
    "va": "video-audio",
}
TERM_NAMES = dict(zip(TERMS, ("tv", "ta", "va", "t_va", "v_ta", "a_tv"), strict=True))
KINDS = {"NormSoftmax": "norm-softmax", "MMS": "mms"}


@pytest.fixture(scope="module")
def stored() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "losses.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def make_loss(args: dict) -> CombinatorialLoss:
    weights = {ours: args.get(f"{short}_weight", 0) for ours, short in TERM_NAMES.items()}
    return CombinatorialLoss(
        LossConfig(kind=KINDS[args["contrastive_loss"]], temperature=args.get("temperature", 0.05), weights=weights)
    )


def make_inputs(case: dict, stored: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    kept = {short: name for short, name in ENCODERS.items() if f"{short}_embed" not in case["drop"]}
    embeddings = {name: stored[f"in.{short}_embed"].clone().requires_grad_() for short, name in kept.items()}
    present = {m: stored[f"in.{m}_nonempty_input_mask"] for m in ("text", "video", "audio")}
    if case["none_valid"]:
        present = {m: torch.zeros_like(x) for m, x in present.items()}
    return embeddings, present


@pytest.mark.parametrize("name", VALUES)
def test_values_equal_the_reference(name: str, stored: dict[str, torch.Tensor]) -> None:
    case = CASES[name]
    total, terms = make_loss(case["args"])(*make_inputs(case, stored))
    # A term without a complete clip is NaN there, and its loss with it; here it adds nothing.
    assert total.item() == pytest.approx(case["loss"] or 0.0, rel=2e-6)
    expected = {k: v for k, v in case["loss_info"].items() if k != "Retrieval" and v is not None}
    assert {TERM_NAMES[term]: x.item() for term, x in terms.items()} == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("name", [name for name in VALUES if not CASES[name]["none_valid"]])
def test_gradients_equal_the_reference(name: str, stored: dict[str, torch.Tensor]) -> None:
    case = CASES[name]
    embeddings, present = make_inputs(case, stored)
    make_loss(case["args"])(embeddings, present)[0].backward()
    for short, encoder in ENCODERS.items():
        expected = stored.get(f"{name}.grad.{short}_embed")
        if expected is None:
            assert encoder not in embeddings or embeddings[encoder].grad is None
        else:
            # The order of summation differs; the largest entries are near 1.
            torch.testing.assert_close(embeddings[encoder].grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in VALUES if CASES[name]["none_valid"]])
def test_no_complete_clip_gives_no_gradient_there_either(name: str, stored: dict[str, torch.Tensor]) -> None:
    total, _ = make_loss(CASES[name]["args"])(*make_inputs(CASES[name], stored))
    assert not total.requires_grad
    assert all(not stored[f"{name}.grad.{short}_embed"].any() for short in ENCODERS)


def test_no_weight_and_an_unknown_kind_are_errors() -> None:
    assert "error" in CASES["all_weights_zero"] and "error" in CASES["bad_name"]
    with pytest.raises(ConfigError, match="every weight of the loss is 0"):
        make_loss(CASES["all_weights_zero"]["args"])
    with pytest.raises(ValueError):
        LossConfig(kind="other", weights={"text_video": 1})


def test_the_cosine_is_the_reference_s(stored: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(normalize(stored["in.text_embed"]), stored["normalized_text"])
    similarity = normalize(stored["in.text_embed"]) @ normalize(stored["in.video_embed"]).T
    torch.testing.assert_close(similarity, stored["sim_matrix"])
