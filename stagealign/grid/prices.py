"""Prices of paid judges."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenPrice:
    """USD for a million tokens."""

    prompt: float
    completion: float
    source: str

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """USD for these numbers of tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


PAID = {
    "gpt-4-1106-preview": TokenPrice(
        10.0, 30.0, "OpenAI's price list for gpt-4-1106-preview; alpaca-eval 0.6.6 counts all tokens at $10"
    )
}
"""Prices of models behind paid servers, by name; the price of any other model is unknown, which is not free."""


@dataclass(frozen=True)
class PaidJudge:
    """A paid judge behind a server: its price and the length of its requests. The lengths are assumed."""

    model: str
    price: TokenPrice
    frame_tokens: float
    """Tokens of the annotation prompt without instruction and answers."""
    instruction_tokens: float
    baseline_tokens: float
    answer_tokens: float
    source: str
    """Source of the lengths."""
    packages: tuple[str, ...] = ()
    """Modules that its client imports."""
    extras: str = ""
    """Extras of this package that install them, as in `pip install 'stagealign[eval,judge]'`."""

    def dollars(self, prompts: int) -> float:
        """USD for one policy's evaluation: one request a prompt, each answered with one token."""
        read = self.frame_tokens + self.instruction_tokens + self.baseline_tokens + self.answer_tokens
        return self.price.of(prompts * read, prompts)
