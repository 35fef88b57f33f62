"""Families and sizes by name: names as the Hub, providers and Ollama spell them."""

from __future__ import annotations

import json

import pytest

from llmdistill.config import Model
from llmdistill.engines.families import families_of, num_parameters_of, same_model

NAMES = {
    "Qwen/Qwen2.5-7B-Instruct": "qwen",
    "Qwen/Qwen3-30B-A3B-Instruct-2507": "qwen",
    "Qwen/Qwen2.5-72B-Instruct-AWQ": "qwen",
    "Qwen/QwQ-32B": "qwen",
    "qwen2.5:7b-instruct-q4_K_M": "qwen",
    "qwen-max": "qwen",
    "Alibaba-NLP/gte-Qwen2-7B-instruct": "qwen",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama",
    "meta-llama/Llama-3.3-70B-Instruct": "llama",
    "codellama/CodeLlama-34b-Instruct-hf": "llama",
    "accounts/fireworks/models/llama-v3p1-405b-instruct": "llama",
    "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M": "llama",
    "us.meta.llama3-3-70b-instruct-v1:0": "llama",
    "lmsys/vicuna-13b-v1.5": "llama",
    "beomi/Llama-3-Open-Ko-8B": "llama",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "tinyllama",
    "openlm-research/open_llama_3b": "openllama",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm",
    "HuggingFaceTB/SmolLM3-3B": "smollm",
    "google/gemma-2-9b-it": "gemma",
    "google/gemma-3n-E4B-it": "gemma",
    "google/codegemma-7b-it": "gemma",
    "gpt-4o": "openai",
    "gpt-4o-mini-2024-07-18": "openai",
    "openai/gpt-oss-120b": "openai",
    "gpt-3.5-turbo": "openai",
    "gpt-35-turbo": "openai",
    "gpt-5-mini": "openai",
    "chatgpt-4o-latest": "openai",
    "ft:gpt-4o-mini-2024-07-18:my-org::abc123": "openai",
    "openai-community/gpt2": "openai",
    "o1-preview": "openai",
    "o3": "openai",
    "openai/o4-mini": "openai",
    "claude-3-5-sonnet-20241022": "claude",
    "anthropic.claude-3-haiku-20240307-v1:0": "claude",
    "anthropic/claude-sonnet-4": "claude",
    "gemini-1.5-pro": "gemini",
    "models/gemini-2.5-flash": "gemini",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mistral",
    "mistralai/Ministral-8B-Instruct-2410": "mistral",
    "mistralai/Codestral-22B-v0.1": "mistral",
    "mistral-large-latest": "mistral",
    "open-mixtral-8x22b": "mistral",
    "mistralai/Pixtral-12B-2409": "mistral",
    "HuggingFaceH4/zephyr-7b-beta": "mistral",
    "NousResearch/Nous-Hermes-2-Mixtral-8x7B-DPO": "mistral",
    "microsoft/Phi-3-mini-4k-instruct": "phi",
    "microsoft/phi-4": "phi",
    "phi3:mini": "phi",
    "deepseek-ai/DeepSeek-V3-0324": "deepseek",
    "deepseek-chat": "deepseek",
    "zai-org/GLM-4.5-Air": "glm",
    "THUDM/chatglm3-6b": "glm",
    "CohereLabs/c4ai-command-r-plus-08-2024": "command",
    "command-a-03-2025": "command",
    "CohereLabs/aya-expanse-8b": "command",
    "allenai/OLMo-2-1124-7B-Instruct": "olmo",
    "allenai/OLMoE-1B-7B-0924": "olmo",
    "LGAI-EXAONE/EXAONE-3.5-7.8B-Instruct": "exaone",
    "upstage/SOLAR-10.7B-Instruct-v1.0": "solar",
    "upstage/solar-pro-preview-instruct": "solar",
    "yanolja/EEVE-Korean-Instruct-10.8B-v1.0": "solar",
    "naver-hyperclovax/HyperCLOVAX-SEED-Text-Instruct-1.5B": "hyperclova",
    "kakaocorp/kanana-1.5-8b-instruct-2505": "kanana",
    "skt/A.X-4.0-Light": "ax",
    "K-intelligence/Midm-2.0-Base-Instruct": "midm",
    "EleutherAI/polyglot-ko-12.8b": "polyglot",
    "ibm-granite/granite-3.1-8b-instruct": "granite",
    "x-ai/grok-2-1212": "grok",
    "amazon.nova-pro-v1:0": "nova",
    "tiiuae/Falcon3-10B-Instruct": "falcon",
    "01-ai/Yi-1.5-34B-Chat": "yi",
    "moonshotai/Kimi-K2-Instruct": "kimi",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": "deepseek qwen",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": "deepseek llama",
    "nvidia/Llama-3.1-Nemotron-70B-Instruct-HF": "llama nemotron",
    "EleutherAI/gpt-neo-1.3B": "",
    "EleutherAI/gpt-j-6b": "",
    "AIDC-AI/Marco-o1": "",
    "allenai/Molmo-72B-0924": "",
    "cognitivecomputations/dolphin-2.9": "",
    "no/model": "",
    "teacher-x": "",
    "모델": "",
    "": "",
}


@pytest.mark.parametrize(("name", "families"), NAMES.items())
def test_a_name_tells_its_families_and_no_others(name, families):
    assert families_of(name) == frozenset(families.split())


@pytest.mark.parametrize(
    ("folder", "config", "family"),
    [
        ("Qwen2.5-0.5B-Instruct", {"model_type": "llama"}, "qwen"),
        ("final", {"model_type": "qwen2"}, "qwen"),
        ("final", {"model_type": "gpt_oss"}, "openai"),
        ("final", {"model_type": "cohere2"}, "command"),
        ("final", {"model_type": "gemma3_text"}, "gemma"),
        ("final", {"model_type": "llama"}, ""),
        ("final", {"model_type": "llama", "_name_or_path": "meta-llama/Llama-3.2-1B"}, "llama"),
        ("final", {"model_type": 3}, ""),
        ("final", ["qwen2"], ""),
        ("models--google--gemma-2-9b-it/snapshots/0a1b2c", {}, "gemma"),
        ("선생님", {"model_type": "exaone"}, "exaone"),
    ],
)
def test_a_local_directory_is_known_by_its_name_or_by_what_lies_in_it(tmp_path, folder, config, family):
    path = tmp_path / folder
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    assert families_of(str(path)) == families_of(f"{path}/") == frozenset(family.split())


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_config_tells_nothing(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert families_of(str(tmp_path)) == frozenset()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135),
        ("Qwen/Qwen2.5-0.5B-Instruct", 500),
        ("Qwen/Qwen3-30B-A3B", 30_000),
        ("Qwen/Qwen2.5-7B-Instruct-1M", 7_000),
        ("mistralai/Mixtral-8x7B-v0.1", 7_000),
        ("qwen2.5:0.5b", 500),
        ("gemma-3-270m-it-4bit", 270),
        ("gpt-4o", None),
        ("org/model-4bit", None),
        ("gradient/Llama-3-Instruct-1048k", None),
    ],
)
def test_a_name_tells_the_number_of_parameters(name, millions):
    assert num_parameters_of(name) == (None if millions is None else millions * 1e6)


def test_a_directory_is_as_large_as_its_files(tiny_model):
    assert 100_000 < num_parameters_of(str(tiny_model)) < 1_000_000


def test_one_model_under_two_names_and_two_under_one(tmp_path):
    for name in ("a/final", "b/final"):
        (tmp_path / name).mkdir(parents=True)
    first, second = (Model(model=str(tmp_path / name / "final")) for name in "ab")
    assert same_model(first, Model(model=f"{tmp_path}/a/../a/final/")) and not same_model(first, second)
    assert same_model(Model(model="Qwen/Qwen2.5-7B-Instruct"), Model(model="qwen2.5-7b-instruct-AWQ"))
    assert same_model(Model(model="alias", engine="openai", weights="Qwen/Qwen3-8B"), Model(model="qwen3-8b"))
    assert not same_model(Model(model="Qwen/Qwen2.5-7B"), Model(model="Qwen/Qwen2.5-7B-Instruct"))
