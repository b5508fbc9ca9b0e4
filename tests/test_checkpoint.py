"""Checkpoints: what is written is what is read, and every damaged or foreign file is refused with the next step."""

import functools
import importlib.util
import os
import pickle
import shutil
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import eao
from eao.checkpoint import (
    convert,
    find_checkpoint,
    load_authors,
    load_checkpoint,
    load_native,
    load_weights,
    save_native,
)
from eao.config import Config
from eao.errors import CheckpointError
from eao.model import Batch, build_model

GOLDEN = Path(__file__).parent / "golden"
CONVERTED = GOLDEN / "checkpoints"
NARROW = {"channels": (4, 4, 4, 4, 4, 4, 4)}
VARIANTS = {
    "fusion": {},
    "shared": {"individual_projections": False},
    "cls": {"individual_projections": False, "fusion": {"use_cls_token": True}},
    "depth0": {"fusion": {"depth": 0}},
    "depth2": {"fusion": {"depth": 2}},
    "positional": {"use_positional_emb": True, "text_max_tokens": 5, "video_max_tokens": 3, "audio_max_frames": 192},
    "minimal": {"token_projection": "minimal", "output_projection": "none"},
    "no head": {"output_projection": "none"},
    "no qkv bias": {"fusion": {"qkv_bias": False}},
    "v1": {"audio": {"version": "v1", "channels": (4, 4, 4, 4, 4), "blocks": (1, 2, 1, 1)}},
    "text-video": {"architecture": "text-video"},
    "per-modality": {"architecture": "per-modality"},
    "avlnet": {"architecture": "avlnet", "audio": {"version": "v1", "channels": (4, 4, 4, 4, 4)}},
}
ARCH = {
    "type": "EverythingAtOnceModel",
    "args": {
        "video_embed_dim": 6,
        "text_embed_dim": 7,
        "projection_dim": 10,
        "fusion_params": {"embed_dim": 8, "num_heads": 2, "depth": 1, "mlp_ratio": 1},
    },
}


def small_config(**model):
    fusion = {"embed_dim": 8, "num_heads": 2} | model.pop("fusion", {})
    sizes = {"text_dim": 7, "video_dim": 6, "embedding_dim": 10, "audio": NARROW}
    return Config.model_validate({"name": "small", "model": sizes | model | {"fusion": fusion}})


def small(**model):
    config = small_config(**model)
    return build_model(config.model), config


def same_bits(a, b):
    assert list(a) == list(b)
    return all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def save_pth(path, state, config=None, **other):
    path.parent.mkdir(parents=True, exist_ok=True)
    legacy = other.pop("legacy", False)
    content = {"arch": "EverythingAtOnceModel", "epoch": 2, "step": 6, "state_dict": OrderedDict(state)} | other
    content |= {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "monitor_best": 0}
    if config is not None:
        content["config"] = OrderedDict(config)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.fixture
def pth(tmp_path):
    model, _ = small()
    return save_pth(tmp_path / "authors" / "latest_model.pth", model.state_dict(), {"arch": ARCH})


# Native folders


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_exact_for_every_variant(tmp_path, variant):
    model, config = small(**VARIANTS[variant])
    save_native(tmp_path / "ck", model, config)
    again, config_again = load_native(tmp_path / "ck")
    assert same_bits(model.state_dict(), again.state_dict())
    assert config_again == config
    assert not again.training
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())


def test_aliased_tensors_are_stored_once_and_shared_again(tmp_path):
    model, config = small(architecture="per-modality")
    save_native(tmp_path / "ck", model, config)
    stored = load_file(tmp_path / "ck" / "model.safetensors")
    assert "fusion.masking_token" in stored
    assert not any(key.startswith("fusion_text.") for key in stored)
    again, _ = load_native(tmp_path / "ck")
    assert again.fusion_text.masking_token is again.fusion.masking_token
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())


def test_extra_files_come_with_the_folder(tmp_path):
    model, config = small()
    extra = {"note.txt": b"hello", "training.pt": lambda path: torch.save({"step": 3}, path)}
    save_native(tmp_path / "ck", model, config, extra=extra)
    assert (tmp_path / "ck" / "note.txt").read_bytes() == b"hello"
    assert torch.load(tmp_path / "ck" / "training.pt", weights_only=True) == {"step": 3}
    assert sorted(p.name for p in (tmp_path / "ck").iterdir()) == [
        "config.yaml", "model.safetensors", "note.txt", "training.pt",
    ]  # fmt: skip


def test_interrupted_save_leaves_the_old_checkpoint(tmp_path):
    old, config = small()
    new, _ = small()
    save_native(tmp_path / "ck", old, config)

    def interrupted(path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_native(tmp_path / "ck", new, config, extra={"training.pt": interrupted})
    assert same_bits(load_native(tmp_path / "ck")[0].state_dict(), old.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["ck"]


def test_saving_over_a_checkpoint_replaces_it(tmp_path):
    old, config = small()
    new, _ = small()
    save_native(tmp_path / "ck", old, config, extra={"training.pt": b"old"})
    save_native(tmp_path / "ck", new, config)
    assert same_bits(load_native(tmp_path / "ck")[0].state_dict(), new.state_dict())
    assert not (tmp_path / "ck" / "training.pt").exists()


def test_saving_never_replaces_a_folder_of_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="other files"):
        save_native(tmp_path, *small())
    assert (tmp_path / "thesis.tex").exists()


def test_others_may_read_what_one_user_wrote(tmp_path):
    save_native(tmp_path / "ck", *small())
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "ck").iterdir()}
    assert len(modes) == 1


def test_loaded_model_trains(tmp_path):
    save_native(tmp_path / "ck", *small())
    model, _ = load_native(tmp_path / "ck")
    before = (tmp_path / "ck" / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (tmp_path / "ck" / "model.safetensors").read_bytes() == before


def test_half_precision_weights_load_as_float32(tmp_path):
    model, config = small()
    save_native(tmp_path / "ck", model.half(), config)
    again, _ = load_native(tmp_path / "ck")
    assert {p.dtype for p in again.parameters()} == {torch.float32}


# Finding


def test_a_run_folder_means_its_best_then_its_latest(tmp_path):
    best, config = small()
    latest, _ = small()
    save_native(tmp_path / "run" / "latest", latest, config)
    assert same_bits(load_checkpoint(tmp_path / "run")[0].state_dict(), latest.state_dict())
    save_native(tmp_path / "run" / "best", best, config)
    assert same_bits(load_checkpoint(tmp_path / "run")[0].state_dict(), best.state_dict())
    assert find_checkpoint(tmp_path / "run" / "latest" / "model.safetensors") == tmp_path / "run" / "latest"


def test_a_folder_with_one_pth_means_that(pth):
    assert find_checkpoint(pth.parent) == pth
    shutil.copy(pth, pth.with_name("model_best.pth"))
    with pytest.raises(CheckpointError, match="2 checkpoints") as error:
        find_checkpoint(pth.parent)
    assert "name one" in error.value.hint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no checkpoint at"),
        (lambda path: path.mkdir(), "holds no checkpoint"),
        (lambda path: (path.mkdir(), (path / "manifest.json").write_text("{}")), "bundle of engines"),
    ],
    ids=["missing", "empty folder", "bundle"],
)
def test_paths_without_a_checkpoint(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(tmp_path / "x")
    assert error.value.hint


# Damage and misfit


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_safetensors(tmp_path, share):
    save_native(tmp_path / "ck", *small())
    path = tmp_path / "ck" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        load_native(tmp_path / "ck")


def test_missing_config(tmp_path):
    save_native(tmp_path / "ck", *small())
    (tmp_path / "ck" / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.yaml") as error:
        load_checkpoint(tmp_path / "ck")
    assert "whole" in error.value.hint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers(tmp_path, value):
    model, config = small()
    with torch.no_grad():
        model.text_proj.fc.weight[0, 0] = value
    save_native(tmp_path / "ck", model, config)
    with pytest.raises(CheckpointError, match=r"NaN or infinite weights in text_proj\.fc\.weight"):
        load_native(tmp_path / "ck")


@pytest.mark.parametrize(
    ("stored", "configured", "shapes", "hint"),
    [
        ({"text_dim": 512}, {"text_dim": 300}, "(8, 512)*(8, 300)", "model.text_dim=512 data.text.encoder=clip"),
        ({"text_dim": 384}, {"text_dim": 300}, "(8, 384)*(8, 300)", "model.text_dim=384 data.text.encoder=minilm"),
        ({"text_dim": 9}, {}, "(8, 9)*(8, 7)", "set model.text_dim=9"),
        ({"video_dim": 9}, {}, "(8, 9)*(8, 6)", "set model.video_dim=9"),
        ({"token_projection": "minimal", "text_dim": 9}, {"token_projection": "minimal"}, "(8, 9)", "model.text_dim=9"),
        ({"embedding_dim": 12}, {}, "(12, 8)*(10, 8)", "set model.embedding_dim=12"),
        ({"fusion": {"embed_dim": 16}}, {}, "(16,)*(8,)", "set model.fusion.embed_dim=16"),
        ({"fusion": {"mlp_ratio": 2.0}}, {}, "(16, 8)*(8, 8)", "model.fusion.mlp_ratio"),
        ({"audio": {"channels": (4, 4, 4, 4, 4, 4, 5)}}, {}, "(5, 4, 1, 9)*(4, 4, 1, 9)", "model.audio.channels"),
        (VARIANTS["positional"] | {"text_max_tokens": 9}, VARIANTS["positional"], "9, 8)*5, 8)", "text_max_tokens=9"),
        (VARIANTS["positional"] | {"audio_max_frames": 64}, VARIANTS["positional"], "1, 8)*3, 8)", "audio_max_frames"),
        (
            VARIANTS["avlnet"] | {"text_dim": 9},
            VARIANTS["avlnet"],
            "(10, 9)*(10, 7)",
            "set model.text_dim=9",
        ),
    ],
)
def test_shape_mismatch_names_both_shapes_and_the_setting(tmp_path, stored, configured, shapes, hint):
    model, _ = small(**dict(stored))
    save_native(tmp_path / "ck", model, small_config(**dict(configured)))
    with pytest.raises(CheckpointError) as error:
        load_native(tmp_path / "ck")
    position = 0
    for shape in shapes.split("*"):
        position = error.value.message.index(shape, position) + 1
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("stored", "configured", "counts", "hint"),
    [
        ("fusion", "shared", ["lacks 4", "has 12", "proj.cg.fc.bias, "], "model.individual_projections=true"),
        ("shared", "fusion", ["lacks 12", "has 4"], "model.individual_projections=false"),
        ("depth2", "fusion", ["has 12"], "larger model.fusion.depth"),
        ("fusion", "depth2", ["lacks 12", "(9 more)"], "smaller model.fusion.depth"),
        ("positional", "fusion", ["has 3"], "model.use_positional_emb=true"),
        ("fusion", "positional", ["lacks 3"], "model.use_positional_emb=false"),
        ("cls", "shared", ["has 1"], "use_cls_token=true"),
        ("per-modality", "fusion", ["has 30"], "model.architecture=per-modality"),
        ("fusion", "per-modality", ["lacks 30"], "model.architecture=fusion"),
        ("avlnet", "fusion", ["has"], "model.architecture=avlnet"),
        ("fusion", "avlnet", ["lacks"], "model.architecture=fusion"),
        ("minimal", "fusion", ["lacks"], "model.token_projection=minimal"),
        ("fusion", "minimal", ["has"], "model.token_projection=gated"),
        ("no head", "fusion", ["lacks 12"], "model.output_projection=none"),
        ("fusion", "no head", ["has 12"], "model.output_projection=gated"),
        ("no qkv bias", "fusion", ["lacks 1"], "model.fusion.qkv_bias=false"),
        ("fusion", "no qkv bias", ["has 1"], "model.fusion.qkv_bias=true"),
        ("v1", "fusion", ["lacks"], "model.audio.version=v1"),
    ],
)
def test_key_mismatch_counts_and_names_the_setting(tmp_path, stored, configured, counts, hint):
    model, _ = small(**VARIANTS[stored])
    save_native(tmp_path / "ck", model, small_config(**VARIANTS[configured]))
    with pytest.raises(CheckpointError, match="does not fit") as error:
        load_native(tmp_path / "ck")
    for text in counts:
        assert text in error.value.message
    assert hint in error.value.hint


def test_load_weights_keeps_the_parameters_of_a_model_in_use(tmp_path, pth):
    stored, config = small()
    save_native(tmp_path / "ck", stored, config)
    model, _ = small()
    parameters = list(model.parameters())
    for source in (tmp_path / "ck", pth):
        load_weights(model, source)
        assert same_bits(model.state_dict(), load_checkpoint(source)[0].state_dict())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    other, _ = small(text_dim=512)
    with pytest.raises(CheckpointError, match=r"text_token_proj\.fc\.weight"):
        load_weights(other, tmp_path / "ck")


# The authors' files


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("where", ["inside", "beside", "given"])
def test_authors_files_in_every_form(tmp_path, legacy, prefix, where):
    model, config = small()
    state = {prefix + key: x for key, x in model.state_dict().items()}
    inside = {"arch": ARCH} if where == "inside" else None
    path = save_pth(tmp_path / "a" / "model_best.pth", state, inside, legacy=legacy)
    text = yaml.safe_dump({"arch": ARCH})
    (tmp_path / "given.yaml").write_text(text)
    if where == "beside":
        (path.parent / "config.yaml").write_text(text)
    again, translated = load_authors(path, tmp_path / "given.yaml" if where == "given" else None)
    assert same_bits(model.state_dict(), again.state_dict())
    assert translated.model == config.model  # the narrow audio network is found from the weights
    assert not again.training


@pytest.mark.parametrize("opset", [18, 20])
def test_an_authors_file_is_exported_as_it_is(tmp_path, pth, opset):
    from eao.export.build import Options
    from eao.export.bundle import write_bundle
    from eao.export.reference import embed

    onnx = pytest.importorskip("onnx")
    written = write_bundle(pth, tmp_path / "bundle", encoders="video", options=Options(threads=1, opset=opset))
    graph = onnx.load(tmp_path / "bundle" / "video.fp32.onnx")
    assert {o.version for o in graph.opset_import if o.domain == ""} == {opset}
    assert written.manifest.engines["video.onnxruntime.fp32"].opset == opset
    batch = Batch(video=torch.randn(2, 3, 6), video_mask=torch.ones(2, 3, dtype=torch.bool))
    found = eao.load(tmp_path / "bundle").backend.encode(batch, "video")
    expected = embed(load_checkpoint(pth)[0].eval(), batch, ["video"])["video"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_bare_state_dict_needs_a_config(tmp_path):
    model, config = small()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="no configuration") as error:
        load_checkpoint(tmp_path / "weights.pth")
    assert "config.yaml" in error.value.hint
    assert same_bits(load_authors(tmp_path / "weights.pth", config)[0].state_dict(), model.state_dict())


def test_missing_feature_widths_come_from_the_weights(tmp_path):
    model, config = small()
    args = {key: value for key, value in ARCH["args"].items() if not key.endswith("embed_dim")}
    path = save_pth(tmp_path / "m.pth", model.state_dict(), {"arch": {"type": ARCH["type"], "args": args}})
    assert load_authors(path)[1].model == config.model


def test_avlnet_widths_come_from_the_weights(tmp_path):
    model, config = small(**VARIANTS["avlnet"])
    arch = {"type": "AVLnetBaselineModel", "args": {"embd_dim": 10}}
    again, translated = load_authors(save_pth(tmp_path / "m.pth", model.state_dict(), {"arch": arch}))
    assert same_bits(model.state_dict(), again.state_dict())
    assert translated.model.audio == config.model.audio
    assert translated.model.audio_flag_from_video


def test_the_config_beside_adds_what_the_one_inside_lost(tmp_path):
    model, _ = small()
    kwargs = {"max_words": 9}
    inside = {"arch": ARCH, "data_loader": {"args": {"dataset_kwargs": kwargs}}}
    path = save_pth(tmp_path / "m.pth", model.state_dict(), inside)
    whole = {"arch": ARCH, "data_loader": {"args": {"dataset_kwargs": kwargs | {"word2vec_path": "w2v.bin"}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(whole))
    assert load_authors(path)[1].data.text.path == "w2v.bin"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"arch": {"type": "Another"}}))
    assert load_authors(path)[1].data.text.path is None


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpy_scalars_are_accepted(tmp_path, legacy, kind):
    model, _ = small()
    path = save_pth(tmp_path / "m.pth", model.state_dict(), {"arch": ARCH}, legacy=legacy, monitor_mnt_best=kind(0.5))
    assert same_bits(load_authors(path)[0].state_dict(), model.state_dict())


class Payload:
    """Pickles to a call that creates a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, legacy):
    model, _ = small()
    target = tmp_path / "owned"
    path = save_pth(tmp_path / "m.pth", model.state_dict(), {"arch": ARCH}, legacy=legacy, surprise=Payload(target))
    with pytest.raises(CheckpointError, match="refused") as error:
        load_checkpoint(path)
    assert "mkdir" in error.value.message
    assert error.value.hint
    assert not target.exists()
    pickle.loads(pickle.dumps(Payload(target)))  # noqa: S301  (it would have worked)
    assert target.exists()


def test_other_classes_are_refused_by_name(tmp_path):
    model, _ = small()
    path = save_pth(tmp_path / "m.pth", model.state_dict(), {"arch": ARCH}, where=functools.partial(print))
    with pytest.raises(CheckpointError, match=r"functools\.partial"):
        load_authors(path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_pth(tmp_path, legacy, share):
    model, _ = small()
    path = save_pth(tmp_path / "m.pth", model.state_dict(), {"arch": ARCH}, legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="truncated or damaged") as error:
        load_authors(path)
    assert error.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a video, perhaps" * 99, "not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>quota exceeded</html>", "web page"),
        (b"\x80\x02}q\x00.", "not a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, content, message):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    assert error.value.hint


def test_an_archive_is_to_be_unpacked(tmp_path, pth):
    path = Path(shutil.make_archive(str(tmp_path / "everything"), "tar", pth.parent))
    with pytest.raises(CheckpointError, match="archive") as error:
        load_checkpoint(path)
    assert "tar xf everything.tar" in error.value.hint


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, {"state_dict": {}}, {"state_dict": {"a": 1}}, [1, 2], torch.ones(3)])
def test_pth_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="no model weights"):
        load_checkpoint(tmp_path / "m.pth")


# Conversion


@pytest.mark.parametrize("case", ["pre_tva_dataparallel", "pre_permod"])
def test_convert_keeps_every_bit(tmp_path, case):
    source = CONVERTED / case / "latest_model.pth"
    report = convert(source, tmp_path / "native")
    original = torch.load(source, weights_only=True)["state_dict"]
    model, config = load_checkpoint(tmp_path / "native")
    state = model.state_dict()
    assert len(original) == len(state) == report["tensors"]
    assert all(torch.equal(x, state[key.removeprefix("module.")]) for key, x in original.items())
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert config.loss.weights.text_video == 1
    assert config.data.audio_frames == 768
    assert report["notices"] == []


def test_convert_refuses_a_native_source_and_a_used_target(tmp_path, pth):
    save_native(tmp_path / "ck", *small())
    with pytest.raises(CheckpointError, match="native checkpoint already"):
        convert(tmp_path / "ck", tmp_path / "other")
    with pytest.raises(CheckpointError, match="other files"):
        convert(pth, pth.parent)
    assert pth.exists()


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["golden_recipe"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("case", "name"), [("pre_tva_dataparallel", "pre_tva"), ("pre_permod", "pre_permod")])
def test_trained_checkpoints_embed_as_the_authors_code_did(recipe, case, name):
    """Five items of their evaluation, in both containers, with and without prefixes."""
    items = recipe.tensors("checkpoints/youcook_items.safetensors")
    model, _ = load_checkpoint(CONVERTED / case)
    expected = recipe.embeddings(recipe.section(items, name))
    with torch.no_grad():
        actual = model(recipe.as_batch(items), list(expected))
    assert expected
    for encoder, value in expected.items():
        torch.testing.assert_close(actual[encoder], value, rtol=1e-4, atol=1e-5)
