"""Zero-shot localisation in long videos: steps of a task (CrossTask) and actions in order (Mining YouTube).

Both start from one matrix: how similar each of a video's S one-second segments is to each of the K sentences that name
its steps. Segments and sentences are embedded apart.

Step localisation (CrossTask). Zhukov et al., "Cross-task weakly supervised learning from instructional videos", CVPR
2019, and the evaluation published with it (github.com/DmZhukov/CrossTask, dp.pyx and train.py): every step is given
exactly one segment, the steps in their listed order, so that the similarities add up to the most. A step counts as
found if its segment is labelled with that step. The recall of a task is the number of found steps over the number of
steps that occur, both summed over its videos; the recall reported is the mean over tasks.

Action segmentation (Mining YouTube). Kuehne et al., "Mining YouTube", arXiv 1906.01012, and its published alignment
(github.com/hildekuehne/Mining_YouTube_dataset): the ordered list of the video's actions is given, and every segment
is assigned to one of them by Viterbi decoding, in order, none left out. The measures are Jaccard indices: intersection
over union and intersection over detection.

The paper (arXiv 2112.04446) evaluates on both as earlier work did and publishes no code for it. These points are left
open there and are read here as follows:

- Similarities are cosines, and the ordered search adds them up as they are, as Chen et al., "Multimodal Clustering
  Networks", ICCV 2021, do (eval_cross.py of their code). A log-softmax over the sentences, which they take for Mining
  YouTube, changes nothing there: it subtracts the same number from every action a segment could be given.
- Chen et al. average the recalls of videos within a task, where Zhukov et al. sum the counts first. Both are computed.
- Segments last one second on Mining YouTube too. Lengths of actions have no prior: the published alignment takes a
  model of lengths, or a dummy for none.
- Background has no score of its own. The published alignment knows it only as an entry of the list, if it is one.
- An action is a text: what is listed twice is one class. The indices are averaged over the classes that occur in a
  video, then over videos. Background (label 0) is no class.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eao.errors import DataError
from eao.evaluation.embed import embed_dataset
from eao.evaluation.metrics import similarity
from eao.model.batch import Batch

if TYPE_CHECKING:
    from eao.backend import Backend
    from eao.data.item import Item
    from eao.data.text import TextEncoder

# S segments, K steps in their order, C classes (steps with different texts)

Scores = NDArray[np.floating]
Indices = NDArray[np.int64]


class TaskVideo(Protocol):
    """A long video with the steps that may be seen in it.

    Attributes:
        id: name of the video.
        task: name of the task it shows; videos of one task have the same steps.
        clips: its S segments, in order.
        steps: K sentences, in order.
        labels: (S, K), nonzero where a segment shows a step; or (S,), the number of the step, counted from 1, that a
            segment shows, 0 = none.
    """

    @property
    def id(self) -> str: ...
    @property
    def task(self) -> str: ...
    @property
    def clips(self) -> Sequence[Item]: ...
    @property
    def steps(self) -> Sequence[str]: ...
    @property
    def labels(self) -> NDArray[Any]: ...


class TaskDataset(Protocol):
    """Long videos with steps, such as CrossTask."""

    def __len__(self) -> int: ...
    def video(self, index: int) -> TaskVideo:
        """The video of an index."""


@dataclass(frozen=True)
class StepLocalization:
    """How many steps were found, in percent.

    Attributes:
        recall: mean over tasks of `by_task`.
        recall_by_video: mean over tasks of the mean recall of a task's videos.
        by_task: task -> found steps of all its videos / steps that occur in them.
        videos: number of videos in which a step occurs; the others are left out.
    """

    recall: float
    recall_by_video: float
    by_task: dict[str, float]
    videos: int


@dataclass(frozen=True)
class Segmentation:
    """How well aligned actions cover the true ones, in percent.

    Attributes:
        iou: intersection over union, mean over the classes of a video, then over videos.
        iod: intersection over detection, likewise.
        videos: number of videos in which an action occurs; the others are left out.
    """

    iou: float
    iod: float
    videos: int


def localize_steps(scores: Scores, ordered: bool = True) -> Indices:
    """One segment for every step.

    Args:
        scores: (S, K) similarity of segments and steps.
        ordered: each step after the one before it, so that the scores add up to the most, as CrossTask is evaluated;
            otherwise each step's most similar segment, whatever the others have.

    Returns:
        (K,) index of each step's segment.

    Raises:
        DataError: scores that are no finite matrix, or fewer segments than ordered steps.
    """
    scores = _check_scores(scores)
    if not ordered:
        return np.argmax(scores, axis=0)
    segments, steps = _check_length(scores)
    # best[k, s]: the most that steps 0 to k add up to with step k in segment s.
    best = np.full((steps, segments), -np.inf)
    best[0] = scores[:, 0]
    for k in range(1, steps):
        best[k, k:] = np.maximum.accumulate(best[k - 1])[k - 1 : -1] + scores[k:, k]
    located = np.empty(steps, dtype=np.int64)
    end = segments
    for k in reversed(range(steps)):
        end = located[k] = int(np.argmax(best[k, :end]))
    return located


def count_found(located: Indices, labels: NDArray[Any]) -> tuple[int, int]:
    """How many steps were found, and how many occur.

    Args:
        located: (K,) segment of each step, from `localize_steps`.
        labels: (S, K) nonzero where a segment shows a step. A step that occurs nowhere counts as neither.
    """
    shown = np.asarray(labels) != 0
    return int(shown[located, np.arange(len(located))].sum()), int(shown.any(axis=0).sum())


def align_actions(scores: Scores) -> Indices:
    """Every segment given to one of the actions, in their order, each for at least one segment.

    Args:
        scores: (S, K) similarity of segments and actions; the columns are the actions in order.

    Returns:
        (S,) column of each segment, from 0 to K - 1 and never falling; with the scores adding up to the most.

    Raises:
        DataError: scores that are no finite matrix, or fewer segments than actions.
    """
    scores = _check_scores(scores)
    segments, actions = _check_length(scores)
    sums = np.cumsum(scores, axis=0)
    # best[s]: the most that segments 0 to s add up to when the present action is the last one so far.
    best = sums[:, 0]
    starts = np.zeros((actions, segments), dtype=np.int64)
    for k in range(1, actions):
        # gain[s]: what is won by ending the action before in segment s, apart from this action's sum up to the end.
        gain = best - sums[:, k]
        highest = np.maximum.accumulate(gain)
        is_new = np.concatenate([[True], highest[1:] > highest[:-1]])
        last_of_previous = np.maximum.accumulate(np.where(is_new, np.arange(segments), 0))
        best = np.full(segments, -np.inf)
        best[k:] = highest[k - 1 : -1] + sums[k:, k]
        starts[k, k:] = last_of_previous[k - 1 : -1] + 1
    aligned = np.zeros(segments, dtype=np.int64)
    end = segments
    for k in reversed(range(actions)):
        start = starts[k, end - 1]
        aligned[start:end] = k
        end = start
    return aligned


def iou_iod(detected: NDArray[np.bool_], labels: NDArray[np.bool_]) -> tuple[float, float]:
    """Mean intersection over union and over detection, over the classes that occur.

    Args:
        detected: (S, C) which segments were given to which class.
        labels: (S, C) which segments show which class.

    Returns:
        Two numbers between 0 and 1, NaN if no class occurs. A class that was not detected has 0 in both.
    """
    occurs = labels.any(axis=0)
    if not occurs.any():
        return float("nan"), float("nan")
    detected, labels = detected[:, occurs], labels[:, occurs]
    intersection = (detected & labels).sum(axis=0)
    union = (detected | labels).sum(axis=0)
    return float((intersection / union).mean()), float((intersection / np.maximum(detected.sum(axis=0), 1)).mean())


def label_matrix(labels: NDArray[Any], steps: int) -> NDArray[np.bool_]:
    """Labels of either form (see `TaskVideo`) as (S, K) bool.

    Raises:
        DataError: another shape, or numbers of steps that are not there.
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == steps:
        return labels != 0
    if labels.ndim != 1:
        raise DataError(
            f"labels of shape {labels.shape} for {steps} steps", "they are (segments, steps) or (segments,)"
        )
    if len(labels) and not (np.isin(labels, np.arange(steps + 1))).all():
        raise DataError(
            f"labels from {labels.min()} to {labels.max()} for {steps} steps",
            f"a label is the number of a step, 1 to {steps}, or 0 for none",
        )
    return labels[:, None] == np.arange(1, steps + 1)


def evaluate_steps(
    backend: Backend,
    text_encoder: TextEncoder,
    dataset: TaskDataset,
    encoder: str = "video-audio",
    ordered: bool = True,
    batch_size: int = 64,
) -> StepLocalization:
    """Recall of step localisation, as on CrossTask.

    Args:
        backend: what encodes.
        text_encoder: encodes the words of the steps.
        dataset: videos with their segments, steps and labels.
        encoder: what represents a segment.
        ordered: see `localize_steps`.
        batch_size: segments encoded at once.

    Raises:
        ConfigError: the backend lacks an encoder.
        DataError: naming the video whose labels do not fit it; or no step occurs anywhere.
    """
    counts: dict[str, list[tuple[int, int]]] = {}
    for video, scores, labels in _score_videos(backend, text_encoder, dataset, encoder, batch_size):
        with _naming(video):
            counts.setdefault(video.task, []).append(count_found(localize_steps(scores, ordered), labels))
    counts = {task: [(f, n) for f, n in pairs if n] for task, pairs in counts.items()}
    counts = {task: pairs for task, pairs in counts.items() if pairs}
    if not counts:
        raise DataError("there is nothing to localise: no step occurs in any video", "check the labels")
    by_task = {task: 100 * sum(f for f, _ in pairs) / sum(n for _, n in pairs) for task, pairs in counts.items()}
    by_video = [100 * float(np.mean([f / n for f, n in pairs])) for pairs in counts.values()]
    videos = sum(map(len, counts.values()))
    return StepLocalization(float(np.mean(list(by_task.values()))), float(np.mean(by_video)), by_task, videos)


def evaluate_segmentation(
    backend: Backend,
    text_encoder: TextEncoder,
    dataset: TaskDataset,
    encoder: str = "video-audio",
    batch_size: int = 64,
) -> Segmentation:
    """IoU and IoD of actions aligned in their given order, as on Mining YouTube.

    Args:
        backend: what encodes.
        text_encoder: encodes the words of the actions.
        dataset: videos with their segments, actions in order (`steps`) and labels.
        encoder: what represents a segment.
        batch_size: segments encoded at once.

    Raises:
        ConfigError: the backend lacks an encoder.
        DataError: naming the video whose labels do not fit it; or no action occurs anywhere.
    """
    values = []
    for video, scores, labels in _score_videos(backend, text_encoder, dataset, encoder, batch_size):
        with _naming(video):
            detected = align_actions(scores)[:, None] == np.arange(len(video.steps))
        values.append(iou_iod(_by_text(detected, video.steps), _by_text(labels, video.steps)))
    found = np.array([pair for pair in values if np.isfinite(pair[0])])
    if not len(found):
        raise DataError("there is nothing to segment: no action occurs in any video", "check the labels")
    iou, iod = 100 * found.mean(axis=0)
    return Segmentation(float(iou), float(iod), len(found))


@contextlib.contextmanager
def _naming(video: TaskVideo) -> Iterator[None]:
    """Puts a video's name before the message of a data error."""
    try:
        yield
    except DataError as error:
        raise DataError(f"video {video.id!r}: {error.message}", error.hint) from None


def _score_videos(
    backend: Backend, text_encoder: TextEncoder, dataset: TaskDataset, encoder: str, batch_size: int
) -> Iterator[tuple[TaskVideo, NDArray[np.float32], NDArray[np.bool_]]]:
    """Each video with its similarities (S, K) and labels (S, K)."""
    from eao.data.item import stack

    embedded: dict[tuple[str, ...], NDArray[np.float32]] = {}  # the videos of a task share their steps
    for index in range(len(dataset)):
        video = dataset.video(index)
        steps = tuple(video.steps)
        with _naming(video):
            labels = label_matrix(video.labels, len(steps))
            if not steps or not len(labels) == len(video.clips) > 0:
                raise DataError(
                    f"{len(video.clips)} segments, {len(labels)} labels, {len(steps)} steps",
                    "every segment has a label, and there is at least one segment and one step",
                )
        if steps not in embedded:
            text, text_mask = text_encoder.encode(steps)
            embedded[steps] = embed_dataset(backend, [Batch(text=text, text_mask=text_mask)], ["text"])[0]["text"]
        starts = range(0, len(video.clips), batch_size)
        batches = (stack(video.clips[start : start + batch_size]) for start in starts)
        segments = embed_dataset(backend, batches, [encoder])[0][encoder]
        yield video, similarity(segments, embedded[steps]), labels


def _by_text(matrix: NDArray[np.bool_], steps: Sequence[str]) -> NDArray[np.bool_]:
    """Columns with the same text as one: (S, K) -> (S, C)."""
    return np.stack([matrix[:, [s == text for s in steps]].any(axis=1) for text in dict.fromkeys(steps)], axis=1)


def _check_scores(scores: Scores) -> NDArray[np.float64]:
    checked: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)
    if checked.ndim != 2 or not checked.size or not np.isfinite(checked).all():
        raise DataError(f"similarities of shape {checked.shape} are no finite (segments, steps) matrix")
    return checked


def _check_length(scores: Scores) -> tuple[int, int]:
    segments, steps = scores.shape
    if segments < steps:
        raise DataError(
            f"{segments} segments for {steps} steps in order",
            "each step needs a segment of its own: leave the video out",
        )
    return segments, steps
