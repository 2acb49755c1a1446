"""What the words of a report mean, where tasks and where settings of a study are summed up."""

from __future__ import annotations

from html import escape

from sppo.experiments.stats import bootstrap_coverage
from sppo.experiments.summary import Table

SUCCESS = "share of successes over fixed held-out start states, actions sampled, outside the training budget."
FINAL = "the success rate of the trained policy;"
BOOTSTRAP = (
    "stratified-bootstrap interval: seeds drawn anew within each task (Agarwal et al. 2021, arXiv 2108.13264). Few "
    f"seeds make it too narrow: with 5 seeds a nominal 95% holds the truth in about {bootstrap_coverage(5):.0%} of "
    f"cases, with 3 in {bootstrap_coverage(3):.0%}."
)
IQM = "the mean of the middle half"


def _of_tasks(level: str) -> dict[str, str]:
    return {
        "success rate": SUCCESS,
        "final success": f"{FINAL} interquartile mean (IQM) over seeds: {IQM}.",
        "[low, high]": f"{level} {BOOTSTRAP}",
        "gain": "difference of the IQMs; seeds are drawn in pairs where both agents ran with the same ones. A dash "
        "where one of the two did not run.",
    }


def _of_settings(level: str) -> dict[str, str]:
    return {
        "setting": "what a run's folder has in its name before AGENT/seedK. Agents that are compared at one differ in "
        "nothing but what stands below What differs between agents.",
        "success at start": "the success rate before the first update, mean over all runs there.",
        "success rate": SUCCESS,
        "final success": f"{FINAL} mean over seeds.",
        "all settings": "a seed's mean over settings, then over seeds: its luck is in all of them, so that many "
        "settings are no more trials than seeds.",
        "gain": "mean difference over the seeds that both agents have; a dash where they share none.",
        "[low, high]": f"{level} interval of a mean over seeds, after Student. Episodes and steps to a success rate "
        f"have interquartile means ({IQM}), and these and P a {BOOTSTRAP}",
    }


def glossary(table: Table) -> str:
    """Entries of a list of definitions."""
    entries = (_of_settings if table.of_settings else _of_tasks)(f"{100 * table.level:g}%")
    return "\n".join(f"<dt>{escape(word)}</dt><dd>{escape(told)}</dd>" for word, told in entries.items())
