"""Client of an OpenAI-compatible server: requests are retried and bounded in time and size; the key stays secret."""

import json
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from stagealign.base.chat import ChatAnswer, tokens_of
from stagealign.base.errors import CannotRun, StagealignError

Answered: TypeAlias = tuple[int, float | None, str]
"""HTTP status, seconds to wait as the server asks (None if it does not), and the body."""
KEYS = ("STAGEALIGN_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold a judge's key; the first that is set wins."""
POLICY_KEYS = ("STAGEALIGN_POLICY_KEY",)
"""The same for a policy's server, which must not see a judge's key."""
LONGEST_CONNECT = 10.0
"""Maximum seconds to wait for a connection. An answer may take long, but a running server connects at once."""
FIRST_ATTEMPTS = 3
"""Maximum requests for the first answer, before any work, so that a missing server is reported soon."""
FIRST_SECONDS = 5.0
"""Seconds after which none of these requests is sent again, so that a silent address is reported soon."""
ATTEMPTS = 15
"""Maximum requests for one answer. If the first wait is a second, the last request is sent about a minute after the
first, when a restarted server answers again."""
LARGEST_ANSWER = 4_000_000
"""Maximum bytes of a body; a chat completion is smaller."""
LONGEST_WAIT = 60.0
"""Maximum seconds between two attempts, whatever the server asks for."""
LONGEST_OWN_WAIT = 5.0
"""Maximum seconds between two attempts if the server does not ask for a wait."""
RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}


class RequestFailed(Exception):
    """No usable answer after all attempts; the message holds no secret."""

    def __init__(
        self,
        reason: str,
        status: int | None = None,
        again: bool = False,
        after: float | None = None,
        answered: bool = False,
    ):
        """`status`: that of the last answer, None without one; `answered`: a body that is no chat completion came.

        `again`: another attempt may succeed, `after` that many seconds.
        """
        super().__init__(reason)
        self.status, self.again, self.after, self.answered = status, again, after, answered


class Server:
    """A chat server behind `url`; safe to use from many threads."""

    def __init__(
        self,
        url: str,
        keys: Sequence[str] = KEYS,
        timeout: float = 60.0,
        attempts: int = ATTEMPTS,
        backoff: float = 1.0,
    ):
        """`timeout` is for a whole answer, in seconds; `backoff` is the first wait, later ones double.

        The key comes from the first of the environment's `keys` that is set. Raises StagealignError for a URL that
        cannot be used, CannotRun if the extra `judge` is not installed.
        """
        try:
            import httpx
            import tenacity
        except ImportError as error:
            raise CannotRun(
                f"a served model needs {error.name!r}, which is not installed; `pip install 'stagealign[judge]'`"
            ) from error
        self._httpx, self._tenacity = httpx, tenacity
        self.url = checked_url(url)
        self.timeout, self.attempts, self.backoff = timeout, attempts, backoff
        self._secret = _Secret(keys)
        headers = {"Accept-Encoding": "identity", "User-Agent": "stagealign"}
        if self._secret.value:
            headers["Authorization"] = f"Bearer {self._secret.value}"
        wait = httpx.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT))
        self._client = httpx.Client(headers=headers, timeout=wait)
        self._lock = threading.Lock()
        self.requests = 0
        """Requests sent, including failed ones."""
        self.tokens = 0
        """Tokens billed by the server's own count, prompt and completion."""

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        settings: Mapping[str, object],
        stop: threading.Event | None = None,
        attempts: int | None = None,
    ) -> ChatAnswer:
        """Body of one chat completion; `settings` go into the request.

        Retries what may pass (time-outs, broken connections, 429, 5xx, bodies that are no chat completion) and waits
        as long as the server asks for, up to a minute. `attempts` lowers the number of requests and allows none after
        `FIRST_SECONDS`. Raises RequestFailed after the last attempt, or at once if a retry cannot help or if `stop` is
        set.
        """
        body = {"model": model, "messages": list(messages), **settings}
        tenacity, stop = self._tenacity, stop or threading.Event()
        most = min(self.attempts, attempts or self.attempts)
        ends = [tenacity.stop_after_attempt(most), tenacity.stop_when_event_set(stop)]
        if attempts is not None:
            ends.append(tenacity.stop_after_delay(FIRST_SECONDS))
        retrying = tenacity.Retrying(
            stop=tenacity.stop_any(*ends),
            wait=self._wait,
            retry=tenacity.retry_if_exception(lambda error: isinstance(error, RequestFailed) and error.again),
            sleep=tenacity.sleep_using_event(stop),
            reraise=True,
        )
        tried = 0

        def attempt() -> ChatAnswer:
            nonlocal tried
            tried += 1
            return self._answer(body)

        try:
            answer: ChatAnswer = retrying(attempt)
        except RequestFailed as error:
            times = f" ({tried} attempts)" if tried > 1 else ""
            raise RequestFailed(f"{error}{times}", error.status, answered=error.answered) from None
        return answer

    def version(self) -> str | None:
        """Version that the server reports, as vLLM does; None if it reports none."""
        version = self._get(f"{self.url.removesuffix('/v1')}/version").get("version")
        return self.said(version) if isinstance(version, str) else None

    def models(self) -> list[Mapping[str, object]]:
        """Entries of the server's list of models (`/models`); empty if it gives none."""
        entries = self._get(f"{self.url}/models").get("data")
        return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []

    def is_vllm(self) -> bool:
        """True if the server's list of models says that vLLM owns one of them."""
        return any(entry.get("owned_by") == "vllm" for entry in self.models())

    def _get(self, url: str) -> Mapping[str, object]:
        """The JSON object at a URL; empty if there is none."""
        try:
            body = self._client.get(url, timeout=LONGEST_CONNECT).json()
        except (self._httpx.HTTPError, ValueError):
            return {}
        return body if isinstance(body, dict) else {}

    def close(self) -> None:
        """Closes the connections; a request under way may still take its time-out."""
        self._client.close()

    def _wait(self, state: Any) -> float:
        error = state.outcome.exception()
        asked = error.after if isinstance(error, RequestFailed) and error.after is not None else 0.0
        grown = min(LONGEST_OWN_WAIT, self.backoff * 2 ** (state.attempt_number - 1)) * random.uniform(0.75, 1.25)
        return min(LONGEST_WAIT, max(asked, grown))

    def _answer(self, body: Mapping[str, object]) -> ChatAnswer:
        with self._lock:
            self.requests += 1
        status, after, text = self._in_time(lambda: self._post(body))
        if status != 200:
            again = status in RETRIED or status >= 500
            raise RequestFailed(f"HTTP {status}: {self.said(text)}", status, again, after if again else None)
        try:
            answer = json.loads(text)
            choice = answer["choices"][0]["message"]
            if not isinstance(choice, dict):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise RequestFailed(f"not a chat completion: {self.said(text)}", again=True, answered=True) from None
        with self._lock:
            self.tokens += tokens_of(answer, "total_tokens")
        checked: ChatAnswer = answer
        return checked

    def _in_time(self, call: Callable[[], Answered]) -> Answered:
        """Result of `call`. Raises RequestFailed if it takes longer than 1.1 times the time-out plus 0.5 seconds.

        The HTTP library bounds each read, not their sum: a server that sends its headers letter by letter would hold a
        request for days. Such a call stays in a thread that ends with the process.
        """
        done: queue.SimpleQueue[tuple[Answered | None, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                done.put((call(), None))
            except BaseException as error:
                done.put((None, error))

        threading.Thread(target=work, name="request", daemon=True).start()
        try:
            answered, error = done.get(timeout=self.timeout * 1.1 + 0.5)
        except queue.Empty:
            raise RequestFailed(f"no whole answer within {self.timeout:g} s", again=True) from None
        if error is not None:
            raise error
        assert answered is not None
        return answered

    def _post(self, body: Mapping[str, object]) -> Answered:
        """The server's answer. Raises RequestFailed if there is none."""
        deadline, data = time.monotonic() + self.timeout, bytearray()
        with self._translated():
            content = json.dumps(body, ensure_ascii=True).encode()
            headers = {"Content-Type": "application/json"}
            with self._client.stream(
                "POST", f"{self.url}/chat/completions", content=content, headers=headers
            ) as response:
                for piece in response.iter_bytes():
                    data += piece
                    if time.monotonic() > deadline:
                        raise RequestFailed(f"no whole answer within {self.timeout:g} s", again=True)
                    if len(data) > LARGEST_ANSWER:
                        raise RequestFailed(f"an answer of more than {LARGEST_ANSWER:,} bytes")
                after = _seconds(response.headers.get("retry-after"))
                return response.status_code, after, data.decode(errors="replace")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turns errors of the HTTP library into RequestFailed, with the key hidden."""
        httpx = self._httpx
        try:
            yield
        except httpx.TimeoutException:
            raise RequestFailed(f"no answer within {self.timeout:g} s", again=True) from None
        except httpx.ConnectError as error:
            raise RequestFailed(f"cannot connect: {self.said(str(error))}", again=True) from None
        except httpx.TransportError as error:
            raise RequestFailed(f"the connection broke: {self.said(str(error))}", again=True) from None
        except httpx.HTTPError as error:
            raise RequestFailed(self.said(str(error))) from None

    def name_in(self, answer: ChatAnswer) -> str | None:
        """Name that the server gives its model in an answer; None if it gives none."""
        name = answer.get("model")
        return self.said(name) if isinstance(name, str) else None

    def said(self, text: str) -> str:
        """Text of the server or library on one short line, without the key and without control characters."""
        whole = text.encode("utf-8", "replace").decode()
        hidden = whole.replace(self._secret.value, "[key]") if self._secret.value else whole
        line = " ".join(re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", " ", hidden).split())
        return (line[:200] + "..." if len(line) > 200 else line) or "nothing"


class _Secret:
    """A key that its own text form hides."""

    def __init__(self, names: Sequence[str]):
        self.value = next(filter(None, map(os.environ.get, names)), "").strip()
        if not re.fullmatch(r"[\x21-\x7e]*", self.value):
            raise StagealignError(
                f"{' or '.join(names)}: the key holds white space or characters that a header cannot hold; set it again"
            )

    def __repr__(self) -> str:
        return "_Secret(...)" if self.value else "_Secret()"


def checked_url(url: str) -> str:
    """The server's base URL without a slash at its end and without `/chat/completions`.

    Raises StagealignError for another scheme, and for a user, password or query, as URLs are shown and recorded.
    """
    match = re.fullmatch(r"(https?)://([^/?#\s]+)(/[^?#\s]*)?", url.strip(), re.IGNORECASE)
    if "@" in url or "?" in url or "#" in url:
        raise StagealignError(
            f"URL of the server: holds a user, password or query; put a key into {KEYS[0]} or {POLICY_KEYS[0]} instead"
        )
    if not match:
        raise StagealignError(f"URL of the server {url!r}: no HTTP address; write one such as http://127.0.0.1:8000/v1")
    scheme, host, path = match.groups()
    return f"{scheme.lower()}://{host}{(path or '').rstrip('/').removesuffix('/chat/completions')}"


def _seconds(header: str | None) -> float | None:
    """Seconds of a Retry-After header; a date in it counts as none."""
    return float(header) if header and re.fullmatch(r"\d{1,6}(\.\d+)?", header.strip()) else None
