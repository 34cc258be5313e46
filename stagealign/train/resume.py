"""Checkpoints of a training that was interrupted."""

import os
import shutil
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

CHECKPOINT_STEPS = 50
"""Steps between the engine's own checkpoints."""
WHOLE = "whole"
"""File in a checkpoint that is written last."""


def last_checkpoint(scratch: Path) -> str | None:
    """The last whole checkpoint, and the only one that is left: what a kill left half written goes."""
    whole = {int(path.parent.name.rpartition("-")[2]): path.parent for path in scratch.glob(f"*/{WHOLE}")}
    last = whole[max(whole)] if whole else None
    if not int(os.environ.get("RANK", "0")):
        remove_checkpoints(scratch, but=last.name if last else "")
    return str(last) if last else None


def remove_checkpoints(scratch: Path, but: str) -> None:
    """Removes checkpoints; the mark goes first, so that a kill leaves none that looks whole."""
    for path in scratch.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if path.name != but:
            (path / WHOLE).unlink(missing_ok=True)
            shutil.rmtree(path)
