"""The commands of docs/http.md, run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

from eao.ports import free_ports
from eao.serve.problems import Reason

from .http_service import Library, Site

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


def test_the_commands_of_the_page_work(library: Library, tmp_path: Path) -> None:
    shutil.copy(library.clips / "red.mp4", tmp_path / "clip.mp4")
    (tmp_path / "index").symlink_to(library.index)
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if not line.startswith("pip install")]
    assert len(commands) > 10
    script = "\n".join(["set -euo pipefail", "trap 'kill $(jobs -p); wait' EXIT", "set -x", *commands])
    ports = dict(zip(("8080", "8081"), map(str, free_ports(2)), strict=True))
    script = re.sub("|".join(ports), lambda found: ports[found[0]], script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (tmp_path / "output").open("wb") as output:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            timeout=900,
            env=os.environ | {"PATH": path},
        )
    told = (tmp_path / "output").read_text()
    assert done.returncode == 0, told
    assert '"hits":[{"id":' in told and '"embeddings": [[' in told and "eao_batch_size_count" in told


def test_every_metric_and_option_of_the_page_exists(site: Site) -> None:
    from typer.testing import CliRunner

    from eao.cli.common import app
    from eao.cli.serving import serve  # noqa: F401

    text = PAGE.read_text(encoding="utf-8")
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    own = set(re.findall(r"`(--[a-z-]+)", text))
    assert own - set(re.findall(r"--[a-z-]+", shown)) == set()
    told = set(re.findall(r"`(eao_[a-z_]+)", text))
    there = set(re.findall(r"^# HELP (eao_\w+)", site.get("/metrics").text, re.MULTILINE))
    assert told == {name for name in there if not name.endswith("_created")}
    (reasons,) = re.findall(r"`eao_rejected_total\{reason\}` \| 503: (.*) \|", text)
    assert all(reason in reasons for reason in get_args(Reason))
