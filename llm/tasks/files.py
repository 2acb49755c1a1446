"""Mathematics from data files: verl's schema, GSM8K's, and plain columns, scored by the verifier."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppo.llm.tasks.base import (
    BOXED_SUFFIX,
    Messages,
    Prompt,
    Score,
    TaskBase,
    check_split,
    held_out,
    stable_key,
    user_message,
)
from sppo.llm.tasks.rows import Row, find_data, read_rows, schema_of

if TYPE_CHECKING:
    import numpy as np

    from sppo.llm.verifier import Verifier

_log = logging.getLogger(__name__)

PROMPT_COLUMNS = ("prompt", "question", "problem", "query", "instruction")
ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "gold", "target", "final_answer")

BENCHMARKS: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> split, files that may hold it
    "dapo-math-17k": ("train", ("dapo-math-17k.parquet",)),
    "deepscaler": ("train", ("deepscaler.parquet", "deepscaler.jsonl", "deepscaler.json")),
    "math500": ("test", ("math500.parquet", "math500.jsonl")),
    "amc23": ("test", ("amc23.parquet", "amc23.jsonl")),
    "aime24": ("test", ("aime24-x8.parquet", "aime24.parquet", "aime24.jsonl")),
    "aime25": ("test", ("aime25-x8.parquet", "aime25.parquet", "aime25.jsonl")),
    "minerva": ("test", ("minerva.parquet", "minerva.jsonl")),
}

Problem = tuple[str | Messages, list[str], str, dict[str, Any]]  # prompt, answers, data source, other columns


GOLD_COLUMN = {
    "verl": "reward_model.ground_truth",
    "gsm8k": "answer, after ####",
    "columns": " or ".join(ANSWER_COLUMNS),
}


class FileTask(TaskBase):
    """Problems of data files, one gold answer each, or several of which any is right.

    Args:
        name: of the task.
        files: split -> data file.
        schema: verl, gsm8k or columns; by default seen from the first row.
        prompt, answer: column names of the schema `columns`; by default the first of the usual ones that is there.
        suffix: put after the prompt unless it already asks for a box; by default the paper's, but nothing for verl
            files, whose prompts are complete.
        chat: pose plain questions as a chat message, not as plain text.
        test_share: of the problems of a single file to hold out, by hash; 0 gives all rows whatever the split.
        unique: drop repetitions of a problem (aime24-x8 holds each eight times).
        skip_missing: leave out rows without a gold answer, with a warning, in place of refusing the file.
        needs_answer: False where a reward function works without: rows then may lack one, and get "".
        verifier: in place of the shared one.
    """

    def __init__(
        self,
        name: str,
        files: dict[str, Path],
        *,
        schema: str | None = None,
        prompt: str | None = None,
        answer: str | None = None,
        suffix: str | None = None,
        chat: bool = True,
        test_share: float = 0.0,
        unique: bool = False,
        skip_missing: bool = False,
        needs_answer: bool = True,
        verifier: Verifier | None = None,
    ) -> None:
        if schema not in (None, *READERS):
            raise ValueError(f"schema must be one of {', '.join(READERS)}, got {schema!r}")
        if not 0 <= test_share < 1 or (test_share and len(files) > 1):
            raise ValueError(f"test_share must be in [0, 1), and 0 where both splits have files, got {test_share}")
        self.name, self.files, self.schema = name, files, schema
        self.columns = (prompt, answer)
        self.suffix, self.chat = suffix, chat
        self.test_share, self.unique = test_share, unique
        self.skip_missing, self.needs_answer = skip_missing, needs_answer
        self._verifier = verifier
        self._loaded: dict[Path, list[Prompt]] = {}

    @property
    def verifier(self) -> Verifier:
        """The verifier that scores this task; the shared one is made when it is first asked for."""
        if self._verifier is None:
            from sppo.llm.verifier import shared_verifier

            self._verifier = shared_verifier()
        return self._verifier

    def prompts(self, split: str) -> list[Prompt]:
        """The prompts of a split."""
        single = "any" in self.files or self.test_share > 0
        check_split(self.name, split, ("train", "test") if single else tuple(self.files))
        if not single:
            return self._load(self.files[split])
        (path,) = self.files.values()
        prompts = self._load(path)
        if self.test_share:
            prompts = [p for p in prompts if held_out(self.test_share, p.text) == (split == "test")]
        return prompts

    def score_all(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Score]:
        """Outcomes of many responses, in order: 1 where the boxed answer equals a gold answer."""
        scores: list[Score | None] = [None] * len(prompts)
        for hashes in (False, True):
            asked = [
                (i, gold)
                for i, prompt in enumerate(prompts)
                if _takes_hashes(prompt) == hashes
                for gold in (prompt.answer, *prompt.alternatives)
            ]
            found = self.verifier.verify_all([responses[i] for i, _ in asked], [g for _, g in asked], hashes=hashes)
            for (i, _), score in zip(asked, found, strict=True):
                best = scores[i]
                scores[i] = score if best is None or score.reward > best.reward else best
        return [score for score in scores if score is not None]

    def answer(self, prompt: Prompt, response: str) -> str | None:
        """The boxed answer."""
        return self.verifier.answer(response, hashes=_takes_hashes(prompt))

    def demonstration(self, prompt: Prompt, generator: np.random.Generator) -> str:
        """The worked solution beside the prompt, as it stands in the file.

        Raises:
            ValueError: if there is none.
        """
        worked = str(prompt.extra.get("solution") or "").strip()
        if not worked:
            raise ValueError(f"task {self.name} has no demonstration of {prompt.text[:60]!r}: no column solution")
        return worked

    def _load(self, path: Path) -> list[Prompt]:
        if path not in self._loaded:
            rows = read_rows(path)
            # A row that lacks its answer looks like plain columns: any row that does not decides.
            schema = self.schema or next((s for s in map(schema_of, rows) if s != "columns"), "columns")
            self._loaded[path] = self._prompts(rows, READERS[schema], path, schema)
        return self._loaded[path]

    def _prompts(self, rows: list[Row], read: Callable[..., Problem], path: Path, schema: str) -> list[Prompt]:
        suffix = self.suffix if self.suffix is not None else ("" if schema == "verl" else BOXED_SUFFIX)
        found: list[Prompt] = []
        missing: list[int] = []
        for i, row in enumerate(rows):
            try:
                text, answers, source, extra = read(row, *self.columns)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, row {i} does not fit the schema {schema}: {error}") from error
            if not answers and self.needs_answer:
                missing.append(i)
                continue
            posed = with_suffix(text, suffix)
            if isinstance(posed, str) and self.chat:
                posed = user_message(posed)
            answer, *others = answers or [""]
            found.append(
                Prompt(
                    key=stable_key(str(posed), answer),
                    prompt=posed,
                    answer=answer,
                    alternatives=tuple(others),
                    data_source=source or self.name,
                    extra=extra,
                )
            )
        if missing:
            where = self.columns[1] or GOLD_COLUMN[schema]
            says = f"{path}: {len(missing)} rows have no gold answer ({where}), the first is row {missing[0]}"
            if not self.skip_missing or not found:
                raise ValueError(says + ("" if self.skip_missing else "; skip_missing=True leaves them out"))
            _log.warning("%s; left out", says)
        return list({prompt.key: prompt for prompt in found}.values()) if self.unique else found


def _takes_hashes(prompt: Prompt) -> bool:
    """GSM8K's own `#### n` counts there, and nowhere else."""
    return "gsm8k" in prompt.data_source.lower()


def with_suffix(prompt: str | Messages, suffix: str) -> str | Messages:
    """The prompt with `suffix` after its last message, unless that already asks for a box or ends so."""
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    if not suffix or text.rstrip().endswith(suffix) or (suffix == BOXED_SUFFIX and "\\boxed" in text):
        return prompt
    text = f"{text.rstrip()} {suffix}"
    return text if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": text}]


def read_prompt(value: Any) -> str | Messages:
    """A prompt column: text, or chat messages."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("the prompt is empty")
        return value
    if isinstance(value, list) and value and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value):
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in value]
    raise ValueError(f"the prompt must be text or messages with role and content, got {str(value)[:80]!r}")


def read_answers(value: Any) -> list[str]:
    """A gold column: one answer, or a list of which any is right; [] where there is none."""
    values = value if isinstance(value, list) else [value]
    return [str(v).strip() for v in values if v is not None and str(v).strip()]


def _read_verl(row: Row, prompt: str | None, answer: str | None) -> Problem:
    model = row.get("reward_model")
    gold = model.get("ground_truth") if isinstance(model, dict) else None
    # The misspelt column of AMC23 counts as the one that was meant.
    extra = {{"abality": "ability"}.get(k, k): v for k, v in row.items() if k not in ("prompt", "data_source")}
    return read_prompt(row["prompt"]), read_answers(gold), str(row.get("data_source") or ""), extra


def _read_gsm8k(row: Row, prompt: str | None, answer: str | None) -> Problem:
    worked = str(row.get("answer") or "")
    _, mark, final = worked.rpartition("####")
    return read_prompt(row["question"]), read_answers(final if mark else None), "gsm8k", {"solution": worked}


def _read_columns(row: Row, prompt: str | None, answer: str | None) -> Problem:
    asked = prompt or next((c for c in PROMPT_COLUMNS if c in row), None)
    given = answer or next((c for c in ANSWER_COLUMNS if c in row), None)
    if asked is None or asked not in row:
        raise ValueError(f"no prompt column {prompt or ' or '.join(PROMPT_COLUMNS)}; it has {', '.join(row)}")
    if answer is not None and answer not in row:
        raise ValueError(f"no answer column {answer}; it has {', '.join(row)}")
    answers = [unboxed(a) for a in read_answers(row.get(given))] if given else []
    extra = {k: v for k, v in row.items() if k not in (asked, "data_source")}
    return read_prompt(row[asked]), answers, str(row.get("data_source") or ""), extra


def unboxed(answer: str) -> str:
    """The last box of a worked solution; an answer without one is taken whole."""
    from sppo.llm.verifier_text import last_box

    found = last_box(answer)
    return found[0].strip() if found and found[0].strip() else answer


READERS: dict[str, Callable[..., Problem]] = {"verl": _read_verl, "gsm8k": _read_gsm8k, "columns": _read_columns}


def benchmark(name: str, *, path: str | None = None, **options: Any) -> FileTask:
    """One of `BENCHMARKS` from the data folder, or from an explicit path."""
    split, files = BENCHMARKS[name]
    return FileTask(name, {split: Path(path) if path else find_data(files)}, **options)


def gsm8k(*, path: str | None = None, test_path: str | None = None, **options: Any) -> FileTask:
    """GSM8K's two jsonl files, from the data folder or from explicit paths."""
    if path or test_path:
        return data_file("gsm8k", path=path, test_path=test_path, schema="gsm8k", **options)
    files = {split: find_data((f"gsm8k-{split}.jsonl",)) for split in ("train", "test")}
    return FileTask("gsm8k", files, schema="gsm8k", **options)


def data_file(name: str, *, path: str | None = None, test_path: str | None = None, **options: Any) -> FileTask:
    """A task from explicit files: one file, which serves both splits unless `test_share` cuts it, or one for each."""
    if path is None and test_path is None:
        raise ValueError(f"task {name} needs path=FILE, and may have test_path=FILE")
    if path and test_path:
        files = {"train": Path(path), "test": Path(test_path)}
    else:
        files = {"any": Path(str(path or test_path))}
    return FileTask(name, files, **options)
