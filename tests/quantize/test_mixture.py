"""Experts are quantized on the tokens that reach them, one after the other."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bot.checkpoint.constants import EXPERT_TOKENS
from bot.checkpoint.selection import Mixture
from bot.quantize.mixture import RoutedTokens, collect_routed
from bot.records import ExpertTokens, QuantizedModel
from tests.support import tiny_models
from tests.support.canary import quantize_into

BLOCKS = tiny_models.random_blocks(8, 64)
UNSEEN = 3  # the expert that no token reaches


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantizedModel]:
    """A folder with a quantized mixture of which one expert is never chosen."""
    folder = tmp_path_factory.mktemp("mixture")
    source = tiny_models.build("qwen3_moe", folder / "source", num_experts_per_tok=1)
    model: Any = tiny_models.load(source)
    for layer in model.model.layers:
        gate = layer.mlp.gate.weight.data
        gate[UNSEEN] = (gate[0] + gate[1]) / 2  # never the largest
    model.half().save_pretrained(source)
    return folder, quantize_into(folder, source, blocks=BLOCKS)


def routed(*, length: int, rows: dict[int, Tensor], experts: int = 4) -> tuple[RoutedTokens, Tensor]:
    """Tokens whose first channel is their number."""
    inputs = torch.arange(length, dtype=torch.float32).unsqueeze(1).repeat(1, 2)
    tokens = RoutedTokens(Mixture(path="experts", experts=experts), length)
    tokens.add(inputs, rows)
    tokens.joined()
    return tokens, inputs


def test_an_expert_with_many_tokens_reads_only_its_own() -> None:
    own = torch.arange(0, 3 * EXPERT_TOKENS, 2)
    tokens, inputs = routed(length=3 * EXPERT_TOKENS, rows={1: own})
    assert torch.equal(tokens.of(1), inputs[own])
    assert (tokens.count(1), tokens.share(1)) == (len(own), 0.5)


@pytest.mark.parametrize("own", [0, 1, 100])
def test_an_expert_with_few_tokens_is_filled_up_from_those_of_the_layer(own: int) -> None:
    rows = torch.arange(own)
    tokens, inputs = routed(length=5 * EXPERT_TOKENS, rows={2: rows})
    got = tokens.of(2)
    assert len(got) == EXPERT_TOKENS
    assert torch.equal(got[:own], inputs[:own])
    others = got[own:, 0]
    assert len(set(others.tolist())) == len(others)  # each of them once
    assert others.max() > 4 * EXPERT_TOKENS * (1 - own / EXPERT_TOKENS)  # spread over the layer's
    assert tokens.count(2) == own


def test_an_expert_is_filled_up_with_what_there_is() -> None:
    tokens, inputs = routed(length=10, rows={0: torch.tensor([3, 4])})
    assert torch.equal(tokens.of(0), torch.cat((inputs[3:5], inputs)))
    assert torch.equal(tokens.of(1), inputs)


def test_tokens_of_several_calls_are_joined() -> None:
    tokens = RoutedTokens(Mixture(path="experts", experts=2), 20)
    for start in (0, 10):
        tokens.add(torch.arange(start, start + 10.0).unsqueeze(1), {0: torch.tensor([1]), 1: torch.tensor([2, 3])})
    tokens.joined()
    assert [tokens.count(0), tokens.count(1)] == [2, 4]
    assert tokens.of(1)[:4, 0].tolist() == [2, 3, 12, 13]
    assert tokens.tokens(7) == ExpertTokens(layer=7, experts=2, lowest=2, median=3.0, unseen=0)


def test_a_mixture_that_no_token_reached_has_no_tokens() -> None:
    layer = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    mixture = Mixture(path="experts", experts=2)
    with collect_routed(layer, [mixture], total=1) as found:
        pass
    tokens = found["experts"]
    assert (len(tokens.of(0)), tokens.share(0)) == (0, 0.0)
    assert tokens.tokens(0) == ExpertTokens(layer=0, experts=2, lowest=0, median=0.0, unseen=2)


@torch.no_grad()
def test_tokens_by_expert_are_those_that_the_router_of_transformers_chooses(
    done: tuple[Path, QuantizedModel],
) -> None:
    folder, artifact = done
    model: Any = tiny_models.load(folder / "source").eval()
    logits: list[Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(
            lambda module, args: logits.append(functional.linear(args[0].flatten(0, -2), module.gate.weight))
        )
    model(BLOCKS)
    expected = []
    for index, each in enumerate(logits):
        counts = torch.bincount(each.argmax(dim=-1), minlength=4).tolist()
        assert counts[UNSEEN] == 0
        assert sum(counts) == BLOCKS.numel()
        expected.append(
            ExpertTokens(
                layer=index,
                experts=4,
                lowest=min(counts),
                median=float(median(counts)),
                unseen=sum(count == 0 for count in counts),
            )
        )
    assert artifact.experts == tuple(expected)


@torch.no_grad()
def test_an_expert_that_no_token_reached_is_quantized_on_the_tokens_of_the_layer(
    done: tuple[Path, QuantizedModel],
) -> None:
    folder, artifact = done
    source, packed = tiny_models.tensors_of(folder / "source"), tiny_models.dequantized(folder / "out")
    model: Any = tiny_models.load(folder / "source").eval()
    seen: list[Tensor] = []
    norm = model.model.layers[0].post_attention_layernorm
    norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    model(BLOCKS)

    def expert(tensors: dict[str, Tensor], *, rounded: bool = False) -> Tensor:
        weights = {
            name: tensors[f"model.layers.0.mlp.experts.{UNSEEN}.{name}_proj.weight"].float()
            for name in ("gate", "up", "down")
        }
        if rounded:
            weights = {name: tiny_models.rounded(value, 128) for name, value in weights.items()}
        normed = seen[0] * torch.rsqrt(seen[0].pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        inputs = normed * tensors["model.layers.0.post_attention_layernorm.weight"].float()
        return (functional.silu(inputs @ weights["gate"].t()) * (inputs @ weights["up"].t())) @ weights["down"].t()

    expected = expert(source)
    lost, lost_by_rounding = (expert(packed) - expected).norm(), (expert(source, rounded=True) - expected).norm()
    assert lost < 0.9 * lost_by_rounding
    assert all(not module.fallback for module in artifact.modules)


PEAK = """
import json, re, sys
from pathlib import Path
import transformers.models.qwen3_moe.modeling_qwen3_moe
from tests.support import tiny_models
from tests.support.canary import quantize_into

def memory_kib(name):
    return int(re.search(rf"^{name}:\\s+(\\d+) kB$", Path("/proc/self/status").read_text(), re.M)[1])

folder = Path(sys.argv[1])
before = memory_kib("VmRSS")
quantize_into(folder, folder / "source", blocks=tiny_models.random_blocks(8, 64))
print(json.dumps(memory_kib("VmHWM") - before))
"""


def peak_and_weights(folder: Path, experts: int) -> tuple[float, float]:
    """What quantizing takes above its imports, and the size of the weights; in bytes."""
    source = tiny_models.build("qwen3_moe", folder / "source", num_experts=experts, moe_intermediate_size=256)
    # In a separate process, of which no memory was used before. RUSAGE_SELF would begin with the parent's peak.
    command = [sys.executable, "-c", PEAK, str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    weights = sum(value.nbytes for value in tiny_models.tensors_of(source).values())
    return json.loads(done.stdout.splitlines()[-1]) * 1024, weights


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory was used")
def test_memory_does_not_grow_faster_than_the_weights_of_the_experts(tmp_path: Path) -> None:
    (few, few_weights), (many, many_weights) = (peak_and_weights(tmp_path / str(n), n) for n in (8, 64))
    assert many_weights > 5 * few_weights
    assert many / few <= 1.5 * many_weights / few_weights
    # Two layers in float32 at most, which is twice the size of the float16 source; and what is quantized of them.
    assert many - few <= 4 * (many_weights - few_weights)
