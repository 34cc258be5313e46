"""Opens what the boundary meter needs, cheapest check first: the data, the oracle, the policy; then measures.

Everything a user can have wrong is an error before a token is sampled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagealign.atomic import write_text
from stagealign.errors import StagealignError
from stagealign.judged import Contest, Oracle
from stagealign.meter import Item, Kept, Measurement, Meter, Sampled, Sampler, kept_at, measure
from stagealign.records import prompt_hash
from stagealign.spec import Decoding, stream
from stagealign.store import default_home

if TYPE_CHECKING:
    from stagealign.preferences import PreferenceData, Recorded

KINDS = "pairrm[:ID_OR_PATH], reward:ID_OR_PATH, completion-reward:ID_OR_PATH, judge:MODEL or recorded:FILE"
COMPLETIONS = 2
"""Candidates sampled a prompt; the paper's number."""
GIVE_UP = 10
"""Prompts that a served policy fails on, one after the other, before the run is stopped."""

Heard = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Request:
    """What a user asks of the meter."""

    policy: str | None = None
    """Hub id or local folder; the model's name where `policy_url` is given."""
    data: str | None = None
    oracle: str = "pairrm"
    prompts: int | None = 2000
    seed: int = 0
    decide: float | None = None
    split: str | None = None
    decoding: Decoding = field(default_factory=lambda: Decoding(max_new_tokens=512))
    template: str = "auto"
    policy_url: str | None = None
    judge_url: str | None = None
    keep: bool = True
    """Whether candidates and verdicts are kept for the next call."""


def measure_boundary(
    policy: str | None = None,
    data: str | None = None,
    *,
    heard: Heard = lambda done, total, score: None,
    **options: Any,
) -> Measurement:
    """Which stage a policy is in with respect to preference data, and so what to collect next.

    `policy`: hub id or local folder of a causal language model; `data`: a file or hub data set of preferences in any of
    TRL's shapes; `options` are the other fields of `Request` (`oracle`, `prompts`, `decide`, ...). With
    `oracle="recorded:FILE"` of scored candidates neither policy nor data is needed. Raises StagealignError for what
    cannot be measured, before anything is sampled.
    """
    request = Request(policy, data, **options)
    check(request)
    kind, _, rest = request.oracle.partition(":")
    if kind == "recorded":
        from stagealign.preferences import RecordedOracle, read_recorded

        recorded = read_recorded(rest, request.prompts, request.seed)
        if recorded.form == "scores":
            return measure_recorded(recorded, request.decide, heard)
        return _measure(request, RecordedOracle(recorded), heard)
    _needs_policy_and_data(request)
    return _measure(request, None, heard)


def check(request: Request) -> None:
    """Raises StagealignError for options that no measurement can have."""
    kind, _, rest = request.oracle.partition(":")
    if kind not in ("pairrm", "reward", "completion-reward", "judge", "recorded") or (kind != "pairrm" and not rest):
        raise StagealignError(f"--oracle {request.oracle!r}: unknown; one of {KINDS}")
    if kind == "judge" and not request.judge_url:
        raise StagealignError(f"--oracle {request.oracle!r}: needs --judge-url, for example http://127.0.0.1:8000/v1")
    if request.decide is not None and not 0.5 < request.decide < 1:
        raise StagealignError(f"--decide {request.decide}: not a level; 0.95 stops when a stage is named at 95%")
    if request.template not in ("auto", "none"):
        raise StagealignError(f"--template {request.template!r}: unknown; auto or none")
    decoding = request.decoding
    if decoding.temperature < 0 or not 0 < decoding.top_p <= 1 or decoding.top_k < 1 or decoding.max_new_tokens < 1:
        raise StagealignError(f"decoding {asdict(decoding)}: temperature >= 0, 0 < top_p <= 1, the others at least 1")


def _needs_policy_and_data(request: Request) -> None:
    if not request.policy or not request.data:
        raise StagealignError(
            f"--oracle {request.oracle}: needs --policy and --data; only `recorded:FILE` of scored candidates does not"
        )


def measure_recorded(recorded: "Recorded", decide: float | None, heard: Heard) -> Measurement:
    """The measurement of candidates that were scored beforehand."""
    items = [Item(prompt_hash(row.prompt), row.prompt, tuple(text for text, _ in row.off)) for row in recorded.prompts]
    known = {row.prompt: row for row in recorded.prompts}

    class Recall:
        """Oracle that gives the recorded scores back."""

        @property
        def identity(self) -> dict[str, str]:
            return {"kind": "recorded", "sha256": recorded.digest}

        def judge(self, contests: Sequence[Contest]) -> Any:
            return (known[contest.prompt].judged for contest in contests)

    def sampler(wanted: Sequence[Item]) -> list[Sampled]:
        return [Sampled(tuple(text for text, _ in known[item.prompt].on), 0, 0) for item in wanted]

    data = {
        "data": recorded.path,
        "rows given": recorded.given,
        "rows used": recorded.used,
        "rows dropped": dict(recorded.drops),
        "prompts without a score": recorded.failures,
    }
    return measure(items, Meter(sampler, Recall(), Kept(None), Kept(None)), data, decide, heard)


def _measure(request: Request, oracle: Oracle | None, heard: Heard) -> Measurement:
    from stagealign.preferences import RecordedOracle, read_preferences

    _needs_policy_and_data(request)
    rows = read_preferences(str(request.data), request.prompts, request.seed, request.split)
    items = [Item(row.hash, row.prompt_text, (row.chosen, row.rejected), row.messages) for row in rows.rows]
    oracle = oracle or open_oracle(request)
    sampler, identity, token_count = open_policy(request)
    kept = kept_at(default_home(), identity, oracle.identity) if request.keep else (Kept(None), Kept(None))
    meter = Meter(sampler, oracle, *kept)
    if isinstance(oracle, RecordedOracle):
        oracle.check([Contest(item.prompt, one.completions, item.off) for item, one in meter.contests(items)])
    return measure(items, meter, _facts(rows), request.decide, heard, _epoch_tokens(rows, token_count))


def _facts(rows: "PreferenceData") -> dict[str, Any]:
    return {
        "data": rows.source,
        "rows given": rows.given,
        "prompts": len(rows.rows),
        "rows merged": rows.repeated,
        "rows dropped": dict(rows.drops),
        "chosen equal to rejected": rows.ties,
    }


def _epoch_tokens(rows: "PreferenceData", count: Callable[[str], int] | None) -> float | None:
    """Tokens that one DPO epoch over all rows would train on, estimated from the first prompts measured."""
    if count is None:
        return None
    some = rows.rows[:50]
    each = sum(2 * count(row.prompt_text) + count(row.chosen) + count(row.rejected) for row in some) / len(some)
    return each * (rows.given - rows.drops.total())


def open_oracle(request: Request) -> Oracle:
    """The oracle that `request.oracle` names, loaded or, for a judge, asked one question."""
    kind, _, rest = request.oracle.partition(":")
    if kind == "pairrm":
        from stagealign import pairrm

        return pairrm.load(rest) if rest else pairrm.load()
    if kind in ("reward", "completion-reward"):
        from stagealign import rewards

        return rewards.load(rest, text="completion" if kind == "completion-reward" else "auto")
    from stagealign import judge

    return judge.connect(rest, str(request.judge_url))


def open_policy(request: Request) -> tuple[Sampler, dict[str, Any], Callable[[str], int] | None]:
    """A sampler of the policy, what identifies its samples, and its token counter (None for a served policy)."""
    settings = {
        "decoding": asdict(request.decoding),
        "template": request.template,
        "seed": request.seed,
        "count": COMPLETIONS,
    }
    if request.policy_url:
        sampler, named = _served(request)
        return sampler, {"served": request.policy, "named": named, **settings}, None
    import torch

    from stagealign import lm, sample
    from stagealign.checkpoints import read_config, weights_identity

    name = str(request.policy)
    weights = weights_identity(name, read_config(name))
    model = lm.load(name)
    if torch.cuda.is_available():
        model.model.to("cuda")

    def sampler(items: Sequence[Item]) -> list[Sampled]:
        prompts = [
            model.prompt_ids(item.messages or item.prompt, template=request.template == "auto") for item in items
        ]
        draws = [
            [sample.draws(request.seed, item.key, j, request.decoding.max_new_tokens) for j in range(COMPLETIONS)]
            for item in items
        ]
        done = sample.generate(model, prompts, draws, request.decoding)
        return [
            Sampled(
                tuple(model.tokenizer.decode(list(one.ids), skip_special_tokens=True).strip() for one in group),
                sum(len(one.ids) + one.ended for one in group),
                sum(not one.ended for one in group),
            )
            for group in done
        ]

    def count(text: str) -> int:
        return len(model.tokenizer(text, add_special_tokens=False).input_ids)

    return sampler, {"weights": weights, **settings}, count


def _served(request: Request) -> tuple[Sampler, str | None]:
    """Sampler of a policy behind an OpenAI-compatible server, and what that calls its model in a first small answer.

    A prompt that gets no answer is a failure; `GIVE_UP` of them in a row, or an answer by another model, end the run.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    from stagealign.server import RequestFailed, Server, content_of, tokens_of

    server, decoding = Server(str(request.policy_url)), request.decoding
    settings = {"temperature": decoding.temperature, "top_p": decoding.top_p, "max_tokens": decoding.max_new_tokens}
    who = f"policy {request.policy!r} at {server.url}"

    def name_of(answer: Mapping[str, Any]) -> str | None:
        name = answer.get("model")
        return server.said(name) if isinstance(name, str) else None

    def complete(item: Item, index: int) -> tuple[str, int, bool]:
        messages = list(item.messages or [{"role": "user", "content": item.prompt}])
        seed = stream(request.seed, "sample", item.key, index) % 2**31
        answer = server.chat(str(request.policy), messages, settings | {"seed": seed})
        if name_of(answer) != named:
            raise StagealignError(
                f"{who}: the server named its model {named!r} and now {name_of(answer)!r}; samples of two policies are "
                "never mixed: name one exact version, and start again"
            )
        choice, text = answer["choices"][0], content_of(answer)
        if text is None and choice["message"].get("content") is not None:
            raise RequestFailed("answered with something else than text")
        return text or "", tokens_of(answer, "completion_tokens"), choice.get("finish_reason") == "length"

    def settled(group: Sequence["Future[tuple[str, int, bool]]"]) -> Sampled:
        try:
            told = [future.result() for future in group]
        except RequestFailed as error:
            return Sampled((), 0, 0, failed=f"policy: {error}")
        return Sampled(tuple(t for t, _, _ in told), sum(n for _, n, _ in told), sum(cut for *_, cut in told))

    def sampler(items: Sequence[Item]) -> Iterator[Sampled]:
        streak = 0
        with ThreadPoolExecutor(8) as pool:
            try:
                futures = [[pool.submit(complete, item, j) for j in range(COMPLETIONS)] for item in items]
                for group in futures:
                    one = settled(group)
                    streak = streak + 1 if one.failed else 0
                    yield one
                    if streak == GIVE_UP:
                        raise StagealignError(
                            f"{who}: {GIVE_UP} prompts in a row failed, the last with {one.failed}; all that was "
                            "measured is kept, run the same command again when it is back"
                        )
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    try:
        first = server.chat(str(request.policy), [{"role": "user", "content": "Say yes."}], {"max_tokens": 1})
    except RequestFailed as error:
        raise StagealignError(f"{who}: {error}; see that the server runs and serves this model") from error
    named = name_of(first)
    return sampler, named


def write(found: Measurement, json_file: str | None, html: Path | None) -> None:
    """Writes the measurement where it was asked for; `-` is standard output."""
    import json

    if json_file:
        text = json.dumps(found.plain(), indent=1, sort_keys=True) + "\n"
        if json_file == "-":
            print(text, end="")
        else:
            write_text(Path(json_file), text)
    if html:
        from stagealign.report.meter import page

        write_text(html, page(found))
