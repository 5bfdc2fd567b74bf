import shutil
import weakref
from functools import partial

import pytest
import torch
import torch._dynamo
from torch import distributed
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from train.blocks import ATTENTION, prepare_blocks
from train.context_parallel.apply import spread
from train.context_parallel.groups import build_groups
from train.context_parallel.placement import Context
from train.model import Transformer, initialize, rotary_table
from train.shape import Shape

MODES = ["none", "full", "selective"]
DOCUMENTS = torch.tensor([[0] * 7 + [1] * 9] * 2)


def build(checkpointing="none", compile=False, n_layers=2, group=None):
    """With a group, as on the ranks of a context: here one that has whole sequences."""
    shape = Shape(d_model=32, n_layers=n_layers, n_heads=4, n_kv_heads=2, d_ff=48, qk_norm=True, vocab_size=50)
    model = Transformer(shape, 50)
    initialize(model, 0)
    if group:
        spread(model, group)
    prepare_blocks(model, checkpointing, compile)
    return model


def batch(seed=0):
    return torch.randint(0, 50, (2, 2, 16), generator=torch.Generator().manual_seed(seed)).unbind()


def gradients(model, documents=None, micro_batches=1):
    model.zero_grad()
    for seed in range(micro_batches):
        tokens, targets = batch(seed)
        model(tokens, documents, targets, 1e-3)[0].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def evaluate(model):
    tokens, targets = batch()
    with torch.no_grad():
        loss = model.eval()(tokens, None, targets)[1].item()
    model.train()
    return loss


def assert_same(found, expected, rtol):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= rtol * gradient.norm(), name


@pytest.fixture(scope="module")
def one_rank():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.fixture(params=["one device", "context"])
def group(request):
    if request.param == "one device":
        return None
    request.getfixturevalue("one_rank")
    return build_groups(Context())


@pytest.fixture
def fresh_compiler(one_thread):
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def no_code_generation(fresh_compiler, monkeypatch):
    """Graphs, and what of them is kept for the backward pass, as ever; their operations run one by one."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager_decomp_partition"))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["causal", "documents"])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_recomputing_changes_no_bit_of_any_gradient(mode, documents):
    plain, model = build(), build(mode)
    assert_same(gradients(model, documents), gradients(plain, documents), rtol=0)
    assert evaluate(model) == evaluate(plain)
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_compiled_code_gives_the_plain_gradients(fresh_compiler):
    plain, model = build(n_layers=1), build("selective", compile=True, n_layers=1)
    assert_same(gradients(model), gradients(plain), rtol=2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_compile_once(mode, group, no_code_generation):
    """Whatever the depth, the number of micro-batches of a step, and evaluations between steps."""
    plain, model = build(), build(mode, compile=True, group=group)
    assert_same(gradients(model), gradients(plain), rtol=2e-6)
    assert evaluate(model) == pytest.approx(evaluate(plain), rel=1e-6)
    assert counters["stats"]["unique_graphs"] == 4  # a block and the head's softmax, with gradients and without
    with torch._dynamo.config.patch(error_on_recompile=True):
        for micro_batches in (3, 1, 2):
            assert_same(gradients(model, None, micro_batches), gradients(plain, None, micro_batches), rtol=2e-6)
            evaluate(model)
        deep = build(mode, compile=True, n_layers=5, group=group)
        gradients(deep)
        evaluate(deep)


class Attention(TorchDispatchMode):
    """How often attention's forward kernel runs."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func in ATTENTION
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["causal", "documents"])
@pytest.mark.parametrize(("mode", "calls"), [("none", 3), ("full", 6), ("selective", 3)])
def test_attention_runs_forward_once_per_layer_but_where_all_is_recomputed(mode, calls, documents, group):
    model = build(mode, n_layers=3, group=group)
    with Attention() as attention:
        gradients(model, documents if documents is None or not group else documents[None].numpy())
    assert attention.calls == calls


class Alive(TorchDispatchMode):
    """Bytes of the distinct storages that operations made and that are still alive, but those in `known`."""

    def __init__(self, known):
        super().__init__()
        self.storages, self.known = {}, {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.storages | dict.fromkeys(self.known):
                    self.storages[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.storages.pop, storage._cdata)
        return out


def block_input(model):
    x = torch.randn(4, 64, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    return x, rotary_table(model.shape, torch.arange(64)), None


def test_what_is_kept_is_the_output_then_attentions_too_then_all(group):
    kept = {}
    for mode in MODES:
        model = build(mode, n_layers=1, group=group)
        arguments = block_input(model)
        with Alive([*model.parameters(), arguments[0], *arguments[1]]) as alive:
            out = model.blocks[0](*arguments)
            kept[mode] = sum(alive.storages.values())
        assert out.requires_grad
    stream = 4 * 64 * 32 * 4
    log_sum_exp = 4 * 4 * 64 * 4
    assert kept["full"] == stream
    assert kept["selective"] == stream + stream + log_sum_exp  # the block's output, attention's and its log-sum-exp
    assert kept["none"] > 8 * kept["selective"]


def test_compiled_blocks_keep_as_little(no_code_generation):
    kept = {}
    for mode in MODES:
        model, seen = build(mode, compile=True, n_layers=1), {}
        own = {p.untyped_storage()._cdata for p in model.parameters()}

        def pack(tensor, seen=seen):
            seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.blocks[0](*block_input(model))
        kept[mode] = sum(size for storage, size in seen.items() if storage not in own)
    assert kept["none"] > 2 * kept["selective"] > 2 * kept["full"]


def test_blocks_run_alike_under_fsdp(one_rank, no_code_generation):
    """Hooks that gather weights stay outside of what is compiled and recomputed."""
    expected = gradients(build(), None, 2)
    for mode in MODES:
        for compile in (False, True):
            model = build(mode, compile)
            for block in model.blocks:
                fully_shard(block, mesh=one_rank)
            fully_shard(model, mesh=one_rank)
            found = {name: gradient.full_tensor() for name, gradient in gradients(model, None, 2).items()}
            assert_same(found, expected, rtol=2e-6)
            assert evaluate(model) == pytest.approx(evaluate(build()), rel=1e-6)


def test_fsdps_bf16_is_that_of_autocast(one_rank, one_thread):
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    master, sharded = build(), build("selective")
    for block in sharded.blocks:
        fully_shard(block, mesh=one_rank, mp_policy=policy)
    fully_shard(sharded, mesh=one_rank, mp_policy=policy)
    tokens, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        expected = master(tokens, None, targets, 1e-3)
    sums = sharded(tokens, None, targets, 1e-3)
    assert [s.item() for s in sums] == [s.item() for s in expected]
    expected[0].backward()
    sums[0].backward()
    found = {name: p.grad.full_tensor() for name, p in sharded.named_parameters()}
    assert_same(found, {name: p.grad for name, p in master.named_parameters()}, rtol=4e-3)  # rounding of sums in bf16


def test_an_unknown_word_is_refused():
    with pytest.raises(
        ValueError, match="activation_checkpointing=some is not known: use one of none, full, selective"
    ):
        build("some")
