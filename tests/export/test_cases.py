from __future__ import annotations

from collections.abc import Callable

import torch

from eao.export.cases import parity_cases, token_pool
from eao.export.encoders import Model
from eao.model import Batch

MakeModel = Callable[[str], Model]


def test_cases_cover_batches_lengths_and_missing_modalities(make_model: MakeModel) -> None:
    cases = list(parity_cases(make_model("plain"), "video-audio"))
    assert {len(case.batch) for case in cases} == {1, 3, 8}
    assert {len(case.batch) for case in cases if case.alone} == {8}
    assert len({case.batch.video.shape[1] for case in cases if case.batch.video is not None}) == 3
    for modality in ("video", "audio"):
        empty = [c.batch for c in cases if c.name.endswith(f"no {modality}")]
        assert {len(batch) for batch in empty} == {1, 3, 8}
        assert all(not getattr(batch, f"{modality}_mask")[0].any() for batch in empty)
    holes = [c.batch.video_mask for c in cases if c.name.startswith("batch 8") and c.name.endswith("holes")]
    steps = [mask.int().diff(dim=1) for mask in holes if mask is not None]
    assert any((step > 0).any() for step in steps)  # a real token after padding


def test_cases_stay_within_the_limits_of_an_engine(make_model: MakeModel) -> None:
    limits = {"batch": (1, 4), "video_tokens": (12, 24)}
    cases = list(parity_cases(make_model("plain"), "video", limits=limits))
    assert {len(case.batch) for case in cases} == {1, 3, 4}
    assert {len(case.batch) for case in cases if case.alone} == {4}
    assert {case.batch.video.shape[1] for case in cases if case.batch.video is not None} == {12, 24}
    assert len({case.name for case in cases}) == len(cases)


def test_an_engine_that_takes_no_single_clip_is_not_asked_for_one(make_model: MakeModel) -> None:
    assert not any(c.alone for c in parity_cases(make_model("plain"), "text", limits={"batch": (2, 8)}))


def test_cases_are_filled_with_real_tokens_where_there_are_any(make_model: MakeModel, clips: list[Batch]) -> None:
    assert clips[0].text is not None and clips[0].text_mask is not None and clips[0].audio is not None
    mask = clips[0].text_mask.clone()
    mask[:, 3:] = False
    batch = Batch(text=clips[0].text, text_mask=mask, audio=clips[0].audio)
    real = {tuple(token.tolist()) for token in batch.text[:, :3].flatten(0, 1)} if batch.text is not None else set()
    frames = {tuple(frame.tolist()) for frame in clips[0].audio.transpose(1, 2).flatten(0, 1)}
    model = make_model("plain")
    for case in parity_cases(model, "text-video", clips=[batch]):
        text, video = case.batch.text, case.batch.video
        assert text is not None and video is not None and case.batch.text_mask is not None
        assert {tuple(token.tolist()) for token in text[case.batch.text_mask]} <= real
        lengths = video.norm(dim=-1)  # without real video it is made up, of unit norm
        torch.testing.assert_close(lengths[lengths > 0], torch.ones_like(lengths[lengths > 0]))
    full = next(c.batch for c in parity_cases(model, "audio", clips=[batch]) if c.name == "batch 3, long, full")
    assert full.audio is not None
    assert {tuple(frame.tolist()) for frame in full.audio.transpose(1, 2).flatten(0, 1)} <= frames


def test_there_is_no_pool_without_a_real_token(clips: list[Batch]) -> None:
    assert token_pool([], "text") is None
    silent = Batch(audio=torch.zeros(2, 40, 8), audio_mask=torch.zeros(2, 8, dtype=torch.bool))
    assert token_pool([silent], "audio") is None
    pool = token_pool([silent, *clips], "audio")
    assert pool is not None and pool.shape == (12 * 16, 40)
