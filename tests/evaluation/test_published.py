"""Published figures: complete entries with a source, and what is found beside an evaluation."""

import pytest

from eao.evaluation.metrics import TASKS, metrics_from_ranks
from eao.evaluation.published import FILE, SETTINGS, Published, find_published, read_published

METRICS = {*metrics_from_ranks([0.0], 1), "recall", "iou", "iod"}


@pytest.mark.parametrize("entry", read_published(), ids=lambda e: f"{e.dataset}-{e.setting}-{e.task}-{e.backbone}")
def test_every_figure_names_the_table_it_was_read_in(entry: Published) -> None:
    assert entry.dataset in ("msrvtt", "youcook2", "crosstask", "mining-youtube")
    assert entry.setting in SETTINGS
    assert entry.task in (*TASKS, "steps", "segmentation")
    assert entry.backbone in (None, "resnet", "s3d", "clip")
    assert entry.metrics and set(entry.metrics) <= METRICS
    assert entry.sources and all(s.paper and s.table and s.row for s in entry.sources)


def test_no_evaluation_is_listed_twice() -> None:
    keys = [(e.dataset, e.setting, e.task, e.backbone) for e in read_published()]
    assert len(set(keys)) == len(keys)


def test_figures_as_their_tables_give_them() -> None:
    (zero_shot,) = find_published("msrvtt", ["t2va"])
    (fine_tuned,) = find_published("msrvtt", ["t2va"], "fine-tuned")
    (youcook,) = find_published("youcook2", ["t2va"])
    assert zero_shot.metrics == {"R1": 9.9, "R5": 24.0, "R10": 32.6}
    assert fine_tuned.metrics == {"R1": 23.7, "R5": 52.1, "R10": 63.7}
    assert youcook.metrics == {"R1": 19.8, "R5": 42.9, "R10": 55.1}
    assert str(youcook.sources[0]).endswith("(Norton), Table 3, row MMFT (Shvetsova et al., 2022), S3D-G")


def test_another_backbone_is_left_out_and_an_unstated_one_kept() -> None:
    assert not find_published("youcook2", ["t2va"], backbone="resnet")
    assert find_published("youcook2", ["t2va"], backbone="s3d")
    assert find_published("msrvtt", ["t2va"], backbone="resnet")[0].backbone is None


def test_other_data_and_tasks_have_none() -> None:
    assert find_published("folder", TASKS) == ()
    assert find_published("msrvtt", ["v2a"]) == ()


def test_the_file_is_part_of_the_package() -> None:
    project = FILE.parents[2] / "pyproject.toml"
    assert f'"eao.evaluation" = ["{FILE.name}"]' in project.read_text(encoding="utf-8")
