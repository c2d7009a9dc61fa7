"""FLOPs and bytes of built traces against closed forms that know nothing of the operator graph."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.build import Builder, decode_passes, encode_passes, layer_runs, make_trace, prefill_passes
from workloads.emit import FormatChoice
from workloads.ffn import balanced_loads
from workloads.models import LayerKind, Model, load_model, model_names
from workloads.scenario import load_workload, make_workload
from workloads.trace import MoveAttrs, Op, OpKind, Pass, RequestSpan, Role, Trace
from workloads.trace_check import check_trace


def attention_flops(model: Model, pairs: int) -> int:
    a = model.attention
    return 2 * pairs * a.heads * (a.head_dim + a.value_dim)


def matrix_parameters(model: Model) -> int:
    """Weights of a dense gated decoder's layers that every token multiplies with."""
    a, d = model.attention, model.hidden
    assert model.ffn is not None
    matrices = 3 if model.ffn.activation in ("swiglu", "geglu") else 2
    width = a.heads * a.head_dim + 2 * a.kv_heads * a.head_dim
    return model.layers * (d * width + a.heads * a.head_dim * d + matrices * d * model.ffn.hidden)


def ops_of(p: Pass, name: str) -> list[Op]:
    return [op for block in p.blocks for op in block.ops if op.name.rpartition(".")[2] == name]


def single(name: str, **keys: object) -> Pass:
    (p,) = load_workload(name, **keys).trace().passes
    return p


@pytest.mark.parametrize(
    "model_name", ["llama-3.1-8b", "llama-2-70b", "gpt3-13b", "opt-6.7b", "qwen3-8b", "phi-3-mini"]
)
@pytest.mark.parametrize(("batch", "prompt"), [(1, 1), (1, 128), (3, 77)])
def test_dense_prefill_flops(model_name: str, batch: int, prompt: int) -> None:
    model = load_model(model_name)
    assert model.vocab is not None
    (p,) = prefill_passes(Builder(model), [prompt] * batch)
    pairs = batch * sum(range(1, prompt + 1))
    head = batch * model.hidden * model.vocab
    dense = batch * prompt * matrix_parameters(model)
    assert p.flops == 2 * dense + model.layers * attention_flops(model, pairs) + 2 * head
    assert (p.tokens, p.generated) == (batch * prompt, batch)


@pytest.mark.parametrize("model_name", ["llama-3.1-8b", "gpt3-13b", "qwen2.5-7b"])
def test_dense_decode_flops_grow_with_the_cache(model_name: str) -> None:
    model = load_model(model_name)
    assert model.vocab is not None
    passes = decode_passes(Builder(model), [100, 100, 200], steps=5)
    fixed = 2 * 3 * (matrix_parameters(model) + model.hidden * model.vocab)
    for step, p in enumerate(passes):
        pairs = 2 * (101 + step) + (201 + step)
        assert p.flops == fixed + model.layers * attention_flops(model, pairs)


def test_llama3_8b_by_hand() -> None:
    # 32 layers of 218,103,808 matrix weights, a head of 4096 x 128256, 2049 visible keys for each of 8 requests.
    p = single("llama3-8b-decode", batch=8, context=2048)
    assert p.flops == 2 * 8 * (32 * 218_103_808 + 4096 * 128_256) + 32 * 2 * 8 * 2049 * 32 * 256
    assert p.kv_bytes == 8 * 2049 * 131_072


@pytest.mark.parametrize("window", [1, 5, 64])
@pytest.mark.parametrize(("past", "query"), [(0, 40), (30, 17), (200, 1)])
def test_windowed_layers_by_enumeration(window: int, past: int, query: int) -> None:
    base = load_model("gemma-2-9b")
    attention = base.attention.model_copy(
        update={"window": base.attention.window.model_copy(update={"size": window}) if base.attention.window else None}
    )
    model = base.model_copy(update={"attention": attention})
    p = Builder(model).build_pass("p", "prefill", [RequestSpan(2, query, past)])
    local, everywhere = ops_of(p, "attention")
    seen = [(i, j) for i in range(past, past + query) for j in range(i + 1)]
    near = [(i, j) for i, j in seen if i - j < window]
    assert everywhere.flops == attention_flops(model, 2 * len(seen))
    assert local.flops == attention_flops(model, 2 * len(near))
    # Keys and values of the positions that some query sees, once.
    row = 2 * model.attention.kv_heads * model.attention.head_dim * 2
    kv = {op.name: sum(t.bytes for t in op.inputs if t.role is Role.KV) for op in (local, everywhere)}
    assert kv[everywhere.name] == 2 * (past + query) * row
    assert kv[local.name] == 2 * len({j for _, j in near}) * row


def mla_common(model: Model) -> int:
    """Multiply-accumulates a token of projections that both forms of latent attention share."""
    a, d = model.attention, model.hidden
    assert a.latent is not None
    query = d * a.heads * a.head_dim
    if a.latent.q_rank is not None:
        query = d * a.latent.q_rank + a.latent.q_rank * a.heads * a.head_dim
    return query + d * (a.latent.kv_rank + a.latent.rope_dim) + a.heads * a.value_dim * d


@pytest.mark.parametrize("model_name", ["deepseek-v2-lite", "deepseek-v3", "kimi-k2"])
def test_latent_attention_expanded_and_absorbed(model_name: str) -> None:
    model = load_model(model_name)
    a = model.attention
    assert a.latent is not None
    rank, rope = a.latent.kv_rank, a.latent.rope_dim
    nope = a.head_dim - rope
    span, tokens, keys = RequestSpan(2, 3, 50), 6, 2 * 53
    pairs = 2 * (51 + 52 + 53)
    builder = Builder(model)
    macs = {}
    for form in ("expanded", "absorbed"):
        p = builder.build_pass(form, "p", [span], latent_form=form)
        block = p.blocks[1]
        macs[form] = sum(op.macs for op in block.ops if op.role == "attention")
        cache = [t for op in ops_of(p, "kv_append")[:1] for t in op.outputs]
        assert [t.shape for t in cache] == [(tokens, rank + rope)]
        assert p.kv_bytes == 2 * keys * model.layers * (rank + rope)
    shared = tokens * mla_common(model)
    assert macs["expanded"] == shared + keys * rank * a.heads * (nope + a.value_dim) + pairs * a.heads * (
        a.head_dim + a.value_dim
    )
    assert macs["absorbed"] == shared + tokens * rank * a.heads * (nope + a.value_dim) + pairs * a.heads * (
        2 * rank + rope
    )


@pytest.mark.parametrize("model_name", ["mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b", "deepseek-v2-lite", "kimi-k2"])
@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_experts_flops_and_bytes(model_name: str, tokens: int) -> None:
    model = load_model(model_name)
    moe = model.moe
    assert moe is not None
    p = Builder(model, FormatChoice(experts="int8")).build_pass("p", "decode", [RequestSpan(tokens, 1, 10)])
    block = next(b for b in p.blocks if any(op.name.endswith("dispatch") for op in b.ops))
    grouped = [op for op in block.ops if op.name.rpartition(".")[2] in ("expert_gate_up", "expert_down")]
    layers = sum(op.name.endswith("expert_down") for op in block.ops)
    assert sum(op.macs for op in grouped) == layers * tokens * moe.top_k * 3 * model.hidden * moe.hidden
    hit = min(moe.experts, tokens * moe.top_k)
    weights = [t for op in grouped for t in op.inputs if t.role is Role.WEIGHT and t.format == "int8"]
    assert sum(t.bytes for t in weights) == layers * hit * 3 * model.hidden * moe.hidden
    assert sum(t.resident_bytes for t in weights) == layers * moe.experts * 3 * model.hidden * moe.hidden


def test_active_flops_of_a_mixture() -> None:
    """A token's FLOPs are twice its active weights but gains and the embedding that is looked up, and its attention."""
    model = load_model("mixtral-8x7b")
    assert model.vocab is not None
    p = Builder(model).build_pass("p", "decode", [RequestSpan(1, 1, 0)])
    gains = (2 * model.layers + 1) * model.hidden
    matrices = model.parameters().active - gains - model.vocab * model.hidden
    assert p.flops == 2 * matrices + model.layers * attention_flops(model, 1)


@given(choices=st.integers(1, 5000), experts=st.integers(1, 400))
def test_balanced_loads(choices: int, experts: int) -> None:
    loads = balanced_loads(choices, experts)
    assert sum(loads) == choices
    assert len(loads) == min(choices, experts)
    assert max(loads) - min(loads) <= 1
    assert list(loads) == sorted(loads, reverse=True)


@pytest.mark.parametrize("name", model_names())
def test_traces_hold_every_weight_once(name: str) -> None:
    """The weights that the operators name are those of the closed-form count, tied and shared ones once."""
    model = load_model(name)
    builder = Builder(model)
    if model.kind == "decoder":
        passes = [*prefill_passes(builder, [9, 4], chunk=4), *decode_passes(builder, [9, 4], steps=3)]
    else:
        assert model.patch is None or model.patch.tokens <= model.max_position
        passes = encode_passes(builder, [model.patch.tokens if model.patch else 12] * 2)
    trace = make_trace(builder, 2, passes)
    check_trace(trace)
    assert trace.weight_elements == model.parameters().total


@pytest.mark.parametrize("name", model_names())
def test_every_layer_is_there_in_order(name: str) -> None:
    model = load_model(name)
    kinds = model.layer_kinds()
    runs = layer_runs(kinds)
    assert tuple(kind for run in runs for kind in run.kinds * run.repeat) == kinds
    assert len({run.name for run in runs}) == len(runs)
    assert sum(len(run.kinds) for run in runs) <= 7


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_layer_runs_cover_any_order(marks: list[tuple[bool, bool]]) -> None:
    kinds = tuple(LayerKind(local, moe) for local, moe in marks)
    runs = layer_runs(kinds)
    assert tuple(kind for run in runs for kind in run.kinds * run.repeat) == kinds
    assert len({run.name for run in runs}) == len(runs)
    assert all(len(set(run.prefixes)) == len(run.kinds) for run in runs)


def test_blocks_of_known_patterns() -> None:
    def shape(name: str) -> list[tuple[str, int, int]]:
        return [(run.name, run.repeat, len(run.kinds)) for run in layer_runs(load_model(name).layer_kinds())]

    assert shape("llama-3.1-8b") == [("layers", 32, 1)]
    assert shape("mistral-7b-v0.1") == [("layers", 32, 1)]
    assert shape("gemma-2-9b") == [("local_global", 21, 2)]
    assert shape("gemma-3-27b") == [("local_global", 10, 6), ("local", 2, 1)]
    assert shape("deepseek-v3") == [("dense", 3, 1), ("moe", 58, 1)]
    assert shape("llama-4-scout-17b-16e") == [("local_global", 12, 4)]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=5),
    chunk=st.integers(1, 100),
    context=st.integers(0, 30),
    name=st.sampled_from(["llama-3.2-1b", "gemma-2-9b", "gpt-2-xl"]),
)
def test_chunks_add_up_to_the_whole_prefill(lengths: list[int], chunk: int, context: int, name: str) -> None:
    builder = Builder(load_model(name))
    (whole,) = prefill_passes(builder, lengths, context=context)
    chunks = prefill_passes(builder, lengths, chunk, context)
    assert len(chunks) == -(-max(lengths) // chunk)
    assert sum(p.flops for p in chunks) == whole.flops
    assert sum(p.tokens for p in chunks) == whole.tokens == sum(lengths)
    assert sum(p.generated for p in chunks) == whole.generated == len(lengths)
    assert max(p.kv_bytes for p in chunks) <= whole.kv_bytes
    # What a chunk appends to the cache is what its tokens are, however they are cut.
    appended = [sum(t.bytes for op in ops_of(p, "kv_append") for t in op.outputs) for p in (whole, *chunks)]
    assert appended[0] == sum(appended[1:])


def test_chunked_latent_prefill_expands_the_cache_again_for_each_chunk() -> None:
    model = load_model("deepseek-v2-lite")
    builder = Builder(model)
    chunks = prefill_passes(builder, [96], chunk=32)
    assert [op.attrs.m for p in chunks for op in ops_of(p, "k_up")[:1]] == [32, 64, 96]


def test_head_is_computed_once_for_each_finished_request() -> None:
    chunks = prefill_passes(Builder(load_model("llama-3.2-1b")), [10, 20, 20, 25], chunk=10)
    assert [p.generated for p in chunks] == [1, 2, 1]
    assert [[op.attrs.m for op in ops_of(p, "lm_head")] for p in chunks] == [[1], [2], [1]]
    assert [p.tokens for p in chunks] == [40, 30, 5]


def test_bytes_of_a_decode_step() -> None:
    """Every weight but the embedding table is read once; so is the cache; one position is appended."""
    model = load_model("llama-3.1-8b")
    assert model.vocab is not None
    p = single("llama3-8b-decode", batch=2, context=99)
    ops = [(block.repeat, op) for block in p.blocks for op in block.ops]
    weights = sum(n * t.bytes for n, op in ops for t in op.inputs if t.role is Role.WEIGHT)
    assert weights == 2 * (model.parameters().total - model.vocab * model.hidden) + 2 * 2 * model.hidden
    assert sum(n * t.bytes for n, op in ops for t in op.inputs if t.role is Role.KV) == 2 * 100 * 131_072
    assert sum(n * t.bytes for n, op in ops for t in op.outputs if t.role is Role.KV) == 2 * 131_072


@pytest.mark.parametrize(("kv", "bytes_each"), [("int8", 1), ("fp16", 2), ("fp32", 4)])
def test_cache_has_its_own_format(kv: str, bytes_each: int) -> None:
    p = single("llama3-8b-decode", batch=1, context=10, formats={"kv": kv})
    assert p.kv_bytes == 11 * 65_536 * bytes_each


def test_released_formats_of_gpt_oss() -> None:
    # The released checkpoint holds its experts in MXFP4 (4.25 bits with the scales) and the rest in BF16.
    model = load_model("gpt-oss-20b")
    assert model.moe is not None
    experts = model.layers * model.moe.experts * 3 * model.hidden * model.moe.hidden
    trace = load_workload("gpt-oss-20b-decode").trace()
    assert trace.weight_bytes == experts * 17 // 32 + 2 * (model.parameters().total - experts)


def test_dit_forward_meets_its_paper() -> None:
    # Peebles and Xie state 118.64 GFLOPs for DiT-XL/2 at 256 x 256, counting a multiply-accumulate as one.
    trace = load_workload("dit-xl-denoise", batch=1, steps=1).trace()
    assert trace.flops / 2 == pytest.approx(118.64e9, rel=1e-3)
    assert load_workload("dit-xl-denoise", batch=1, steps=50).trace().flops == 50 * trace.flops


def test_vit_forward_meets_its_published_cost() -> None:
    # torchvision states 17.56 and 61.55 GFLOPs, counting a multiply-accumulate as one.
    for name, published in (("vit-b", 17.56e9), ("vit-l", 61.55e9)):
        trace = load_workload(f"{name}-encode", batch=1).trace()
        assert trace.flops / 2 == pytest.approx(published, rel=1e-3)


def test_encoder_flops() -> None:
    model = load_model("bert-large")
    (p,) = encode_passes(Builder(model), [512, 512, 100])
    tokens, pairs = 1124, 2 * 512**2 + 100**2
    dense = tokens * matrix_parameters(model) + 3 * model.hidden**2
    assert p.flops == 2 * dense + model.layers * attention_flops(model, pairs)
    assert p.kv_bytes == 0
    assert p.generated == 0


def test_passes_share_what_does_not_change() -> None:
    trace = load_workload("llama3-70b-decode", steps=128, batch=64).trace()
    distinct = {id(op) for p in trace.passes for block in p.blocks for op in block.ops}
    per_pass = sum(len(block.ops) for block in trace.passes[0].blocks)
    assert len(trace.passes) == 128
    assert len(distinct) == per_pass + 127  # only attention differs from step to step


def test_generate_is_a_prefill_and_decodes_of_the_growing_cache() -> None:
    trace = load_workload("llama3-8b-generate", prompt=16, steps=4, batch=2).trace()
    assert [(p.phase, p.tokens, p.generated) for p in trace.passes] == [("prefill", 32, 2)] + [("decode", 2, 2)] * 3
    pasts = [op.attrs.requests[0].past for p in trace.passes for op in ops_of(p, "attention")]
    assert pasts == [0, 16, 17, 18]
    assert trace.generated == 8


def test_kinds_of_ops_cover_a_layer() -> None:
    names = [op.name for op in single("llama3-8b-decode").blocks[1].ops]
    assert names == [
        "attn_norm", "qkv", "rotary", "kv_append", "attention", "out_proj", "attn_add",
        "ffn_norm", "gate_up", "swiglu", "down", "ffn_add",
    ]  # fmt: skip
    kinds = {op.name: op.kind for op in single("mixtral-8x7b-decode").blocks[1].ops}
    assert kinds["dispatch"] is OpKind.GATHER
    assert kinds["combine"] is OpKind.SCATTER
    assert kinds["topk"] is OpKind.REDUCE


def trace_of(**keys: object) -> Trace:
    return make_workload({"schema": "opcycle/workload/1", "name": "t", **keys}).trace()


def test_same_inputs_give_the_same_trace() -> None:
    keys = {"model": "deepseek-v2-lite", "phase": "decode", "lengths": [5, 9, 5], "steps": 3}
    assert trace_of(**keys) == trace_of(**keys)


def test_more_tokens_than_the_vocabulary_has() -> None:
    """Each token reads its row, also where tokens must repeat; the table is no larger for it."""
    workload = load_workload("llama3-8b-prefill", batch=1, prompt=131072)
    embedding = workload.trace().passes[0].blocks[0].ops[0]
    assert isinstance(embedding.attrs, MoveAttrs)
    assert embedding.attrs.rows == 131072
    assert embedding.inputs[1].shape == (128256, 4096)
    check_trace(workload.trace())
