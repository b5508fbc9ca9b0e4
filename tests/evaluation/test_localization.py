"""Step localisation and action segmentation: against enumeration, worked examples, and with a real small model."""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eao.backend import TorchBackend
from eao.config import Config, ModelConfig
from eao.data.item import Item, stack
from eao.errors import ConfigError, DataError
from eao.evaluation.localization import (
    align_actions,
    count_found,
    evaluate_segmentation,
    evaluate_steps,
    iou_iod,
    label_matrix,
    localize_steps,
)
from eao.model import Batch, build_model

# Eighths add up without rounding, and often tie.
SCORE = st.integers(-8, 8).map(lambda x: x / 8)


@st.composite
def score_matrices(draw: st.DrawFn) -> np.ndarray:
    segments = draw(st.integers(1, 8))
    steps = draw(st.integers(1, segments))
    size = segments * steps
    return np.array(draw(st.lists(SCORE, min_size=size, max_size=size))).reshape(segments, steps)


@settings(max_examples=150, deadline=None)
@given(score_matrices())
def test_located_steps_are_in_order_and_the_best_of_all(scores: np.ndarray) -> None:
    segments, steps = scores.shape
    located = localize_steps(scores)
    assert (np.diff(located) > 0).all()
    best = max(scores[list(places), range(steps)].sum() for places in combinations(range(segments), steps))
    assert scores[located, range(steps)].sum() == best


@settings(max_examples=150, deadline=None)
@given(score_matrices())
def test_an_alignment_keeps_the_order_and_is_the_best_of_all(scores: np.ndarray) -> None:
    segments, actions = scores.shape
    aligned = align_actions(scores)
    assert sorted(set(aligned)) == list(range(actions))
    assert (np.diff(aligned) >= 0).all()
    # The first segment of every action but the first.
    cuts = combinations(range(1, segments), actions - 1)
    best = max(scores[range(segments), np.searchsorted(cut, range(segments), side="right")].sum() for cut in cuts)
    assert scores[range(segments), aligned].sum() == best


@settings(max_examples=50, deadline=None)
@given(score_matrices(), st.lists(SCORE, min_size=8, max_size=8))
def test_a_log_softmax_over_the_actions_changes_no_alignment_s_rank(scores: np.ndarray, shift: list[float]) -> None:
    # What is subtracted is the same for all actions of a segment; any such number stands for it.
    shifted = scores + np.array(shift)[: len(scores), None]
    rows = range(len(scores))
    assert scores[rows, align_actions(shifted)].sum() == scores[rows, align_actions(scores)].sum()


# Segments in rows. Step 1 alone is best in segment 3, but then no segment is left for step 2 that is any good.
WORKED = np.array([[0.1, 0.0], [0.8, 0.9], [0.2, 0.7], [0.9, 0.1]])


def test_the_order_decides_between_good_places() -> None:
    assert localize_steps(WORKED).tolist() == [1, 2]
    assert localize_steps(WORKED, ordered=False).tolist() == [3, 1]


def test_a_worked_alignment() -> None:
    # The first action scores 0.1, 0.8, 0.2, 0.9 and the second 0.0, 0.9, 0.7, 0.1: cut after the first segment, 1.8.
    assert align_actions(WORKED).tolist() == [0, 1, 1, 1]


def test_one_segment_a_step_leaves_no_choice() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 5))
    assert localize_steps(scores).tolist() == align_actions(scores).tolist() == [0, 1, 2, 3, 4]


def test_found_steps_are_those_placed_where_they_are_shown() -> None:
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]])  # the third step does not occur
    assert count_found(np.array([1, 0, 2, 2]), labels) == (2, 3)


def test_iou_and_iod_of_a_worked_example() -> None:
    labels = np.array([[0, 0], [1, 0], [1, 0], [0, 1], [0, 1]], dtype=bool)
    detected = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1]], dtype=bool)
    # First class: 2 shared, 4 in either, 4 detected. Second: 1 shared, 2 in either, 1 detected.
    assert iou_iod(detected, labels) == (0.5, 0.75)


def test_classes_that_do_not_occur_count_for_nothing_and_undetected_ones_as_zero() -> None:
    labels = np.array([[1, 0, 0], [0, 1, 0]], dtype=bool)
    detected = np.array([[1, 0, 0], [1, 0, 0]], dtype=bool)
    assert iou_iod(detected, labels) == (0.25, 0.25)
    assert np.isnan(iou_iod(detected, np.zeros_like(labels))).all()


def test_labels_of_both_forms() -> None:
    expected = [[True, False], [False, False], [False, True]]
    assert label_matrix(np.array([1, 0, 2]), 2).tolist() == expected
    assert label_matrix(np.array([[3, 0], [0, 0], [0, 1]]), 2).tolist() == expected
    with pytest.raises(DataError, match=r"labels of shape \(3, 2\) for 4 steps"):
        label_matrix(np.zeros((3, 2)), 4)
    for wrong in ([0, 3], [-1, 0], [0.5, 1]):
        with pytest.raises(DataError, match="for 2 steps"):
            label_matrix(np.array(wrong), 2)


def test_scores_that_cannot_be_searched_are_errors() -> None:
    for search in (localize_steps, align_actions):
        with pytest.raises(DataError, match="2 segments for 3 steps"):
            search(np.zeros((2, 3)))
        for wrong in (np.zeros(3), np.zeros((0, 2)), np.full((3, 2), np.nan)):
            with pytest.raises(DataError, match="no finite"):
                search(wrong)
    assert localize_steps(np.zeros((2, 3)), ordered=False).tolist() == [0, 0, 0]


STEPS = {"tea": ("boil water", "pour water", "add tea"), "egg": ("crack egg", "stir egg")}
TOKENS = 4


@dataclass
class Video:
    id: str
    task: str
    labels: np.ndarray
    clips: list[Item]
    steps: tuple[str, ...]


@dataclass
class Videos:
    videos: list[Video] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.videos)

    def video(self, index: int) -> Video:
        return self.videos[index]


class Words:
    """A vector of its own for every word."""

    dim = 6
    max_words = 3

    def encode(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        text, mask = torch.zeros(len(sentences), 3, 6), torch.zeros(len(sentences), 3, dtype=torch.bool)
        for row, sentence in enumerate(sentences):
            for column, word in enumerate(sentence.split()):
                seed = sum(word.encode())
                text[row, column] = torch.randn(6, generator=torch.Generator().manual_seed(seed))
                mask[row, column] = True
        return text, mask


def make_video(name: str, task: str, labels: np.ndarray, seed: int) -> Video:
    random = np.random.default_rng(seed)
    clips = [
        Item(
            id=name,
            caption="",
            video=random.normal(size=(TOKENS, 10)).astype(np.float32),
            video_mask=np.arange(TOKENS) < 2,
            audio=random.normal(size=(40, 64)).astype(np.float32),
            audio_mask=np.arange(64) < 50,
            audio_frames=50,
        )
        for _ in labels
    ]
    return Video(name, task, labels, clips, STEPS[task])


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


@pytest.fixture(scope="module")
def crosstask() -> Videos:
    random = np.random.default_rng(7)
    labels = {"t1": (9, 3), "t2": (5, 3), "e1": (6, 2), "e2": (7, 2)}
    tasks = {"t": "tea", "e": "egg"}
    videos = [make_video(i, tasks[i[0]], random.integers(0, 2, s), n) for n, (i, s) in enumerate(labels.items())]
    videos.append(make_video("unlabelled", "egg", np.zeros((4, 2), dtype=int), 99))
    return Videos(videos)


def score(backend: TorchBackend, video: Video, encoder: str) -> np.ndarray:
    """The similarities one by one."""
    text, text_mask = Words().encode(list(video.steps))
    steps = backend.encode(Batch(text=text, text_mask=text_mask), "text")
    segments = [backend.encode(stack([clip]).only(encoder.split("-")), encoder)[0] for clip in video.clips]
    return np.stack(segments) @ steps.T


@pytest.mark.parametrize(("encoder", "ordered"), [("video-audio", True), ("video", False)])
def test_recall_over_tasks(backend: TorchBackend, crosstask: Videos, encoder: str, ordered: bool) -> None:
    result = evaluate_steps(backend, Words(), crosstask, encoder, ordered, batch_size=4)
    counts = {
        v.id: count_found(localize_steps(score(backend, v, encoder), ordered), v.labels) for v in crosstask.videos
    }
    tea, egg = [counts["t1"], counts["t2"]], [counts["e1"], counts["e2"]]
    expected = {name: 100 * sum(f for f, _ in c) / sum(n for _, n in c) for name, c in (("tea", tea), ("egg", egg))}
    assert result.by_task == pytest.approx(expected)
    assert result.recall == pytest.approx(sum(expected.values()) / 2)
    by_video = [np.mean([100 * f / n for f, n in c]) for c in (tea, egg)]
    assert result.recall_by_video == pytest.approx(np.mean(by_video))
    assert result.videos == 4


def test_segmentation_over_videos(backend: TorchBackend) -> None:
    videos = [make_video("t", "tea", np.array([0, 1, 1, 2, 3, 0]), 0), make_video("e", "egg", np.array([2, 1, 1]), 1)]
    result = evaluate_segmentation(backend, Words(), Videos(videos))
    values = []
    for video in videos:
        aligned = align_actions(score(backend, video, "video-audio"))
        values.append(
            iou_iod(label_matrix(aligned + 1, len(video.steps)), label_matrix(video.labels, len(video.steps)))
        )
    assert (result.iou, result.iod) == pytest.approx(tuple(100 * np.mean(values, axis=0)))
    assert result.videos == 2


def test_an_action_listed_twice_is_one_class(backend: TorchBackend) -> None:
    video = make_video("v", "egg", np.array([1, 2, 3, 3]), 0)
    video.steps = ("stir egg", "crack egg", "stir egg")
    result = evaluate_segmentation(backend, Words(), Videos([video]))
    aligned = align_actions(score(backend, video, "video-audio"))
    stirs, shown = aligned != 1, np.array([True, False, True, True])
    detected = np.stack([stirs, ~stirs], axis=1)
    assert (result.iou, result.iod) == pytest.approx(
        tuple(100 * np.array(iou_iod(detected, np.stack([shown, ~shown], axis=1))))
    )


def test_errors_name_the_video(backend: TorchBackend, crosstask: Videos) -> None:
    short = make_video("short", "tea", np.eye(2, 3, dtype=int), 0)
    with pytest.raises(DataError, match="video 'short': 2 segments for 3 steps in order"):
        evaluate_steps(backend, Words(), Videos([short]))
    wrong = make_video("wrong", "egg", np.array([0, 1, 5]), 0)
    with pytest.raises(DataError, match="video 'wrong': labels from 0 to 5 for 2 steps"):
        evaluate_segmentation(backend, Words(), Videos([wrong]))
    uneven = make_video("uneven", "egg", np.array([0, 1, 2]), 0)
    uneven.clips = uneven.clips[:2]
    with pytest.raises(DataError, match="video 'uneven': 2 segments, 3 labels, 2 steps"):
        evaluate_steps(backend, Words(), Videos([uneven]))
    with pytest.raises(ConfigError, match="no encoder 'smell'"):
        evaluate_steps(backend, Words(), crosstask, "smell")


def test_nothing_to_find_is_an_error(backend: TorchBackend, crosstask: Videos) -> None:
    unlabelled = Videos(crosstask.videos[-1:])
    with pytest.raises(DataError, match="no step occurs"):
        evaluate_steps(backend, Words(), unlabelled)
    with pytest.raises(DataError, match="no action occurs"):
        evaluate_segmentation(backend, Words(), unlabelled)
