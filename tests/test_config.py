"""Experiment files: inheritance, overrides, and errors that name the key and the next step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eao.config import Config, load_config, merge, override_config
from eao.configs import FOLDER, find_config, shipped_configs
from eao.errors import ConfigError
from eao.yaml_text import dump_yaml, parse_yaml

# PyYAML folds U+0085, the "next line" of EBCDIC machines, when it writes it unescaped.
WORDS = st.text(st.characters(exclude_characters="\x85", exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS


def write(folder: Path, **files: str) -> Path:
    """Write files by name; the path of the last one."""
    path = folder
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
    return path


def error(path: Path | None = None, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        load_config(path, overrides)
    assert "\n" not in raised.value.message
    return raised.value


class TestInheritance:
    def test_child_states_only_what_differs(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            parent="model: {text_dim: 512, fusion: {depth: 2, num_heads: 8}}\nloss: {weights: {text_video: 1}}\n",
            child="base: parent.yaml\nmodel: {fusion: {depth: 3}}\nloss: {weights: {text_audio: 0.1}}\n",
        )
        config = load_config(path)
        assert (config.model.text_dim, config.model.fusion.depth, config.model.fusion.num_heads) == (512, 3, 8)
        assert (config.loss.weights.text_video, config.loss.weights.text_audio) == (1.0, 0.1)

    def test_lists_are_replaced_whole(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            parent="evaluation: {tasks: [t2v, v2t]}\n",
            child="base: parent.yaml\nevaluation: {tasks: [t2a]}\n",
        )
        assert load_config(path).evaluation.tasks == ("t2a",)

    def test_null_takes_a_section_away(self, tmp_path: Path) -> None:
        path = write(
            tmp_path,
            parent="features: {video_3d: {backbone: activation-motion, rate: 2}}\n",
            child="base: parent.yaml\nfeatures: {video_3d: null}\n",
        )
        assert load_config(path).features.video_3d is None

    def test_base_is_relative_to_the_file_that_names_it(self, tmp_path: Path) -> None:
        (tmp_path / "inner").mkdir()
        write(tmp_path, root="seed: 7\n")
        path = write(tmp_path / "inner", middle="base: ../root.yaml\n", leaf="base: middle.yaml\n")
        assert load_config(path).seed == 7

    def test_name_comes_from_the_file_not_from_its_base(self, tmp_path: Path) -> None:
        path = write(tmp_path, parent="name: chosen\n", child="base: parent.yaml\n")
        assert load_config(tmp_path / "parent.yaml").name == "chosen"
        assert load_config(path).name == "child"

    @pytest.mark.parametrize("links", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}])
    def test_circle_is_an_error(self, tmp_path: Path, links: dict[str, str]) -> None:
        write(tmp_path, **{name: f"base: {base}.yaml\n" for name, base in links.items()})
        assert "leads back to this file" in error(tmp_path / "a.yaml").message

    def test_missing_base_names_the_file_that_wants_it(self, tmp_path: Path) -> None:
        found = error(write(tmp_path, child="base: parent.yaml\n"))
        assert "child.yaml: base: parent.yaml is neither a file nor a shipped experiment" in found.message

    def test_base_may_be_a_shipped_experiment(self, tmp_path: Path) -> None:
        path = write(tmp_path, mine="base: finetuning/clip/msrvtt\nseed: 5\n")
        config = load_config(path)
        assert (config.seed, config.name, config.model.video_dim, config.trainer.epochs) == (5, "mine", 512, 25)

    def test_base_beside_the_file_comes_before_a_shipped_one(self, tmp_path: Path) -> None:
        write(tmp_path, demo="seed: 5\n")
        assert load_config(write(tmp_path, mine="base: demo.yaml\n")) == Config(name="mine", seed=5)

    def test_misspelt_base_suggests_the_nearest(self, tmp_path: Path) -> None:
        found = error(write(tmp_path, mine="base: finetuning/msrvt\n"))
        assert found.hint == "did you mean finetuning/msrvtt?"

    @given(st.recursive(st.integers(), lambda x: st.dictionaries(st.sampled_from("abc"), x, max_size=3), max_leaves=9))
    def test_merge_over_nothing_and_with_itself_changes_nothing(self, value: object) -> None:
        mapping = {"key": value}
        assert merge({}, mapping) == merge(mapping, {}) == merge(mapping, mapping) == mapping

    def test_merge_does_not_change_its_arguments(self) -> None:
        base, changes = {"a": {"b": 1}}, {"a": {"c": 2}}
        assert merge(base, changes) == {"a": {"b": 1, "c": 2}}
        assert (base, changes) == ({"a": {"b": 1}}, {"a": {"c": 2}})


class TestOverrides:
    def test_types_follow_the_schema(self) -> None:
        config = load_config(
            None,
            [
                "model.fusion.depth=2",
                "optimizer.lr=1e-4",
                "trainer.eval_mode=true",
                "evaluation.tasks=[t2v, v2t]",
                "name=2024",
            ],
        )
        assert config.model.fusion.depth == 2
        assert config.optimizer.lr == 1e-4
        assert config.trainer.eval_mode is True
        assert config.evaluation.tasks == ("t2v", "v2t")
        assert config.name == "2024"

    def test_numbers_in_free_mappings_are_numbers(self) -> None:
        assert load_config(None, ["optimizer.args.weight_decay=1e-4"]).optimizer.args == {"weight_decay": 1e-4}

    def test_null_and_words(self) -> None:
        config = load_config(None, ["trainer.monitor=null", "data.text.path=models/a=b.bin"])
        assert config.trainer.monitor is None
        assert config.data.text.path == "models/a=b.bin"

    def test_later_ones_win_over_earlier_ones_and_over_the_file(self, tmp_path: Path) -> None:
        path = write(tmp_path, file="seed: 1\n")
        assert load_config(path, ["seed=2", "seed=3"]).seed == 3

    def test_only_the_named_key_of_an_anchored_mapping_changes(self, tmp_path: Path) -> None:
        text = "data: {train: &same {features: f, captions: c}, test: *same}\n"
        config = load_config(write(tmp_path, file=text), ["data.test.captions=d"])
        assert config.data.train is not None
        assert config.data.test is not None
        assert (config.data.train.captions, config.data.test.captions) == ("c", "d")

    def test_of_a_resolved_config(self) -> None:
        config = Config()
        changed = override_config(config, ["model.fusion.depth=4"])
        assert (config.model.fusion.depth, changed.model.fusion.depth) == (1, 4)

    @pytest.mark.parametrize("override", ["seed", "=3", " =3", "seed=[1", ""])
    def test_malformed(self, override: str) -> None:
        assert f"override {override!r}" in error(None, override).message


class TestErrors:
    @pytest.mark.parametrize(
        ("override", "suggestion"),
        [
            ("modle.text_dim=3", "did you mean model?"),
            ("model.txt_dim=3", "did you mean model.text_dim?"),
            ("model.fusion.dept=3", "did you mean model.fusion.depth?"),
            ("data.train.feature=x", "did you mean data.train.features?"),
            ("features.video_2d.rat=2", "did you mean features.video_2d.rate?"),
        ],
    )
    def test_unknown_key_suggests_the_nearest(self, override: str, suggestion: str) -> None:
        required = ["data.train.features=f", "data.train.captions=c", "features.video_2d={backbone: x, rate: 1}"]
        found = error(None, *required, override)
        assert found.hint == suggestion
        assert override.partition("=")[0].partition(".")[0] in found.message

    @pytest.mark.parametrize(
        ("override", "message", "hint"),
        [
            (
                "data.validation.msrvtt.pth=x",
                "unknown key data.validation.msrvtt.pth",
                "did you mean data.validation.msrvtt.path?",
            ),
            (
                "data.validation.mine.clip_per_video=3",
                "unknown key data.validation.mine.clip_per_video",
                "known here: audio_frames, batch_size, captions",
            ),
            ("data.validation.msrvtt.batch_size=0", "data.validation.msrvtt.batch_size: Input should be", ""),
            ("data.validation.msrvtt.type=msrvt", "data.validation.msrvtt.type is 'msrvt'", "known: folder, msrvtt"),
            ("data.validation.youcook2=3", "data.validation.youcook2", ""),
            ("data.train.clip_per_video=3", "unknown key", "did you mean data.train.clips_per_video?"),
            ("data.train.type=howto", "data.train.type is 'howto'", "known: folder, msrvtt"),
            ("data.train.min_time=0", "data.train.min_time: Input should be", ""),
            ("data.test.xyzzy=x", "unknown key data.test.xyzzy", "known here: audio_frames"),
            ("data.test={type: youcook2, pathh: x}", "unknown key data.test.pathh", "did you mean data.test.path?"),
            ("data.test={type: youcook2}", "data.test.path: Field required", ""),
            ("data.train={type: shards, url: x, options: 3}", "data.train.options", ""),
        ],
    )
    def test_in_a_data_set_names_the_data_set(self, override: str, message: str, hint: str) -> None:
        found = error(find_config("everything_at_once_tva"), override)
        assert message in found.message
        assert found.hint.startswith(hint)

    def test_a_data_set_may_have_any_name(self) -> None:
        for name in ("one", "several", "youcook2", "features"):
            found = error(None, f"data.test={{{name}: {{type: msrvtt, pth: x}}}}")
            assert f"unknown key data.test.{name}.pth" in found.message
            assert found.hint == f"did you mean data.test.{name}.path?"

    def test_unknown_key_far_from_all_lists_the_known_ones(self) -> None:
        assert error(None, "loss.xyzzy=1").hint == "known here: kind, temperature, weights"

    @pytest.mark.parametrize(
        ("override", "says"),
        [
            ("seed=abc", "seed"),
            ("model.text_dim=0", "model.text_dim"),
            ("model.text_dim=2.5", "model.text_dim"),
            ("model.audio.version=v3", "'v1' or 'v2'"),
            ("loss.temperature=0", "loss.temperature"),
            ("loss.temperature=.inf", "finite"),
            ("optimizer.lr=.nan", "optimizer.lr"),
            ("trainer.token_dropout=1", "trainer.token_dropout"),
            ("evaluation.tasks=t2v", "evaluation.tasks"),
            ("model=3", "model"),
            ("model.fusion.num_heads=7", "no multiple of num_heads 7"),
            ("model.use_positional_emb=true", "audio_max_frames"),
        ],
    )
    def test_bad_value_names_the_key(self, override: str, says: str) -> None:
        assert says in error(None, override).message

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a: [1", "not valid YAML"),
            ("a: 1\n\tb: 2", "not valid YAML"),
            ("seed: 1\nseed: 2\n", "'seed' is given twice"),
            ("- 1\n- 2\n", "must be a mapping of sections, not list"),
            ("just a sentence", "must be a mapping of sections, not str"),
            ("1: 2\n", "1"),
            ("!!python/object/apply:os.getcwd []", "not valid YAML"),
            ("[" * 1200, "nested too deeply"),
        ],
    )
    def test_malformed_file(self, tmp_path: Path, text: str, says: str) -> None:
        found = error(write(tmp_path, broken=text))
        assert says in found.message
        assert "broken.yaml" in found.message

    def test_file_that_is_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "model.yaml").write_bytes(bytes(range(128, 256)))
        assert "cannot read the configuration" in error(tmp_path / "model.yaml").message

    @pytest.mark.parametrize("path", ["missing.yaml", "."])
    def test_path_that_is_no_file(self, tmp_path: Path, path: str) -> None:
        assert "cannot read the configuration" in error(tmp_path / path).message

    def test_empty_file_is_all_defaults(self, tmp_path: Path) -> None:
        assert load_config(write(tmp_path, experiment="# nothing yet\n")) == Config(name="experiment")

    def test_assignment_is_checked_too(self) -> None:
        with pytest.raises(ValueError, match="greater than 0"):
            Config().loss.temperature = -1.0


class TestSaving:
    def test_round_trip(self, tmp_path: Path) -> None:
        overrides = ["name=1e-4", "optimizer.args={betas: [0.9, 0.98], eps: 1e-8}", "data.text.path=ü/on", "seed=-1"]
        config = load_config(None, overrides)
        config.save(tmp_path / "run" / "config.yaml")
        assert load_config(tmp_path / "run" / "config.yaml") == config

    def test_defaults_are_not_shared_between_configs(self) -> None:
        first, second = Config(), Config()
        first.model.fusion.depth = 9
        first.optimizer.args["momentum"] = 0.9
        assert second == Config()


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-4", 1e-4),
            ("5E3", 5e3),
            ("-.5", -0.5),
            ("1.", 1.0),
            ("+3", 3),
            ("0x1F", 31),
            ("1_000", 1000),
            ("true", True),
            ("~", None),
            ("", None),
            ("on", "on"),
            ("no", "no"),
            ("010", "010"),
            ("1.2.3", "1.2.3"),
            ("12:30:00", "12:30:00"),
            ("2024-02-31", "2024-02-31"),
            ("'1'", "1"),
        ],
    )
    def test_scalars(self, text: str, value: object) -> None:
        found = parse_yaml(f"key: {text}")["key"]
        assert found == value
        assert type(found) is type(value)

    def test_merge_keys(self) -> None:
        assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")["b"] == {"x": 1, "y": 3}

    @given(
        st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(WORDS, x, max_size=3), max_leaves=6)
    )
    def test_what_is_written_is_read_back(self, value: object) -> None:
        assert parse_yaml(dump_yaml(value)) == value


class TestDatasets:
    def test_one_or_several(self) -> None:
        one = load_config(None, ["data.test={type: youcook2, path: p}"]).data
        assert list(one.named("test")) == [""]
        several = load_config(None, ["data.test={a: {type: youcook2, path: p}, b: null}"]).data
        assert list(several.named("test")) == ["a"]
        shards = load_config(None, ["data.test={type: shards, url: u, options: {clips_per_video: 2}}"]).data
        assert shards.named("test")[""].model_dump()["options"] == {"clips_per_video": 2}
        assert load_config().data.named("test") == {}


class TestShippedConfigs:
    @pytest.mark.parametrize("name", shipped_configs())
    def test_loads(self, name: str) -> None:
        assert load_config(find_config(name)).name

    def test_name_with_and_without_folder_and_suffix(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for name in shipped_configs():
            assert find_config(name) == find_config(f"configs/{name}.yaml") == FOLDER / f"{name}.yaml"

    def test_own_file_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write(tmp_path, demo="seed: 5\n")
        assert load_config(find_config("demo.yaml")).seed == 5

    def test_neither_file_nor_shipped(self) -> None:
        with pytest.raises(ConfigError, match="neither a file nor a shipped experiment"):
            find_config("no/such/experiment.yaml")
