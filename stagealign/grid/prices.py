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
