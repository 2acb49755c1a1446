"""Scored responses to prompts, several to each, written down part by part."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# What loads models is imported when it is called for: the command line loads this file.
if TYPE_CHECKING:
    from sppo.experiments.scores import Row
    from sppo.llm.tasks import Prompt, Task


def respond(
    policy: Any,
    engine: Any,
    task: Task,
    prompts: Sequence[Prompt],
    *,
    n: int,
    max_completion_length: int,
    greedy: bool,
    generator: np.random.Generator,
) -> list[Row]:
    """n scored responses to each prompt, as rows of the table of responses, in order.

    A prompt near the end of the model's context leaves less room than `max_completion_length` (column `budget`); one
    that leaves none is not answered, and its n rows are 0 with reason too_long_prompt.
    """
    import torch

    from sppo.llm.tasks import Score
    from sppo.llm.tokenizer import encode_prompt

    context = policy.context or np.inf
    prefixes = [torch.tensor(encode_prompt(policy.tokenizer, prompt.prompt)) for prompt in prompts]
    budgets = [int(max(0, min(max_completion_length, context - len(prefix)))) for prefix in prefixes]
    asked = [i for i in range(len(prompts)) if budgets[i] > 0 for _ in range(n)]
    limits = [budgets[i] for i in asked]
    done = engine.generate([prefixes[i] for i in asked], limits, greedy=greedy, generator=generator) if asked else []
    texts = [policy.tokenizer.decode(c.tokens.tolist(), skip_special_tokens=True) for c in done]
    scores = task.score_all([prompts[i] for i in asked], texts)
    found = iter(zip(done, texts, scores, strict=True))
    rows = []
    for prompt, budget in zip(prompts, budgets, strict=True):
        for sample in range(n):
            completion, text, score = next(found) if budget else (None, "", Score(0.0, "too_long_prompt"))
            rows.append(
                {
                    "key": prompt.key,
                    "prompt": prompt.text,
                    "gold": prompt.answer,
                    "sample": sample,
                    "response": text,
                    "answer": task.answer(prompt, text) if budget else None,
                    "reward": float(score.reward),
                    "reason": score.reason,
                    "tokens": 0 if completion is None else len(completion.tokens),
                    "stopped": completion is not None and completion.stopped,
                    "budget": budget,
                    "data_source": prompt.data_source,
                }
            )
    return rows


def in_parts(
    folder: Path, prompts: Sequence[Prompt], size: int, answer: Callable[[Sequence[Prompt], int], list[Row]], name: str
) -> list[Row]:
    """The rows of all prompts, `size` at a time; each part is written when it is done, and read where it is there.

    Args:
        folder: of the task: parts/NUMBER.parquet while it goes on, responses.parquet when it is done.
        answer: the rows of some prompts, given the part's number.
        name: beside the progress bar.
    """
    import pyarrow as arrow
    import pyarrow.parquet as parquet
    from tqdm import tqdm

    def write(path: Path, table: Any) -> None:
        parquet.write_table(table, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)

    whole, parts = folder / "responses.parquet", folder / "parts"
    if whole.exists():
        return list(parquet.read_table(whole).to_pylist())
    parts.mkdir(parents=True, exist_ok=True)
    tables = []
    right = seen = 0.0
    with tqdm(total=len(prompts), desc=name, unit="prompt", disable=None) as bar:
        for number, first in enumerate(range(0, len(prompts), size)):
            some, path = prompts[first : first + size], parts / f"{number:06d}.parquet"
            if not path.exists():
                write(path, arrow.Table.from_pylist(answer(some, number), _schema(arrow)))
            tables.append(parquet.read_table(path))
            right, seen = right + sum(tables[-1]["reward"].to_pylist()), seen + len(tables[-1])
            bar.set_postfix(mean=f"{right / seen:.3f}", refresh=False)
            bar.update(len(some))
    table = arrow.concat_tables(tables)
    write(whole, table)
    shutil.rmtree(parts)
    return list(table.to_pylist())


def _schema(arrow: Any) -> Any:
    """Said, because a column of a part may hold nothing but None."""
    texts = {name: arrow.string() for name in ("prompt", "gold", "response", "answer", "reason", "data_source")}
    numbers = {"key": arrow.int64(), "sample": arrow.int32(), "tokens": arrow.int32(), "budget": arrow.int32()}
    kinds = {**texts, **numbers, "reward": arrow.float64(), "stopped": arrow.bool_()}
    order = "key prompt gold sample response answer reward reason tokens stopped budget data_source"
    return arrow.schema([(name, kinds[name]) for name in order.split()])
