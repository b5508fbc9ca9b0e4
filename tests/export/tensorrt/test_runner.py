from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eao.errors import DataError, ExportError
from eao.export.encoders import InputSpec
from eao.export.tensorrt import runner
from eao.export.tensorrt.runner import MAX_PLANS, TensorRTSession

CLASSIC = ("10.13", "11.4")
ALL = (*CLASSIC, "rtx-1.7")
Embed = Callable[[np.ndarray, np.ndarray], np.ndarray]
Open = Callable[..., TensorRTSession]


@pytest.fixture
def open_session(tmp_path: Path, text_specs: tuple[InputSpec, ...]) -> Open:
    path = tmp_path / "text.engine"
    path.write_bytes(b"an engine")

    def open_it(fake: Any, **options: Any) -> TensorRTSession:
        return TensorRTSession(path, text_specs, fake.api.flavour, **options)

    return open_it


def feeds(batch: int, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((batch, tokens, 4)).astype(np.float32)
    return {"text": text, "text_mask": rng.random((batch, tokens)) < 0.7}


@pytest.mark.parametrize("version", ALL)
def test_the_fake_has_no_name_that_the_real_one_lacks(
    version: str, fake_classes: dict[str, Any], trt_names: Callable[[str], dict[str, list[str]]], make_fake: Any
) -> None:
    names, fake = trt_names(version), make_fake(version)
    for cls in (n for n in fake_classes if hasattr(fake.trt, n)):
        public = {n for n in vars(fake_classes[cls]) if not n.startswith("_")}
        assert public <= set(names[cls]), cls
    assert set(vars(fake.trt)) <= set(names)


@pytest.mark.parametrize("version", ALL)
def test_sizes_in_any_order_give_the_right_rows(
    version: str, make_fake: Any, open_session: Open, expected: Embed
) -> None:
    session = open_session(make_fake(version))
    rng = np.random.default_rng(1)
    for step in range(60):  # few sizes, so that they come again and their graphs are replayed
        given = feeds(int(rng.choice([1, 2, 16])), int(rng.choice([1, 5, 9])), seed=step)
        found = session.run(given)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected(given["text"], given["text_mask"]), rtol=1e-6)


def test_the_profiles_are_read_back_by_axis(make_fake: Any, open_session: Open) -> None:
    session = open_session(make_fake("10.13"))
    assert [str(p["batch"]) for p in session.profiles] == ["1:1:1", "1:8:16"]
    assert [str(p["text_tokens"]) for p in session.profiles] == ["1:5:9", "1:5:9"]


def test_a_run_takes_the_profile_that_suits_its_sizes(make_fake: Any, open_session: Open) -> None:
    fake = make_fake("10.13")
    session = open_session(fake)
    session.run(feeds(1, 5))
    session.run(feeds(3, 5))
    assert [context._index for context in fake.contexts] == [0, 1]


@pytest.mark.parametrize("version", CLASSIC)
def test_the_second_run_of_a_size_is_recorded_and_later_ones_are_one_launch(
    version: str, make_fake: Any, open_session: Open
) -> None:
    fake = make_fake(version)
    session = open_session(fake)
    for _ in range(5):
        session.run(feeds(2, 5))
    assert (fake.cuda.plain_runs, len(fake.cuda.graphs), fake.cuda.launches) == (1, 1, 4)


def test_each_size_has_a_context_of_its_own_and_they_share_scratch_memory(make_fake: Any, open_session: Open) -> None:
    fake = make_fake("10.13")
    session = open_session(fake)
    for tokens in (1, 2, 3, 1, 2, 3):
        session.run(feeds(2, tokens))
    assert len(fake.contexts) == 3
    assert len({context._scratch for context in fake.contexts}) == 1


def test_no_more_than_a_number_of_sizes_stay_ready(
    make_fake: Any, open_session: Open, expected: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_PLANS", 4)
    fake = make_fake("11.4")
    session = open_session(fake)
    for tokens in (1, 2, 3, 4, 5, 6, 1):
        given = feeds(2, tokens, seed=tokens)
        for _ in range(2):
            np.testing.assert_allclose(session.run(given), expected(*given.values()), rtol=1e-6)
    assert len(session._plans) == len(fake.cuda.graphs) == 4
    assert MAX_PLANS > 4


def test_without_graphs_every_run_is_started_piece_by_piece(make_fake: Any, open_session: Open) -> None:
    fake = make_fake("10.13")
    session = open_session(fake, graphs=False)
    for _ in range(3):
        session.run(feeds(2, 5))
    assert (fake.cuda.plain_runs, fake.cuda.launches) == (3, 0)


def test_rtx_records_by_itself_and_needs_one_context_a_profile(make_fake: Any, open_session: Open) -> None:
    fake = make_fake("rtx-1.7")
    session = open_session(fake)
    for batch, tokens in ((1, 5), (2, 5), (3, 7), (1, 6), (2, 5)):
        session.run(feeds(batch, tokens))
    assert len(fake.contexts) == 2 and not fake.cuda.graphs
    assert session._kernels.config.cuda_graph_strategy is fake.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE


def test_rtx_keeps_the_kernels_it_compiled(make_fake: Any, open_session: Open, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "kernels"
    open_session(make_fake("rtx-1.7"), runtime_cache=cache).run(feeds(1, 5))
    assert cache.read_bytes() == b"kernels"
    again = open_session(make_fake("rtx-1.7"), runtime_cache=cache)
    assert again._kernels.config._cache._content == b"kernels"


def test_kernels_of_another_gpu_are_compiled_anew_and_it_is_said(
    make_fake: Any, open_session: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kernels").write_bytes(b"of another GPU")
    open_session(make_fake("rtx-1.7"), runtime_cache=tmp_path / "kernels").run(feeds(1, 5))
    assert "compiled anew" in caplog.text
    assert (tmp_path / "kernels").read_bytes() == b"kernels"


def test_a_recording_that_fails_is_said_once_and_runs_go_on(
    make_fake: Any, open_session: Open, expected: Embed, caplog: pytest.LogCaptureFixture
) -> None:
    fake = make_fake("10.13")
    fake.cuda.refuse_capture = True
    session = open_session(fake)
    given = feeds(2, 5)
    for _ in range(4):
        np.testing.assert_allclose(session.run(given), expected(*given.values()), rtol=1e-6)
    assert caplog.text.count("runs without a CUDA graph: CUDA: cudaStreamEndCapture failed") == 1


def test_pycuda_runs_without_graphs_and_it_is_said_once(
    make_fake: Any, open_session: Open, caplog: pytest.LogCaptureFixture
) -> None:
    fake = make_fake("10.13")
    fake.cuda.captures = False
    session = open_session(fake)
    for _ in range(4):
        session.run(feeds(2, 5))
    assert caplog.text.count("install cuda-python") == 1
    assert fake.cuda.plain_runs == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"text": np.zeros((17, 5, 4), np.float32), "text_mask": np.ones((17, 5), bool)},
            r"batch 17 .*1 to 1, 1 to 16",
        ),
        ({"text": np.zeros((2, 10, 4), np.float32), "text_mask": np.ones((2, 10), bool)}, "text_tokens 10 .*1 to 9"),
        ({"text": np.zeros((2, 5, 4))}, "text is float64 with 3 axes, .* takes float32"),
        ({"text": np.zeros((2, 4), np.float32)}, "with 2 axes, .* with 3"),
        ({"text": np.zeros((2, 5, 3), np.float32)}, r"shape \(2, 5, 3\), but it should be \(2, 5, 4\)"),
        ({"text_mask": np.ones((2, 4), bool)}, r"text_mask has shape \(2, 4\), .*\(2, 5\)"),
        ({"text_mask": None}, "needs the input text_mask"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    change: dict[str, np.ndarray | None], message: str, make_fake: Any, open_session: Open
) -> None:
    session = open_session(make_fake("10.13"))
    given = {name: array for name, array in {**feeds(2, 5), **change}.items() if array is not None}
    with pytest.raises(DataError, match=message):
        session.run(given)
    assert session.run(feeds(2, 5)).shape == (2, 4)  # it still runs


def test_a_run_that_fails_is_an_error_that_names_the_engine(make_fake: Any, open_session: Open) -> None:
    fake = make_fake("10.13")
    session = open_session(fake)
    session.run(feeds(2, 5))
    fake.contexts[0]._fails = True
    with pytest.raises(ExportError, match=r"text\.engine failed: it cannot run"):
        session.time(feeds(2, 5))


def test_an_engine_of_another_gpu_is_refused_with_the_reason(
    make_fake: Any, text_specs: tuple[InputSpec, ...], tmp_path: Path
) -> None:
    make_fake("10.13")
    (tmp_path / "x.engine").write_bytes(b"of another GPU")
    with pytest.raises(ExportError, match=r"x\.engine: .*incompatible device\n.*build it again on this machine"):
        TensorRTSession(tmp_path / "x.engine", text_specs, "tensorrt")


def test_a_missing_engine_is_an_error(make_fake: Any, text_specs: tuple[InputSpec, ...], tmp_path: Path) -> None:
    make_fake("10.13")
    with pytest.raises(ExportError, match=r"none\.engine does not exist"):
        TensorRTSession(tmp_path / "none.engine", text_specs, "tensorrt")


def test_an_engine_of_another_encoder_is_refused(
    make_fake: Any, text_specs: tuple[InputSpec, ...], tmp_path: Path
) -> None:
    make_fake("10.13")
    (tmp_path / "x.engine").write_bytes(b"an engine")
    with pytest.raises(ExportError, match="no engine of this encoder: its tensors are text, text_mask, output"):
        TensorRTSession(tmp_path / "x.engine", text_specs[:1], "tensorrt")


def test_an_engine_with_another_dtype_is_refused(
    make_fake: Any, text_specs: tuple[InputSpec, ...], tmp_path: Path
) -> None:
    make_fake("10.13")
    (tmp_path / "x.engine").write_bytes(b"an engine")
    specs = (text_specs[0], InputSpec("text_mask", "float32", text_specs[1].shape))
    with pytest.raises(ExportError, match="has text_mask as BOOL, not float32"):
        TensorRTSession(tmp_path / "x.engine", specs, "tensorrt")


@pytest.mark.parametrize("allowed", [False, True])
def test_code_in_engines_is_allowed_only_where_it_was_asked_for(
    allowed: bool, make_fake: Any, open_session: Open
) -> None:
    fake = make_fake("10.13")
    open_session(fake, version_compatible=allowed)
    assert fake.runtime.engine_host_code_allowed is allowed


@pytest.mark.parametrize("version", ALL)
def test_closing_gives_everything_back(version: str, make_fake: Any, open_session: Open) -> None:
    fake = make_fake(version)
    session = open_session(fake)
    for _ in range(2):
        session.run(feeds(2, 5))
    session.close()
    session.close()
    assert not (fake.cuda.memory or fake.cuda.pinned or fake.cuda.queues or fake.cuda.graphs)
    with pytest.raises(ExportError, match="is closed"):
        session.run(feeds(2, 5))


def test_a_session_that_is_dropped_gives_everything_back(make_fake: Any, open_session: Open) -> None:
    fake = make_fake("10.13")
    open_session(fake).run(feeds(2, 5))
    gc.collect()
    assert not (fake.cuda.memory or fake.cuda.pinned or fake.cuda.queues)


def test_threads_take_turns(make_fake: Any, open_session: Open, expected: Embed) -> None:
    session = open_session(make_fake("10.13"))
    wrong = []

    def work(seed: int) -> None:
        for step in range(20):
            given = feeds(1 + (seed + step) % 4, 5, seed=seed)
            if not np.allclose(session.run(given), expected(*given.values()), rtol=1e-6):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_timing_takes_copies_and_computing_apart(make_fake: Any, open_session: Open) -> None:
    timing = open_session(make_fake("10.13")).time(feeds(2, 5))
    assert timing._asdict() == {"upload": 0.0, "compute": 1.0, "download": 2.0}  # of the fake: the order of the steps


def test_what_tensorrt_says_is_logged_for_those_who_ask(
    make_fake: Any, text_specs: tuple[InputSpec, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_fake("10.13")
    (tmp_path / "x.engine").write_bytes(b"of another GPU")
    with caplog.at_level(logging.DEBUG), pytest.raises(ExportError):
        TensorRTSession(tmp_path / "x.engine", text_specs, "tensorrt")
    assert "[tensorrt] The engine plan file" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_an_engine_gives_the_rows_that_onnxruntime_gives(graphs: bool, written: Any, tmp_path: Path) -> None:
    """Builds for the GPU of this machine and runs each size three times: plainly, recorded, replayed."""
    pytest.importorskip("tensorrt")
    pytest.importorskip("cuda.bindings.runtime")
    from eao.config import load_config
    from eao.export.session import open_session as open_onnx
    from eao.export.tensorrt.builder import build
    from eao.export.tensorrt.profiles import make_profiles
    from eao.export.tensorrt.request import BuildRequest

    specs = written.manifest.specs("video-audio")
    config = load_config(written.path / written.manifest.config.file)
    profiles = make_profiles(
        specs, config, {"batch": "1,1:4:8", "video_tokens": "1:3:9", "spectrogram_frames": "2:16:64"}
    )
    graph = written.path / "video-audio.fp32.onnx"
    built = build(graph, tmp_path / "e.engine", BuildRequest(flavour="tensorrt", profiles=profiles))
    session, reference = TensorRTSession(built.path, specs, "tensorrt", graphs=graphs), open_onnx(graph, threads=1)
    rng = np.random.default_rng(0)
    for batch, tokens, frames in [(1, 1, 2), (3, 9, 64), (8, 3, 16)] * 3:
        given = {
            "video": rng.standard_normal((batch, tokens, 10)).astype(np.float32),
            "video_mask": rng.random((batch, tokens)) < 0.7,
            "audio": rng.standard_normal((batch, 40, frames)).astype(np.float32),
            "audio_mask": np.ones((batch, frames), bool),
        }
        # fp32 without TF32, outputs of unit norm: rounding alone.
        np.testing.assert_allclose(session.run(given), reference.run(None, given)[0], atol=1e-4)
