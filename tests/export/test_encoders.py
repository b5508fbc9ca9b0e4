from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from eao.errors import ExportError
from eao.export.encoders import (
    EncoderModule,
    Model,
    axes,
    example_inputs,
    exportable_encoders,
    input_names,
    to_batch,
)
from eao.kernels.contrastive import normalize
from eao.model import ENCODERS, Batch

MakeModel = Callable[[str], Model]


def test_every_encoder_but_the_sums_is_exportable(make_model: MakeModel) -> None:
    assert exportable_encoders(make_model("plain")) == ENCODERS
    assert exportable_encoders(make_model("avlnet")) == ("text", "video", "audio")
    assert exportable_encoders(make_model("text-video")) == ("text", "video")


def test_inputs_are_batch_fields_in_the_order_of_the_modalities(make_model: MakeModel) -> None:
    names = ("text", "text_mask", "video", "video_mask", "audio", "audio_mask")
    assert input_names(make_model("plain"), "text-video-audio") == names


@pytest.mark.parametrize(("variant", "needed"), [("nearest", True), ("max_pool", True), ("clip", False)])
def test_audio_frames_is_an_input_only_where_pooling_reads_it(
    make_model: MakeModel, variant: str, needed: bool
) -> None:
    assert ("audio_frames" in input_names(make_model(variant), "audio")) is needed


@pytest.mark.parametrize("encoder", ["text+video", "smell"])
def test_sums_and_unknown_encoders_are_refused(make_model: MakeModel, encoder: str) -> None:
    with pytest.raises(ExportError, match="cannot be exported"):
        input_names(make_model("plain"), encoder)


def test_positional_models_vary_only_in_the_batch(make_model: MakeModel) -> None:
    assert list(axes(make_model("positional"), "text-video-audio")) == ["batch"]


def test_audio_length_is_a_multiple_of_the_stride(make_model: MakeModel) -> None:
    axis = axes(make_model("davenet-v2"), "audio")["spectrogram_frames"]
    assert (axis.minimum, axis.multiple) == (64, 64)


@pytest.mark.parametrize("variant", ["plain", "cls", "nearest", "per-modality", "depth0-minimal", "avlnet"])
def test_the_module_gives_the_normalised_output_of_the_model(make_model: MakeModel, variant: str) -> None:
    model = make_model(variant)
    for encoder in exportable_encoders(model):
        tensors = example_inputs(model, encoder)
        with torch.no_grad():
            expected = normalize(model(to_batch(model, encoder, tensors), [encoder])[encoder])
            found = EncoderModule(model, encoder)(*tensors)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("frames", [[-1, -1], [9, 3], [-1, 8], [8, -1], [0, 16]])
def test_avlnet_audio_follows_the_model_for_known_and_unknown_lengths(make_model: MakeModel, frames: list[int]) -> None:
    # The first clip decides for the whole batch whether lengths are known: a quirk of the original that is kept.
    model = make_model("avlnet")
    audio, lengths = torch.randn(2, 40, 16), torch.tensor(frames)
    with torch.no_grad():
        expected = normalize(model(Batch(audio=audio, audio_frames=lengths), ["audio"])["audio"])
        torch.testing.assert_close(EncoderModule(model, "audio")(audio, lengths), expected)
