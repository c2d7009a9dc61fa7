"""Draft and verify, and the other loops of passes: counts worked by hand, invariants, determinism."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.config import ConfigError
from tests.method_cases import DECODER, DRAFT, small, write_model
from workloads import load_workload
from workloads.build import Builder
from workloads.models import Model
from workloads.trace import AttentionAttrs, Pass, Trace, visible_keys, visible_pairs
from workloads.trace_file import trace_text
from workloads.transforms.context import Context, pass_spans
from workloads.transforms.draws import Stream
from workloads.transforms.loops import mean_tokens_per_pass
from workloads.transforms.speculate import Accept, Draft, expected_accepted, speculate

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def decode(folder: Path, *methods: Any, **keys: Any) -> Trace:
    trace: Trace = small(folder, "decode", list(methods), **keys).trace()
    return trace


def drafted(folder: Path, draft: dict[str, Any], accept: dict[str, Any], **keys: Any) -> Trace:
    if draft.get("source") in ("model", "parallel") and draft.get("model") == "draft":
        draft = {**draft, "model": write_model(folder, DRAFT)}
    return decode(folder, {"draft": draft, "accept": accept}, **keys)


def spans(p: Pass) -> list[tuple[int, int, int]]:
    found = pass_spans(p)
    assert found is not None
    return [(s.count, s.query, s.past) for s in found]


def test_a_chain_by_hand(folder: Path) -> None:
    # One request with 10 cached positions and one known token makes 6 tokens; of 3 drafts 2, then 3 are accepted.
    trace = drafted(
        folder, {"source": "model", "model": "draft", "length": 3}, {"recorded": [2, 3]}, batch=1, context=10, steps=6
    )
    assert [(p.name, p.phase, p.generated) for p in trace.passes] == [
        ("draft.0.0", "draft", 0), ("draft.0.1", "draft", 0), ("draft.0.2", "draft", 0), ("verify.0", "verify", 3),
        ("draft.1.0", "draft", 0), ("draft.1.1", "draft", 0), ("draft.1.2", "draft", 0), ("verify.1", "verify", 3),
    ]  # fmt: skip
    # 11 positions are known. The draft reads the last of them, then its own proposals; the target reads all four.
    assert [spans(p) for p in trace.passes[:4]] == [[(1, 1, 10)], [(1, 1, 11)], [(1, 1, 12)], [(1, 4, 10)]]
    # 14 are known now, 13 of them by the draft: its cache held the first two proposals, both accepted.
    assert [spans(p) for p in trace.passes[4:]] == [[(1, 1, 13)], [(1, 1, 14)], [(1, 1, 15)], [(1, 4, 13)]]
    assert trace.generated == 6


def test_a_fully_accepted_draft_leaves_two_tokens_to_catch_up_with(folder: Path) -> None:
    trace = drafted(
        folder, {"source": "model", "model": "draft", "length": 2}, {"recorded": [2]}, batch=1, context=5, steps=6
    )
    # After the first iteration 9 positions are known; the draft's cache has 7: it never read its last proposal.
    assert spans(trace.passes[3]) == [(1, 2, 7)]


def test_length_zero_and_acceptance_zero(folder: Path) -> None:
    plain = decode(folder)
    none = drafted(folder, {"source": "model", "model": "draft", "length": 0}, {"rate": 0.5})
    assert none.passes == plain.passes
    # Nothing accepted: one verify pass for each token, exactly where the plain steps were, four positions each.
    zero = drafted(folder, {"source": "model", "model": "draft", "length": 3}, {"rate": 0})
    verify = [p for p in zero.passes if p.phase == "verify"]
    assert [(c, 4, past) for p in plain.passes for c, _, past in spans(p)] == [s for p in verify for s in spans(p)]
    assert len(zero.passes) == 4 * len(verify)


def test_everything_accepted(folder: Path) -> None:
    trace = drafted(folder, {"source": "model", "model": "draft", "length": 3}, {"rate": 1}, steps=12)
    assert sum(p.phase == "verify" for p in trace.passes) == 3  # 12 tokens, 3 + 1 an iteration


def test_expected_length_is_the_known_formula() -> None:
    # Leviathan et al. (arXiv 2211.17192), eq. 1: (1 - a^(g + 1)) / (1 - a) tokens an iteration, one of them its own.
    rate, length = Fraction(4, 5), 4
    assert expected_accepted(Accept(rate=0.8), length) + 1 == (1 - rate ** (length + 1)) / (1 - rate)
    assert expected_accepted(Accept(distribution=(1, 2, 1)), 2) == 1
    assert expected_accepted(Accept(distribution=(1, 2, 1)), 1) == Fraction(3, 4)
    assert expected_accepted(Accept(rate=(0.5, 0.25)), 2) == Fraction(5, 8)


def test_the_expected_mode_meets_the_mean(folder: Path) -> None:
    trace = drafted(folder, {"source": "lookup", "length": 4}, {"rate": 0.75, "draw": "expected"}, batch=1, steps=400)
    iterations = len(trace.passes)
    mean = 1 + float(expected_accepted(Accept(rate=0.75), 4))
    assert iterations == pytest.approx(400 / mean, abs=1.5)


def test_drawn_acceptance_follows_its_rate(folder: Path) -> None:
    trace = drafted(folder, {"source": "lookup", "length": 5}, {"rate": 0.6}, batch=64, steps=60)
    runs = sum(s[0] for p in trace.passes for s in spans(p))
    assert 64 * 60 / runs == pytest.approx(1 + float(expected_accepted(Accept(rate=0.6), 5)), rel=0.06)


SOURCES: list[dict[str, Any]] = [
    {"source": "model", "model": "draft", "length": 3},
    {"source": "model", "model": "draft", "length": [1, 4]},
    {"source": "model", "model": "draft", "tree": [2, 3, 1]},
    {"source": "model", "model": "draft", "length": 2, "unit": 3},
    {"source": "model", "model": "draft", "by_batch": [[2, 4], [4, 1]]},
    {"source": "parallel", "model": "draft", "length": 4},
    {"source": "parallel", "length": 4, "passes": 2, "bidirectional": True},
    {"source": "layers", "layers": ["0-2"], "length": 3},
    {"source": "layers", "layers": ["0-1", 5], "shared": False, "length": 3},
    {"source": "heads", "length": 3},
    {"source": "heads", "sequential": True, "tree": [2, 2]},
    {"source": "same_pass", "length": 2},
    {"source": "lookup", "length": 4, "lookup_bytes": 64},
]


@pytest.mark.parametrize("draft", SOURCES, ids=lambda d: "-".join(map(str, d.values())))
@pytest.mark.parametrize(
    "accept",
    [
        {"rate": 0.7}, {"rate": [0.9, 0.2], "rollback": "compact"}, {"rate": 0.8, "batch": "lockstep"},
        {"rate": 0.3, "on_reject": "rewrite"}, {"rate": 0.3, "on_reject": "rewrite", "rewrite_passes": 2},
    ],
    ids=["rate", "compact", "lockstep", "rewrite", "rewrite_at_once"],
)  # fmt: skip
def test_every_source_makes_every_token_once(folder: Path, draft: dict[str, Any], accept: dict[str, Any]) -> None:
    plain = decode(folder, steps=10, seed=3)
    trace = drafted(folder, draft, accept, steps=10, seed=3)
    assert trace.generated == plain.generated == 30
    # Requests advance: each verify pass begins where the known positions end, none beyond its request's last token. (In
    # the layers that self-speculation shares only the last proposal is left to do; the last layer sees all.)
    starts = []
    for p in trace.passes:
        if p.phase in ("verify", "decode") and not p.model:
            attrs = [op.attrs for b in p.blocks for op in b.ops if isinstance(op.attrs, AttentionAttrs)]
            starts += [span.past for span in attrs[-1].requests]
    assert min(starts) == 160
    assert max(starts) < 160 + 10
    # The target's weights are there once, whichever part of them each pass uses.
    own = {t: n * w.resident_bytes for t, (w, n) in trace._weights().items() if t[0] == trace.model}
    heads = sum(size for (_, name), size in own.items() if name.startswith("draft_heads"))
    assert sum(own.values()) - heads == plain.weight_bytes


def test_a_denoiser_rewrites_a_unit_in_some_passes(folder: Path) -> None:
    # Of 7 tokens the verify pass gives 1 and the rest of the rejected unit, 3, comes from 2 passes; then again.
    draft = {"source": "lookup", "length": 1, "unit": 4}
    accept = {"recorded": [0], "on_reject": "rewrite", "rewrite_passes": 2}
    trace = drafted(folder, draft, accept, batch=1, context=10, steps=7)
    assert [(p.name, p.repeat, p.generated, spans(p)) for p in trace.passes] == [
        ("verify.0", 1, 1, [(1, 5, 10)]),
        ("rewrite.0", 1, 0, [(1, 3, 11)]), ("rewrite.0", 1, 3, [(1, 3, 11)]),
        ("verify.1", 1, 1, [(1, 5, 14)]),
        ("rewrite.1", 1, 0, [(1, 2, 15)]), ("rewrite.1", 1, 2, [(1, 2, 15)]),
    ]  # fmt: skip
    seen = [op.attrs for b in trace.passes[1].blocks for op in b.ops if isinstance(op.attrs, AttentionAttrs)]
    assert visible_pairs(seen[0].mask, 3, 11) == 3 * 14  # all positions of the unit see each other
    with pytest.raises(ConfigError, match="rewrite_passes needs on_reject"):
        drafted(folder, draft, {"rate": 0.5, "rewrite_passes": 2})


def test_a_tree_is_verified_and_drafted_under_its_own_mask(folder: Path) -> None:
    trace = drafted(folder, {"source": "model", "model": "draft", "tree": [2, 3]}, {"rate": 0}, batch=1, steps=1)
    first, second, verify = trace.passes
    assert spans(first) == [(1, 1, 160)]
    mask = next(op.attrs for b in second.blocks for op in b.ops if isinstance(op.attrs, AttentionAttrs)).mask
    # Two nodes follow the 161 known positions; neither sees the other.
    assert (spans(second), mask.parents) == ([(1, 2, 161)], (-1, -1))
    assert visible_pairs(mask, 2, 161) == 2 * 162
    mask = next(op.attrs for b in verify.blocks for op in b.ops if isinstance(op.attrs, AttentionAttrs)).mask
    # The last known token is the root; nodes 1 and 2 are its children, 3 to 5 theirs: 3 * 2 / 2 share them evenly.
    assert mask.parents == (-1, 0, 0, 1, 1, 2)
    assert visible_pairs(mask, 6, 160) == 6 * 160 + (1 + 2 + 2 + 3 + 3 + 3)
    assert visible_keys(mask, 6, 160) == 166


def test_self_speculation_shares_the_first_layers(folder: Path) -> None:
    trace = drafted(
        folder, {"source": "layers", "layers": ["0-1"], "length": 3}, {"rate": 0}, batch=1, context=20, steps=1
    )
    *drafts, verify = trace.passes
    assert len(drafts) == 3
    rows = [(b.first_layer, b.repeat, spans(Pass("", "", (b,), 0))) for b in verify.blocks if b.first_layer is not None]
    # The last proposal still has to go through the two drafting layers; the others take all four positions.
    assert rows == [(0, 2, [(1, 1, 23)]), (2, 6, [(1, 4, 20)])]
    assert [b.repeat for b in drafts[0].blocks if b.first_layer is not None] == [2]


def test_heads_cost_a_square_layer_and_a_vocabulary_each(folder: Path) -> None:
    plain = drafted(folder, {"source": "lookup", "length": 3}, {"recorded": [0]}, batch=2, steps=1)
    heads = drafted(folder, {"source": "heads", "length": 3, "head_layers": 1}, {"recorded": [0]}, batch=2, steps=1)
    assert heads.flops - plain.flops == 3 * 2 * 2 * (64 * 64 + 64 * 4096)


def test_compaction_moves_accepted_entries(folder: Path) -> None:
    free = drafted(folder, {"source": "lookup", "length": 3}, {"recorded": [2]}, batch=2, context=9, steps=3)
    moved = drafted(
        folder, {"source": "lookup", "length": 3}, {"recorded": [2], "rollback": "compact"}, batch=2, context=9, steps=3
    )
    # Two requests, two accepted positions, 8 layers, keys and values of 4 x 16 elements of 2 bytes.
    assert moved.write_bytes - free.write_bytes == 2 * 2 * 8 * 2 * 64 * 2
    assert moved.read_bytes - free.read_bytes == 2 * 2 * 8 * 2 * 64 * 2


def test_drafts_elsewhere_and_at_the_same_time_are_told_to_the_machine(folder: Path) -> None:
    trace = drafted(
        folder, {"source": "model", "model": "draft", "device": "npu", "overlap": True}, {"rate": 0.5}, steps=2
    )
    assert {p.device for p in trace.passes if p.model} == {"npu"}
    assert [h.kind for h in trace.hints] == ["overlap"]


@pytest.mark.parametrize(
    ("draft", "accept", "key", "words"),
    [
        ({"source": "model", "model": "llama-3.2-1b"}, {"rate": 0.5}, "draft.model", "vocabulary of 128256"),
        ({"source": "model", "model": "lama-3.2-1b"}, {"rate": 0.5}, "draft.model", "nearest is"),
        ({"source": "model"}, {"rate": 0.5}, "draft", "needs model"),
        ({"source": "heads", "model": "x"}, {"rate": 0.5}, "draft", "no place"),
        ({"source": "layers", "layers": ["4-9"]}, {"rate": 0.5}, "draft", "layers 0 to 7"),
        ({"source": "layers", "layers": ["2-3"]}, {"rate": 0.5}, "draft.layers", "first layers only"),
        ({"source": "layers", "layers": ["0-7"]}, {"rate": 0.5}, "draft.layers", "no layer to verify"),
        ({"source": "lookup"}, {"rate": 1.5}, "accept.rate", "at most 1"),
        ({"source": "lookup"}, {"rate": -0.1}, "accept.rate", "at least 0"),
        ({"source": "lookup"}, {}, "accept", "needs one of rate, distribution, recorded"),
        ({"source": "lookup", "length": 2}, {"recorded": [3]}, "recorded", "3 accepted units, but 2"),
    ],
)
def test_bad_drafts(folder: Path, draft: dict[str, Any], accept: dict[str, Any], key: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        decode(folder, {"draft": draft, "accept": accept}).generated  # noqa: B018
    assert key in (error.value.key or "")
    assert words in error.value.message


def test_half_a_pair_is_refused(folder: Path) -> None:
    for half, words in (({"draft": {"source": "lookup"}}, "no accept"), ({"accept": {"rate": 0.5}}, "no draft")):
        with pytest.raises(ConfigError, match=words):
            decode(folder, half)


def test_positions_beyond_the_draft_model(folder: Path) -> None:
    short = write_model(folder, {**DRAFT, "name": "short", "max_position": 168})
    with pytest.raises(ConfigError, match="drafting needs"):
        decode(folder, {"draft": {"source": "model", "model": short}, "accept": {"rate": 0.5}})


@settings(deadline=None, max_examples=25)
@given(rate=st.floats(0, 1), length=st.integers(1, 6), seed=st.integers(0, 5), batch=st.integers(1, 5))
def test_speculation_keeps_its_books(rate: float, length: int, seed: int, batch: int) -> None:
    builder = Builder(Model.model_validate(DECODER))
    from workloads.build import decode_passes, make_trace

    plain = make_trace(builder, batch, decode_passes(builder, [7] * batch, 9))
    context = Context(builder, seed, lambda name: builder.model)
    trace = speculate(plain, Draft(source="lookup", length=length), Accept(rate=round(rate, 3)), context)
    assert trace.generated == plain.generated == 9 * batch
    assert -(-9 // (length + 1)) <= len(trace.passes) <= 9
    assert trace.weight_bytes == plain.weight_bytes


def test_streams_are_what_they_were() -> None:
    # Philox words are part of the file format of results: these numbers must never change.
    assert Stream(0, "accept").uniforms(3) == [0.9083456921993629, 0.5234624215583756, 0.5230995138689175]
    assert Stream(0, "accept").uniforms(2) != Stream(1, "accept").uniforms(2) != Stream(1, "skip").uniforms(2)
    assert Stream(5, "x", 2).choices([0, 1, 0], 4) == [1, 1, 1, 1]


def test_same_seed_same_bytes_whatever_the_hash_seed(folder: Path) -> None:
    model, draft = write_model(folder, DECODER), write_model(folder, DRAFT)
    program = (
        "from workloads import make_workload\nfrom workloads.trace_file import trace_text\nimport hashlib\n"
        f"w = make_workload({{'schema': 'opcycle/workload/1', 'name': 't', 'model': {model!r}, 'phase': 'decode', "
        "'batch': 4, 'context': 30, 'steps': 20, 'seed': 7, 'methods': [{'draft': {'source': 'model', 'model': "
        f"{draft!r}}}, 'accept': {{'rate': 0.6}}}}, {{'skip': {{'probability': 0.3, 'draw': 'sampled'}}}}]}})\n"
        "print(hashlib.sha256(trace_text(w.trace()).encode()).hexdigest())"
    )
    found = set()
    for seed in ("1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        )  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1


def test_another_seed_is_another_run(folder: Path) -> None:
    texts = {trace_text(drafted(folder, SOURCES[0], {"rate": 0.5}, seed=seed, steps=20)) for seed in (1, 1, 2)}
    assert len(texts) == 2


def test_llama_70b_speculative_stays_small() -> None:
    import tracemalloc

    methods = [{"use": "speculative-sampling", "set": {"accept.rate": 0.7}}]
    tracemalloc.start()
    trace = load_workload("llama3-70b-decode", batch=64, steps=128, methods=methods).trace()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert trace.generated == 64 * 128
    assert peak < 300e6


# --- other loops


def test_block_diffusion_by_hand(folder: Path) -> None:
    loop = {"over": "denoise", "block": 4, "count": 3}
    trace = decode(folder, {"loop": loop}, batch=2, context=10, steps=10)
    # Blocks of 4, 4 and 2; three passes each, the last of which yields the block.
    assert [(p.repeat, p.generated, spans(p)) for p in trace.passes] == [
        (2, 0, [(2, 4, 10)]), (1, 8, [(2, 4, 10)]), (2, 0, [(2, 4, 14)]), (1, 8, [(2, 4, 14)]),
        (2, 0, [(2, 2, 18)]), (1, 4, [(2, 2, 18)]),
    ]  # fmt: skip
    attrs = next(op.attrs for b in trace.passes[0].blocks for op in b.ops if isinstance(op.attrs, AttentionAttrs))
    assert attrs.pairs == 2 * 4 * 14  # all positions of the block see each other
    assert mean_tokens_per_pass(trace) == Fraction(20, 18)


def test_block_of_one_is_plain_decoding(folder: Path) -> None:
    plain = decode(folder, steps=5)
    blocks = decode(folder, {"loop": {"over": "denoise", "block": 1, "count": 1}}, steps=5)
    assert (blocks.flops, blocks.read_bytes, blocks.generated) == (plain.flops, plain.read_bytes, plain.generated)


def test_tokens_per_pass_fixes_the_number_of_passes(folder: Path) -> None:
    loop = {"over": "denoise", "block": 32, "tokens_per_pass": 7.32}
    trace = decode(folder, {"loop": loop}, batch=1, steps=320)
    assert sum(p.repeat for p in trace.passes) == 44  # ceil(320 / 7.32)


def test_caches_of_block_diffusion(folder: Path) -> None:
    loop = {"over": "denoise", "block": 8, "count": 6, "cache": "none"}
    whole = decode(folder, {"loop": loop}, batch=1, context=20, steps=8)
    assert {s for p in whole.passes for s in spans(p)} == {(1, 28, 0)}
    periodic = decode(folder, {"loop": {**loop, "cache": "periodic", "refresh": 3}}, batch=1, context=20, steps=8)
    runs = [(p.repeat, spans(p)) for p in periodic.passes]
    assert runs == [(2, [(1, 28, 0)]), (3, [(1, 8, 20)]), (1, [(1, 8, 20)])]
    committed = decode(folder, {"loop": {**loop, "cache": "prefix", "commit": True}}, batch=1, context=20, steps=8)
    assert [(p.name, p.repeat, p.generated) for p in committed.passes] == [
        ("denoise.0", 6, 0), ("denoise.0.commit", 1, 8),
    ]  # fmt: skip


def test_sweeps_are_causal(folder: Path) -> None:
    trace = decode(folder, {"loop": {"over": "sweeps", "block": 5, "count": 2}}, batch=1, context=10, steps=5)
    attrs = next(op.attrs for b in trace.passes[0].blocks for op in b.ops if isinstance(op.attrs, AttentionAttrs))
    assert attrs.pairs == 5 * 10 + 15
    assert sum(p.repeat for p in trace.passes) == 2


def test_samples_share_the_prompt(folder: Path) -> None:
    plain = small(folder, "generate").trace()
    many = small(folder, "generate", [{"loop": {"over": "samples", "count": 3}}]).trace()
    assert many.passes[0] == plain.passes[0]
    assert all(3 * a.tokens == b.tokens for a, b in zip(plain.passes[1:], many.passes[1:], strict=True))
    one = small(folder, "generate", [{"loop": {"over": "samples", "count": 1}}]).trace()
    assert one.passes == plain.passes
    drawn = decode(folder, {"loop": {"over": "samples", "shares": [0, 1]}})
    assert drawn.batch == 6  # always two samples of each of three requests


def test_looped_layers_run_again_with_the_same_weights(folder: Path) -> None:
    plain = decode(folder, steps=1)
    layer = next(b for b in plain.passes[0].blocks if b.name == "layers")
    looped = decode(folder, {"loop": {"over": "layers", "count": 3, "where": {"layers": ["2-4"]}}}, steps=1)
    assert looped.flops - plain.flops == 2 * 3 * layer.flops // 8
    assert looped.weight_bytes == plain.weight_bytes
    assert looped.kv_bytes == plain.kv_bytes * 14 // 8
    once = decode(folder, {"loop": {"over": "layers", "count": 1, "where": {"layers": ["2-4"]}}}, steps=1)
    assert once.flops == plain.flops


def test_diffusion_steps(folder: Path) -> None:
    trace = small(folder, "denoise", [{"loop": {"over": "steps", "count": 1}}]).trace()
    assert [p.repeat for p in trace.passes] == [1]


def test_passes_from_outside(folder: Path) -> None:
    given_ = [
        {"name": "mixed", "phase": "decode", "requests": [[3, 1, 50], [1, 16, 0]], "repeat": 2},
        {"name": "next", "requests": [[4, 1, 20]]},
    ]
    trace = decode(folder, {"passes": {"passes": given_}})
    assert [(p.name, p.repeat, p.tokens, p.generated) for p in trace.passes] == [("mixed", 2, 19, 4), ("next", 1, 4, 4)]
    with pytest.raises(ConfigError, match="max_position"):
        decode(folder, {"passes": {"passes": [{"name": "x", "requests": [[1, 1, 9999]]}]}})


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        ({"over": "denoise"}, "needs one of count or tokens_per_pass"),
        ({"over": "layers", "count": 2}, "needs where.layers"),
        ({"over": "layers", "count": 2, "where": {"layers": [1, 3]}}, "stand in a row"),
        ({"over": "layers", "count": 2, "where": {"layers": ["5-8"]}}, "layers 0 to 7"),
        ({"over": "samples", "count": 2, "refresh": 3}, "takes no refresh"),
        ({"over": "steps", "count": 2}, "denoising steps"),
        ({"over": "denoise", "tokens_per_pass": 0.5}, "at least 1"),
    ],
)
def test_bad_loops(folder: Path, loop: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        decode(folder, {"loop": loop})
