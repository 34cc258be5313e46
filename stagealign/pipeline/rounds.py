"""The order of things: which artifacts a cell is made of, and the result that its run writes.

At paper scale a round is sampled in parts, each an artifact, so that a cluster labels one while it samples the next,
several devices share a round, and a kill costs a part. In the lab it is one: labelling takes next to nothing there.

Main path: pairs (static, or sampled and ranked) -> reference -> policy, once a round; then completions -> scores.
Cells share artifacts by sharing paths: everything above the round where two schedules part is built once.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from stagealign.base.identity import plain, stream
from stagealign.data.mirrors import content_of
from stagealign.grid import methods, models, sources
from stagealign.grid.cell import Cell
from stagealign.grid.spec import Decoding, Judging, Method, Source
from stagealign.pipeline.kinds import BUILDERS, ENGINES, SECONDS, TASKS
from stagealign.pipeline.run import Run, Step
from stagealign.store.artifact import Artifact, Builder

HELD_OUT = ("validation", "test")


def plan_run(cell: Cell, seed: int, demo: bool = False, capability: bool = False) -> Run:
    """Every artifact of one run; `demo` keeps only the recorded learning rate, `capability` adds what measures it."""
    return _Lines(cell, seed).run(demo, capability)


class _Lines:
    """Lays out one run's artifacts."""

    def __init__(self, cell: Cell, seed: int):
        self.cell, self.seed, self.scale = cell, seed, cell.scale
        self.training, self.preference = cell.scale.training, cell.scale.preference
        task, evaluation = TASKS[self.scale.task], self.scale.evaluation
        sizes: dict[str, Any] = {
            "test_prompts": evaluation.test_prompts,
            "validation_prompts": evaluation.validation_prompts,
        }
        if self.scale.data:
            sizes |= {"data": self.scale.data, "content": content_of(self.scale.data)}
        self.task = task
        self.shared = self.scale.key
        self.asked = f"{self.shared}/{self.preference.key}"
        self.prompts = self._make("prompts", f"{self.shared}/prompts", task["prompts"], sizes)
        learned = {
            "ratings": self._make("ratings", f"{self.shared}/ratings", BUILDERS["ratings"], {}, films=self.prompts)
        }
        learned = learned if self.scale.task == "films" else {}
        weights = self.scale.oracle_weights
        fitted = {"alpha": 1.0} if weights is None else {"weights": weights, "revision": None}
        self.oracle = self._make("oracle", f"{self.shared}/oracle", task["oracle"], fitted, **learned)
        self.gold = self._gold(learned)
        self.held_out = self._static("held-out", HELD_OUT, None, 1)
        self.weights = self._weights()
        self.start = self._start()

    def _gold(self, learned: Mapping[str, Artifact]) -> Artifact:
        """The gold reward: a fine-tuning, a judge's prompts with the baseline's completions, or a reward model."""
        judging, name = self.scale.evaluation.judging, self.preference.rewarded
        path = f"{self.shared}/gold"
        if name:
            given: dict[str, Any] = {"weights": name, "revision": None}
            return self._make("gold", f"{path}_{self.preference.rewarded_key}", BUILDERS["reward_model"], given)
        if judging is None:
            given = {"batch": 32, "learning_rate": 1e-4, "seed": 0}
        else:
            given = {"data": judging.data, "revision": judging.revision, "content": content_of(judging.data)}
            given |= {"prompts": judging.prompts}
        return self._make("gold", path, self.task["gold"], given, **learned)

    def _builder(self, kind: str) -> Builder:
        """The task's own builder of a kind, else everyone's."""
        return self.task.get(kind) or BUILDERS[kind]

    def _make(self, kind: str, path: str, builder: Builder, params: Mapping[str, Any], **inputs: Artifact) -> Artifact:
        return Artifact(path, builder, params, inputs, SECONDS[kind])

    def _weights(self) -> Artifact:
        source = self.cell.checkpoint.source
        dtype = self.training.dtype
        if source.startswith("asset:"):
            asset = source.removeprefix("asset:")
            return self._make(
                "weights", f"{self.shared}/{asset}", BUILDERS["weights"], {"asset": asset, "dtype": dtype}
            )
        revision = self.cell.checkpoint.revision
        if "weights" in self.task:
            folder = f"{self.shared}/{source.rpartition('/')[2]}"
            return self._make("weights", folder, self.task["weights"], {"checkpoint": source, "revision": revision})
        layers = self.training.trained_layers
        shape = {"checkpoint": source, "revision": revision, "seed": 0, "trained_layers": layers}
        return self._make("shape", f"{self.shared}/{source.rpartition('/')[2]}", BUILDERS["shape"], shape)

    def _start(self) -> Artifact:
        folder = f"{self.shared}/{self.cell.model.key}/seed{self.seed}"
        sft = self.cell.checkpoint.sft
        if sft is None:
            return self._make("link", f"{folder}/start", BUILDERS["link"], {}, weights=self.weights)
        if sft.revision is None:
            share = {"rows": sft.rows, "rotten_share": sft.rotten_share, "seed": self.seed}
            reviews = self._make("reviews", f"{folder}/reviews", BUILDERS["reviews"], share, films=self.prompts)
        else:
            data = f"{sft.data}@{sft.revision}"
            every = {"data": data, "content": content_of(data), "rows": sft.rows}
            reviews = self._make("reviews", f"{self.shared}/conversations", self._builder("reviews"), every)
        params = {
            "epochs": sft.epochs,
            "learning_rate": sft.learning_rate,
            "batch": sft.batch,
            "max_length": sft.max_length or self.training.max_length,
            "trained_layers": self.training.trained_layers,
            "dtype": self.training.dtype,
            "seed": self.seed,
        }
        if self.cell.checkpoint.template:
            params["template"] = self.cell.checkpoint.template
        return self._make("start", f"{folder}/start", BUILDERS["start"], params, weights=self.weights, reviews=reviews)

    def run(self, demo: bool, capability: bool) -> Run:
        """The run's rounds, each from the recorded learning rate of the round before."""
        start_scores = self._scores(self.start, None)
        policy, scores, rounds = self.start, start_scores, []
        ends = [policy]
        for number, source in enumerate(self.cell.sources, 1):
            recorded = self.training.rate(source)
            rates = self.training.ladder if number == len(self.cell.sources) and not demo else (recorded,)
            steps = tuple(self._step(number, rate, policy, scores) for rate in rates)
            rounds.append(steps)
            chosen = self._step(number, recorded, policy, scores)
            policy, scores = chosen.policy, chosen.scores
            ends.append(policy)
        abilities = tuple(self._capability(one) for one in ends) if capability else ()
        made = (self.oracle, self.gold, self.weights)
        return Run(self.cell, self.seed, self.start, start_scores, *made, tuple(rounds), abilities)

    def _capability(self, policy: Artifact) -> Artifact:
        """What a policy can do besides; it stands beside the policy, as it knows no preference."""
        params = {"tasks": self.scale.evaluation.capability, "dtype": self.training.dtype}
        where = policy.path.rpartition("/")[0]
        return self._make("capability", f"{where}/capability", BUILDERS["capability"], params, policy=policy)

    def _step(self, number: int, rate: float, start: Artifact, start_scores: Artifact) -> Step:
        source = self.cell.sources[number - 1]
        candidates = self._candidates(number, source, start)
        where = candidates.path.removesuffix("/candidates")
        pairs = self._pairs(where, candidates)
        known = {"max_length": self.training.max_length, "dtype": self.training.dtype}
        layers = {"trained_layers": self.training.trained_layers}
        trunk = {}
        if self.training.trained_layers is not None:
            trunk["trunk"] = self._make(
                "trunk", f"{where}/trunk", BUILDERS["trunk"], known | layers, weights=self.weights, pairs=pairs
            )
        here, method = self._folder(number, source, start), self._method(number)
        own = self._make(
            "reference", f"{here}/reference", BUILDERS["reference"], known | layers, policy=start, pairs=pairs, **trunk
        )
        first = {"policy": self.start, "pairs": pairs, **trunk}
        of_start = f"{here}/first" if where == here else self._folder(self._set(number), source, self.start)
        reference = (
            own
            if method.reference == "round"
            else self._make("reference", f"{of_start}/reference", BUILDERS["reference"], known | layers, **first)
        )
        params = {
            "method": replace(method, assumed={}),
            "training": {
                name: value
                for name, value in plain(self.training).items()
                if name not in ("pairs", "ladder", "learning_rate")
            },
            "learning_rate": rate,
            "seed": stream(self.seed, "order", number),
        }
        folder = f"{here}/{method.key}/lr{rate:g}"
        policy = self._make(
            "policy",
            f"{folder}/policy",
            BUILDERS["policy"],
            params,
            policy=start,
            pairs=pairs,
            reference=reference,
            **trunk,
        )
        scores = self._scores(policy, start)
        data = self._data(number, where, here, candidates=candidates, pairs=pairs, reference=own, policy=start)
        return Step(number, source, rate, start, pairs, reference, policy, scores, start_scores, data)

    def _pairs(self, where: str, candidates: Artifact) -> Artifact:
        """Labelled candidates: part by part where they were sampled so, then joined."""
        labels = {"oracle": self.preference.oracle, "sign": self.preference.sign}
        builder, path = self._builder("pairs"), f"{where}/pairs"
        if candidates.builder != BUILDERS["joined candidates"]:
            return self._make("pairs", path, builder, labels, candidates=candidates, oracle=self.oracle)
        parts = {
            name: self._make(
                "pairs",
                f"{path}-{one.path.rpartition('-')[2]}",
                builder,
                labels | {"part": True},
                candidates=one,
                oracle=self.oracle,
            )
            for name, one in candidates.inputs.items()
        }
        # Parts first: so a plan labels one before it samples the next but one.
        return self._make("joined", path, BUILDERS["joined pairs"], {}, **parts, candidates=candidates)

    def _method(self, number: int) -> Method:
        """The method of one round: a variant of the reference alone is its method in round 1, where both are one."""
        method = self.cell.method
        if number == 1 and method.reference != "round" and method.variant_of:
            return methods.METHODS[self.scale.key][method.variant_of]
        return method

    def _data(self, number: int, where: str, here: str, **made: Artifact) -> Artifact:
        """What one round's data is like: its texts once for all who train on them, their likelihood by start policy."""
        labels = {"oracle": self.preference.oracle, "sign": self.preference.sign}
        pool = {"completions": made["candidates"], "static": self._pool(number), "oracle": self.oracle}
        made["votes"] = self._make("votes", f"{where}/votes", self._builder("votes"), labels, **pool)
        if "embeddings" in self.task:
            builder, encoder = self.task["embeddings"], {"asset": "minilm"}
            made["embeddings"] = self._make(
                "embeddings", f"{where}/embeddings", builder, encoder, candidates=made["candidates"]
            )
        known = {"max_length": self.training.max_length}
        return self._make("data", f"{here}/data", BUILDERS["data"], known, **made)

    def _folder(self, number: int, source: Source, start: Artifact) -> str:
        """Where a round stands: below the policy that it starts from, so that cells share what they have in common.

        What another engine than our own sampler has sampled stands elsewhere.
        """
        sampled = source.on_policy or source.sampled_from
        engine = f"_{self.scale.engine.key}" if self.scale.engine and sampled else ""
        return f"{self._place(start)}/{number}{source.key}{engine}"

    def _place(self, policy: Artifact) -> str:
        """Where what is made from a policy stands; a starting policy serves every preference, all else one."""
        if policy.path == self.start.path:
            return f"{self.asked}/{self.cell.model.key}/seed{self.seed}"
        return policy.path.removesuffix("/policy")

    def _candidates(self, number: int, source: Source, start: Artifact) -> Artifact:
        """Candidates of one round: static ones are shared by all models, sampled ones belong to their policy.

        What another model's start writes is the same artifact as that model's own on-policy candidates.
        """
        static = self._pool(number)
        if source.sampled_from:
            checkpoint = models.CHECKPOINTS[self.scale.key][source.sampled_from]
            other = replace(self.cell, model=models.MODELS[source.sampled_from], checkpoint=checkpoint)
            writer = _Lines(other, self.seed)
            return writer._candidates(self._set(number), sources.SOURCES["on"], writer.start)
        if not source.on_policy:
            return static
        path, count = f"{self._folder(number, source, start)}/candidates", self.scale.parts
        if count == 1:
            return self._sample("candidates", path, start, static, ("train",), 2)
        parts = {
            f"part{k}": self._sample(
                "candidates", f"{path}-{k}of{count}", start, static, ("train",), 2, part=(k, count)
            )
            for k in range(1, count + 1)
        }
        return self._make("joined", path, BUILDERS["joined candidates"], {}, **parts)

    def _pool(self, number: int) -> Artifact:
        """Static candidates of one round's prompts."""
        prompts = self.training.pairs if self.training.fresh_prompts else None
        number = self._set(number)
        return self._static(f"static{number}", ("train",), prompts, number)

    def _set(self, number: int) -> int:
        """Which set of prompts a round has: its own, or the only one."""
        return number if self.training.fresh_prompts else 1

    def _static(self, name: str, splits: tuple[str, ...], prompts: int | None, number: int) -> Artifact:
        params = {
            "splits": splits,
            "prompts": prompts,
            "round": number,
            "seed": self.seed,
            "sign": self.preference.sign,
        }
        path = f"{self.asked}/seed{self.seed}/{name}/candidates"
        return self._make("static", path, self.task["static"], params, films=self.prompts)

    def _sample(
        self,
        kind: str,
        path: str,
        policy: Artifact,
        prompts: Artifact,
        splits: tuple[str, ...],
        count: int,
        decoding: Decoding | None = None,
        part: tuple[int, int] | None = None,
    ) -> Artifact:
        params = {
            "decoding": decoding or self.scale.decoding,
            "count": count,
            "splits": splits,
            "seed": stream(self.seed, kind),
            "dtype": self.training.dtype,
        }
        if part:
            params["part"] = part
        builder, engine = BUILDERS["candidates"], self.scale.engine
        if engine:
            builder, params = ENGINES[engine.key], params | {"engine": engine}
        return self._make(kind, path, builder, params, policy=policy, prompts=prompts)

    def _scores(self, policy: Artifact, reference: Artifact | None) -> Artifact:
        """Completions on held-out prompts, the oracle's votes on them, and the numbers that follow."""
        folder = self._place(policy) + (f"/{self.scale.engine.key}" if self.scale.engine else "")
        evaluation = self.scale.evaluation
        completions = self._sample(
            "completions", f"{folder}/completions", policy, self.held_out, HELD_OUT, evaluation.completions
        )
        labels = {"oracle": self.preference.oracle, "sign": self.preference.sign}
        votes = self._make(
            "votes",
            f"{folder}/votes",
            self._builder("votes"),
            labels,
            completions=completions,
            static=self.held_out,
            oracle=self.oracle,
        )
        params = {
            "gold": self.preference.gold,
            "sign": self.preference.sign,
            "repetition_limit": evaluation.repetition_limit,
            "dtype": self.training.dtype,
        }
        builder = self._builder("scores")
        if evaluation.judging:
            inputs = {"completions": completions, "votes": votes, **self._judged(folder, policy, evaluation.judging)}
        else:
            texts = {"completions": completions, "static": self.held_out, "gold": self.gold}
            inputs = {**texts, "votes": votes}
            if self.preference.rewarded:
                folder, builder = f"{folder}/{self.preference.rewarded_key}", BUILDERS["scores"]
                inputs["rewards"] = self._make("rewards", f"{folder}/rewards", BUILDERS["rewards"], {}, **texts)
        if reference is not None:
            inputs |= {"policy": policy, "reference": reference}
        return self._make("scores", f"{folder}/scores", builder, params, **inputs)

    def _judged(self, folder: str, policy: Artifact, judging: Judging) -> dict[str, Artifact]:
        """A policy's answers to the judge's prompts, one each, and what the judge says of them."""
        answers = self._sample("answers", f"{folder}/answers", policy, self.gold, ("test",), 1, judging.decoding)
        asked, builder = {"judge": judging.judge}, BUILDERS["annotations"]
        made = {"answers": answers, "gold": self.gold}
        return {
            "answers": answers,
            "annotations": self._make("annotations", f"{folder}/annotations", builder, asked, **made),
        }
