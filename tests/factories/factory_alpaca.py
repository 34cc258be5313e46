"""AlpacaEval in small: completions by quality, and a judge's server that prefers the better."""

import importlib.util
import math
import re

import pytest
from factory_judge import Judge

KEY = "sk-planted-51b07c44ae"
MODEL = "gpt-4-1106-preview"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("alpaca_eval") is None, reason="the extra `eval` is not installed"
)
needs_client = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("httpx", "tenacity")),
    reason="the extra `judge` is not installed",
)
QUALITY = {"poor": 0.0, "fair": 1.0, "good": 2.0}


def rows(count=12, quality="fair", generator="model"):
    """Completions whose first word is their quality; the i-th prompt names its number."""
    return [
        {
            "instruction": f"Task {i}: explain it.",
            "output": f"{quality} text {i} by {generator}",
            "generator": generator,
        }
        for i in range(count)
    ]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def server_answer(name):
    top = [{"token": "m", "logprob": -0.1}]
    choice = {"message": {"content": "m"}, "logprobs": {"content": [{"top_logprobs": top}]}}
    return {"model": name, "choices": [choice], "usage": {"prompt_tokens": 300, "completion_tokens": 1}}


class Grader(Judge):
    """Prefers the better quality with probability sigmoid(2 * difference + 0.25 for what is shown first)."""

    odd = None
    """(word in a prompt, body to answer it with); None where it misbehaves for no prompt."""

    def __init__(self):
        super().__init__()
        self.logprobs, self.name = True, MODEL

    def answer(self, request):
        text = request["messages"][-1]["content"]
        if self.odd and self.odd[0] in text:
            return self.odd[1]
        first, second = re.findall(r'"output": """(\w*)', text)[:2]
        gap = 2 * (QUALITY.get(first, 1) - QUALITY.get(second, 1)) + 0.25  # and a little the first
        top = [{"token": t, "logprob": -math.log1p(math.exp(-s * gap)) - 0.1} for t, s in (("m", 1), ("M", -1))]
        top = [{**one, "bytes": None} for one in (*top, {"token": "The", "logprob": -3.0})]
        message = {"role": "assistant", "content": "m" if gap > 0 else "M"}
        choice = {"index": 0, "finish_reason": "length", "message": message}
        if self.logprobs and request.get("logprobs"):
            content = [{"token": "m", "logprob": -0.1, "bytes": None, "top_logprobs": top}]
            choice["logprobs"] = {"content": content}
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 1, "total_tokens": len(text) // 4 + 1}
        head = {"id": "x", "object": "chat.completion", "created": 1, "model": self.name}
        return {**head, "choices": [choice], "usage": usage}

    @property
    def asked(self):
        """Prompts in the order they came."""
        texts = (request["messages"][-1]["content"] for _, _, request in self.seen)
        return [found[0] for found in (re.findall(r"Task \d+|Say yes", text) for text in texts)]
