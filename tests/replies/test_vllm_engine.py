"""vLLM in this process, by a stand-in with the calls that vLLM documents: it can't be installed where there is no GPU."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML, byte_tokenizer, save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from abliterate.cli.main import main
from abliterate.compute.whole.model import load_model
from abliterate.errors import InputError
from abliterate.model.chat.template import encode
from abliterate.prompts import Prompt, PromptSet
from abliterate.replies import vllm_engine
from abliterate.replies.generate import generate
from abliterate.replies.samples import Sampling
from abliterate.replies.transcripts import Transcript, read
from abliterate.replies.vllm_engine import VllmEngine

TEXTS = ["Hi", "What is the capital of France?", "Sing", "Tell me a story", "2+2", "你好", "Why?"]
SETS = [
    PromptSet("one", tuple(Prompt(f"a{i}", text) for i, text in enumerate(TEXTS[:4]))),
    PromptSet("two", tuple(Prompt(f"a{i}", text) for i, text in enumerate(TEXTS[4:]))),
]


@dataclass
class SamplingParams:
    """The fields of vllm.SamplingParams that matter here, with its defaults."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    skip_special_tokens: bool = True


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None = None
    logprobs: Any = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class Vllm(types.ModuleType):
    """The module: what was asked of it, and when it is to fail."""

    def __init__(self) -> None:
        super().__init__("vllm")
        self.loaded: list[dict[str, Any]] = []
        self.calls: list[int] = []
        self.sampled: list[SamplingParams] = []
        self.closed = 0
        self.fails_at: int | None = None
        self.refuses: Exception | None = None
        self.SamplingParams = SamplingParams
        self.LLM = llm_of(self)


def llm_of(module: Vllm) -> type:
    class LLM:
        """vllm.LLM: these parameters it names, all others go to EngineArgs, of which those that are used here are known."""

        def __init__(
            self,
            model: str,
            *,
            tokenizer: str | None = None,
            trust_remote_code: bool = False,
            tensor_parallel_size: int = 1,
            dtype: str = "auto",
            seed: int = 0,
            gpu_memory_utilization: float = 0.9,
            pipeline_parallel_size: int = 1,
            max_model_len: int | None = None,
            enable_prefix_caching: bool | None = None,
            distributed_executor_backend: str | None = None,
        ) -> None:
            assert dtype in ("auto", "half", "float16", "bfloat16", "float", "float32")
            assert distributed_executor_backend in (None, "ray", "mp", "uni", "external_launcher")
            if module.refuses is not None:
                raise module.refuses
            module.loaded.append({**locals(), "self": None})
            self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tokenizer or model)
            self.longest = max_model_len

        def generate(
            self,
            prompts: Sequence[dict[str, Any]],
            sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
            *,
            use_tqdm: bool = True,
            lora_request: Any = None,
        ) -> list[RequestOutput]:
            if module.fails_at == len(module.calls):
                raise RuntimeError("Engine core died\nsee the log above")
            module.calls.append(len(prompts))
            assert isinstance(sampling_params, Sequence) and len(sampling_params) == len(prompts)
            module.sampled += [p for p in sampling_params if p.temperature]
            for given in sampling_params:
                drawn = {"temperature": 1.0, "seed": given.seed} if given.temperature else {"temperature": 0.0, "seed": 0}
                assert given == SamplingParams(max_tokens=given.max_tokens, stop_token_ids=given.stop_token_ids, **drawn)
            assert all(set(p) == {"prompt_token_ids"} for p in prompts)
            ends = {self.tokenizer.eos_token_id, *(sampling_params[0].stop_token_ids or ())}
            asked = [p["prompt_token_ids"] for p in prompts]
            return [self.one(number, ids, sampling_params[0].max_tokens or 16, ends) for number, ids in enumerate(asked)]

        def one(self, number: int, ids: list[int], length: int, ends: set[int]) -> RequestOutput:
            assert self.longest is None or len(ids) + length <= self.longest
            given = torch.tensor([ids])
            out = self.model.generate(given, do_sample=False, max_new_tokens=length, eos_token_id=sorted(ends))[0, len(ids) :].tolist()
            stopped = out[-1] in ends
            text = self.tokenizer.decode(out[: len(out) - stopped], skip_special_tokens=True)
            return RequestOutput(
                str(number), None, ids, [CompletionOutput(0, text, tuple(out), finish_reason="stop" if stopped else "length")]
            )

    return LLM


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Vllm:
    module, distributed = Vllm(), types.ModuleType("vllm.distributed")

    def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
        module.closed += 1

    distributed.cleanup_dist_env_and_memory = cleanup_dist_env_and_memory  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", layers=2)


def engine(folder: Path, **options: Any) -> VllmEngine:
    return VllmEngine(folder, AutoTokenizer.from_pretrained(folder), **{"dtype": "float32", "max_new_tokens": 5, **options})


def test_replies_are_those_of_the_model_in_this_process(vllm: Vllm, folder: Path, tmp_path: Path) -> None:
    made = engine(folder).answer(SETS, tmp_path / "v.jsonl")
    assert made == generate(load_model(folder, device="cpu"), SETS, tmp_path / "t.jsonl", 5)
    assert read(tmp_path / "v.jsonl") == made and vllm.closed == 1


def test_a_reply_that_ends_is_counted_without_its_end_token(
    vllm: Vllm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = [CompletionOutput(0, "!", (7, 2), finish_reason="stop")]
    monkeypatch.setattr(vllm.LLM, "one", lambda self, number, ids, length, ends: RequestOutput(str(number), None, ids, ended))
    made = engine(folder).answer(SETS, tmp_path / "t.jsonl")
    assert [(t.response, t.new_tokens) for t in made] == [("!", 1)] * len(TEXTS)


def test_vllm_ends_replies_where_we_do(vllm: Vllm, folder: Path, tmp_path: Path) -> None:
    free = engine(folder).answer(SETS, tmp_path / "free.jsonl")
    assert all(t.cut == (t.new_tokens == engine(folder).max_new_tokens) for t in free)
    ids = engine(folder).tokenizer(free[0].response[0], add_special_tokens=False)["input_ids"]
    ended = engine(folder, ends=frozenset(ids)).answer(SETS, tmp_path / "ended.jsonl")
    assert (ended[0].response, ended[0].new_tokens, ended[0].cut) == ("", 0, False)


def test_vllm_is_told_what_the_settings_say(vllm: Vllm, folder: Path, tmp_path: Path) -> None:
    made = engine(folder, tensor_parallel=1, trust_remote_code=True, max_new_tokens=3)
    made.answer(SETS, tmp_path / "t.jsonl")
    (told,) = vllm.loaded
    longest = max(map(len, encode(made.tokenizer, TEXTS)))
    assert (told["model"], told["dtype"], told["max_model_len"]) == (str(folder), "float32", longest + 3)
    assert told["trust_remote_code"] and told["enable_prefix_caching"] and told["seed"] == 0
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"], told["distributed_executor_backend"]) == (1, 1, None)


@pytest.mark.parametrize(
    ("here", "tensor", "pipeline", "backend"), [(8, 8, 1, None), (8, 4, 2, None), (8, 8, 2, "ray"), (0, 1, 1, None), (1, 2, 1, "ray")]
)
def test_more_gpus_than_this_machine_has_are_found_by_ray(
    here: int, tensor: int, pipeline: int, backend: str | None, vllm: Vllm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    engine(folder, tensor_parallel=tensor, pipeline_parallel=pipeline).answer(SETS, tmp_path / "t.jsonl")
    (told,) = vllm.loaded
    assert (told["tensor_parallel_size"], told["pipeline_parallel_size"], told["distributed_executor_backend"]) == (
        tensor,
        pipeline,
        backend,
    )


def test_a_run_that_fails_keeps_its_slices_and_goes_on(vllm: Vllm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "SLICE", 3)
    vllm.fails_at = 2
    told: list[int] = []
    with pytest.raises(InputError, match=r"vLLM failed \(Engine core died\); finished replies are kept"):
        engine(folder).answer(SETS, tmp_path / "t.jsonl", told.append)
    assert vllm.calls == [3, 3] and sum(told) == 6 == len(read(tmp_path / "t.jsonl")) and vllm.closed == 1
    vllm.fails_at = None
    told.clear()
    made = engine(folder).answer(SETS, tmp_path / "t.jsonl", told.append)
    assert vllm.calls == [3, 3, 1] and told == [6, 1]
    assert [(t.set, t.id) for t in made] == [(s.name, p.id) for s in SETS for p in s]
    vllm.calls.clear()
    assert engine(folder).answer(SETS, tmp_path / "t.jsonl") == made and vllm.calls == [] and len(vllm.loaded) == 2


def test_a_model_that_vllm_can_not_load_is_one_line(vllm: Vllm, folder: Path, tmp_path: Path) -> None:
    vllm.refuses = ValueError("Model architectures ['X'] are not supported\nfor now")
    with pytest.raises(InputError) as raised:
        engine(folder).answer(SETS, tmp_path / "t.jsonl")
    assert str(raised.value) == f"{folder}: vLLM can't load it (Model architectures ['X'] are not supported)"


def test_without_vllm_the_extra_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'abliterate\[vllm\]'"):
        engine(folder).answer(SETS, tmp_path / "t.jsonl")
    assert vllm_engine.version() is None


def test_a_vllm_without_its_way_of_closing_is_closed_all_the_same(
    vllm: Vllm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.distributed", types.ModuleType("vllm.distributed"))
    assert engine(folder).answer(SETS, tmp_path / "t.jsonl")


def test_memory_of_a_gpu_is_given_back(vllm: Vllm, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(len(vllm.loaded)))
    monkeypatch.setattr(vllm.LLM, "__init__", lambda self, model, **options: vllm.loaded.append(options))
    monkeypatch.setattr(vllm.LLM, "generate", lambda self, prompts, params, use_tqdm: [])
    with pytest.raises(ValueError, match="shorter"):
        engine(folder).answer(SETS, tmp_path / "t.jsonl")
    assert emptied == [0, 1]


def test_each_sample_has_its_own_seed_and_greedy_replies_none(folder: Path, vllm: Vllm, tmp_path: Path) -> None:
    sets = [PromptSet("s", (Prompt("1", "Hi", facts=("Paris",)), Prompt("2", "Sing")))]
    made = engine(folder, sampling=Sampling(3)).answer(sets, tmp_path / "t.jsonl")
    assert [(t.id, t.sample) for t in made] == [("1", 0), ("2", 0), ("1", 1), ("1", 2), ("1", 3)]
    assert len(vllm.sampled) == 3 == len({given.seed for given in vllm.sampled})


def test_a_template_that_opens_the_thought_is_recorded(vllm: Vllm, tmp_path: Path) -> None:
    opening = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    folder = save_tiny(tmp_path / "model", layers=1, tokenizer=byte_tokenizer(opening))
    assert all(t.begins_in_thought for t in engine(folder).answer(SETS[:1], tmp_path / "t.jsonl"))


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "asked.txt"
    path.write_text("".join(f"Tell me about number {n}.\n" for n in range(5)), encoding="utf-8")
    yield path


def test_an_audit_by_vllm_gives_the_replies_of_one_by_transformers(vllm: Vllm, folder: Path, asked: Path, tmp_path: Path) -> None:
    call = ["audit", "--model", str(folder), "--prompts", str(asked), "--max-new-tokens", "4", "--out"]
    assert main([*call, str(tmp_path / "t")]) == main([*call, str(tmp_path / "v"), "--engine", "vllm"]) == 0
    found: list[set[Transcript]] = [set(read(tmp_path / name / "transcripts" / "base.jsonl")) for name in ("t", "v")]
    assert found[0] == found[1] and len(found[0]) == 5
    run = json.loads((tmp_path / "v" / "report.json").read_text(encoding="utf-8"))["run"]
    assert run["resolved"]["engines"] == {"base": {"kind": "vllm", "version": None}}
    assert vllm.loaded[0]["dtype"] == run["resolved"]["dtype"]


def test_an_audit_without_vllm_is_one_line(folder: Path, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "vllm" in sys.modules or vllm_engine.importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is here")
    assert main(["audit", "--model", str(folder), "--prompts", str(asked), "--engine", "vllm", "--out", str(tmp_path / "v")]) == 2
    assert "pip install 'abliterate[vllm]'" in capsys.readouterr().err
