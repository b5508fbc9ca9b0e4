from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import eao
from eao.checkpoint import save_native
from eao.config import Config, override_config
from eao.errors import ConfigError, DataError, ExportError
from eao.export.build import choose_requests
from eao.export.bundle import WrittenBundle, write_bundle
from eao.export.encoders import Model, input_specs
from eao.export.reference import embed
from eao.export.runtime import Bundle, batch_feeds
from eao.export.session import open_session
from eao.model import Batch

from ..conftest import write_word_vectors

MakeModel = Callable[[str], Model]


@pytest.fixture(scope="module")
def bundle(written: WrittenBundle) -> Bundle:
    return Bundle(written.path, threads=1)


def test_a_moved_bundle_embeds_as_the_model_does(
    written: WrittenBundle, make_model: MakeModel, clips: list[Batch], tmp_path: Path
) -> None:
    moved = Bundle(shutil.copytree(written.path, tmp_path / "elsewhere"), threads=1)
    assert moved.encoders == ("text", "video", "video-audio")
    assert moved.config.model.text_dim == 12
    for encoder in moved.encoders:
        found = moved.encode(clips[0], encoder)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, embed(make_model("plain"), clips[0], [encoder])[encoder], atol=1e-5)


@pytest.mark.slow
def test_a_bundle_needs_nothing_of_what_it_was_made_from(
    make_model: MakeModel, make_config: Callable[[str], Config], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    made_from = tmp_path / "made-from"
    made_from.mkdir()
    write_word_vectors(made_from / "words.bin", dim=12)
    config = override_config(make_config("plain"), [f"data.text.path={made_from / 'words.bin'}"])
    save_native(made_from / "model", make_model("plain"), config)
    requests = choose_requests(["onnx", "openvino"], ["fp32"])
    write_bundle(made_from / "model", made_from / "bundle", None, "text,video", requests, stages=["tokens"])
    expected = eao.load(made_from / "model").embed(text=["red dog", "blue"])
    shutil.move(made_from / "bundle", tmp_path / "elsewhere")
    shutil.rmtree(made_from)
    for engine in ("onnx", "openvino"):
        found = eao.load(tmp_path / "elsewhere", engine=engine).embed(text=["red dog", "blue"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert Bundle(tmp_path / "elsewhere").stage("tokens-text").name == "tokens-text"


def test_sessions_open_on_first_use_only(written: WrittenBundle, clips: list[Batch]) -> None:
    fresh = Bundle(written.path, threads=1)
    assert fresh._sessions == {}
    fresh.encode(clips[0], "text")
    assert list(fresh._sessions) == ["text"]


def test_threads_share_one_session(written: WrittenBundle, clips: list[Batch]) -> None:
    fresh = Bundle(written.path, threads=1)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda _: fresh.encode(clips[0], "video"), range(8)))
    assert all(np.array_equal(r, rows[0]) for r in rows)


def test_one_changed_byte_is_refused(written: WrittenBundle, clips: list[Batch], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(written.path, tmp_path / "b"))
    path = folder / "text.fp32.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ExportError, match="was changed since the export"):
        Bundle(folder).encode(clips[0], "text")
    assert Bundle(folder).encode(clips[0], "video").shape == (5, 8)  # the others are whole


def test_an_encoder_without_engine_is_named(bundle: Bundle, clips: list[Batch]) -> None:
    with pytest.raises(ConfigError, match="no encoder 'audio'"):
        bundle.encode(clips[0], "audio")


def test_a_missing_modality_is_named(bundle: Bundle, clips: list[Batch]) -> None:
    with pytest.raises(DataError, match=r"needs Batch\.audio,"):
        bundle.encode(clips[0].only(["video"]), "video-audio")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video": torch.zeros(2, 3, 9)}, r"\(2, 3, 9\).*\(batch, video_tokens, 10\)"),
        ({"video": torch.zeros(2, 10)}, r"takes \(batch, video_tokens, 10\)"),
        ({"video": torch.zeros(2, 3, 10, dtype=torch.int32)}, "int32.*takes float32"),
        ({"video_mask": torch.ones(2, 3)}, "float32, but masks are bool"),
        ({"video_mask": torch.ones(2, 4, dtype=torch.bool)}, "4 video_tokens, but Batch.video has 3"),
        ({"video_mask": torch.ones(1, 3, dtype=torch.bool)}, "1 batch, but Batch.video has 2"),
        ({"audio": torch.zeros(2, 40, 7)}, "7 spectrogram_frames.*multiple of 2"),
        ({"audio": torch.zeros(2, 40, 0)}, "at least 2"),
        ({"audio": torch.zeros(2, 39, 8)}, "40"),
    ],
)
def test_wrong_inputs_are_named(bundle: Bundle, change: dict[str, torch.Tensor], message: str) -> None:
    good = Batch(
        video=torch.zeros(2, 3, 10),
        video_mask=torch.ones(2, 3, dtype=torch.bool),
        audio=torch.zeros(2, 40, 8),
        audio_mask=torch.ones(2, 8, dtype=torch.bool),
    )
    assert bundle.encode(good, "video-audio").shape == (2, 8)
    with pytest.raises(DataError, match=message):
        bundle.encode(dataclasses.replace(good, **change), "video-audio")


def test_half_precision_features_are_taken(bundle: Bundle, clips: list[Batch]) -> None:
    half = dataclasses.replace(clips[0], video=clips[0].video.half())  # type: ignore[union-attr]
    np.testing.assert_allclose(bundle.encode(half, "video"), bundle.encode(clips[0], "video"), atol=1e-2)


def test_avlnet_without_lengths_averages_all_and_positional_models_insist(make_model: MakeModel) -> None:
    batch = Batch(audio=torch.zeros(3, 40, 128), audio_mask=torch.ones(3, 128, dtype=torch.bool))
    feeds = batch_feeds(batch, input_specs(make_model("avlnet"), "audio"), "audio")
    assert feeds["audio_frames"].tolist() == [-1, -1, -1]
    with pytest.raises(DataError, match=r"needs Batch\.audio_frames"):
        batch_feeds(batch, input_specs(make_model("nearest"), "audio"), "audio")


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is usable here")
def test_cuda_is_never_replaced_by_the_cpu_in_silence(written: WrittenBundle, clips: list[Batch]) -> None:
    with pytest.raises(ExportError, match="no CUDAExecutionProvider"):
        Bundle(written.path, device="cuda").encode(clips[0], "text")


def test_a_file_that_is_no_graph_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match="cannot load"):
        open_session(tmp_path / "x.onnx")
