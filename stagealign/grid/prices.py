"""What a paid judge costs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenPrice:
    """USD for a million tokens."""

    prompt: float
    completion: float
    source: str

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """USD for so many tokens read and written."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclass(frozen=True)
class PaidJudge:
    """A judge behind a server that sends a bill, and what asking it takes. The lengths are assumed."""

    model: str
    price: TokenPrice
    frame_tokens: float
    """Of the annotation prompt without instruction and answers."""
    instruction_tokens: float
    baseline_tokens: float
    answer_tokens: float
    source: str
    """Of the lengths."""
    packages: tuple[str, ...] = ()
    """Modules that asking it imports."""
    extras: str = ""
    """Extras of this package that install them, as in `pip install 'stagealign[eval,judge]'`."""

    def dollars(self, prompts: int) -> float:
        """USD for one policy's evaluation: each prompt once, one token answered."""
        read = self.frame_tokens + self.instruction_tokens + self.baseline_tokens + self.answer_tokens
        return self.price.of(prompts * read, prompts)
