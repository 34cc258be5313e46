"""What tells one model of a local server from another that is served under the same name.

A name is all that an OpenAI-compatible server has to say about its model. A hosted API changes the model behind a
dated name rarely; `vllm serve ./checkpoint --served-model-name judge` on a machine of one's own is restarted with other
weights every day. So a server on this machine or network is also known by what it reports about the model, by the files
of the folder that it reports, and by its greedy answer to one fixed question.

Limit: two models that answer the question alike, on a server that reports nothing but a name, are taken for one. A
server whose greedy answer varies is asked anew.
"""

import ipaddress
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from stagealign.base.chat import content_of
from stagealign.base.errors import StagealignError
from stagealign.base.identity import fingerprint
from stagealign.base.server import RequestFailed, Server

PROBE = "Continue this list of ten words, each on its own line: lantern, verdict, marble, otter, quartz"
"""Question whose greedy answer differs between most models."""
PROBE_SETTINGS = {"temperature": 0, "max_tokens": 24}
REPORTED = ("root", "parent", "max_model_len", "meta", "created")
"""Fields of a list of models that depend on the weights; vLLM and SGLang give `root`, llama.cpp gives `meta`."""
SETTLED = 60.0
"""Seconds after which `created` is the model's time and not that of the answer, as in vLLM and llama.cpp."""
FILES = ("*.safetensors", "*.gguf", "*.bin", "*.json", "*.jinja")


def weights_behind(server: Server, model: str) -> str | None:
    """Fingerprint of the model behind a local server; None for a remote server."""
    if not is_local(server.url):
        return None
    entry = next((entry for entry in server.models() if entry.get("id") == model), {})
    reported = {name: entry[name] for name in REPORTED if entry.get(name) is not None and _lasts(name, entry[name])}
    return fingerprint({"reported": reported, "files": _files(entry), "says": _says(server, model)})


def is_local(url: str) -> bool:
    """True for a server on this machine or in a private network, by the host's address or name."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".local", ".lan", ".internal", ".localhost"))
    return address.is_private or address.is_loopback or address.is_link_local


def _lasts(name: str, value: object) -> bool:
    """Whether a reported value is the same in the next answer."""
    if name != "created":
        return True
    return isinstance(value, int | float) and value < time.time() - SETTLED


def _files(entry: Mapping[str, object]) -> list[list[object]]:
    """Names, sizes and times of the files of the folder that a server reports, if it is on this machine."""
    root = entry.get("root")
    if not isinstance(root, str) or not Path(root).is_dir():
        return []
    found = {path for pattern in FILES for path in Path(root).glob(pattern)}
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(found)]


def _says(server: Server, model: str) -> list[str] | None:
    """The model's greedy answer to the fixed question, reasoning included; None if the server refuses its settings.

    Raises StagealignError if no answer comes, as the model would then be taken for another.
    """
    try:
        answer = server.chat(model, [{"role": "user", "content": PROBE}], PROBE_SETTINGS)
    except RequestFailed as error:
        if error.status in (400, 404, 422):
            return None
        raise StagealignError(
            f"judge {model!r} at {server.url}: {error}; run the command again when it answers"
        ) from None
    message = answer["choices"][0]["message"]
    parts = (content_of(answer), message.get("reasoning_content"), message.get("reasoning"))
    return [part.encode("utf-8", "replace").decode() for part in parts if isinstance(part, str)]
