"""A real TensorBoard serves what the runs logged."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import CHAIN, records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sppo.experiments.run import run
from sppo.experiments.watch import watch

SB3_TAGS = """
rollout/success_rate rollout/ep_len_mean rollout/ep_rew_mean train/approx_kl train/clip_fraction
train/policy_gradient_loss train/value_loss train/explained_variance time/fps eval/success_rate
""".split()
AGENTS = ("ppo", "sppo")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for agent in AGENTS:
        run(
            [replace(CHAIN, agent=agent, env_kwargs={"horizon": 8}, settings={**CHAIN.settings, "clip_range": 0.3})],
            [folder / agent / "seed0"],
        )
    return folder


@pytest.fixture(scope="module")
def ask(runs: Path) -> Iterator[Callable[..., Any]]:
    """Ask the server's HTTP interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", str(port), "--load_fast", "false"]
    log = runs.with_name("tensorboard.log")

    def ask(path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/data/{path}?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
        with opener.open(request, timeout=30) as response:
            return json.loads(response.read())

    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *arguments], stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if len(ask("plugin/scalars/tags")) == len(AGENTS):
                    break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                pass
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"TensorBoard shows no runs:\n{log.read_text()}")
            time.sleep(0.2)
        yield ask
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def test_runs_overlay_by_tag(ask: Callable[..., Any]) -> None:
    tags = ask("plugin/scalars/tags")
    assert set(tags) == {"ppo/seed0", "sppo/seed0"}
    for shown in tags.values():
        assert set(SB3_TAGS) <= set(shown)
    assert set(tags["ppo/seed0"]) == set(tags["sppo/seed0"])


@pytest.mark.parametrize("agent", AGENTS)
def test_scalars_are_those_of_the_record(agent: str, ask: Callable[..., Any], runs: Path) -> None:
    progress = records(runs / agent / "seed0" / "progress.jsonl", timed=True)
    for tag in SB3_TAGS:
        points = ask("plugin/scalars/scalars", run=f"{agent}/seed0", tag=tag)
        want = [(r["time/total_timesteps"], r[tag]) for r in progress if tag in r]
        assert len(want) > 1
        np.testing.assert_allclose([(step, value) for _, step, value in points], want, rtol=1e-6)


def test_settings_and_final_metrics_are_in_the_hparams_tab(ask: Callable[..., Any], runs: Path) -> None:
    experiment = ask("plugin/hparams/experiment", {"experimentName": "", "includeMetrics": True})
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"agent", "env_id", "env_kwargs.horizon", "start", "learning_rate", "clip_range", "seed"} <= names
    metrics = {info["name"]["tag"] for info in experiment["metricInfos"]}
    assert {"final/success_rate", "final/env_steps", "final/episodes"} <= metrics

    columns = [{"metric": {"group": "", "tag": tag}} for tag in sorted(metrics)]
    wanted = {"experimentName": "", "allowedStatuses": ["STATUS_SUCCESS"], "colParams": columns, "sliceSize": 100}
    groups = ask("plugin/hparams/session_groups", {**wanted, "startIndex": 0})["sessionGroups"]
    assert {group["hparams"]["agent"] for group in groups} == set(AGENTS)
    for group in groups:
        assert group["hparams"]["clip_range"] == 0.3 and group["hparams"]["env_kwargs.horizon"] == 8
        shown = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        result = json.loads((runs / group["hparams"]["agent"] / "seed0" / "result.json").read_text())
        assert shown["final/env_steps"] == result["env_steps"]
        assert shown["final/success_rate"] == pytest.approx(result["success_rate"])


def test_settings_of_all_agents_are_columns(ask: Callable[..., Any]) -> None:
    infos = ask("plugin/hparams/experiment", {"experimentName": ""})["hparamInfos"]
    # those that one looks for first, then all others; of agents that were not run, too
    assert [info["name"] for info in infos[:5]] == ["agent", "critic_learning_rate", "env_id", "learning_rate", "seed"]
    kinds = {info["name"]: info["type"] for info in infos}
    assert kinds["gae_lambda"] == kinds["num_generations"] == kinds["target_kl"] == "DATA_TYPE_FLOAT64"
    assert kinds["aggregation"] == kinds["importance_sampling"] == "DATA_TYPE_STRING"


def test_charts_of_many_runs_are_shown_once(ask: Callable[..., Any]) -> None:
    layout = ask("plugin/custom_scalars/layout")["category"]
    assert [category["title"] for category in layout] == ["success", "critic", "credit", "cost"]
    assert [len(category["chart"]) for category in layout] == [3, 3, 3, 3]
    for category in layout:
        for chart in category["chart"]:
            (tag,) = chart["multiline"]["tag"]
            shown = ask("plugin/custom_scalars/scalars", run="ppo/seed0", tag=tag)["tag_to_events"]
            assert [name + "$" for name in shown] == [tag]


def test_video_of_a_finished_run_is_among_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run([CHAIN], [folder])
    watch(folder, tmp_path / "elsewhere.gif", n_episodes=1)
    assert images(folder) == {}
    for _ in range(2):  # the second takes the first one's place
        gif = watch(folder, n_episodes=1)
    last = records(folder / "progress.jsonl")[-1]
    assert images(folder) == {"video": [(last["time/total_timesteps"], gif.read_bytes())]}
    (folder / "result.json").unlink()
    for events in folder.glob("*.video"):
        events.unlink()
    watch(folder, n_episodes=1)
    assert images(folder) == {}


def images(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(e.step, e.encoded_image_string) for e in accumulator.Images(tag)] for tag in accumulator.Tags()["images"]
    }
