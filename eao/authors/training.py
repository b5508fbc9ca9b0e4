"""The authors' loss, optimizer, schedule and trainer as the sections of those names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from eao.authors.schema import leftover, renamed, section
from eao.errors import CheckpointError

LOSSES = {"NormSoftmax": "norm-softmax", "MMS": "mms"}
LOSS_WEIGHTS = {
    "tv_weight": "text_video",
    "ta_weight": "text_audio",
    "va_weight": "video_audio",
    "t_va_weight": "text_videoaudio",
    "v_ta_weight": "video_textaudio",
    "a_tv_weight": "audio_textvideo",
}
TRAINER_KEYS = {
    "epochs": "epochs",
    "max_samples_per_epoch": "max_items_per_epoch",
    "save_period": "save_every",
    "use_eval_mode_always": "eval_mode",
}
# Read by name below, or elsewhere.
_READ = {"mixed_precision", "early_stop", "init_val", "monitor", "neptune", "use_clip_text_model"}
_EXPLAINED = {
    "resume_only_model": "name the checkpoint to start from with trainer.initial_weights=PATH",
    "save_latest": "the latest checkpoint is always written",
}


def translate_loss(authors: Mapping[str, Any], notices: list[str]) -> dict[str, Any]:
    """The loss section, or nothing where they state none."""
    loss = section(authors, "loss", "args")
    if not loss:
        return {}
    kind = loss.get("contrastive_loss", "NormSoftmax")
    if kind not in LOSSES:
        raise CheckpointError(f"loss.args.contrastive_loss: unknown loss {kind!r}", f"known: {', '.join(LOSSES)}")
    leftover(loss, "loss.args.", {*LOSS_WEIGHTS, "temperature", "contrastive_loss"}, notices)
    values = {"kind": LOSSES[kind], "weights": renamed(loss, LOSS_WEIGHTS)}
    return {"loss": values | renamed(loss, {"temperature": "temperature"})}


def translate_optimizer(authors: Mapping[str, Any]) -> dict[str, Any]:
    """The sections optimizer, or nothing, and schedule: constant where they state none."""
    values: dict[str, Any] = {"schedule": {"name": "constant"}}
    if optimizer := section(authors, "optimizer"):
        args = dict(section(optimizer, "args"))
        values["optimizer"] = {"name": optimizer.get("type", "Adam"), "lr": args.pop("lr", 1e-3), "args": args}
    if schedule := section(authors, "lr_scheduler"):
        args = dict(section(schedule, "args"))
        if schedule.get("type") == "ExponentialLR" and args.keys() == {"gamma"}:
            values["schedule"] = {"name": "exponential", "gamma": args["gamma"]}
        else:
            values["schedule"] = {"name": schedule.get("type"), "args": args}
    return values


def translate_trainer(authors: Mapping[str, Any], validation: Sequence[str], notices: list[str]) -> dict[str, Any]:
    """The trainer section, and tracking where they send metrics to Neptune.

    Args:
        authors: their whole configuration.
        validation: our names of their validation sets, in order.
        notices: what cannot be translated is added here.
    """
    trainer = section(authors, "trainer")
    values = renamed(trainer, TRAINER_KEYS)
    values["precision"] = "auto" if trainer.get("mixed_precision") else "fp32"
    values["monitor"] = _monitor(str(trainer.get("monitor", "off")), validation, notices)
    # They validate first unless told not to.
    values["initial_validation"] = bool(trainer and trainer.get("init_val", True))
    if isinstance(trainer.get("early_stop"), int) and trainer["early_stop"] > 0:
        values["early_stop"] = trainer["early_stop"]
    for key, instead in _EXPLAINED.items():
        default = key == "save_latest"
        if bool(trainer.get(key, default)) != default:
            notices.append(f"trainer.{key}: {instead}")
    leftover(trainer, "trainer.", {*TRAINER_KEYS, *_READ, *_EXPLAINED}, notices)
    sections: dict[str, Any] = {"trainer": values}
    return sections | ({"tracking": {"backends": ["csv", "neptune"]}} if trainer.get("neptune") else {})


def _monitor(monitor: str, validation: Sequence[str], notices: list[str]) -> str | None:
    """Such as "max val_0_t2v_metrics_R1": the best value of a metric on the first validation set."""
    if monitor == "off":
        return None
    mode, _, key = monitor.partition(" ")
    loss = re.fullmatch(r"val_loss_(\d+)", key)
    metric = re.fullmatch(r"val_(\d+)_(.+?)_metrics_(.+)", key)
    found = loss or metric
    if mode in ("min", "max") and found and int(found[1]) < len(validation):
        name = validation[int(found[1])]
        return f"{mode} validation/{name}/{'loss' if loss else f'{metric[2]}/{metric[3]}'}"  # type: ignore[index]
    notices.append(f"trainer.monitor: not translated (was {monitor!r}); the last checkpoint counts as the best")
    return None
