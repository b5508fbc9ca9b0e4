"""The files for NVIDIA's image, as far as they can be checked without Docker and Kubernetes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from eao.serve.triton.environment import Environment
from eao.serve.triton.repository import DEPLOYMENT, write_repository


@pytest.fixture(scope="module", params=["cpu", "gpu"], ids=["for-cpu", "for-gpu"])
def deployed(
    request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    out: Path = tmp_path_factory.mktemp("deploy") / "repository"
    write_repository(bundle, out, request.param, encoders=["video"])
    return request.param, out


def documents(path: Path) -> list[dict]:  # type: ignore[type-arg]
    return list(yaml.safe_load_all(path.read_text()))


def test_no_marks_are_left(deployed: tuple[str, Path]) -> None:
    for name in DEPLOYMENT:
        assert "# gpu" not in (deployed[1] / name).read_text()


def test_compose(deployed: tuple[str, Path]) -> None:
    target, folder = deployed
    (compose,) = documents(folder / "compose.yaml")
    service = compose["services"]["triton"]
    assert service["volumes"][0] == ".:/models:ro"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert ("deploy" in service) == (target == "gpu")
    for volume in service["volumes"][1:]:
        assert volume.partition(":")[0] in compose["volumes"]


def test_kubernetes(deployed: tuple[str, Path]) -> None:
    target, folder = deployed
    deployment, service = documents(folder / "kubernetes.yaml")
    assert [d["apiVersion"] for d in (deployment, service)] == ["apps/v1", "v1"]
    pod = deployment["spec"]["template"]
    assert pod["metadata"]["labels"] == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    ports = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (target == "gpu")


def test_kserve(deployed: tuple[str, Path]) -> None:
    (service,) = documents(deployed[1] / "kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert service["spec"]["predictor"]["model"]["modelFormat"] == {"name": "triton"}


def test_the_requirements_are_what_the_models_import(deployed: tuple[str, Path]) -> None:
    lines = (deployed[1] / "requirements.txt").read_text().split()
    assert [re.split("[=<]", line)[0] for line in lines] == ["scipy", "tokenizers"]
    assert "COPY requirements.txt" in (deployed[1] / "Dockerfile").read_text()


@pytest.mark.slow
def test_the_server_knows_every_option(deployed: tuple[str, Path], environment: Environment) -> None:
    folder = deployed[1]
    shown = subprocess.run(
        [str(environment.server), "--help"], capture_output=True, text=True, env=environment.variables(), check=False
    )
    known = set(re.findall(r"--[a-z-]+", shown.stdout + shown.stderr))
    used = {option for name in DEPLOYMENT for option in re.findall(r"- (--[a-z-]+)=?", (folder / name).read_text())}
    assert len(used) >= 5
    assert used <= known
