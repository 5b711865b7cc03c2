"""A provenance with all that the artifact shows read from the artifact again, and where the two differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isfinite, prod
from typing import Any, Literal

from bot.checkpoint.config import DTYPE_KEYS, parse_config, quantization_config
from bot.checkpoint.constants import PACKED_PARTS, PER_INT32, SAFETENSORS_NAMES
from bot.checkpoint.header import size_bytes
from bot.checkpoint.inventory import bits_per_weight, packed_tensors, quantized_linears
from bot.checkpoint.kv_cache import kv_cache
from bot.checkpoint.repo_files import CONFIG, PROVENANCE
from bot.errors import BotError
from bot.records import Finding, KVCache, Provenance, Recipe, Report, TensorInfo
from bot.text import one_line, rounded, size
from bot.watch.sizing import legal_tensor_parallel

_WEIGHTS = ".safetensors"
_SHOWN = 3  # lengths of a sequence
_SAME_BITS = 0.005  # of what the card shows with two digits


def rederived(
    made: Provenance, *, config: bytes, tensors: tuple[TensorInfo, ...], sizes: Mapping[str, int]
) -> tuple[Provenance, tuple[Finding, ...]]:
    """sizes: of the published files, by path. A fact that cannot be read again stays as the provenance has it."""
    findings: list[Finding] = []
    read = _config(config, findings)
    recipe = _recipe(made, read, findings)
    shapes, packed = {tensor.name: tensor for tensor in tensors}, _packed(tensors)
    if packed:
        findings += _shape_findings(shapes, packed, recipe)
    report = _report(made, shapes, packed, sizes, findings)
    derived = replace(made, recipe=recipe, report=report, artifact_dtype=_dtype(made, read, tensors, findings))
    if packed and read and recipe.group_size > 0:
        derived = _served(derived, read, tensors, packed, findings)
    return derived, tuple(findings)


def _config(content: bytes, findings: list[Finding]) -> dict[str, Any]:
    try:
        return parse_config(content)
    except BotError as error:
        findings.append(_finding("config", "unknown", error.message, file=CONFIG))
        return {}


def _recipe(made: Provenance, config: Mapping[str, Any], findings: list[Finding]) -> Recipe:
    """bits, group size and zero points as servers read them."""
    if not config:
        return made.recipe
    written, recipe = config.get("quantization_config"), made.recipe
    said = written if isinstance(written, dict) else {}
    modules = made.modules_to_not_convert or recipe.modules_to_not_convert
    wanted = quantization_config(recipe, modules)
    for key in [key for key in wanted if said.get(key) != wanted[key]]:
        if key != "modules_to_not_convert" or made.modules_to_not_convert:
            findings.append(_differs(f"quantization_config.{key} in {CONFIG}", wanted[key], said.get(key)))
    numbers = {key: said[key] for key in ("bits", "group_size") if type(said.get(key)) is int}
    flags = {"zero_point": said["zero_point"]} if isinstance(said.get("zero_point"), bool) else {}
    return replace(recipe, **numbers, **flags)


def _packed(tensors: tuple[TensorInfo, ...]) -> tuple[TensorInfo, ...]:
    """The quantized linears by the shape of their weights, [out, in]."""
    return tuple(
        TensorInfo(
            name=tensor.name.removesuffix(".qweight"),
            dtype="I32",
            shape=(tensor.shape[1] * PER_INT32, tensor.shape[0]),
        )
        for tensor in tensors
        if tensor.name.endswith(".qweight") and len(tensor.shape) == 2
    )


def _shape_findings(
    shapes: Mapping[str, TensorInfo], packed: tuple[TensorInfo, ...], recipe: Recipe
) -> Iterator[Finding]:
    """That each linear has the scales of this group size."""
    if recipe.group_size <= 0:
        yield _finding("group size", "wrong", str(recipe.group_size), "a number of input channels")
        return
    for linear in packed:
        for tensor in packed_tensors(linear.name, linear.shape, recipe.group_size):
            there = shapes.get(tensor.name)
            if there is None or (there.shape, there.dtype) != (tensor.shape, tensor.dtype):
                said = f"{there.dtype} {list(there.shape)}" if there else "missing"
                where = f"{tensor.name} with group size {recipe.group_size}"
                yield _finding(where, "wrong", said, f"{tensor.dtype} {list(tensor.shape)}")
                return  # one says it of all
    yield _finding("group size", "ok", f"{recipe.group_size} in all {len(packed)} quantized linears")


def _report(
    made: Provenance,
    shapes: Mapping[str, TensorInfo],
    packed: tuple[TensorInfo, ...],
    sizes: Mapping[str, int],
    findings: list[Finding],
) -> Report:
    report = made.report
    weights = [file.path for file in made.files if file.path.endswith(_WEIGHTS)]
    if weights and all(path in sizes for path in weights):
        total = sum(sizes[path] for path in weights)
        findings += _same_or_not("size of the weights", report.size_quantized_bytes, total, size)
        report = replace(report, size_quantized_bytes=total or 1)
    source = sum(file.size_bytes for file in made.source.source_files if file.path.endswith(_WEIGHTS))
    if source:
        findings += _same_or_not("size of the source's weights", report.size_source_bytes, source, size)
        report = replace(report, size_source_bytes=source)
    if packed:
        report = _bits(report, shapes, packed, findings)
    return report


def _bits(
    report: Report, shapes: Mapping[str, TensorInfo], packed: tuple[TensorInfo, ...], findings: list[Finding]
) -> Report:
    linears = {linear.name for linear in packed}
    if linears != set(quantized_linears(shapes)) or any(
        f"{name}.{part}" not in shapes for name in linears for part in PACKED_PARTS
    ):
        return report  # a finding about shapes says so
    found = bits_per_weight(shapes)
    if isfinite(found):
        if abs(found - report.bits_per_weight) > _SAME_BITS:
            findings.append(_differs("bits per weight", rounded(report.bits_per_weight), rounded(found)))
        report = replace(report, bits_per_weight=found)
    others = [tensor for name, tensor in shapes.items() if not _is_part(name, linears)]
    parameters = sum(prod(each.shape) for each in (*packed, *others))
    least = 8 * sum(size_bytes(each) for each in shapes.values()) / parameters if parameters else 0.0
    # Tensors of the source that the model does not read are not counted, so that it may be more.
    if report.bits_per_weight_file < least - _SAME_BITS:
        findings.append(
            _differs("bits per weight, everything", rounded(report.bits_per_weight_file), rounded(least))
        )
        report = replace(report, bits_per_weight_file=least)
    elif report.bits_per_weight_file > least + _SAME_BITS:
        why = "tensors of the source that the model does not read count in the one and not in the other"
        findings.append(_finding("bits per weight, everything", "unknown", why, rounded(least)))
    return report


def _is_part(name: str, linears: set[str]) -> bool:
    stem, _, part = name.rpartition(".")
    return part in PACKED_PARTS and stem in linears


def _dtype(
    made: Provenance, config: Mapping[str, Any], tensors: tuple[TensorInfo, ...], findings: list[Finding]
) -> str:
    """As stated where such values are there; else that of most values that are not quantized."""
    linears = {tensor.name.removesuffix(".qweight") for tensor in tensors if tensor.name.endswith(".qweight")}
    values: dict[str, int] = {
        name: sum(
            prod(each.shape) for each in tensors if each.dtype == stored and not _is_part(each.name, linears)
        )
        for name, stored in SAFETENSORS_NAMES.items()
    }
    stated = next((config[key] for key in DTYPE_KEYS if key in config), None)
    # Tensors that the model does not read stay as they were in the source, and can be more than the others.
    if not any(values.values()) or (stated == made.artifact_dtype and values.get(made.artifact_dtype)):
        return made.artifact_dtype
    found: str = max(values, key=lambda name: values[name])
    if stated is not None and stated != found:
        findings.append(_differs(f"dtype in {CONFIG}", one_line(stated, 40), found))
    findings += _same_or_not("dtype of what is not quantized", made.artifact_dtype, found, str)
    return found


def _served(
    made: Provenance,
    config: dict[str, Any],
    tensors: tuple[TensorInfo, ...],
    packed: tuple[TensorInfo, ...],
    findings: list[Finding],
) -> Provenance:
    """Tensor parallel sizes and KV cache, where the provenance has them."""
    if made.tensor_parallel:
        ways = legal_tensor_parallel(config, packed, made.recipe)
        findings += _same_or_not("tensor parallel sizes", made.tensor_parallel, ways, _listed)
        made = replace(made, tensor_parallel=ways)
    if made.kv_cache is not None:
        cache = kv_cache(config, tensors)
        if cache != made.kv_cache:
            findings.append(_differs("KV cache", _cached(made.kv_cache), _cached(cache)))
        made = replace(made, kv_cache=cache)
    return made


def _cached(cache: KVCache) -> str:
    sizes = (f"{cache.size_bytes(tokens):,} bytes at {tokens:,} tokens" for tokens in cache.contexts[:_SHOWN])
    return cache.problem or ", ".join(sizes)


def _listed(ways: tuple[int, ...]) -> str:
    return ", ".join(map(str, ways))


def _same_or_not(what: str, said: Any, found: Any, shown: Any) -> Iterator[Finding]:
    """said: by the provenance; found: in the artifact."""
    if said == found:
        yield _finding(what, "ok", shown(found))
    elif shown(said) == shown(found):
        yield _finding(what, "wrong", f"{said:,}", f"{found:,}")
    else:
        yield _finding(what, "wrong", shown(said), shown(found))


def _differs(what: str, said: object, found: object) -> Finding:
    return _finding(what, "wrong", str(said), str(found))


def _finding(
    what: str, status: Literal["ok", "wrong", "unknown"], found: str, expected: str = "", *, file: str = PROVENANCE
) -> Finding:
    return Finding(
        file=file, line=0, what=one_line(what), status=status, found=one_line(found), expected=one_line(expected)
    )
