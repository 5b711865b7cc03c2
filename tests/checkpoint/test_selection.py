"""What is packed, what is left out and why, and what config.json may list."""

import re

import pytest

from bot.checkpoint.selection import Mixture, Selection, check_listed, merged_with, select_linears
from bot.errors import UnsupportedModelError, WatchlistError
from bot.records import Recipe

Linears = dict[str, tuple[int, int]]

ATTENTION: Linears = {
    "layers.0.attn.q_proj": (256, 256),
    "layers.0.attn.k_proj": (128, 256),
    "layers.0.attn.v_proj": (128, 256),
    "layers.0.attn.o_proj": (256, 256),
}
MLP: Linears = {
    "layers.0.mlp.gate_proj": (512, 256),
    "layers.0.mlp.up_proj": (512, 256),
    "layers.0.mlp.down_proj": (256, 512),
}
MIXTURE = Mixture(path="layers.0.mlp.experts", experts=4)
EXPERTS: Linears = {
    MIXTURE.name(expert, name): shape
    for expert in range(4)
    for name, shape in {"gate_proj": (128, 256), "up_proj": (128, 256), "down_proj": (256, 128)}.items()
}
EVERYTHING = 1.0  # a max_unquantized_share that allows all


def select(linears: Linears, *mixtures: Mixture, share: float = EVERYTHING, **recipe: object) -> Selection:
    settings = Recipe(max_unquantized_share=share, **recipe)  # type: ignore[arg-type]  # of the test's own
    return select_linears(linears, mixtures, recipe=settings)


def test_everything_that_can_be_packed_is_packed_in_order() -> None:
    selection = select(ATTENTION | MLP, share=0.0)
    assert selection == Selection(packed=tuple(ATTENTION | MLP), left_out={}, left_out_share=0.0)


@pytest.mark.parametrize(
    ("changed", "reason", "together"),
    [
        (
            {"layers.0.attn.o_proj": (256, 200)},
            "200 input channels are not a multiple of the group size 128",
            {},
        ),
        (
            {"layers.0.attn.k_proj": (100, 256)},
            "100 output channels are not a multiple of 8",
            dict.fromkeys(("layers.0.attn.q_proj", "layers.0.attn.v_proj"), "layers.0.attn.k_proj"),
        ),
        (
            {"layers.0.mlp.up_proj": (516, 256)},
            "516 output channels are not a multiple of 8",
            {"layers.0.mlp.gate_proj": "layers.0.mlp.up_proj"},
        ),
    ],
)
def test_shapes_that_do_not_divide_are_left_out_with_what_servers_merge(
    changed: Linears, reason: str, together: dict[str, str]
) -> None:
    linears = ATTENTION | MLP | changed
    selection = select(linears)
    (name,) = changed
    because = {other: f"servers merge it with {first}" for other, first in together.items()}
    assert selection.left_out == {name: reason} | because
    assert selection.packed == tuple(other for other in linears if other not in selection.left_out)
    weights = {other: out * columns for other, (out, columns) in linears.items()}
    expected = sum(weights[other] for other in selection.left_out) / sum(weights.values())
    assert selection.left_out_share == pytest.approx(expected)


def test_all_experts_of_a_layer_are_packed_or_none() -> None:
    elsewhere = {f"layers.1.{name.partition('0.')[2]}": shape for name, shape in EXPERTS.items()}
    other = Mixture(path="layers.1.mlp.experts", experts=4)
    broken = MIXTURE.name(2, "down_proj")
    selection = select(ATTENTION | EXPERTS | elsewhere | {broken: (256, 100)}, MIXTURE, other)
    assert set(selection.left_out) == set(EXPERTS)
    assert selection.left_out[broken] == "100 input channels are not a multiple of the group size 128"
    assert selection.left_out[MIXTURE.name(0, "up_proj")] == f"servers merge it with {broken}"
    assert selection.packed == (*ATTENTION, *elsewhere)


def test_too_much_that_cannot_be_packed_is_refused_with_its_share() -> None:
    linears = ATTENTION | MLP | {"layers.0.mlp.down_proj": (256, 520)}
    sizes = {name: out * columns for name, (out, columns) in linears.items()}
    share = sizes["layers.0.mlp.down_proj"] / sum(sizes.values())
    assert select(linears, share=share + 0.001).packed
    with pytest.raises(UnsupportedModelError) as refused:
        select(linears, share=share - 0.001)
    assert refused.value.message == (
        f"{share:.0%} of the weights in its layers cannot be packed, such as layers.0.mlp.down_proj [256, 520]: "
        "520 input channels are not a multiple of the group size 128"
    )
    assert refused.value.hint == "Set `max_unquantized_share` in the entry's recipe to allow it."


def test_the_share_does_not_count_what_the_recipe_leaves_out() -> None:
    selection = select(ATTENTION | MLP, share=0.0, modules_to_not_convert=tuple(MLP))
    assert selection.packed == tuple(ATTENTION)
    assert set(selection.left_out.values()) == {"left out by the recipe"}
    assert selection.left_out_share == pytest.approx(2 / 3)


@pytest.mark.parametrize(("columns", "suggested"), [(576, 64), (544, 32), (520, None)])
def test_a_smaller_group_size_is_suggested_where_it_divides(columns: int, suggested: int | None) -> None:
    linears = ATTENTION | MLP | {"layers.0.mlp.down_proj": (256, columns)}
    with pytest.raises(UnsupportedModelError) as refused:
        select(linears, share=0.1)
    assert (f"`group_size: {suggested}`" in refused.value.hint) == (suggested is not None)
    if suggested:
        assert select(linears, share=0.1, group_size=suggested).left_out == {}


@pytest.mark.parametrize(
    ("linears", "fixed"),
    [
        ({"layers.0.mlp.down_proj": (257, 512)}, {}),
        ({"layers.0.mamba.in_proj": (1024, 256), "layers.0.mamba.x_proj": (64, 256)}, {}),
        ({}, {"layers.0.mlp.down_proj": "stored in another form"}),
    ],
    ids=["output channels", "unpacked by servers", "stored in another form"],
)
def test_no_group_size_is_suggested_where_none_would_help(linears: Linears, fixed: dict[str, str]) -> None:
    with pytest.raises(UnsupportedModelError) as refused:
        select_linears(ATTENTION | MLP | linears, (), recipe=Recipe(max_unquantized_share=0.1), fixed=fixed)
    assert refused.value.hint == "Set `max_unquantized_share` in the entry's recipe to allow it."


def test_layers_without_linears_that_could_be_packed_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="hold no linears that could be quantized") as refused:
        select({})
    assert refused.value.hint == ""
    with pytest.raises(UnsupportedModelError, match="hold no linears that could be quantized") as refused:
        select(ATTENTION, modules_to_not_convert=tuple(ATTENTION))
    assert refused.value.hint == "Name fewer modules under modules_to_not_convert."


@pytest.mark.parametrize(
    "router",
    ["gate", "router", "wg", "router.layer", "gate.proj", "shared_expert_gate", "chooser"],
)
def test_routers_are_never_packed(router: str) -> None:
    name = f"layers.0.mlp.{router}"
    shape = (1, 256) if router == "shared_expert_gate" else (4, 256)
    selection = select(ATTENTION | EXPERTS | {name: shape}, MIXTURE, share=0.0)
    assert selection.left_out == {name: "a router"}
    assert selection.left_out_share == 0.0  # it is not counted


def test_what_only_has_the_name_of_a_router_is_packed() -> None:
    linears = ATTENTION | {"layers.0.mlp.gate": (256, 256), "layers.0.mlp.up": (256, 256)}
    assert select(linears, share=0.0).left_out == {}
    inside = Mixture(path="layers.0.mlp.experts", experts=4)
    experts = {inside.name(expert, name): (256, 256) for expert in range(4) for name in ("gate", "up", "down")}
    shared = {f"layers.0.mlp.shared_experts.{name}": (256, 256) for name in ("gate", "up", "down")}
    assert select(ATTENTION | experts | shared, inside, share=0.0).left_out == {}


def test_mixers_of_mamba_1_are_never_packed() -> None:
    mixer = {
        "layers.0.mamba.in_proj": (1024, 256),
        "layers.0.mamba.x_proj": (64, 512),
        "layers.0.mamba.dt_proj": (512, 128),
        "layers.0.mamba.out_proj": (256, 512),
    }
    assert select(ATTENTION | MLP | mixer).left_out == dict.fromkeys(mixer, "servers hold it unpacked")
    mamba_2 = {name: shape for name, shape in mixer.items() if name.endswith(("in_proj", "out_proj"))}
    assert select(ATTENTION | MLP | mamba_2).left_out == {}


def test_small_inputs_of_linear_attention_are_never_packed() -> None:
    mixer = {"layers.0.linear_attn.in_proj_qkv": (512, 256), "layers.0.linear_attn.in_proj_z": (256, 256)}
    small = {f"layers.0.linear_attn.in_proj_{name}": (8, 256) for name in "ab"}
    assert set(select(ATTENTION | mixer | small).left_out) == set(small)


def test_what_has_no_place_in_a_checkpoint_is_left_out_with_what_servers_merge() -> None:
    fixed = {"layers.0.attn.v_proj": "stored in another form"}
    allowed = Recipe(max_unquantized_share=EVERYTHING)
    selection = select_linears(ATTENTION | MLP, (), recipe=allowed, fixed=fixed)
    merged = "servers merge it with layers.0.attn.v_proj"
    assert selection.left_out == fixed | {"layers.0.attn.q_proj": merged, "layers.0.attn.k_proj": merged}


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (("layers.0.attn.q",), "the model has no linear 'layers.0.attn.q' in its layers"),
        (
            ("layers.0.mlp.gate_proj",),
            "layers.0.mlp.gate_proj without layers.0.mlp.up_proj",
        ),
        (
            ("layers.0.attn.q_proj", "layers.0.attn.k_proj"),
            "layers.0.attn.q_proj without layers.0.attn.v_proj",
        ),
    ],
)
def test_a_recipe_that_leaves_out_what_it_cannot_is_refused(asked: tuple[str, ...], problem: str) -> None:
    with pytest.raises(WatchlistError, match=re.escape(f"modules_to_not_convert: {problem}")):
        select(ATTENTION | MLP, modules_to_not_convert=asked)


def test_a_recipe_that_names_a_part_of_another_path_is_refused() -> None:
    linears = {"layers.1.mlp.fc": (256, 256), "layers.1.mlp.fc2": (256, 256)}
    with pytest.raises(WatchlistError, match=r"would also leave out layers\.1\.mlp\.fc2 for layers\.1\.mlp\.fc"):
        select(linears, modules_to_not_convert=("layers.1.mlp.fc",))


def test_merged_linears_are_of_one_module() -> None:
    everything = [*ATTENTION, *MLP, "layers.1.attn.q_proj"]
    assert set(merged_with("layers.0.attn.k_proj", everything)) == {f"layers.0.attn.{name}_proj" for name in "qkv"}
    assert merged_with("layers.0.attn.o_proj", everything) == ("layers.0.attn.o_proj",)


@pytest.mark.parametrize(
    ("listed", "packed", "hit"),
    [
        ("layers.1", "layers.10.mlp.down_proj", "layers.10.mlp.down_proj"),
        ("layers.0.mlp.gate", "layers.0.mlp.experts.0.up_proj", None),
        ("layers.0.mlp.gate", "layers.0.mlp.up_proj", "layers.0.mlp.gate_up_proj"),
        ("layers.0.attn.qkv", "layers.0.attn.k_proj", "layers.0.attn.qkv_proj"),
        ("layers.0.mlp.router", "layers.0.mlp.down_proj", None),
    ],
)
def test_names_that_hit_a_packed_linear_are_not_listed(listed: str, packed: str, hit: str | None) -> None:
    if hit is None:
        check_listed([listed], [packed])
        return
    with pytest.raises(UnsupportedModelError) as refused:
        check_listed([listed], [packed])
    assert refused.value.message == f"servers would also leave out {hit} for {listed}"


def test_a_mixture_knows_the_names_of_its_experts() -> None:
    assert MIXTURE.name(3, "up_proj") == "layers.0.mlp.experts.3.up_proj"
    assert MIXTURE.expert_of("layers.0.mlp.experts.3.up_proj") == 3
    assert MIXTURE.inside("layers.0.mlp.experts.3.up_proj") == "up_proj"
    for other in ("layers.0.mlp.experts", "layers.0.mlp.experts.norm.weight", "layers.0.mlp.experts2.1.up_proj"):
        assert not MIXTURE.holds(other)
