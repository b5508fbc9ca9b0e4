"""Optimisation profiles: the sizes an engine is compiled for, by axis, checked before anything is built.

TensorRT-RTX builds from profiles that contradict the graph or themselves and fails only on the target, and TensorRT
reports them by tensor and number; here every size is checked by the name of its axis first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from eao.errors import DataError, ExportError

if TYPE_CHECKING:
    from eao.config import Config
    from eao.export.encoders import Axis, InputSpec

# The names of `eao.export.encoders.DYNAMIC`, which this module must not import: it would load torch into every build.
BATCH = "batch"
TEXT_TOKENS = "text_tokens"
VIDEO_TOKENS = "video_tokens"
SPECTROGRAM_FRAMES = "spectrogram_frames"
AXES = (BATCH, TEXT_TOKENS, VIDEO_TOKENS, SPECTROGRAM_FRAMES)

MAX_ELEMENTS = 2**31 - 1
"""TensorRT counts the elements of a tensor with 32 bits."""
_OPTIMAL_BATCH = 8


class AxisRange(NamedTuple):
    """The sizes of one axis: from `min` to `max`, fastest at `opt`."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"


Profile = dict[str, AxisRange]
"""Axis name -> its sizes. An engine has one or several; a run takes the one that suits its sizes best."""


def parse_range(text: str) -> AxisRange:
    """A range as users write it: "min:opt:max", or one size.

    Raises:
        ExportError: it is neither, or its sizes are not in order.

    Example:
        >>> parse_range("1:8:64"), parse_range("12")
        (AxisRange(min=1, opt=8, max=64), AxisRange(min=12, opt=12, max=12))
    """
    parts = text.strip().split(":")
    if len(parts) not in (1, 3) or not all(part.strip().isdecimal() for part in parts):
        raise ExportError(f"{text!r} is no range of sizes", "write MIN:OPT:MAX, such as 1:8:64, or one size")
    sizes = [int(part) for part in parts]
    found = AxisRange(*sizes) if len(sizes) == 3 else AxisRange(sizes[0], sizes[0], sizes[0])
    if not 1 <= found.min <= found.opt <= found.max:
        raise ExportError(f"the range {text} must hold 1 <= min <= opt <= max", "such as 1:8:64")
    return found


def make_profiles(
    specs: Sequence[InputSpec], config: Config, ranges: Mapping[str, str] | None = None
) -> tuple[Profile, ...]:
    """The profiles of an encoder: the ranges that were given, and the experiment's sizes for every other axis.

    By default there are two, for one clip or sentence at a time (a query) and for batches (a gallery).

    Args:
        specs: the inputs of the encoder.
        config: the experiment, for the lengths that its data sets and its evaluation use.
        ranges: axis name -> "min:opt:max"; several profiles are separated by commas, and an axis with one range has it
            in all of them. Axes that this encoder lacks are left out, so that one set of ranges serves all encoders.

    Raises:
        ExportError: an unknown axis, a range that does not parse or does not fit the graph, or numbers of ranges that
            differ.

    Example:
        >>> from eao.export.encoders import Axis, InputSpec
        >>> text = InputSpec("text", "float32", (Axis("batch"), Axis("text_tokens"), 300))
        >>> from eao.config import Config
        >>> for profile in make_profiles([text], Config(), {"batch": "1,4:16:128"}):
        ...     print({axis: str(sizes) for axis, sizes in profile.items()})
        {'batch': '1:1:1', 'text_tokens': '1:20:20'}
        {'batch': '4:16:128', 'text_tokens': '1:20:20'}
    """
    given = dict(ranges or {})
    axes = _axes(specs)
    for name in given:
        if name not in AXES:
            raise ExportError(f"no encoder has an axis {name!r}", f"the axes are {', '.join(AXES)}")
    parsed = {name: [_parse(name, part) for part in given[name].split(",")] for name in given if name in axes}
    count = max((len(found) for found in parsed.values()), default=1)
    defaults = _default_ranges(axes, config)
    if BATCH in axes and BATCH not in parsed and count == 1:
        alone, batch = AxisRange(1, 1, 1), defaults[BATCH]
        parsed[BATCH] = [alone, batch] if batch.max > 1 else [alone]
        count = len(parsed[BATCH])
    for name, found in parsed.items():
        if len(found) not in (1, count):
            raise ExportError(
                f"{_flag(name)} has {len(found)} ranges, but another axis has {count}",
                "give every axis one range for all profiles, or as many as there are profiles",
            )
    profiles = tuple(
        {name: found[i % len(found)] for name in axes for found in [parsed.get(name, [defaults[name]])]}
        for i in range(count)
    )
    check_profiles(profiles, specs)
    return profiles


def check_profiles(profiles: Sequence[Profile], specs: Sequence[InputSpec]) -> None:
    """Check profiles against the inputs of an encoder.

    Raises:
        ExportError: no profile, an axis missing or unknown, sizes out of order, below the axis' minimum or no multiple
            of its step, or an input with more elements than TensorRT can count.
    """
    axes = _axes(specs)
    if axes and not profiles:
        raise ExportError("an engine with axes that vary needs a profile", f"give sizes for {', '.join(axes)}")
    for profile in profiles:
        if set(profile) != set(axes):
            wrong = sorted(set(profile) ^ set(axes))[0]
            what = "lacks" if wrong in axes else "has"
            raise ExportError(f"the profile {what} the axis {wrong!r}", f"the encoder's axes are {', '.join(axes)}")
        for name, sizes in profile.items():
            _check_range(axes[name], sizes)
        for spec in specs:
            shape = input_shape(spec, {name: sizes.max for name, sizes in profile.items()})
            if math.prod(shape) > MAX_ELEMENTS:
                raise ExportError(
                    f"the largest {spec.name}, {' x '.join(map(str, shape))}, has more than 2^31 - 1 elements",
                    f"lower the maximum of {' or '.join(_flag(a.name) for a in _axes([spec]).values())}",
                )


def choose_profile(profiles: Sequence[Profile], sizes: Mapping[str, int], engine: str = "the engine") -> int:
    """The index of the profile that holds sizes and whose optimum is nearest to them.

    Raises:
        DataError: no profile holds them; it names the axis and the ranges.

    Example:
        >>> alone, batch = {"batch": AxisRange(1, 1, 1)}, {"batch": AxisRange(1, 8, 64)}
        >>> [choose_profile([alone, batch], {"batch": size}) for size in (1, 2, 64)]
        [0, 1, 1]
    """
    fitting = [i for i, p in enumerate(profiles) if all(p[n].min <= size <= p[n].max for n, size in sizes.items())]
    if fitting:
        return min(fitting, key=lambda i: sum(abs(math.log(size / profiles[i][n].opt)) for n, size in sizes.items()))
    for name, size in sizes.items():
        if not any(p[name].min <= size <= p[name].max for p in profiles):
            ranges = ", ".join(dict.fromkeys(f"{p[name].min} to {p[name].max}" for p in profiles))
            raise DataError(f"{name} {size} is outside of what {engine} was built for: {ranges}", _wider(name, size))
    each = "; ".join(", ".join(f"{n} {r.min} to {r.max}" for n, r in p.items()) for p in profiles)
    wanted = ", ".join(f"{name} {size}" for name, size in sizes.items())
    raise DataError(f"no profile of {engine} holds {wanted} at once: {each}", "export it with a profile that does")


def input_shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of an input with its varying axes at `sizes`."""
    return tuple(axis if isinstance(axis, int) else sizes[axis.name] for axis in spec.shape)


def _axes(specs: Sequence[InputSpec]) -> dict[str, Axis]:
    return {axis.name: axis for spec in specs for axis in spec.shape if not isinstance(axis, int)}


def _parse(name: str, text: str) -> AxisRange:
    try:
        return parse_range(text)
    except ExportError as error:
        raise ExportError(f"{_flag(name)}: {error.message}", error.hint) from None


def _check_range(axis: Axis, sizes: AxisRange) -> None:
    if not 1 <= sizes.min <= sizes.opt <= sizes.max:
        raise ExportError(f"{_flag(axis.name)} {sizes} must hold 1 <= min <= opt <= max", "such as 1:8:64")
    for size in sizes:
        if size < axis.minimum:
            hint = f"start at {axis.minimum}"
            raise ExportError(f"{_flag(axis.name)} {sizes}: the encoder takes {axis.minimum} or more", hint)
        if size % axis.multiple:
            near = max(round(size / axis.multiple) * axis.multiple, axis.minimum)
            raise ExportError(
                f"{_flag(axis.name)} {sizes}: {size} is no multiple of {axis.multiple}", f"the nearest is {near}"
            )


def _default_ranges(axes: Mapping[str, Axis], config: Config) -> dict[str, AxisRange]:
    """From the least the graph takes up to the longest that the experiment's data sets have."""
    data = config.data
    sets = [d for split in ("train", "validation", "test") for d in data.named(split).values()]
    longest = {
        TEXT_TOKENS: data.text.max_words,
        VIDEO_TOKENS: max([data.video_tokens, *(d.video_tokens or 0 for d in sets)]),
        SPECTROGRAM_FRAMES: max([data.audio_frames, *(d.audio_frames or 0 for d in sets)]),
        BATCH: config.evaluation.batch_size,
    }
    ranges = {}
    for name, axis in axes.items():
        top = max(math.ceil(longest[name] / axis.multiple) * axis.multiple, axis.minimum)
        best = min(_OPTIMAL_BATCH, top) if name == BATCH else top
        ranges[name] = AxisRange(axis.minimum, best, top)
    return ranges


def _wider(name: str, size: int) -> str:
    split = "split the batch, or " if name == BATCH else ""
    return f"{split}export it with a {_flag(name)} that holds {size}"


def _flag(axis: str) -> str:
    """An axis as the command line spells it."""
    return f"--{axis.replace('_', '-')}"
