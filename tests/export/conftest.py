"""Small models of several variants, and exports shared by all tests: each export takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from eao.config import Config, ModelConfig
from eao.export.build import Options
from eao.export.bundle import WrittenBundle, write_bundle
from eao.export.encoders import Model, axes, concrete_shape, input_specs
from eao.export.onnx import export_onnx
from eao.model import Batch, build_model

BASE: dict[str, Any] = {
    "text_dim": 12,
    "video_dim": 10,
    "embedding_dim": 8,
    "fusion": {"embed_dim": 16, "num_heads": 2},
    "audio": {"version": "v1", "channels": (4, 4), "blocks": (1,)},  # stride 2: every stage costs tracing time
}
V1 = {"version": "v1", "channels": (4, 4, 4, 4, 4), "blocks": (1, 1, 1, 1)}
POSITIONAL = {
    "audio": V1,
    "use_positional_emb": True,
    "text_max_tokens": 6,
    "video_max_tokens": 4,
    "audio_max_frames": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cls": {
        "fusion": {"embed_dim": 16, "num_heads": 2, "use_cls_token": True},
        "individual_projections": False,
    },
    "positional": POSITIONAL,
    "nearest": {**POSITIONAL, "audio_pooling": "nearest"},
    "max_pool": {**POSITIONAL, "audio_pooling": "max_pool"},
    "clip": {**POSITIONAL, "audio_pooling": "clip"},
    "per-modality": {"architecture": "per-modality"},
    "text-video": {"architecture": "text-video", "fusion": {"embed_dim": 16, "num_heads": 2, "depth": 0}},
    "depth0-minimal": {
        "fusion": {"embed_dim": 16, "num_heads": 2, "depth": 0},
        "token_projection": "minimal",
        "output_projection": "minimal",
    },
    "deep": {"fusion": {"embed_dim": 16, "num_heads": 2, "depth": 2}},
    "wide": {
        "text_dim": 48,
        "video_dim": 40,
        "embedding_dim": 64,
        "fusion": {"embed_dim": 64, "num_heads": 4},
        "audio": {"version": "v1", "channels": (16, 32), "blocks": (2,)},
    },
    "davenet-v2": {"audio": {"version": "v2", "channels": (4,) * 7, "blocks": (1,) * 6}},
    "avlnet": {"architecture": "avlnet"},
}


def small_config(variant: str) -> Config:
    return Config(model=ModelConfig(**{**BASE, **VARIANTS[variant]}))


def small_model(variant: str) -> Model:
    """Weights larger than at initialisation, and BatchNorm statistics off zero, so that no part is the identity."""
    torch.manual_seed(7)
    model = build_model(small_config(variant).model).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def trained_model() -> Model:
    """The wide variant with weights as training leaves them: every layer keeps the scale of its input, some channels
    weigh more than others, and BatchNorm knows the statistics of what it sees."""
    torch.manual_seed(7)
    model = build_model(small_config("wide").model)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            channels = torch.randn(len(layer.weight), *[1] * (layer.weight.ndim - 1)).mul(0.3).exp()
            layer.weight.data = torch.randn_like(layer.weight) * channels / layer.weight[0].numel() ** 0.5
        if isinstance(layer, torch.nn.LayerNorm):
            layer.weight.data.add_(torch.randn_like(layer.weight) * 0.2)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # an average over all batches
    audio = (torch.randn(16, 40, 64) * 15 - 40).clamp(-80, 0)
    model.get_submodule("davenet").train()(audio)
    return model.eval()


@pytest.fixture(scope="session")
def make_model() -> Callable[[str], Model]:
    return lambda variant: trained_model() if variant == "wide" else small_model(variant)


@pytest.fixture(scope="session")
def make_config() -> Callable[[str], Config]:
    return small_config


@pytest.fixture(scope="session")
def make_graph(
    tmp_path_factory: pytest.TempPathFactory, make_model: Callable[[str], Model]
) -> Callable[[str, str], Path]:
    """(variant, encoder) -> its fp32 graph, exported once. Tests that change files copy it first."""
    folder: Path = tmp_path_factory.mktemp("graphs")

    def graph(variant: str, encoder: str) -> Path:
        path = folder / f"{variant}.{encoder}.onnx"
        return path if path.exists() else export_onnx(make_model(variant), encoder, path, threads=1).path

    return graph


@pytest.fixture(
    params=[
        ("wide", "video-audio"),
        ("deep", "text"),
        ("max_pool", "audio"),
        ("depth0-minimal", "video"),
        ("davenet-v2", "audio"),
        ("avlnet", "text"),
        ("avlnet", "video"),
        ("avlnet", "audio"),
    ],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Variants and encoders that differ to a pass over graphs."""
    return request.param


# In a process of its own: a fault in the native builder would take the tests with it.
BUILD = """
import json, sys
import tensorrt_rtx as trt

path, capability, shapes = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(path):
    sys.exit("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
profile = builder.create_optimization_profile()
for name, least, most in shapes:
    profile.set_shape(name, least, least, most)
config = builder.create_builder_config()
config.add_optimization_profile(profile)
config.num_compute_capabilities = 1
config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
engine = builder.build_serialized_network(network, config)
if engine is None:
    sys.exit("not built")
print(engine.nbytes)
"""


@pytest.fixture
def build_with_rtx() -> Callable[..., int]:
    """(graph, model, encoder, capability) -> bytes of the engine that TensorRT-RTX builds, which needs no GPU."""
    pytest.importorskip("tensorrt_rtx")

    def build(graph: Path, model: Model, encoder: str, capability: str = "SM86") -> int:
        varying = axes(model, encoder)
        sizes = [{name: axis.size(units) for name, axis in varying.items()} for units in (1, 9)]
        shapes = [[s.name, *(concrete_shape(s, size) for size in sizes)] for s in input_specs(model, encoder)]
        command = [sys.executable, "-c", BUILD, str(graph), capability, json.dumps(shapes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split()[-1])

    return build


def random_clips(variant: str) -> list[Batch]:
    """Twelve clips of three modalities, in batches of 5 and 7."""
    config = small_config(variant).model
    generator = torch.Generator().manual_seed(3)

    def batch(size: int) -> Batch:
        return Batch(
            text=torch.randn(size, 5, config.text_dim, generator=generator),
            text_mask=torch.ones(size, 5, dtype=torch.bool),
            video=torch.randn(size, 3, config.video_dim, generator=generator),
            video_mask=torch.ones(size, 3, dtype=torch.bool),
            audio=torch.randn(size, 40, 16, generator=generator),
            audio_mask=torch.ones(size, 16, dtype=torch.bool),
        )

    return [batch(5), batch(7)]


@pytest.fixture(scope="session")
def clips() -> list[Batch]:
    return random_clips("plain")


@pytest.fixture(scope="session")
def wide_clips() -> list[Batch]:
    return random_clips("wide")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, clips: list[Batch]) -> WrittenBundle:
    """A bundle of three encoders of the plain model. Tests that change it copy it first."""
    out: Path = tmp_path_factory.mktemp("bundles") / "plain"
    return write_bundle(
        small_model("plain"),
        out,
        small_config("plain"),
        "text,video,video-audio",
        batches=clips,
        options=Options(threads=1),
    )
