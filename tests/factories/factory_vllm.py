"""A stand-in for vLLM, and what a tiny policy is sampled with by it."""

from stagealign.data.records import Prompt
from stagealign.grid.spec import Decoding

ENDS = list(range(0, 264, 12))
DECODING = Decoding(temperature=0.7, top_p=0.9, top_k=50, max_new_tokens=12)
PROMPTS = [Prompt(f"Review the film {title}.", "train") for title in ("Jaws", "Heat", "The Piano", "Up", "Brazil")]
FAKE = '''
"""A stand-in with the signatures of vLLM 0.22 to 0.33, as far as they are used."""
import dataclasses, os, sys
__version__ = "0.30.0"

@dataclasses.dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self):
        assert self.n == 1 or self.temperature > 0, "n must be 1 when using greedy sampling"
        assert -(2**63) <= self.seed and self.seed + self.n < 2**63

@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: object
    finish_reason: str | None = None
    stop_reason: int | str | None = None

@dataclasses.dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]

class LLM:
    def __init__(self, model, *, tokenizer=None, skip_tokenizer_init=False, trust_remote_code=False, dtype="auto",
                 seed=0, enforce_eager=False, **kwargs):
        known = {"max_model_len", "enable_prefix_caching", "generation_config", "logprobs_mode"}
        assert set(kwargs) <= known, kwargs
        assert skip_tokenizer_init and os.path.isdir(model)
        self.limit, self.calls = kwargs["max_model_len"], 0

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        assert len(prompts) == len(sampling_params)
        self.calls += 1
        if os.environ.get("FAKE_DIES") == str(self.calls):
            sys.exit("out of memory, says the stand-in")
        outputs = []
        for prompt, params in zip(prompts, sampling_params):
            ids = prompt["prompt_token_ids"]
            assert len(ids) + params.max_tokens <= self.limit and params.logprobs == 0 and not params.detokenize
            texts = []
            for j in range(params.n):
                chance = params.seed + j
                end = params.stop_token_ids[chance % len(params.stop_token_ids)]
                length = chance % (params.max_tokens + 1)  # so long that there is no room for the end: cut
                tokens = [1 + (chance + k) % 10 for k in range(length)]
                cut = length == params.max_tokens
                texts.append(CompletionOutput(j, "", tokens if cut else [*tokens, end], -0.5 * (length + 1), None,
                                              "length" if cut else "stop", None if cut else end))
            outputs.append(RequestOutput(list(ids), texts[::-1]))
        return outputs
'''
