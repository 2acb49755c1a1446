"""`sppo recipe`: the runs of arXiv 2604.08865 and their rivals, and a small one, as commands to be pasted."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from sppo.agents.presets import PRESETS
from sppo.experiments.config import RunConfig
from sppo.experiments.tasks import TEXT
from sppo.llm.tasks.names import unknown

Line = list[str]

TORCHRUN = "torchrun --standalone --nproc-per-node {} -m sppo.experiments.cli"
MATHEMATICS = ("aime24", "aime25", "amc23", "math500", "minerva")
DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Runs that differ by their algorithm alone, for as many seconds each."""

    about: str
    task: str
    model: str
    """A model's name; with `taught`, of the one that is taught the task's demonstrations first."""
    taught: bool = False
    agents: Mapping[str, Mapping[str, Any]]
    """The algorithms, each with what on the language side is its own."""
    settings: dict[str, Any]
    text: dict[str, Any]
    seconds: float
    ranks: int | None = None
    """As many GPUs share a run; None: one process."""
    hourly: int | None = None
    """Responses of an hour, of which a run that is killed loses no more. None: checkpoints are the default's."""
    n_evals: int
    benchmarks: tuple[str, ...] = ()
    """What the finished policy is evaluated on."""
    evaluation: tuple[str, ...] = ()
    """Options of that."""


# Token budgets, temperature and arithmetic of the published runs; keys and values get what the plan leaves of 72 GiB,
# so that a GPU of 80 has some for what is not planned.
_PUBLISHED: dict[str, Any] = {
    "temperature": 0.6,
    "max_completion_length": 8192,
    "shard_dtype": "bfloat16",
    "checkpointing": True,
    "engine": "vllm",
    "eval_task": "math500",
}
_ON_FOUR: dict[str, Any] = {
    "seconds": DAY,
    "ranks": 4,
    "n_evals": 12,
    "benchmarks": MATHEMATICS,
    "evaluation": ("--max-completion-length", "8192", "--engine", "vllm", "--dtype", "bfloat16"),
}


# Responses of an hour, reckoned for the greatest lengths and four GPUs of 312 to 989 TFLOP/s, 40 % of which are used.
# 7B: 512 are 128 a rank, 27 at a time in 15 GiB (56 KiB a token): five times 8192 tokens at 10 to 20 ms take 7 to 14
# minutes; the policy's passes, 4.0e17 FLOP (10 per weight and token), 4 to 13, and those of PPO's critic as long again.
# 1.5B: 256 are 64 a rank, all at a time in 58 GiB (28 KiB a token): 1.4 to 2.7 minutes; passes (4.2e16) 0.4 to 1.4.
_HOURLY_7B, _HOURLY_1_5B = 1024, 4096


def _keys_and_values(**gib: float) -> dict[str, dict[str, Any]]:
    return {agent: {"kv_cache_gib": n} for agent, n in gib.items()}


RECIPES = {
    "deepscaler-1.5b": Recipe(
        about="R1-Distill-Qwen-1.5B on DeepScaleR",
        task="deepscaler",
        model="r1-distill-qwen-1.5b",
        agents=_keys_and_values(sppo=58, ppo=58, grpo=58, rloo=58, remax=58),
        settings={"preset": "1.5b", "microbatch_size": 16},
        text={**_PUBLISHED, "max_prompt_length": 1024},
        hourly=_HOURLY_1_5B,
        **_ON_FOUR,
    ),
    "dapo-7b": Recipe(
        about="R1-Distill-Qwen-7B on DAPO-Math-17k",
        task="dapo-math-17k",
        model="r1-distill-qwen-7b",
        agents=_keys_and_values(sppo=15, ppo=15, grpo=34, rloo=27, remax=27),
        settings={"preset": "7b", "microbatch_size": 4},
        text={**_PUBLISHED, "max_prompt_length": 2048},
        hourly=_HOURLY_7B,
        **_ON_FOUR,
    ),
    "dapo-7b-small-critic": Recipe(
        about="the same with the 1.5B model as critic",
        task="dapo-math-17k",
        model="r1-distill-qwen-7b",
        agents=_keys_and_values(sppo=30),
        settings={"preset": "7b-small-critic", "microbatch_size": 4},
        text={**_PUBLISHED, "max_prompt_length": 2048, "critic": "r1-distill-qwen-1.5b"},
        hourly=_HOURLY_7B,
        **_ON_FOUR,
    ),
    "gsm8k-135m": Recipe(
        about="SmolLM2-135M on GSM8K: fine-tuned, then 150 s of each algorithm",
        task="gsm8k",
        model="smollm2",
        taught=True,
        agents=dict.fromkeys(("sppo", "ppo", "grpo", "rloo", "remax"), {}),
        settings={
            "learning_rate": 1e-5,
            "critic_learning_rate": 1e-4,
            "episodes_per_update": 240,
            "microbatch_size": 60,
        },
        text={"max_completion_length": 256, "dtype": "bfloat16", "critic_layers": 8},
        seconds=150.0,
        n_evals=3,
    ),
}


def recipe(name: str) -> Recipe:
    """By name; ValueError for an unknown one, naming the nearest."""
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, RECIPES))
    return RECIPES[name]


def run_config(name: str, agent: str, out: Path = Path("runs")) -> RunConfig:
    """The run of one algorithm of a recipe.

    Raises:
        ValueError: for an algorithm that the recipe does not have.
    """
    it = recipe(name)
    if agent not in it.agents:
        raise ValueError(f"recipe {name}: {unknown('agent', agent, it.agents)}")
    return RunConfig(
        agent=agent,
        env_id=TEXT + it.task,
        start=str(_taught(it, out)) if it.taught else it.model,
        settings=it.settings,
        text={**it.text, **it.agents[agent]},
        total_seconds=it.seconds,
        n_evals=it.n_evals,
        checkpoint_freq=_checkpoint_freq(it, agent),
    )


def _checkpoint_freq(it: Recipe, agent: str) -> int:
    """Updates of an hour, where the recipe says how many responses that is."""
    if it.hourly is None:
        return RunConfig.checkpoint_freq
    return max(1, it.hourly // PRESETS[agent][it.settings["preset"]]["episodes_per_update"])


def _taught(it: Recipe, out: Path) -> Path:
    return out / "sft" / f"{it.model}-{it.task}"


def teach_line(name: str, out: Path = Path("runs")) -> Line | None:
    """The command that makes the model which a recipe starts from, if it is to be made."""
    it = recipe(name)
    dtype = it.text.get("dtype", "float32")
    made = ["--model", it.model, "--task", it.task, "--dtype", dtype, "--out", str(_taught(it, out))]
    return ["python", "-m", "sppo.llm.sft", *made] if it.taught else None


def train_line(name: str, agent: str, out: Path = Path("runs")) -> Line:
    """The command that trains one algorithm of a recipe."""
    it, config = recipe(name), run_config(name, agent, out)
    begin = ["sppo"] if it.ranks is None else TORCHRUN.format(it.ranks).split()
    return [
        *[*begin, "train", "--task", it.task, "--model", config.start, "--agent", agent],
        *["--settings", *_words(config.settings), "--text", *_words(config.text)],
        *["--seconds", f"{it.seconds:g}", "--evals", str(it.n_evals)],
        *["--checkpoint-freq", str(config.checkpoint_freq), "--out", str(_folder(name, agent, out))],
    ]


def eval_line(name: str, agent: str, out: Path = Path("runs")) -> Line | None:
    """The command that evaluates the finished policy, on those of the recipe's benchmarks whose files are there."""
    it = recipe(name)
    tasks = [task for task in it.benchmarks if _is_there(task)]
    model, into = _folder(name, agent, out), out / "eval" / name / agent
    line = ["sppo", "eval", "--model", str(model), "--task", *tasks, *it.evaluation, "--out", str(into)]
    return line if tasks else None


def _folder(name: str, agent: str, out: Path) -> Path:
    return out / name / agent / "seed0"


def _words(options: Mapping[str, Any]) -> Line:
    """NAME VALUE ..., as the command line reads them."""
    return [
        w for name, value in options.items() for w in (name, value if isinstance(value, str) else json.dumps(value))
    ]


def _is_there(task: str) -> bool:
    from sppo.llm.tasks import make_task

    with contextlib.suppress(FileNotFoundError):
        return bool(make_task(task))
    return False


@dataclass(frozen=True, kw_only=True)
class ShowRecipe:
    """Print the commands of a published run and its rivals (docs/RECIPES.md); without a name, which there are."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """Which recipe; without it, all are listed."""
    agents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="AGENT ...")] = field(default=())
    """Of its algorithms, these alone."""
    out: Path = Path("runs")
    """Where everything goes."""

    def __call__(self) -> None:
        if self.name is None:
            for name, it in RECIPES.items():
                print(f"{name:21} {it.about}; {it.ranks or 1} GPU{'s' * bool(it.ranks)}; {', '.join(it.agents)}")
            return
        agents = self.agents or tuple(recipe(self.name).agents)
        lines = [teach_line(self.name, self.out), *(train_line(self.name, agent, self.out) for agent in agents)]
        for line in (*lines, *(eval_line(self.name, agent, self.out) for agent in agents)):
            if line is not None:
                print(shlex.join(line))
        if len(agents) > 1:
            print(shlex.join(["sppo", "report", str(self.out / self.name)]))
