"""The official length-controlled win rate: alpaca_eval's own function, with the rows that its authors keep on the hub.

Where the hub cannot be reached the hub's client first retries; with `HF_HUB_OFFLINE=1` its cache serves, or it fails at
once.
"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

from stagealign.base.errors import CannotRun

LengthRow = tuple[float, int, int]


def official(rows: Sequence[LengthRow], generator: str) -> tuple[float, float]:
    """(length-controlled win rate, its official standard error), both in percent, of one generator.

    `rows`: (preference 1 ... 2, NaN for a failed judgment; baseline's characters; model's characters), one for each
    prompt and in their order: the function looks a prompt's difficulty up by its row's position, so rows with a gap get
    the difficulties of other prompts. It needs texts only for their lengths. Nothing is written into the package's
    folder. Raises CannotRun where the extra `eval` or the hub's file is not to be had.
    Source: alpaca_eval 0.6.6, `get_length_controlled_winrate`.
    """
    import pandas as pd

    table = pd.DataFrame(
        {
            "preference": [preference for preference, _, _ in rows],
            "output_1": ["x" * baseline for _, baseline, _ in rows],
            "output_2": ["x" * model for _, _, model in rows],
            "generator_1": "baseline",
            "generator_2": generator,
        }
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # scikit-learn on what the official function still uses
        found = _function()(table, save_weights_dir=None, is_add_glm_preference_inplace=False)
    return float(found["length_controlled_winrate"]), float(found["lc_standard_error"])


def _function() -> Any:
    """The official function; scikit-learn's configuration, which it changes for good, is put back after each call."""
    import sklearn

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports pkg_resources
            from alpaca_eval.metrics import glm_winrate
    except ImportError as error:
        raise CannotRun(
            f"--official: alpaca_eval cannot be imported ({error}); install the extra: pip install 'stagealign[eval]', "
            "or leave --official out"
        ) from error

    def call(*given: Any, **named: Any) -> Any:
        try:
            with sklearn.config_context():
                return glm_winrate.get_length_controlled_winrate(*given, **named)
        except OSError as error:  # the hub's client: no connection, offline mode, no such file
            raise CannotRun(
                f"--official: the hub's rows (tatsu-lab/alpaca_eval, df_gamed.csv) are not to be had "
                f"({str(error).splitlines()[0]}); connect, or leave --official out"
            ) from error

    return call
