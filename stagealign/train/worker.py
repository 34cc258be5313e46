"""One process of a round that trains over several: `accelerate launch -m stagealign.train.worker WORK.json`.

All processes read the same description; the first one writes the policy and its facts.
"""

import json
import os
import sys
from pathlib import Path

from stagealign.base.errors import StagealignError
from stagealign.store.artifact import Context, Devices, Work
from stagealign.train.launch import FAILURE


def main(described: Path) -> int:
    """Trains the described round; returns the exit code. If the input is at fault, writes the reason to `FAILURE`."""
    given = json.loads(described.read_text(encoding="utf-8"))
    devices = given["devices"] | {"launcher": tuple(given["devices"]["launcher"])}
    inputs = {name: Path(folder) for name, folder in given["inputs"].items()}
    work = Work(given["params"], inputs, Path(given["out"]), Path(given["home"]), Context(Devices(**devices)))
    from stagealign.train.round import train_round

    try:
        facts = train_round(work)
    except StagealignError as error:
        (work.out / FAILURE).write_text(str(error), encoding="utf-8")
        return 2
    if facts is not None:
        part = work.out / "facts.part"
        part.write_text(json.dumps(facts), encoding="utf-8")
        part.replace(work.out / "facts.json")
    leave()
    return 0


def leave() -> None:
    """Leaves the process group; the group's threads can abort a process that exits without it."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main(Path(sys.argv[1])))
