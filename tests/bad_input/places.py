"""Each place as a function: what comes out of it for a case, as text, or the error that a user sees.

All run in this process: a child process takes seconds to import torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM

from bot.calibration.blocks import build_calibration_set
from bot.calibration.builtin import written
from bot.calibration.documents import Document
from bot.calibration.encoding import load_encoder
from bot.calibration.evaluation import evaluation_tokens
from bot.calibration.trial import try_small_files
from bot.card.model_card import render_card
from bot.checkpoint.reader import Checkpoint
from bot.checkpoint.skeleton import open_skeleton
from bot.errors import ERRORS_BY_EXIT_CODE
from bot.hub.session import Hub
from bot.jobs import pipeline, stages
from bot.jobs.folder import JobDir
from bot.jobs.handover import has_chat_template
from bot.jobs.stages import JobContext
from bot.jobs.tasks import evaluate_folder, evaluate_job, quantize_folder, quantize_job
from bot.localhub import LocalHub
from bot.records import (
    Calibration,
    Evaluation,
    Recipe,
    TextSource,
    no_progress,
    to_json,
)
from bot.watch import watchlist as watchlists
from tests.bad_input.case import Case, Place, content_of
from tests.bad_input.guard import limit
from tests.bad_input.plans import files_of, layers_here, planned_text, repo_of, watchlist_of
from tests.support import factories
from tests.support.small_sandbox import WEIGHTS

_PLAIN = " ".join(written("prose", "calibrate")).split()
_WORDS = [word for word in _PLAIN if word.isalpha() and word.islower()]
_CHAT = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."})
_DEVICE = torch.device("cpu")


# --- one case in its folder -----------------------------------------------------------------------------------


def meet(case: Case, folder: Path, monkeypatch: Any) -> str:
    """folder: for this case alone. Raises what the place raises."""
    place: Mapping[Place, Callable[[Case, Path, Any], str]] = {
        Place.PLAN: _plan_alone,
        Place.PULL: _pull,
        Place.TOKENIZER: _tokenizer,
        Place.SKELETON: _skeleton,
        Place.LAYERS: _layers,
        Place.EVALUATION: _evaluation,
        Place.CARD: _card,
    }
    return place[case.place](case, folder, monkeypatch)


def _plan_alone(case: Case, folder: Path, monkeypatch: Any) -> str:
    """On a watchlist of its own; with variables as a program, as huggingface_hub reads them when it starts."""
    with LocalHub(folder / "hub") as local:
        local.seed(repo_of(case), files_of(case))
        for fault in case.faults:
            local.faults.add(fault)
        path = watchlist_of(folder, local, [case])
        if not case.variables:
            monkeypatch.setattr("bot.hub.session.ATTEMPTS", 1)
            monkeypatch.setattr(pipeline, "layers_of_model", layers_here)
            hub = Hub(local.endpoint, local.token(), local.token())
            return planned_text(pipeline.plan(hub, watchlists.load(path)), case)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": local.endpoint, "HF_TOKEN": local.token(), **case.variables}
        command = [sys.executable, "-m", "bot", "plan", "--watchlist", str(path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        message, _, hint = done.stderr.strip().removeprefix("error: ").partition("\nhint: ")
        raise ERRORS_BY_EXIT_CODE[done.returncode](message, hint=hint)
    return done.stdout


def _pull(case: Case, folder: Path, monkeypatch: Any) -> str:
    """A planned job is pulled."""
    monkeypatch.setattr(pipeline, "layers_of_model", layers_here)
    monkeypatch.setattr(stages, "run_child", child_here)
    with LocalHub(folder / "hub") as local:
        local.seed(repo_of(case), files_of(case))
        hub = Hub(local.endpoint, local.token(), local.token())
        path = watchlist_of(folder, local, [case])
        plan = pipeline.plan(hub, watchlists.load(path))
        [job] = plan.jobs
        jobdir = JobDir(folder / "work" / job.job_id)
        jobdir.store(job)
        if case.prepare:
            case.prepare(jobdir.path)
        for fault in case.faults:
            local.faults.add(fault)
        monkeypatch.setattr("bot.hub.session.ATTEMPTS", 2)
        context = JobContext(hub=hub, work=folder / "work", files=folder, progress=no_progress)
        weights = stages.pull(context, jobdir)
    return "\n".join(file.path for file in weights.files)


def child_here(verb: str, jobdir: JobDir, **limits: object) -> None:
    """What `run_child` starts a process for: one of the stages that need torch."""
    with limit(60):
        match verb:
            case "trial":
                try_small_files(jobdir.source, trust_remote_code=False)
            case "quantize":
                quantize_job(jobdir, no_progress)
            case _:
                assert verb == "evaluate"
                evaluate_job(jobdir, no_progress)


def _tokenizer(case: Case, folder: Path, monkeypatch: Any) -> str:
    """The tokenizer and its template are tried, then the rows are encoded."""
    source = _written(case, folder, without_weights=True)
    if not case.rows:
        try_small_files(source, trust_remote_code=False)
        encoder = load_encoder(source, trust_remote_code=False)
        chat = encoder.encode(Document(messages=_CHAT, origin="a chat"))
        return str(encoder.tokenizer.decode(chat))
    calibration = _calibration(case, folder)
    tokens, record = build_calibration_set(
        calibration, tokenizer_folder=source, folder=folder, trust_remote_code=False
    )
    decoded = load_encoder(source, trust_remote_code=False).tokenizer.decode(tokens.flatten().tolist())
    return f"{decoded}\n{to_json(record)}"


def _skeleton(case: Case, folder: Path, monkeypatch: Any) -> str:
    """The model without its weights, both of its ends, and which stored tensor the output head is."""
    source = _written(case, folder)
    checkpoint = Checkpoint(source)
    skeleton = open_skeleton(
        source,
        checkpoint.tensors,
        read=checkpoint.read,
        equal=checkpoint.equal,
        dtype=torch.float32,
        trust_remote_code=False,
    )
    skeleton.tensors_before()
    head = skeleton.tensors_after()["lm_head.weight"]
    found = [
        name
        for name, info in checkpoint.tensors.items()
        if info.shape == tuple(head.shape) and torch.equal(checkpoint.read(name).float(), head)
    ]
    return f"the output head is {' and '.join(found)}"


def _layers(case: Case, folder: Path, monkeypatch: Any) -> str:
    source = _written(case, folder)
    made = _quantized(case, source, folder)
    return f"{len(made.modules)} linears, {made.artifact_dtype}"


def _evaluation(case: Case, folder: Path, monkeypatch: Any) -> str:
    """Measured on little text, and the source also by transformers alone."""
    source = _written(case, folder)
    _quantized(case, source, folder)
    text = folder / "text.txt"
    text.write_bytes(content_of(case.text or TEXT))
    asked = Evaluation(sources=(TextSource(file=str(text)),))
    report = evaluate_folder(
        source, folder / "out", evaluation=asked, trust_remote_code=False, progress=no_progress
    )
    tokens, _ = evaluation_tokens(asked, tokenizer_folder=source, trust_remote_code=False)
    expected = _perplexity(source, tokens[:, : report.tokens // len(tokens)])
    agrees = abs(report.perplexity_source / expected - 1) < 1e-3
    return f"perplexity {'as' if agrees else 'not as'} transformers computes it"


def _card(case: Case, folder: Path, monkeypatch: Any) -> str:
    """The card with these facts: its metadata, and its text as HTML. With files, whether it shows how to chat."""
    facts = dict(case.card)
    languages = facts.pop("row_languages", ("en",))
    label = facts.pop("label", "builtin:stdlib")
    modules = facts.pop("modules", ())
    source = factories.upstream(**facts)
    counted = replace(factories.calibration_set().sources[0], label=label, languages=tuple(languages))
    job = factories.job(None, source)
    provenance = factories.provenance(
        None,
        source,
        calibration=factories.calibration_set(sources=(counted,)),
        modules_to_not_convert=tuple(modules),
    )
    chat = has_chat_template(_written(case, folder, without_weights=True))
    text = render_card(job, provenance, chat=chat)
    _, metadata, body = text.split("---\n", 2)
    html = str(MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    return f"{json.dumps(yaml.safe_load(metadata), ensure_ascii=False)}\n{html}"


# --- what the places share ------------------------------------------------------------------------------------


def _written(case: Case, folder: Path, *, without_weights: bool = False) -> Path:
    source = folder / "source"
    for path, content in files_of(case).items():
        if not (without_weights and path == WEIGHTS):
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
    return source


def _quantized(case: Case, source: Path, folder: Path) -> Any:
    return quantize_folder(
        source,
        folder / "out",
        recipe=Recipe(),
        calibration=_calibration(case, folder),
        texts=Path(),
        trust_remote_code=False,
        progress=no_progress,
    )


def _calibration(case: Case, folder: Path) -> Calibration:
    """On the case's rows among good ones. The first document that is drawn is one of the case's.

    Of many rows, so many are drawn that one of them may be left out.
    """
    rows = [
        json.dumps({"messages": _conversation(number)}) for number in range(case.among or (0 if case.rows else 40))
    ]
    place = _first_drawn(len(rows) + len(case.rows))
    rows[place:place] = [row if isinstance(row, str) else json.dumps(row) for row in case.rows]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8", errors="surrogatepass")
    source = TextSource(file=str(path))
    return Calibration(
        samples=16, seq_len=256 if len(rows) > 40 else 64 if len(rows) > 20 else 16, sources=(source,)
    )


def _first_drawn(count: int) -> int:
    """The number of the document that a draw of the seed 0 begins with."""
    return min(range(count), key=lambda number: sha256(f"0/{number}".encode()).digest())


@cache
def _conversation(number: int) -> tuple[dict[str, str], ...]:
    return (
        {"role": "user", "content": _sentence(number)},
        {"role": "assistant", "content": _sentence(-number - 1)},
    )


def _sentence(number: int) -> str:
    """Forty words, the same for the same number."""
    return " ".join(Random(number).choices(_WORDS, k=40))


TEXT, UNSEEN = ("\n".join(map(_sentence, numbers)) for numbers in (range(60), range(60, 120)))


@torch.no_grad()
def _perplexity(source: Path, tokens: torch.Tensor) -> float:
    # transformers reads results of its own by their names, and fails where config.json asks for tuples.
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, return_dict=True)
    logits = model(tokens).logits[:, :-1].log_softmax(-1)
    nll = -logits.gather(-1, tokens[:, 1:, None]).double().mean()
    return float(nll.exp())
