"""vLLM as an engine: beside the trainer in its process, or in a server process that the trainer starts.

vLLM keeps its own copy of the weights. They reach it by its `reload_weights` within the process, through a file in
shared memory to a server on a CPU, and by its weight-transfer API to a server on a GPU: CUDA IPC on the trainer's own
GPU, NCCL on others. Loading them in any other way fails on a CPU, where vLLM repacks what it loads.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sppo.llm.engine import Completion, check_room, stop_tokens
from sppo.llm.policy import TextPolicy
from sppo.llm.remote import ProcessDied, Remote
from sppo.llm.vllm_options import SETTINGS, engine_options, process_as_it_was, require_vllm
from sppo.llm.weights import TOLERANCE, Answer, Request, Weights, check_arrived, fingerprint, shared_folder

_log = logging.getLogger(__name__)


class VLLMEngine:
    """Generates with vLLM, from a copy of a TextPolicy's weights that `sync` brings up to date.

    What `generate` returns depends on weights, prefixes and generator alone: beginnings that prefixes share are read
    once in a call, and forgotten after it. Greedy tokens have their log-probabilities at temperature 1.

    Args:
        policy: a TextPolicy; its temperature and the type of its matrix products are the engine's.
        server: run vLLM in a process of its own, which dies with this one, and is started again where it dies.
        stop_token_ids: tokens that end an answer; by default the tokenizer's.
        batch_size: prefixes generated side by side.
        max_model_len: longest prefix and answer together; by default the model's context.
        dtype: of its weights and products; by default of the policy's products.
        kv_cache_gib: memory for keys and values; by default 1 GiB on a CPU, and on a GPU what `gpu_memory_utilization`
            leaves.
        gpu_memory_utilization: the share of a GPU's memory that vLLM may take.
        devices: the server's own GPUs, as in CUDA_VISIBLE_DEVICES; by default it is on the policy's.
        device: where the policy learns; by default where it is now.
        tolerance: of the probe after each sync, in nats.

    Raises:
        ImportError: without vLLM.
        ValueError: if nothing ends an answer, or `devices` are given to no server.
    """

    copies_weights = True

    def __init__(
        self,
        policy: TextPolicy,
        *,
        server: bool = False,
        stop_token_ids: Sequence[int] | None = None,
        batch_size: int = 256,
        max_model_len: int | None = None,
        dtype: torch.dtype | None = None,
        kv_cache_gib: float | None = None,
        gpu_memory_utilization: float = 0.5,
        devices: str | None = None,
        device: torch.device | None = None,
        tolerance: float | None = None,
    ) -> None:
        require_vllm()
        if devices is not None and not server:
            raise ValueError(f"devices={devices!r} are a server's: within its process, vLLM is on the trainer's GPU")
        self.policy, self.server, self.devices = policy, server, devices
        self.device = policy.device if device is None else device
        self.stops = stop_tokens(policy.tokenizer, stop_token_ids)
        products: Any = getattr(policy.model.base_model, "products", torch.float32)
        self.dtype: torch.dtype = dtype or products
        self.lora = getattr(policy.model, "lora", None)
        self.tolerance = TOLERANCE[self.dtype] if tolerance is None else tolerance
        on_gpu = self.device.type == "cuda"
        self.transfer = None if not (server and on_gpu) else "ipc" if devices is None else "nccl"
        self.options = engine_options(
            self.dtype,
            max_model_len or policy.context,
            on_gpu=on_gpu,
            server=server,
            devices=devices,
            batch_size=batch_size,
            kv_cache_gib=kv_cache_gib,
            gpu_memory_utilization=gpu_memory_utilization,
            lora_rank=None if self.lora is None else self.lora.rank,
        )
        self._start()

    def _start(self) -> None:
        self._synced: tuple[int, ...] | None = None
        self._asleep = False
        self._sender: Any = None
        config = copy.deepcopy(self.policy.model.config)
        config.architectures = [type(self.policy.model).__name__]
        # Of an output layer that is tied to the embeddings, vLLM on a CPU would keep the repacked copy that it made
        # first.
        config.tie_word_embeddings = False
        with tempfile.TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            if self.lora is not None:  # of which only adapters change from here on
                save_file({n: w.clone() for n, w in self._weights()}, os.path.join(folder, "model.safetensors"))
            self._holder: Any
            if self.server:
                holder = (__name__, "Holder", folder, self.options, self.transfer)
                self._holder = Remote(*holder, env=self._environment())
            else:
                self._holder = Holder(folder, self.options, None)
                self._holder.outlive()

    def _environment(self) -> dict[str, str]:
        if self.devices is not None:
            return {"CUDA_VISIBLE_DEVICES": self.devices}
        if self.transfer is None:
            return {}
        return {"CUDA_VISIBLE_DEVICES": f"GPU-{torch.cuda.get_device_properties(self.device).uuid}"}

    def close(self) -> None:
        """End the server, if there is one."""
        if self.server:
            self._holder.close()

    def _call(self, name: str, *args: Any) -> Any:
        if self.server:
            return self._holder.call(name, *args)
        with torch.random.fork_rng(devices=[]):  # vLLM draws from the process's generator besides each request's own
            return getattr(self._holder, name)(*args)

    def generate(
        self,
        prefixes: Sequence[Tensor],
        max_new_tokens: Sequence[int],
        *,
        greedy: bool,
        generator: np.random.Generator,
    ) -> list[Completion]:
        """See `Engine.generate`.

        Raises:
            ValueError: for an empty prefix, or one that leaves no room in the model's context.
            ProcessDied: if the server died, was started again, and died again.
        """
        check_room(prefixes, max_new_tokens, self.options["max_model_len"])
        seeds = generator.integers(2**63 - 1, size=len(prefixes)).tolist()
        rows = [i for i, limit in enumerate(max_new_tokens) if limit > 0]
        requests = [(prefixes[i].tolist(), int(max_new_tokens[i]), seeds[i]) for i in rows]
        try:
            answers = self._answers(requests, greedy)
        except ProcessDied as error:
            if hasattr(self.policy, "version"):  # sharded: other ranks would have to send their slices again
                raise
            _log.warning("vLLM's server died, and is started again: %s", error)
            self._start()
            answers = self._answers(requests, greedy)
        none = torch.zeros(0)
        done = [Completion(tokens=none.long(), logprobs=none, stopped=False)] * len(prefixes)
        for i, (tokens, logprobs, stopped) in zip(rows, answers, strict=True):
            done[i] = Completion(tokens=torch.tensor(tokens), logprobs=torch.tensor(logprobs), stopped=stopped)
        return done

    def _answers(self, requests: list[Request], greedy: bool) -> list[Answer]:
        self.sync()
        answers = self._ask(requests, greedy) if requests else []
        if self.options["enable_sleep_mode"]:  # the memory is the trainer's until the next call
            self._call("llm_method", "sleep", 1 if self.lora is not None else 2)
            self._asleep, self._synced = True, None
        return answers

    def _ask(self, requests: list[Request], greedy: bool) -> list[Answer]:
        return self._call("generate", requests, 0.0 if greedy else self.policy.temperature, self.stops)

    def sync(self) -> None:
        """Take over the policy's weights where they have changed, and see from a probe that they arrived.

        Raises:
            RuntimeError: if engine and trainer disagree on the probe.
        """
        present = fingerprint(self.policy)
        if present == self._synced:
            return
        if self._asleep:
            self._call("llm_method", "wake_up", ["weights"])
        self._send()
        if self._asleep:
            self._call("llm_method", "wake_up", ["kv_cache"])
            self._asleep = False
        self._call("llm_method", "reset_prefix_cache")
        check_arrived(self.policy, lambda requests: self._ask(requests, False), self.tolerance)
        self._synced = present

    def _weights(self) -> Weights:
        return Weights(self.policy, self.dtype, self.device)

    def _send(self) -> None:
        if self.lora is not None:
            with shared_folder() as folder:
                from sppo.llm.lora import save_adapter

                save_adapter(self.policy.model, Path(folder))
                self._call("load_adapter", folder)
        elif self.transfer is not None:
            if self._sender is None:
                n_workers = self.options["tensor_parallel_size"]
                self._sender = gpu_sender(self.transfer, self._weights(), self._call, 1 + n_workers)
            self._sender.send_weights()
        elif self.server:
            with shared_folder() as folder:
                path = os.path.join(folder, "weights.safetensors")
                save_file({name: w.clone() for name, w in self._weights()}, path)
                self._call("load", path)
        else:
            self._call("load", self._weights())


def gpu_sender(transfer: str, weights: Weights, call: Callable[..., Any], world_size: int) -> Any:
    """The trainer's end of vLLM's weight transfer."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    class Client:
        """What vLLM's trainers tell the engine."""

        def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
            meet("init_weight_transfer_engine", {"init_info": info})

        def start_weight_update(self) -> None:
            call("llm_method", "start_weight_update")

        def update_weights(self, info: Any) -> None:
            meet("update_weights", {"update_info": info})

        def finish_weight_update(self, version: str | None = None) -> None:
            call("llm_method", "finish_weight_update", version)

    def meet(name: str, info: dict[str, Any]) -> None:
        try:
            call("llm_method", name, info)
        except Exception as error:
            if transfer == "nccl":  # meanwhile this process waits for the server, and would for ever
                print(f"vLLM's {name} failed: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
                os._exit(1)
            raise

    largest = max(w.dtype.itemsize * math.prod(w.shape) for w in weights.metadata())
    # Through one buffer, which must hold the largest: else all weights would be on the GPU twice.
    info: Any = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=max(largest, 2**28))
    if transfer == "nccl":
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        info = NCCLTrainerInitInfo(master_address="127.0.0.1", master_port=port, world_size=world_size, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=Client(), source=weights)


class Holder:
    """vLLM itself, in whichever process."""

    def __init__(self, folder: str, options: dict[str, Any], transfer: str | None) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        with process_as_it_was():
            import vllm
            import vllm.lora.request
            from vllm.config import WeightTransferConfig

            self.vllm, self.adapter = vllm, None
            # vLLM compiles a few helpers even where it is told to be eager, which takes longer than what they save.
            self.stance = "force_eager" if options["enforce_eager"] else "default"
            self.llm = vllm.LLM(
                model=folder,
                skip_tokenizer_init=True,
                load_format="auto" if options.get("enable_lora") else "dummy",  # the first sync brings the weights
                generation_config="vllm",  # none of the model's own defaults, such as a top-k
                logprobs_mode="processed_logprobs",  # of the distribution sampled from
                weight_transfer_config=None if transfer is None else WeightTransferConfig(backend=transfer),
                **options,
            )

    def generate(self, requests: list[Request], temperature: float, stops: list[int]) -> list[Answer]:
        """One answer per request."""
        params = [
            self.vllm.SamplingParams(
                temperature=temperature,
                seed=seed,
                max_tokens=limit,
                stop_token_ids=stops,
                ignore_eos=True,  # the stop tokens given are all there are
                logprobs=0,  # of the sampled token alone
                detokenize=False,
            )
            for _, limit, seed in requests
        ]
        prompts = [{"prompt_token_ids": prefix} for prefix, _, _ in requests]
        with torch.compiler.set_stance(self.stance):
            outputs = self.llm.generate(prompts, params, use_tqdm=False, lora_request=self.adapter)
        self.llm.reset_prefix_cache()
        answers = []
        for output in outputs:
            [done] = output.outputs
            tokens = list(done.token_ids)
            logprobs = [at[token].logprob for at, token in zip(done.logprobs, tokens, strict=True)]
            answers.append((tokens, logprobs, done.finish_reason == "stop"))
        return answers

    def load(self, weights: Weights | str) -> None:
        """New weights, given or in a file."""
        named = load_file(weights).items() if isinstance(weights, str) else weights
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(named)})

    def load_adapter(self, folder: str) -> None:
        """An adapter in place of the last."""
        last = 0 if self.adapter is None else self.adapter.lora_int_id
        if last:
            self.llm.llm_engine.remove_lora(last)
        self.adapter = self.vllm.lora.request.LoRARequest(f"policy-{last + 1}", last + 1, folder)
        self.llm.llm_engine.add_lora(self.adapter)

    def outlive(self) -> None:
        """At its end, vLLM would take down every process group there is, the trainer's included."""
        self.llm.llm_engine.engine_core._finalizer.detach()

    def llm_method(self, name: str, *args: Any) -> Any:
        """A method of vLLM's LLM."""
        return getattr(self.llm, name)(*args)
