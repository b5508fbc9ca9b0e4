"""docs/reproduce.md: its commands can be given, it names every experiment, and its figures are those that were read."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from eao.cli import app
from eao.config import Config, WholeData, lay_over, load_config, override_config, read_yaml
from eao.configs import find_config, shipped_configs
from eao.evaluation.published import read_published

PAGE = (Path(__file__).parent.parent / "docs/reproduce.md").read_text(encoding="utf-8")
CODE = re.compile(r"^ {4}(\S.*)$|`([^`\n]+)`", re.MULTILINE)
FIGURES = re.compile(r"^\| (MSR-VTT|YouCook2) \|.*\| (\d+\.\d) / (\d+\.\d) / (\d+\.\d) \|$", re.MULTILINE)
COMMANDS = [
    command
    for block, inline in CODE.findall(PAGE)
    if (command := re.sub(r"^torchrun \S+ \S+ -m eao", "eao", block or inline)).count(" ") > 1
    and command.startswith("eao ")
]
"""Those in code blocks and in tables; what starts one in several processes is taken off."""
BACKBONES = "pretraining/ablation/stronger_backbone"
CHECKPOINTS = {
    "everything_at_once_tva": "pretraining/everything_at_once_tva",
    "everything_at_once_tv": "pretraining/everything_at_once_tv",
    "finetuned_msrvtt": "finetuning/msrvtt",
    "finetuned_youcook": "finetuning/youcook",
    "s3d": f"{BACKBONES}/s3d",
    "clip": f"{BACKBONES}/clip",
}
WIDTHS = {"2d": 2048, "2d_full": 2048, "3d": 2048, "3d_full": 2048, "s3d": 1024, "clip": 512, None: 0}


def parse(command: str) -> tuple[str, dict[str, Any]]:
    """The name of a command and its arguments, as the command line reads them."""
    _, name, *arguments = shlex.split(command)
    known: Any = typer.main.get_command(app)
    return name, known.commands[name].make_context(name, arguments).params


def given(kind: str) -> list[str]:
    """The commands of one name that take a configuration of ours."""
    return [c for c in dict.fromkeys(COMMANDS) if c.startswith(f"eao {kind} ") and "theirs/" not in c]


def train_config(command: str) -> tuple[str, Config]:
    """The run folder of a training, and its configuration."""
    params = parse(command)[1]
    config = load_config(find_config(params["config"]), params["overrides"] or [])
    return str(params["out_folder"] or f"runs/{config.name}"), config


@functools.cache
def runs() -> dict[str, Config]:
    """The trainings of the page by run folder."""
    return dict(train_config(command) for command in given("train"))


def model_config(model: str) -> Config:
    """What a model that the page evaluates was trained with."""
    folder, _, name = model.partition("/")
    return runs()[model] if folder == "runs" else load_config(find_config(CHECKPOINTS[name]))


def test_there_are_commands_of_every_kind() -> None:
    assert all(len(given(kind)) > 5 for kind in ("convert", "train", "eval"))


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS))
def test_command_is_understood(command: str) -> None:
    name, params = parse(command)
    assert load_config(overrides=params["overrides"] or [])
    assert name != "convert" or str(params["target"]).partition("/")[2] in CHECKPOINTS


@pytest.mark.parametrize("command", given("train"))
def test_training_has_settings_that_exist(command: str) -> None:
    assert train_config(command)[1].data.train is not None


@pytest.mark.parametrize("command", given("eval"))
def test_evaluation_fits_the_model(command: str) -> None:
    params = parse(command)[1]
    trained = model_config(str(params["model"]))
    config = lay_over(trained, read_yaml(find_config(params["config"])), params["config"])
    config = override_config(config, params["overrides"] or [])
    assert config.model.use_positional_emb == trained.model.use_positional_emb
    (test,) = config.data.named("test").values()
    if isinstance(test, WholeData):
        values = test.model_dump()
        assert WIDTHS[values["key_2d"]] + WIDTHS[values["key_3d"]] == config.model.video_dim


def test_every_experiment_is_named() -> None:
    commands = [*given("train"), *given("eval")]
    named = {find_config(parse(command)[1]["config"]).resolve() for command in commands}
    assert named == {find_config(name).resolve() for name in shipped_configs() if not name.startswith("demo/")}


def test_every_published_checkpoint_is_evaluated() -> None:
    evaluated = {str(parse(command)[1]["model"]) for command in given("eval")}
    assert {f"checkpoints/{name}" for name in CHECKPOINTS} <= evaluated


def test_figures_are_those_that_were_read() -> None:
    names = {"MSR-VTT": "msrvtt", "YouCook2": "youcook2"}
    found = [
        (names[name], dict(zip(("R1", "R5", "R10"), map(float, row), strict=True)))
        for name, *row in FIGURES.findall(PAGE)
    ]
    known = [(p.dataset, p.metrics) for p in read_published()]
    assert sorted(found, key=str) == sorted(known, key=str)
