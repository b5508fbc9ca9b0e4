"""The AVLnet baseline's own rules; its numbers are in test_golden.py."""

import pytest
import torch

from eao.config import ModelConfig
from eao.model import Batch, build_model


def avlnet(**changes):
    torch.manual_seed(0)
    audio = {"version": "v1", "channels": (4, 4, 4, 4, 4)}
    sizes = {"text_dim": 7, "video_dim": 6, "embedding_dim": 10}
    return build_model(ModelConfig.model_validate({"architecture": "avlnet", "audio": audio} | sizes | changes)).eval()


def random_batch(frames=(64, 20, 0)):
    clips = len(frames)
    return Batch(
        text=torch.randn(clips, 5, 7),
        text_mask=torch.rand(clips, 5) < 0.5,
        video=torch.randn(clips, 4, 6),
        video_mask=torch.tensor([[True] * 4, [False] * 4, [True, False, False, False]])[:clips],
        audio=torch.randn(clips, 40, 64),
        audio_mask=torch.arange(64) < torch.tensor(frames)[:, None],
        audio_frames=torch.tensor(frames),
    )


def test_one_encoder_for_each_modality():
    model, batch = avlnet(), random_batch()
    assert model.encoders == ("text", "video", "audio")
    assert {k: v.shape for k, v in model(batch).items()} == dict.fromkeys(model.encoders, (3, 10))
    assert set(model(batch.only(["text", "video"]))) == {"text", "video"}
    assert list(model(batch, ["video"])) == ["video"]


def test_the_audio_flag_comes_from_audio_unless_the_original_is_wanted():
    batch = random_batch()
    assert avlnet().nonempty(batch)["audio"].tolist() == [True, True, False]
    assert avlnet(audio_flag_from_video=True).nonempty(batch)["audio"].tolist() == [True, False, True]


def test_audio_is_averaged_over_its_own_length():
    model, batch = avlnet(), random_batch()
    features = model.DAVEnet(batch.audio)  # (3, 4, 4): one token for 16 frames
    for clip, tokens in enumerate([4, 1, 1]):  # 20 frames are one whole token; none at all count as one
        expected = model.DAVEnet_projection(model.GU_audio(features[clip, :, :tokens].mean(1)))
        torch.testing.assert_close(model(batch, ["audio"])["audio"][clip], expected)


@pytest.mark.parametrize("first", [None, -1])
def test_unknown_lengths_average_everything(first):
    model, batch = avlnet(), random_batch()
    batch.audio_frames = None if first is None else torch.tensor([-1, 20, 0])
    expected = model.DAVEnet_projection(model.GU_audio(model.DAVEnet(batch.audio).mean(2)))
    torch.testing.assert_close(model(batch, ["audio"])["audio"], expected)


def test_video_is_the_normalised_maximum_over_tokens_or_a_given_vector():
    model, batch = avlnet(), random_batch()
    pooled = torch.nn.functional.normalize(batch.video.amax(1), dim=1)
    expected = model(batch, ["video"])["video"]
    batch.video = pooled
    torch.testing.assert_close(model(batch, ["video"])["video"], expected)


def test_text_padding_counts_as_in_the_original():
    model, batch = avlnet(), random_batch()
    before = model(batch, ["text"])["text"]
    batch.text_mask[:] = False
    torch.testing.assert_close(model(batch, ["text"])["text"], before)
