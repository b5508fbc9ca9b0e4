"""Embedding a data set, with a real small model."""

import numpy as np
import pytest
import torch

from eao.backend import TorchBackend
from eao.config import Config, ModelConfig
from eao.errors import ConfigError, DataError
from eao.evaluation.embed import embed_dataset
from eao.evaluation.metrics import evaluate, unit_norm
from eao.model import Batch, build_model

EVERY = ("text", "video", "audio", "text-video", "text-audio", "video-audio", "text+video", "text+audio", "video+audio")


@pytest.fixture(scope="module")
def backend() -> TorchBackend:
    torch.manual_seed(0)
    model = ModelConfig(
        text_dim=6,
        video_dim=10,
        embedding_dim=24,
        fusion={"embed_dim": 32, "num_heads": 4},
        audio={"version": "v2", "channels": (8, 8, 16, 16, 32, 32, 64)},
    )
    return TorchBackend(build_model(model), Config(model=model))


def make_batch(rows: int, seed: int, ids: tuple[str, ...] = (), shortest: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, 5, (rows, 3), generator=random)  # 0: that clip lacks that modality
    return Batch(
        text=torch.randn(rows, 5, 6, generator=random),
        text_mask=torch.arange(5) < lengths[:, :1],
        video=torch.randn(rows, 4, 10, generator=random),
        video_mask=torch.arange(4) < lengths[:, 1:2],
        audio=torch.randn(rows, 40, 128, generator=random),
        audio_mask=torch.arange(128) < 30 * lengths[:, 2:],
        audio_frames=30 * lengths[:, 2],
        ids=ids,
    )


class Engines:
    """A backend that gives unit vectors only, and no sums, as a bundle of engines does."""

    def __init__(self, backend: TorchBackend) -> None:
        self.config = backend.config
        self.encoders = EVERY[:6]
        self.encode = backend.encode


def test_embeddings_are_the_models_raw_outputs_in_loader_order(backend: TorchBackend) -> None:
    batches = [make_batch(3, 1, ("c", "a", "b")), make_batch(1, 2, ("z",))]
    embeddings, ids = embed_dataset(backend, batches, EVERY)
    assert ids == ["c", "a", "b", "z"]
    assert tuple(embeddings) == EVERY
    with torch.no_grad():
        expected = [backend.model(batch, EVERY) for batch in batches]
    for encoder, rows in embeddings.items():
        assert rows.dtype == np.float32
        together = torch.cat([outputs[encoder] for outputs in expected]).numpy()
        np.testing.assert_allclose(rows, together, rtol=1e-5, atol=1e-6)  # the order of summation may differ


def test_the_model_is_left_in_eval_mode_and_unchanged(backend: TorchBackend) -> None:
    before = {name: value.clone() for name, value in backend.model.state_dict().items()}
    backend.model.train()
    embed_dataset(backend, [make_batch(2, 3)], ("audio",))
    assert not backend.model.training
    assert all(torch.equal(value, before[name]) for name, value in backend.model.state_dict().items())


def test_engines_rank_as_the_model_does(backend: TorchBackend) -> None:
    # Without empty modalities, which tie: rounding would decide about the ties.
    batches = [make_batch(4, seed, shortest=1) for seed in range(3)]
    raw, ids = embed_dataset(backend, batches, EVERY)
    unit, _ = embed_dataset(Engines(backend), batches, EVERY)
    assert ids == [str(i) for i in range(12)]
    for encoder in EVERY[:6]:
        np.testing.assert_allclose(unit[encoder], unit_norm(raw[encoder]), rtol=1e-5, atol=1e-6)
    tasks = ("t2v", "t2va", "a2t+v", "v+a2t")
    assert evaluate(unit, tasks) == evaluate(raw, tasks)


def test_a_sum_alone_is_the_mean_of_two_unit_vectors(backend: TorchBackend) -> None:
    batch = make_batch(3, 5)
    embeddings, _ = embed_dataset(Engines(backend), [batch], ("video+audio",))
    expected = (backend.encode(batch, "video") + backend.encode(batch, "audio")) / 2
    assert list(embeddings) == ["video+audio"]
    np.testing.assert_allclose(embeddings["video+audio"], expected, atol=1e-6)


def test_unknown_encoders_and_empty_data_are_errors(backend: TorchBackend) -> None:
    with pytest.raises(ConfigError, match="no encoder 'smell'"):
        embed_dataset(backend, [make_batch(1, 0)], ("text", "smell"))
    with pytest.raises(DataError, match="the data set is empty"):
        embed_dataset(backend, [], ("text",))
