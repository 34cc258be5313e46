"""Shared fixtures: tiny random language models, the measured data beside the project, a fixed number of threads."""

import copy
import sys
from pathlib import Path

import pytest
from factory_models import build_tiny

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def hears_interrupts():
    """What tests start hears SIGINT, also where the tests themselves run as a shell's background job, deaf to it."""
    import signal

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread():
    """One torch thread, where a test uses torch at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real data beside the project."""
    if not DATA.is_dir():
        pytest.skip("../shared/data is not here: real data for tests, never copied into the project")
    return DATA


@pytest.fixture
def tiny():
    """Factory of tiny random models; the same arguments give the same weights in a new object."""
    return build_tiny


@pytest.fixture
def trl_dpo(tmp_path):
    """Factory of TRL's DPOTrainer on pairs, with everything that we do not claim to equal switched off."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        """TRL's trainer that takes its rows in a given order."""

        order = None

        def _get_train_sampler(self, *_):
            return self.order or super()._get_train_sampler()

    def build(lm, pairs, order=None, reference=None, **changes):
        """`order` is a sampler; `reference` a model, by default a copy of the policy."""
        settings = {
            "output_dir": str(tmp_path / "trl"),
            "gradient_checkpointing": False,
            "bf16": False,
            "max_length": 512,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "dataloader_pin_memory": False,
            "logging_steps": 1,
        }
        trainer = InOrder(
            model=lm.model,
            ref_model=copy.deepcopy(lm.model) if reference is None else reference,
            args=DPOConfig(**{**settings, **changes}),
            train_dataset=Dataset.from_list(
                [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
            ),
            processing_class=lm.tokenizer,
        )
        trainer.order = order
        return trainer

    return build
