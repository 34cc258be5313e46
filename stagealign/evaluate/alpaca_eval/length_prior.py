"""What the hub-only rows of the official length-controlled model do to its weights, learned from published ones.

Written by `python -m benchmarks.length_control --write`; `stagealign.evaluate.alpaca_eval.length_control.Prior` says
what they are.
"""

CURVATURE = ((11.96, 7.305), (7.305, 42.182))
SLOPE = (16.581, -18.898)
BASE_PULL = 0.195
