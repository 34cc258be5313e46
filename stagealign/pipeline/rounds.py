"""The artifacts of a run, and the order in which they depend on each other.

Main path: pairs (static, or sampled and ranked) -> reference -> policy, once a round; then completions -> scores.
Cells share artifacts by sharing paths: rounds that two schedules have in common are built once.
"""

from dataclasses import replace

from stagealign.base.identity import stream
from stagealign.grid.cell import Cell
from stagealign.grid.methods import METHODS
from stagealign.grid.spec import Method
from stagealign.pipeline import candidates as pools
from stagealign.pipeline import evaluation, labels, start
from stagealign.pipeline.kinds import POLICY, REFERENCE, TRUNK
from stagealign.pipeline.layout import Layout, Paths, make, trained
from stagealign.pipeline.run import Run, Step
from stagealign.store.artifact import Artifact


def plan_run(cell: Cell, seed: int, demo: bool = False, capability: bool = False) -> Run:
    """Every artifact of one run; `demo` keeps only the recorded learning rate, `capability` adds its measurements."""
    at = lay_out(cell, seed)
    start_scores = evaluation.scores(at, at.start, None)
    policy, scores, rounds = at.start, start_scores, []
    ends = [policy]
    for number, source in enumerate(cell.sources, 1):
        recorded = at.training.rate(source)
        rates = at.training.ladder if number == len(cell.sources) and not demo else (recorded,)
        rounds.append(tuple(_step(at, number, rate, policy, scores) for rate in rates))
        chosen = _step(at, number, recorded, policy, scores)
        policy, scores = chosen.policy, chosen.scores
        ends.append(policy)
    abilities = tuple(evaluation.capability(at, end) for end in ends) if capability else ()
    return Run(cell, seed, at.start, start_scores, at.oracle, at.gold, at.weights, tuple(rounds), abilities)


def lay_out(cell: Cell, seed: int) -> Layout:
    """The artifacts that all rounds of a run share."""
    at = Paths(cell, seed)
    prompts = start.prompts(at)
    ratings = start.ratings(at, prompts)
    weights = start.weights(at)
    return Layout(
        cell,
        seed,
        prompts=prompts,
        held_out=pools.held_out(at, prompts),
        oracle=labels.oracle(at, ratings),
        gold=evaluation.gold(at, ratings),
        weights=weights,
        start=start.start(at, weights, prompts),
    )


def _step(at: Layout, number: int, rate: float, begin: Artifact, begin_scores: Artifact) -> Step:
    """One round at one learning rate, from the policy `begin`."""
    source, method = at.cell.sources[number - 1], _method(at, number)
    candidates = pools.candidates(at, number, source, begin)
    data_folder, round_folder = candidates.folder, pools.folder(at, number, source, begin)
    pairs = labels.pairs(at, candidates)
    trunk = _trunk(at, data_folder, pairs)
    own = _reference(at, round_folder, begin, pairs, trunk)
    reference = own
    if method.reference != "round":
        first = pools.folder(at, pools.prompt_set(at, number), source, at.start)
        folder = f"{round_folder}/first" if data_folder == round_folder else first
        reference = _reference(at, folder, at.start, pairs, trunk)
    params = {
        "method": replace(method, assumed={}),
        "training": trained(at.training),
        "learning_rate": rate,
        "seed": stream(at.seed, "order", number),
    }
    inputs = {"policy": begin, "pairs": pairs, "reference": reference, **trunk}
    policy = make("policy", POLICY, f"{round_folder}/{method.key}/lr{rate:g}/policy", params, **inputs)
    scores = evaluation.scores(at, policy, begin)
    described = {"candidates": candidates, "pairs": pairs, "reference": own, "policy": begin}
    data = evaluation.data(at, round_folder, pools.pool(at, number), **described)
    return Step(number, source, rate, begin, pairs, reference, policy, scores, begin_scores, data)


def _trunk(at: Layout, folder: str, pairs: Artifact) -> dict[str, Artifact]:
    """Output of the frozen layers for a set of pairs, as an input; empty if every layer is trained."""
    if at.training.trained_layers is None:
        return {}
    return {"trunk": make("trunk", TRUNK, f"{folder}/trunk", _forward_params(at), weights=at.weights, pairs=pairs)}


def _reference(at: Layout, folder: str, policy: Artifact, pairs: Artifact, trunk: dict[str, Artifact]) -> Artifact:
    """Log-probs of a set of pairs under a policy, once for all methods, rates and cells that train on it."""
    return make("reference", REFERENCE, f"{folder}/reference", _forward_params(at), policy=policy, pairs=pairs, **trunk)


def _forward_params(at: Layout) -> dict[str, object]:
    training = at.training
    return {
        "max_length": training.max_length,
        "dtype": training.dtype,
        "trained_layers": training.trained_layers,
    }


def _method(at: Layout, number: int) -> Method:
    """Method of one round. A variant of the reference equals its base in round 1: both references are the start."""
    method = at.cell.method
    if number == 1 and method.reference != "round" and method.variant_of:
        return METHODS[at.scale.key][method.variant_of]
    return method
