"""Next-token training on one CPU core: Muon for the matrices inside the layers, AdamW for the rest."""

import time
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

WARM_UP_STEPS: Final = 60
# The last steps see longer windows, so that positions up to 512 are trained too.
SHORT, LONG = (16, 256), (8, 512)
LONG_FROM: Final = 0.8
MUON_RATE, ADAM_RATE, MUON_DECAY = 0.02, 4e-3, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`decay_from` is the share of the steps after which the learning rate falls linearly to zero."""

    seed: int
    steps: int
    decay_from: float = 0.6

    def rate(self, step: int) -> float:
        """The learning rate of a step as a share of the highest one."""
        warm = min(1.0, (step + 1) / WARM_UP_STEPS)
        left = (self.steps - step) / (self.steps * (1 - self.decay_from))
        return min(warm, left, 1.0)

    def starts(self, step: int, n_tokens: int) -> tuple[Tensor, int]:
        """Where the windows of a step begin, int64 [batch], and their length in tokens."""
        batch, seq_len = SHORT if step < self.steps * LONG_FROM else LONG
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return torch.randint(0, n_tokens - seq_len - 1, (batch,), generator=generator), seq_len


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps (https://kellerjordan.github.io/posts/muon).

    Parameters are matrices [rows, columns] or stacks of them [experts, rows, columns].
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix in place."""
        for group in self.param_groups:
            for param in group["params"]:
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                buffer.lerp_(param.grad, 1 - group["momentum"])
                update = orthogonalised(param.grad.lerp(buffer, group["momentum"]))
                param.mul_(1 - group["lr"] * MUON_DECAY)
                param.add_(update, alpha=-group["lr"] * max(1, param.shape[-2] / param.shape[-1]) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """`matrix` [..., rows, columns] with its singular values moved close to one."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = (x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)).bfloat16()
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    found: Tensor = (x.mT if tall else x).to(matrix.dtype)
    return found


def train(model: nn.Module, tokens: Tensor, dev: Tensor, *, schedule: Schedule) -> None:
    """Train in place. tokens: int64 [n]; dev: int64 [n_blocks, seq_len], only looked at for the log."""
    optimizers = _optimizers(model)
    begin = time.monotonic()
    for step in range(schedule.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * schedule.rate(step)
        starts, seq_len = schedule.starts(step, len(tokens))
        loss = _loss(model, torch.stack([tokens[i : i + seq_len + 1] for i in starts.tolist()]))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            print(f"{step + 1:5} loss {loss.item():.3f} {time.monotonic() - begin:.0f} s", flush=True)
        if (step + 1) % 100 == 0:
            print(f"{step + 1:5} dev perplexity {perplexity(model, dev[:16]):.2f}", flush=True)


@torch.no_grad()
def perplexity(model: nn.Module, blocks: Tensor) -> float:
    """exp of the mean negative log-likelihood, in nats, of blocks[:, 1:]; blocks: int64 [n, seq_len]."""
    losses = [
        cross_entropy(model(block[None]).logits[0, :-1].float(), block[1:]).double() for block in blocks.long()
    ]
    return float(torch.stack(losses).mean().exp())


def _loss(model: Any, windows: Tensor) -> Tensor:
    routed = hasattr(model.config, "num_experts")
    options = {"output_router_logits": True} if routed else {}
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=windows[:, :-1], use_cache=False, **options)
    loss = cross_entropy(output.logits.float().flatten(0, 1), windows[:, 1:].flatten())
    return loss + _imbalance(output.router_logits, model.config) if routed else loss


def _imbalance(router_logits: tuple[Tensor, ...], config: Any) -> Tensor:
    """The weighted load-balancing loss (https://huggingface.co/papers/2101.03961), as the mean over layers.

    The model's own loss adds up the layers first: an idle expert of one layer can hide behind busy ones of others.
    router_logits: one [n_tokens, n_experts] per layer.
    """
    losses = [
        load_balancing_loss_func((logits.float(),), config.num_experts, config.num_experts_per_tok)
        for logits in router_logits
    ]
    weighted: Tensor = config.router_aux_loss_coef * torch.stack(losses).mean()
    return weighted


def _optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    inside: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        # A router is a classifier, with one row per expert. Muon is for the matrices between hidden states.
        matrix = param.ndim > 1 and ".layers." in name and not name.endswith("mlp.gate.weight")
        (inside if matrix else rest).append(param)
    optimizers = [Muon(inside, MUON_RATE), torch.optim.AdamW(rest, ADAM_RATE, (0.9, 0.95), weight_decay=0.01)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers
