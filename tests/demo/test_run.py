"""The demo as a whole: what it refuses, and which searches it shows. That it works, `make demo` proves."""

import json

import pytest

from eao.demo.run import demo_config, example_queries, run_demo
from eao.errors import ConfigError


def test_a_folder_with_a_demo_of_other_settings_is_refused_before_anything_is_touched(tmp_path):
    demo_config(tmp_path, quick=True, overrides=[]).save(tmp_path / "run/config.yaml")
    with pytest.raises(ConfigError, match="other settings"):
        run_demo(tmp_path, quick=False, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_dry_run_names_the_steps_and_writes_nothing(tmp_path):
    assert "export and parity" in run_demo(tmp_path / "demo", dry_run=True, quiet=True)["steps"]
    assert not (tmp_path / "demo").exists()


def test_example_searches_are_about_unseen_objects_of_different_categories(tmp_path):
    records = [
        {"id": f"{split}/{i}", "split": split, "category": f"c{i % 4}", "caption": str(i)}
        for split in ("validation", "test")
        for i in range(12)
    ]
    (tmp_path / "gallery.jsonl").write_text("\n".join(map(json.dumps, records)))
    shown = example_queries(tmp_path / "gallery.jsonl")
    assert len(shown) == 3 and {r["split"] for r in shown} == {"test"}
    assert len({r["category"] for r in shown}) == 3
