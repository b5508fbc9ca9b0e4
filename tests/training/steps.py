"""One training step of a small model in several ways, here or as a script in each process of a job.

`python steps.py FOLDER` under the environment of `torchrun` takes the step of every case in `CASES` with this process's
share of the batch, and the first process writes the losses and gradients to `FOLDER/CASE.pt`.
"""

import sys
from pathlib import Path

import torch

from eao.config import Config, parse_config
from eao.model import Batch, build_model
from eao.training.batchnorm import synchronize_batchnorm
from eao.training.distributed import ALONE, Processes, connect
from eao.training.loss import CombinatorialLoss
from eao.training.step import OptimizerStep, seed_torch

ROWS = 8
EVERY_TERM = dict.fromkeys(
    ("text_video", "text_audio", "video_audio", "text_videoaudio", "video_textaudio", "audio_textvideo"), 1
)
ABSENT = {
    "complete": {},
    # Unevenly spread, and no clip of the second half has audio.
    "uneven": {"text": [1], "video": [0, 2, 6], "audio": [3, 4, 5, 6, 7]},
    "silent": {"audio": list(range(ROWS))},
}
CASES = {
    "complete": {"absent": "complete"},
    "uneven": {"absent": "uneven"},
    "silent": {"absent": "silent"},
    "uneven in training mode": {"absent": "uneven", "eval_mode": False, "sync_batchnorm": True},
    "gradcache": {"absent": "uneven", "gradcache_chunk": 3},
    "gradcache in training mode": {
        "absent": "uneven",
        "eval_mode": False,
        "sync_batchnorm": True,
        "gradcache_chunk": 2,
    },
    "accumulate": {"absent": "uneven", "accumulate": 2},
}


def make_config(**trainer: object) -> Config:
    return parse_config(
        {
            "model": {
                "text_dim": 6,
                "video_dim": 9,
                "embedding_dim": 16,
                "fusion": {"embed_dim": 8, "num_heads": 2},
                "audio": {"channels": [4, 4, 4, 4, 4, 4, 8]},
            },
            "loss": {"weights": EVERY_TERM},
            "trainer": trainer,
        },
        "the test",
    )


def make_batch(absent: str = "complete", rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Batch:
    """Clips of which some lack a modality, the same each time."""
    random = torch.Generator().manual_seed(1)
    batch = Batch(
        text=torch.randn(rows, 5, 6, generator=random, dtype=dtype),
        text_mask=torch.rand(rows, 5, generator=random) > 0.3,
        video=torch.randn(rows, 4, 9, generator=random, dtype=dtype),
        video_mask=torch.rand(rows, 4, generator=random) > 0.3,
        audio=torch.rand(rows, 40, 128, generator=random, dtype=dtype) * -80,
        audio_mask=torch.arange(128)[None] < torch.randint(60, 129, (rows, 1), generator=random),
        audio_frames=torch.full((rows,), -1),
        ids=[str(i) for i in range(rows)],
    )
    for modality in ("text", "video"):
        getattr(batch, f"{modality}_mask")[:, 0] = True
    for modality, clips in ABSENT[absent].items():
        getattr(batch, f"{modality}_mask")[clips] = False
    return batch


def make_step(
    config: Config, processes: Processes = ALONE, dtype: torch.dtype = torch.float64, lr: float = 0.0
) -> OptimizerStep:
    """A step of a freshly seeded model whose weights stay as they are, unless `lr` is given."""
    seed_torch(3)
    model = build_model(config.model).to(dtype).train(not config.trainer.eval_mode)
    if config.trainer.sync_batchnorm and processes.world > 1:
        synchronize_batchnorm(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return OptimizerStep(model, CombinatorialLoss(config.loss), optimizer, config, "fp32", processes)


def take(case: dict, processes: Processes = ALONE, batch: Batch | None = None, **changes: object) -> dict:
    """The loss, its terms, the gradients and the BatchNorm buffers of a case's step."""
    settings = {"eval_mode": True} | {k: v for k, v in case.items() if k != "absent"} | changes
    step = make_step(make_config(**settings), processes)
    batch = make_batch(case["absent"]) if batch is None else batch
    rows = len(batch) // processes.world
    loss, terms = step(batch[processes.rank * rows : (processes.rank + 1) * rows], step=5).read()
    gradients = {name: p.grad.clone() for name, p in step.model.named_parameters() if p.grad is not None}
    buffers = {name: x.clone() for name, x in step.model.named_buffers()}
    return {"loss": loss, "terms": terms, "gradients": gradients, "buffers": buffers}


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of a whole tensor; 0 where both are 0."""
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with connect("cpu") as (group, _):
        for case_name, settings in CASES.items():
            result = take(settings, group)
            if group.is_first:
                torch.save(result, Path(sys.argv[1]) / f"{case_name}.pt")
