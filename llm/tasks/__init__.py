"""Text tasks: prompts with verifiable answers."""

from sppo.llm.tasks.base import BOXED_SUFFIX, Messages, Prompt, Score, Task, TaskBase, stable_key
from sppo.llm.tasks.registry import make_task, register_task, task_names

__all__ = [
    "BOXED_SUFFIX",
    "Messages",
    "Prompt",
    "Score",
    "Task",
    "TaskBase",
    "make_task",
    "register_task",
    "stable_key",
    "task_names",
]
