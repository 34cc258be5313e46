"""Sizes and rows of a small copy of the paper's data."""

KEY = "sk-planted-0c5f21"
PROMPTS = 12
WORDS = ("sea", "river", "hill", "lake", "town", "fish", "bird", "tree", "road", "ship", "star", "stone")


def chat(prompt, answer):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def preferences(count, what):
    rows = [(f"Name a {WORDS[i % 12]} {what} {i}.", f"the {WORDS[i % 12]} of old", "no") for i in range(count)]
    return [{"prompt": p, "chosen": chat(p, good), "rejected": chat(p, bad)} for p, good, bad in rows]
