"""The official length-controlled win rate: alpaca_eval's own function with its rows from the hub.

If the hub cannot be reached, its client retries first; with `HF_HUB_OFFLINE=1` it uses its cache or fails at once.
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

    `rows`: (preference from 1 to 2, NaN for a failed judgment; baseline's characters; model's characters), one for each
    prompt in order. The function looks up a prompt's difficulty by row position, so a gap gives later rows the
    difficulties of other prompts. It uses only the lengths of texts. Nothing is written into the package's folder.
    Raises CannotRun if the extra `eval` is not installed or the hub's file is not available.
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
        warnings.simplefilter("ignore")  # scikit-learn warns about deprecated uses in the official function
        numbers = _function()(table, save_weights_dir=None, is_add_glm_preference_inplace=False)
    return float(numbers["length_controlled_winrate"]), float(numbers["lc_standard_error"])


def _function() -> Any:
    """The official function; restores the global configuration of scikit-learn after each call. Raises CannotRun."""
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
                f"--official: the hub's rows (tatsu-lab/alpaca_eval, df_gamed.csv) are not available "
                f"({str(error).splitlines()[0]}); connect, or leave --official out"
            ) from error

    return call
