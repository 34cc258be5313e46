"""Text without secrets: keys of the environment and passwords in URLs, for whatever is shown, logged or recorded."""

import os
import re

NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""Environment variables whose values are nobody's business."""
SHORTEST = 8
"""Characters of a value that is looked for; a shorter one stands in any text by chance."""
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@'\"]+@")


def without_secrets(text: str) -> str:
    """`text` with each secret replaced by the name of its variable, and `user:password@` taken out of URLs."""
    secrets = {value.strip(): name for name, value in os.environ.items() if NAMES.search(name)}
    for value in sorted(secrets, key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, f"[{secrets[value]}]")
    return _USER.sub(r"\1[hidden]@", text)
