from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from eao.export.encoders import Model
from eao.export.parity import measure_parity
from eao.export.reference import CLIPS, Reference, embed
from eao.model import Batch

MakeModel = Callable[[str], Model]


def test_embeddings_are_the_models_own_of_unit_norm(make_model: MakeModel, clips: list[Batch]) -> None:
    model = make_model("plain")
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(clips[0], ["video"])["video"])
    np.testing.assert_allclose(embed(model, clips[0], ["video"])["video"], expected.numpy(), atol=1e-6)


def test_the_model_runs_once_for_all_engines(make_model: MakeModel, clips: list[Batch]) -> None:
    model = make_model("plain")
    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(inputs))
    reference = Reference(model, clips, encoders=["text", "video"])
    engine = make_model("plain")

    def encode(batch: Batch, encoder: str) -> np.ndarray:
        return embed(engine, batch, [encoder])[encoder]

    measure_parity(reference, encode, ["text", "video"])
    cases = len(reference.cases("text")) + len(reference.cases("video"))
    assert len(calls) == cases + len(clips)  # both encoders of a batch of real clips at once
    measure_parity(reference, encode, ["text", "video"], "int8", "openvino")
    assert len(calls) == cases + len(clips)


def test_a_model_in_training_is_measured_in_eval_mode_and_left_in_training(make_model: MakeModel) -> None:
    model = make_model("plain")
    expected = Reference(model).cases("audio")[0].embeddings
    model.train()
    found = Reference(model).cases("audio")[0].embeddings
    np.testing.assert_array_equal(found, expected)
    assert model.training


def test_clips_without_a_modality_are_not_embedded_with_it(make_model: MakeModel, clips: list[Batch]) -> None:
    mute = [batch.only(("text", "video")) for batch in clips]
    reference = Reference(make_model("plain"), mute)
    assert reference.clips("video-audio") is None
    found = reference.clips("text-video")
    assert found is not None and found.shape == (12, 8)


def test_one_clip_of_a_case_and_of_the_data_set(make_model: MakeModel, clips: list[Batch]) -> None:
    reference = Reference(make_model("plain"), clips)
    case = reference.cases("video")[-1].case
    clip = reference.one_clip("video", case.name, 2)
    assert clip.video is not None and case.batch.video is not None and clip.text is None
    torch.testing.assert_close(clip.video, case.batch.video[2:3])
    real = reference.one_clip("text", CLIPS, 6)
    assert real.text is not None and clips[1].text is not None
    torch.testing.assert_close(real.text, clips[1].text[1:2])  # the first batch holds 5
    with pytest.raises(KeyError, match="no such row"):
        reference.one_clip("text", CLIPS, 12)
