"""`sppo eval`: what a language model scores on tasks, from several responses to every prompt, all of them kept."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from sppo.experiments.asking import in_parts, respond
from sppo.experiments.config import versions
from sppo.experiments.folders import write_whole
from sppo.experiments.settings import json_values
from sppo.experiments.tasks import TEXT
from sppo.experiments.tasks import task as about_task

# What loads models or SciPy is imported when it is called for: the command line loads this file.
if TYPE_CHECKING:
    from sppo.experiments.scores import Row
    from sppo.llm.tasks import Prompt, Task

MOST = 1000
"""Responses to a prompt: the number of their subsets is still a float."""
MAX_COMPLETION_LENGTH = 8192
"""Of tasks that name none: the published runs' (arXiv 2604.08865)."""


@dataclass(frozen=True)
class _Asked:
    """A task with the prompts to be answered."""

    name: str
    task: Task
    prompts: list[Prompt]
    repetitions: int  # prompts left out because they stand in the file before
    budget: int
    threads: int

    @property
    def folder(self) -> str:
        return _file_name(self.name)


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Score a language model on tasks: avg@n, pass@k and maj@k, with every response written down."""

    model: str = "arithmetic"
    """A short name, a save_pretrained folder, a run's folder, a .gguf file, or a hub name."""
    task: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TASK ...")] = ("arithmetic",)
    """Names of tasks, such as aime24 aime25 amc23 math500 minerva, or paths of data files (docs/TASKS.md)."""
    task_options: Annotated[dict[str, str], tyro.conf.arg(metavar="NAME VALUE ...")] = field(default_factory=dict)
    """Options of every task named, such as: terms [2,4] operands [1,99]"""
    split: str = "test"
    """Which of the tasks' prompts."""
    prompts: int | None = None
    """How many of them, from the first; by default all."""
    n: int | None = None
    """Responses to each prompt; by default 16, and 1 if greedy."""
    temperature: float = 0.6
    """Of sampling, from the full softmax; there is no top-k and no top-p."""
    greedy: bool = False
    """Take the most probable token at every step; one response to each prompt."""
    max_completion_length: int | None = None
    """Token budget of a response, stop token included; by default the one the task is trained with, or 8192."""
    batch_size: int = 256
    """Responses generated side by side. Samples depend on it and on the seed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic."""
    engine: Literal["hf", "vllm"] = "hf"
    """What generates: transformers, or vLLM."""
    kv_cache_gib: float | None = None
    """Memory for vLLM's keys and values; by default 1 on a CPU, and on a GPU what the model leaves of nine tenths."""
    threads: int | None = None
    """Of the process; by default as for training on the first task, else one per processor."""
    seed: int = 0
    """Of sampling and of the intervals."""
    out: Path | None = None
    """Where responses, summary and table go; by default runs/eval/MODEL."""
    resume: bool = False
    """Go on with an evaluation that was stopped."""

    def __call__(self) -> None:
        import torch

        from sppo.experiments import scores

        if importlib.util.find_spec("pyarrow") is None:
            raise ImportError("responses are written as parquet, which needs pyarrow: pip install sppo[data]")
        samples, asked, source = self.samples, self.asked(), self.source()
        out = self.out or Path("runs") / "eval" / _file_name(self.model)
        self._claim(out)
        torch.set_num_threads(self.threads or asked[0].threads)
        policy, engine = self._load(source, asked)
        tables = {}
        for index, one in enumerate(asked):

            def answer(some: Sequence[Prompt], part: int, one: _Asked = one, index: int = index) -> list[Row]:
                return respond(
                    policy,
                    engine,
                    one.task,
                    some,
                    n=samples,
                    max_completion_length=one.budget,
                    greedy=self.greedy,
                    generator=np.random.default_rng([self.seed, index, part]),
                )

            size = max(1, self.batch_size // samples)
            tables[one.name] = in_parts(out / one.folder, one.prompts, size, answer, one.name)
        summaries = {
            one.name: {
                **scores.summarise(tables[one.name], one.budget, self.seed),
                "repetitions_left_out": one.repetitions,
                "max_completion_length": one.budget,
            }
            for one in asked
        }
        mean = scores.mean_of_tasks(list(tables.values()), self.seed) if len(tables) > 1 else None
        write_whole(out / "summary.json", {"tasks": summaries, "mean": mean})
        table = scores.as_markdown(summaries, mean)
        (out / "summary.md").write_text(table)
        print(table)
        for name, summary in summaries.items():
            print(f"{name}: {_in_words(summary)}")
        print(out)

    @property
    def samples(self) -> int:
        """Responses to each prompt."""
        n = self.n if self.n is not None else 1 if self.greedy else 16
        if n > MOST:
            raise ValueError(f"n must be at most {MOST}, got {n}")
        if n < 1 or (self.greedy and n > 1):
            raise ValueError(f"n must be at least 1, and 1 with --greedy, whose responses are all the same; got {n}")
        return n

    def asked(self) -> list[_Asked]:
        """The tasks and their prompts; whatever is wrong with a file is said here, before a model is loaded."""
        from sppo.llm.tasks import make_task

        for name, value in (("prompts", self.prompts), ("max_completion_length", self.max_completion_length)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        found = []
        for name in self.task:
            about = about_task(TEXT + name)
            task = make_task(name, **{**about.env_kwargs, **json_values(self.task_options)})
            rows = list(task.prompts(self.split))
            prompts = list({prompt.key: prompt for prompt in rows}.values())
            if not prompts:
                raise ValueError(f"task {name} has no prompts in its split {self.split!r}")
            budget = self.max_completion_length or about.text.get("max_completion_length", MAX_COMPLETION_LENGTH)
            threads = about.text.get("threads", os.cpu_count() or 1)
            found.append(_Asked(name, task, prompts[: self.prompts], len(rows) - len(prompts), budget, threads))
        if len({one.folder for one in found}) < len(found):
            raise ValueError(f"tasks must have different names, got {', '.join(self.task)}")
        return found

    def _claim(self, out: Path) -> None:
        """Make the folder this evaluation's."""
        file = out / "config.json"
        mine = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        mine = {name: value for name, value in mine.items() if name not in ("out", "resume", "threads")}
        if file.exists():
            if not self.resume:
                raise ValueError(f"{out} holds an evaluation: say --resume to go on with it, or another --out")
            there = json.loads(file.read_text())
            other = [
                f"{name} {there.get(name)} there, {mine[name]} here" for name in mine if there.get(name) != mine[name]
            ]
            if other:
                raise ValueError(f"{out} holds another evaluation: {'; '.join(other)}")
        else:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(file, {**mine, "versions": versions()})

    def source(self) -> str:
        """Where the model's files are; a run's folder holds its own as `model`."""
        from sppo.llm.sources import find_model

        finished = Path(self.model) / "model"
        if (finished.parent / "checkpoints").is_dir() and not finished.is_dir():
            raise ValueError(f"{self.model} is a run that is not finished: its model is written at the end")
        return find_model(str(finished) if finished.is_dir() else self.model)

    def _load(self, source: str, asked: Sequence[_Asked]) -> tuple[Any, Any]:
        import torch

        from sppo.experiments.text import device
        from sppo.llm.engine_hf import HFEngine
        from sppo.llm.engine_vllm import VLLMEngine
        from sppo.llm.policy import TextPolicy, load_model
        from sppo.llm.tokenizer import encode_prompt, load_tokenizer

        dtype, tokenizer = getattr(torch, self.dtype), load_tokenizer(source)
        policy = TextPolicy(load_model(source), tokenizer, temperature=self.temperature, dtype=dtype)
        if self.engine == "hf":
            return policy.to(device()), HFEngine(policy, batch_size=self.batch_size)
        longest = max(len(encode_prompt(tokenizer, p.prompt)) + one.budget for one in asked for p in one.prompts)
        context = policy.context or longest
        return policy, VLLMEngine(
            policy,
            batch_size=self.batch_size,
            max_model_len=min(longest, context),
            kv_cache_gib=self.kv_cache_gib,
            gpu_memory_utilization=0.9,
            device=device(),
        )


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "model"


def _in_words(summary: dict[str, Any]) -> str:
    """Why responses fail, and what was left out."""
    says = ", ".join(f"{reason} {100 * share:.1f}%" for reason, share in summary["reasons"].items())
    if summary["prompts_with_less_room"]:
        says += f"; {summary['prompts_with_less_room']} prompts leave less room than the budget"
    if summary["repetitions_left_out"]:
        says += f"; {summary['repetitions_left_out']} repeated rows left out"
    return says
