"""A vLLM process that stays alive between batches of prompts, so that weights are loaded once."""

import contextlib
import json
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagealign.base.errors import StagealignError
from stagealign.base.identity import stream
from stagealign.base.processes import end_process
from stagealign.data.records import Candidate, Prompt
from stagealign.grid.spec import Decoding
from stagealign.policy import vllm_sample
from stagealign.policy.context import check_fits, context_of, room
from stagealign.policy.conversation import decoder
from stagealign.policy.lm import LanguageModel, end_ids
from stagealign.policy.vllm_worker import AskedRow


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as token ids."""

    key: str
    """Prompt hash; seeds the prompt's random stream."""
    text: str
    ids: list[int]


class Writer:
    """Samples `count` completions per prompt with vLLM on one GPU; token ids are as in `vllm_sample`, text
    keeps the marks of reasoning."""

    def __init__(self, shape: LanguageModel, folder: Path, decoding: Decoding, count: int):
        """`shape`: tokenizer and architecture of the policy; `folder`: its checkpoint with weights."""
        self.shape, self.folder, self.decoding, self.count = shape, folder, decoding, count
        self._scratch = Path(tempfile.mkdtemp(prefix="vllm-"))
        weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._length = 0
        self._calls = 0

    def write(self, prompts: Sequence[TokenPrompt], seed: int) -> Iterator[list[Candidate]]:
        """Candidates of each prompt, in order.

        Raises BadData for a prompt that fills the context, StagealignError with the log if vLLM fails.
        """
        for prompt in prompts:
            check_fits(self.shape, prompt.text, len(prompt.ids), self.decoding)
        rows: list[AskedRow] = [
            {
                "key": prompt.key,
                "ids": prompt.ids,
                "seed": stream(seed, "sample", prompt.key) >> 1,
                "most": room(self.shape, len(prompt.ids), self.decoding),
            }
            for prompt in prompts
        ]
        ends = end_ids(self.shape)
        answers = self._answers(rows, max(map(vllm_sample.longest, rows)), ends)
        for prompt in prompts:
            if prompt.key not in answers:
                raise StagealignError(f"vLLM: prompt {prompt.key} has no answer; run the same command again")
            named, decode = Prompt(prompt.text, ""), decoder(self.shape.tokenizer)
            yield list(vllm_sample.read(named, answers[prompt.key], self.count, ends, decode))

    def _answers(self, rows: list[AskedRow], length: int, ends: list[int]) -> vllm_sample.AnswersByKey:
        """Answers of the process to these rows, by key; restarts it if a prompt needs a longer context."""
        folder = self._scratch / str(self._calls)
        folder.mkdir()
        self._calls += 1
        if length > self._length:
            self.close()
            rounded = 1 << (length - 1).bit_length()
            self._length = min(context_of(self.shape) or rounded, rounded)
        sampling = vllm_sample.wishes(self.decoding, self.count, ends)
        description = vllm_sample.described(self.folder, "float32", self._length, sampling)
        work, out = folder / "work.json", folder / "answers-0.jsonl"
        work.write_text(json.dumps({**description, "rows": rows, "out": str(out)}), encoding="utf-8")
        self._ask(work)
        return dict(vllm_sample.answers(folder))

    def _ask(self, work: Path) -> None:
        """Sends a work file to the process and waits. Raises StagealignError, with the end of its log, if it died."""
        log = self._scratch / "log"
        if self._process is None:
            self._process = self._started(log)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{work}\n".encode())
            self._process.stdin.flush()
            said = self._process.stdout.readline()
        except BrokenPipeError:
            said = b""
        if not said:
            code = self._process.wait()
            self.close()
            raise StagealignError(f"vLLM: ended with {code}. The end of its log:\n{vllm_sample.tail(log)}")

    def _started(self, log: Path) -> "subprocess.Popen[bytes]":
        words = [vllm_sample.python(), "-I", str(vllm_sample.WORKER), "--listen"]
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                env=vllm_sample.environment(0),
            )  # fmt: skip
        weakref.finalize(self, _end, process)
        return process

    def close(self) -> None:
        """Ends the process; the next prompts start a new one."""
        if self._process is not None:
            _end(self._process)
        self._process, self._length = None, 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and closes its pipes."""
    end_process(process)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # a pipe with unwritten bytes has no reader any more
                pipe.close()
