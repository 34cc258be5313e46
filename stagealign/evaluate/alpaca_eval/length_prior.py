"""What the hub-only rows of the official length-controlled model do to its weights, learned from published ones.

Written by `python -m benchmarks.length_control --write`; see `LengthPrior` in `length_control.py` for what they are.
"""

CURVATURE = ((11.96, 7.305), (7.305, 42.182))
SLOPE = (16.581, -18.898)
BASE_PULL = 0.195
