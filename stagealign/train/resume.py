"""Checkpoints from which an interrupted round resumes."""

import os
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

CHECKPOINT_STEPS = 50
"""Steps between two checkpoints of the trainer."""
WHOLE = "whole"
"""File that is written last into a checkpoint and marks it as complete."""


def last_checkpoint(scratch: Path) -> str | None:
    """Path of the last complete checkpoint, or None; removes all others, such as one that a kill left incomplete."""
    whole = {int(path.parent.name.rpartition("-")[2]): path.parent for path in scratch.glob(f"*/{WHOLE}")}
    last = whole[max(whole)] if whole else None
    if not int(os.environ.get("RANK", "0")):
        remove_checkpoints(scratch, but=last.name if last else "")
    return str(last) if last else None


def remove_checkpoints(scratch: Path, but: str) -> None:
    """Removes all checkpoints except `but`; removes marks first, so that a kill leaves none that looks complete."""
    for path in scratch.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.name != but:
            (path / WHOLE).unlink(missing_ok=True)
            shutil.rmtree(path)
